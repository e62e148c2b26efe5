"""For every rule of the contract a manifest that keeps it and one that breaks it. The API server is asked the same table (issue 4)."""

import copy
from typing import Any, NamedTuple

COMPOSED = {
    "visionTower": {"source": "vision"},
    "projector": {},
    "languageModel": {"source": "language"},
}
ENDPOINT = {"endpoint": {"url": "http://teacher:8000/v1", "model": "big"}}
CHECKPOINT = {"checkpoint": {"source": "models/judge"}}


def manifest(**changes: Any) -> dict[str, Any]:
    """The smallest manifest, with changes: `student__checkpoint=…` sets `spec.student.checkpoint`, None removes, names are aliases."""
    document: dict[str, Any] = {
        "apiVersion": "comd.dev/v1alpha1",
        "kind": "DistillationRun",
        "metadata": {"name": "tiny"},
        "spec": {
            "student": {"checkpoint": {"source": "models/student"}},
            "teacher": {"checkpoint": {"source": "models/teacher"}},
            "data": {
                "images": "images",
                "seed": {"instructions": "seed.jsonl"},
                "evaluation": [{"name": "test", "items": "test.jsonl"}],
            },
        },
    }
    for path, value in changes.items():
        node = document["spec"]
        *parents, last = path.split("__")
        for parent in parents:
            node = node.setdefault(parent, {})
        if value is None:
            node.pop(last, None)
        else:
            node[last] = copy.deepcopy(value)
    return document


def in_bucket(**s3: Any) -> dict[str, Any]:
    return {"uri": "s3://bucket/x", "s3": s3}


CA_BUNDLE = {"secretKeyRef": {"name": "ca", "key": "ca.crt"}}


def named(name: str) -> dict[str, Any]:
    return {**manifest(), "metadata": {"name": name}}


class Example(NamedTuple):
    message: str
    """How the rule's message begins."""
    path: str
    """What `comd validate` puts before it."""
    good: dict[str, Any]
    bad: dict[str, Any]


TWO_SETS = [{"name": name, "items": f"{name}.jsonl"} for name in ("test", "other")]

EXAMPLES = [
    Example("metadata.name may have", "", named("a" * 63), named("with.dots")),
    Example(
        "student.composed starts",
        "spec.",
        manifest(student={"composed": COMPOSED}, pretraining={}, data__pretraining="captions.jsonl"),
        manifest(student={"composed": COMPOSED}),
    ),
    Example(
        "pretraining needs data.pretraining",
        "spec.",
        manifest(pretraining={}, data__pretraining="captions.jsonl"),
        manifest(pretraining={}),
    ),
    Example(
        "augmentor.type Retrieval and Random",
        "spec.",
        manifest(augmentor__type="Retrieval", data__bank="bank.jsonl"),
        manifest(augmentor__type="Random"),
    ),
    Example(
        "rounds.assessment.freshItems are drawn",
        "spec.",
        manifest(rounds__assessment__freshItems=5, data__bank="bank.jsonl"),
        manifest(rounds__assessment__freshItems=5),
    ),
    Example(
        "augmentor.chat.image Overlapping",
        "spec.",
        manifest(augmentor__chat__image="Overlapping", data__annotations="boxes.jsonl"),
        manifest(augmentor__chat__image="Overlapping"),
    ),
    Example(
        "assessor.judge.evidence Annotations",
        "spec.",
        manifest(assessor__judge__evidence="Annotations", data__annotations="boxes.jsonl"),
        manifest(assessor__judge__evidence="Annotations"),
    ),
    Example(
        "assessor.type Likelihood needs",
        "spec.",
        manifest(assessor={"type": "Likelihood", "model": CHECKPOINT}, teacher=ENDPOINT),
        manifest(assessor={"type": "Likelihood"}, teacher=ENDPOINT),
    ),
    Example(
        "assessor.type Reference needs",
        "spec.",
        manifest(assessor={"type": "Reference"}, augmentor__type="Retrieval", data__bank="bank.jsonl"),
        manifest(assessor={"type": "Reference"}),
    ),
    Example(
        "rounds.augmentation.hardItems and easyItems",
        "spec.",
        manifest(rounds={"count": 1, "augmentation": {"hardItems": 0, "easyItems": 0}}),
        manifest(rounds={"count": 2, "augmentation": {"hardItems": 0, "easyItems": 0}}),
    ),
    Example(
        "rounds.hardItemsFloor is larger",
        "spec.",
        manifest(rounds={"hardItemsFloor": 40, "assessment": {"sampleSize": 40}}),
        manifest(rounds={"hardItemsFloor": 41, "assessment": {"sampleSize": 40}}),
    ),
    Example(
        "rounds.earlyStop.evaluation must be",
        "spec.",
        manifest(rounds__earlyStop={"evaluation": "test"}),
        manifest(rounds__earlyStop={"evaluation": "tests"}),
    ),
    Example(
        "promotion.evaluation must be",
        "spec.",
        manifest(promotion={"evaluation": "test"}),
        manifest(promotion={"evaluation": "tests"}),
    ),
    Example(
        "promotion.guards[].evaluation must be",
        "spec.",
        manifest(data__evaluation=TWO_SETS, promotion={"evaluation": "test", "guards": [{"evaluation": "other"}]}),
        manifest(promotion={"evaluation": "test", "guards": [{"evaluation": "other"}]}),
    ),
    Example(
        "guards are other evaluations",
        "spec.promotion.",
        manifest(data__evaluation=TWO_SETS, promotion={"evaluation": "test", "guards": [{"evaluation": "other"}]}),
        manifest(promotion={"evaluation": "test", "guards": [{"evaluation": "test"}]}),
    ),
    Example(
        "set run, channel or both; or artifact alone",
        "spec.startFrom: ",
        manifest(startFrom={"run": "before", "channel": "stable"}),
        manifest(startFrom={}),
    ),
    Example(
        "spec.startFrom.run is the run itself",
        "",
        manifest(startFrom={"run": "before"}),
        manifest(startFrom={"run": "tiny"}),
    ),
    Example(
        "spec.skipIfUnchangedSince is the run itself",
        "",
        manifest(skipIfUnchangedSince="before"),
        manifest(skipIfUnchangedSince="tiny"),
    ),
    Example(
        "training.batchSize must be a multiple of training.micro",
        "spec.",
        manifest(training__batchSize=64, trainer__numProcPerNode=16),
        manifest(training__batchSize=32, trainer__numProcPerNode=16),
    ),
    Example(
        "training.firstRound.batchSize must be",
        "spec.",
        manifest(training__firstRound__batchSize=64),
        manifest(training__firstRound__batchSize=66),
    ),
    Example(
        "pretraining.batchSize must be",
        "spec.",
        manifest(pretraining={"batchSize": 64}, data__pretraining="captions.jsonl"),
        manifest(pretraining={"batchSize": 66}, data__pretraining="captions.jsonl"),
    ),
    Example(
        "batchSize must be a multiple of microBatchSize",
        "spec.training.",
        manifest(training={"batchSize": 12, "microBatchSize": 4}),
        manifest(training={"batchSize": 14, "microBatchSize": 4}),
    ),
    Example(
        "packing.maxTokens must be at least maxLength",
        "spec.training.",
        manifest(training={"packing": {"maxTokens": 2048}, "maxLength": 2048}),
        manifest(training={"packing": {"maxTokens": 2047}, "maxLength": 2048}),
    ),
    Example(
        "set exactly one of value and valueFrom",
        "spec.trainer.env[0]: ",
        manifest(
            trainer={"env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}]}
        ),
        manifest(trainer={"env": [{"name": "HF_TOKEN"}]}),
    ),
    Example(
        "name may not begin with COMD_",
        "spec.trainer.env[0].",
        manifest(trainer={"env": [{"name": "NCCL_DEBUG", "value": "INFO"}]}),
        manifest(trainer={"env": [{"name": "COMD_STAGE_CONFIG", "value": "{}"}]}),
    ),
    Example(
        "storageClassName needs sizeLimit",
        "spec.trainer.scratch.",
        manifest(trainer={"scratch": {"storageClassName": "fast", "sizeLimit": "100Gi"}}),
        manifest(trainer={"scratch": {"storageClassName": "fast"}}),
    ),
    Example(
        "set exactly one of configMapKeyRef and secretKeyRef",
        "spec.storage.s3.caBundle: ",
        manifest(storage=in_bucket(caBundle={"configMapKeyRef": {"name": "ca", "key": "ca.crt"}})),
        manifest(storage=in_bucket(caBundle={})),
    ),
    Example(
        "sseKmsKeyId needs serverSideEncryption",
        "spec.storage.s3.",
        manifest(storage=in_bucket(sseKmsKeyId="alias/comd", serverSideEncryption="aws:kms:dsse")),
        manifest(storage=in_bucket(sseKmsKeyId="alias/comd", serverSideEncryption="AES256")),
    ),
    Example(
        "caBundle is what a certificate is checked by",
        "spec.storage.s3.",
        manifest(storage=in_bucket(caBundle=CA_BUNDLE, endpoint="https://s3.example.com")),
        manifest(storage=in_bucket(caBundle=CA_BUNDLE, endpoint="http://s3.example.com")),
    ),
    Example(
        "names in evaluation must differ",
        "spec.data: ",
        manifest(data__evaluation=[{"name": "a", "items": "x"}, {"name": "b", "items": "x"}]),
        manifest(data__evaluation=[{"name": "a", "items": "x"}, {"name": "a", "items": "y"}]),
    ),
    Example(
        "model is asked by type Chat only",
        "spec.augmentor.",
        manifest(augmentor={"type": "Chat", "model": ENDPOINT}),
        manifest(augmentor={"type": "Repeat", "model": ENDPOINT}),
    ),
    Example(
        "set exactly one of checkpoint and endpoint",
        "spec.teacher: ",
        manifest(teacher=ENDPOINT),
        manifest(teacher={**ENDPOINT, **CHECKPOINT}),
    ),
    Example(
        "type Likelihood needs log-probabilities",
        "spec.assessor.",
        manifest(assessor={"type": "Likelihood", "model": CHECKPOINT}),
        manifest(assessor={"type": "Likelihood", "model": ENDPOINT}),
    ),
    Example(
        "type Reference compares",
        "spec.assessor.",
        manifest(assessor={"type": "Reference"}, augmentor__type="Repeat"),
        manifest(assessor={"type": "Reference", "model": CHECKPOINT}, augmentor__type="Repeat"),
    ),
    Example(
        "set exactly one of composed and checkpoint",
        "spec.student: ",
        manifest(student={"composed": COMPOSED}, pretraining={}, data__pretraining="captions.jsonl"),
        manifest(student={"composed": COMPOSED, **CHECKPOINT}, pretraining={}, data__pretraining="captions.jsonl"),
    ),
]


class Transition(NamedTuple):
    field: str
    changes: dict[str, Any]
    """Of the manifest, after the run has started."""


REFUSED = [
    Transition("student", {"student__checkpoint__source": "models/other"}),
    Transition("teacher", {"teacher": ENDPOINT}),
    Transition("assessor", {"assessor__type": "Reference"}),
    Transition("augmentor", {"augmentor__chat__checkAnswerable": True}),
    Transition("data", {"data__images": "pictures"}),
    Transition("pretraining", {"pretraining": {}, "data__pretraining": "captions.jsonl"}),
    Transition("rounds", {"rounds__threshold": 2.0}),
    Transition("training", {"training__learningRate": 1e-5}),
    Transition("generation", {"generation__teacher__temperature": 0.5}),
    Transition("storage", {"storage": {"uri": "file:///other"}}),
    Transition("trainer", {"trainer__numProcPerNode": 2}),
    Transition("seed", {"seed": 1}),
    Transition("reuse", {"reuse": "Never"}),
    Transition("startFrom", {"startFrom": {"run": "before"}}),
    Transition("skipIfUnchangedSince", {"skipIfUnchangedSince": "before"}),
    Transition("promotion", {"promotion": {"evaluation": "test"}}),
    Transition("execution", {"execution": "Phase"}),
    Transition("queue", {"queue": {"name": "gpus"}}),
    Transition("managedBy", {"managedBy": "example.com/other"}),
]
ALLOWED = [
    Transition("suspend", {"suspend": True}),
    Transition("suspendPolicy", {"suspendPolicy": "StageEnd"}),
    Transition("retry", {"retry__limit": 9}),
    Transition("activeDeadlineSeconds", {"activeDeadlineSeconds": 60}),
    Transition("stageDeadlineSeconds", {"stageDeadlineSeconds": 60}),
    Transition("queueDeadlineSeconds", {"queueDeadlineSeconds": 60}),
    Transition("ttlSecondsAfterFinished", {"ttlSecondsAfterFinished": 60}),
]

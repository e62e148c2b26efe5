"""The Jobs and the Service of a run, as they are sent to the API server."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comd_api.run import DistillationRun, Storage
from comd_api.stage import StageConfig
from comd_operator.planner import job_manifest, labels, plan_job, plan_run, service, stage_config
from comd_operator.planner.manifests import service_name, without_expansion
from comd_operator.runtime.records import read_job
from comd_trainer.store.s3_client import CA_BUNDLE_VARIABLE
from tests.unit.rule_examples import ENDPOINT
from tests.unit.runs import make_run
from tests.unit.test_planner_jobs import RUN_NAMES, ledger

UID = "b2c6f1d4-0000-4000-8000-000000000001"
LABEL_VALUE = re.compile(r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")
DNS_LABEL = re.compile(r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")
GPUS = {"limits": {"nvidia.com/gpu": 2, "memory": "64Gi"}}


def make(**changes: Any) -> DistillationRun:
    run = make_run(**{"trainer__image": "registry/trainer:1", **changes})
    return named(run, "tiny")


def named(run: DistillationRun, name: str) -> DistillationRun:
    return run.replace(
        metadata=run.metadata.model_copy(
            update={"name": name, "uid": UID, "namespace": "team", "creation_timestamp": "2026-01-01T00:00:00Z"}
        )
    )


def job_of(run: DistillationRun, stage: str = "round-1", *, attempt: int = 1, job_index: int = 0) -> dict[str, Any]:
    plan = plan_job(run.spec, run=run.metadata.name, stage=stage, job_index=job_index, attempt=attempt)
    return job_manifest(run, plan, stage_config(run, plan))


def pod_of(job: Mapping[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = job["spec"]["template"]["spec"]
    return spec


def container_of(job: Mapping[str, Any]) -> dict[str, Any]:
    (container,) = pod_of(job)["containers"]
    assert isinstance(container, dict)
    return container


def variables_of(job: Mapping[str, Any]) -> dict[str, Any]:
    """As the kubelet reads them: of two with one name the last one counts."""
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container_of(job)["env"]}


def test_a_job() -> None:
    job = job_of(make(), attempt=3)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert job["metadata"]["name"] == "tiny-round-1-a3"
    assert job["metadata"]["namespace"] == "team"
    assert job["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "comd.dev/v1alpha1",
            "kind": "DistillationRun",
            "name": "tiny",
            "uid": UID,
            "controller": True,
            "blockOwnerDeletion": False,
        }
    ]
    assert job["metadata"]["labels"] == {
        "app.kubernetes.io/component": "trainer",
        "app.kubernetes.io/instance": "tiny",
        "app.kubernetes.io/managed-by": "comd-operator",
        "app.kubernetes.io/name": "comd-trainer",
        "app.kubernetes.io/part-of": "comd",
        "comd.dev/attempt": "3",
        "comd.dev/job-index": "0",
        "comd.dev/round": "1",
        "comd.dev/run": "tiny",
        "comd.dev/run-uid": UID,
        "comd.dev/stage": "round-1",
    }
    spec = job["spec"]
    assert (spec["parallelism"], spec["completions"], spec["completionMode"]) == (1, 1, "Indexed")
    assert (spec["backoffLimit"], spec["podReplacementPolicy"]) == (0, "Failed")
    assert not {"suspend", "activeDeadlineSeconds", "ttlSecondsAfterFinished", "managedBy"} & spec.keys()
    pod = pod_of(job)
    assert (pod["restartPolicy"], pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (
        "Never",
        False,
        False,
    )
    assert "subdomain" not in pod
    container = container_of(job)
    assert (container["name"], container["image"]) == ("trainer", "registry/trainer:1")
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert "imagePullPolicy" not in container


def test_what_it_fails_by() -> None:
    """The order is the operator's, who reads the rule's index from the Job's message. SIGTERM is a request, like code 75."""
    rules = job_of(make())["spec"]["podFailurePolicy"]["rules"]
    assert {rule["action"] for rule in rules} == {"FailJob"}
    assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    codes = [rule["onExitCodes"] for rule in rules[1:]]
    assert [code["values"] for code in codes] == [[64], [65], [75, 143]]
    assert all(code["containerName"] == "trainer" and code["operator"] == "In" for code in codes)


@given(run=RUN_NAMES, attempt=st.integers(1, 9999), execution=st.sampled_from(["Stage", "Phase"]))
def test_names_and_labels_are_ones_that_kubernetes_takes(run: str, attempt: int, execution: str) -> None:
    named_run = named(make(execution=execution, queue={"name": "gpus"}, trainer__numNodes=2, **BATCH), run)
    for plan in plan_run(named_run.spec, run=run):
        job = job_of(named_run, plan.stage, attempt=attempt, job_index=plan.job_index)
        assert len(job["metadata"]["name"]) <= 52
        for owned in (job["metadata"], job["spec"]["template"]["metadata"]):
            assert all(LABEL_VALUE.match(value) for value in owned["labels"].values())
        assert labels.of_job(named_run, plan).items() - {("comd.dev/attempt", "1")} <= job["metadata"]["labels"].items()
    assert DNS_LABEL.match(service_name(named_run)), (
        "a Service may not begin with a digit, nor have more than 63 characters"
    )


def test_the_operator_finds_its_own() -> None:
    """By what it selects on the server's side, and reads from the labels."""
    job = job_of(make(execution="Phase"), "round-2", attempt=4, job_index=2)
    key, _, value = labels.SELECTOR.partition("=")
    assert job["metadata"]["labels"][key] == value
    assert job["spec"]["template"]["metadata"]["labels"][key] == value
    seen = job["metadata"] | {"uid": "x", "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z"}
    record = read_job({**job, "metadata": seen})
    assert (record.owner, record.stage, record.attempt, record.job_index, record.nodes) == (UID, "round-2", 4, 2, 1)
    assert (record.suspended, record.queue) == (False, None)


BATCH = {"training__batchSize": 128, "training__microBatchSize": 8}


def test_several_nodes() -> None:
    run = named(make(trainer__numNodes=2, trainer__numProcPerNode=2, **BATCH), "7b-run")
    job = job_of(run)
    assert (job["spec"]["parallelism"], job["spec"]["completions"]) == (2, 2)
    assert pod_of(job)["subdomain"] == "run-7b-run"
    assert variables_of(job)["COMD_RENDEZVOUS"] == "7b-run-round-1-a1-0.run-7b-run:29400"
    found = service(run)
    assert found["metadata"]["name"] == "run-7b-run"
    assert found["metadata"]["ownerReferences"] == job["metadata"]["ownerReferences"]
    assert found["spec"] == {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"comd.dev/run-uid": UID},
        "ports": [{"name": "rendezvous", "port": 29400}],
    }
    assert found["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    first = job_of(run, "preflight")
    assert (first["spec"]["completions"], "subdomain" in pod_of(first)) == (1, False)
    assert "COMD_RENDEZVOUS" not in variables_of(first)


def test_services_of_long_names_differ() -> None:
    run = make()
    one, other = named(run, "a" * 62 + "b"), named(run, "a" * 62 + "c")
    assert len(service_name(one)) == len(service_name(other)) == 63
    assert service_name(one) != service_name(other)
    assert service_name(named(run, "a" * 59)) == "run-" + "a" * 59, "63 characters fit"


@pytest.mark.parametrize(
    ("queue", "suspend", "found"),
    [
        (None, None, {}),
        ({"name": "gpus"}, True, {"queue-name": "gpus"}),
        ({"name": "gpus", "priorityClass": "high"}, True, {"queue-name": "gpus", "priority-class": "high"}),
    ],
)
def test_a_queue(queue: dict[str, str] | None, suspend: bool | None, found: dict[str, str]) -> None:
    """Suspended from the first, so that it can't run past a queue that nobody keeps. The pods carry nothing of it: Kueue would
    queue them once more, each by itself."""
    job = job_of(make(queue=queue))
    assert job["spec"].get("suspend") == suspend
    prefix = "kueue.x-k8s.io/"
    assert {
        key.removeprefix(prefix): v for key, v in job["metadata"]["labels"].items() if key.startswith(prefix)
    } == found
    assert not [key for key in job["spec"]["template"]["metadata"]["labels"] if key.startswith(prefix)]


@pytest.mark.parametrize(
    ("stage", "resources"),
    [
        ("preflight", {"limits": {"memory": "2Gi"}}),
        ("pretrain", {"limits": {"nvidia.com/gpu": "2", "memory": "64Gi"}}),
        ("round-1", {"limits": {"nvidia.com/gpu": "2", "memory": "64Gi"}}),
    ],
)
def test_preflight_asks_for_no_gpu(stage: str, resources: dict[str, Any]) -> None:
    run = make(
        trainer__resourcesPerNode=GPUS, trainer__preflightResources={"limits": {"memory": "2Gi"}}, trainer__numProcPerNode=2,
        **BATCH,
    )  # fmt: skip
    assert container_of(job_of(run, stage))["resources"] == resources


# What a stage is told.

S3 = {"uri": "s3://bucket/x", "s3": {"secretRef": {"name": "s3"}}}
KEY = {"endpoint": {**ENDPOINT["endpoint"], "apiKeySecretRef": {"name": "open-ai", "key": "api.key"}}}


def in_s3(run: DistillationRun) -> DistillationRun:
    storage = type(run.spec.storage).model_validate(S3) if run.spec.storage is not None else None
    return run.replace(spec=run.spec.replace(storage=storage))


def test_secrets_are_handed_over_by_the_kubelet() -> None:
    """No value of one is in the manifest. A temporary key's token may be missing; a key may not."""
    run = in_s3(make(teacher=KEY, assessor__model=KEY, augmentor__model=ENDPOINT))
    found = variables_of(job_of(run))
    secrets = {name: value["secretKeyRef"] for name, value in found.items() if isinstance(value, dict)}
    assert secrets == {
        "AWS_ACCESS_KEY_ID": {"name": "s3", "key": "AWS_ACCESS_KEY_ID"},
        "AWS_SECRET_ACCESS_KEY": {"name": "s3", "key": "AWS_SECRET_ACCESS_KEY"},
        "AWS_SESSION_TOKEN": {"name": "s3", "key": "AWS_SESSION_TOKEN", "optional": True},
        "COMD_SECRET_OPEN_AI_API_KEY": {"name": "open-ai", "key": "api.key"},
    }
    names = [entry["name"] for entry in container_of(job_of(run))["env"]]
    assert len(names) == len(set(names)), "of two roles with one key it is handed over once"
    assert not [name for name in variables_of(job_of(make())) if name.startswith(("AWS", "COMD_SECRET"))]


@pytest.mark.parametrize(
    ("bundle", "volume"),
    [
        (
            {"configMapKeyRef": {"name": "authorities", "key": "own.pem"}},
            {"configMap": {"name": "authorities", "items": [{"key": "own.pem", "path": "ca.crt"}]}},
        ),
        (
            {"secretKeyRef": {"name": "tls", "key": "ca.crt"}},
            {"secret": {"secretName": "tls", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        ),
    ],
)
@pytest.mark.parametrize("stage", ["preflight", "round-1"])
def test_certificates_of_the_endpoint_are_mounted(bundle: dict[str, Any], volume: dict[str, Any], stage: str) -> None:
    run = make()
    storage = Storage.model_validate({**S3, "s3": {"caBundle": bundle}})
    job = job_of(run.replace(spec=run.spec.replace(storage=storage)), stage)
    (mounted,) = [mount for mount in container_of(job)["volumeMounts"] if mount["name"] == "s3-ca-bundle"]
    assert mounted == {"name": "s3-ca-bundle", "mountPath": "/etc/comd/s3", "readOnly": True}
    assert {"name": "s3-ca-bundle", **volume} in pod_of(job)["volumes"]
    assert variables_of(job)[CA_BUNDLE_VARIABLE] == "/etc/comd/s3/ca.crt"
    assert "s3-ca-bundle" not in str(pod_of(job_of(make()))), "none is mounted where there is none"


def expand(text: str, mapping: Callable[[str], str]) -> str:
    """What Kubernetes does with a variable's value (third_party/forked/golang/expansion), byte by byte."""
    data, out, cursor = text.encode(), b"", 0
    while cursor < len(data):
        if data[cursor : cursor + 1] != b"$" or cursor + 1 == len(data):
            out += data[cursor : cursor + 1]
            cursor += 1
            continue
        rest = data[cursor + 1 :]
        closer = rest.find(b")")
        if rest[:1] == b"$":
            out, cursor = out + b"$", cursor + 2
        elif rest[:1] == b"(" and closer > 0:
            out, cursor = out + mapping(rest[1:closer].decode()).encode(), cursor + closer + 2
        else:  # a reference that is not closed, or no reference
            out, cursor = out + data[cursor : cursor + 2], cursor + 2
    return out.decode()


def test_expansion_is_as_in_kubernetes() -> None:
    """Rows of its own test (expand_test.go)."""
    known = {"VAR_A": "A", "VAR_B": "B", "VAR_EMPTY": ""}

    def mapping(name: str) -> str:
        return known.get(name, f"$({name})")

    rows = {
        "$(VAR_A)": "A", "___$(VAR_B)___": "___B___", "$$(VAR_A)_$(VAR_B)": "$(VAR_A)_B", "$$$(VAR_A)": "$A",
        "$$$$$$$$(VAR_A)": "$$$$(VAR_A)", "$(VAR_A)$$": "A$", "foo$$(foo)bar": "foo$(foo)bar", "$VAR_A)": "$VAR_A)",
        "$": "$", "foo\\$(VAR_A)bar": "foo\\Abar", "$(VAR_B_D)": "$(VAR_B_D)", "$(VAR_A": "$(VAR_A",
        "${VAR_A}": "${VAR_A}", "$(VAR_EMPTY)x": "x", "$(VAR_A $$(VAR_B)": "$(VAR_A $$(VAR_B)", "$$$$$": "$$$",
    }  # fmt: skip
    assert {text: expand(text, mapping) for text in rows} == rows


@given(st.text(alphabet=st.sampled_from("$()aé\U0001f600 \n\"'\\")) | st.text())
def test_a_text_arrives_as_it_is(text: str) -> None:
    assert expand(without_expansion(text), lambda name: f"<{name}>") == text


TEXTS = ["$(HOME)", "$$", "{{ '$(' }}", "costs $5 (or $$6)", 'say "é" \\ 中\x00\n']


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("stage", ["preflight", "pretrain", "round-1", "round-2"])
def test_a_config_arrives_as_it_is(stage: str, text: str) -> None:
    composed = {
        "visionTower": {"source": "v"},
        "projector": {},
        "languageModel": {"source": "l", "chatTemplate": text},
    }
    run = make(student={"composed": composed}, pretraining={}, data__pretraining="x.jsonl").replace(status=ledger())
    plan = plan_job(run.spec, run="tiny", stage=stage, job_index=0, attempt=2)
    config = stage_config(run, plan)
    value = variables_of(job_manifest(run, plan, config))["COMD_STAGE_CONFIG"]
    assert StageConfig.model_validate(json.loads(expand(value, lambda name: f"<{name}>"))) == config

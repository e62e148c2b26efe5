"""What a cluster's operator fills in, and the runs that can't be begun on a cluster."""

from typing import Any

import pytest

from comd_api.exit_codes import UserError
from comd_api.pods import ConfigMapKeySelector, Queue, Toleration, gpu_count
from comd_api.run import CABundleSource, DistillationRun, S3Options, Storage
from comd_operator.planner import ClusterDefaults, fill, problem
from comd_trainer.preflight.fit import check_gpu_counts
from tests.unit.rule_examples import ENDPOINT
from tests.unit.runs import make_run

BUNDLE = CABundleSource(config_map_key_ref=ConfigMapKeySelector(name="authorities", key="ca.crt"))
FURTHER = {
    "caBundle": BUNDLE.to_wire(),
    "addressingStyle": "Path",
    "serverSideEncryption": "aws:kms",
    "sseKmsKeyId": "k",
}
ALL = ClusterDefaults(
    trainer_image="operator/trainer:1",
    storage_uri="s3://shared/runs",
    storage_endpoint="https://s3.storage:9000",
    storage_region="eu-1",
    storage_secret="s3",
    storage_s3=S3Options(
        ca_bundle=BUNDLE, addressing_style="Path", server_side_encryption="aws:kms", sse_kms_key_id="k"
    ),
    queue="gpus",
    tolerations=(Toleration(key="nvidia.com/gpu", operator="Exists"),),
)
BUCKET: dict[str, Any] = {"uri": "s3://own/x"}
FULL = {
    "uri": "s3://own/x",
    "s3": {
        "endpoint": "http://own:1",
        "region": "own-1",
        "secretRef": {"name": "own"},
        "serverSideEncryption": "AES256",
    },
}


def run_with(storage: dict[str, Any] | None, **changes: Any) -> DistillationRun:
    run = make_run(**changes)
    return run.replace(spec=run.spec.replace(storage=Storage.model_validate(storage) if storage is not None else None))


def test_what_a_run_leaves_out_is_filled_in() -> None:
    run = run_with(None)
    filled = fill(run, ALL)
    assert filled.spec.trainer.image == "operator/trainer:1"
    assert filled.spec.storage is not None
    assert filled.spec.storage.to_wire() == {
        "uri": "s3://shared/runs",
        "s3": {"endpoint": "https://s3.storage:9000", "region": "eu-1", "secretRef": {"name": "s3"}, **FURTHER},
    }
    assert filled.spec.queue == Queue(name="gpus")
    assert filled.spec.trainer.pod_template.spec.tolerations == list(ALL.tolerations)
    assert run.spec.storage is None, "what the user wrote stays as it is"
    assert fill(filled, ALL) == filled


def test_what_a_run_says_stands() -> None:
    run = run_with(
        FULL,
        trainer__image="own/trainer:1",
        trainer__podTemplate={"spec": {"tolerations": [{"key": "own"}]}},
        queue={"name": "own", "priorityClass": "high"},
    )
    assert fill(run, ALL) == run
    assert fill(run, ClusterDefaults()) == run


@pytest.mark.parametrize(
    ("storage", "defaults", "filled"),
    [
        (BUCKET, ClusterDefaults(storage_secret="s3"), {**BUCKET, "s3": {"secretRef": {"name": "s3"}}}),
        (BUCKET, ClusterDefaults(storage_uri="s3://shared/runs"), {**BUCKET, "s3": {}}),
        ({"uri": "file:///x"}, ALL, {"uri": "file:///x", "s3": {}}),
        # What is known of one service is not taken for true of another; a key is not put beside another encryption.
        (
            {**BUCKET, "s3": {"endpoint": "http://own:1"}},
            ClusterDefaults(storage_s3=ALL.storage_s3),
            {**BUCKET, "s3": {"endpoint": "http://own:1", "serverSideEncryption": "aws:kms", "sseKmsKeyId": "k"}},
        ),
        (
            {**BUCKET, "s3": {"addressingStyle": "Virtual", "serverSideEncryption": "AES256"}},
            ClusterDefaults(storage_s3=ALL.storage_s3),
            {
                **BUCKET,
                "s3": {
                    "caBundle": BUNDLE.to_wire(),
                    "addressingStyle": "Virtual",
                    "serverSideEncryption": "AES256",
                },
            },
        ),
        (None, ClusterDefaults(storage_secret="s3"), None),
    ],
)
def test_storage_is_filled_in_field_by_field(
    storage: dict[str, Any] | None, defaults: ClusterDefaults, filled: dict[str, Any] | None
) -> None:
    found = fill(run_with(storage), defaults).spec.storage
    assert (found.to_wire() if found is not None else None) == filled


def volume(name: str) -> dict[str, Any]:
    return {"name": name, "persistentVolumeClaim": {"claimName": name}}


def mounting(
    path: str, *, storage: str = "s3://own/x", name: str = "data", volumes: Any = ("data",)
) -> DistillationRun:
    return run_with(
        {"uri": storage},
        trainer__image="x",
        trainer__volumeMounts=[{"name": name, "mountPath": path}],
        trainer__podTemplate={"spec": {"volumes": [volume(each) for each in volumes]}},
    )


def keyed(secret: str, key: str) -> dict[str, Any]:
    return {"endpoint": {**ENDPOINT["endpoint"], "apiKeySecretRef": {"name": secret, "key": key}}}


def gpus(limit: Any, processes: int, *, maker: str = "nvidia.com/gpu") -> DistillationRun:
    return run_with(
        BUCKET,
        trainer__image="x",
        trainer__resourcesPerNode={"limits": {maker: limit, "memory": "64Gi"}},
        trainer__numProcPerNode=processes,
    )


GOOD = {
    "a bucket": run_with(BUCKET, trainer__image="x"),
    "a shared folder": mounting("/shared", storage="file:///shared/runs/a"),
    "a shared folder, mounted just there": mounting("/shared/runs", storage="file:///shared/runs"),
    "a shared root": mounting("/shared/", storage="file:///shared/runs"),
    "a shared folder with a space in its name": mounting("/shared runs", storage="file:///shared%20runs/a"),
    "a volume": mounting("/data"),
    "two GPUs, two processes": gpus("2", 2),
    "no GPU": run_with(BUCKET, trainer__image="x", trainer__numProcPerNode=4),
    "slices of a GPU": gpus(4, 1, maker="nvidia.com/mig-1g.5gb"),
    "one key for two models": run_with(
        BUCKET, trainer__image="x", teacher=keyed("open-ai", "key"), assessor__model=keyed("open-ai", "key")
    ),
    "two keys of one Secret": run_with(
        BUCKET, trainer__image="x", teacher=keyed("keys", "teacher"), assessor__model=keyed("keys", "judge")
    ),
}


@pytest.mark.parametrize("name", list(GOOD))
def test_runs_that_can_be_begun(name: str) -> None:
    assert problem(GOOD[name]) is None


BAD = {
    "no storage": (run_with(None, trainer__image="x"), ["spec.storage is not set", "--storage-uri"]),
    "no image": (run_with(BUCKET), ["spec.trainer.image is not set", "--trainer-image"]),
    "the pod's own folder": (
        run_with({"uri": "file:///store"}, trainer__image="x"),
        ["spec.storage.uri (file:///store)", "s3://bucket/prefix", "trainer.volumeMounts"],
    ),
    "a volume, but elsewhere": (
        mounting("/data", storage="file:///store"),
        ["spec.storage.uri (file:///store) is a folder of the pod itself"],
    ),
    "a volume beside it": (mounting("/store-2", storage="file:///store"), ["a folder of the pod itself"]),
    "fewer processes than GPUs": (gpus(4, 1), ["asks for 4 GPUs (nvidia.com/gpu)", "numProcPerNode is 1", "make them equal"]),
    "more processes than GPUs": (gpus("1", 4), ["asks for 1 GPU (", "numProcPerNode is 4"]),
    "GPUs of another maker": (gpus("2", 1, maker="amd.com/gpu"), ["asks for 2 GPUs (amd.com/gpu)"]),
    "a mount of no volume": (mounting("/data", name="date"), ["'date' is no volume", "known there are data"]),
    "a mount of our scratch": (mounting("/data", name="scratch", volumes=()), ["'scratch' is no volume", "none"]),
    "a volume called as one of ours": (
        mounting("/data", name="tmp", volumes=("tmp",)),
        ["podTemplate.spec.volumes", "'tmp'", "scratch, shared-memory, tmp"],
    ),
    "two volumes of one name": (
        mounting("/data", volumes=("data", "data")),
        ["podTemplate.spec.volumes", "'data'", "twice"],
    ),
    "a mount over one of ours": (mounting("/tmp"), ["spec.trainer.volumeMounts", "/tmp", "another path"]),
    "a mount over one of ours, in other words": (mounting("/dev/shm/"), ["/dev/shm", "another path"]),
    "two keys that the trainer could not tell apart": (
        run_with(BUCKET, trainer__image="x", teacher=keyed("keys", "a-b"), assessor__model=keyed("keys", "a_b")),
        ["COMD_SECRET_KEYS_A_B", "keys/a-b", "keys/a_b", "rename"],
    ),
    "two keys of two Secrets that it could not tell apart": (
        run_with(BUCKET, trainer__image="x", teacher=keyed("a-b", "c"), augmentor__model=keyed("a", "b-c")),
        ["COMD_SECRET_A_B_C", "a-b/c", "a/b-c"],
    ),
    "more than a variable holds": (
        run_with(
            BUCKET,
            trainer__image="x",
            trainer__env=[{"name": f"V{number}", "value": "x" * 4000} for number in range(40)],
        ),
        ["bytes as JSON", "120000", "trainer.env"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_runs_that_can_not_be_begun(name: str) -> None:
    run, words = BAD[name]
    said = problem(run)
    assert said is not None
    assert [word for word in words if word not in said] == []
    assert "\n" not in said


@pytest.mark.parametrize(
    ("limits", "count", "says"),
    [
        (None, 0, None),
        ({}, 0, None),
        ({"cpu": "8", "nvidia.com/mig-1g.10gb": 1}, 0, None),
        ({"nvidia.com/gpu": "0"}, 0, None),
        ({"nvidia.com/gpu": 2}, 2, None),
        ({"nvidia.com/gpu": 8}, 8, "asks for 8 GPUs (nvidia.com/gpu), but spec.trainer.numProcPerNode is 2;"),
        ({"nvidia.com/gpu": 2, "amd.com/gpu": "0"}, 2, None),
        ({"nvidia.com/gpu": "1", "amd.com/gpu": "1"}, 2, None),
        ({"nvidia.com/gpu": "2", "amd.com/gpu": "1"}, 3, "asks for 3 GPUs (nvidia.com/gpu, amd.com/gpu), but"),
        ({"nvidia.com/gpu": "500m"}, 0.5, "asks for 0.5 GPUs (nvidia.com/gpu), but"),
    ],
)
def test_gpus_are_counted_alike_by_the_operator_and_by_preflight(
    limits: dict[str, Any] | None, count: float, says: str | None
) -> None:
    run = run_with(
        BUCKET,
        trainer__image="x",
        trainer__numProcPerNode=2,
        trainer__resourcesPerNode={"limits": limits} if limits is not None else {},
    )
    trainer = run.spec.trainer
    assert gpu_count(trainer.resources_per_node) == count
    if says is None:
        assert problem(run) is None
        check_gpu_counts(trainer)
        return
    assert says in (problem(run) or "")
    with pytest.raises(UserError) as raised:
        check_gpu_counts(trainer)
    assert str(raised.value) == problem(run)

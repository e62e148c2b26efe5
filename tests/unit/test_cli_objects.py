"""`comd plan FILE --kubernetes`: every object that the operator would create, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from comd_api.run import DistillationRun, Storage
from comd_api.status import RunStatus
from comd_operator.cli.main import main
from comd_operator.cli.objects import NO_UID, objects
from comd_operator.planner import ClusterDefaults, fill, job_manifest, labels, plan_run, stage_config
from tests.unit.cluster_world import ClusterWorld
from tests.unit.rule_examples import COMPOSED, manifest
from tests.unit.test_planner_manifests import BATCH, variables_of

BUCKET = {"uri": "s3://bucket/x"}
TWO_NODES: dict[str, Any] = {"trainer__numNodes": 2, **BATCH}
IMAGE = {"trainer__image": "x"}


def run_of(**changes: Any) -> DistillationRun:
    return DistillationRun.model_validate(manifest(**{"storage": BUCKET, **IMAGE, "rounds__count": 2, **changes}))


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return [f"{document['kind']} {document['metadata']['name']}" for document in found]


SHAPES: list[dict[str, Any]] = [
    {},
    {"execution": "Phase"},
    TWO_NODES,
    {**TWO_NODES, "execution": "Phase"},
    {"queue": {"name": "gpus", "priorityClass": "high"}},
    {"student": {"composed": COMPOSED}, "pretraining": {}, "data__pretraining": "captions.jsonl"},
    {"data__evaluation": None, "rounds__count": 1},
    {"suspend": True},
    {"suspend": True, "suspendPolicy": "StageEnd", "execution": "Phase"},
    {"activeDeadlineSeconds": 1, "stageDeadlineSeconds": 1, "queueDeadlineSeconds": 1, "retry": {"limit": 0}},
    {"rounds__earlyStop": {"evaluation": "test", "patience": 1}},
]


@pytest.mark.parametrize("changes", SHAPES)
def test_every_job_of_the_plan_in_its_order(changes: dict[str, Any]) -> None:
    run = run_of(**changes)
    jobs = [document for document in objects(run) if document["kind"] == "Job"]
    plan = plan_run(run.spec, run="tiny")
    assert [job["metadata"]["name"] for job in jobs] == [job.name for job in plan]
    labels_of = [(job["metadata"]["labels"][labels.STAGE], job["metadata"]["labels"][labels.JOB_INDEX]) for job in jobs]
    assert labels_of == [(job.stage, str(job.job_index)) for job in plan]


@pytest.mark.parametrize("execution", ["Stage", "Phase"])
def test_the_service_comes_once_and_before_the_first_job_that_needs_it(execution: str) -> None:
    found = kinds(list(objects(run_of(**TWO_NODES, execution=execution))))
    assert found[:2] == ["Job tiny-preflight-a1" + ("-preflight" if execution == "Phase" else ""), "Service run-tiny"]
    assert sum(name.startswith("Service") for name in found) == 1
    assert not any(name.startswith("Service") for name in kinds(list(objects(run_of()))))


@pytest.mark.parametrize("changes", SHAPES[:6])
def test_they_are_what_the_operator_creates(changes: dict[str, Any]) -> None:
    """But for what only the stages themselves can know: where their artifacts lie, and the digests of them."""
    planned = [document for document in objects(run_of(**changes)) if document["kind"] == "Job"]
    metadata = run_of().metadata.model_copy(update={"uid": NO_UID})
    world = ClusterWorld(run_of(**changes).replace(metadata=metadata))
    made: list[dict[str, Any]] = []
    while world.status.phase not in ("Succeeded", "Failed"):
        for job in world.step(seconds=1).create:
            before = world.run.replace(status=world.status)
            made.append(job_manifest(world.run, job, stage_config(before, job)))
            world.run_on()
            world.complete()
    assert [without_inputs(job) for job in planned] == [without_inputs(job) for job in made]


def without_inputs(job: dict[str, Any]) -> dict[str, Any]:
    """The Job, with its config read and without what earlier stages have made."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (config,) = [json.loads(entry["value"]) for entry in container["env"] if entry["name"] == "COMD_STAGE_CONFIG"]
    env = [entry for entry in container["env"] if entry["name"] != "COMD_STAGE_CONFIG"]
    spec = {**job["spec"]["template"]["spec"], "containers": [{**container, "env": env}]}
    template = {**job["spec"]["template"], "spec": spec}
    return {**job, "spec": {**job["spec"], "template": template}, "config": {**config, "inputs": None}}


def test_what_is_not_known_yet_stands_in_words() -> None:
    last = list(objects(run_of()))[-1]
    config = variables_of(last)["COMD_STAGE_CONFIG"]
    for name, stage in (("preflight", "preflight"), ("student", "round-1"), ("pools", "round-1")):
        assert f'{{"name":"{name}","uri":"known when {stage} is done"' in config


def test_a_run_that_is_under_way_is_planned_from_its_beginning() -> None:
    run = run_of().replace(status=RunStatus(phase="Failed"))
    assert kinds(list(objects(run))) == kinds(list(objects(run_of())))


def test_the_uid_of_a_run_that_has_one_is_kept() -> None:
    run = run_of()
    own = run.replace(metadata=run.metadata.model_copy(update={"uid": "7-7", "namespace": "team"}))
    first = next(objects(own))
    assert first["metadata"]["ownerReferences"][0]["uid"] == "7-7"
    assert first["metadata"]["namespace"] == "team"


# On the command line.


def file_of(tmp_path: Path, **changes: Any) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(manifest(**{"storage": BUCKET, **IMAGE, "rounds__count": 2, **changes})))
    return str(path)


@pytest.mark.parametrize("changes", [{}, {"execution": "Phase"}, TWO_NODES])
@pytest.mark.parametrize("by_flag", [False, True])
def test_as_yaml(changes: dict[str, Any], by_flag: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = file_of(tmp_path, **changes)
    assert main(["plan", "--kubernetes", *(["-f", file] if by_flag else [file])]) == 0
    text = capsys.readouterr().out
    assert text.startswith("---\n")
    assert list(yaml.safe_load_all(text)) == list(objects(run_of(**changes)))


def test_options_stand_for_the_operator_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = file_of(tmp_path, storage=None, trainer__image=None)
    assert main(["plan", file, "--kubernetes", "--trainer-image", "other:2", "--storage-uri", "s3://shared/y"]) == 0
    found = list(yaml.safe_load_all(capsys.readouterr().out))
    filled = fill(
        run_of(storage=None, trainer__image=None), ClusterDefaults(trainer_image="other:2", storage_uri="s3://shared/y")
    )
    assert found == list(objects(filled))
    assert filled.spec.storage == Storage(uri="s3://shared/y")


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({"trainer__image": None}, [], "spec.trainer.image is not set"),
        ({"storage": None}, [], "spec.storage is not set"),
        ({"storage": {"uri": "file:///x"}}, [], "is a folder of the pod itself"),
        ({"storage": None}, ["--storage-uri", "runs"], "--storage-uri: 'runs' is not s3://bucket/prefix"),
        ({"managedBy": "example.com/other"}, [], "spec.managedBy is example.com/other"),
    ],
)
def test_a_run_that_can_not_be_begun_has_no_objects(
    changes: dict[str, Any], options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = file_of(tmp_path, **changes)
    assert main(["plan", file, "--kubernetes", *options]) == 64
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err


def test_the_run_s_own_operator_may_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", file_of(tmp_path, managedBy="comd.dev/operator"), "--kubernetes"]) == 0
    assert capsys.readouterr().out.count("kind: Job") == 4

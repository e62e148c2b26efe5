"""The quick start's manifest, as it is, on a real cluster: `kubectl apply`, `kubectl wait`, a student in the bucket. And the
same file by `comd run`, which must come to the same numbers."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.upload import upload
from tests.e2e.runs import environment, status_of
from tests.nodes import digits
from tests.nodes.handoff import hand_offs, watching
from tests.nodes.site import Run, Site, condition

STAGES = ["preflight", "pretrain", "round-1", "round-2", "round-3", "round-4"]
CONDITIONS = ["Failed", "Queued", "Ready", "Reconciling", "Stalled", "Succeeded", "Suspended"]


@contextmanager
def comd_run(work: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Of the same file on the same inputs, in a folder of this machine. Behind the pods when cores are few."""
    for path in digits.INPUTS.rglob("*"):
        if path.is_file() and digits.is_read(path.relative_to(digits.INPUTS).as_posix()):
            target = work / "store" / "inputs" / path.relative_to(digits.INPUTS)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    command = [sys.executable, "-m", "comd_operator", "run", str(digits.EXAMPLE / "run.yaml")]
    with (work / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            ["nice", "-n", "5", *command, "--work-dir", str(work), "--quiet"],
            stdout=output,
            stderr=output,
            env=environment(),
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@pytest.mark.timeout(3600)
def test_the_quick_start(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = digits.prepare()
    upload(site.cluster.s3, inputs, bucket="comd", prefix="digits/inputs", wanted=digits.is_read)
    namespace = site.namespace("digits")
    run = Run(site, namespace, "digits")
    with comd_run(tmp_path / "local") as local, watching(site.cluster) as starts:
        run.kubectl("apply", "-f", str(digits.EXAMPLE / "run.yaml"))
        run.kubectl("wait", "drun/digits", "--for=condition=Succeeded", "--timeout=3000s")
        code = local.wait(timeout=3000)
    assert code == 0, (tmp_path / "local" / "output.txt").read_text()

    status = run.status()
    must_be_complete(status)
    must_be_the_same(status, status_of(tmp_path / "local"))
    must_have_handed_over_early(run)
    must_look_right(run, score=status["score"])
    must_be_as_the_user_wrote_it(run.object())

    student = tmp_path / "student"
    assert status["student"]["uri"].startswith(f"s3://comd/digits/{namespace}/digits/round-4/tune/")
    assert digits.fetch_artifact(site.cluster, status["student"]["uri"], student) == status["student"]["digest"]
    answer = digits.ask_as_the_readme_does(student)
    assert re.fullmatch(r"there (is one digit|are \w+ digits) \.", answer), answer

    with capsys.disabled():
        print("\nhand-off, from the end of a stage's last phase:")
        for hand_off in hand_offs(run, starts):
            print(hand_off)


def must_be_complete(status: dict[str, Any]) -> None:
    """Every entry of the ledger, and every condition."""
    assert [stage["name"] for stage in status["stages"]] == STAGES
    for stage in status["stages"]:
        name = stage["name"]
        assert (stage["phase"], stage["attempt"], stage["failures"], stage["exitClass"]) == ("Succeeded", 1, 0, "Done")
        assert stage["jobName"] == f"digits-{name}-a1"
        assert stage["jobUid"]
        assert stage["startTime"] < stage["completionTime"]
        assert stage["activeSeconds"] > 0
        made = [artifact["name"] for artifact in stage["artifacts"]]
        assert made == (["preflight"] if name == "preflight" else ["student"] if name == "pretrain" else made)
        if name == "preflight":
            continue
        assert {(score["evaluation"], score["role"]) for score in stage["scores"]} == {
            (evaluation, role) for evaluation in ("balanced", "natural") for role in ("student", "teacher")
        }
    for stage in status["stages"][2:]:
        assert {"train", "compared", "hard", "easy"} <= stage["counts"].keys()
        assert "student" in [artifact["name"] for artifact in stage["artifacts"]]
    assert [entry["type"] for entry in status["conditions"]] == CONDITIONS
    assert {entry["type"] for entry in status["conditions"] if entry["status"] == "True"} == {"Ready", "Succeeded"}
    assert all(entry["observedGeneration"] == 1 for entry in status["conditions"])
    assert condition(status, "Succeeded") == ("True", "Finished", "all 6 stages are done")
    first = next(score for score in status["stages"][1]["scores"] if score["role"] == "student")
    last = next(score for score in status["stages"][-1]["scores"] if score["role"] == "student")
    assert last["value"] > first["value"] + 0.2, "it has learnt"


def must_be_the_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """To the last digit: scores, counts, the student's bytes."""
    for there, here in zip(ours["stages"], theirs["stages"], strict=True):
        assert there["scores"] == here["scores"], there["name"]
        assert there.get("counts") == here.get("counts"), there["name"]
    assert ours["score"] == theirs["score"]
    assert ours["student"]["digest"] == theirs["student"]["digest"]


def must_have_handed_over_early(run: Run) -> None:
    """A stage's Job was there before the one before was complete."""
    jobs = {job["metadata"]["labels"]["comd.dev/stage"]: job for job in run.job_objects()}
    for before, after in pairwise(STAGES):
        assert jobs[after]["metadata"]["creationTimestamp"] <= jobs[before]["status"]["completionTime"]


def must_look_right(run: Run, *, score: str) -> None:
    """What `kubectl get` shows, and the events."""
    header, row = run.kubectl("get", "drun").splitlines()
    assert header.split() == ["NAME", "PHASE", "STAGE", "ROUND", "SCORE", "AGE"]
    assert row.split()[:-1] == ["digits", "Succeeded", "round-4", "4", *score.split()]
    assert re.fullmatch(r"0\.\d{3} / 0\.\d{3}", score)
    assert "all 6 stages are done" in run.kubectl("get", "drun", "-o", "wide")
    reasons = [event["reason"] for event in run.events()]
    assert reasons == ["JobStarted", *["StageSucceeded"] * 5, "Succeeded"]


def must_be_as_the_user_wrote_it(found: dict[str, Any]) -> None:
    """Nothing but the status was written."""
    metadata = found["metadata"]
    assert metadata["generation"] == 1
    assert list(metadata["annotations"]) == ["kubectl.kubernetes.io/last-applied-configuration"]
    assert not {"labels", "finalizers", "ownerReferences"} & metadata.keys()

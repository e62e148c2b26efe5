"""Runs that share a store: what one has finished the next takes over, and the student is the same."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.runs import comd, start_comd, status_of
from tests.e2e.world import manifest, write_manifest


def run(folder: Path, name: str, store: Path, **spec: Any) -> dict[str, Any]:
    """The status of a run of its own work dir, in a store that others share."""
    file = write_manifest(folder / f"{name}.yaml", manifest(name, **spec))
    done = comd("run", file, "--work-dir", folder / name, "--storage", store.as_uri())
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / f"{name}.txt").write_text(done.stdout + done.stderr)
    return status_of(folder / name)


def phases(status: dict[str, Any]) -> dict[str, str]:
    return {stage["name"]: stage["phase"] for stage in status["stages"]}


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Path:
    """That of a finished run, to write to."""
    return shutil.copytree(finished / "store", tmp_path / "store", copy_function=shutil.copy2)


@pytest.mark.timeout(600)
def test_a_run_on_the_same_content_takes_everything_over(finished: Path, store: Path, tmp_path: Path) -> None:
    theirs, ours = status_of(finished), run(tmp_path, "again", store)
    assert phases(ours) == {
        "preflight": "Succeeded",
        "pretrain": "Reused",
        "round-1": "Reused",
        "round-2": "Reused",
    }
    assert ours["student"]["digest"] == theirs["student"]["digest"]
    assert "/default/tiny/round-2/tune/" in ours["student"]["uri"], "it stays where it was made"
    assert (tmp_path / "again" / "student" / "config.json").exists()
    assert not list((store / "default" / "again" / "round-1").rglob("manifest.json"))
    for mine, other in zip(ours["stages"][1:], theirs["stages"][1:], strict=True):
        assert mine["scores"] == other["scores"]
        made_here = {"teacherAnswers": 0} if "teacherAnswers" in other.get("counts", {}) else {}
        assert mine.get("counts") == ({**other["counts"], **made_here} if "counts" in other else None)
    told = (tmp_path / "again.txt").read_text()
    assert "Succeeded: all 4 stages are done, 3 of them reused" in told
    assert "(reused)" in told


@pytest.mark.timeout(600)
def test_a_run_takes_over_as_far_as_it_is_the_same(finished: Path, store: Path, tmp_path: Path) -> None:
    rounds = manifest()["spec"]["rounds"]
    ours = run(tmp_path, "other", store, rounds={**rounds, "augmentation": {"hardItems": 8, "easyItems": 5}})
    assert phases(ours) == {
        "preflight": "Succeeded",
        "pretrain": "Reused",
        "round-1": "Succeeded",
        "round-2": "Succeeded",
    }
    first = next(stage for stage in ours["stages"] if stage["name"] == "round-1")
    assert {each["name"]: each.get("reused", False) for each in first["phases"]} == {
        "teach": True,
        "tune": True,
        "answer": True,
        "assess": True,
        "augment": False,
        "evaluate": True,
    }
    assert first["counts"]["teacherAnswers"] == 0
    assert ours["student"]["digest"] != status_of(finished)["student"]["digest"]


@pytest.mark.timeout(600)
def test_jobs_of_one_phase_each_take_the_same_over(store: Path, tmp_path: Path) -> None:
    """The first Job of a round takes phases over; that the index is gone then is all the same to the others."""
    rounds = {**manifest()["spec"]["rounds"], "count": 1}
    file = write_manifest(tmp_path / "jobs.yaml", manifest("jobs", rounds=rounds, execution="Phase"))
    running = start_comd("run", file, "--work-dir", tmp_path / "jobs", "--storage", store.as_uri())
    while not list((store / "default" / "jobs" / "round-1").glob("tune/*/taken-over.json")):
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.01)
    shutil.rmtree(store / "cache" / "phases")
    output, _ = running.communicate(timeout=500)
    assert running.returncode == 0, output
    ours = status_of(tmp_path / "jobs")
    first = next(stage for stage in ours["stages"] if stage["name"] == "round-1")
    reused = {each["name"] for each in first["phases"] if each.get("reused")}
    assert reused == {"teach", "tune"}, "the last round compares other items"


@pytest.mark.timeout(600)
def test_images_that_change_under_a_run_are_not_what_others_asked_for(work: Path, tmp_path: Path) -> None:
    """What was made of them keeps to the run that made it."""
    file = write_manifest(
        tmp_path / "changed.yaml", manifest("changed", rounds={**manifest()["spec"]["rounds"], "count": 1})
    )
    running = start_comd("run", file, "--work-dir", tmp_path / "changed", "--storage", (work / "store").as_uri())
    while not list((work / "store" / "default" / "changed" / "preflight").rglob("manifest.json")):
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.01)
    image = work / "store" / "inputs" / "images" / "0.png"
    image.unlink()  # a link to what other tests read
    shutil.copy2(image.with_name("1.png"), image)
    output, _ = running.communicate(timeout=500)
    assert running.returncode == 0, output
    assert not (work / "store" / "cache" / "phases").exists()
    log = (tmp_path / "changed" / "logs" / "changed-pretrain-a1.log").read_text()
    assert (
        "changed since preflight, so that no other run takes this stage over: spec.data.images (inputs/images)" in log
    )


@pytest.mark.timeout(600)
def test_a_run_that_is_to_reuse_nothing_makes_the_same_itself(finished: Path, store: Path, tmp_path: Path) -> None:
    ours = run(tmp_path, "alone", store, reuse="Never")
    assert set(phases(ours).values()) == {"Succeeded"}
    assert not any(each.get("reused") for stage in ours["stages"] for each in stage["phases"])
    assert ours["student"]["digest"] == status_of(finished)["student"]["digest"]
    assert "/default/alone/round-2/tune/" in ours["student"]["uri"]

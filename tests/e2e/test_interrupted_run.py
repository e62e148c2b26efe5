"""A run that is killed in every phase, stopped and continued comes to the very end that it would have come to undisturbed."""

import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from comd_operator.local.process import read_progress
from tests.e2e.runs import comd, contents, start_comd, status_of
from tests.e2e.world import manifest, write_manifest

PHASES = [
    *(("pretrain", phase) for phase in ("pretrain", "evaluate")),
    *(("round-1", phase) for phase in ("teach", "tune", "answer", "assess", "augment", "evaluate")),
    *(("round-2", phase) for phase in ("teach", "tune", "answer", "assess", "evaluate")),
]
DELAYS = (0.15, 0.4)
"""Seconds into a phase until which it is killed, the first time and the second: the phases of this world are as short as that."""


@pytest.mark.timeout(1500)
def test_killed_in_every_phase(work: Path, finished: Path) -> None:
    """kill -9 at seeded moments, twice in each phase (26 times): byte-identical pools and equal weights."""
    moments = random.Random(20231114)
    running = start_comd("run", write_manifest(work / "run.yaml", manifest()), "--work-dir", work)
    landed: list[tuple[str, str]] = []
    try:
        for target in PHASES:
            for longest in DELAYS:
                if wait_for(work, target) == target:
                    time.sleep(moments.uniform(0.0, longest))
                    hit = where(work)
                    if hit is not None and kill_trainer(running.pid):
                        landed.append(hit)
                        forget(work)
        output, _ = running.communicate(timeout=600)
    finally:
        running.kill()
    assert running.returncode == 0, output
    assert len(landed) >= 20, landed
    assert {phase for _, phase in landed} == {phase for _, phase in PHASES}, landed
    assert contents(work) == contents(finished)
    assert sum(stage["failures"] for stage in status_of(work)["stages"] if "failures" in stage) == len(landed)


@pytest.mark.timeout(600)
def test_stopped_by_ctrl_c_and_continued(work: Path, finished: Path) -> None:
    """Ctrl-C in the middle of training: exit code 75, nothing has failed, and the next `comd run` goes on from the last step."""
    path = write_manifest(work / "run.yaml", manifest())
    running = start_comd("run", path, "--work-dir", work)
    try:
        assert wait_for(work, ("round-1", "tune")) == ("round-1", "tune")
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 75, output
    status = status_of(work)
    assert status["phase"] == "Suspended"
    assert [stage["phase"] for stage in status["stages"]][:2] == ["Succeeded", "Succeeded"]
    assert all(not stage.get("failures") for stage in status["stages"])
    again = comd("run", path, "--work-dir", work)
    assert again.returncode == 0, again.stdout + again.stderr
    assert contents(work) == contents(finished)


def where(work: Path) -> tuple[str, str] | None:
    """Stage and phase that the newest trainer says it is in."""
    files = sorted((work / "jobs").glob("*/progress.json"), key=lambda file: file.stat().st_mtime)
    progress = read_progress(files[-1]) if files else None
    return (progress.stage, progress.phase) if progress is not None and progress.phase is not None else None


def forget(work: Path) -> None:
    """Removes what the dead said last, so that it is not taken for the word of its successor."""
    for file in (work / "jobs").glob("*/progress.json"):
        file.unlink()


def wait_for(work: Path, target: tuple[str, str], *, patience: float = 300) -> tuple[str, str] | None:
    """Until the run is in the phase or beyond it."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        now = where(work)
        if now in PHASES and PHASES.index(now) >= PHASES.index(target):
            return now
        time.sleep(0.02)
    raise AssertionError(f"the run never came to {target}; it is in {where(work)}")


def kill_trainer(runner: int) -> bool:
    """SIGKILL to the supervisor; its ranks and fork server must end by themselves."""
    for process in psutil.Process(runner).children(recursive=True):
        if "comd_trainer" in process.cmdline() and "run" in process.cmdline():
            process.kill()
            process.wait(timeout=30)
            return True
    return False

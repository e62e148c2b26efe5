"""`comd run` as a process, with a trainer that does what a script says."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from comd_api.pods import Resources
from comd_api.stage import StageConfig
from comd_trainer.preflight.fit import check_gpu_counts
from tests.unit.rule_examples import manifest

DRIVER = Path(__file__).with_name("local_driver.py")
FAST = {"rounds__count": 1, "retry": {"limit": 1, "backoffSeconds": 0}}


class Bench:
    """A folder with a manifest, a script for the fake trainer, and the processes started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.work = folder, folder / "work"
        self.started: list[subprocess.Popen[str]] = []
        self.write()
        self.script()

    def write(self, **changes: Any) -> None:
        (self.folder / "run.yaml").write_text(yaml.safe_dump(manifest(**{**FAST, **changes})))

    def script(self, **actions: str) -> None:
        """`round_1__2="crash"`: what attempt 2 of round-1 does."""
        named = {name.replace("__", "/").replace("_", "-"): action for name, action in actions.items()}
        (self.folder / "script.json").write_text(json.dumps(named))

    def start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(DRIVER), str(self.folder / "run.yaml"), str(self.work)],
            env={**os.environ, "FAKE_TRAINER": str(self.folder / "script.json")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self) -> tuple[int, str, str]:
        process = self.start()
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = yaml.safe_load((self.work / "status.yaml").read_text())["status"]
        return status

    def ran(self) -> list[str]:
        """`stage/attempt` of every trainer that was started. The file is gone with the scratch folder of a run that succeeded."""
        lines = (self.work / "scratch" / "ran").read_text().splitlines()
        return ["/".join(line.split("/")[:2]) for line in lines]

    def trainer(self) -> int:
        """Process id of the newest trainer."""
        return int((self.work / "scratch" / "ran").read_text().split("/")[-1])

    def wait_for(self, test: Callable[[], bool], seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while True:
            try:
                if test():
                    return
            except (OSError, IndexError, ValueError, KeyError, TypeError):
                pass
            assert time.monotonic() < end, "it did not come to that in time"
            time.sleep(0.05)

    def hanging(self) -> bool:
        return "%" in (self.status().get("progress") or "")


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_one_machine_has_the_ranks_of_all_nodes(bench: Bench) -> None:
    """And what a node of a cluster has is not asked of it: `preflight` refuses none of its configs."""
    asked = {"limits": {"nvidia.com/gpu": 4, "memory": "1Ki"}}
    bench.write(trainer={"numNodes": 2, "numProcPerNode": 4, "resourcesPerNode": asked})
    code, _, err = bench.run()
    assert code == 0, err
    configs = [json.loads(file.read_text()) for file in (bench.work / "jobs").glob("*/config.json")]
    trainers = [StageConfig.model_validate(config).spec.trainer for config in configs]
    assert len(trainers) > 1
    for trainer in trainers:
        assert (trainer.num_nodes, trainer.num_proc_per_node) == (1, 8)
        check_gpu_counts(trainer)
        assert trainer.resources_per_node == Resources()


def test_success_prints_the_tables_and_links_the_student(bench: Bench) -> None:
    code, out, err = bench.run()
    assert code == 0, err
    assert "before round 1  0.200 [0.100, 0.900]  0.950 [0.100, 0.900]  40" in out
    assert "after round 1   0.400" in out
    assert f"student: {bench.work}/student" in out
    assert json.loads((bench.work / "student" / "config.json").read_text()) == {"stage": "round-1"}
    assert "round-1" in err
    assert "StageSucceeded: preflight" in err
    assert bench.status()["phase"] == "Succeeded"
    assert not (bench.work / "scratch").exists()


def test_a_finished_run_says_so_and_shows_its_tables_again(bench: Bench) -> None:
    _, first, _ = bench.run()
    before = (bench.work / "status.yaml").read_bytes()
    code, again, _ = bench.run()
    assert code == 0
    assert again.startswith("tiny is finished")
    assert first in again
    assert (bench.work / "status.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("action", "code", "attempts", "exit_class", "says"),
    [
        ("UserError", 64, 1, "UserError", "because of UserError"),
        ("BadData", 65, 1, "BadData", "because of BadData"),
        ("Failed", 1, 2, "Failed", "because of Failed"),
        ("OutOfMemory", 1, 2, "OutOfMemory", "because of OutOfMemory"),
        ("crash", 1, 2, "Failed", "RuntimeError: no luck"),
        ("killed", 1, 2, "OutOfMemory", "signal 9"),
        ("silent", 1, 2, "Failed", "left no result"),
        ("exit 64", 64, 1, "UserError", "code 64"),
        ("exit 65", 65, 1, "BadData", "code 65"),
    ],
)
def test_failures(bench: Bench, action: str, code: int, attempts: int, exit_class: str, says: str) -> None:
    bench.script(round_1__1=action, round_1__2=action)
    got, _, err = bench.run()
    assert got == code
    assert says in err
    assert "Traceback" not in err
    stage = bench.status()["stages"][-1]
    assert (stage["name"], stage["phase"], stage["exitClass"]) == ("round-1", "Failed", exit_class)
    assert bench.ran()[2:] == [f"round-1/{number}" for number in range(1, attempts + 1)]


def test_try_again_is_tried_again_beyond_the_limit(bench: Bench) -> None:
    bench.script(round_1__1="TryAgain", round_1__2="exit 75", round_1__3="TryAgain")
    assert bench.run()[0] == 0
    assert bench.status()["stages"][-1]["attempt"] == 4
    assert bench.status()["stages"][-1]["failures"] == 0


def test_a_failed_run_starts_anew(bench: Bench) -> None:
    bench.script(preflight__1="UserError")
    assert bench.run()[0] == 64
    bench.script()
    bench.write(seed=5)
    assert bench.run()[0] == 0


def test_ctrl_c_stops_cleanly_and_the_next_run_goes_on(bench: Bench) -> None:
    bench.script(round_1__1="hang")
    process = bench.start()
    bench.wait_for(bench.hanging)
    trainer = bench.trainer()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 75
    assert "run it again to go on" in err
    assert not alive(trainer)
    status = bench.status()
    assert status["phase"] == "Suspended"
    assert {condition["reason"] for condition in status["conditions"]} == {"Interrupted"}
    assert status["stages"][-1]["failures"] == 0

    code, _, err = bench.run()
    assert code == 0, err
    assert "goes on at round-1; done: preflight, pretrain" in err
    assert [stage["attempt"] for stage in bench.status()["stages"]] == [1, 1, 2]


def test_a_second_ctrl_c_kills(bench: Bench) -> None:
    bench.script(preflight__1="deaf")
    process = bench.start()
    bench.wait_for(bench.hanging)
    trainer = bench.trainer()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert alive(trainer)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 75
    assert not alive(trainer)
    assert bench.status()["stages"][-1]["failures"] == 0


def test_after_a_kill_9_the_trainer_ends_and_the_next_run_goes_on(bench: Bench) -> None:
    bench.script(round_1__1="hang")
    begun = time.monotonic()
    process = bench.start()
    bench.wait_for(bench.hanging)
    trainer = bench.trainer()
    process.kill()
    process.communicate()
    bench.wait_for(lambda: not alive(trainer))
    dead = time.monotonic()
    time.sleep(4.0)
    dead = time.monotonic() - dead
    code, _, err = bench.run()
    assert code == 0, err
    assert bench.status()["activeSeconds"] < time.monotonic() - begun - dead + 2.0, "nobody was active in between"
    stages = bench.status()["stages"]
    assert [stage["attempt"] for stage in stages] == [1, 1, 2]
    assert stages[-1]["failures"] == 0


def test_the_next_run_waits_for_an_orphan(bench: Bench) -> None:
    bench.script(round_1__1="deaf")
    process = bench.start()
    bench.wait_for(bench.hanging)
    trainer = bench.trainer()
    process.kill()
    process.communicate()
    following = bench.start()
    assert following.stderr is not None
    said = next((line for line in following.stderr if "Waiting: the trainer of an earlier comd run" in line), None)
    assert said is not None, "it goes on without waiting"
    assert alive(trainer)
    assert bench.ran()[-1] == "round-1/1"
    os.kill(trainer, signal.SIGKILL)
    _, err = following.communicate(timeout=20)
    assert following.returncode == 0, err


def test_two_runs_in_one_folder_are_refused(bench: Bench) -> None:
    bench.script(preflight__1="hang")
    first = bench.start()
    bench.wait_for(bench.hanging)
    code, _, err = bench.run()
    assert code == 64
    assert f"another comd run (process {first.pid}) is at work here" in err
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=20)


def test_a_changed_spec_is_refused_unless_it_may_change(bench: Bench) -> None:
    bench.script(round_1__1="hang")
    process = bench.start()
    bench.wait_for(bench.hanging)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)

    bench.write(seed=5)
    code, _, err = bench.run()
    assert code == 64
    assert "spec.seed can't change once the run has started; delete the run and apply it again" in err

    bench.write(retry={"limit": 7})
    assert bench.run()[0] == 0
    assert bench.status()["observedGeneration"] == 2


def test_a_suspended_manifest_starts_nothing(bench: Bench) -> None:
    bench.write(suspend=True)
    code, _, err = bench.run()
    assert code == 75
    assert "spec.suspend is true" in err
    assert bench.status()["phase"] == "Suspended"


def test_a_job_for_each_phase(bench: Bench) -> None:
    bench.write(execution="Phase")
    bench.script(round_1__1="TryAgain", preflight__1="hang")
    process = bench.start()
    bench.wait_for(bench.hanging)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert bench.run()[0] == 0
    names = sorted(path.name for path in (bench.work / "logs").iterdir())
    assert "tiny-round-1-a1-teach.log" in names
    assert "tiny-round-1-a2-evaluate.log" in names


def test_a_damaged_status_is_named(bench: Bench) -> None:
    assert bench.run()[0] == 0
    path = bench.work / "status.yaml"
    path.write_text(path.read_text().replace("phase: Succeeded", "phase: Sunny"))
    code, _, err = bench.run()
    assert code == 64
    assert f"{path}: status.phase" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_another_run_s_folder_is_refused(bench: Bench, phase: str) -> None:
    assert bench.run()[0] == 0
    path = bench.work / "status.yaml"
    saved = yaml.safe_load(path.read_text())
    saved["status"]["phase"] = phase
    path.write_text(yaml.safe_dump(saved))
    document = {**manifest(**FAST), "metadata": {"name": "other"}}
    (bench.folder / "run.yaml").write_text(yaml.safe_dump(document))
    code, _, err = bench.run()
    assert code == 64
    assert "holds the run tiny; use another --work-dir" in err


def test_a_deadline_ends_a_trainer(bench: Bench) -> None:
    bench.write(activeDeadlineSeconds=2)
    bench.script(preflight__1="hang")
    code, _, err = bench.run()
    assert code == 1
    assert "activeDeadlineSeconds (2)" in err
    assert not alive(bench.trainer())

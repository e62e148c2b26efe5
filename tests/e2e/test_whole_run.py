"""A whole run on this machine, and what is left of it."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from comd_api.run import DistillationRun
from tests.e2e.runs import comd, contents, status_of
from tests.e2e.world import manifest, write_manifest

OPEN_WITHOUT_COMD = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0].startswith("comd"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
processor = AutoProcessor.from_pretrained(sys.argv[1])
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this?"}]}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(text=prompt, images=Image.new("RGB", (32, 32)), return_tensors="pt")
print(type(model).__name__, model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] - inputs["input_ids"].shape[1])
"""


def test_the_status_is_that_of_the_resource(finished: Path) -> None:
    run = DistillationRun.model_validate(yaml.safe_load((finished / "status.yaml").read_text()))
    assert run.status is not None
    assert run.status.phase == "Succeeded"
    assert [stage.name for stage in run.status.stages] == ["preflight", "pretrain", "round-1", "round-2"]
    assert {condition.type: condition.status for condition in run.status.conditions}["Succeeded"] == "True"
    for stage in run.status.stages[1:]:
        assert {(score.role, score.evaluation) for score in stage.scores} == {
            ("student", "held-out"),
            ("teacher", "held-out"),
        }
    first = run.status.stages[2].counts
    assert first is not None
    assert (first.train, first.compared, first.accepted) == (24, 22, 14)
    assert (first.hard or 0) + (first.easy or 0) + (first.dropped or 0) == 22


def test_the_table_says_how_good_and_how_long(finished: Path) -> None:
    output = (finished / "output.txt").read_text()
    for word in ("before round 1", "after round 2", "teacher", "hard", "held-out", "student: "):
        assert word in output


def test_the_student_opens_in_plain_transformers(finished: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OPEN_WITHOUT_COMD, str(finished / "student")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    kind, tokens = done.stdout.split()
    assert kind == "LlavaForConditionalGeneration"
    assert 1 <= int(tokens) <= 3


def test_a_finished_run_is_not_run_again(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("manifest.json")}
    again = comd("run", finished / "run.yaml", "--work-dir", finished)
    assert again.returncode == 0
    assert "after round 2" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("manifest.json")} == before


@pytest.mark.timeout(600)
def test_one_job_per_phase_gives_the_same(work: Path, finished: Path) -> None:
    done = comd("run", write_manifest(work / "run.yaml", manifest(execution="Phase")), "--work-dir", work)
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(work) == contents(finished)


@pytest.mark.timeout(600)
def test_two_ranks_come_to_the_same_pools(work: Path, finished: Path) -> None:
    """Training on two ranks adds up in another order, so weights agree to rounding; greedy answers and all that is drawn agree exactly."""
    done = comd("run", write_manifest(work / "run.yaml", manifest(trainer={"numProcPerNode": 2})), "--work-dir", work)
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = contents(work), contents(finished)
    assert ours["round-1/teach/items.jsonl"] == theirs["round-1/teach/items.jsonl"]
    assert ours["round-1/teach/answers.jsonl"] == theirs["round-1/teach/answers.jsonl"]
    assert ours["round-1/answer/items.jsonl"] == theirs["round-1/answer/items.jsonl"]
    stages = status_of(work)["stages"]
    assert [stage["counts"]["train"] for stage in stages[2:]] == [24, 25]


def test_a_changed_spec_of_a_started_run_is_refused(finished: Path, tmp_path: Path) -> None:
    changed = manifest()
    changed["spec"]["seed"] = 1
    done = comd("run", write_manifest(tmp_path / "changed.yaml", changed), "--work-dir", finished)
    assert done.returncode == 64
    assert "spec.seed can't change once the run has started" in done.stderr

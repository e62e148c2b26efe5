"""What a user sees of bad input, as they see it: the exit code of `comd run`, and one sentence that names the field, the value and
what would be right. Three tables: what the manifest shows, what preflight finds, what only models show."""

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from comd_operator.cli.main import main
from tests.e2e.runs import comd, status_of
from tests.e2e.world import manifest, write_manifest
from tests.tiny import save_tiny_language_model

# ---- what the manifest shows: nothing is started


def changed(path: str, value: Any) -> dict[str, Any]:
    """The tiny manifest with one field set (`None`: removed); `a.b` is `spec.a.b`."""
    document = copy.deepcopy(manifest())
    *parents, last = path.split(".")
    node = document["spec"]
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    if value is None:
        del node[last]
    return document


ENDPOINT = {"url": "http://127.0.0.1:9/v1", "model": "m"}
MANIFESTS = {
    "unknown field": (
        changed("rounds.treshold", 2.0),
        "spec.rounds.treshold: unknown field; did you mean threshold?",
    ),
    "wrong type": (
        changed("rounds.count", "three"),
        'spec.rounds.count: "three" is not a whole number (Tuning phases',
    ),
    "a number that is none": (changed("training.learningRate", float("nan")), "spec.training.learningRate: NaN"),
    "an endpoint as the student": (
        changed("student", {"endpoint": ENDPOINT}),
        "spec.student.endpoint: unknown field; known here are composed, checkpoint",
    ),
    "a threshold beyond the scale": (
        changed("rounds.threshold", 9.5),
        "spec.rounds.threshold: 9.5 is greater than 9 (An item is hard when",
    ),
    "a composed student without a projector": (
        changed("student.composed.projector", None),
        "spec.student.composed.projector: missing (What maps image features into the language model's",
    ),
    "a floor above what a round compares": (
        changed("rounds.hardItemsFloor", 23),
        "spec.rounds.hardItemsFloor is larger than the number of items that a round compares",
    ),
    "likelihoods of an endpoint": (
        changed("teacher", {"endpoint": ENDPOINT}),
        "spec.assessor.type Likelihood needs log-probabilities, which an endpoint as the teacher does not give",
    ),
}


@pytest.mark.parametrize(("document", "sentence"), MANIFESTS.values(), ids=MANIFESTS.keys())
def test_the_manifest_shows_it(
    document: dict[str, Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_manifest(tmp_path / "run.yaml", document)
    assert main(["run", str(file), "--work-dir", str(tmp_path / "work")]) == 64
    said = capsys.readouterr().err
    assert said.startswith(f"comd: {file}: {sentence}"), said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "work").exists()


# ---- what preflight finds: no model is loaded


class Found(NamedTuple):
    spoil: Callable[[Path], object]
    """Told the folder of inputs. Its files are links to those of other tests: replace them, never write into them."""
    sentence: str
    code: int = 64
    document: dict[str, Any] = manifest()


def rewrite(name: str, data: str | bytes) -> Callable[[Path], object]:
    def spoil(inputs: Path) -> None:
        (inputs / name).unlink()
        (inputs / name).write_bytes(data if isinstance(data, bytes) else data.encode())

    return spoil


def remove(pattern: str) -> Callable[[Path], object]:
    def spoil(inputs: Path) -> None:
        for path in inputs.glob(pattern):
            path.unlink()

    return spoil


def take_chat_template(inputs: Path) -> None:
    shutil.rmtree(inputs / "models" / "language-model")
    save_tiny_language_model(inputs / "models" / "language-model", chat_template=None)


def rows(*changes: dict[str, Any]) -> str:
    """Good seed rows, with the first ones changed."""
    good = [{"id": f"s{number}", "image": "1.png", "instruction": "what?"} for number in range(24)]
    return "".join(json.dumps(row | change) + "\n" for row, change in zip(good, [*changes, *[{}] * 24], strict=False))


LANGUAGE = "spec.student.composed.languageModel.source (inputs/models/language-model)"
SEED = "spec.data.seed.instructions"
PREFLIGHT = {
    "missing file": Found(
        lambda inputs: (inputs / "seed.jsonl").unlink(), f"{SEED}: inputs/seed.jsonl does not exist at"
    ),
    "missing folder of images": Found(lambda inputs: shutil.rmtree(inputs / "images"), "spec.data.images"),
    "checkpoint without safetensors": Found(
        remove("models/language-model/*.safetensors"),
        f"{LANGUAGE} has no *.safetensors; pickled weights are not loaded, convert them with save_pretrained",
    ),
    "tokenizer without a chat template": Found(
        take_chat_template,
        f"{LANGUAGE} has a tokenizer without a chat template; set student.composed.languageModel.chatTemplate",
    ),
    "tokenizer config that is no JSON": Found(
        rewrite("models/teacher/tokenizer_config.json", "{"),
        "spec.teacher.checkpoint.source (inputs/models/teacher): tokenizer_config.json is not JSON",
    ),
    "more hard items than the pools can give": Found(
        lambda _: None,
        "asks for 92 items of spec.data.bank over 2 rounds (augmentation.hardItems 80 + easyItems 6 + "
        "assessment.freshItems 6 each), but the bank holds 90; lower them or give a larger bank",
        document=changed("rounds.augmentation.hardItems", 80),
    ),
    "a floor above the seed": Found(
        lambda _: None,
        "spec.rounds.hardItemsFloor is 31, but round 1 compares only 30 items (of 24 seed instructions and 6 fresh ones)",
        document=changed(
            "rounds",
            {
                "count": 2,
                "hardItemsFloor": 31,
                "assessment": {"sampleSize": 50, "freshItems": 6},
                "augmentation": {"hardItems": 8, "easyItems": 6},
            },
        ),
    ),
    "empty file": Found(rewrite("seed.jsonl", ""), f"{SEED} (inputs/seed.jsonl) holds no rows", 65),
    "rows that are no JSON": Found(rewrite("seed.jsonl", rows() + "oops\n" * 3), "row 25: is not JSON", 65),
    "empty instructions": Found(
        rewrite("seed.jsonl", rows({"instruction": " "}, {"instruction": ""})),
        f"{SEED} (inputs/seed.jsonl): 2 of 24 rows can't be used, more than data.maxBadRowFraction (0.05) allows: "
        "row 1: field instruction is",
        65,
    ),
    "text that is not UTF-8": Found(
        rewrite("seed.jsonl", rows().encode("utf-16")), f"{SEED} (seed.jsonl) is not UTF-8 text", 65
    ),
    "captions that are not UTF-8": Found(
        rewrite("pairs.jsonl", b"\xff\xfe" + b"x" * 9), "spec.data.pretraining (pairs.jsonl) is not UTF-8 text", 65
    ),
    "characters that are none": Found(
        rewrite("seed.jsonl", rows({"instruction": "\ud83d what?"}, {"instruction": "what \udfff?"})),
        "row 1: field instruction holds half a surrogate pair",
        65,
    ),
    "images elsewhere": Found(
        rewrite("seed.jsonl", rows(*[{"image": f"train/{number}.png"} for number in range(24)])),
        "spec.data.images (inputs/images) holds none of the first images that spec.data.seed.instructions names, such as "
        "'train/0.png'",
        65,
    ),
}


@pytest.mark.parametrize("case", PREFLIGHT.values(), ids=PREFLIGHT.keys())
def test_preflight_finds_it(case: Found, work: Path) -> None:
    case.spoil(work / "store" / "inputs")
    done = comd("run", write_manifest(work / "run.yaml", case.document), "--work-dir", work)
    assert_failed(done, work, code=case.code, sentence=case.sentence, stage="preflight")


def assert_failed(done: subprocess.CompletedProcess[str], work: Path, *, code: int, sentence: str, stage: str) -> None:
    """The code, the sentence as the last thing said, no traceback, and not one retry of a hundred that were allowed."""
    assert done.returncode == code, done.stdout + done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"comd: tiny failed in {stage}: "), done.stderr
    assert sentence in last
    assert last.endswith(f"its log: {work}/logs/tiny-{stage}-0.log"), last
    assert "Traceback" not in done.stderr
    assert status_of(work)["stages"][-1]["failures"] == 1

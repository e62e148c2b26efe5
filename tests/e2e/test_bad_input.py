"""What a user sees of bad input, as they see it: the exit code of `comd run`, and one sentence that names the field, the value and
what would be right. Three tables: what the manifest shows, what preflight finds, what only models show."""

import copy
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from comd_operator.cli.main import main
from tests.e2e.runs import comd, contents, start_comd, status_of
from tests.e2e.service import serving
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


def test_a_work_dir_that_can_not_be_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "work"
    (work / "runner.lock").mkdir(parents=True)
    assert main(["run", str(write_manifest(tmp_path / "run.yaml", manifest())), "--work-dir", str(work)]) == 64
    said = capsys.readouterr().err
    assert said == f"comd: --work-dir {work}: can't be written to (Is a directory); use another one\n"


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
        lambda inputs: (inputs / "seed.jsonl").unlink(), f"{SEED}: inputs/seed.jsonl is not there: this machine has no"
    ),
    "missing folder of images": Found(
        lambda inputs: shutil.rmtree(inputs / "images"),
        "spec.data.images: inputs/images is not there: this machine has no",
    ),
    "checkpoint without safetensors": Found(
        remove("models/language-model/*.safetensors"),
        f"{LANGUAGE} has no *.safetensors; pickled weights are not loaded, convert them with save_pretrained",
    ),
    "weights that were not copied to their end": Found(
        rewrite("models/teacher/model.safetensors", b"\x08\0\0\0\0\0\0\0{}"),
        "spec.teacher.checkpoint.source (inputs/models/teacher): model.safetensors is torn",
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
        rewrite("seed.jsonl", rows().encode("utf-16")),
        f"{SEED} (inputs/seed.jsonl): 25 of 25 rows can't be used, more than data.maxBadRowFraction (0.05) allows: "
        "row 1: is not JSON ('utf-8' codec can't decode",
        65,
    ),
    "captions that are not UTF-8": Found(
        rewrite("pairs.jsonl", b"\xff\xfe" + b"x" * 9), "row 1: is not JSON ('utf-8' codec", 65
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
    done = comd("run", write_manifest(work / "run.yaml", case.document), "--work-dir", work, timeout=120)
    assert_failed(done, work, code=case.code, sentence=case.sentence, stage="preflight")


def assert_failed(done: subprocess.CompletedProcess[str], work: Path, *, code: int, sentence: str, stage: str) -> None:
    """The code, the sentence as the last thing said, no traceback, and not one retry of a hundred that were allowed."""
    assert done.returncode == code, done.stdout + done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"comd: tiny failed in {stage}: "), done.stderr
    assert sentence in last
    assert last.endswith(f"its log: {work}/logs/tiny-{stage}-a1.log"), last
    assert "Traceback" not in done.stderr
    assert status_of(work)["stages"][-1]["failures"] == 1


# ---- what only models show


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    with serving() as url:
        yield url


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> Path:
    """One store for all of these, so that what they have in common (a student, its answers) is made once."""
    return shutil.copytree(inputs, tmp_path_factory.mktemp("bad-models") / "store" / "inputs").parent


def asked(url: str, *, teacher: str = "teacher", **spec: Any) -> dict[str, Any]:
    """A run whose student is a checkpoint and whose other models are behind a service."""

    def endpoint(model: str) -> dict[str, Any]:
        return {"endpoint": {"url": url, "model": model}}

    for role in ("assessor", "augmentor"):
        if "model" in spec.get(role, {}):
            spec[role] = spec[role] | {"model": endpoint(spec[role]["model"])}
    rounds = {
        "count": 2,
        "hardItemsFloor": 1,
        "augmentation": {"hardItems": 20, "easyItems": 0},
        **spec.pop("rounds", {}),
    }
    document = manifest(
        student={"checkpoint": {"source": "inputs/models/teacher"}},
        teacher=endpoint(teacher),
        **{"assessor": {"type": "Judge"}, "augmentor": {"type": "Repeat"}} | spec,
        rounds=rounds,
    )
    document["spec"]["training"]["maxSteps"] = 2
    document["spec"]["data"] = {"images": "inputs/images", "seed": {"instructions": "inputs/seed.jsonl"}}
    del document["spec"]["pretraining"]
    return document


CHAT = {"type": "Chat", "model": "parrot"}
UNDECIDED: dict[str, Any] = {"assessor": {"type": "Judge", "model": "undecided-judge"}, "augmentor": CHAT}
FEW = "0 hard items at threshold 1 are fewer than rounds.hardItemsFloor (1); the student has caught up with the teacher"
MODELS = {
    "a judge that never parses": (
        {"assessor": {"type": "Judge", "model": "babbling-judge"}, "augmentor": CHAT},
        "24 of 24 compared items have no verdict, more than assessor.judge.maxDropFraction (0.05) allows: "
        "0 of 240 replies parsed; one that did not: 'Both have their charm, A: ten out of ten!'",
    ),
    "an augmentor that repeats itself for ever": (
        {"assessor": {"type": "Judge", "model": "judge"}, "augmentor": CHAT},
        "the augmentor made 16 of 20 hard items in 60 attempts, all that augmentor.chat.maxAttemptsFactor allows; "
        "turned down: ",
    ),
    "too few hard items": (
        UNDECIDED | {"rounds": {"threshold": 1.0, "belowFloor": "Fail"}},
        f"{FEW} on what was compared; lower rounds.threshold or rounds.hardItemsFloor, or set rounds.belowFloor to Stop",
    ),
    "empty answers": (
        {"teacher": "silent-teacher"},
        "spec.teacher: all 24 answers of the teacher are empty; check that",
    ),
}


@pytest.mark.parametrize(("spec", "sentence"), MODELS.values(), ids=MODELS.keys())
def test_models_show_it(spec: dict[str, Any], sentence: str, service: str, store: Path, tmp_path: Path) -> None:
    file = write_manifest(tmp_path / "run.yaml", asked(service, **spec))
    done = comd("run", file, "--work-dir", tmp_path / "work", "--storage", store, timeout=200)
    assert_failed(done, tmp_path / "work", code=65, sentence=sentence, stage="round-1")


def test_too_few_hard_items_end_a_run_well(service: str, store: Path, tmp_path: Path) -> None:
    """`belowFloor: Stop`: exit code 0, the student that there is, and why no round followed."""
    file = write_manifest(tmp_path / "run.yaml", asked(service, **UNDECIDED, rounds={"threshold": 1.0}))
    done = comd("run", file, "--work-dir", tmp_path / "work", "--storage", store, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{FEW} on what was compared" in " ".join((done.stdout + done.stderr).split())
    status = status_of(tmp_path / "work")
    assert [stage["name"] for stage in status["stages"]] == ["preflight", "round-1"]
    assert status["student"]["uri"].startswith(f"{store.as_uri()}/default/tiny/round-1/tune/")
    ready = next(condition for condition in status["conditions"] if condition["type"] == "Succeeded")
    assert (ready["status"], ready["reason"]) == ("True", "StoppedEarly")
    assert FEW in ready["message"]


@pytest.mark.parametrize("broken", [1, 2])
def test_images_that_do_not_decode(broken: int, service: str, work: Path) -> None:
    """One of 24 rows is dropped, named and counted; two are more than 5 % and end the phase."""
    inputs = work / "store" / "inputs"
    rewrite("seed.jsonl", rows({"image": "38.png"}, {"image": "39.png"}))(inputs)
    for number in range(40 - broken, 40):
        rewrite(f"images/{number}.png", b"\x89PNG\r\n\x1a\nno more than a beginning")(inputs)
    document = asked(service, rounds={"count": 1})
    done = comd("run", write_manifest(work / "run.yaml", document), "--work-dir", work, timeout=200)
    if broken == 2:
        sentence = (
            "data.seed.instructions (inputs/seed.jsonl): 2 of 24 rows can't be used, more than data.maxBadRowFraction (0.05) "
            "allows: row 1: image '38.png' does not decode"
        )
        assert_failed(done, work, code=65, sentence=sentence, stage="round-1")
        return
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = (work / "store" / "default" / "tiny" / "round-1" / "teach").glob("*/manifest.json")
    pool = json.loads(found.read_text())["meta"]["seedPool"]
    assert (pool["rows"], pool["badRows"]) == (24, 1)
    assert "row 2: image '39.png' does not decode" in pool["badRowExamples"][0]
    assert "image '39.png' does not decode" in (work / "logs" / "tiny-round-1-a1.log").read_text()


# ---- what passes: 75, and the next `comd run` goes on


def say_and_stop(file: Path, work: Path, *options: str | Path, words: str) -> str:
    """Starts `comd run`, waits until it says why it can't go on for now, and stops it with Ctrl-C. All that it said."""
    running = start_comd("run", file, "--work-dir", work, *options)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and running.poll() is None:
            if (work / "status.yaml").exists() and words in str(status_of(work)["stages"]):
                break
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 75, said
    assert words in " ".join(said.split())
    assert "Traceback" not in said
    assert all(not stage.get("failures") for stage in status_of(work)["stages"])
    return said


def test_a_store_that_can_not_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    storage = {"uri": "s3://bucket/x", "s3": {"endpoint": "http://127.0.0.1:9", "region": "us-east-1"}}
    file = write_manifest(tmp_path / "run.yaml", manifest(storage=storage))
    said = say_and_stop(file, tmp_path / "work", "--storage", "manifest", words="http://127.0.0.1:9")
    assert "TryAgain: spec.storage.uri" in said


@pytest.fixture
def small_disk(tmp_path: Path, inputs: Path) -> Iterator[Path]:
    """A file system of its own with the inputs and room for a phase's rows, but not for a student. CI must be root for it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "comd-test", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        if os.environ.get("CI") == "true":
            raise RuntimeError(f"a full disk can't be tried without the right to mount one: {mounted.stderr}")
        pytest.skip(f"a full disk needs the right to mount one: {mounted.stderr.strip()}")
    try:
        shutil.copytree(inputs, disk / "inputs")
        with (disk / "ballast").open("wb") as ballast:
            free = shutil.disk_usage(disk).free
            ballast.write(b"\0" * (free - 128 * 1024))
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_ends_nothing(service: str, small_disk: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    file = write_manifest(tmp_path / "run.yaml", asked(service, rounds={"count": 1}))
    say_and_stop(file, work, "--storage", small_disk, words="no space is left for")
    assert status_of(work)["stages"][-1]["name"] == "round-1"
    assert [path.split("/")[1] for path in contents(tmp_path, store="disk")].count("tune") == 0
    (small_disk / "ballast").unlink()
    done = comd("run", file, "--work-dir", work, "--storage", small_disk, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr

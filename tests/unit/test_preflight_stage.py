"""The stage `preflight` as a whole, on a folder: what it finds, what it tells, and that it tells the same again."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from comd_api.exit_codes import BadDataError, UserError
from comd_api.profile import resolve
from comd_api.run import RunSpec, Storage
from comd_api.stage import StageConfig
from comd_trainer.data.images import Images
from comd_trainer.preflight import check, check_unchanged, pinned
from comd_trainer.preflight.images import DRAWN, FIRST, surely_more
from comd_trainer.preflight.rows import MARKED_NAMES, NUM_MARKS, marks_of
from comd_trainer.store.artifacts import Artifact
from comd_trainer.store.sources import Sources
from comd_trainer.store.stores import open_store
from comd_trainer.supervisor import Supervisor
from tests.e2e.world import make_inputs, manifest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs") / "inputs")


@pytest.fixture
def root(tmp_path: Path, inputs: Path) -> Path:
    """The storage: a copy that a test may spoil."""
    return shutil.copytree(inputs, tmp_path / "store" / "inputs").parent


def config_of(root: Path, **changes: Any) -> StageConfig:
    spec = manifest()["spec"] | {"storage": {"uri": root.as_uri()}}
    for name, value in changes.items():
        spec[name] = spec.get(name, {}) | value if isinstance(value, dict) else value
    return StageConfig(
        namespace="default",
        run="tiny",
        stage="preflight",
        phases=["preflight"],
        spec=resolve(RunSpec.model_validate(spec)),
    )


def run(root: Path, *, scratch: str = "scratch", **changes: Any) -> Artifact:
    config = config_of(root, **changes)
    assert config.spec.storage is not None
    store = open_store(config.spec.storage.uri, config.spec.storage.s3)
    work = root.parent / scratch
    sources = Sources(config.spec.storage, store, work / "cache")
    return check(config, store=store, sources=sources, cache=work / "cache", scratch=work)


def rewrite(root: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (root / "inputs" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(root: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "inputs" / name).read_text().splitlines()]


def test_what_is_found_and_how_it_is_told(root: Path) -> None:
    artifact = run(root)
    assert artifact.meta["rows"] == {
        "spec.data.seed.instructions": 24,
        "spec.data.bank": 90,
        "spec.data.evaluation[0].items": 8,
        "spec.data.pretraining": 16,
    }
    assert artifact.meta["badRows"] == artifact.meta["missingImages"] == artifact.meta["evaluationOverlap"] == {}
    assert artifact.meta["revisions"] == {}
    assert {(need["phase"], need["role"]) for need in artifact.meta["memory"]} >= {
        ("tune", "student"),
        ("teach", "teacher"),
    }
    assert re.fullmatch(
        r"24 seed rows, 90 bank rows, 16 pre-training pairs, 8 rows of evaluation set held-out; "
        r"student \d+ k, teacher \d+ k parameters; "
        r"tuning needs at least \S+ MiB on the process, activations aside; pre-training needs at least .*",
        artifact.meta["summary"],
    )
    report = json.loads(artifact.path("report.json").read_text())
    assert artifact.meta == report | {"summary": artifact.meta["summary"]}
    assert not list(root.rglob(".probe-*")), "the probe is gone"


def test_the_same_again_is_the_same(root: Path) -> None:
    first = run(root)
    found = run(root, scratch="another")
    assert (found.prefix, found.digest, found.manifest) == (first.prefix, first.digest, first.manifest)
    shutil.rmtree(root / "default")
    again = run(root, scratch="a-third")
    assert (again.prefix, again.digest, again.meta) == (first.prefix, first.digest, first.meta)


def test_another_manifest_or_another_file_has_another_key(root: Path) -> None:
    first = run(root)
    assert run(root, seed=1).prefix != first.prefix
    rewrite(root, "seed.jsonl", rows_of(root, "seed.jsonl")[:-1])
    assert run(root).prefix not in {first.prefix}


def test_a_stage_s_message_is_the_summary(root: Path) -> None:
    supervisor = Supervisor(
        config=config_of(root), scratch=root.parent / "pod", termination_message=root.parent / "message"
    )
    supervisor.artifacts["preflight"] = artifact = run(root)
    assert supervisor._result("Done").message == artifact.meta["summary"]
    assert supervisor._result("UserError", message="spec.x is wrong").message == "spec.x is wrong"
    assert supervisor._result("TryAgain").message == "", "a summary is no reason to fail"


# ---- images


def test_rows_without_their_image_are_counted(root: Path) -> None:
    seed = rows_of(root, "seed.jsonl")
    rewrite(root, "seed.jsonl", [*seed[:-1], seed[-1] | {"image": "no-such.png"}])
    pairs = rows_of(root, "pairs.jsonl")
    many = [pairs[0] | {"id": f"q{number}"} for number in range(30)]
    rewrite(root, "pairs.jsonl", [*many, pairs[1] | {"image": "../up.png"}])
    artifact = run(root)
    counts = {"spec.data.seed.instructions": 1, "spec.data.pretraining": 1}
    assert artifact.meta["missingImages"] == artifact.meta["badRows"] == counts
    assert artifact.meta["rows"]["spec.data.seed.instructions"] == 23
    assert "1 seed rows can't be used, for want of their image; 1 pre-training pairs" in artifact.meta["summary"]


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (
            "bank.jsonl",
            r"spec\.data\.bank \(inputs/bank\.jsonl\): 9 of 90 rows can't be used, more than data\.maxBadRowFraction \(0\.05\) allows: "
            r"row 82: image 'gone/81\.png' is not a file below data\.images; .*and 6 more",
        ),
        (
            "pairs.jsonl",
            r"spec\.data\.pretraining \(inputs/pairs\.jsonl\): 9 of 16 rows can't be used, more than data\.maxBadRowFraction .* allows: "
            r"p7: image 'gone/7\.png' is not a file below data\.images.*",
        ),
    ],
)
def test_too_many_rows_without_their_image(root: Path, file: str, says: str) -> None:
    rows = rows_of(root, file)
    kept = len(rows) - 9
    rewrite(root, file, rows[:kept] + [row | {"image": f"gone/{kept + n}.png"} for n, row in enumerate(rows[kept:])])
    changes: dict[str, Any] = {"pretraining": {"maxSteps": None, "epochs": 1.0}} if file == "pairs.jsonl" else {}
    with pytest.raises(BadDataError) as raised:
        run(root, **changes)
    assert re.fullmatch(says, str(raised.value)), str(raised.value)


def test_pairs_that_training_may_never_come_to_are_only_counted(root: Path) -> None:
    rows = rows_of(root, "pairs.jsonl")
    rewrite(root, "pairs.jsonl", [*rows[:8], *(row | {"image": "gone.png"} for row in rows[8:])])
    assert run(root, pretraining={"maxSteps": 1}).meta["missingImages"] == {"spec.data.pretraining": 8}


def test_images_that_do_not_decode(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = Images.open

    def open_and_count(self: Images, name: str) -> Any:
        opened.append(name)
        return real(self, name)

    monkeypatch.setattr(Images, "open", open_and_count)
    (root / "inputs" / "images" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nno more than a beginning")
    assert re.search(r"; 1 of \d\d images looked at can't be used; ", run(root).meta["summary"])
    assert len(opened) <= 4 * (FIRST + DRAWN)
    assert len(opened) == len(set(opened))
    for path in (root / "inputs" / "images").iterdir():
        path.write_bytes(b"\x89PNG\r\n\x1a\nno more than a beginning")
    with pytest.raises(
        BadDataError,
        match=r"spec\.data\.seed\.instructions: the images of 12 of 12 rows drawn from it can't be used, and "
        r"data\.maxBadRowFraction \(0\.05\) can't allow as many of all: image '\d+\.png' does not decode",
    ):
        run(root)


@pytest.mark.parametrize(
    ("bad", "of", "than", "sure"),
    [
        (0, 12, 0.05, False),
        (3, 12, 0.05, False),
        (9, 12, 0.05, True),
        (12, 12, 0.05, True),
        (12, 12, 0.5, False),
        (12, 12, 1.0, False),
        (3, 3, 0.05, False),
        (1, 12, 0.0, True),
    ],
)
def test_what_a_sample_proves(bad: int, of: int, than: float, sure: bool) -> None:
    assert surely_more(bad, of=of, than=than) == sure


def test_marks_part_names_evenly() -> None:
    names = [f"{number:06}.jpg" for number in range(2 * MARKED_NAMES)]
    marks = marks_of([None, *names, *names])
    assert len(marks) == NUM_MARKS
    places = [0, *(names.index(mark) for mark in marks), len(names)]
    assert {after - before for before, after in pairwise(places)} == {2 * MARKED_NAMES // 16}
    assert marks_of(names[:100]) == []
    unusable = ["", "../x", "a\n", "x" * 2000]
    assert marks_of([*unusable * MARKED_NAMES, *names]) == marks, "no service is told what is no key"


# ---- overlap


def share_images(root: Path, *, same_name: bool) -> None:
    """Evaluation rows on the images of seed rows 0 and 1, by name or by content."""
    rows = rows_of(root, "eval.jsonl")
    for number in (0, 1):
        if same_name:
            rows[number]["image"] = f"{number}.png"
        else:
            shutil.copyfile(root / "inputs/images" / f"{number}.png", root / "inputs/images" / f"copy-{number}.png")
            rows[number]["image"] = f"copy-{number}.png"
    rewrite(root, "eval.jsonl", rows)


@pytest.mark.parametrize("same_name", [True, False])
def test_shared_images_are_counted(root: Path, same_name: bool) -> None:
    share_images(root, same_name=same_name)
    shared = sum(row["image"] in ("0.png", "1.png") for row in rows_of(root, "seed.jsonl"))
    meta = run(root).meta
    assert shared > 2
    assert meta["evaluationOverlap"] == {
        "spec.data.seed.instructions": {"rows": shared, "images": shared, "evaluation": {"held-out": shared}},
        "spec.data.pretraining": {"rows": 2, "images": 2, "evaluation": {"held-out": 2}},
    }
    assert f"{shared} seed rows share an image with evaluation set held-out and are left out" in meta["summary"]
    assert "2 pre-training pairs share an image with evaluation set held-out and are learned from" in meta["summary"]


def test_shared_texts_are_counted_with_their_set(root: Path) -> None:
    words = " ".join(f"word{number}" for number in range(13))
    other = [
        {"id": row["id"], "image": row["image"], "instruction": "quite another question?", "answer": "no"}
        for row in rows_of(root, "eval.jsonl")
    ]
    rewrite(root, "other.jsonl", [*other[1:], other[0] | {"instruction": f"so: {words}"}])
    seed = rows_of(root, "seed.jsonl")
    rewrite(root, "seed.jsonl", [seed[0] | {"instruction": f"tell me {words} now"}, *seed[1:]])
    sets = [
        {"name": "held-out", "items": "inputs/eval.jsonl"},
        {"name": "other", "items": "inputs/other.jsonl"},
    ]
    meta = run(root, data={"evaluation": sets}).meta
    assert meta["evaluationOverlap"] == {
        "spec.data.seed.instructions": {"rows": 1, "images": 0, "evaluation": {"other": 1}}
    }
    assert "1 seed rows share an image or a text with evaluation set other and are left out" in meta["summary"]


def test_an_image_of_two_sets_counts_in_both(root: Path) -> None:
    share_images(root, same_name=True)
    rewrite(root, "other.jsonl", rows_of(root, "eval.jsonl")[:1])
    sets = [
        {"name": "held-out", "items": "inputs/eval.jsonl"},
        {"name": "other", "items": "inputs/other.jsonl"},
    ]
    found = run(root, data={"evaluation": sets}).meta["evaluationOverlap"]["spec.data.pretraining"]
    assert found == {"rows": 2, "images": 2, "evaluation": {"held-out": 2, "other": 1}}


def test_a_seed_that_is_all_held_out(root: Path) -> None:
    rewrite(root, "seed.jsonl", [row | {"image": "33.png"} for row in rows_of(root, "seed.jsonl")])
    with pytest.raises(
        BadDataError,
        match=r"spec\.data\.seed\.instructions \(inputs/seed\.jsonl\): all 24 items are also in data\.evaluation \(held-out\); "
        "give other instructions to learn from",
    ):
        run(root)


def test_what_is_left_out_can_not_be_drawn(root: Path) -> None:
    bank = rows_of(root, "bank.jsonl")
    rewrite(root, "bank.jsonl", [row | {"image": "33.png"} if n < 80 else row for n, row in enumerate(bank)])
    with pytest.raises(
        UserError, match=r"items of spec\.data\.bank over 2 rounds .*, but the bank holds 10; lower them"
    ):
        run(root)


# ---- the hub's commits


def test_a_run_stays_at_the_commits_that_preflight_saw(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch moves on while preflight runs; all that it reads, and later stages, are at the first commit."""
    local = {"hf://o/teacher": root / "inputs/models/teacher", "hf://datasets/o/data@v1": root / "inputs"}
    branch = {"hf://o/teacher": [COMMIT], "hf://datasets/o/data@v1/seed.jsonl": ["b" * 40]}
    asked: list[str] = []

    def commit_of(source: str, *, field: str) -> str:
        del field
        if source in branch:
            return branch[source].pop(0)  # an IndexError the second time
        asked.append(source)
        return source.partition("@")[2].partition("/")[0]

    def fetch(source: str, *, field: str) -> Path:
        del field
        assert source == f"hf://datasets/o/data@{'b' * 40}/seed.jsonl", "at a commit"
        return local["hf://datasets/o/data@v1"] / "seed.jsonl"

    def listing(source: str, *, field: str) -> Any:
        from comd_trainer.store import hub
        from comd_trainer.store.listing import local_listing

        assert source == f"hf://o/teacher@{COMMIT}"
        found = local_listing(local["hf://o/teacher"], source=source, field=field)
        return type(found)(
            **{**vars(found), "folder": None, "fingerprint": lambda: hub.fingerprint(source, field=field)}
        )

    for name, fake in (("commit_of", commit_of), ("fetch", fetch), ("listing", listing)):
        monkeypatch.setattr(f"comd_trainer.store.hub.{name}", fake)
    written: dict[str, Any] = {
        "teacher": {"checkpoint": {"source": "hf://o/teacher"}},
        "data": {"seed": {"instructions": "hf://datasets/o/data@v1/seed.jsonl"}},
    }
    artifact = run(root, **written)
    assert artifact.meta["revisions"] == {
        "hf://o/teacher": COMMIT,
        "hf://datasets/o/data@v1/seed.jsonl": "b" * 40,
    }
    later = pinned(config_of(root, **written).spec, artifact.meta)
    assert later.teacher.checkpoint is not None
    assert later.teacher.checkpoint.source == f"hf://o/teacher@{COMMIT}"
    assert later.data.seed.instructions == f"hf://datasets/o/data@{'b' * 40}/seed.jsonl"
    assert later.data.images == "inputs/images", "what lies elsewhere stays as it is"
    prints = artifact.meta["fingerprints"]
    assert prints["hf://o/teacher"] == prints[f"hf://o/teacher@{COMMIT}"]
    storage = Storage(uri=root.as_uri())
    sources = Sources(storage, open_store(storage.uri, storage.s3), root.parent / "cache")
    check_unchanged(later, prints, sources)
    assert pinned(later, artifact.meta) == later
    assert pinned(later, {}) == later, "an artifact without commits pins nothing"


def test_a_later_stage_reads_from_the_pinned_sources(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = {
        "revisions": {"hf://o/teacher": COMMIT},
        "fingerprints": {"x": "sha256:" + hashlib.sha256().hexdigest()},
    }
    config = config_of(root, teacher={"checkpoint": {"source": "hf://o/teacher"}}).replace(
        stage="round-1", round=1, phases=["teach"]
    )
    supervisor = Supervisor(config=config, scratch=root.parent / "pod", termination_message=root.parent / "message")
    preflight = run(root)
    supervisor.artifacts["preflight"] = type(preflight)(
        **{**vars(preflight), "manifest": preflight.manifest.replace(meta=meta)}
    )
    monkeypatch.setattr("comd_trainer.supervisor.check_unchanged", lambda *_: None)
    seen: list[str] = []
    monkeypatch.setattr(
        supervisor,
        "_run_phase",
        lambda *_, **__: seen.append(supervisor.config.spec.teacher.checkpoint.source),  # type: ignore[union-attr]
    )
    supervisor._run_phases()
    assert seen == [f"hf://o/teacher@{COMMIT}"]


def test_it_starts_without_the_libraries_that_take_their_time() -> None:
    code = "import sys, comd_trainer.preflight; print([name for name in ('torch', 'transformers', 'deepspeed') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

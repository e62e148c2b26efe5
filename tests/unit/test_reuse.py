"""Phases that another run has finished: found by content and code, and never believed unseen."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from comd_api.profile import resolve
from comd_api.run import RunSpec, S3Options, Storage
from comd_api.stage import MAX_TERMINATION_MESSAGE, ReusedStage, StageConfig, StageResult
from comd_api.status import ArtifactRef, Counts, GroupScore, Score
from comd_trainer import reuse
from comd_trainer.keys import phase_prefix
from comd_trainer.store.artifacts import Artifact, publish
from comd_trainer.store.stores import Store, open_store
from tests.e2e.world import manifest

KEY = "0123456789abcdef" * 4


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store", S3Options())


def config(run: str, *, reuse: Literal["Always", "Never"] = "Always") -> StageConfig:
    spec = RunSpec.model_validate(manifest()["spec"]).replace(storage=Storage(uri="file:///s"), reuse=reuse)
    return StageConfig(namespace="default", run=run, stage="round-1", round=1, phases=["teach"], spec=resolve(spec))


def made(store: Store, tmp_path: Path, *, run: str = "first", key: str = KEY, **meta: Any) -> Artifact:
    """The artifact of a phase that a run has finished and offers."""
    out = tmp_path / f"out-{run}"
    out.mkdir()
    (out / "answers.jsonl").write_text("red\n")
    artifact = publish(
        store,
        prefix=phase_prefix(config(run), "teach", key),
        kind="teach",
        key=key,
        folder=out,
        meta=meta,
        cache_dir=tmp_path / "cache",
    )
    reuse.offer(artifact, phase="teach", key=key, store=store)
    return artifact


def look(
    store: Store, tmp_path: Path, *, run: str = "second", key: str = KEY, noted_only: bool = False, **options: Any
) -> Artifact | None:
    asking = config(run, **options)
    return reuse.find(asking, "teach", key=key, store=store, cache_dir=tmp_path / "cache", noted_only=noted_only)


def said(**entry: str) -> bytes:
    return json.dumps(entry).encode()


def test_a_run_finds_its_own_and_what_others_have_made(store: Store, tmp_path: Path) -> None:
    assert look(store, tmp_path) is None
    artifact = made(store, tmp_path)
    assert look(store, tmp_path) == artifact, "it is not copied"
    assert look(store, tmp_path, reuse="Never") is None
    assert look(store, tmp_path, run="first", reuse="Never") == artifact, "its own is its own"
    assert look(store, tmp_path, key="f" * 64) is None
    assert reuse.is_taken_over(artifact, config("second"))
    assert not reuse.is_taken_over(artifact, config("first"))
    assert reuse.is_taken_over(artifact, config("firs")), "a name that another one begins with"


def test_other_code_makes_its_own(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(store, tmp_path)
    monkeypatch.setattr(reuse, "code_digest", lambda: "0" * 64)
    assert look(store, tmp_path) is None


def test_the_code_is_that_of_the_sources_and_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def digest() -> str:
        reuse.code_digest.cache_clear()
        return reuse.code_digest()

    first = digest()
    assert digest() == first
    with monkeypatch.context() as patch:
        known = reuse._version
        patch.setattr(reuse, "_version", lambda library: "9" if library == "torch" else known(library))
        assert digest() != first
    package = tmp_path / "made_up"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(reuse, "OWN_PACKAGES", ("made_up",))
    before = digest()
    (package / "loss.py").write_text("x = 1\n")
    assert len({before, digest(), first}) == 3
    reuse.code_digest.cache_clear()


def test_a_store_may_be_moved(store: Store, tmp_path: Path) -> None:
    artifact = made(store, tmp_path)
    (tmp_path / "store").rename(tmp_path / "moved")
    moved = look(open_store(f"file://{tmp_path}/moved", S3Options()), tmp_path)
    assert moved is not None
    assert moved.digest == artifact.digest
    assert moved.path("answers.jsonl").read_text() == "red\n"


def test_what_was_taken_over_stays(store: Store, tmp_path: Path) -> None:
    """Else the keys of what a run has made from it would not be found by its next Job."""
    first = made(store, tmp_path)
    assert look(store, tmp_path) == first
    newer = made(store, tmp_path, run="newer")
    assert look(store, tmp_path, run="third") == newer
    (tmp_path / "store" / reuse.entry_path("teach", KEY)).unlink()
    assert look(store, tmp_path) == first
    assert look(store, tmp_path, run="fourth") is None
    (tmp_path / "store" / first.stored_path("answers.jsonl")).unlink()
    assert look(store, tmp_path) is None
    own = made(store, tmp_path, run="second")
    assert look(store, tmp_path) == own


def test_a_later_job_takes_over_only_what_an_earlier_one_has(store: Store, tmp_path: Path) -> None:
    """With one Job for each phase: another artifact than the one that was built on would be another run."""
    first = made(store, tmp_path)
    assert look(store, tmp_path, noted_only=True) is None
    assert reuse.lost(config("second"), "teach", key=KEY, store=store) is None
    left = f"{phase_prefix(config('second'), 'teach', KEY)}/partial/checkpoint"
    store.write(left, b"of an attempt that was stopped")
    assert look(store, tmp_path) == first
    assert not store.exists(left)
    assert look(store, tmp_path, noted_only=True) == first
    (tmp_path / "store" / first.prefix / "manifest.json").unlink()
    made(store, tmp_path, run="third")
    assert look(store, tmp_path, noted_only=True) is None
    assert reuse.lost(config("second"), "teach", key=KEY, store=store) == first.uri


def test_what_is_offered_is_whole(store: Store, tmp_path: Path) -> None:
    def offered() -> bool:
        return reuse.is_offered("teach", key=KEY, store=store, cache_dir=tmp_path / "cache")

    assert not offered()
    artifact = made(store, tmp_path)
    assert offered()
    (tmp_path / "store" / artifact.stored_path("answers.jsonl")).unlink()
    assert not offered(), "so that whoever makes it next offers it"


@pytest.mark.parametrize("damage", ["gone", "file", "size", "entry", "other", "elsewhere", "digest", "told"])
def test_what_is_wrong_is_made_anew(
    store: Store, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    artifact = made(store, tmp_path)
    entry = reuse.entry_path("teach", KEY)
    file = artifact.stored_path("answers.jsonl")
    root = tmp_path / "store"
    match damage:
        case "gone":
            (root / artifact.prefix / "manifest.json").unlink()
        case "file":
            (root / file).unlink()
        case "size":
            (root / file).write_text("red, or blue\n")
        case "entry":
            (root / entry).write_text("{")
        case "other":
            other = made(store, tmp_path, run="other", key="e" * 64)
            store.write(entry, said(prefix=other.prefix, digest=other.digest))
        case "elsewhere":
            store.write(entry, said(prefix="../x", digest=artifact.digest))
        case "digest":
            store.write(entry, said(prefix=artifact.prefix, digest="sha256:" + "0" * 64))
        case "told":
            file = f"{artifact.prefix}/manifest.json"
            manifest = json.loads(store.read(file)) | {"meta": {"stop": "x" * 2000}}
            store.write(file, json.dumps(manifest).encode())
    assert look(store, tmp_path) is None
    assert "phase teach can't be taken over" in caplog.text
    again = made(store, tmp_path, run="second")
    assert look(store, tmp_path, run="third") == again, "the entry is mended"


def test_answers_of_another_runs_teacher_are_not_counted_again(store: Store, tmp_path: Path) -> None:
    theirs = made(store, tmp_path, counts={"train": 24, "teacherAnswers": 24})
    ours = made(store, tmp_path, run="second", key="e" * 64, counts={"compared": 9, "teacherAnswers": 5})

    def counts(run: str, **phases: Artifact) -> Counts | None:
        return reuse.account(phases, config(run)).counts  # type: ignore[arg-type]

    assert counts("first", teach=theirs) == Counts(train=24, teacher_answers=24)
    assert counts("second", teach=theirs) == Counts(train=24, teacher_answers=0)
    assert counts("second", teach=theirs, answer=ours) == Counts(train=24, compared=9, teacher_answers=5)
    assert counts("second", answer=ours, teach=theirs) == Counts(train=24, compared=9, teacher_answers=5)
    assert counts("second", teach=ours, answer=ours) == Counts(compared=9, teacher_answers=10)
    assert counts("second") is None


def stage(number: int, *, evaluations: int) -> ReusedStage:
    """As a round of a nightly run tells of itself."""
    groups = [GroupScore(name=f"group-{index}", value=1 / 3, num_items=10) for index in range(8)]
    scores = [
        Score(
            evaluation=f"held-out-{each}", role=role, value=2 / 3, low=1 / 7, high=5 / 7, num_items=400, groups=groups
        )
        for each in range(evaluations)
        for role in ("student", "teacher")
    ]
    uri = f"s3://a-bucket/distillation/default/digits-nightly-29412345/round-{number}/tune/0123456789abcdef"
    refs = [ArtifactRef(name=name, uri=uri, digest="sha256:" + "0" * 64) for name in ("student", "pools")]
    counts = Counts(train=1000, compared=1000, fresh=100, hard=300, easy=700, dropped=1, accepted=600, rejected=900)
    return ReusedStage(name=f"round-{number}", artifacts=refs, counts=counts, scores=scores)


@pytest.mark.parametrize(("evaluations", "fit"), [(0, 8), (1, 5), (2, 3), (4, 2), (8, 1)])
@pytest.mark.parametrize("number", [1, 2, 5, 20, 39])
def test_as_many_stages_are_told_as_there_is_room_for(number: int, evaluations: int, fit: int) -> None:
    stages = [stage(index, evaluations=evaluations) for index in range(number)]
    text = StageResult(exit_class="Done", message="x" * 300, reused=stages).to_termination_message()
    assert len(text.encode()) <= MAX_TERMINATION_MESSAGE
    told = StageResult.model_validate_json(text)
    assert len(told.reused) >= min(number, fit)
    assert told.message == "x" * 300, "what preflight has found is not cut for them"
    assert [each.name for each in told.reused] == [each.name for each in stages[: len(told.reused)]]
    assert [ref.name for ref in told.reused[-1].artifacts] == ["student", "pools"], "the next stage needs them"
    for each, whole in zip(told.reused, stages, strict=False):
        assert each.artifacts[0] == whole.artifacts[0]
        assert each.counts == whole.counts
        assert [score.value for score in each.scores] == pytest.approx(
            [score.value for score in whole.scores], abs=1e-6
        )

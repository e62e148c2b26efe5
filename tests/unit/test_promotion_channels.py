"""The pointer of a channel: moved by one at a time, never lost, and moved back by hand."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from comd_api.exit_codes import BadDataError, TryAgainError, UserError
from comd_api.profile import resolve
from comd_api.run import RunSpec, S3Options, Storage
from comd_api.stage import StageConfig
from comd_trainer.data.rows import write_rows
from comd_trainer.outcome import Facts, Outcome, Passed, leave_outcome
from comd_trainer.promotion import channels, command
from comd_trainer.promotion.stage import promote
from comd_trainer.reuse import Entry
from comd_trainer.store.artifacts import Artifact, publish
from comd_trainer.store.stores import Store, open_store
from tests.e2e.world import manifest
from tests.unit.test_promotion_compare import asked

FACTS = Facts(content="0" * 64, student="1" * 64)


class Runs:
    """Students of several runs in one store, each with its answers to the evaluation `held-out`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store: Store = open_store((root / "store").as_uri(), S3Options())

    def made(self, run: str, kind: str, name: str, fill: Callable[[Path], Any], **meta: Any) -> Artifact:
        out = self.root / f"{run}-{kind}"
        out.mkdir()
        fill(out / name)
        prefix = f"default/{run}/round-1/{kind}/k"
        return publish(
            self.store, prefix=prefix, kind=kind, key="k", folder=out, meta=meta, cache_dir=self.root / "cache"
        )

    def finish(self, run: str, right: str, *, before: Sequence[Passed] = (), **recipe: Any) -> Artifact:
        """A run whose student answers so. recipe: of its evaluation."""
        student = self.made(run, "tune", "model.safetensors", lambda file: file.write_text(run))
        answers = asked(right, evaluation="held-out")
        evaluation = self.made(
            run, "evaluate", "predictions.jsonl", lambda file: write_rows(file, answers), recipe=recipe
        )
        passed = [*before, Passed(stage="round-1", student=student.digest, evaluation=Entry.to(evaluation))]
        outcome = Outcome(stage="round-1", student=Entry.to(student), facts=FACTS, passed=passed, finished=True)
        spec = RunSpec.model_validate(manifest()["spec"])
        leave_outcome(outcome, spec=spec, store=self.store, namespace="default", run=run)
        return student

    def promote(self, run: str, student: Artifact, **promotion: Any) -> tuple[Artifact, bool]:
        spec = RunSpec.model_validate(manifest()["spec"] | {"promotion": {"evaluation": "held-out", **promotion}})
        spec = spec.replace(storage=Storage(uri=self.store.uri))
        config = StageConfig(namespace="default", run=run, stage="promote", phases=["promote"], spec=resolve(spec))
        cache, scratch = self.root / "cache", self.root / f"scratch-{run}"
        return promote(config, student=student, store=self.store, cache=cache, scratch=scratch)

    def by_hand(self, to: str | None = None, channel: str = "stable") -> str:
        asked_for = command.Request(storage=Storage(uri=self.store.uri), channel=channel, to=to)
        return "\n".join(command.promote_by_hand(asked_for))

    @property
    def pointer(self) -> channels.Pointer:
        standing = channels.read_pointer(self.store, "stable")
        assert standing is not None
        return standing.pointer


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def told(artifact: Artifact) -> str:
    return str(artifact.meta["summary"])


def test_a_better_student_takes_the_place_and_a_worse_one_does_not(runs: Runs) -> None:
    first, worse, better = runs.finish("one", "110000"), runs.finish("two", "100000"), runs.finish("three", "111111")
    assert told(runs.promote("one", first)[0]) == "promoted to channels/stable.json: the first of this channel"
    refused, _ = runs.promote("two", worse, confidence=0.5)
    assert told(refused).startswith("not promoted to channels/stable.json: held-out 0.167 against 0.333 (-0.167")
    assert refused.meta["promoted"] is False
    assert runs.pointer.digest == first.digest
    assert runs.promote("three", better, confidence=0.9)[0].meta["promoted"] is True
    pointer = runs.pointer
    assert (pointer.uri, pointer.digest, pointer.run) == (better.uri, better.digest, "default/three")
    assert [each.run for each in channels.history(runs.store, "stable")] == ["default/three", "default/one"]
    wire = json.loads((runs.root / "store" / "channels" / "stable.json").read_text())
    assert {"uri", "digest", "scores", "run", "time"} <= wire.keys()
    assert wire == json.loads((runs.root / "store" / channels.record_path("stable", pointer.record)).read_text())


def test_a_run_promotes_once_also_when_it_is_applied_again_after_a_roll_back(runs: Runs) -> None:
    first, better = runs.finish("one", "00000"), runs.finish("two", "11111")
    runs.promote("one", first)
    made, again = runs.promote("two", better)
    assert (made.meta["promoted"], again) == (True, False)
    assert "points to default/one now" in runs.by_hand("previous")
    assert runs.pointer.digest == first.digest
    assert runs.promote("two", better) == (made, True)
    assert runs.pointer.digest == first.digest, "who has rolled back is not overruled"


def test_killed_between_the_move_and_its_own_account(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    first, better = runs.finish("one", "00000"), runs.finish("two", "11111")
    runs.promote("one", first)
    with monkeypatch.context() as patch:
        patch.setattr("comd_trainer.promotion.stage.publish", _killed)
        with pytest.raises(KeyboardInterrupt):
            runs.promote("two", better)
    record = runs.pointer.record
    assert runs.promote("two", better)[0].meta["promoted"] is True
    assert runs.pointer.record == record, "moved once"


def _killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_pointer_that_somebody_moves_meanwhile_is_left_alone(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    students = {
        name: runs.finish(name, right) for name, right in (("one", "00000"), ("two", "11111"), ("three", "11111"))
    }
    runs.promote("one", students["one"])
    before = runs.pointer
    real = channels.Pointer.to_bytes

    def slow(self: channels.Pointer) -> bytes:
        if self.run == "default/two":
            monkeypatch.setattr(channels.Pointer, "to_bytes", real)
            runs.promote("three", students["three"])
        return real(self)

    monkeypatch.setattr(channels.Pointer, "to_bytes", slow)
    made, _ = runs.promote("two", students["two"])
    assert made.meta["promoted"] is False
    assert (
        "was moved by somebody else meanwhile: it pointed to the student of run default/one and points to that of run default/three now; "
        "nothing was overwritten"
    ) in told(made)
    assert "comd promote --to default/two" in told(made)
    assert runs.pointer.run == "default/three"
    assert runs.pointer.previous == before.record
    records = {file.stem for file in (runs.root / "store" / "channels" / "stable").iterdir()}
    assert records == {before.record, runs.pointer.record}, "the loser's record is gone"


def test_of_many_that_promote_at_once_all_but_one_are_told(runs: Runs) -> None:
    names = [f"run-{number}" for number in range(6)]
    students = {name: runs.finish(name, "11111") for name in names}
    with ThreadPoolExecutor(6) as pool:
        ends = list(pool.map(lambda name: runs.promote(name, students[name])[0], names))
    promoted = [name for name, end in zip(names, ends, strict=True) if end.meta["promoted"]]
    assert [f"default/{name}" for name in promoted] == [runs.pointer.run]
    for end in ends:
        assert end.meta["promoted"] or "moved by somebody else" in told(end) or "nothing was gained" in told(end)


def test_rolled_back_before_the_run_could_say_what_it_has_done(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    first, better = runs.finish("one", "00000"), runs.finish("two", "11111")
    runs.promote("one", first)
    with monkeypatch.context() as patch:
        patch.setattr("comd_trainer.promotion.stage.publish", _killed)
        with pytest.raises(KeyboardInterrupt):
            runs.promote("two", better)
    runs.by_hand("previous")
    made, _ = runs.promote("two", better)
    assert (made.meta["promoted"], runs.pointer.digest) == (False, first.digest)
    assert "it was promoted before, and somebody has moved the channel since" in told(made)


def edit(runs: Runs, path: str, **changes: Any) -> None:
    wire = json.loads(runs.store.read(path))
    runs.store.write(path, json.dumps({**wire, **changes}).encode())


def test_a_history_that_makes_no_sense_ends(runs: Runs) -> None:
    for name, right in (("one", "000000"), ("two", "111110"), ("three", "111111")):
        runs.promote(name, runs.finish(name, right), confidence=0.5)
    newest, middle, _ = channels.history(runs.store, "stable")
    edit(runs, channels.record_path("stable", middle.record), previous=newest.record)
    assert len(runs.by_hand().splitlines()) == 3, "a circle is gone round once"
    runs.store.write(channels.record_path("stable", middle.record), b"{}")
    assert "does not parse (uri: Field required)" in runs.by_hand().splitlines()[-1]
    edit(runs, "channels/stable.json", previous="../../x")
    with pytest.raises(BadDataError, match=r"does not parse .previous: "):
        runs.by_hand()
    edit(runs, "channels/stable.json", previous=None, digest="sha256:" + "e" * 64)
    with pytest.raises(BadDataError, match=r"digest is not that of outcome\.student"):
        runs.by_hand()


def test_by_hand_in_no_store(runs: Runs) -> None:
    nowhere = command.Request(storage=Storage(uri=(runs.root / "nowhere").as_uri()), channel="stable")
    with pytest.raises(UserError, match=r"--storage file://.*/nowhere: there is no such folder"):
        command.promote_by_hand(nowhere)


def test_what_can_t_be_compared_is_not_promoted(runs: Runs) -> None:
    first, better = runs.finish("one", "00000"), runs.finish("two", "11111")
    runs.promote("one", first)
    (runs.root / "store" / "default/one/round-1/evaluate/k/manifest.json").unlink()
    made, _ = runs.promote("two", better)
    assert "what the promoted student of run default/one has answered is gone" in told(made)
    assert "points to default/two now" in runs.by_hand("default/two")


def test_a_pointer_that_makes_no_sense_is_not_overwritten(runs: Runs) -> None:
    student = runs.finish("one", "11111")
    runs.store.write("channels/stable.json", b"{}")
    with pytest.raises(BadDataError, match=r"channels/stable\.json does not parse"):
        runs.promote("one", student)
    assert runs.store.read("channels/stable.json") == b"{}"


def test_the_run_s_own_outcome_is_of_its_student(runs: Runs) -> None:
    runs.finish("one", "11111")
    other = runs.finish("two", "11111")
    with pytest.raises(UserError, match=r"default/one/outcome\.json is not of this run's student"):
        runs.promote("one", other)
    with pytest.raises(UserError, match=r"default/nobody/outcome\.json is not"):
        runs.promote("nobody", other)


def test_by_hand(runs: Runs) -> None:
    runs.store.write("inputs", b"")
    assert "is not there: nothing was promoted yet" in runs.by_hand()
    for name in ("one", "two"):
        runs.finish(name, "1")
        assert f"points to default/{name} now" in runs.by_hand(f"default/{name}")
    assert "points to default/two already" in runs.by_hand("default/two")
    newest, oldest = channels.history(runs.store, "stable")
    assert runs.by_hand().splitlines()[1:] == [
        f"* {newest.record}  default/two  by comd promote",
        f"  {oldest.record}  default/one  by comd promote",
    ]
    runs.by_hand(oldest.record)
    assert (runs.pointer.run, runs.pointer.reason) == ("default/one", f"back to {oldest.record} by comd promote")
    assert len(list(channels.history(runs.store, "stable"))) == 3, "going back is a move as well"
    runs.by_hand("previous")
    assert runs.pointer.run == "default/two"


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("previous", "has pointed nowhere else before"),
        ("20260101T000000Z-00000000", "has no such record"),
        ("default/nobody", "no round of such a run was finished"),
        ("a/b/c", "write NAMESPACE/RUN"),
        ("../x", "write NAMESPACE/RUN"),
        ("/", "write NAMESPACE/RUN"),
        ("", "has no such record"),
    ],
)
def test_by_hand_to_nowhere(runs: Runs, to: str, words: str) -> None:
    runs.finish("one", "1")
    runs.by_hand("default/one")
    with pytest.raises(UserError, match=words):
        runs.by_hand(to)
    assert runs.pointer.run == "default/one"


SETS: dict[str, Any] = {"sets": [["held-out", "ExactMatch", "sha256:a"]]}


@pytest.mark.parametrize(
    ("then", "now", "compared"),
    [
        (SETS, SETS, True),
        (SETS, {"sets": [["held-out", "ExactMatch", "sha256:b"]]}, False),
        (SETS, {"sets": [["held-out", "MultipleChoice", "sha256:a"]]}, False),
        (SETS, {**SETS, "decoding": {"maxNewTokens": 9}}, False),
        (SETS, {"sets": [*SETS["sets"], ["other", "ExactMatch", "sha256:c"]], "images": "more"}, True),
    ],
)
def test_both_must_have_been_asked_the_same_way(
    runs: Runs, then: dict[str, Any], now: dict[str, Any], compared: bool
) -> None:
    first, better = runs.finish("one", "00000", **then), runs.finish("two", "11111", **now)
    runs.promote("one", first)
    made, _ = runs.promote("two", better)
    assert made.meta["promoted"] == compared
    assert (
        compared
        or "held-out was another one, or asked in another way, when the promoted student of run default/one"
        in told(made)
    )


def test_what_a_run_has_asked_the_promoted_student_itself_counts_more(runs: Runs) -> None:
    """The evaluation set has changed since, and the run has begun with that student."""
    first = runs.finish("one", "11111", **SETS)
    runs.promote("one", first)
    now = {"sets": [["held-out", "ExactMatch", "sha256:b"]]}
    answers = runs.made(
        "two",
        "again",
        "predictions.jsonl",
        lambda file: write_rows(file, asked("00000", evaluation="held-out")),
        recipe=now,
    )
    began = Passed(
        stage="pretrain", student=first.digest, evaluation=Entry(prefix=answers.prefix, digest=answers.digest)
    )
    better = runs.finish("two", "11111", before=[began], **now)
    made, _ = runs.promote("two", better)
    assert made.meta["promoted"] is True
    assert "held-out 1.000 against 0.000" in told(made)


def test_a_roll_back_needs_the_student_alone(runs: Runs) -> None:
    first, better = runs.finish("one", "00000"), runs.finish("two", "11111")
    runs.promote("one", first)
    runs.promote("two", better)
    (runs.root / "store" / "default/one/round-1/evaluate/k/manifest.json").unlink()
    runs.by_hand("previous")
    assert runs.pointer.digest == first.digest
    (runs.root / "store" / "default/two/round-1/evaluate/k/manifest.json").unlink()
    runs.by_hand("default/two")
    assert (runs.pointer.digest, runs.pointer.scores) == (better.digest, [])


def test_by_hand_to_what_is_gone(runs: Runs) -> None:
    student = runs.finish("one", "1")
    (runs.root / "store" / student.stored_path("model.safetensors")).unlink()
    with pytest.raises(BadDataError, match="lacks its file"):
        runs.by_hand("default/one")
    assert channels.read_pointer(runs.store, "stable") is None


def test_by_hand_while_somebody_else_does(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.finish("one", "1")
    monkeypatch.setattr(type(runs.store), "swap", lambda *_, **__: b"not json")
    with pytest.raises(
        TryAgainError, match="does not parse any more; nothing was overwritten; look where it points now"
    ):
        runs.by_hand("default/one")

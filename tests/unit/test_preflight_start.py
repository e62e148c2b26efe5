"""Where a run starts from, as `preflight` finds it, and whether there is anything to do."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comd_api.exit_codes import UserError
from comd_api.profile import resolve
from comd_api.run import RunSpec, S3Options, Storage
from comd_api.stage import StageConfig
from comd_trainer.data.rows import Item, Turn, write_rows
from comd_trainer.handover import look_back
from comd_trainer.outcome import (
    Facts,
    Outcome,
    Passed,
    content_digest,
    leave_outcome,
    outcome_of,
    read_outcome,
    student_digest,
)
from comd_trainer.preflight.start import find_start, find_unchanged
from comd_trainer.promotion.channels import move
from comd_trainer.reuse import Entry
from comd_trainer.store.artifacts import Artifact, publish
from comd_trainer.store.stores import Store, open_store
from tests.e2e.world import manifest

CONTENT = "a" * 64


def spec_of(**changes: Any) -> RunSpec:
    return resolve(RunSpec.model_validate(manifest()["spec"] | changes))


def items(count: int) -> list[Item]:
    return [
        Item(id=f"seed/{n}", image=None, turns=(Turn(role="user", text=f"q {n}"),), origin="seed") for n in range(count)
    ]


class Before:
    """A run `before` of one store, which has come to something."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store: Store = open_store((root / "store").as_uri(), S3Options())
        self.student = self.made("tune", "model.safetensors", lambda file: file.write_text("weights"))
        self.pools = self.made("augment", "cache.jsonl", lambda file: write_rows(file, items(3)))
        self.outcome = Outcome(
            stage="round-2",
            student=Entry.to(self.student),
            pools=Entry.to(self.pools),
            facts=Facts(content=CONTENT, student=student_digest(spec_of())),
            passed=[Passed(stage="round-2", student=self.student.digest)],
            finished=True,
        )
        self.leave(self.outcome)

    def made(self, kind: str, name: str, fill: Callable[[Path], Any]) -> Artifact:
        out = self.root / kind
        out.mkdir()
        fill(out / name)
        prefix = f"default/before/round-2/{kind}/k"
        return publish(
            self.store, prefix=prefix, kind=kind, key="k", folder=out, meta={}, cache_dir=self.root / "cache"
        )

    def leave(self, outcome: Outcome) -> None:
        leave_outcome(outcome, spec=spec_of(), store=self.store, namespace="default", run="before")

    def config(self, **changes: Any) -> StageConfig:
        spec = spec_of(**changes).replace(storage=Storage(uri=self.store.uri))
        return StageConfig(namespace="default", run="after", stage="preflight", phases=["preflight"], spec=spec)

    def find(self, **changes: Any) -> Any:
        return find_start(spec_of(**changes), namespace="default", store=self.store, cache_dir=self.root / "cache")

    def unchanged(self, content: str = CONTENT, since: str | None = "before") -> Any:
        config = self.config(**({"skipIfUnchangedSince": since} if since else {}))
        return find_unchanged(config, content, store=self.store, cache_dir=self.root / "cache")


@pytest.fixture
def before(tmp_path: Path) -> Before:
    return Before(tmp_path)


def test_a_run_by_name(before: Before) -> None:
    assert before.find() is None
    start = before.find(startFrom={"run": "before"})
    assert (start.student, start.pools) == (before.student, before.pools)
    assert [each.id for each in start.items] == ["seed/0", "seed/1", "seed/2"]
    assert "run before (round-2)" in start.words


def test_a_store_may_have_been_moved(before: Before) -> None:
    (before.root / "store").rename(before.root / "moved")
    before.store = open_store((before.root / "moved").as_uri(), S3Options())
    assert before.find(startFrom={"run": "before"}).student.digest == before.student.digest


def test_a_student_alone(before: Before) -> None:
    given = {"uri": before.student.uri, "digest": before.student.digest}
    start = before.find(startFrom={"artifact": given})
    assert (start.student, start.pools, start.items) == (before.student, None, [])
    assert before.find(startFrom={"artifact": given | {"uri": given["uri"] + "/"}}).student == before.student


def test_where_a_channel_points(before: Before) -> None:
    with pytest.raises(
        UserError, match=r"spec.startFrom.channel: .*channels/stable.json is not there, so that nothing was promoted"
    ):
        before.find(startFrom={"channel": "stable"})
    move(
        before.store,
        "stable",
        uri=before.student.uri,
        digest=before.student.digest,
        scores=[],
        run="default/before",
        outcome=before.outcome,
        reason="the first",
        before=None,
    )
    shutil.rmtree(before.root / "store" / "default" / "before" / "outcome.json", ignore_errors=True)
    start = before.find(startFrom={"channel": "stable"})
    assert (start.student, start.pools) == (before.student, before.pools)


OTHER = "sha256:" + "f" * 64


def gone(before: Before) -> dict[str, Any]:
    (before.root / "store" / before.student.stored_path("model.safetensors")).unlink()
    return {"run": "before"}


def nonsense(before: Before) -> dict[str, Any]:
    before.store.write("default/before/outcome.json", b"[]")
    return {"run": "before"}


def of_another_phase(before: Before) -> dict[str, Any]:
    before.leave(before.outcome.replace(student=before.outcome.pools))
    return {"run": "before"}


def hurt(before: Before) -> dict[str, Any]:
    file = before.root / "store" / before.pools.stored_path("cache.jsonl")
    file.write_text(file.read_text().replace("seed", "sead"))
    return {"run": "before"}


WRONG: dict[str, tuple[Callable[[Before], dict[str, Any]], str]] = {
    "no such run": (
        lambda _: {"run": "nobody"},
        r"spec.startFrom.run: no round of default/nobody was finished in file://",
    ),
    "its files are gone": (gone, r"spec.startFrom.run: artifact .* lacks its file 'model.safetensors'"),
    "its outcome makes no sense": (nonsense, r"spec.startFrom.run: .*outcome.json does not parse"),
    "it is no student": (
        of_another_phase,
        r"spec.startFrom.run: .* was made by the phase augment, not by pretrain or tune",
    ),
    "its pools are damaged": (hurt, r"spec.startFrom.run: artifact .* the file 'cache.jsonl' is damaged"),
    "another digest": (
        lambda before: {"artifact": {"uri": before.student.uri, "digest": OTHER}},
        r"spec.startFrom.artifact: .* was changed: its digest is sha256:",
    ),
    "no student": (
        lambda before: {"artifact": {"uri": before.pools.uri, "digest": before.pools.digest}},
        r"was made by the phase augment and is no student; give uri and digest of a run's status.student",
    ),
    "another store": (
        lambda before: {"artifact": {"uri": "s3://bucket/x/tune/k", "digest": before.student.digest}},
        r"does not lie in this run's store",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_can_t_be_started_from(before: Before, case: str) -> None:
    given, words = WRONG[case]
    with pytest.raises(UserError, match=words):
        before.find(startFrom=given(before))


def test_another_student_can_t_go_on_with_these_weights(before: Before) -> None:
    composed = manifest()["spec"]["student"]["composed"]
    other = {"composed": {**composed, "projector": {"type": "Linear"}}}
    with pytest.raises(UserError, match=r"run before had another spec\.student than this manifest"):
        before.find(startFrom={"run": "before"}, student=other)


def test_nothing_has_changed(before: Before) -> None:
    assert before.unchanged(since=None) is None
    assert before.unchanged().student == before.student
    assert before.unchanged("b" * 64) is None
    assert before.unchanged(since="nobody") is None
    before.leave(before.outcome.replace(finished=False))
    assert before.unchanged() is None, "a run that has failed, or is under way, stands for nothing"
    before.leave(before.outcome)
    gone(before)
    assert before.unchanged() is None, "what is not there any more can't stand for anything"


def test_a_run_without_anything_to_do_passes_on_what_stands_for_it(before: Before) -> None:
    preflight = before.made("preflight", "report.json", lambda file: file.write_text("{}"))
    meta = {"unchanged": before.outcome.to_wire(), "start": {}}
    preflight = replace(preflight, manifest=preflight.manifest.replace(meta=meta))
    found = look_back(before.config(), preflight, store=before.store, cache_dir=before.root / "cache")
    assert (found.start, found.reused) == ({"student": before.student}, [])
    assert read_outcome(before.store, namespace="default", run="after") == before.outcome


FINGERPRINTS: dict[str, str] = {
    name: f"sha256:{name}"
    for name in (
        *("inputs/models/vision-tower", "inputs/models/language-model", "inputs/models/teacher", "inputs/images"),
        *("inputs/pairs.jsonl", "inputs/seed.jsonl", "inputs/bank.jsonl", "inputs/eval.jsonl"),
    )
}


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"startFrom": {"run": "before"}}, True),
        ({"skipIfUnchangedSince": "before"}, True),
        ({"promotion": {"evaluation": "held-out"}}, False),
        ({"rounds": {**manifest()["spec"]["rounds"], "earlyStop": {"evaluation": "held-out"}}}, False),
        ({"startFrom": {"channel": "stable"}}, True),
        ({"startFrom": {"artifact": {"uri": "file:///x", "digest": "sha256:" + "e" * 64}}}, False),
        ({"retry": {"limit": 9}, "reuse": "Never", "execution": "Phase"}, True),
        ({"trainer": {"image": "other", "numProcPerNode": 2}}, True),
        ({"storage": {"uri": "s3://bucket/other"}}, True),
        ({"seed": 7}, False),
        ({"teacher": {"checkpoint": {"source": "inputs/models/vision-tower"}}}, False),
        ({"rounds": {**manifest()["spec"]["rounds"], "count": 3}}, False),
        ({"training": {**manifest()["spec"]["training"], "learningRate": 0.5}}, False),
        ({"training": {**manifest()["spec"]["training"], "microBatchSize": 1}}, True),
    ],
)
def test_the_content_is_data_and_recipe(before: Before, changes: dict[str, Any], same: bool) -> None:
    digest = content_digest(before.config(), FINGERPRINTS)
    assert (content_digest(before.config(**changes), FINGERPRINTS) == digest) == same
    assert content_digest(before.config(**changes).replace(run="x", stage="round-1", round=1), FINGERPRINTS) == (
        content_digest(before.config(**changes), FINGERPRINTS)
    )


@pytest.mark.parametrize("source", FINGERPRINTS)
def test_new_data_is_another_content(before: Before, source: str) -> None:
    changed = FINGERPRINTS | {source: "sha256:other"}
    assert content_digest(before.config(), changed) != content_digest(before.config(), FINGERPRINTS)


def left(
    before: Before, stage: str, *, given: dict[str, Artifact], stop: str | None = None, **made: Artifact
) -> Outcome | None:
    facts = before.outcome.facts
    return outcome_of(stage, spec=spec_of(), made=made, given=given, facts=facts, stop=stop)  # type: ignore[arg-type]


def test_what_a_stage_leaves(before: Before) -> None:
    tune, pools = before.student, before.pools
    teach = before.made("teach", "items.jsonl", lambda file: write_rows(file, items(2)))

    def pair(stage: str, given: dict[str, Artifact], **made: Artifact) -> Any:
        outcome = left(before, stage, given=given, **made)  # type: ignore[arg-type]
        return None if outcome is None else (outcome.student.prefix, outcome.pools and outcome.pools.prefix)

    assert pair("pretrain", {}, evaluate=teach) is None, "the student of the manifest"
    assert pair("pretrain", {}, pretrain=tune) == (tune.prefix, None)
    assert pair("pretrain", {"student": tune, "pools": pools}, evaluate=teach) == (tune.prefix, pools.prefix)
    assert pair("round-1", {}, teach=teach, tune=tune) == (tune.prefix, teach.prefix), "the seed is all there is"
    assert pair("round-1", {"pools": pools}, teach=teach, tune=tune) == (tune.prefix, teach.prefix), (
        "with what came before"
    )
    assert pair("round-1", {}, teach=teach, tune=tune, augment=pools) == (tune.prefix, teach.prefix), (
        "new items are taught next"
    )
    assert pair("round-2", {"pools": pools}, teach=teach, tune=tune) == (tune.prefix, pools.prefix)


def test_when_no_round_follows(before: Before) -> None:
    def finished(stage: str, stop: str | None = None) -> bool:
        outcome = left(before, stage, given={}, stop=stop, tune=before.student)
        assert outcome is not None
        return outcome.finished

    assert not finished("round-1")
    assert finished("round-1", stop="too few hard items")
    assert finished("round-2")


def test_who_comes_late_changes_nothing(before: Before) -> None:
    """A pod that was given up for lost ends its stage when the run is further on."""
    other = before.made("pretrain", "model.safetensors", lambda file: file.write_text("other"))
    first = left(before, "round-1", given={}, tune=other)
    assert first is not None
    before.leave(first)
    second = outcome_of(
        "round-2", spec=spec_of(), made={"tune": before.student}, given={}, facts=before.outcome.facts, before=first
    )
    assert second is not None
    assert [each.stage for each in second.passed] == ["round-1", "round-2"]
    before.leave(second)
    before.leave(first)
    assert read_outcome(before.store, namespace="default", run="before") == second
    # A run that is begun anew and comes to something else is no late comer.
    anew = left(before, "round-1", given={}, tune=before.student)
    assert anew is not None
    before.leave(anew)
    assert read_outcome(before.store, namespace="default", run="before") == anew


def test_a_channel_that_fits_and_one_that_does_not(before: Before) -> None:
    both = {"channel": "stable", "run": "before"}
    assert "run before" in before.find(startFrom=both).words, "nothing was promoted yet"
    facts = before.outcome.facts
    for student, words in ((facts.student, "channel stable"), ("0" * 64, "run before")):
        before.store.delete("channels/stable.json")
        move(
            before.store,
            "stable",
            uri=before.student.uri,
            digest=before.student.digest,
            scores=[],
            run="default/promoted",
            outcome=before.outcome.replace(facts=facts.replace(student=student)),
            reason="",
            before=None,
        )
        assert words in before.find(startFrom=both).words

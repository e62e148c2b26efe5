"""What a run has come to: where other runs may start from, and what their students are compared with.

    <namespace>/<run>/outcome.json     replaced when a stage that has made a student ends

The run itself need not be there any more: neither its object in the cluster nor the folder in which it ran.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from comd_api.base import ApiModel, Digest
from comd_api.early_stop import Scored, early_stop_reason
from comd_api.exit_codes import BadDataError
from comd_api.run import RunSpec
from comd_api.stage import StageConfig
from comd_api.stages import phases_of, round_of, stage_names
from comd_api.status import ArtifactRef, PhaseName, Score, ShortText
from comd_trainer.phases import phase_module
from comd_trainer.reuse import Entry, at_stage
from comd_trainer.store.artifacts import Artifact, open_ref
from comd_trainer.store.stores import Store

STUDENT_KINDS, POOL_KINDS = ("pretrain", "tune"), ("augment", "teach")
"""Phases whose artifacts are students, and pools."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Facts(ApiModel):
    """What `preflight` knows of a run before anything is made."""

    content: Sha256
    """Over data and recipe (`content_digest`)."""
    student: Sha256
    """Over what the manifest says of the student."""


class Passed(ApiModel):
    """A stage that is done."""

    stage: ShortText
    student: Digest
    """Of what it ended with."""
    evaluation: Entry | None = None
    """The artifact `evaluate` of that student."""


class Outcome(ApiModel):
    """Paths are relative, so that a store may be moved."""

    stage: ShortText
    """The last one that is done."""
    student: Entry
    pools: Entry | None = None
    """The artifact that has every item that the student was taught, and no other: in its `cache.jsonl` or, where the seed is all, its
    `items.jsonl`."""
    facts: Facts
    passed: Annotated[list[Passed], Field(min_length=1, max_length=40)]
    """All stages up to this one."""
    finished: bool
    """Whether no round follows."""

    @property
    def evaluation(self) -> Entry | None:
        """Of the student."""
        return self.passed[-1].evaluation

    def evaluation_of(self, student: Digest) -> Entry | None:
        """What this run has asked a student that it had."""
        return next((each.evaluation for each in self.passed if each.student == student and each.evaluation), None)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An outcome whose artifacts are there."""

    outcome: Outcome
    student: Artifact
    pools: Artifact | None


def outcome_path(namespace: str, run: str) -> str:
    return f"{namespace}/{run}/outcome.json"


def read_outcome(store: Store, *, namespace: str, run: str, strict: bool = True) -> Outcome | None:
    """None where no stage of the run has made a student; without `strict`, too, where what is there makes no sense.

    Raises:
        BadDataError: what is there does not parse.
    """
    path = outcome_path(namespace, run)
    try:
        return Outcome.model_validate_json(store.read(path))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        if not strict:
            return None
        raise BadDataError(f"{store.uri_of(path)} does not parse ({what_is_wrong(error)})") from error


def what_is_wrong(error: ValidationError) -> str:
    """`outcome.passed: Field required`."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else str(first["msg"])


def leave_outcome(outcome: Outcome, *, spec: RunSpec, store: Store, namespace: str, run: str) -> None:
    """Replaces what the run has come to before, unless that is further on and went through this very stage: then somebody who was given up
    for lost comes late. spec: of the run."""
    path = outcome_path(namespace, run)
    data = json.dumps(outcome.to_wire(), indent=1).encode()
    there = _content(store, path)
    if there != data and not _is_further(there, outcome, spec=spec):
        store.write(path, data)


def _content(store: Store, path: str) -> bytes | None:
    try:
        return store.read(path)
    except FileNotFoundError:
        return None


def _is_further(there: bytes | None, outcome: Outcome, *, spec: RunSpec) -> bool:
    if there is None:
        return False
    try:
        other = Outcome.model_validate_json(there)
    except ValidationError:
        return False
    names = stage_names(spec)
    if other.facts != outcome.facts or other.stage not in names:
        return False
    return outcome.passed[-1] in other.passed[:-1] and names.index(other.stage) > names.index(outcome.stage)


def outcome_of(
    stage: str,
    *,
    spec: RunSpec,
    made: Mapping[PhaseName, Artifact],
    given: Mapping[str, Artifact],
    facts: Facts,
    before: Outcome | None = None,
    stop: str | None = None,
) -> Outcome | None:
    """What a stage leaves; None where there is no student of ours yet. given: what the stage was given, `student` and `pools`. stop: why no
    round follows. What `augment` makes is no part of its pools: the next round would have taught it."""
    student = made.get("tune") or made.get("pretrain") or given.get("student")
    if student is None:
        return None
    pools = (made.get("teach") if stage == "round-1" else None) or given.get("pools")
    evaluation = made.get("evaluate")
    names = stage_names(spec)
    earlier = [] if before is None or before.facts != facts else before.passed
    passed = [each for each in earlier if each.stage in names and names.index(each.stage) < names.index(stage)]
    entry = Entry.to(evaluation) if evaluation is not None else None
    passed.append(Passed(stage=stage, student=student.digest, evaluation=entry))
    return Outcome(
        stage=stage,
        student=Entry.to(student),
        pools=Entry.to(pools) if pools is not None else None,
        facts=facts,
        passed=passed,
        finished=stop is not None or round_of(stage) == spec.rounds.count,
    )


def ends_early(outcome: Outcome, *, spec: RunSpec, store: Store, cache_dir: Path) -> bool:
    """By `rounds.earlyStop`, as the operator will find when it reads the scores. Raises CorruptArtifactError when one is gone."""
    if spec.rounds.early_stop is None:
        return False
    done = []
    for each in outcome.passed:
        scores: list[Score] = []
        if each.evaluation is not None:
            artifact = open_entry(each.evaluation, "evaluate", store=store, cache_dir=cache_dir)
            scores = [Score.model_validate(score) for score in artifact.meta.get("scores", [])]
        done.append(Scored(each.stage, scores))
    return early_stop_reason(spec, done) is not None


def open_entry(entry: Entry, name: str, *, store: Store, cache_dir: Path) -> Artifact:
    """Raises CorruptArtifactError when it is gone or was changed."""
    ref = ArtifactRef(name=name, uri=store.uri_of(entry.prefix), digest=entry.digest)
    return open_ref(ref, store=store, cache_dir=cache_dir)


def open_outcome(outcome: Outcome, *, store: Store, cache_dir: Path) -> Opened:
    """Raises CorruptArtifactError when an artifact, or a file of one, is not there any more."""
    student = open_entry(outcome.student, "student", store=store, cache_dir=cache_dir)
    _check(student, kinds=STUDENT_KINDS)
    pools = None
    if outcome.pools is not None:
        pools = open_entry(outcome.pools, "pools", store=store, cache_dir=cache_dir)
        _check(pools, kinds=POOL_KINDS)
    return Opened(outcome=outcome, student=student, pools=pools)


def _check(artifact: Artifact, *, kinds: tuple[str, ...]) -> None:
    if artifact.manifest.kind not in kinds:
        raise BadDataError(
            f"{artifact.uri} was made by the phase {artifact.manifest.kind}, not by {' or '.join(kinds)}"
        )
    artifact.check_files()


def facts_of(config: StageConfig, *, fingerprints: Mapping[str, str], written: RunSpec) -> Facts:
    """config: with its sources pinned. written: its spec as the manifest has it, where a branch is the same branch next week."""
    return Facts(content=content_digest(config, fingerprints), student=student_digest(written))


def content_digest(config: StageConfig, fingerprints: Mapping[str, str]) -> str:
    """SHA-256 (hex) over the recipes of all phases and what decides how far they go: everything that a run comes to depends on but the
    code. Which run it starts from is no part of it, else no run that starts from another would ever be unchanged; nor is what changes cost
    and no content."""
    start, promotion = config.spec.start_from, config.spec.promotion
    spec = config.spec.replace(start_from=None, promotion=None)
    early_stop = spec.rounds.early_stop
    recipes: list[list[Any]] = [
        ["earlyStop", early_stop and early_stop.to_wire()],
        ["promotion", promotion and promotion.to_wire()],
        ["start", start.artifact.digest if start is not None and start.artifact is not None else None],
    ]
    for stage in stage_names(spec)[1:]:
        at = at_stage(config.replace(spec=spec), stage)
        recipes += [[stage, phase, phase_module(phase).recipe(at, fingerprints)] for phase in phases_of(spec, stage)]
    return _sha256(recipes)


def student_digest(spec: RunSpec) -> str:
    """SHA-256 (hex) over what the manifest says of the student."""
    return _sha256(spec.student.to_wire())


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

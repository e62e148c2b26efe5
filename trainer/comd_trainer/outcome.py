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

from comd_api.base import ApiModel
from comd_api.exit_codes import BadDataError
from comd_api.run import RunSpec
from comd_api.stage import StageConfig
from comd_api.stages import phases_of, stage_names
from comd_api.status import ArtifactRef, PhaseName, ShortText
from comd_trainer.phases import phase_module
from comd_trainer.reuse import Entry, at_stage
from comd_trainer.store.artifacts import Artifact, open_ref
from comd_trainer.store.stores import Store

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Facts(ApiModel):
    """What `preflight` knows of a run before anything is made."""

    content: Sha256
    """Over data and recipe (`content_digest`)."""
    student: Sha256
    """Over what the manifest says of the student."""


class Outcome(ApiModel):
    """Paths are relative, so that a store may be moved."""

    stage: ShortText
    """The last one that has made a student."""
    student: Entry
    pools: Entry | None = None
    """The artifact that has every item so far: in its `cache.jsonl` or, where the seed is all, its `items.jsonl`."""
    evaluation: Entry | None = None
    """The artifact `evaluate` of this student."""
    facts: Facts


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An outcome whose artifacts are there."""

    outcome: Outcome
    student: Artifact
    pools: Artifact | None


def outcome_path(namespace: str, run: str) -> str:
    return f"{namespace}/{run}/outcome.json"


def read_outcome(store: Store, *, namespace: str, run: str) -> Outcome | None:
    """None where no stage of the run has made a student.

    Raises:
        BadDataError: what is there does not parse.
    """
    path = outcome_path(namespace, run)
    try:
        return Outcome.model_validate_json(store.read(path))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise BadDataError(f"{store.uri_of(path)} does not parse ({error.errors()[0]['msg']})") from error


def write_outcome(outcome: Outcome, *, store: Store, namespace: str, run: str) -> None:
    store.write(outcome_path(namespace, run), json.dumps(outcome.to_wire(), indent=1).encode())


def outcome_of(
    stage: str, *, made: Mapping[PhaseName, Artifact], pools: Artifact | None, facts: Facts
) -> Outcome | None:
    """What a stage leaves; None where it makes no student. pools: those that the stage was given. A round without `augment` adds nothing to
    them, but round 1 brings the seed in."""
    student = made.get("tune") or made.get("pretrain")
    if student is None:
        return None
    first = made.get("teach") if stage == "round-1" else None
    newest = made.get("augment") or first or pools
    evaluation = made.get("evaluate")
    return Outcome(
        stage=stage,
        student=Entry.to(student),
        pools=Entry.to(newest) if newest is not None else None,
        evaluation=Entry.to(evaluation) if evaluation is not None else None,
        facts=facts,
    )


def open_entry(entry: Entry, name: str, *, store: Store, cache_dir: Path) -> Artifact:
    """Raises CorruptArtifactError when it is gone or was changed."""
    ref = ArtifactRef(name=name, uri=store.uri_of(entry.prefix), digest=entry.digest)
    return open_ref(ref, store=store, cache_dir=cache_dir)


def open_outcome(outcome: Outcome, *, store: Store, cache_dir: Path) -> Opened:
    """Raises CorruptArtifactError when an artifact, or a file of one, is not there any more."""
    student = open_entry(outcome.student, "student", store=store, cache_dir=cache_dir)
    student.check_files()
    pools = None
    if outcome.pools is not None:
        pools = open_entry(outcome.pools, "pools", store=store, cache_dir=cache_dir)
        pools.check_files()
    return Opened(outcome=outcome, student=student, pools=pools)


def facts_of(config: StageConfig, *, fingerprints: Mapping[str, str], written: RunSpec) -> Facts:
    """config: with its sources pinned. written: its spec as the manifest has it, where a branch is the same branch next week."""
    return Facts(content=content_digest(config, fingerprints), student=student_digest(written))


def content_digest(config: StageConfig, fingerprints: Mapping[str, str]) -> str:
    """SHA-256 (hex) over the recipes of all phases: everything that a run's artifacts depend on but the code. Where the run starts from is
    no part of it, else no run that starts from another would ever be unchanged; nor is what changes cost and no content."""
    spec = config.spec.replace(start_from=None, promotion=None)
    recipes: list[list[Any]] = []
    for stage in stage_names(spec)[1:]:
        at = at_stage(config.replace(spec=spec), stage)
        recipes += [[stage, phase, phase_module(phase).recipe(at, fingerprints)] for phase in phases_of(spec, stage)]
    return _sha256(recipes)


def student_digest(spec: RunSpec) -> str:
    """SHA-256 (hex) over what the manifest says of the student."""
    return _sha256(spec.student.to_wire())


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

"""Where a run starts from (`spec.startFrom`), and whether there is anything to do at all (`spec.skipIfUnchangedSince`)."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from comd_api.exit_codes import ComdError, TryAgainError, UserError
from comd_api.run import RunSpec
from comd_api.stage import StageConfig
from comd_api.start import StartingArtifact
from comd_api.status import ArtifactRef
from comd_trainer.data.rows import Item
from comd_trainer.outcome import (
    STUDENT_KINDS,
    Opened,
    Outcome,
    open_outcome,
    outcome_path,
    read_outcome,
    student_digest,
)
from comd_trainer.phases.inputs import all_items
from comd_trainer.promotion.channels import pointer_path, read_pointer
from comd_trainer.store.artifacts import Artifact, open_artifact, open_ref
from comd_trainer.store.stores import Store

log = logging.getLogger(__name__)

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Start:
    """What stands in place of `spec.student`."""

    words: str
    """`run nightly-1 (round-4)`."""
    student: Artifact
    pools: Artifact | None
    items: list[Item] = dataclasses.field(default_factory=list)
    """What its pools hold; none where round 1 goes over the whole seed."""

    def report(self) -> dict[str, Any]:
        """For preflight's artifact: by it the later stages begin with the same, whatever the run or channel comes to meanwhile."""
        refs = {"student": self.student} | ({"pools": self.pools} if self.pools is not None else {})
        return {name: {"prefix": ref.prefix, "digest": ref.digest} for name, ref in refs.items()}


def find_start(spec: RunSpec, *, namespace: str, store: Store, cache_dir: Path) -> Start | None:
    """Errors: UserError names the field when what it names is not there, is no student, or is not this manifest's student;
    TryAgainError when the store is away."""
    given = spec.start_from
    if given is None:
        return None
    if given.artifact is not None:
        return _of_artifact(given.artifact, store=store, cache_dir=cache_dir)
    if given.channel is not None and (given.run is None or _fits(spec, given.channel, store=store)):
        return _of_channel(spec, given.channel, store=store, cache_dir=cache_dir)
    assert given.run is not None, "a rule of the contract"
    return _of_run(spec, given.run, namespace=namespace, store=store, cache_dir=cache_dir)


def _fits(spec: RunSpec, channel: str, *, store: Store) -> bool:
    """Whether the channel points to a student of this manifest."""
    standing = _told(lambda: read_pointer(store, channel), field="spec.startFrom.channel")
    return standing is not None and standing.pointer.outcome.facts.student == student_digest(spec)


def _of_run(spec: RunSpec, run: str, *, namespace: str, store: Store, cache_dir: Path) -> Start:
    field = "spec.startFrom.run"
    outcome = _told(lambda: read_outcome(store, namespace=namespace, run=run), field=field)
    if outcome is None:
        raise UserError(
            f"{field}: no round of {namespace}/{run} was finished in {store.uri} ({outcome_path(namespace, run)} is not there); "
            "name a run of this namespace and store, or leave startFrom out"
        )
    opened = _opened(outcome, field=field, store=store, cache_dir=cache_dir)
    _check_student(spec, outcome, words=f"run {run}", field=field)
    return _start(opened, words=f"run {run} ({outcome.stage})", field=field)


def _of_channel(spec: RunSpec, channel: str, *, store: Store, cache_dir: Path) -> Start:
    field = "spec.startFrom.channel"
    standing = _told(lambda: read_pointer(store, channel), field=field)
    if standing is None:
        raise UserError(
            f"{field}: {store.uri_of(pointer_path(channel))} is not there, so that nothing was promoted yet; "
            "name a channel that is, or leave startFrom out"
        )
    pointer, outcome = standing.pointer, standing.pointer.outcome
    opened = _opened(outcome, field=field, store=store, cache_dir=cache_dir)
    _check_student(spec, outcome, words=f"run {pointer.run}, to which channel {channel} points,", field=field)
    return _start(opened, words=f"channel {channel} (run {pointer.run})", field=field)


def _of_artifact(given: StartingArtifact, *, store: Store, cache_dir: Path) -> Start:
    field = "spec.startFrom.artifact"
    ref = ArtifactRef(name="student", uri=given.uri.rstrip("/"), digest=given.digest)

    def look() -> Artifact:
        artifact = open_ref(ref, store=store, cache_dir=cache_dir)
        if artifact.manifest.kind not in STUDENT_KINDS:
            raise UserError(
                f"{artifact.uri} was made by the phase {artifact.manifest.kind} and is no student; "
                "give uri and digest of a run's status.student"
            )
        artifact.check_files()
        return artifact

    return Start(words=f"artifact {given.uri}", student=_told(look, field=field), pools=None)


def _start(opened: Opened, *, words: str, field: str) -> Start:
    pools = opened.pools
    items = _told(lambda: all_items(pools), field=field) if pools is not None else []
    return Start(words=words, student=opened.student, pools=pools, items=items)


def _opened(outcome: Outcome, *, field: str, store: Store, cache_dir: Path) -> Opened:
    return _told(lambda: open_outcome(outcome, store=store, cache_dir=cache_dir), field=field)


def _check_student(spec: RunSpec, outcome: Outcome, *, words: str, field: str) -> None:
    if student_digest(spec) != outcome.facts.student:
        raise UserError(
            f"{field}: {words} had another spec.student than this manifest; give the same one, or leave startFrom out to begin with "
            "this one"
        )


def _told(look: Callable[[], Found], *, field: str) -> Found:
    """What can't be found where the manifest says is the manifest's error."""
    try:
        return look()
    except TryAgainError:
        raise
    except ComdError as error:
        raise UserError(f"{field}: {error}") from error


def channel_sentence(store: Store, channel: str) -> str:
    """Where `spec.promotion.channel` points. Errors: UserError when that makes no sense; TryAgainError."""
    standing = _told(lambda: read_pointer(store, channel), field="spec.promotion.channel")
    where = store.uri_of(pointer_path(channel))
    return f"{where} points to run {standing.pointer.run}" if standing is not None else f"{where} is yet to be made"


def find_unchanged(config: StageConfig, content: str, *, store: Store, cache_dir: Path) -> Opened | None:
    """What the run `spec.skipIfUnchangedSince` has come to, when that was of the same content and is still there."""
    since = config.spec.skip_if_unchanged_since
    if since is None:
        return None
    try:
        outcome = read_outcome(store, namespace=config.namespace, run=since)
        if outcome is None or not outcome.finished or outcome.facts.content != content:
            ended = outcome is not None and outcome.finished
            words = "had other data or another recipe" if ended else "has not come to an end"
            log.info("run %s, since which nothing may have changed, %s", since, words)
            return None
        return open_outcome(outcome, store=store, cache_dir=cache_dir)
    except TryAgainError:
        raise
    except ComdError as error:
        log.warning("run %s can't stand for this one, which goes on: %s", since, error)
        return None


def open_started(report: Mapping[str, Any], *, store: Store, cache_dir: Path) -> dict[str, Artifact]:
    """The artifacts of `Start.report`, as preflight's artifact has them."""
    found = {name: open_artifact(store, each["prefix"], cache_dir=cache_dir) for name, each in report.items()}
    return {name: artifact for name, artifact in found.items() if artifact is not None}

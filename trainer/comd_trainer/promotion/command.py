"""`comd promote`: where a channel points and has pointed, and a way to point it elsewhere by hand, such as back."""

import re
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from pydantic import Field

from comd_api.base import FORMS, NAME_FORM, ApiModel, Name
from comd_api.exit_codes import BadDataError, TryAgainError, UserError
from comd_api.run import Storage
from comd_api.status import Score
from comd_trainer.outcome import Outcome, open_entry, outcome_path, read_outcome
from comd_trainer.promotion.channels import (
    CHANNELS,
    MovedError,
    Pointer,
    Standing,
    history,
    move,
    pointer_path,
    read_pointer,
)
from comd_trainer.promotion.stage import scores_of
from comd_trainer.store.artifacts import CorruptArtifactError
from comd_trainer.store.stores import Store, open_store

PREVIOUS = "previous"


class Request(ApiModel):
    """What `comd promote` asks of the trainer, which alone knows stores."""

    storage: Storage
    channel: Name
    to: str | None = Field(default=None, max_length=256)
    """`previous`, a record of the channel's history, or `namespace/run`; None only tells."""


def promote_by_hand(request: Request) -> list[str]:
    """Lines to print.

    Raises:
        UserError: there is no such record or run, or what it made is gone.
        TryAgainError: the store is away, or somebody else has moved the pointer meanwhile.
    """
    store = open_store(request.storage.uri, request.storage.s3, field="--storage")
    local = store.local_path(CHANNELS)
    if local is not None and not local.parent.is_dir():
        raise UserError(f"--storage {store.uri}: there is no such folder")
    if request.to is None:
        return listed(history(store, request.channel), where=store.uri_of(pointer_path(request.channel)))
    before = read_pointer(store, request.channel)
    with tempfile.TemporaryDirectory(prefix="comd-promote-") as folder:
        pointer = _move(store, request.channel, request.to, before, cache=Path(folder))
    if before is not None and pointer.record == before.pointer.record:
        return [f"{store.uri_of(pointer_path(request.channel))} points to {pointer.run} already"]
    return [f"{store.uri_of(pointer_path(request.channel))} points to {pointer.run} now: {pointer.uri}"]


def listed(moves: Iterator[Pointer], *, where: str) -> list[str]:
    """The newest first; the record's name is what `--to` takes. Errors: BadDataError when the pointer itself does not parse."""
    newest = next(moves, None)
    if newest is None:
        return [f"{where} is not there: nothing was promoted yet"]
    lines = [f"{where} points to {newest.uri}", f"* {newest.record}  {newest.run}  {newest.reason}"]
    try:
        lines += [f"  {each.record}  {each.run}  {each.reason}" for each in moves]
    except BadDataError as error:
        lines.append(f"  {error}")
    return lines


def _move(store: Store, channel: str, to: str, before: Standing | None, *, cache: Path) -> Pointer:
    target, outcome, scores, reason = _target(store, channel, to, cache=cache)
    student = open_entry(outcome.student, "student", store=store, cache_dir=cache)
    student.check_files()  # The rest of what the run has made may be gone.
    if before is not None and before.pointer.digest == student.digest:
        return before.pointer
    try:
        return move(
            store,
            channel,
            uri=student.uri,
            digest=student.digest,
            scores=scores,
            run=target,
            outcome=outcome,
            reason=reason,
            before=before,
        )
    except MovedError as error:
        raise TryAgainError(f"{error}; look where it points now (comd promote without --to), and try again") from error


def _target(store: Store, channel: str, to: str, *, cache: Path) -> tuple[str, Outcome, list[Score], str]:
    """Run, what it has come to, its student's scores, and the reason for the record."""
    if "/" in to:
        namespace, _, run = to.partition("/")
        if not re.fullmatch(NAME_FORM, namespace) or not re.fullmatch(NAME_FORM, run):
            raise UserError(f"--to {to!r}: write NAMESPACE/RUN, each of {FORMS[NAME_FORM]}")
        outcome = read_outcome(store, namespace=namespace, run=run)
        if outcome is None:
            path = outcome_path(namespace, run)
            raise UserError(f"--to {to}: no round of such a run was finished in {store.uri} ({path} is not there)")
        return to, outcome, _scores(outcome, store=store, cache=cache), "by comd promote"
    moves = history(store, channel)
    if to == PREVIOUS:
        # Back from where it stands, also when it was brought there by going back before.
        before = list(islice(moves, 2))[1:]
        if not before:
            raise UserError(f"--to previous: {store.uri_of(pointer_path(channel))} has pointed nowhere else before")
        found = before[0]
    else:
        at = next((each for each in moves if each.record == to), None)
        if at is None:
            raise UserError(
                f"--to {to}: channel {channel} has no such record; give one of those that comd promote lists without --to, previous, "
                "or NAMESPACE/RUN"
            )
        found = at
    return found.run, found.outcome, found.scores, f"back to {found.record} by comd promote"


def _scores(outcome: Outcome, *, store: Store, cache: Path) -> list[Score]:
    """None where the evaluation is gone."""
    if outcome.evaluation is None:
        return []
    try:
        return scores_of(open_entry(outcome.evaluation, "evaluate", store=store, cache_dir=cache))
    except CorruptArtifactError:
        return []

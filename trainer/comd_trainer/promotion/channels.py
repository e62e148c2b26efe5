"""The pointer of a channel, its history, and how it is moved."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from comd_api.base import ApiModel, Digest, Timestamp
from comd_api.exit_codes import BadDataError, ComdError, UserError
from comd_api.status import Score
from comd_trainer.outcome import Outcome, what_is_wrong
from comd_trainer.store.stores import Store

CHANNELS = "channels"
RecordName = Annotated[str, Field(pattern=r"^[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}$", max_length=25)]


class Pointer(ApiModel):
    """`channels/<channel>.json`, and the same once more in the record that stays."""

    uri: Annotated[str, Field(max_length=1024)]
    """Prefix of the student's artifact: the files that its `manifest.json` names are a checkpoint in Hugging Face layout."""
    digest: Digest
    scores: list[Score] = Field(default_factory=list)
    """Of the student, and of the teacher beside it."""
    run: str
    """`namespace/name`."""
    time: Timestamp
    """When the pointer was moved."""
    reason: str
    """Why, in a sentence."""
    record: RecordName
    """Name of the record."""
    previous: RecordName | None = None
    """Name of the record of the move before; None for the first of a channel."""
    outcome: Outcome
    """What a run with `startFrom.channel` begins with, and the next student is compared with."""

    @model_validator(mode="after")
    def _of_one_student(self) -> Self:
        if self.digest != self.outcome.student.digest:
            raise ValueError("digest is not that of outcome.student")
        return self

    def to_bytes(self) -> bytes:
        return (json.dumps(self.to_wire(), indent=1, sort_keys=True) + "\n").encode()


@dataclass(frozen=True)
class Standing:
    """Where the pointer stands, and the very bytes that say so: whoever moves it must have seen them."""

    pointer: Pointer
    raw: bytes


class MovedError(ComdError):
    """Somebody else has moved the pointer meanwhile. Nothing was overwritten."""


def pointer_path(channel: str) -> str:
    return f"{CHANNELS}/{channel}.json"


def record_path(channel: str, record: str) -> str:
    return f"{CHANNELS}/{channel}/{record}.json"


def read_pointer(store: Store, channel: str) -> Standing | None:
    """None where nothing was promoted yet. Errors: BadDataError when it does not parse."""
    return _read(store, pointer_path(channel))


def _read(store: Store, path: str) -> Standing | None:
    try:
        raw = store.read(path)
        return Standing(Pointer.model_validate_json(raw), raw)
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise BadDataError(f"{store.uri_of(path)} does not parse ({what_is_wrong(error)})") from error


def history(store: Store, channel: str) -> Iterator[Pointer]:
    """Where the pointer has stood, the newest first. It ends where a record was deleted, or names one that came later. Errors: BadDataError
    at one that does not parse."""
    found, seen = read_pointer(store, channel), set[str]()
    while found is not None and found.pointer.record not in seen:
        yield found.pointer
        seen.add(found.pointer.record)
        previous = found.pointer.previous
        found = _read(store, record_path(channel, previous)) if previous is not None else None


def move(
    store: Store,
    channel: str,
    *,
    uri: str,
    digest: str,
    scores: list[Score],
    run: str,
    outcome: Outcome,
    reason: str,
    before: Standing | None,
    now: datetime | None = None,
) -> Pointer:
    """Points the channel to a student, if it still is where `before` says. The record is written first: a pointer never names one that is
    not there.

    Raises:
        MovedError: it is somewhere else now.
    """
    when = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    previous = before.pointer.record if before is not None else None
    mark = hashlib.sha256(f"{run} {digest} {previous} {reason}".encode()).hexdigest()[:8]
    pointer = Pointer(
        uri=uri,
        digest=digest,
        scores=scores,
        run=run,
        time=when,
        reason=reason,
        record=f"{when.replace('-', '').replace(':', '')}-{mark}",
        previous=previous,
        outcome=outcome,
    )
    path = record_path(channel, pointer.record)
    store.write(path, pointer.to_bytes())
    expected = before.raw if before is not None else None
    try:
        raw = store.swap(pointer_path(channel), pointer.to_bytes(), expected=expected)
    except UserError:
        store.delete(path)  # After any other error the pointer may have been moved.
        raise
    if raw != pointer.to_bytes():
        store.delete(path)
        raise MovedError(_moved(store.uri_of(pointer_path(channel)), before, raw))
    return pointer


def _moved(where: str, before: Standing | None, raw: bytes | None) -> str:
    try:
        stands = (
            "is not there any more"
            if raw is None
            else f"points to that of run {Pointer.model_validate_json(raw).run} now"
        )
    except ValidationError:
        stands = "does not parse any more"
    was = f"the student of run {before.pointer.run}" if before is not None else "nothing"
    return f"{where} was moved by somebody else meanwhile: it pointed to {was} and {stands}; nothing was overwritten"

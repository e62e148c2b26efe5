"""Instruction rows from user files: our JSON Lines and LLaVA's conversations (method section 12, row 4).

A row that can't be used is dropped, named and counted; too many of them end the phase, because then the file is not
what its owner thinks.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from comd_api.exit_codes import BadDataError
from comd_trainer.data.rows import Item, Origin, Turn
from comd_trainer.data.text import has_half_character

IMAGE_TOKEN = "<image>"
"""LLaVA's place holder. The image's place is decided by the chat template, so the text must not name it again."""
SPEAKERS: Mapping[str, str] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
MAX_EXAMPLES = 3
"""Bad rows that an error or a log line names."""
MAX_CHOICES = 26


class RowError(ValueError):
    """Why a row can't be used."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a file holds: the items of its good rows, in file order, and one sentence for each bad row."""

    items: tuple[Item, ...]
    bad: tuple[str, ...]
    total: int
    """Rows of the file, good and bad. A conversation is one row and may hold several items."""
    numbers: Mapping[str, int] = field(default_factory=dict)
    """Row number, from 1, by item id."""


def read_rows(path: Path, *, field: str, prefix: str, origin: Origin) -> Rows:
    """Reads instruction rows. Item ids are `prefix` + the row's id, so that two files never share one; the turns of a
    conversation are numbered (`ID#1`, `ID#2` …). Raises BadDataError, which names `field`, for an id that comes twice
    and for a broken JSON list."""
    items: list[Item] = []
    bad: list[str] = []
    seen: Counter[str] = Counter()
    numbers: dict[str, int] = {}
    total = 0
    for number, row in raw_rows(path, field=field):
        total += 1
        try:
            made = _items_of(row, prefix=prefix, origin=origin, seen=seen)
        except RowError as error:
            bad.append(f"row {number}: {error}")
            continue
        for item in made:
            first = numbers.setdefault(item.id, number)
            if first != number:
                raise BadDataError(
                    f"{field}: rows {first} and {number} have the same id {item.id.removeprefix(prefix)!r}; "
                    "ids must be unique within a file"
                )
        items += made
    return Rows(items=tuple(items), bad=tuple(bad), total=total, numbers=numbers)


def drop_items(rows: Rows, reason: Callable[[Item], str | None]) -> Rows:
    """Drops further items for which `reason` gives one. A row counts as bad once, however many of its turns go."""
    kept: list[Item] = []
    bad: dict[int, str] = {}
    for item in rows.items:
        why = reason(item)
        if why is None:
            kept.append(item)
        else:
            bad.setdefault(rows.numbers[item.id], why)
    told = tuple(f"row {number}: {why}" for number, why in bad.items())
    return replace(rows, items=tuple(kept), bad=rows.bad + told)


def check_share(rows: Rows, *, field: str, source: str, max_bad_fraction: float) -> None:
    """Raises BadDataError when the file is empty or more than `max_bad_fraction` of its rows are bad."""
    if rows.total == 0:
        raise BadDataError(f"{field} ({source}) holds no rows; it needs at least one instruction")
    if len(rows.bad) > max_bad_fraction * rows.total or not rows.items:
        raise BadDataError(
            f"{field} ({source}): {len(rows.bad)} of {rows.total} rows can't be used, more than data.maxBadRowFraction "
            f"({max_bad_fraction:g}) allows: {examples(rows.bad)}"
        )


def examples(bad: Collection[str]) -> str:
    """The first few of many sentences, and how many more there are."""
    shown = list(bad)[:MAX_EXAMPLES]
    more = len(bad) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")


def metric_reason(item: Item, metric: str) -> str | None:
    """Why an item can't be scored by an evaluation metric, or None."""
    if item.reference is None:
        return "field answer is missing, which evaluation needs"
    if metric == "ExactMatch":
        return None
    letters = [chr(ord("A") + index) for index in range(len(item.choices))]
    if len(letters) < 2:
        return f"field choices must hold at least 2 options for {metric}, got {len(letters)}"
    if item.reference.strip() not in letters:
        return f"field answer must be a letter from A to {letters[-1]}, got {item.reference!r}"
    return None


def original_reason(item: Item) -> str | None:
    """Why an item can't be its own target, or None."""
    return None if item.reference is not None else "field answer is missing, which data.seed.targets Original needs"


def raw_rows(path: Path, *, field: str) -> Iterator[tuple[int, Any]]:
    """(row number from 1, row); a RowError in the place of a line that is not JSON. A JSON list is LLaVA's own layout;
    everything else is JSON Lines."""
    with path.open("rb") as file:
        start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"["):
        try:
            text = path.read_text(encoding="utf-8-sig")
            loaded = json.loads(text)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadDataError(f"{field} ({path.name}) starts as a JSON list but is not valid JSON: {error}") from error
        doubtful = _may_hold_halves(text)
        for number, row in enumerate(loaded, start=1):
            yield number, _with_whole_characters(row) if doubtful else row
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                text = line.decode("utf-8-sig")
                row = json.loads(text)
                yield number, _with_whole_characters(row) if _may_hold_halves(text) else row
            except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
                yield number, RowError(f"is not JSON ({error})")


def _may_hold_halves(text: str) -> bool:
    """UTF-8 has no surrogates; only JSON's escapes can bring them in."""
    return "\\ud" in text or "\\uD" in text


def _with_whole_characters(row: Any) -> Any:
    """The row, or a RowError in its place when a field holds text that can't be written down."""
    fields = row.items() if isinstance(row, dict) else [("", row)]
    for name, value in fields:
        if has_half_character(json.dumps([name, value], ensure_ascii=False)):
            return RowError(f"field {ascii(name)[1:-1]} holds half a surrogate pair, which is no character")
    return row


def _items_of(row: Any, *, prefix: str, origin: Origin, seen: Counter[str]) -> list[Item]:
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict):
        raise RowError(f"must be a JSON object, got {type(row).__name__}")
    row_id = _id(row)
    image = _optional_text(row, "image")
    group = _optional_text(row, "group")
    if "conversations" in row:
        turns = _turns(row["conversations"])
        # LLaVA-Instruct uses an image's id for its conversation, its detail and its reasoning row, so ids there are not
        # unique.
        seen[row_id] += 1
        row_id += f"~{seen[row_id]}" if seen[row_id] > 1 else ""
        users = [index for index, turn in enumerate(turns) if turn.role == "user"]
        return [
            Item(
                id=f"{prefix}{row_id}" + (f"#{count}" if len(users) > 1 else ""),
                image=image,
                turns=tuple(turns[: index + 1]),
                origin=origin,
                group=group,
                reference=turns[index + 1].text if index + 1 < len(turns) else None,
            )
            for count, index in enumerate(users, start=1)
        ]
    instruction = _text(row, "instruction")
    return [
        Item(
            id=prefix + row_id,
            image=image,
            turns=(Turn(role="user", text=instruction),),
            origin=origin,
            group=group,
            reference=_optional_text(row, "answer"),
            choices=_choices(row.get("choices")),
        )
    ]


def _id(row: Mapping[str, Any]) -> str:
    value = row.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise RowError("field id is missing" if value is None else f"field id must be a text, got {value!r}")
    return value


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        raise RowError(f"field {name} is missing")
    if not isinstance(value, str):
        raise RowError(f"field {name} must be a text, got {type(value).__name__}")
    return _clean(value, name)


def _optional_text(row: Mapping[str, Any], name: str) -> str | None:
    return None if row.get(name) is None else _text(row, name)


def _clean(value: str, name: str) -> str:
    text = value.replace(IMAGE_TOKEN, "").strip()
    if not text:
        raise RowError(f"field {name} is empty")
    return text


def _choices(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(choice, str) and choice.strip() for choice in value):
        raise RowError("field choices must be a list of texts")
    if len(value) > MAX_CHOICES:
        raise RowError(f"field choices may hold at most {MAX_CHOICES} options, got {len(value)}")
    return tuple(value)


def _turns(value: Any) -> list[Turn]:
    """Turns in strict alternation, the user's first."""
    if not isinstance(value, list) or not value:
        raise RowError("field conversations must be a list of turns")
    turns: list[Turn] = []
    for index, entry in enumerate(value):
        speaker = entry.get("from") if isinstance(entry, dict) else None
        text = entry.get("value") if isinstance(entry, dict) else None
        role = SPEAKERS.get(speaker) if isinstance(speaker, str) else None
        if role is None or not isinstance(text, str):
            raise RowError(f"conversations[{index}] must be {{from: human or gpt, value: text}}")
        expected = "user" if index % 2 == 0 else "assistant"
        if role != expected:
            raise RowError(f"conversations[{index}] must be the {expected}'s turn, got {speaker!r}")
        turns.append(Turn(role=expected, text=_clean(text, f"conversations[{index}].value")))  # type: ignore[arg-type]
    return turns

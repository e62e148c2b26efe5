"""The rows that phases hand to each other (method section 12, "One round, as data"). Plain data, one JSON object a line."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

Origin = Literal["seed", "hard", "easy", "fresh", "random"]
Label = Literal["hard", "easy", "dropped"]


@dataclass(frozen=True, kw_only=True)
class Turn:
    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, kw_only=True)
class Item:
    """One (image, instruction) pair. `turns` ends with the instruction, a user's turn; earlier turns are its history."""

    id: str
    image: str | None
    """Path below `data.images`; None for text alone."""
    turns: tuple[Turn, ...]
    origin: Origin
    round: int = 0
    """The round that made it; 0 for seed items."""
    parent: str | None = None
    """Id of the item that it was made from."""
    group: str | None = None
    reference: str | None = None
    """The known answer, for the assessor `Reference` and for `seed.targets: Original`. No other reader looks at it."""
    choices: tuple[str, ...] = ()
    """Options of a multiple-choice question, for evaluation."""

    @property
    def instruction(self) -> str:
        return self.turns[-1].text


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image and its caption, for pre-training."""

    id: str
    image: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    item: str
    """Id of the item."""
    model: str
    """Fingerprint of the model that answered."""
    text: str
    finish: Literal["stop", "length"]
    """`length`: cut at `maxNewTokens`."""


@dataclass(frozen=True, kw_only=True)
class Review:
    """One reply of the assessor on one item in one order."""

    item: str
    order: Literal["TS", "ST"]
    """Which answer stood first: teacher's or student's."""
    raw: str
    teacher: float | None
    """None when the reply never parsed: never a number."""
    student: float | None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    item: str
    label: Label
    teacher: float | None = None
    student: float | None = None
    gap: float | None = None
    """Teacher minus student."""
    order_disagreement: float | None = None
    """Absolute difference between the gaps in both orders."""
    equal: bool = False
    """The two answers were the same, so nobody was asked."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A new instruction that the augmentor proposed, and what became of it."""

    parent: str
    branch: Origin
    text: str
    accepted: bool
    reason: str = ""
    """Which filter turned it down."""
    neighbour: str | None = None
    """The older instruction that it resembles the most."""
    rouge: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


Row = TypeVar("Row")


def to_json(row: Any) -> str:
    """One line. Keys in the order of the fields and no float formatting of our own, so that equal rows are equal bytes."""
    return json.dumps(asdict(row), ensure_ascii=False, separators=(",", ":"))


def item_from_dict(row: dict[str, Any]) -> Item:
    return Item(**{**row, "turns": tuple(Turn(**turn) for turn in row["turns"]), "choices": tuple(row["choices"])})


def write_rows(path: Path, rows: Iterable[Any]) -> int:
    """Writes one row a line; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(to_json(row) + "\n")
            count += 1
    return count


def read_dicts(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    if row_type is Item:
        return [item_from_dict(row) for row in read_dicts(path)]  # type: ignore[misc]
    return [row_type(**row) for row in read_dicts(path)]

"""Captions and object boxes of images, for models that can't see them (method section 4b)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comd_api.exit_codes import BadDataError
from comd_trainer.data.instructions import RowError, Rows, check_share, raw_rows


@dataclass(frozen=True, kw_only=True)
class Box:
    label: str
    box: tuple[float, float, float, float]
    """Left, top, right, bottom; each in 0..1, as a share of the image's width or height."""


@dataclass(frozen=True, kw_only=True)
class Annotation:
    image: str
    """Path below `data.images`."""
    captions: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()

    @property
    def labels(self) -> frozenset[str]:
        return frozenset(box.label.casefold() for box in self.boxes)

    def as_text(self) -> str:
        """Captions, one a line, then objects with their boxes."""
        lines = list(self.captions)
        for box in self.boxes:
            lines.append(f"{box.label}: [{', '.join(f'{number:.3f}' for number in box.box)}]")
        if self.boxes:
            lines.append("(boxes are left, top, right, bottom, as shares of width and height)")
        return "\n".join(lines)


def read_annotations(path: Path, *, field: str, source: str, max_bad_fraction: float) -> dict[str, Annotation]:
    """By image. Rows are JSON Lines: `image`, `captions` (texts) and `boxes` (`{"label": …, "box": [x1, y1, x2, y2]}`),
    one of the two at least. Bad rows are dropped; too many raise BadDataError, as does an image that comes twice."""
    found: dict[str, Annotation] = {}
    bad: list[str] = []
    total = 0
    for number, row in raw_rows(path, field=field):
        total += 1
        try:
            annotation = _annotation(row)
        except RowError as error:
            bad.append(f"row {number}: {error}")
            continue
        if annotation.image in found:
            raise BadDataError(
                f"{field} ({source}) annotates the image {annotation.image!r} twice; give one row an image"
            )
        found[annotation.image] = annotation
    _check(bad, total=total, field=field, source=source, max_bad_fraction=max_bad_fraction)
    return found


def _check(bad: list[str], *, total: int, field: str, source: str, max_bad_fraction: float) -> None:
    if total and len(bad) <= max_bad_fraction * total:
        return
    check_share(
        Rows(items=(), bad=tuple(bad), total=total), field=field, source=source, max_bad_fraction=max_bad_fraction
    )


def _annotation(row: Any) -> Annotation:
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict) or not isinstance(row.get("image"), str) or not row["image"]:
        raise RowError("field image must be the path of an image")
    captions, boxes = row.get("captions") or [], row.get("boxes") or []
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise RowError("field captions must be a list of texts")
    if not isinstance(boxes, list):
        raise RowError("field boxes must be a list")
    if not captions and not boxes:
        raise RowError("has neither captions nor boxes")
    return Annotation(image=row["image"], captions=tuple(captions), boxes=tuple(_box(box) for box in boxes))


def _box(row: Any) -> Box:
    box = row.get("box") if isinstance(row, dict) else None
    label = row.get("label") if isinstance(row, dict) else None
    if not isinstance(label, str) or not label.strip() or not isinstance(box, list) or len(box) != 4:
        raise RowError('a box must be {"label": text, "box": [left, top, right, bottom]}')
    if not all(isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number <= 1 for number in box):
        raise RowError(f"the box of {label!r} must hold four numbers from 0 to 1, got {box}")
    return Box(label=label.strip(), box=(float(box[0]), float(box[1]), float(box[2]), float(box[3])))

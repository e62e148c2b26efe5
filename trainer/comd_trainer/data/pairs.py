"""Pre-training rows: an image and its caption (method section 3)."""

import logging
from pathlib import Path
from typing import Any

from comd_api.exit_codes import BadDataError
from comd_trainer.data.instructions import IMAGE_TOKEN, RowError, examples, raw_rows
from comd_trainer.data.rows import Pair

log = logging.getLogger(__name__)


def read_pairs(path: Path, *, field: str, max_bad_fraction: float) -> list[Pair]:
    """Pairs of a JSON Lines file, in file order. Rows are `id`, `image`, `caption`, or LLaVA's `conversations`, whose second turn is the
    caption. Bad rows are dropped, named and counted.

    Raises:
        BadDataError: no row is usable, or more than `max_bad_fraction` are not.
    """
    pairs: list[Pair] = []
    bad: list[str] = []
    seen: set[str] = set()
    total = 0
    for number, row in raw_rows(path, field=field):
        total += 1
        try:
            pair = _pair(row)
            if pair.id in seen:
                raise ValueError(f"id {pair.id!r} stands twice")
        except ValueError as error:
            bad.append(f"row {number}: {error}")
            continue
        seen.add(pair.id)
        pairs.append(pair)
    if not pairs or len(bad) > max_bad_fraction * total:
        raise BadDataError(
            f"{field} ({path.name}): {len(bad)} of {total} rows can't be used, more than data.maxBadRowFraction "
            f"({max_bad_fraction:g}) allows; rows are id, image, caption: {examples(bad) or 'the file is empty'}"
        )
    if bad:
        log.warning("%s: dropped %d of %d rows: %s", field, len(bad), total, examples(bad))
    return pairs


def _pair(row: Any) -> Pair:
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict):
        raise ValueError(f"must be a JSON object, got {type(row).__name__}")
    caption = row.get("caption")
    conversations = row.get("conversations")
    if (
        caption is None
        and isinstance(conversations, list)
        and len(conversations) >= 2
        and isinstance(conversations[1], dict)
    ):
        caption = conversations[1].get("value")
    values: dict[str, Any] = {"id": str(row.get("id", "")), "image": row.get("image"), "caption": caption}
    for name, value in values.items():
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"field {name} is missing or not a text")
    return Pair(id=values["id"], image=values["image"], caption=str(caption).replace(IMAGE_TOKEN, "").strip())

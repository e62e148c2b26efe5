"""Whether images decode, asked of a few of them: all are decoded, once, by the phase that first needs them."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from comd_api.exit_codes import BadDataError, UserError
from comd_api.run import RunSpec
from comd_trainer.data.images import BadImageError, Images
from comd_trainer.data.seeds import rng
from comd_trainer.preflight.named import IMAGES_FIELD
from comd_trainer.store.hashing import in_parallel
from comd_trainer.store.listing import Listing

log = logging.getLogger(__name__)

FIRST = 4
DRAWN = 12
"""Rows of each file whose images are looked at: the first ones, which a user looks at too, and some from anywhere."""
AT_ONCE = 16
CHANCE = 1e-9
"""A sample is taken for proof when a file that is just good enough would give one as bad less often than this."""


@dataclass(frozen=True, kw_only=True)
class SampledImages:
    looked_at: int = 0
    bad: int = 0
    example: str = ""
    """Why one of them can't be used."""


def look_at_sample(
    spec: RunSpec, names: Mapping[str, Sequence[str]], listing: Listing, *, scratch: Path
) -> SampledImages:
    """Decodes the images of a few rows of each file; `names` are those of all rows, by field. Nothing but these is fetched, into
    `scratch`.

    Raises:
        BadDataError: a sample leaves no doubt that a phase would refuse the file.
    """
    drawn = {field: _draw(len(rows), seed=spec.seed, field=field) for field, rows in names.items()}
    chosen = {
        field: ([*rows[:FIRST]], [rows[number] for number in drawn[field]]) for field, rows in names.items() if rows
    }
    distinct = sorted({name for first, rest in chosen.values() for name in [*first, *rest]})
    images = Images(listing.folder or scratch)
    problems = dict(
        zip(distinct, in_parallel(lambda name: _problem(images, name, listing), distinct, threads=AT_ONCE), strict=True)
    )
    for field, (_, rest) in chosen.items():
        bad = [why for name in rest if (why := problems[name]) is not None]
        if surely_more(len(bad), of=len(rest), than=spec.data.max_bad_row_fraction):
            raise BadDataError(
                f"{field}: the images of {len(bad)} of {len(rest)} rows drawn from it can't be used, and "
                f"data.maxBadRowFraction ({spec.data.max_bad_row_fraction:g}) can't allow as many of all: {bad[0]}"
            )
    found = [why for why in problems.values() if why is not None]
    if found:
        log.warning(
            "%s: %d of %d images looked at can't be used: %s", IMAGES_FIELD, len(found), len(distinct), found[0]
        )
    return SampledImages(looked_at=len(distinct), bad=len(found), example=found[0] if found else "")


def surely_more(bad: int, *, of: int, than: float) -> bool:
    """Whether a share of `than` in all would hardly ever show `bad` or more in `of` that were drawn: the binomial tail."""
    tail = sum(math.comb(of, k) * than**k * (1.0 - than) ** (of - k) for k in range(bad, of + 1))
    return bad > 0 and tail < CHANCE


def _draw(num_rows: int, *, seed: int, field: str) -> list[int]:
    chosen = rng(seed, "preflight", field).choice(num_rows, size=min(DRAWN, num_rows), replace=False)
    return sorted(int(number) for number in chosen)


def _problem(images: Images, name: str, listing: Listing) -> str | None:
    if listing.folder is None:
        local = images.folder / name
        try:
            local.parent.mkdir(parents=True, exist_ok=True)
            local.write_bytes(listing.read(name))
        except UserError as error:
            return str(error)
    try:
        images.open(name)
    except BadImageError as error:
        return str(error)
    return None

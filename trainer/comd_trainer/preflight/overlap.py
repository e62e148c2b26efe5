"""What the data files share with the evaluation sets: counted before anything is trained on it (method section 12, row 29).

The pools leave such items out by `data.hygiene`, which this asks as well. Images are told apart here by name and by content alone, where
it is known without fetching them; the pools decode them all and know a picture again that was scaled or encoded anew. So no
fewer are left out later than are counted here.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comd_api.exit_codes import BadDataError
from comd_api.run import RunSpec
from comd_trainer.data.hygiene import EvaluationData, remove_overlap
from comd_trainer.data.images import ImageFacts
from comd_trainer.data.rows import Item
from comd_trainer.preflight.named import BANK_FIELD, PRETRAINING_FIELD, SEED_FIELD, evaluation_field
from comd_trainer.preflight.rows import DataRows
from comd_trainer.store.hashing import in_parallel
from comd_trainer.store.listing import Listing

AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class FileOverlap:
    """Of one data file."""

    rows: int
    """Rows that share an image or a text with any evaluation set."""
    images: int
    """Of these, the ones that share an image."""
    evaluation: dict[str, int]
    """Rows by name of the evaluation set; one that is in two counts in both."""
    ids: frozenset[str] = frozenset()
    """Of the rows."""


def find_overlap(spec: RunSpec, rows: DataRows, listing: Listing) -> dict[str, FileOverlap]:
    """By field, for files that share something. Seed and bank rows that are counted are left out of every pool; of pre-training pairs
    nothing is left out.

    Raises:
        BadDataError: the seed has no row that may be learned from.
    """
    sets = {each.name: rows.items[evaluation_field(index)] for index, each in enumerate(spec.data.evaluation)}
    if not sets:
        return {}
    known = identities(rows, listing, sets)
    facts = {name: ImageFacts(sha256=identity) for name, identity in known.items()}
    set_of = {item.id: name for name, items in sets.items() for item in items}
    shown: dict[str, set[str]] = {}
    for name, items in sets.items():
        for item in items:
            if item.image is not None:
                shown.setdefault(known[item.image], set()).add(name)
    evaluation = EvaluationData([item for items in sets.values() for item in items], facts)
    found: dict[str, FileOverlap] = {}
    for field in (SEED_FIELD, BANK_FIELD):
        items = rows.items.get(field, ())
        images = {item.id: known[item.image] for item in items if item.image is not None}
        removed = remove_overlap(items, facts=facts, evaluation=evaluation).removed
        counts: Counter[str] = Counter()
        for item_id, overlap in removed.items():
            counts.update(shown[images[item_id]] if overlap.kind == "image" else {set_of[overlap.evaluation]})
        if removed:
            num_images = sum(overlap.kind == "image" for overlap in removed.values())
            found[field] = FileOverlap(
                rows=len(removed), images=num_images, evaluation=dict(sorted(counts.items())), ids=frozenset(removed)
            )
    shared = [shown[known[pair.image]] for pair in rows.pairs if known[pair.image] in shown]
    if shared:
        counts = Counter(name for names in shared for name in names)
        found[PRETRAINING_FIELD] = FileOverlap(
            rows=len(shared), images=len(shared), evaluation=dict(sorted(counts.items()))
        )
    seed = rows.items[SEED_FIELD]
    if SEED_FIELD in found and found[SEED_FIELD].rows == len(seed):
        raise BadDataError(
            f"{SEED_FIELD} ({spec.data.seed.instructions}): all {len(seed)} items are also in data.evaluation "
            f"({', '.join(found[SEED_FIELD].evaluation)}); give other instructions to learn from"
        )
    return found


def identities(rows: DataRows, listing: Listing, sets: Mapping[str, tuple[Item, ...]]) -> dict[str, str]:
    """What is equal for images of equal content, by name. Only images as large as one of an evaluation set can be equal to one, so
    that no others are read."""
    names = sorted({name for images in rows.images().values() for name in images})
    held_out = {item.image for items in sets.values() for item in items if item.image is not None}
    sizes = {_size(listing, name) for name in held_out}
    asked = [name for name in names if name in held_out or _size(listing, name) in sizes]
    if listing.folder is not None:
        contents = dict(zip(asked, in_parallel(listing.content, asked, threads=AT_ONCE), strict=True))
    else:
        contents = {name: listing.content(name) for name in asked}  # nothing is read, so that threads would only cost
    return {name: contents.get(name) or f"name {name}" for name in names}


def report(found: Mapping[str, FileOverlap]) -> dict[str, Any]:
    return {
        field: {"rows": each.rows, "images": each.images, "evaluation": each.evaluation}
        for field, each in found.items()
    }


def _size(listing: Listing, name: str) -> int | None:
    return listing.files[name].size if name in listing.files else None

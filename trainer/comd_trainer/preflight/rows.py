"""The rows of the data files: which can be used, and whether there are as many as the rounds ask for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath

from comd_api.exit_codes import BadDataError, UserError
from comd_api.run import RunSpec
from comd_api.stages import competes
from comd_trainer.data.annotations import read_annotations
from comd_trainer.data.instructions import (
    Rows,
    check_share,
    drop_items,
    examples,
    metric_reason,
    original_reason,
    read_rows,
)
from comd_trainer.data.pairs import read_pairs
from comd_trainer.data.rows import Item, Pair
from comd_trainer.preflight.findings import Errors
from comd_trainer.preflight.named import (
    ANNOTATIONS_FIELD,
    BANK_FIELD,
    IMAGES_FIELD,
    PRETRAINING_FIELD,
    SEED_FIELD,
    evaluation_field,
)
from comd_trainer.store.listing import Listing
from comd_trainer.store.sources import Sources
from comd_trainer.store.stores import path_problem

FIRST_IMAGES = 20
NUM_MARKS = 15
"""Where a long listing of images is cut."""
MAX_MARK = 200
"""Characters: a key has at most 1024 bytes."""
MARKED_NAMES = 4000
"""Fewer images than this are listed in a few requests anyway."""

OpenListing = Callable[[Sequence[str]], Listing]
"""Lists `data.images`; told names that rows have, at which the listing may be cut."""


@dataclass(kw_only=True)
class DataRows:
    """Usable rows of every data file, by its field, as far as can be told without opening images."""

    items: dict[str, tuple[Item, ...]] = field(default_factory=dict)
    pairs: tuple[Pair, ...] = ()
    annotations: int | None = None
    bad: dict[str, int] = field(default_factory=dict)
    """Rows that can't be used, where there are some."""
    missing: dict[str, int] = field(default_factory=dict)
    """Of these, rows whose image is not there."""

    @property
    def counts(self) -> dict[str, int]:
        counts = {name: len(items) for name, items in self.items.items()}
        if self.annotations is not None:
            counts[ANNOTATIONS_FIELD] = self.annotations
        if self.pairs:
            counts[PRETRAINING_FIELD] = len(self.pairs)
        return counts

    def images(self) -> dict[str, list[str]]:
        """The image of each row that has one, by field."""
        found = {name: [item.image for item in items if item.image is not None] for name, items in self.items.items()}
        return found | ({PRETRAINING_FIELD: [pair.image for pair in self.pairs]} if self.pairs else {})


class ImageNames:
    """Which of the names that rows have are files below `data.images`. Listed when it is first asked."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._known: dict[str, str | None] = {}

    def problem(self, name: str | None) -> str | None:
        """Why a row with this image can't be used, or None."""
        if name is None:
            return None
        if name not in self._known:
            self._known[name] = self._problem(name)
        return self._known[name]

    def _problem(self, name: str) -> str | None:
        shown = repr(name if len(name) <= 120 else f"{name[:117]}...")
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts:
            return f"image {shown} is not a path below data.images"
        return None if self._listing.has(name) else f"image {shown} is not a file below data.images"


def read_data(spec: RunSpec, sources: Sources, open_images: OpenListing) -> tuple[DataRows, Listing]:
    """Reads every data file and holds its rows against the images that there are.

    Raises:
        UserError: a file or the folder of images is not there.
        BadDataError: more rows can't be used than `data.maxBadRowFraction` allows.
    """
    data = spec.data
    wanted: dict[str, tuple[str, Callable[[Item], str | None]]] = {
        SEED_FIELD: (data.seed.instructions, original_reason if data.seed.targets == "Original" else lambda _: None)
    }
    if data.bank is not None:
        wanted[BANK_FIELD] = (data.bank, lambda _: None)
    for index, evaluation in enumerate(data.evaluation):
        wanted[evaluation_field(index)] = (evaluation.items, partial(metric_reason, metric=evaluation.metric))
    errors = Errors()
    read: dict[str, Rows] = {}
    pairs: list[Pair] = []
    for name, (source, _) in wanted.items():
        with errors.kept():
            read[name] = read_rows(sources.file(source, field=name), field=name, prefix=f"{name}/", origin="seed")
    with errors.kept():
        pairs = _read_pairs(spec, sources)
    marks = marks_of([item.image for rows in read.values() for item in rows.items] + [pair.image for pair in pairs])
    with errors.kept():
        listing = open_images(marks)
    errors.raise_any()
    images = ImageNames(listing)
    # Where `data.images` is wrong, all rows are, which need not be said of each file.
    for name, rows in read.items():
        _check_first_images([item.image for item in rows.items], images, spec=spec, field=name)
    _check_first_images([pair.image for pair in pairs], images, spec=spec, field=PRETRAINING_FIELD)
    found = DataRows()
    for name, (source, reason) in wanted.items():
        with errors.kept():
            _take_usable(found, read[name], images, spec=spec, field=name, source=source, reason=reason)
    with errors.kept():
        if pairs:
            found.pairs = _usable_pairs(pairs, images, spec=spec)
            if len(found.pairs) < len(pairs):
                found.missing[PRETRAINING_FIELD] = found.bad[PRETRAINING_FIELD] = len(pairs) - len(found.pairs)
    with errors.kept():
        if data.annotations is not None:
            found.annotations = len(
                read_annotations(
                    sources.file(data.annotations, field=ANNOTATIONS_FIELD),
                    field=ANNOTATIONS_FIELD,
                    source=data.annotations,
                    max_bad_fraction=data.max_bad_row_fraction,
                )
            )
    errors.raise_any()
    return found, listing


def _take_usable(
    found: DataRows,
    rows: Rows,
    images: ImageNames,
    *,
    spec: RunSpec,
    field: str,
    source: str,
    reason: Callable[[Item], str | None],
) -> None:
    """Puts a file's usable rows into `found`, and counts the others there."""
    before = len(rows.bad)
    rows = drop_items(rows, lambda item: images.problem(item.image))
    found.missing |= {field: len(rows.bad) - before} if len(rows.bad) > before else {}
    rows = drop_items(rows, reason)
    check_share(rows, field=field, source=source, max_bad_fraction=spec.data.max_bad_row_fraction)
    found.items[field] = rows.items
    found.bad |= {field: len(rows.bad)} if rows.bad else {}


def marks_of(names: Sequence[str | None]) -> list[str]:
    """Names that part all of them into pieces of about the same size; none when there are few."""
    usable = {name for name in names if name and len(name) < MAX_MARK and path_problem(name) is None}
    found = sorted(usable, key=str.encode)
    if len(found) < MARKED_NAMES:
        return []
    return [found[len(found) * number // (NUM_MARKS + 1)] for number in range(1, NUM_MARKS + 1)]


def _read_pairs(spec: RunSpec, sources: Sources) -> list[Pair]:
    if spec.pretraining is None or spec.data.pretraining is None:
        return []
    path = sources.file(spec.data.pretraining, field=PRETRAINING_FIELD)
    return read_pairs(path, field=PRETRAINING_FIELD, max_bad_fraction=spec.data.max_bad_row_fraction)


def _usable_pairs(pairs: Sequence[Pair], images: ImageNames, *, spec: RunSpec) -> tuple[Pair, ...]:
    """Refuses only what training would refuse: it looks at an image when its turn comes, so that with few steps some are never
    looked at."""
    assert spec.pretraining is not None, "pairs are read for it"
    kept = tuple(pair for pair in pairs if images.problem(pair.image) is None)
    num_bad = len(pairs) - len(kept)
    looks_at_all = spec.pretraining.max_steps is None and spec.pretraining.epochs >= 1.0
    if looks_at_all and num_bad > spec.data.max_bad_row_fraction * len(pairs):
        bad = [f"{pair.id}: {why}" for pair in pairs if (why := images.problem(pair.image)) is not None]
        raise BadDataError(
            f"{PRETRAINING_FIELD} ({spec.data.pretraining}): {num_bad} of {len(pairs)} rows can't be used, more than "
            f"data.maxBadRowFraction ({spec.data.max_bad_row_fraction:g}) allows: {examples(bad)}"
        )
    return kept


def _check_first_images(names: Sequence[str | None], images: ImageNames, *, spec: RunSpec, field: str) -> None:
    """A wrong `data.images` shows on the first rows."""
    first = [name for name in names[:FIRST_IMAGES] if name is not None]
    if first and all(images.problem(name) is not None for name in first):
        raise BadDataError(
            f"{IMAGES_FIELD} ({spec.data.images}) holds none of the first images that {field} names, such as {first[0]!r}; "
            "image paths start below data.images"
        )


def check_known_answers(spec: RunSpec, items: Sequence[Item], *, field: str) -> None:
    """The assessor `Reference` drops items without a known answer, and too many of those fail the round."""
    if spec.assessor.type != "Reference" or not competes(spec):
        return
    missing = sum(item.reference is None for item in items)
    if missing > spec.assessor.judge.max_drop_fraction * len(items):
        raise BadDataError(
            f"{field}: {missing} of {len(items)} items have no answer, which assessor.type Reference compares with; "
            "add the field answer to the rows, or use another assessor"
        )


def check_numbers(spec: RunSpec, *, bank_rows: int | None, seed_rows: int, taken: int = 0) -> None:
    """Whether the pools can give what the rounds ask for. Rows that evaluation sets hold too are not counted: they are left out. seed_rows:
    with what the run starts from. taken: of the bank's rows, those that are in that already, which bank_rows does not count.

    Raises:
        UserError: the rounds draw more than the bank holds, or no round could reach `rounds.hardItemsFloor`.
    """
    rounds = spec.rounds
    augmentation = rounds.augmentation
    fresh = rounds.assessment.fresh_items
    if bank_rows is not None:
        per_round = (
            0 if spec.augmentor.type in ("Chat", "Repeat") else augmentation.hard_items + augmentation.easy_items
        )
        drawn = (rounds.count - 1) * (per_round + (0 if spec.augmentor.type == "Repeat" else fresh))
        if drawn > bank_rows:
            raise UserError(
                f"spec.rounds asks for {drawn} items of spec.data.bank over {rounds.count} rounds "
                f"(augmentation.hardItems {augmentation.hard_items} + easyItems {augmentation.easy_items} + assessment.freshItems {fresh} "
                f"each), but the bank holds {bank_rows}{f' beside {taken} that the run starts from' if taken else ''}; "
                "lower them or give a larger bank"
            )
    compared = min(rounds.assessment.sample_size, seed_rows) + fresh
    if competes(spec) and rounds.count > 1 and rounds.hard_items_floor > compared:
        raise UserError(
            f"spec.rounds.hardItemsFloor is {rounds.hard_items_floor}, but round 1 compares only {compared} items "
            f"(of {seed_rows} seed instructions and {fresh} fresh ones); lower it or give more seed instructions"
        )

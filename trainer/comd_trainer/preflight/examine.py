"""Everything that can be known before a model is loaded: for the stage `preflight`, which goes on with what was found, and for
`comd doctor`, which only tells."""

import shutil
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from comd_api.exit_codes import ComdError, UserError
from comd_api.run import RunSpec
from comd_api.stage import StageConfig
from comd_trainer.generation.endpoint import read_key
from comd_trainer.pools.carry import num_new, num_taken
from comd_trainer.preflight import fit, overlap, scratch, summary
from comd_trainer.preflight.findings import Caution, Checks, Errors
from comd_trainer.preflight.folders import look_at_model
from comd_trainer.preflight.images import SampledImages, look_at_sample
from comd_trainer.preflight.named import (
    BANK_FIELD,
    IMAGES_FIELD,
    SEED_FIELD,
    NamedSource,
    answering_models,
    find_revisions,
    named_sources,
    pinned,
)
from comd_trainer.preflight.rows import DataRows, check_known_answers, check_numbers, read_data
from comd_trainer.preflight.start import Start, channel_sentence, find_start
from comd_trainer.preflight.weights import Weights
from comd_trainer.store.hashing import in_parallel
from comd_trainer.store.listing import Listing
from comd_trainer.store.s3_clock import MOST_SKEW, ClockError, clock_sentence
from comd_trainer.store.sources import Sources
from comd_trainer.store.stores import STORAGE_FIELD, MissingRightsError, Store

MODELS_AT_ONCE = 4
KNOWN_SKEW = timedelta(minutes=5)
"""From here on a clock is said to be wrong."""


class Examination:
    """Looks at a run from the store to the scratch folder. `checks` has what was found; the rest is for who goes on with it, and is there
    when nothing failed."""

    def __init__(
        self, config: StageConfig, *, store: Store, sources: Sources, work: Path, scratch_folder: Path | None
    ) -> None:
        """`work`: for what is fetched to be looked at, and removed. `scratch_folder`: that of the stages, None where it is not here."""
        self.config, self._store, self._sources = config, store, sources
        self._work, self._scratch = work, scratch_folder
        self.checks = Checks()
        self.spec: RunSpec = config.spec
        """With every `hf://` source at a commit."""
        self.revisions: dict[str, str] = {}
        self.weights: dict[str, Weights] = {}
        self.listings: dict[str, Listing] = {}
        """By field."""
        self.rows = DataRows()
        self.images = SampledImages()
        self.shared: dict[str, overlap.FileOverlap] = {}
        self.needs: list[fit.Need] = []
        self.start: Start | None = None

    def run(self) -> None:
        """Asks in the order of what depends on what."""
        self.look()
        self.weigh()

    def look(self) -> None:
        """At what the manifest names: content enough to say whether anything has changed."""
        run = self.checks.run
        self._look_at_storage()
        run("endpoints", self._endpoints)
        run("gpus", self._gpus)
        run("models", self._models, after=["storage"])
        run("data", self._data, after=["storage"])
        run("images", self._images, after=["data"])
        run("overlap", self._overlap, after=["data"])

    def weigh(self) -> None:
        """Whether it suffices for what the rounds ask for."""
        run = self.checks.run
        run("channel", self._channel, after=["storage"])
        run("start", self._find_start, after=["storage", "data"])
        run("numbers", self._numbers, after=["data", "overlap", "start"])
        run("memory", self._memory, after=["models", "gpus"])
        run("scratch", self._room, after=["data", "memory"])

    @property
    def overlap_left(self) -> dict[str, int]:
        """Usable rows of seed and bank that no evaluation set holds too, by field."""
        return {
            field: len(items) - (self.shared[field].rows if field in self.shared else 0)
            for field, items in self.rows.items.items()
        }

    # ---- the store

    def _look_at_storage(self) -> None:
        """The service's clock is known once it has answered, whatever it said."""
        error = self.checks.run("storage", self._storage)
        if isinstance(error, ClockError):
            return
        self.checks.run("clock", self._clock)
        if isinstance(error, MissingRightsError) and not error.deeds & {"list", "read"}:
            self.checks.let_pass("storage")  # what is to be read can be

    def _storage(self) -> str:
        self._store.probe(f"{self.config.namespace}/{self.config.run}/preflight")
        return f"{self._store.uri} can be listed, read, written to and deleted from"

    def _clock(self) -> str | None:
        offset = self._store.clock_offset()
        if offset is None:
            return None
        return judge_clock(offset, uri=self._store.uri)

    # ---- models

    def _endpoints(self) -> str | None:
        errors = Errors()
        named = [(field, model.endpoint) for field, model in answering_models(self.spec) if model.endpoint is not None]
        for field, endpoint in named:
            with errors.kept():
                read_key(endpoint, field=f"{field}.endpoint")
        errors.raise_any()
        return f"the keys of {', '.join(field for field, _ in named)} are there" if named else None

    def _gpus(self) -> str | None:
        trainer = self.spec.trainer
        fit.check_gpu_counts(trainer)
        return f"one for each of {trainer.num_proc_per_node} processes" if fit.asks_for_gpus(trainer) else None

    def _models(self) -> str | None:
        self.revisions = find_revisions(self.spec)
        self.spec = pinned(self.spec, {"revisions": self.revisions})
        composed = self.spec.student.composed
        template_given = composed is not None and composed.language_model.chat_template is not None
        models = [one for one in named_sources(self.spec) if one.is_model]

        def look(one: NamedSource) -> tuple[Weights, Listing] | ComdError:
            try:
                listing = self._sources.listing(one.source, field=one.field)
                given = one.kind == "language-model" and template_given
                return look_at_model(one, listing, template_given=given), listing
            except ComdError as error:
                return error

        errors = Errors()
        for one, seen in zip(models, in_parallel(look, models, threads=MODELS_AT_ONCE), strict=True):
            if isinstance(seen, ComdError):
                errors.found.append(seen)
            else:
                self.weights[one.field], self.listings[one.field] = seen
        errors.raise_any()
        count = len({one.source for one in models})
        return f"{count} checkpoint{'s are' if count != 1 else ' is'} whole" if models else None

    def _memory(self) -> str:
        spec = self.spec
        on_gpu = spec.trainer.gpu_memory is not None or fit.asks_for_gpus(spec.trainer)
        self.needs = fit.needs(spec, self.weights, on_gpu=on_gpu)
        fit.check_memory(spec, self.needs)
        return "; ".join(filter(None, [summary.models(self.needs), *summary.memory(spec, self.needs)]))

    # ---- data

    def _data(self) -> str:
        spec = self.spec

        def open_images(marks: Any) -> Listing:
            return self._sources.listing(spec.data.images, field=IMAGES_FIELD, marks=marks)

        self.rows, self.listings[IMAGES_FIELD] = read_data(spec, self._sources, open_images)
        errors = Errors()
        for field in (SEED_FIELD, BANK_FIELD):
            with errors.kept():
                check_known_answers(spec, self.rows.items.get(field, ()), field=field)
        errors.raise_any()
        bad = list(summary.bad_rows(spec, self.rows))
        return "; ".join([summary.counted(spec, self.rows), *bad])

    def _images(self) -> str:
        folder = self._work / "images"
        try:
            self.images = look_at_sample(self.spec, self.rows.images(), self.listings[IMAGES_FIELD], scratch=folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        bad, looked_at = self.images.bad, self.images.looked_at
        if bad:
            return Caution(f"{bad} of {looked_at} images looked at can't be used: {self.images.example}")
        return f"{looked_at} of them were looked at, and decode"

    def _overlap(self) -> str:
        self.shared = overlap.find_overlap(self.spec, self.rows, self.listings[IMAGES_FIELD])
        return "; ".join(summary.overlaps(self.shared)) or "no row is in an evaluation set too"

    def _channel(self) -> str | None:
        """What would keep a student from being promoted after all rounds."""
        promotion = self.spec.promotion
        if promotion is None:
            return None
        self._store.probe_swap(f"{self.config.namespace}/{self.config.run}/preflight")
        return channel_sentence(self._store, promotion.channel)

    def _find_start(self) -> str | None:
        spec = self.config.spec
        self.start = find_start(
            spec, namespace=self.config.namespace, store=self._store, cache_dir=self._work / "cache"
        )
        if self.start is None:
            return None
        if self.start.pools is None:
            return f"begins with the student of {self.start.words}"
        seed = self.rows.items[SEED_FIELD]
        new = num_new(self.start.items, seed)
        rest = f"{new:,} of {len(seed):,} seed rows are new to it" if new else "no seed row is new to it"
        return f"begins with the student of {self.start.words}; {rest}"

    def _numbers(self) -> str:
        left = self.overlap_left
        taken, more = 0, 0
        if self.start is not None and self.start.pools is not None:
            pool = self.start.items
            shared = self.shared[BANK_FIELD].ids if BANK_FIELD in self.shared else frozenset()
            taken = num_taken([row for row in self.rows.items.get(BANK_FIELD, ()) if row.id not in shared], pool)
            more = len(pool) - num_taken(pool, self.rows.items[SEED_FIELD])
        bank_rows = left[BANK_FIELD] - taken if BANK_FIELD in left else None
        check_numbers(self.spec, bank_rows=bank_rows, seed_rows=left[SEED_FIELD] + more, taken=taken)
        return "the pools have what the rounds ask for"

    def _room(self) -> str:
        on_hub = self._scratch is None or scratch.keeps_hub_in(self._scratch)
        room = scratch.largest_room(self.spec, self.needs, self.listings, on_hub=on_hub)
        there = scratch.room_in(self._scratch) if self._scratch is not None else None
        return scratch.judge(room, limit=self.spec.trainer.scratch.size_limit, there=there)


def judge_clock(offset: timedelta, *, uri: str) -> str:
    """What is to be said of this machine's clock, `offset` ahead of the service's.

    Raises:
        UserError: services refuse requests for it, this one or the next.
    """
    if abs(offset) >= MOST_SKEW:
        raise UserError(f"{STORAGE_FIELD}: {clock_sentence(offset, uri=uri)}")
    if abs(offset) >= KNOWN_SKEW:
        return Caution(clock_sentence(offset, uri=uri))
    return f"this machine's is within {max(1, round(abs(offset).total_seconds()))} s of the service's"


def listings_by_source(listings: Mapping[str, Listing]) -> dict[str, Listing]:
    """As `take_fingerprints` wants them."""
    return {listing.source: listing for listing in listings.values()}

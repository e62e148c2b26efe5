"""Work that is done once, ever: calls whose results are kept under a key, shared by ranks, retries and runs.

A call is made only if its key is not in the cache. Each rank takes every n-th batch of one plan and saves what it has
every `FLUSH_SECONDS`, so a rank that is stopped or lost costs no more than that (method section 4d: the teacher never
changes).
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from comd_trainer import metrics
from comd_trainer.context import PhaseContext
from comd_trainer.generation.group import from_first, wait_for_all
from comd_trainer.store.calls import CallCache

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 20.0
Result = dict[str, Any]
OnResults = Callable[[list[tuple[str, Result]]], None]


class Worker(Protocol):
    """Makes calls. Opened only when something is missing from the cache, because opening may mean loading a model."""

    def plan(self, keys: Sequence[str]) -> list[list[str]]:
        """Batches of the keys; equal on all ranks."""
        ...

    def run(self, keys: Sequence[str], on_results: OnResults) -> None: ...


def complete(
    ctx: PhaseContext,
    *,
    cache: CallCache,
    keys: Sequence[str],
    label: str,
    open_worker: Callable[[], Worker],
    max_ranks: int | None = None,
    role: str | None = None,
) -> tuple[Mapping[str, Result], int]:
    """Results of all `keys` (distinct), on every rank, and how many of them had to be made in this stage.

    `max_ranks` bounds how many ranks work (an endpoint's concurrency is shared by all). `role`: whose answers the results are, for
    the metrics; None where they are none. Raises what the worker raises, and PreemptedError when the phase shall stop; what was
    finished is saved before.
    """
    known, missing = from_first(ctx, lambda: _look_up(cache, keys))
    made = from_first(ctx, lambda: _count_made(ctx, keys, len(missing)))
    if ctx.is_first:
        _count_answers(role, len(known), source="cache")
    if not missing:
        return known, made
    num_workers = min(ctx.world_size, max_ranks or ctx.world_size)
    if ctx.is_first:
        logger.info("%s: %d of %d are in the cache, %d to make", label, len(known), len(keys), len(missing))
        ctx.progress.start(total=len(keys), unit="items", done=len(known))
    fresh: dict[str, Result] = {}
    if ctx.rank < num_workers:
        worker = open_worker()
        fresh = _work(
            ctx, cache, worker, missing=missing, num_workers=num_workers, done=len(known), label=label, role=role
        )
    wait_for_all(ctx)
    results = {**known, **fresh} if ctx.world_size == 1 else cache.load(keys)
    lost = [key for key in keys if key not in results]
    assert not lost, f"{len(lost)} calls were made and are not in the cache, the first is {lost[0]}"
    return results, made


def _look_up(cache: CallCache, keys: Sequence[str]) -> tuple[dict[str, Result], list[str]]:
    found = cache.load(keys)
    return {key: found[key] for key in keys if key in found}, [key for key in keys if key not in found]


def _count_made(ctx: PhaseContext, keys: Sequence[str], missing: int) -> int:
    """How many calls the stage's first attempt found missing: a retry, which finds some of them made, must report the
    same."""
    path = f"{ctx.partial}/calls/{hashlib.sha256(''.join(keys).encode()).hexdigest()[:32]}.json"
    ctx.store.write(path, json.dumps({"made": missing}).encode(), if_absent=True)
    try:
        return int(json.loads(ctx.store.read(path))["made"])
    except FileNotFoundError:
        return missing  # Another run of the same content has finished meanwhile and cleaned up.


def _work(
    ctx: PhaseContext,
    cache: CallCache,
    worker: Worker,
    *,
    missing: Sequence[str],
    num_workers: int,
    done: int,
    label: str,
    role: str | None,
) -> dict[str, Result]:
    """This rank's share of the missing calls."""
    mine = [key for batch in worker.plan(missing)[ctx.rank :: num_workers] for key in batch]
    fresh: dict[str, Result] = {}
    unsaved: list[tuple[str, Result]] = []
    started = saved = time.monotonic()
    _count_answers(role, 0, source="model")

    def flush() -> None:
        nonlocal saved
        if unsaved:
            cache.append(list(unsaved))
            unsaved.clear()
        saved = time.monotonic()

    def on_results(results: list[tuple[str, Result]]) -> None:
        unsaved.extend(results)
        fresh.update(results)
        _count_answers(role, len(results), source="model")
        if time.monotonic() - saved > FLUSH_SECONDS:
            flush()
        if ctx.is_first:
            # Others are about as far: batches are dealt out evenly.
            ctx.progress.update(done=min(done + len(fresh) * num_workers, done + len(missing)))
        ctx.raise_if_stopped()

    try:
        worker.run(mine, on_results)
    finally:
        flush()
    seconds = time.monotonic() - started
    rate = len(fresh) / max(seconds, 1e-9)
    logger.info("%s: made %d in %.1f s (%.1f per second)", label, len(fresh), seconds, rate)
    return fresh


def _count_answers(role: str | None, number: int, *, source: Literal["model", "cache"]) -> None:
    if role is not None:
        metrics.add(metrics.ANSWERS, number, role=role, source=source)

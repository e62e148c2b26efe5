"""Makes the rows of coming steps ready while the device works on the present one."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from comd_api.recipe import Training
from comd_trainer.engine.batches import Collator, Example, MicroBatch
from comd_trainer.engine.layout import grouped, shares
from comd_trainer.engine.order import Order

AHEAD = 2
"""Steps that are made ready before they are wanted."""
MAX_THREADS = 4


class Feed:
    """The micro-batches of one rank, step after step. A context: leaving it ends its threads.

    Threads rather than processes: decoding, resizing and tokenizing let go of Python's lock, pixels need not be copied from one process
    to another through a pod's small shared memory, and what an earlier epoch made is there for all.
    """

    def __init__(
        self,
        make_step: Callable[[int, ThreadPoolExecutor], list[MicroBatch]],
        *,
        first: int,
        last: int,
        num_threads: int,
    ) -> None:
        """Steps `first` to `last` - 1, as `make_step` makes them with the help of a pool."""
        self._make_step, self._next, self._last = make_step, first, last
        self._rows = ThreadPoolExecutor(num_threads, thread_name_prefix="rows")
        self._steps = ThreadPoolExecutor(1, thread_name_prefix="steps")
        self._ready: list[Future[list[MicroBatch]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in (self._steps, self._rows):
            pool.shutdown(wait=False, cancel_futures=True)

    def take(self) -> list[MicroBatch]:
        """Of the next step; waits for them where they aren't ready yet. Raises what making them raised."""
        while len(self._ready) <= AHEAD and self._next < self._last:
            self._ready.append(self._steps.submit(self._make_step, self._next, self._rows))
            self._next += 1
        return self._ready.pop(0).result()


def step_maker(
    collate: Collator, examples: Sequence[Example], *, order: Order, training: Training, rank: int, world_size: int
) -> Callable[[int, ThreadPoolExecutor], list[MicroBatch]]:
    """What a rank computes at a step, as a function of the step: padded micro-batches, or packed ones with `training.packing`.

    Packed, ranks may get unequal numbers of them.
    """

    def make_step(step: int, pool: ThreadPoolExecutor) -> list[MicroBatch]:
        rows = [examples[row] for row in order.batch(step)]
        lengths = [collate.estimate(row) for row in rows]
        if training.packing is not None:
            mine = shares(lengths, world_size=world_size)[rank]
            made = list(pool.map(collate.make, [rows[place] for place in mine]))
            return collate.packed(made, limit=training.packing.max_tokens)
        micros = grouped(lengths, world_size=world_size, micro_batch_size=training.micro_batch_size)[rank]
        made = list(pool.map(collate.make, [rows[place] for micro in micros for place in micro]))
        batches = []
        for micro in micros:
            batches.append(collate.padded(made[: len(micro)]))
            made = made[len(micro) :]
        return batches

    return make_step

"""Which rows a step trains on: arithmetic on the seed and the step, so that nothing is replayed to resume."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from comd_trainer.data.seeds import rng


@dataclass(frozen=True, kw_only=True)
class Order:
    """The stream of global batches. An epoch's last batch may be short; batches never reach into the next epoch."""

    num_rows: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        assert self.num_rows > 0, "nothing to train on"
        assert self.batch_size > 0

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_rows / self.batch_size)

    def num_steps(self, *, epochs: float, max_steps: int | None) -> int:
        """Optimizer steps: `max_steps` where given, else those of `epochs`, at least one."""
        return max_steps if max_steps is not None else max(1, math.ceil(epochs * self.steps_per_epoch - 1e-9))

    def batch(self, step: int) -> list[int]:
        """Indices of the rows of global batch `step` (from 0): 1 to `batch_size` of them, each row once an epoch."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        return [int(row) for row in permutation(self.seed, epoch, self.num_rows)[start : start + self.batch_size]]

    def num_seen(self, step: int) -> int:
        """Rows in all batches before `step`."""
        epochs, position = divmod(step, self.steps_per_epoch)
        return epochs * self.num_rows + position * self.batch_size


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, num_rows: int) -> NDArray[np.int64]:
    """Order of the rows in one epoch."""
    return rng(seed, "order", epoch).permutation(num_rows)


def micro_batches(
    batch: list[int], *, rank: int, world_size: int, micro_batch_size: int, num_micro: int
) -> list[list[int]]:
    """This rank's share of a global batch, as `num_micro` micro-batches of up to `micro_batch_size` rows.

    Every rank gets the same number, some perhaps empty: forward passes are collective under ZeRO-3, and gradients are reduced
    after the same number of them everywhere.
    """
    assert len(batch) <= num_micro * world_size * micro_batch_size, "the batch does not fit"
    slots = [(micro * world_size + rank) * micro_batch_size for micro in range(num_micro)]
    return [batch[slot : slot + micro_batch_size] for slot in slots]

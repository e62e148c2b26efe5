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

"""Which assessed item the next new item is made from (method section 12, row 20): arithmetic on the attempt's number,
so that a restart and any number of ranks make the same choices."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from comd_trainer.data.rows import Item, Verdict
from comd_trainer.data.seeds import rng


def split(items: Sequence[Item], verdicts: Sequence[Verdict]) -> tuple[list[Item], list[Item]]:
    """Hard and easy items, in the items' order. Dropped ones are in neither."""
    labels = {verdict.item: verdict.label for verdict in verdicts}
    hard = [item for item in items if labels.get(item.id) == "hard"]
    easy = [item for item in items if labels.get(item.id) == "easy"]
    return hard, easy


class Parents:
    """Parent number 0, 1, 2 … of a branch.

    `Cycle` goes through all items in shuffled order before one comes twice, and shuffles anew for each pass. `Gap`
    draws with replacement, with a probability proportional to `weights`.
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        order: Literal["Cycle", "Gap"],
        weights: Sequence[float] | None = None,
        seed: int,
        names: tuple[str | int, ...],
    ) -> None:
        assert items, "the caller knows what to do when there are no parents"
        self.items, self.order, self.seed, self.names = items, order, seed, names
        self._passes: dict[int, list[int]] = {}
        if order == "Gap":
            assert weights is not None
            assert len(weights) == len(items)
            self._shares = np.cumsum(np.asarray(weights, np.float64))

    def at(self, attempt: int) -> Item:
        return self.items[self._index(attempt)]

    def visit(self, attempt: int) -> int:
        """How often `Cycle` had come to this attempt's parent before; 0 for `Gap`, which keeps no account."""
        return attempt // len(self.items) if self.order == "Cycle" else 0

    def _index(self, attempt: int) -> int:
        if self.order == "Gap":
            drawn = rng(self.seed, *self.names, "gap", attempt).random() * self._shares[-1]
            return min(int(np.searchsorted(self._shares, drawn, side="right")), len(self.items) - 1)
        cycle, place = divmod(attempt, len(self.items))
        if cycle not in self._passes:
            self._passes[cycle] = rng(self.seed, *self.names, "cycle", cycle).permutation(len(self.items)).tolist()
        return self._passes[cycle][place]

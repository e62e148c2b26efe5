"""Which items a round compares (method section 12, row 11), and what is left of the bank."""

from collections.abc import Iterable, Sequence

from comd_trainer.data.rows import Item
from comd_trainer.data.seeds import rng
from comd_trainer.data.text import normalise

PairKey = tuple[str | None, tuple[str, ...]]


def pair_key(item: Item) -> PairKey:
    """What makes two items the same question: image and normalised turns."""
    return item.image, tuple(normalise(turn.text) for turn in item.turns)


def sample_for_assessment(cache: Sequence[Item], *, round: int, sample_size: int, seed: int) -> list[Item]:
    """The items of the cache pool that are compared in this round, in the pool's order.

    Drawn without replacement. What the last round added is always among them; when even that is more than
    `sample_size`, the sample is drawn from it alone. Round 1 has no such items.
    """
    newest = [index for index, item in enumerate(cache) if round > 1 and item.round == round - 1]
    if len(newest) >= sample_size:
        chosen = _draw(newest, sample_size, seed=seed, name="assess-newest", round=round)
    else:
        new = set(newest)
        older = [index for index in range(len(cache)) if index not in new]
        wanted = min(sample_size - len(newest), len(older))
        chosen = newest + _draw(older, wanted, seed=seed, name="assess-older", round=round)
    return [cache[index] for index in sorted(chosen)]


def unused(bank: Sequence[Item], *pools: Iterable[Item]) -> list[Item]:
    """Bank items that no pool holds yet, neither by id nor as the same question; of equal questions in the bank the
    first."""
    ids = {item.id for pool in pools for item in pool}
    taken = {pair_key(item) for pool in pools for item in pool}
    left: list[Item] = []
    for item in bank:
        key = pair_key(item)
        if item.id not in ids and key not in taken:
            taken.add(key)
            left.append(item)
    return left


def draw(items: Sequence[Item], count: int, *, seed: int, name: str, round: int) -> list[Item]:
    """`count` items without replacement, in their own order. The caller sees to it that there are as many."""
    return [items[index] for index in sorted(_draw(range(len(items)), count, seed=seed, name=name, round=round))]


def _draw(indices: Sequence[int], count: int, *, seed: int, name: str, round: int) -> list[int]:
    order = rng(seed, name, round).permutation(len(indices))[:count]
    return [indices[int(place)] for place in order]

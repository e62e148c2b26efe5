"""What one round hands to the next: the train pool is replaced, the cache pool grows (method sections 4d and 12, row
26)."""

from collections.abc import Sequence

from comd_trainer.data.rows import Item
from comd_trainer.pools.selection import draw


def next_train(
    *,
    new: Sequence[Item],
    fresh: Sequence[Item],
    earlier: Sequence[Item],
    replay_fraction: float,
    round: int,
    seed: int,
) -> list[Item]:
    """The new items, the fresh bank items that were compared, and a replay of earlier ones against forgetting:
    `replay_fraction` per new and fresh item, drawn without replacement from the cache pool as it was, so at most all of
    it."""
    added = [*new, *fresh]
    replay = min(round_half_up(replay_fraction * len(added)), len(earlier))
    pool = added + draw(earlier, replay, seed=seed, name="replay", round=round)
    assert_distinct(pool)
    return pool


def next_cache(*, cache: Sequence[Item], new: Sequence[Item], fresh: Sequence[Item]) -> list[Item]:
    """Everything so far, oldest first."""
    pool = [*cache, *new, *fresh]
    assert_distinct(pool)
    return pool


def round_half_up(value: float) -> int:
    return int(value + 0.5)


def assert_distinct(items: Sequence[Item]) -> None:
    ids = {item.id for item in items}
    assert len(ids) == len(items), "two items of a pool have the same id"

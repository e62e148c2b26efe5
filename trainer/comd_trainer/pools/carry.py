"""Pools of an earlier run, carried on into a new one: what its student knows already, and what of the seed is new."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from comd_trainer.data.rows import Item
from comd_trainer.pools.selection import draw, pair_key
from comd_trainer.pools.update import assert_distinct, round_half_up


class Carried(NamedTuple):
    train: list[Item]
    """What round 1 goes over."""
    cache: list[Item]
    """Everything so far, oldest first."""
    num_new: int
    """Seed items that the earlier run did not have."""
    num_replayed: int
    """Earlier items in `train`; all of them where none is new."""


def carry(earlier: Sequence[Item], seed_items: Sequence[Item], *, replay_fraction: float, seed: int) -> Carried:
    """Round 1 goes over the seed items that are new and a replay of earlier ones against forgetting, as later rounds have it. Where none
    is new (another recipe on the same data), it goes over the whole seed again.

    An item is known by its image and words, not by its id, which another file may have given to something else. A seed item whose known
    answer was changed is a new one and takes the old one's place.
    """
    answers = {pair_key(item): item.reference for item in seed_items}
    old: dict[object, Item] = {}
    for item in earlier:
        key = pair_key(item)
        if key in old or answers.get(key, item.reference) != item.reference:
            continue
        old[key] = item
    ids = {item.id: _carried_id(item) for item in old.values()}
    # Rounds are counted from 1 again, and so are the ids of what they make.
    kept = {
        key: replace(item, id=ids[item.id], round=0, parent=ids.get(item.parent or "")) for key, item in old.items()
    }
    carried = list(kept.values())
    new = [item for item in seed_items if pair_key(item) not in kept]
    cache = [*carried, *new]
    assert_distinct(cache)
    if not new:
        again = list({item.id: item for item in (kept[pair_key(item)] for item in seed_items)}.values())
        return Carried(train=again, cache=cache, num_new=0, num_replayed=len(again))
    replay = min(round_half_up(replay_fraction * len(new)), len(carried))
    train = new + draw(carried, replay, seed=seed, name="replay", round=0)
    return Carried(train=train, cache=cache, num_new=len(new), num_replayed=replay)


def num_new(earlier: Sequence[Item], seed_items: Sequence[Item]) -> int:
    """How many seed items round 1 would go over for the first time."""
    return carry(earlier, seed_items, replay_fraction=0.0, seed=0).num_new


def num_taken(bank: Sequence[Item], pool: Sequence[Item]) -> int:
    """How many bank items are in a pool already, and so are not drawn again."""
    taken = {pair_key(item) for item in pool}
    return sum(pair_key(item) in taken for item in bank)


def _carried_id(item: Item) -> str:
    content = json.dumps(pair_key(item), ensure_ascii=False)
    return f"earlier/{hashlib.sha256(content.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}"

"""Is one model better than another on the same items? Answered from stored predictions (method section 11: gains within noise)."""

import math
from collections.abc import Mapping
from typing import NamedTuple


class Paired(NamedTuple):
    gained: int
    """Items that only the second has right."""
    lost: int
    """Items that only the first has right."""
    p_value: float
    """Two-sided exact McNemar test: how likely so uneven a split is when neither is better."""


def compare(first: Mapping[str, bool], second: Mapping[str, bool]) -> Paired:
    """Both by item id; raises ValueError unless they are about the same items."""
    if first.keys() != second.keys():
        raise ValueError(f"the predictions are about different items: {len(first.keys() ^ second.keys())} are in one of the two only")
    gained = sum(second[item] and not first[item] for item in first)
    lost = sum(first[item] and not second[item] for item in first)
    return Paired(gained, lost, _sign_test(gained, lost))


def _sign_test(gained: int, lost: int) -> float:
    """Two-sided binomial test of `gained` against `lost` at one half, in logarithms so that it holds for any size."""
    total = gained + lost
    if total == 0:
        return 1.0
    tail = sum(math.exp(_log_choose(total, k) - total * math.log(2)) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail)


def _log_choose(total: int, k: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)

"""How a step's rows lie in forward passes: which rank computes which, and which go together.

Cost depends on it, losses do not: the loss is a sum over the whole global batch (loss.py), whatever way it is cut up. So rows of
similar length are put together within a step, and never by reaching into other steps, which would make the order of the data a
function of the hardware.
"""

from collections.abc import Sequence


def grouped(lengths: Sequence[int], *, world_size: int, micro_batch_size: int) -> list[list[list[int]]]:
    """Padded micro-batches: `[rank][micro-batch]` -> places in `lengths`, at most `micro_batch_size` of them.

    Rows of similar length are padded together, and the ranks' micro-batches of one turn are similar too, as ranks wait for each
    other. Every rank gets the same number of them, some perhaps empty: forward passes are collective under ZeRO-3, and gradients are
    reduced after the same number of them everywhere. The longest come first, so that what does not fit in memory says so at once.
    """
    num_turns = max(1, -(-len(lengths) // (micro_batch_size * world_size)))
    small, num_larger = divmod(len(lengths), num_turns * world_size)
    ordered = iter(_longest_first(lengths))
    micros = [[next(ordered) for _ in range(small + (number < num_larger))] for number in range(num_turns * world_size)]
    return [micros[rank::world_size] for rank in range(world_size)]


def shares(lengths: Sequence[int], *, world_size: int) -> list[list[int]]:
    """The rows of each rank, `[rank]` -> places in `lengths`, so that all have about as many tokens: the longest row that is left goes
    to who has the least (at most 4/3 of the best possible; Graham 1969)."""
    found: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for place in _longest_first(lengths):
        rank = loads.index(min(loads))
        found[rank].append(place)
        loads[rank] += lengths[place]
    return found


def packs(lengths: Sequence[int], *, limit: int) -> list[list[int]]:
    """Rows joined end to end in sequences of at most `limit` tokens: places in `lengths`. The longest row that is left goes where the
    least room stays (best fit decreasing: at most 11/9 of the fewest possible sequences, and one; Johnson 1974)."""
    found: list[list[int]] = []
    rooms: list[int] = []
    for place in _longest_first(lengths):
        length = lengths[place]
        assert 0 < length <= limit, f"a row of {length} tokens in packs of {limit}"
        fits = [pack for pack, room in enumerate(rooms) if room >= length]
        pack = min(fits, key=lambda pack: rooms[pack], default=len(rooms))
        if pack == len(rooms):
            found.append([])
            rooms.append(limit)
        found[pack].append(place)
        rooms[pack] -= length
    return found


def _longest_first(lengths: Sequence[int]) -> list[int]:
    """Places by length; of equal ones the earlier first."""
    return sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))

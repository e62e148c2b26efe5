"""What ranks tell each other in a phase that generates: who does what, and that all are done.

Ranks of such a phase work on their own for minutes or hours and meet only at its ends, so the meeting has a gloo group
of its own, whose timeout fits that (a training group's timeout is there to find a rank that hangs).
"""

from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch.distributed as dist

from comd_trainer.context import PhaseContext

Value = TypeVar("Value")

PATIENCE = timedelta(days=14)
"""How long a rank waits for another one that still answers. A rank that died is noticed at once: its connection
closes."""


def from_first(ctx: PhaseContext, make: Callable[[], Value]) -> Value:
    """`make()` of rank 0, on every rank, so that all act on the same view of the cache however late each of them
    looks."""
    if ctx.world_size == 1:
        return make()
    box = [make() if ctx.is_first else None]
    dist.broadcast_object_list(box, src=0, group=_group())
    return box[0]  # type: ignore[return-value]


def wait_for_all(ctx: PhaseContext) -> None:
    if ctx.world_size > 1:
        dist.barrier(group=_group())


@cache
def _group() -> dist.ProcessGroup:
    """Made once in a process, by all ranks together, from torch's `env://` variables that the launcher sets."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=PATIENCE)
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, dist.ProcessGroup), "every rank is a member"
    return group

"""Learning rate as a function of the step alone."""

import math
from typing import Literal


def learning_rate(
    step: int,
    *,
    num_steps: int,
    peak: float,
    scheduler: Literal["Cosine", "Linear", "Constant"],
    warmup_ratio: float,
    min_ratio: float,
) -> float:
    """Learning rate of `step` (from 0): a line up to `peak` over the first `ceil(warmup_ratio * num_steps)` steps, then down to
    `min_ratio * peak`, which the step after the last would have.

    As transformers' schedules, which both ancestors used, except that the line does not start at 0: on a round of a few steps
    the first of them would be wasted.
    """
    num_warmup = math.ceil(warmup_ratio * num_steps)
    if step < num_warmup:
        return peak * (step + 1) / (num_warmup + 1)
    share = (step - num_warmup) / max(1, num_steps - num_warmup)
    if scheduler == "Cosine":
        height = 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))
    elif scheduler == "Linear":
        height = max(0.0, 1.0 - share)
    else:
        return peak
    return peak * (min_ratio + (1.0 - min_ratio) * height)

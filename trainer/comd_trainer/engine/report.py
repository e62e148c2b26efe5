"""What training says of itself: how large a step was, metrics at every step, a log line now and then."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from comd_trainer import metrics
from comd_trainer.context import PhaseContext
from comd_trainer.engine.batches import MicroBatch
from comd_trainer.engine.checkpoint import TrainState
from comd_trainer.engine.flops import Cost, half_peak
from comd_trainer.engine.loss import num_supervised
from comd_trainer.models.prompts import Encoded

log = logging.getLogger(__name__)

LOG_SECONDS = 10.0
"""Between two log lines. Progress is reported at every step."""


@dataclass(frozen=True, kw_only=True)
class StepSize:
    """What is in a step: of one rank, or of all."""

    supervised: float
    """Tokens that the loss is taken over."""
    dropped: float
    """Rows that could not be used."""
    tokens: float
    """Without padding, images' included."""
    image_tokens: float
    images: float

    def numbers(self) -> tuple[float, ...]:
        return (self.supervised, self.dropped, self.tokens, self.image_tokens, self.images)

    @classmethod
    def of_numbers(cls, numbers: Sequence[float]) -> "StepSize":
        supervised, dropped, tokens, image_tokens, images = numbers
        return cls(supervised=supervised, dropped=dropped, tokens=tokens, image_tokens=image_tokens, images=images)


def size_of(batches: Sequence[MicroBatch], *, image_token_id: int | None) -> StepSize:
    """Of this rank's micro-batches, which are still on the CPU."""
    return StepSize(
        supervised=sum(num_supervised(batch.inputs) for batch in batches),
        dropped=sum(len(batch.dropped) for batch in batches),
        tokens=sum(num_tokens(batch.inputs) for batch in batches),
        image_tokens=sum(int((batch.inputs["input_ids"] == image_token_id).sum()) for batch in batches)
        if image_token_id is not None
        else 0,
        images=sum(batch.num_images for batch in batches),
    )


def num_tokens(inputs: Encoded) -> int:
    """Without padding; packed rows have none."""
    mask = inputs.get("attention_mask")
    return inputs["input_ids"].numel() if mask is None else int(mask.sum())


class Report:
    """Says how training goes. Rank 0 alone, whose numbers are those of all ranks."""

    def __init__(self, ctx: PhaseContext, *, num_steps: int, cost: Cost, device: torch.device) -> None:
        self._ctx, self._num_steps, self._cost = ctx, num_steps, cost
        self._last_time, self._last_log = time.monotonic(), -math.inf
        if not ctx.is_first:
            return
        peak = half_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        if peak is not None and ctx.spec.training.precision != "fp32":
            metrics.put(metrics.PEAK_FLOPS, peak * ctx.world_size)
        for counter in (metrics.STEPS, metrics.TOKENS, metrics.SUPERVISED_TOKENS, metrics.DROPPED_ROWS):
            metrics.add(counter, 0)

    def waited(self, seconds: float) -> None:
        """For the rows of the next step."""
        if self._ctx.is_first:
            metrics.add(metrics.DATA_WAIT, seconds)

    def __call__(self, state: TrainState, size: StepSize, *, loss: float, rate: float, grad_norm: float) -> None:
        """A step is done; `size` is that of all ranks."""
        if not self._ctx.is_first:
            return
        now = time.monotonic()
        speed = size.supervised / max(now - self._last_time, 1e-9)
        self._last_time = now
        self._count(size, loss=loss, rate=rate, grad_norm=grad_norm)
        said = {"loss": loss, "learning_rate": rate, "grad_norm": grad_norm, "tokens_per_second": speed}
        self._ctx.progress.update(done=state.step, **said)
        if now - self._last_log >= LOG_SECONDS or state.step == self._num_steps:
            self._last_log = now
            log.info(
                "step %d/%d loss %.4f lr %.2e grad norm %.3f, %.0f supervised tokens/s",
                state.step, self._num_steps, loss, rate, grad_norm, speed,
                extra={"step": state.step, **said},
            )  # fmt: skip

    def _count(self, size: StepSize, *, loss: float, rate: float, grad_norm: float) -> None:
        needed = self._cost.of(tokens=size.tokens, image_tokens=size.image_tokens, supervised=size.supervised)
        metrics.add(metrics.STEPS)
        metrics.add(metrics.TOKENS, size.tokens)
        metrics.add(metrics.SUPERVISED_TOKENS, size.supervised)
        metrics.add(metrics.DROPPED_ROWS, size.dropped)
        metrics.add(metrics.IMAGES, size.images)
        metrics.add(metrics.MODEL_FLOPS, needed)
        metrics.put(metrics.LOSS, loss)
        metrics.put(metrics.LEARNING_RATE, rate)
        metrics.put(metrics.GRADIENT_NORM, grad_norm)

"""Order, schedule and DeepSpeed's configuration: arithmetic."""

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comd_api.recipe import DeepSpeed, Training
from comd_trainer.engine.deepspeed_config import deepspeed_config
from comd_trainer.engine.order import Order
from comd_trainer.engine.schedule import learning_rate


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 5), st.integers(1, 3))
def test_each_epoch_has_every_row_once_and_batches_are_full_but_the_last(
    rows: int, size: int, seed: int, epochs: int
) -> None:
    order = Order(num_rows=rows, batch_size=size, seed=seed)
    steps = order.num_steps(epochs=epochs, max_steps=None)
    batches = [order.batch(step) for step in range(steps)]
    assert steps == epochs * math.ceil(rows / size)
    for epoch in range(epochs):
        own = batches[epoch * order.steps_per_epoch : (epoch + 1) * order.steps_per_epoch]
        assert sorted(row for batch in own for row in batch) == list(range(rows))
        assert all(len(batch) == size for batch in own[:-1])
    for step in range(steps + 1):
        assert order.num_seen(step) == sum(len(batch) for batch in batches[:step])


def test_epochs_and_seeds_differ_and_repeat() -> None:
    order = Order(num_rows=50, batch_size=50, seed=1)
    assert order.batch(0) != order.batch(1)
    assert order.batch(0) != Order(num_rows=50, batch_size=50, seed=2).batch(0)
    assert order.batch(0) == Order(num_rows=50, batch_size=50, seed=1).batch(0)
    assert order.batch(0)[:8] == [
        row for step in range(1) for row in Order(num_rows=50, batch_size=8, seed=1).batch(step)
    ]


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps"),
    [(3.0, None, 9), (0.5, None, 2), (0.01, None, 1), (3.0, 4, 4), (0.1, 100, 100), (0.3333333, None, 1)],
)
def test_number_of_steps(epochs: float, max_steps: int | None, steps: int) -> None:
    assert Order(num_rows=20, batch_size=8, seed=0).num_steps(epochs=epochs, max_steps=max_steps) == steps


def rates(scheduler: str, *, warmup_ratio: float = 0.2, min_ratio: float = 0.0) -> list[float]:
    return [
        learning_rate(step, num_steps=10, peak=2.0, scheduler=scheduler, warmup_ratio=warmup_ratio, min_ratio=min_ratio)  # type: ignore[arg-type]
        for step in range(10)
    ]


def test_schedules() -> None:
    assert rates("Constant", warmup_ratio=0.0) == [2.0] * 10
    assert rates("Linear", warmup_ratio=0.0) == pytest.approx([2.0 - 0.2 * step for step in range(10)])
    assert rates("Linear")[:4] == pytest.approx([2 / 3, 4 / 3, 2.0, 1.75])
    cosine = rates("Cosine", min_ratio=0.1)
    assert cosine[2] == 2.0
    assert cosine[6] == pytest.approx(0.2 + 1.8 / 2)
    assert cosine[3:] == sorted(cosine[3:], reverse=True)
    assert min(cosine) > 0.2


def test_no_step_is_wasted_on_a_rate_of_zero() -> None:
    for num_steps in (1, 2, 4, 100):
        for step in range(num_steps):
            assert (
                learning_rate(step, num_steps=num_steps, peak=1.0, scheduler="Cosine", warmup_ratio=0.03, min_ratio=0.0)
                > 0
            )


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_deepspeed_is_told_everything(stage: int, precision: Literal["bf16", "fp16", "fp32"]) -> None:
    training = Training(
        micro_batch_size=2, precision=precision, max_grad_norm=0.5, deepspeed=DeepSpeed(zero_stage=stage)
    )
    config = deepspeed_config(training, batch_size=13, world_size=2)
    assert config["gradient_accumulation_steps"] == 4
    assert config["train_batch_size"] == 16 == 2 * 4 * config["train_micro_batch_size_per_gpu"]
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"]["stage"] == stage
    assert (config["bf16"]["enabled"], config["fp16"]["enabled"]) == (precision == "bf16", precision == "fp16")

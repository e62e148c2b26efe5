"""Coming steps are made ready in order, ahead of time and no further; what goes wrong comes out in its turn."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from comd_trainer.engine.batches import MicroBatch
from comd_trainer.engine.feed import AHEAD, Feed


def batch(step: int) -> MicroBatch:
    return MicroBatch(inputs={}, rows=(str(step),), dropped={}, num_images=0)


class Maker:
    def __init__(self, *, seconds: float = 0.0, fails_at: int | None = None) -> None:
        self.made: list[int] = []
        self.seconds, self.fails_at = seconds, fails_at

    def __call__(self, step: int, pool: ThreadPoolExecutor) -> list[MicroBatch]:
        list(pool.map(time.sleep, [self.seconds] * 2))
        self.made.append(step)
        if step == self.fails_at:
            raise ValueError(f"step {step} is bad")
        return [batch(step)]


def until(done: object, *, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_steps_come_in_order_and_only_so_far_ahead() -> None:
    maker = Maker()
    with Feed(maker, first=3, last=9, num_threads=2) as feed:
        assert [batch.rows for batch in feed.take()] == [("3",)]
        until(lambda: len(maker.made) == 1 + AHEAD)
        time.sleep(0.02)
        assert maker.made == [3, 4, 5]
        assert [feed.take()[0].rows[0] for _ in range(5)] == ["4", "5", "6", "7", "8"]
    assert maker.made == list(range(3, 9))


def test_nobody_waits_for_rows_that_are_made_in_time() -> None:
    with Feed(Maker(seconds=0.02), first=0, last=12, num_threads=2) as feed:
        waited = []
        for _ in range(12):
            began = time.monotonic()
            feed.take()
            waited.append(time.monotonic() - began)
            time.sleep(0.05)  # The device at work.
    assert waited[0] > 0.015
    assert sum(waited[1:]) < 0.1, "making the rows takes 0.02 s a step, and steps take longer"


def test_an_error_comes_out_at_its_step_and_leaving_ends_the_threads() -> None:
    before = threading.active_count()
    with Feed(Maker(fails_at=1), first=0, last=5, num_threads=2) as feed:
        assert feed.take()[0].rows == ("0",)
        with pytest.raises(ValueError, match="step 1 is bad"):
            feed.take()
    until(lambda: threading.active_count() <= before)

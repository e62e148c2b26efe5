"""The work queue against a model of its contract, in virtual time; and the token bucket."""

import asyncio
import itertools
import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from comd_operator.runtime.limiter import TokenBucket
from comd_operator.runtime.metrics import Metrics
from comd_operator.runtime.queue import WorkQueue
from tests.unit.virtual_time import VirtualLoop, now, run

KEYS = st.sampled_from("abcd")
SECONDS = st.sampled_from((0.0, 1 / 64, 1 / 32, 0.25, 1.0, 4.0))
"""Numbers that add up exactly, and differ by little."""
BASE, MOST = 0.125, 2.0


class _Latest(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return max(a, b)


class QueueMachine(RuleBasedStateMachine):
    """Workers that come, wait, are cancelled and end in any order, beside a model that knows which keys are due."""

    @initialize()
    def start(self) -> None:
        self.loop = VirtualLoop()
        self.queue = WorkQueue(metrics=Metrics(), clock=self.loop.time, rng=_Latest(), base_delay=BASE, max_delay=MOST)
        self.getters: list[asyncio.Task[str]] = []
        self.wanted: set[str] = set()
        self.running: set[str] = set()
        self.timers: dict[str, float] = {}
        self.failures: dict[str, int] = {}

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.drain()
            self.loop.close()

    def drain(self) -> None:
        """In the end everything is handed out, whatever happened before."""
        self.settle(max(at - self.loop.time() for at in self.timers.values()) if self.timers else 0.0)
        for _ in range(20):
            self.getters.append(self.loop.create_task(self.queue.get()))
            self.settle()
            for key in sorted(self.running):
                self.do(self.queue.done, key)
                self.running.discard(key)
            self.settle()
        assert not self.wanted
        assert not self.running
        assert not self.timers
        for getter in self.getters:
            getter.cancel()
        self.settle()
        assert not self.getters

    def do(self, call: Any, *args: Any, **more: Any) -> None:
        async def inside() -> None:
            call(*args, **more)

        self.loop.run_until_complete(inside())

    def settle(self, seconds: float = 0.0) -> None:
        """Lets time pass, and everybody who can go on."""

        async def wait() -> None:
            await asyncio.sleep(seconds)
            for _ in range(10):
                await asyncio.sleep(0)

        self.loop.run_until_complete(wait())
        due = {key for key, at in self.timers.items() if at <= self.loop.time()}
        for key in due:
            del self.timers[key]
        self.wanted |= due
        for getter in [getter for getter in self.getters if getter.done()]:
            self.getters.remove(getter)
            if getter.cancelled():
                continue
            key = getter.result()
            assert key in self.wanted, f"{key} was handed out, and nobody had added it, or its time had not come"
            assert key not in self.running, f"{key} is in the hands of two workers"
            self.wanted.discard(key)
            self.running.add(key)

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        self.do(self.queue.add, key)
        self.want(key)
        self.settle()

    @rule(key=KEYS, seconds=SECONDS)
    def add_after(self, key: str, seconds: float) -> None:
        self.do(self.queue.add_after, key, seconds)
        self.want_after(key, seconds)
        self.settle()

    @rule(key=KEYS, at_least=SECONDS)
    def fail(self, key: str, at_least: float) -> None:
        self.do(self.queue.add_rate_limited, key, at_least=at_least)
        delay = min(MOST, BASE * 2 ** self.failures.get(key, 0))
        self.failures[key] = self.failures.get(key, 0) + 1
        self.want_after(key, max(at_least, delay))
        self.settle()

    @rule(key=KEYS)
    def forget(self, key: str) -> None:
        self.queue.forget(key)
        self.failures.pop(key, None)

    @rule()
    def come_to_work(self) -> None:
        self.getters.append(self.loop.create_task(self.queue.get()))
        self.settle()

    @precondition(lambda self: self.getters)
    @rule(data=st.data(), keys=st.lists(KEYS, max_size=3))
    def leave_just_as_keys_come(self, data: st.DataObject, keys: list[str]) -> None:
        """Whoever is woken and cancelled in one breath must not take the call with him."""
        getter = self.getters[data.draw(st.integers(0, len(self.getters) - 1))]

        def in_one_breath() -> None:
            for key in keys:
                self.queue.add(key)
                self.want(key)
            getter.cancel()

        self.do(in_one_breath)
        self.settle()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.running)))
        self.do(self.queue.done, key)
        self.running.discard(key)
        self.settle()

    @rule(seconds=SECONDS)
    def pass_time(self, seconds: float) -> None:
        self.settle(seconds)

    def want(self, key: str) -> None:
        self.wanted.add(key)

    def want_after(self, key: str, seconds: float) -> None:
        if seconds <= 0:
            self.wanted.add(key)
        else:
            self.timers[key] = min(self.loop.time() + seconds, self.timers.get(key, float("inf")))

    @invariant()
    def nobody_waits_while_there_is_work(self) -> None:
        if not hasattr(self, "queue"):
            return
        ready = self.wanted - self.running
        assert len(self.queue) == len(ready)
        assert not (ready and self.getters)


QueueMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestQueue = QueueMachine.TestCase


def test_done_with_what_nobody_works_on_is_a_bug() -> None:
    queue = WorkQueue(metrics=Metrics())
    with pytest.raises(ValueError, match="nobody"):
        queue.done("a")


def test_backoff_doubles_with_jitter_up_to_the_cap() -> None:
    async def main() -> list[float]:
        queue = WorkQueue(metrics=Metrics(), clock=now, rng=random.Random(7), base_delay=1.0, max_delay=10.0)
        waits = []
        for _ in range(8):
            start = now()
            queue.add_rate_limited("a")
            await queue.get()
            queue.done("a")
            waits.append(now() - start)
        return waits

    waits = run(main)
    for wait, full in zip(waits, (1, 2, 4, 8, 10, 10, 10, 10), strict=True):
        assert full / 2 <= wait <= full
    assert len(set(waits)) == len(waits)


def test_a_timer_that_is_set_again_and_again_is_one_timer() -> None:
    """A run with a deadline in a week sets its timer at each visit, each time a hair earlier or later."""

    async def main() -> None:
        queue = WorkQueue(metrics=Metrics(), clock=now)
        for number in range(10_000):
            queue.add_after("a", 604_800 - number * 1e-3)
        assert len(queue._heap) < 200
        assert await queue.get() == "a"
        assert now() == pytest.approx(604_800 - 9_999e-3)

    run(main)


def test_metrics_of_the_queue() -> None:
    async def main() -> None:
        metrics = Metrics()
        queue = WorkQueue(metrics=metrics, clock=now)

        def value(name: str) -> float | None:
            return metrics.registry.get_sample_value(f"comd_operator_queue_{name}")

        for key in ("a", "b", "a"):
            queue.add(key)
        assert (value("depth"), value("adds_total")) == (2, 2)
        await asyncio.sleep(3.0)
        await queue.get()
        assert value("latency_seconds_sum") == 3.0
        await asyncio.sleep(2.0)
        assert value("longest_running_seconds") == 2.0
        queue.done("a")
        assert value("longest_running_seconds") == 0.0

    run(main)


def test_nobody_has_worked_for_no_time_at_all() -> None:
    """Not for less than that: a clock goes on while it is read."""
    ticks = itertools.count()
    queue = WorkQueue(metrics=Metrics(), clock=lambda: float(next(ticks)))
    assert queue.longest_running() == 0.0


def bucket(rate: float, burst: int) -> TokenBucket:
    return TokenBucket(rate=rate, burst=burst, clock=now, sleep=asyncio.sleep)


def test_a_burst_at_once_and_then_the_rate_in_the_order_of_arrival() -> None:
    async def main() -> None:
        limit, served = bucket(4.0, 3), []

        async def ask(number: int) -> None:
            waited = await limit.take()
            served.append((number, now(), waited))

        await asyncio.gather(*(ask(number) for number in range(7)))
        times = [0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0]
        assert served == [(number, time, time) for number, time in enumerate(times)]
        await asyncio.sleep(100.0)
        start = now()
        await asyncio.gather(*(limit.take() for _ in range(3)))
        assert now() == start, "no more is saved up than the burst"
        await limit.take()
        assert now() == start + 0.25

    run(main)


def test_who_gives_up_waiting_costs_the_others_nothing() -> None:
    async def main() -> None:
        limit = bucket(1.0, 1)
        await limit.take()
        tasks = [asyncio.create_task(limit.take()) for _ in range(4)]
        await asyncio.sleep(0.5)
        tasks[0].cancel()
        tasks[2].cancel()
        assert await tasks[1] == 1.0
        assert await tasks[3] == 2.0

    run(main)


def test_no_rate_is_no_limit_and_no_burst_is_an_error() -> None:
    async def main() -> None:
        limit = bucket(0.0, 1)
        assert [await limit.take() for _ in range(100)] == [0.0] * 100

    run(main)
    with pytest.raises(ValueError, match="burst"):
        TokenBucket(rate=1.0, burst=0)

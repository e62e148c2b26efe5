"""How far a stage is, asked of trainers that answer, that don't, and that answer nonsense."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from comd_api.stage import Progress as Said
from comd_operator.policies.progress import progress_text
from comd_operator.runtime import progress as module
from comd_operator.runtime.progress import AT_ONCE, Progress


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (None, None),
        (Said(stage="round-1"), None),
        (Said(stage="round-1", phase="tune"), "tune"),
        (Said(stage="round-1", phase="tune", done=0, total=200), "tune 0 %"),
        (Said(stage="round-1", phase="tune", done=87, total=200), "tune 43 %"),
        (Said(stage="round-1", phase="tune", done=199, total=200), "tune 99 %"),
        (Said(stage="round-1", phase="evaluate", done=200, total=200), "evaluate 100 %"),
    ],
)
def test_in_few_words(said: Said | None, text: str | None) -> None:
    assert progress_text(said) == text


class Trainers:
    """Pods that answer at `/progress`, on one port of this machine."""

    def __init__(self) -> None:
        self.answer: Callable[[], Any] = lambda: {"stage": "round-1", "phase": "tune", "done": 0, "total": 10}
        self.asked = 0
        self.at_once = self.most_at_once = 0
        self.port = 0

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        assert request.path == "/progress"
        self.asked += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            answer = self.answer()
            if isinstance(answer, Awaitable):
                answer = await answer
        finally:
            self.at_once -= 1
        return answer if isinstance(answer, web.StreamResponse) else web.json_response(answer)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Trainers"]:
        app = web.Application()
        app.router.add_get("/{any:.*}", self._serve)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield self
        finally:
            await runner.cleanup()


class Follower:
    """A Progress at work, and whom it has told of a change."""

    def __init__(self, trainers: Trainers, *, every: float = 0.02) -> None:
        self.told: list[str] = []
        self.progress = Progress(
            every_seconds=every, on_change=self.told.append, clock=time.monotonic, port=trainers.port
        )

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not reached():
                await asyncio.sleep(0.005)


@asynccontextmanager
async def following(trainers: Trainers, **options: Any) -> AsyncIterator[Follower]:
    follower = Follower(trainers, **options)
    task = asyncio.create_task(follower.progress.run())
    try:
        yield follower
        assert not task.done(), "it goes on whatever trainers do"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def play(scenario: Callable[[Trainers], Awaitable[None]]) -> None:
    async def act() -> None:
        async with Trainers().listening() as trainers:
            await scenario(trainers)

    asyncio.run(act())


def test_a_change_is_told_once() -> None:
    async def scenario(trainers: Trainers) -> None:
        async with following(trainers) as follower:
            follower.progress.follow("job", ip="127.0.0.1", run_uid="run")
            await follower.until(lambda: trainers.asked >= 3)
            assert (follower.progress.of("job"), follower.told) == ("tune 0 %", ["run"])
            trainers.answer = lambda: {"stage": "round-1", "phase": "tune", "done": 7, "total": 10}
            await follower.until(lambda: follower.progress.of("job") == "tune 70 %")
            assert follower.told == ["run", "run"]

    play(scenario)


def test_nobody_is_asked_before_its_time() -> None:
    """A stage that has just begun has nothing to tell; and one that is followed again is not asked sooner for it."""

    async def scenario(trainers: Trainers) -> None:
        async with following(trainers, every=0.3) as follower:
            begun = time.monotonic()
            follower.progress.follow("job", ip="127.0.0.1", run_uid="run")
            while trainers.asked == 0:
                follower.progress.follow("job", ip="127.0.0.1", run_uid="run")
                await asyncio.sleep(0.01)
            assert time.monotonic() - begun >= 0.3
            await asyncio.sleep(0.15)
            assert trainers.asked == 1

    play(scenario)


@pytest.mark.parametrize(
    "nonsense",
    [
        lambda: web.Response(status=500, text="no"),
        lambda: web.Response(text="no JSON"),
        lambda: web.Response(text="{", content_type="application/json"),
        lambda: {"phase": "tune"},
        lambda: {"stage": "round-1", "phase": "dance"},
        lambda: {"stage": "round-1", "done": "7"},
        lambda: [1],
        lambda: None,
    ],
)
def test_nonsense_is_no_progress(nonsense: Callable[[], Any]) -> None:
    async def scenario(trainers: Trainers) -> None:
        trainers.answer = nonsense
        async with following(trainers) as follower:
            follower.progress.follow("job", ip="127.0.0.1", run_uid="run")
            await follower.until(lambda: trainers.asked >= 2)
            assert (follower.progress.of("job"), follower.told) == (None, [])

    play(scenario)


def test_a_pod_that_is_not_there_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.1)

    async def scenario(trainers: Trainers) -> None:
        async def hang() -> Any:
            if trainers.asked == 1:
                await asyncio.sleep(60)
            return {"stage": "round-1", "phase": "tune"}

        trainers.answer = hang
        async with following(trainers) as follower:
            for job in ("slow", "other"):
                follower.progress.follow(job, ip="127.0.0.1", run_uid=job)
            follower.progress.follow("gone", ip="127.0.0.2", run_uid="gone")
            await follower.until(lambda: follower.progress.of("slow") == follower.progress.of("other") == "tune")

    play(scenario)


def test_a_job_that_is_forgotten_is_not_asked_about() -> None:
    async def scenario(trainers: Trainers) -> None:
        async with following(trainers) as follower:
            follower.progress.follow("job", ip="127.0.0.1", run_uid="run")
            await follower.until(lambda: follower.progress.of("job") is not None)
            follower.progress.forget("job")
            follower.progress.forget("nobody")
            assert follower.progress.of("job") is None
            asked = trainers.asked
            await asyncio.sleep(0.1)
            assert trainers.asked <= asked + 1

    play(scenario)


def test_another_pod_of_a_job_begins_anew() -> None:
    """After a preemption, say: what the last one said is not so any more."""

    async def scenario(trainers: Trainers) -> None:
        async with following(trainers, every=0.2) as follower:
            follower.progress.follow("job", ip="127.0.0.1", run_uid="run")
            await follower.until(lambda: follower.progress.of("job") is not None)
            follower.progress.follow("job", ip="127.0.0.2", run_uid="run")
            assert follower.progress.of("job") is None

    play(scenario)


def test_it_ends_when_it_is_cancelled_just_as_it_is_woken() -> None:
    """`asyncio.wait_for` of Python 3.11 takes the cancellation for the waking; the operator would never end."""

    async def scenario(trainers: Trainers) -> None:
        follower = Follower(trainers, every=60)
        task = asyncio.create_task(follower.progress.run())
        await asyncio.sleep(0.05)
        follower.progress.follow("job", ip="127.0.0.1", run_uid="run")
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=1)
        assert task in done

    play(scenario)


def test_many_are_asked_a_few_at_a_time() -> None:
    async def scenario(trainers: Trainers) -> None:
        async def slowly() -> Any:
            await asyncio.sleep(0.02)
            return {"stage": "round-1", "phase": "tune"}

        trainers.answer = slowly
        async with following(trainers, every=0.1) as follower:
            for number in range(4 * AT_ONCE):
                follower.progress.follow(f"job-{number}", ip="127.0.0.1", run_uid=f"run-{number}")
            await follower.until(lambda: len(follower.told) == 4 * AT_ONCE)
            assert trainers.most_at_once == AT_ONCE

    play(scenario)


def test_an_address_of_version_6() -> None:
    async def scenario(trainers: Trainers) -> None:
        async with following(trainers) as follower:
            follower.progress.follow("job", ip="::ffff:127.0.0.1", run_uid="run")
            await follower.until(lambda: follower.progress.of("job") == "tune 0 %")

    play(scenario)

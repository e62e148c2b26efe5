"""The reflector against a server that does what servers and networks do at their worst: in the end the store is right."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from comd_operator.runtime import reflector as module
from comd_operator.runtime.api import ApiError
from comd_operator.runtime.metrics import Metrics
from comd_operator.runtime.reflector import Reflector, Reminder
from comd_operator.runtime.store import Store
from tests.unit.faulty_api import (
    Fault,
    FaultyServer,
    connected,
    drop,
    hang,
    in_stream_error,
    refuse,
    serving,
    stream,
    write_kubeconfig,
)


async def unknown(_request: web.Request) -> web.StreamResponse:
    """As the API server answers of a kind that it does not have."""
    return web.Response(status=404, text="404 page not found\n")


class World:
    def __init__(self, server: FaultyServer, reflector: Reflector[str], store: Store[str], metrics: Metrics) -> None:
        self.server, self.reflector, self.store, self.metrics = server, reflector, store, metrics
        self.told: list[str] = []
        self.pauses: list[float] = []

    def names(self) -> set[str]:
        return set(self.store)

    async def until(self, what: Callable[[], bool], *, seconds: float = 5.0) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, f"not so after {seconds} s; held: {self.names()}"
            await asyncio.sleep(0.005)

    async def until_equal(self) -> None:
        await self.until(lambda: self.names() == set(self.server.objects))

    async def settled(self) -> None:
        """A watch is under way from where the server is."""
        await self.until(lambda: self.server.count("watch") == 1)
        await self.server.write("settled")
        await self.until(lambda: "settled" in self.names())

    def restarts(self, reason: str) -> float:
        labels = {"resource": "things", "reason": reason}
        return self.metrics.registry.get_sample_value("comd_operator_watch_restarts_total", labels) or 0.0


Play = Callable[..., None]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Plays a scenario beside a running reflector; its pauses are noted, and cut short."""

    @asynccontextmanager
    async def world(server: FaultyServer, **settings: Any) -> AsyncIterator[World]:
        metrics = Metrics()
        async with serving(server.handle) as url:
            monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "kubeconfig", url)))
            async with connected(metrics=metrics) as api:
                store: Store[str] = Store(
                    read=lambda obj: str(obj["metadata"]["name"]), owners=lambda name: (f"owner of {name}",)
                )

                async def sleep(seconds: float) -> None:
                    here.pauses.append(seconds)
                    await asyncio.sleep(min(seconds, 0.01))

                reflector = Reflector(
                    api=api,
                    resource="things",
                    api_version="x/v1",
                    namespace="n",
                    params={"labelSelector": "a=b"},
                    store=store,
                    on_change=lambda owners: here.told.extend(sorted(owners)),
                    metrics=metrics,
                    sleep=sleep,
                    rng=random.Random(1),
                    **{"inactivity_timeout": 5.0, **settings},
                )
                here = World(server, reflector, store, metrics)
                task = asyncio.create_task(reflector.run())
                try:
                    yield here
                    assert not task.done(), "a reflector never ends by itself"
                finally:
                    task.cancel()
                    await asyncio.wait({task})
                assert task.cancelled()

    def run(scenario: Callable[[World], Coroutine[Any, Any, None]], prepare: Any = None, **settings: Any) -> None:
        async def main() -> None:
            server = FaultyServer()
            if prepare is not None:
                await prepare(server)
            async with world(server, **settings) as here:
                await scenario(here)

        asyncio.run(main())

    return run


async def three(server: FaultyServer) -> None:
    for name in ("a", "b", "c"):
        await server.write(name)


def test_lists_then_watches(play: Play) -> None:
    async def scenario(world: World) -> None:
        await world.reflector.synced.wait()
        assert world.names() == {"a", "b", "c"}
        assert sorted(world.told) == ["owner of a", "owner of b", "owner of c"]
        await world.server.write("d")
        await world.server.write("a", colour="red")
        await world.server.delete("b")
        await world.until(lambda: world.told[3:] == ["owner of d", "owner of a", "owner of b"])
        assert world.names() == {"a", "c", "d"}
        assert world.pauses == []
        first, second = world.server.requests
        assert first.path == second.path == "/apis/x/v1/namespaces/n/things"
        assert first.query["labelSelector"] == second.query["labelSelector"] == "a=b"
        assert first.query["limit"] == "500"
        assert second.query["allowWatchBookmarks"] == "true"
        assert second.query["resourceVersion"] == "103"

    play(scenario, three)


def test_a_long_list_comes_in_pages(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 2)

    async def scenario(world: World) -> None:
        await world.reflector.synced.wait()
        assert world.names() == {"a", "b", "c"}
        assert world.server.count("get") == 2

    play(scenario, three)


def test_pages_that_the_server_forgot_meanwhile_are_asked_for_as_one(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 2)

    async def prepare(server: FaultyServer) -> None:
        await three(server)

        async def answer_and_forget(request: Any) -> Any:
            answer = await server._list(request)
            await server.write("late")
            server.forget()
            return answer

        server.list_faults = [answer_and_forget]

    async def scenario(world: World) -> None:
        await world.reflector.synced.wait()
        assert world.names() == {"a", "b", "c", "late"}
        assert [request.query.get("limit") for request in world.server.requests[:3]] == ["2", "2", None]

    play(scenario, prepare)


@pytest.mark.parametrize("way", ["status", "event"])
def test_a_place_that_is_lost_is_found_by_a_new_list_at_once(play: Play, way: str) -> None:
    """And what vanished in the gap is no ghost."""

    async def scenario(world: World) -> None:
        await world.settled()
        await world.server.delete("b", silently=True)
        await world.server.write("d")
        world.server.forget()
        if way == "status":
            world.server.watch_faults = [refuse(410, "Expired")]
        await end_watch(world)
        await world.until_equal()
        assert "b" not in world.names()
        assert "owner of b" in world.told
        assert world.server.count("get") == 2
        assert world.restarts("410") == 1
        assert world.pauses == []

    play(scenario, three)


async def end_watch(world: World) -> None:
    """The server ends what is under way, as it does now and then."""
    for request in world.server.requests:
        if request.query.get("watch") and request.transport is not None:
            request.transport.abort()


FAULTS: dict[str, list[Fault]] = {
    "too many requests": [refuse(429, "TooManyRequests", Retry_After="7")] * 2,
    "server errors": [refuse(500), refuse(503), refuse(504)],
    "forbidden for a while": [refuse(403, "Forbidden"), refuse(403, "Forbidden")],
    "no connection": [drop, drop],
    "an error in the stream": [stream(in_stream_error(500, "InternalError"))],
    "an error in the stream without a code": [stream({"type": "ERROR", "object": {}})],
    "a version that the server has not reached": [stream(in_stream_error(504, "Timeout"))] * 4,
    "half an event": [stream(then="break")],
    "nonsense": [stream({"type": "WHAT", "object": {"metadata": {}}})],
    "an object without a version": [stream({"type": "ADDED", "object": {"metadata": {"name": "x"}}})] * 4,
    "streams that end at once": [stream()] * 4,
    "expired again and again": [stream(in_stream_error(410, "Expired"))] * 4,
}


@pytest.mark.parametrize("name", FAULTS)
def test_it_survives_and_is_right_in_the_end(play: Play, name: str) -> None:
    async def scenario(world: World) -> None:
        await world.settled()
        world.server.watch_faults = list(FAULTS[name])
        await end_watch(world)
        await world.server.delete("b")
        await world.server.write("d")
        await world.until(lambda: not world.server.watch_faults)
        await world.until_equal()
        assert "owner of b" in world.told
        assert "owner of d" in world.told
        assert 0 < len(world.pauses) <= len(FAULTS[name])
        assert world.server.count("get") <= 1 + len(FAULTS[name])

    play(scenario, three)


@pytest.mark.parametrize("name", ["server errors", "no connection"])
def test_a_first_list_that_fails_is_tried_again(play: Play, name: str) -> None:
    async def prepare(server: FaultyServer) -> None:
        await three(server)
        server.list_faults = list(FAULTS[name])

    async def scenario(world: World) -> None:
        await world.reflector.synced.wait()
        assert world.names() == {"a", "b", "c"}
        assert 1 <= len(world.pauses) <= len(FAULTS[name]), "a dropped connection is tried again by aiohttp itself"

    play(scenario, prepare)


def test_a_resource_that_the_server_does_not_have_is_waited_for(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """Said once a minute, not with each try, and without the empty line that the server's words end in."""
    time_of_day = [0.0]
    not_installed = Reminder("things are not installed; waiting for them", clock=lambda: time_of_day[0])

    async def prepare(server: FaultyServer) -> None:
        await three(server)
        server.list_faults = [unknown] * 6

    async def scenario(world: World) -> None:
        await world.until(lambda: len(world.pauses) == 4)
        time_of_day[0] = 60.0
        await world.reflector.synced.wait()
        assert world.names() == {"a", "b", "c"}

    play(scenario, prepare, unknown=not_installed)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        not_installed.sentence
    ] * 2


def test_what_a_server_says_has_no_lines() -> None:
    assert str(ApiError.of({"reason": "NotFound", "message": "404 page not found\n"}, status=404)) == (
        "404 NotFound: 404 page not found"
    )


def test_it_is_not_synced_before_a_list_is_complete(play: Play) -> None:
    async def prepare(server: FaultyServer) -> None:
        server.list_faults = [hang]

    async def scenario(world: World) -> None:
        await asyncio.sleep(0.1)
        assert not world.reflector.synced.is_set()
        assert world.reflector.age() >= 0.1

    play(scenario, prepare)


def test_a_watch_that_fails_for_good_is_tried_ever_more_seldom(play: Play) -> None:
    """A list that works is no success of the watch: a role without `watch` must not make thousands of lists."""

    async def scenario(world: World) -> None:
        await world.settled()
        world.server.watch_faults = [refuse(403, "Forbidden")] * 12
        await end_watch(world)
        await world.until(lambda: len(world.pauses) == 10)
        for pause, full in zip(world.pauses, (0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30, 30, 30), strict=True):
            assert full / 2 <= pause <= full
        await world.until_equal()

    play(scenario, three)


def test_a_watch_that_worked_makes_good_for_failures_before(play: Play) -> None:
    async def scenario(world: World) -> None:
        await world.settled()
        for _ in range(3):
            await world.until(lambda: not world.server.watch_faults)
            await world.server.write("new", n=world.server.version)
            await world.until(lambda: world.told[-1:] == ["owner of new"])
            world.told.append("…")
            world.pauses.clear()
            world.server.watch_faults = [refuse(500)] * 2
            await end_watch(world)
            await world.until(lambda: len(world.pauses) == 2)
            assert world.pauses[0] <= 0.8

    play(scenario)


def test_after_a_failure_it_goes_on_where_it_was_and_does_not_list(play: Play) -> None:
    async def scenario(world: World) -> None:
        await world.settled()
        world.server.watch_faults = [refuse(500), drop]
        await end_watch(world)
        await world.server.delete("b")
        await world.until_equal()
        assert world.server.count("get") == 1

    play(scenario, three)


def test_a_server_restored_from_a_backup_is_listed_anew(play: Play) -> None:
    """It has not reached the version where the watch is, and would have it wait for ever."""

    async def scenario(world: World) -> None:
        await world.settled()
        world.server.version = 50
        world.server.objects.clear()
        world.server.log.clear()
        await world.server.write("old")
        await end_watch(world)
        await world.until_equal()
        assert world.names() == {"old"}
        assert world.restarts("504") == 3

    play(scenario, three)


def test_retry_after_is_respected(play: Play) -> None:
    async def scenario(world: World) -> None:
        await world.settled()
        world.server.watch_faults = [refuse(429, "TooManyRequests", Retry_After="17")]
        await end_watch(world)
        await world.until(lambda: bool(world.pauses))
        assert max(world.pauses) == 17.0

    play(scenario)


def test_a_watch_that_is_dead_without_saying_so_is_begun_anew(play: Play) -> None:
    async def prepare(server: FaultyServer) -> None:
        await three(server)
        server.watch_faults = [stream(then="hang"), hang]

    async def scenario(world: World) -> None:
        await world.reflector.synced.wait()
        await world.server.delete("b")
        await world.until_equal()
        assert world.restarts("Timeout") == 2

    play(scenario, prepare, inactivity_timeout=0.2)


def test_bookmarks_keep_it_alive_and_move_its_place(play: Play) -> None:
    async def scenario(world: World) -> None:
        await world.settled()
        for _ in range(8):
            await asyncio.sleep(0.1)
            await world.server.bookmark()
        await asyncio.sleep(0.02)
        assert world.reflector.age() < 0.1
        assert world.server.count("watch") == 1
        last = world.server.version
        late = {"metadata": {"namespace": "n", "name": "late", "resourceVersion": str(last - 1)}}
        assert world.store.put(late) == set(), "the watch has passed it without a word"
        await end_watch(world)
        await world.until(lambda: world.server.count("watch") == 2)
        assert world.server.requests[-1].query["resourceVersion"] == str(last)

    play(scenario, inactivity_timeout=0.3)


def test_everything_is_listed_anew_now_and_then(play: Play) -> None:
    """Even if the watch believes that all is well and has missed something."""

    async def scenario(world: World) -> None:
        await world.settled()
        await world.server.delete("b", silently=True)
        await world.until_equal()
        assert "owner of b" in world.told
        assert world.restarts("ended") == 0

    play(scenario, three, resync=0.5)


def test_an_error_that_nobody_thought_of_ends_nothing(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        await world.settled()
        whole, world.store.put = world.store.put, None  # type: ignore[assignment, method-assign]
        await world.server.write("d")
        await world.until(lambda: bool(world.pauses))
        world.store.put = whole  # type: ignore[method-assign]
        await world.until_equal()
        assert "NoneType" in caplog.text

    play(scenario, three)


def test_a_flood_of_mishaps_leaves_the_store_right(play: Play) -> None:
    """Objects come and go while every kind of fault happens, in a hundred orders."""
    rng = random.Random(20)

    async def scenario(world: World) -> None:
        await world.settled()
        for step in range(100):
            faults: list[Fault] = rng.choice([*FAULTS.values(), [drop], []])
            world.server.watch_faults = [fault for fault in faults if rng.random() < 0.5]
            if rng.random() < 0.2:
                world.server.list_faults = [rng.choice([drop, refuse(500), refuse(429, "TooManyRequests")])]
            if rng.random() < 0.3:
                world.server.forget()
            if rng.random() < 0.7:
                await end_watch(world)
            name = rng.choice("abcdef")
            if name in world.server.objects and rng.random() < 0.5:
                await world.server.delete(name)
            elif rng.random() < 0.5:
                await world.server.write(name)
            else:
                world.store.put(await world.server.write(f"own-{step % 5}"))
            await asyncio.sleep(rng.random() * 0.01)
        world.server.watch_faults, world.server.list_faults = [], []
        await world.until_equal()

    play(scenario, three)


def test_the_error_of_a_stream_is_the_servers_word() -> None:
    error = ApiError.of(in_stream_error(500, "InternalError")["object"], status=500)
    assert (error.status, error.reason, error.message) == (500, "InternalError", "by the test")

"""The proxy that tests put in front of the real API server, in front of a small one: what it counts, and the harm that it does."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from comd_operator.runtime.api import Api, ApiError
from comd_operator.runtime.credentials import load
from comd_operator.runtime.limiter import TokenBucket
from comd_operator.runtime.metrics import Metrics
from tests.api.proxy import Call, Fault, Hook, Proxy, serve
from tests.unit.faulty_api import serving, write_kubeconfig

JOBS = "/apis/batch/v1/namespaces/team/jobs"


class Upstream:
    """Remembers what reached it; its watch tells a number every 20 ms."""

    def __init__(self) -> None:
        self.reached: list[tuple[str, str, Any, str | None]] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        body = json.loads(text) if text else None
        self.reached.append((request.method, request.path_qs, body, request.headers.get("Authorization")))
        if request.query.get("watch") != "true":
            return web.json_response({"body": body, "kind": request.headers["Content-Type"]})
        response = web.StreamResponse()
        await response.prepare(request)
        for number in range(500):
            await response.write(json.dumps({"type": "ADDED", "object": {"number": number}}).encode() + b"\n")
            await asyncio.sleep(0.02)
        return response


Play = Callable[[Callable[[Api, Proxy, Upstream], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    @asynccontextmanager
    async def world() -> AsyncIterator[tuple[Api, Proxy, Upstream]]:
        upstream = Upstream()
        async with serving(upstream.handle) as url:
            file = write_kubeconfig(tmp_path / "kubeconfig", url)
            monkeypatch.setenv("KUBECONFIG", str(file))
            async with serve(kubeconfig=file, token="somebody") as proxy:
                limiter = TokenBucket(rate=0, burst=1)
                api = Api(
                    configuration=await load(context="proxy"),
                    limiter=limiter,
                    metrics=Metrics(),
                    timeout=2.0,
                    user_agent="me/1",
                )
                try:
                    yield api, proxy, upstream
                finally:
                    await api.close()

    def run(scenario: Callable[[Api, Proxy, Upstream], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            async with world() as (api, proxy, upstream):
                await scenario(api, proxy, upstream)

        asyncio.run(main())

    return run


def at(number: int, fault: Fault) -> Hook:
    async def hook(call: Call) -> Fault | None:
        return fault if call.number == number else None

    return hook


def test_requests_go_through_and_are_counted(play: Play) -> None:
    async def scenario(api: Api, proxy: Proxy, upstream: Upstream) -> None:
        await api.get(JOBS, params={"labelSelector": "a=b"})
        await api.get(f"{JOBS}/x")
        patch = [{"op": "add", "path": "/status", "value": 1}]
        answer = await api.patch(f"{JOBS}/x/status", patch, content_type="application/json-patch+json")
        assert answer == {"body": patch, "kind": "application/json-patch+json"}
        await api.create(JOBS, {"a": 1})
        await api.delete(f"{JOBS}/x")
        assert [call.what for call in proxy.calls] == [
            "list jobs",
            "get jobs",
            "patch jobs/status",
            "create jobs",
            "delete jobs",
        ]
        assert [call.number for call in proxy.calls] == [1, 2, 3, 4, 5]
        assert [call.body for call in proxy.writes()] == [patch, {"a": 1}, None]
        assert {(call.group, call.user_agent) for call in proxy.calls} == {("batch", "me/1")}
        assert [reached[3] for reached in upstream.reached] == ["Bearer somebody"] * 5
        assert upstream.reached[0][1].startswith(f"{JOBS}?labelSelector=a")
        assert proxy.count("list jobs") == 1

    play(scenario)


@pytest.mark.parametrize("carried_out", [False, True])
def test_a_dropped_call_has_or_has_not_happened(play: Play, carried_out: bool) -> None:
    async def scenario(api: Api, proxy: Proxy, upstream: Upstream) -> None:
        proxy.hook = at(2, Fault(kind="Drop", carried_out=carried_out))
        await api.create(JOBS, {"n": 1})
        with pytest.raises(ApiError) as caught:
            await api.create(JOBS, {"n": 2})
        assert caught.value.status == 0
        await api.create(JOBS, {"n": 3})
        assert [reached[2]["n"] for reached in upstream.reached] == ([1, 2, 3] if carried_out else [1, 3])
        assert [call.body["n"] for call in proxy.calls] == [1, 2, 3]

    play(scenario)


def test_refusals_and_nonsense(play: Play) -> None:
    async def scenario(api: Api, proxy: Proxy, upstream: Upstream) -> None:
        proxy.hook = at(1, Fault(kind="Answer", status=429, retry_after=7))
        with pytest.raises(ApiError) as caught:
            await api.create(JOBS, {})
        assert (caught.value.status, caught.value.retry_after) == (429, 7.0)
        proxy.hook = at(2, Fault(kind="Text", text="<html>"))
        with pytest.raises(ApiError, match="Garbled"):
            await api.create(JOBS, {})
        assert upstream.reached == []

    play(scenario)


def test_a_hook_can_hold_a_call_and_see_its_answer(play: Play) -> None:
    """How a test kills an operator at exactly its n-th call, before or after the server has heard of it."""
    order: list[str] = []

    async def scenario(api: Api, proxy: Proxy, upstream: Upstream) -> None:
        async def before(call: Call) -> None:
            order.append(f"before {call.number}: {len(upstream.reached)}")

        async def after(call: Call) -> None:
            order.append(f"after {call.number}: {len(upstream.reached)}")

        proxy.hook, proxy.after = before, after
        await api.create(JOBS, {})
        await api.get(JOBS)
        assert order == ["before 1: 0", "after 1: 1", "before 2: 1", "after 2: 2"]

    play(scenario)


def test_latency(play: Play) -> None:
    async def scenario(api: Api, proxy: Proxy, _upstream: Upstream) -> None:
        proxy.latency = 0.2
        start = time.monotonic()
        await api.get(JOBS)
        assert time.monotonic() - start >= 0.2

    play(scenario)


async def follow(api: Api, *, at_least: int) -> tuple[int, ApiError | None]:
    """How many events came before the watch ended, and how it did."""
    seen = 0
    try:
        async for event in api.watch(JOBS, params={}, inactivity_timeout=1.0):
            seen += 1
            if event["type"] == "ERROR":
                return seen, ApiError.of(event["object"], status=event["object"]["code"])
    except ApiError as error:
        assert seen >= at_least
        return seen, error
    return seen, None


def test_watches_are_streamed_torn_and_refused(play: Play) -> None:
    async def scenario(api: Api, proxy: Proxy, _upstream: Upstream) -> None:
        for end in ("torn", "refused"):
            task = asyncio.create_task(follow(api, at_least=3))
            await asyncio.sleep(0.3)
            assert not task.done()
            if end == "torn":
                proxy.end_watches("pods")
                await asyncio.sleep(0.05)
                assert not task.done()
                proxy.end_watches("jobs")
            else:
                await proxy.refuse_watches(410, "Expired")
            seen, error = await task
            assert seen >= 3
            assert error is not None
            assert error.status == (0 if end == "torn" else 410)
        assert [call.number for call in proxy.calls] == [0, 0]

    play(scenario)


def test_a_stalled_watch_is_open_and_tells_nothing(play: Play) -> None:
    async def scenario(api: Api, proxy: Proxy, _upstream: Upstream) -> None:
        task = asyncio.create_task(follow(api, at_least=1))
        await asyncio.sleep(0.1)
        proxy.stall("jobs")
        assert (await api.get(JOBS)) is not None
        _, error = await task
        assert error is not None
        assert error.reason == "Timeout"
        proxy.release()
        seen = [event async for event in some(api, 3)]
        assert len(seen) == 3

    play(scenario)


async def some(api: Api, number: int) -> AsyncIterator[dict[str, Any]]:
    events = api.watch(JOBS, params={}, inactivity_timeout=1.0)
    try:
        for _ in range(number):
            yield await anext(events)
    finally:
        await events.aclose()


def test_a_network_that_is_gone_answers_nobody(play: Play) -> None:
    async def scenario(api: Api, proxy: Proxy, upstream: Upstream) -> None:
        proxy.fall_silent()
        with pytest.raises(ApiError, match="Timeout"):
            await api.create(JOBS, {}, timeout=0.2)
        assert upstream.reached == []
        proxy.release()
        assert await api.create(JOBS, {"n": 1}) is not None

    play(scenario)

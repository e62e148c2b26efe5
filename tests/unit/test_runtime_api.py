"""The client: what it sends, what it makes of answers and of their absence, where it finds its credentials."""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import incluster_config

from comd_api.exit_codes import UserError
from comd_operator.runtime import credentials
from comd_operator.runtime.api import Api, ApiError, namespaced, resource_of
from comd_operator.runtime.limiter import TokenBucket
from comd_operator.runtime.metrics import Metrics
from tests.unit.faulty_api import Fault, connected, drop, hang, refuse, serving, stream, write_kubeconfig

JOBS = "/apis/batch/v1/namespaces/team/jobs"
Scenario = Callable[[Api], Coroutine[Any, Any, None]]
Against = Callable[..., None]


@pytest.fixture
def against(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Against:
    """Runs a scenario with a client whose server answers with these, one after the other, the last one for ever."""

    def run(scenario: Scenario, *answers: Fault, user: dict[str, Any] | None = None, **settings: Any) -> None:
        left = list(answers)

        async def handle(request: web.Request) -> web.StreamResponse:
            return await (left.pop(0) if len(left) > 1 else left[0])(request)

        async def main() -> None:
            async with serving(handle) as url:
                file = write_kubeconfig(tmp_path / "kubeconfig", url, **(user or {}))
                monkeypatch.setenv("KUBECONFIG", str(file))
                async with connected(**settings) as api:
                    await scenario(api)

        asyncio.run(main())

    return run


async def echo(request: web.Request) -> web.StreamResponse:
    """Tells what it was sent."""
    text = await request.text()
    return web.json_response(
        {
            "method": request.method,
            "path": request.path,
            "query": dict(request.query),
            "headers": dict(request.headers),
            "body": json.loads(text) if text else None,
        }
    )


def test_what_is_sent(against: Against) -> None:
    async def scenario(api: Api) -> None:
        got = await api.get(JOBS, params={"labelSelector": "a/b=c d,e!=+", "limit": "5"})
        assert (got["method"], got["path"]) == ("GET", JOBS)
        assert got["query"] == {"labelSelector": "a/b=c d,e!=+", "limit": "5"}
        assert got["headers"]["User-Agent"] == "test/1"
        assert got["headers"]["Authorization"] == "Bearer secret"
        made = await api.create(JOBS, {"unknown": {"field": 8}})
        assert (made["method"], made["body"]) == ("POST", {"unknown": {"field": 8}})
        assert made["headers"]["Content-Type"] == "application/json"
        patch = [{"op": "add", "path": "/status", "value": {"ü": 1}}]
        patched = await api.patch(f"{JOBS}/x", patch, content_type="application/json-patch+json")
        assert (patched["method"], patched["body"]) == ("PATCH", patch)
        assert patched["headers"]["Content-Type"] == "application/json-patch+json"
        merged = await api.patch(f"{JOBS}/x", {"a": None}, content_type="application/merge-patch+json")
        assert merged["body"] == {"a": None}
        assert merged["headers"]["Content-Type"] == "application/merge-patch+json"
        assert (await api.update(f"{JOBS}/x", {"a": 1}))["method"] == "PUT"
        deleted = await api.delete(f"{JOBS}/x", body={"propagationPolicy": "Foreground"})
        assert (deleted["method"], deleted["body"]) == ("DELETE", {"propagationPolicy": "Foreground"})
        assert (await api.delete(f"{JOBS}/x"))["body"] is None

    against(scenario, echo, user={"token": "secret"})


def test_a_refusal_is_told_in_the_servers_words(against: Against) -> None:
    async def quota(_request: web.Request) -> web.StreamResponse:
        details = {"kind": "jobs", "retryAfterSeconds": 3}
        body = {"kind": "Status", "reason": "Forbidden", "message": "exceeded quota", "details": details}
        return web.json_response(body, status=403)

    async def scenario(api: Api) -> None:
        with pytest.raises(ApiError, match="403 Forbidden: exceeded quota") as caught:
            await api.create(JOBS, {})
        error = caught.value
        assert (error.status, error.reason, error.message) == (403, "Forbidden", "exceeded quota")
        assert error.retry_after == 3.0

    against(scenario, quota)


async def page_of_a_proxy(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=502, text="<html>bad gateway</html>")


async def nonsense(_request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>\n</html>\n")


async def html(_request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>welcome to the hotel</html>")


async def half(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b'{"items": [')
    return await drop(request)


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (drop, 0, "NoConnection"),
        (half, 0, "NoConnection"),
        (hang, 0, "Timeout"),
        (html, 0, "Garbled"),
        (page_of_a_proxy, 502, "Bad Gateway"),
    ],
)
def test_what_is_no_answer_of_an_api_server(against: Against, answer: Fault, status: int, reason: str) -> None:
    async def scenario(api: Api) -> None:
        for request in (api.get(JOBS), api.create(JOBS, {})):
            with pytest.raises(ApiError) as caught:
                await request
            assert (caught.value.status, caught.value.reason) == (status, reason)

    against(scenario, answer, timeout=0.2)


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "k", "http://127.0.0.1:1")))
        async with connected() as api:
            with pytest.raises(ApiError) as caught:
                await api.get(JOBS)
            assert (caught.value.status, caught.value.reason) == (0, "NoConnection")

    asyncio.run(main())


def test_reading_is_tried_once_more_when_the_server_is_busy_and_writing_is_not(against: Against) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def scenario(api: Api) -> None:
        assert (await api.get(JOBS))["method"] == "GET"
        assert slept == [4.0]
        with pytest.raises(ApiError) as caught:
            await api.create(JOBS, {})
        assert caught.value.retry_after == 4.0
        with pytest.raises(ApiError, match="429"):
            await api.get(JOBS, urgent=True)
        with pytest.raises(ApiError, match="429"):
            await api.get(JOBS)
        assert slept == [4.0, 4.0]

    busy = refuse(429, "TooManyRequests", Retry_After="4")
    against(scenario, busy, echo, busy, busy, busy, busy, sleep=sleep)


def test_an_hour_is_not_waited_for(against: Against) -> None:
    async def scenario(api: Api) -> None:
        with pytest.raises(ApiError) as caught:
            await api.get(JOBS)
        assert caught.value.retry_after == 60.0

    against(scenario, refuse(503, Retry_After="3600"))


def test_all_but_the_urgent_go_through_the_limiter(against: Against) -> None:
    taken = 0

    class Counting(TokenBucket):
        async def take(self) -> float:
            nonlocal taken
            taken += 1
            return await super().take()

    async def scenario(api: Api) -> None:
        await api.get(JOBS)
        await api.create(JOBS, {})
        await api.update(JOBS, {})
        await api.patch(JOBS, {}, content_type="application/merge-patch+json")
        await api.delete(JOBS)
        async for _ in api.watch(JOBS, params={}, inactivity_timeout=1):
            pass
        assert taken == 6
        await api.get(JOBS, urgent=True)
        await api.create(JOBS, {}, urgent=True)
        await api.update(JOBS, {}, urgent=True)
        assert taken == 6

    against(scenario, echo, limiter=Counting(rate=0, burst=1))


def test_many_watches_leave_room_for_requests(against: Against) -> None:
    """A hundred namespaces are a hundred connections that never end; no pool may fill up with them."""

    async def answer(request: web.Request) -> web.StreamResponse:
        watching = request.query.get("watch") == "true"
        return await (stream({"type": "BOOKMARK", "object": {}}, then="hang") if watching else echo)(request)

    async def scenario(api: Api) -> None:
        watches = [api.watch(JOBS, params={}, inactivity_timeout=60) for _ in range(150)]
        async with asyncio.timeout(20):
            for watch in watches:
                assert (await anext(watch))["type"] == "BOOKMARK"
            assert (await api.get(JOBS))["method"] == "GET"
        for watch in watches:
            await watch.aclose()

    against(scenario, answer)


def test_events_are_whole_however_they_arrive(against: Against) -> None:
    events = [{"type": "ADDED", "object": {"text": "ü" * size}} for size in (1, 100_000, 3_000_000, 5)]

    async def crumbs(request: web.Request) -> web.StreamResponse:
        data = b"".join(json.dumps(event, ensure_ascii=False).encode() + b"\n" for event in events) + b"\n"
        response = web.StreamResponse()
        await response.prepare(request)
        for start in range(0, len(data), 99_991):
            await response.write(data[start : start + 99_991])
        return response

    async def scenario(api: Api) -> None:
        told = [event async for event in api.watch(JOBS, params={}, inactivity_timeout=5)]
        assert told == events

    against(scenario, crumbs)


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (refuse(410, "Expired"), 410, "Expired"),
        (hang, 0, "Timeout"),
        (stream({"type": "ADDED", "object": {}}, then="hang"), 0, "Timeout"),
        (stream({"type": "ADDED", "object": {}}, then="break"), 0, "NoConnection"),
        (nonsense, 0, "Garbled"),
    ],
)
def test_how_a_watch_ends_badly(against: Against, answer: Fault, status: int, reason: str) -> None:
    async def scenario(api: Api) -> None:
        async def follow() -> None:
            async for _ in api.watch(JOBS, params={}, inactivity_timeout=0.2):
                pass

        with pytest.raises(ApiError) as caught:
            await follow()
        assert (caught.value.status, caught.value.reason) == (status, reason)

    against(scenario, answer)


def test_a_watch_that_is_left_closes_its_connection(against: Against) -> None:
    gone = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b'{"type": "ADDED", "object": {}}\n')
                await asyncio.sleep(0.01)
        finally:
            gone.set()

    async def scenario(api: Api) -> None:
        events = api.watch(JOBS, params={}, inactivity_timeout=5)
        async with aclosing(events):
            async for event in events:
                assert event["type"] == "ADDED"
                break
        await asyncio.wait_for(gone.wait(), timeout=2)

    against(scenario, endless)


def test_a_cancelled_request_is_gone_at_once(against: Against) -> None:
    async def scenario(api: Api) -> None:
        task = asyncio.create_task(api.get(JOBS))
        await asyncio.sleep(0.05)
        task.cancel()
        start = time.monotonic()
        await asyncio.wait({task})
        assert task.cancelled()
        assert time.monotonic() - start < 1.0

    against(scenario, hang)


def test_requests_are_counted_by_verb_resource_and_code(against: Against) -> None:
    metrics = Metrics()

    def count(verb: str, resource: str, code: str) -> float | None:
        labels = {"verb": verb, "resource": resource, "code": code}
        return metrics.registry.get_sample_value("comd_operator_api_requests_total", labels)

    async def scenario(api: Api) -> None:
        await api.get(JOBS)
        await api.get(f"{JOBS}/x")
        await api.get("/api/v1/pods")
        await api.patch(f"{JOBS}/x/status", {}, content_type="application/merge-patch+json")
        await api.get("/apis/kueue.x-k8s.io")
        with pytest.raises(ApiError):
            await api.create(JOBS, {})
        with pytest.raises(ApiError):
            await api.create(JOBS, {})
        assert count("list", "jobs", "200") == 1
        assert count("get", "jobs", "200") == 1
        assert count("list", "pods", "200") == 1
        assert count("patch", "jobs/status", "200") == 1
        assert count("get", "discovery", "200") == 1
        assert count("create", "jobs", "409") == 1
        assert count("create", "jobs", "0") == 1
        took = {"verb": "create", "resource": "jobs"}
        name = "comd_operator_api_request_duration_seconds_count"
        assert metrics.registry.get_sample_value(name, took) == 2

    against(scenario, *[echo] * 5, refuse(409, "AlreadyExists"), drop, metrics=metrics)


def test_paths() -> None:
    assert namespaced("v1", "pods") == "/api/v1/pods"
    assert namespaced("v1", "pods", "n", "x") == "/api/v1/namespaces/n/pods/x"
    path = namespaced("comd.dev/v1", "distillationruns", "n", "x", subresource="status")
    assert path == "/apis/comd.dev/v1/namespaces/n/distillationruns/x/status"
    assert resource_of(path) == "distillationruns/status"
    assert resource_of("/api/v1/namespaces/n") == "namespaces"


PLUGIN = """
import json, pathlib, sys
calls = pathlib.Path(sys.argv[1])
number = len(calls.read_text()) + 1 if calls.exists() else 1
calls.write_text("x" * number)
expiry = sys.argv[2]
status = {"token": f"token-{number}", "expirationTimestamp": expiry}
print(json.dumps({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}))
"""


@pytest.mark.parametrize(("expiry", "tokens"), [("2001-01-01T00:00:00Z", 2), ("2101-01-01T00:00:00Z", 1)])
def test_a_credential_plugin_is_called_again_when_its_token_ends(
    against: Against, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expiry: str, tokens: int
) -> None:
    """And no more than once, however many requests find it expired."""
    (tmp_path / "plugin.py").write_text(PLUGIN)
    monkeypatch.setattr(credentials, "_LOOK_SECONDS", 0.2)

    async def scenario(api: Api) -> None:
        first = await api.get(JOBS)
        assert first["headers"]["Authorization"] == "Bearer token-1"
        await asyncio.sleep(0.25)
        answers = await asyncio.gather(*(api.get(JOBS) for _ in range(5)))
        assert {answer["headers"]["Authorization"] for answer in answers} == {f"Bearer token-{tokens}"}
        assert len((tmp_path / "calls").read_text()) == tokens

    arguments = [str(tmp_path / "plugin.py"), str(tmp_path / "calls"), expiry]
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": sys.executable, "args": arguments}
    against(scenario, echo, user={"exec": plugin})


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pod's service account; its folder."""
    (tmp_path / "token").write_text("one")
    (tmp_path / "ca.crt").write_text("a certificate")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    return tmp_path


def test_a_pods_token_is_read_anew_and_a_bad_moment_is_survived(pod: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minutes = 0

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Clock":
            return super().now(tz) + timedelta(minutes=minutes)

    async def token(api: Api) -> str:
        return str((await api.get(JOBS))["headers"]["Authorization"]).lower()

    async def main() -> None:
        nonlocal minutes
        async with serving(echo) as address:

            class WithoutTls(Configuration):
                """What speaks for the API server here."""

                host = property(lambda _: address, lambda _, __: None)
                ssl_ca_cert = property(lambda _: None, lambda _, __: None)

            monkeypatch.setattr(credentials, "Configuration", WithoutTls)
            async with connected() as api:
                assert await token(api) == "bearer one"
                (pod / "token").write_text("two")
                assert await token(api) == "bearer one"
                minutes = 2
                (pod / "token").write_text("")
                assert await token(api) == "bearer one", "the file is being written"
                (pod / "token").write_text("two")
                assert await token(api) == "bearer two"

    monkeypatch.setattr("kubernetes.aio.config.incluster_config.datetime.datetime", Clock)
    asyncio.run(main())


@pytest.mark.usefixtures("pod")
def test_in_a_pod_a_context_still_means_the_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "kubeconfig", "http://elsewhere")))
    assert asyncio.run(credentials.load(context="c")).host == "http://elsewhere"
    assert asyncio.run(credentials.load()).host == "https://[fd00::1]:443"


@pytest.mark.parametrize("text", [None, "", "[]", "{", "current-context: x", "contexts: [{name: a}]"])
def test_no_way_to_an_api_server_is_the_users_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    file = tmp_path / "kubeconfig"
    if text is not None:
        file.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(UserError, match="no way to an API server"):
        asyncio.run(credentials.load())


def test_a_certificate_that_is_none_is_the_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        limiter = TokenBucket(rate=0, burst=1)
        await Api.connect(limiter=limiter, metrics=Metrics(), user_agent="test/1")

    file = write_kubeconfig(tmp_path / "kubeconfig", "https://elsewhere")
    file.write_text(file.read_text().replace('"server"', '"certificate-authority-data": "bm9uZQ==", "server"'))
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(UserError, match="certificate"):
        asyncio.run(main())


@pytest.mark.usefixtures("pod")
def test_the_proxy_of_the_environment_is_used_for_a_kubeconfig_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "inside.example")
    for host, proxy in (("https://inside.example:6443", None), ("https://outside.example", "http://proxy:3128")):
        monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "kubeconfig", host)))
        assert asyncio.run(credentials.load(context="c")).proxy == proxy
    assert asyncio.run(credentials.load()).proxy is None

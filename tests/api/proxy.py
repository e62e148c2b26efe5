"""A proxy in front of the real API server: counts what the operator asks for, and does to it what networks and servers do."""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiohttp
from aiohttp import web
from kubernetes.aio import config
from kubernetes.aio.client.configuration import Configuration

from comd_operator.runtime.api import resource_of


@dataclass(frozen=True, kw_only=True)
class Call:
    number: int
    """From 1, lists and writes alike; watches are not numbered (0)."""
    verb: str
    """As RBAC has it: get, list, watch, create, update, patch, delete."""
    resource: str
    """`jobs`, `distillationruns/status` …"""
    path: str
    group: str
    at: float
    """Seconds of the monotonic clock."""
    body: Any = None
    user_agent: str = ""

    @property
    def writes(self) -> bool:
        return self.verb in ("create", "update", "patch", "delete")

    @property
    def what(self) -> str:
        return f"{self.verb} {self.resource}"


@dataclass(frozen=True, kw_only=True)
class Fault:
    kind: Literal["Answer", "Text", "Drop"]
    """`Answer`: a refusal. `Text`: 200 and a text. `Drop`: the connection is torn."""
    carried_out: bool = False
    """The server has done as it was asked; only its answer is lost. Else it never hears of it."""
    status: int = 500
    retry_after: float | None = None
    text: str = ""


Hook = Callable[[Call], Awaitable[Fault | None]]


async def no_fault(_call: Call) -> Fault | None:
    return None


@dataclass
class Proxy:
    url: str
    context: str = ""
    """Its name in the kubeconfig."""
    hook: Hook = no_fault
    """Asked before a call goes to the server."""
    after: Hook = no_fault
    """Asked when the server has answered."""
    latency: float = 0.0
    calls: list[Call] = field(default_factory=list)
    answers: list[tuple[Call, int]] = field(default_factory=list)
    """What the server itself said."""
    _watches: set["_Stream"] = field(default_factory=set)
    _stalled: set[str] = field(default_factory=set)
    _flows: asyncio.Event = field(default_factory=asyncio.Event)
    _silent: bool = False

    def __post_init__(self) -> None:
        self._flows.set()

    def writes(self) -> list[Call]:
        return [call for call in self.calls if call.writes]

    def written(self) -> list[Call]:
        """Writes that the server took."""
        return [call for call, status in self.answers if call.writes and status < 400]

    def count(self, what: str) -> int:
        return sum(call.what == what for call in self.calls)

    def end_watches(self, resource: str | None = None) -> None:
        """As a server does that goes away."""
        for stream in list(self._watches):
            if resource in (None, stream.resource):
                self._watches.discard(stream)
                _abort(stream.request)

    async def refuse_watches(self, code: int, reason: str, resource: str | None = None) -> None:
        """In the stream, as a server does that has forgotten the version where a watch is (410, `Expired`)."""
        status = {"kind": "Status", "code": code, "reason": reason, "message": "by the test's proxy"}
        for stream in list(self._watches):
            if resource in (None, stream.resource):
                self._watches.discard(stream)
                with suppress(ConnectionError):
                    await stream.response.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
                _abort(stream.request)

    def stall(self, resource: str) -> None:
        """Watches of it stay open and tell nothing, until they are released."""
        self._stalled.add(resource)
        self._flows.clear()

    def release(self) -> None:
        self._stalled.clear()
        self._silent = False
        self._flows.set()

    def fall_silent(self) -> None:
        """A network that is gone: nothing is refused, nothing is answered, nothing goes through."""
        self._silent = True
        self._flows.clear()

    async def _passes(self, resource: str) -> None:
        while self._silent or resource in self._stalled:
            await self._flows.wait()


@dataclass(frozen=True)
class _Stream:
    resource: str
    request: web.Request
    response: web.StreamResponse

    def __hash__(self) -> int:
        return id(self.request)


@asynccontextmanager
async def serve(*, kubeconfig: Path, context: str = "proxy", token: str | None = None) -> AsyncIterator[Proxy]:
    """kubeconfig: with the real server's administrator, and then with a context for the proxy. token: who to be in the
    administrator's place, such as a service account."""
    upstream = Configuration()
    await config.load_kube_config(config_file=str(kubeconfig), client_configuration=upstream)
    trust = ssl.create_default_context(cafile=upstream.ssl_ca_cert)
    if token is None:
        assert upstream.cert_file is not None, "the administrator has a certificate"
        trust.load_cert_chain(upstream.cert_file, upstream.key_file)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    connector = aiohttp.TCPConnector(ssl=trust, limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False, read_bufsize=2**22) as session:
        proxy = Proxy(url="", context=context)
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", _Forward(proxy, session, str(upstream.host), headers).handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        _add_context(kubeconfig, proxy)
        try:
            yield proxy
        finally:
            proxy.release()
            proxy.end_watches()
            await runner.cleanup()


def _add_context(kubeconfig: Path, proxy: Proxy) -> None:
    document = json.loads(kubeconfig.read_text())
    name = proxy.context
    document["users"].append({"name": name, "user": {}})
    document["clusters"].append({"name": name, "cluster": {"server": proxy.url}})
    document["contexts"].append({"name": name, "context": {"cluster": name, "user": name}})
    kubeconfig.write_text(json.dumps(document))


class _Forward:
    def __init__(self, proxy: Proxy, session: aiohttp.ClientSession, host: str, headers: dict[str, str]) -> None:
        self.proxy, self.session, self.host, self.headers = proxy, session, host, headers

    async def handle(self, request: web.Request) -> web.StreamResponse:
        call = await self._call(request)
        fault = await self.proxy.hook(call)
        await self.proxy._passes("")
        if self.proxy.latency:
            await asyncio.sleep(self.proxy.latency)
        if fault is not None and not fault.carried_out:
            return _say(request, fault)
        if call.verb == "watch":
            return await self._stream(request, call)
        async with self._send(request) as answer:
            body = await answer.read()
            self.proxy.answers.append((call, answer.status))
            fault = await self.proxy.after(call) or fault
            await self.proxy._passes("")
            if fault is not None:
                return _say(request, fault)
            passed = ("Content-Type", "Content-Encoding", "Retry-After")
            kept = {key: value for key, value in answer.headers.items() if key in passed}
            return web.Response(status=answer.status, body=body, headers=kept)

    async def _call(self, request: web.Request) -> Call:
        text = await request.text()
        verb = _verb(request)
        parts = request.path.strip("/").split("/")
        number = 0 if verb == "watch" else sum(call.number > 0 for call in self.proxy.calls) + 1
        call = Call(
            number=number,
            verb=verb,
            resource=resource_of(request.path),
            path=request.path,
            group="" if parts[0] == "api" else parts[1] if len(parts) > 1 else "",
            at=time.monotonic(),
            body=json.loads(text) if text else None,
            user_agent=request.headers.get("User-Agent", ""),
        )
        self.proxy.calls.append(call)
        return call

    def _send(self, request: web.Request) -> Any:
        passed = ("Content-Type", "Accept", "User-Agent", "Accept-Encoding")
        kept = {key: value for key, value in request.headers.items() if key in passed}
        return self.session.request(
            request.method,
            self.host + request.path_qs,
            headers={**kept, **self.headers},
            data=request._read_bytes or None,
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def _stream(self, request: web.Request, call: Call) -> web.StreamResponse:
        async with self._send(request) as answer:
            self.proxy.answers.append((call, answer.status))
            if answer.status != 200:
                return web.Response(status=answer.status, body=await answer.read(), content_type="application/json")
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            await response.prepare(request)
            stream = _Stream(call.resource, request, response)
            self.proxy._watches.add(stream)
            try:
                async for line in answer.content:
                    await self.proxy._passes(call.resource)
                    await response.write(line)
                await response.write_eof()
            except (ConnectionError, aiohttp.ClientError):
                pass
            finally:
                self.proxy._watches.discard(stream)
            return response


def _say(request: web.Request, fault: Fault) -> web.Response:
    if fault.kind == "Drop":
        _abort(request)
    if fault.kind == "Text":
        return web.Response(text=fault.text, content_type="application/json")
    wait = {"Retry-After": f"{fault.retry_after:g}"} if fault.retry_after is not None else {}
    status = {"kind": "Status", "code": fault.status, "reason": "Injected", "message": "by the test's proxy"}
    return web.json_response(status, status=fault.status, headers=wait)


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        with suppress(OSError):
            request.transport.abort()


def _verb(request: web.Request) -> str:
    if request.method == "GET":
        if request.query.get("watch") == "true":
            return "watch"
        parts = request.path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        named = len(parts) >= 4 if parts[:1] == ["namespaces"] and len(parts) > 2 else len(parts) >= 2
        return "get" if named or not parts else "list"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[request.method]

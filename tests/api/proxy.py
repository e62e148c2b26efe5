"""A proxy in front of the real API server: counts what the operator asks for, and does to it what networks and servers do."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiohttp
from aiohttp import web
from kubernetes.aio import config
from kubernetes.aio.client.configuration import Configuration

from comd_operator.runtime.api import resource_of

WRITES = ("POST", "PUT", "PATCH", "DELETE")


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
    body: Any = None
    user_agent: str = ""

    @property
    def writes(self) -> bool:
        return self.verb in ("create", "update", "patch", "delete")


@dataclass(frozen=True, kw_only=True)
class Fault:
    kind: Literal["Answer", "DropBefore", "DropAfter", "Delay"]
    """`DropBefore`: the server never hears of it. `DropAfter`: it does as asked, and the answer is lost."""
    status: int = 500
    retry_after: float | None = None
    seconds: float = 0.0


Hook = Callable[[Call], Awaitable[Fault | None]]


async def no_fault(_call: Call) -> Fault | None:
    return None


@dataclass
class Proxy:
    url: str
    hook: Hook = no_fault
    calls: list[Call] = field(default_factory=list)
    latency: float = 0.0
    _watches: set[tuple[str, web.StreamResponse]] = field(default_factory=set)

    def kubeconfig(self, path: Path) -> Path:
        user = {"name": "proxy", "user": {}}
        cluster = {"name": "proxy", "cluster": {"server": self.url}}
        context = {"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}
        document = {"apiVersion": "v1", "kind": "Config", "current-context": "proxy"}
        path.write_text(json.dumps({**document, "users": [user], "clusters": [cluster], "contexts": [context]}))
        return path

    def writes(self) -> list[Call]:
        return [call for call in self.calls if call.writes]

    async def end_watches(self, resource: str | None = None) -> None:
        """As a server does that goes away."""
        for name, response in list(self._watches):
            if resource in (None, name):
                self._watches.discard((name, response))
                if response._req is not None and response._req.transport is not None:
                    response._req.transport.abort()


@asynccontextmanager
async def serve(*, kubeconfig: Path, token: str | None = None) -> AsyncIterator[Proxy]:
    """kubeconfig: of the real server's administrator. token: who to be in its place, such as a service account."""
    upstream = Configuration()
    await config.load_kube_config(config_file=str(kubeconfig), client_configuration=upstream)
    trust = ssl.create_default_context(cafile=upstream.ssl_ca_cert)
    if token is None:
        assert upstream.cert_file is not None, "the administrator has a certificate"
        trust.load_cert_chain(upstream.cert_file, upstream.key_file)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    connector = aiohttp.TCPConnector(ssl=trust, limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False, read_bufsize=2**22) as session:
        app = web.Application(client_max_size=2**24)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        proxy = Proxy(url="")
        app.router.add_route("*", "/{path:.*}", _Forward(proxy, session, str(upstream.host), headers).handle)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield proxy
        finally:
            await proxy.end_watches()
            await runner.cleanup()


class _Forward:
    def __init__(self, proxy: Proxy, session: aiohttp.ClientSession, host: str, headers: dict[str, str]) -> None:
        self.proxy, self.session, self.host, self.headers = proxy, session, host, headers

    async def handle(self, request: web.Request) -> web.StreamResponse:
        call = await self._call(request)
        fault = await self.proxy.hook(call)
        if self.proxy.latency:
            await asyncio.sleep(self.proxy.latency)
        if fault is not None and fault.kind == "Delay":
            await asyncio.sleep(fault.seconds)
        if fault is not None and fault.kind == "Answer":
            wait = {"Retry-After": f"{fault.retry_after:g}"} if fault.retry_after is not None else {}
            status = {"kind": "Status", "code": fault.status, "reason": "Injected", "message": "by the test's proxy"}
            return web.json_response(status, status=fault.status, headers=wait)
        if fault is not None and fault.kind == "DropBefore":
            return _drop(request)
        if call.verb == "watch":
            return await self._stream(request, call)
        async with self._send(request) as answer:
            body = await answer.read()
            if fault is not None and fault.kind == "DropAfter":
                return _drop(request)
            kept = {
                key: value
                for key, value in answer.headers.items()
                if key in ("Content-Type", "Content-Encoding", "Retry-After")
            }
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
            body=json.loads(text) if text else None,
            user_agent=request.headers.get("User-Agent", ""),
        )
        self.proxy.calls.append(call)
        return call

    def _send(self, request: web.Request) -> Any:
        kept = {
            key: value
            for key, value in request.headers.items()
            if key in ("Content-Type", "Accept", "User-Agent", "Accept-Encoding")
        }
        return self.session.request(
            request.method,
            self.host + request.path_qs,
            headers={**kept, **self.headers},
            data=request.content if request.can_read_body else (request._read_bytes or None),
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def _stream(self, request: web.Request, call: Call) -> web.StreamResponse:
        async with self._send(request) as answer:
            if answer.status != 200:
                return web.Response(status=answer.status, body=await answer.read(), content_type="application/json")
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            await response.prepare(request)
            entry = (call.resource, response)
            self.proxy._watches.add(entry)
            try:
                async for line in answer.content:
                    await response.write(line)
                await response.write_eof()
            except (ConnectionError, aiohttp.ClientError):
                pass
            finally:
                self.proxy._watches.discard(entry)
            return response


def _drop(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


def _verb(request: web.Request) -> str:
    if request.method == "GET":
        if request.query.get("watch") == "true":
            return "watch"
        parts = request.path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        named = len(parts) >= 4 if parts[:1] == ["namespaces"] and len(parts) > 2 else len(parts) >= 2
        return "get" if named or not parts else "list"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[request.method]

"""A small stand-in for an API server's list and watch that can misbehave on command. A fake is right here because the faults are the
point; what a real one does is tested in tests/api."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from comd_operator.runtime.api import Api
from comd_operator.runtime.credentials import load
from comd_operator.runtime.limiter import TokenBucket
from comd_operator.runtime.metrics import Metrics

Fault = Callable[[web.Request], Awaitable[web.StreamResponse]]


def refuse(status: int, reason: str = "Injected", **headers: str) -> Fault:
    async def fault(_request: web.Request) -> web.StreamResponse:
        body = {"kind": "Status", "code": status, "reason": reason, "message": f"{reason}, by the test"}
        return web.json_response(body, status=status, headers={key.replace("_", "-"): headers[key] for key in headers})

    return fault


async def drop(request: web.Request) -> web.StreamResponse:
    """The connection breaks without an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def hang(_request: web.Request) -> web.StreamResponse:
    """The other end is gone, and nobody says so."""
    await asyncio.sleep(3600)
    return web.Response()


def stream(*events: dict[str, Any], then: str = "end") -> Fault:
    """A watch that tells this, and then ends, hangs or breaks."""

    async def fault(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for event in events:
            await response.write(json.dumps(event).encode() + b"\n")
        if then == "hang":
            await asyncio.sleep(3600)
        if then == "break":
            await drop(request)
        return response

    return fault


def in_stream_error(code: int, reason: str) -> dict[str, Any]:
    return {"type": "ERROR", "object": {"kind": "Status", "code": code, "reason": reason, "message": "by the test"}}


@dataclass
class FaultyServer:
    """Holds `things` in one namespace. Faults are used up one a request, in their order."""

    url: str = ""
    version: int = 100
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    log: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    oldest: int = 0
    """Versions before this one are forgotten: 410."""
    list_faults: list[Fault] = field(default_factory=list)
    watch_faults: list[Fault] = field(default_factory=list)
    requests: list[web.Request] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def write(self, name: str, **more: Any) -> dict[str, Any]:
        self.version += 1
        kind = "MODIFIED" if name in self.objects else "ADDED"
        metadata = {"namespace": "n", "name": name, "uid": name, "resourceVersion": str(self.version)}
        self.objects[name] = {"metadata": metadata, "owner": name, **more}
        await self._tell(kind, self.objects[name])
        return self.objects[name]

    async def delete(self, name: str, *, silently: bool = False) -> None:
        """silently: as when it happens while nobody watches and is forgotten."""
        self.version += 1
        old = self.objects.pop(name)
        if not silently:
            gone = {**old, "metadata": {**old["metadata"], "resourceVersion": str(self.version)}}
            await self._tell("DELETED", gone)

    async def bookmark(self) -> None:
        self.version += 1
        await self._tell("BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}})

    def forget(self) -> None:
        self.log.clear()
        self.oldest = self.version + 1

    def count(self, verb: str) -> int:
        return sum(_verb(request) == verb for request in self.requests)

    async def _tell(self, kind: str, obj: dict[str, Any]) -> None:
        self.log.append((self.version, {"type": kind, "object": obj}))
        async with self.changed:
            self.changed.notify_all()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        watching = _verb(request) == "watch"
        faults = self.watch_faults if watching else self.list_faults
        if faults:
            return await faults.pop(0)(request)
        return await (self._watch(request) if watching else self._list(request))

    async def _list(self, request: web.Request) -> web.StreamResponse:
        """Pages carry the version and the objects of the first one in their token, as if the server remembered them."""
        limit = int(request.query.get("limit") or 0)
        if "continue" in request.query:
            version, start = (int(part) for part in request.query["continue"].split("-"))
            if version < self.oldest:
                return await refuse(410, "Expired")(request)
        else:
            version, start = self.version, 0
        items = list(self.objects.values())
        end = start + limit if limit else len(items)
        metadata = {"resourceVersion": str(version)}
        if end < len(items):
            metadata["continue"] = f"{version}-{end}"
        return web.json_response({"kind": "List", "metadata": metadata, "items": items[start:end]})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        at = int(request.query["resourceVersion"])
        if at < self.oldest - 1:
            return await stream(in_stream_error(410, "Expired"))(request)
        if at > self.version:
            return await stream(in_stream_error(504, "Timeout"))(request)
        response = web.StreamResponse()
        await response.prepare(request)
        end = asyncio.get_running_loop().time() + float(request.query["timeoutSeconds"])
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout_at(end):
                while True:
                    for version, event in [entry for entry in self.log if entry[0] > at]:
                        await response.write(json.dumps(event).encode() + b"\n")
                        at = version
                    async with self.changed:
                        await self.changed.wait()
        return response


def _verb(request: web.Request) -> str:
    if request.method != "GET":
        return request.method
    return "watch" if request.query.get("watch") == "true" else "get"


@asynccontextmanager
async def serving(handle: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """The address of a server on this machine."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def write_kubeconfig(path: Path, url: str, **user: Any) -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(json.dumps(document))
    return path


@asynccontextmanager
async def connected(*, metrics: Metrics | None = None, timeout: float = 5.0, **more: Any) -> AsyncIterator[Api]:
    """To what KUBECONFIG names, without a limit."""
    more.setdefault("limiter", TokenBucket(rate=0, burst=1))
    configuration = await load()
    api = Api(configuration=configuration, metrics=metrics or Metrics(), timeout=timeout, user_agent="test/1", **more)
    try:
        yield api
    finally:
        await api.close()

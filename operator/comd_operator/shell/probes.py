"""`/metrics`, `/healthz`, `/readyz` on one port."""

import errno
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from comd_api.exit_codes import UserError
from comd_operator.runtime.metrics import Metrics
from comd_operator.runtime.reflector import Reflector

SILENCE_SECONDS = 300.0
"""The server sends every watch a bookmark each minute: one that was silent for so long is dead, whatever it believes."""


class Probes:
    def __init__(
        self,
        *,
        metrics: Metrics,
        ready: Callable[[], bool],
        reflectors: Sequence[Reflector[Any]],
        address: str,
        port: int,
    ) -> None:
        self._metrics, self._ready, self._reflectors = metrics, ready, reflectors
        self._address, self.port = address, port
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        if self.port == 0:
            return
        app = web.Application()
        app.router.add_get("/metrics", self._serve_metrics)
        app.router.add_get("/healthz", self._serve_health)
        app.router.add_get("/readyz", self._serve_readiness)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._address or None, self.port).start()
        except OSError as error:
            await self._runner.cleanup()
            if error.errno == errno.EADDRINUSE:
                raise UserError(f"--port: {self.port} is taken; give --port another number, or 0") from None
            raise UserError(
                f"--port: {self.port} can't be opened on --address {self._address!r} ({error.strerror})"
            ) from None

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve_metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _serve_health(self, _request: web.Request) -> web.Response:
        """That it answers shows that the loop turns."""
        silent = [reflector.resource for reflector in self._reflectors if reflector.age() > SILENCE_SECONDS]
        if silent:
            return web.Response(
                status=503, text=f"no sign of life from the watch of {', '.join(sorted(set(silent)))}\n"
            )
        return web.Response(text="ok\n")

    async def _serve_readiness(self, _request: web.Request) -> web.Response:
        """Stores filled. A standby is ready too: it only waits for the Lease."""
        if self._ready():
            return web.Response(text="ok\n")
        return web.Response(status=503, text="the first lists are not complete\n")

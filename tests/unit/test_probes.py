"""What the operator's probes answer."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest

from comd_operator.runtime.metrics import Metrics
from comd_operator.runtime.reflector import Reflector
from comd_operator.shell.probes import SILENCE_SECONDS, Probes
from tests.s3.versity import free_port


def watch(resource: str, age: float) -> Reflector[Any]:
    return cast(Reflector[Any], SimpleNamespace(resource=resource, age=lambda: age))


@pytest.mark.parametrize(
    ("path", "ages", "ready", "code", "says"),
    [
        ("/healthz", {"jobs": 60.0, "pods": SILENCE_SECONDS}, False, 200, "ok\n"),
        (
            "/healthz",
            {"jobs": SILENCE_SECONDS + 1, "pods": 1.0, "distillationruns": SILENCE_SECONDS + 9},
            True,
            503,
            "no sign of life from the watch of distillationruns, jobs\n",
        ),
        ("/readyz", {"jobs": SILENCE_SECONDS + 1}, True, 200, "ok\n"),
        ("/readyz", {}, False, 503, "the first lists are not complete\n"),
    ],
)
def test_probes(path: str, ages: dict[str, float], ready: bool, code: int, says: str) -> None:
    async def ask() -> tuple[int, str]:
        probes = Probes(
            metrics=Metrics(),
            ready=lambda: ready,
            reflectors=[watch(resource, age) for resource, age in ages.items()],
            address="127.0.0.1",
            port=free_port(),
        )
        await probes.start()
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{probes.port}{path}") as answer,
            ):
                return answer.status, await answer.text()
        finally:
            await probes.stop()

    assert asyncio.run(ask()) == (code, says)

"""Operators at work, in this process or in one of their own, and ways to end them."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from comd_operator.shell.operator import Operator
from comd_operator.shell.options import Options, variable_of
from tests.api.proxy import Call, Fault, Proxy
from tests.api.world import World

DEFAULTS = {"trainer_image": "localhost/comd-trainer:test", "port": 0, "leader_election": False, "qps": 0.0}


def options(world: World, proxy: Proxy | None = None, **changes: Any) -> Options:
    context = proxy.context if proxy is not None else ""
    return Options(**{**DEFAULTS, "namespaces": world.namespace, "context": context, **changes})


@asynccontextmanager
async def operating(world: World, proxy: Proxy | None = None, **changes: Any) -> AsyncIterator[Operator]:
    """An operator in this process, for the world's namespace unless the options say otherwise."""
    operator = Operator(options(world, proxy, **changes))
    await operator.start()
    try:
        yield operator
    finally:
        await operator.stop()
    assert operator.failed is None, operator.failed


async def kill(operator: Operator) -> None:
    """As SIGKILL does: it comes to no end of its own, gives nothing back, and asks for nothing more."""

    async def dead(*_: Any, **__: Any) -> Any:
        raise ConnectionResetError

    operator._stopped.set()
    setattr(operator.api, "_send", dead)  # noqa: B010
    for task in operator._tasks:
        task.cancel()
    await asyncio.gather(*operator._tasks, return_exceptions=True)
    await operator.probes.stop()
    await operator.api.close()


@dataclass
class Relay:
    """Operators one after the other: as soon as one is killed, the next is started."""

    kills: int = 0


@asynccontextmanager
async def killed(
    world: World,
    proxy: Proxy,
    *,
    at: Callable[[Call], bool],
    when: Literal["Before", "After"],
    prepare: Callable[[Operator], None] = lambda _: None,
    **changes: Any,
) -> AsyncIterator[Relay]:
    """An operator that is killed at certain calls, before the server hears of them, or when it has done as asked but not
    answered. prepare: is given each when it has begun and asked for nothing yet."""
    relay, ready = Relay(), asyncio.Event()
    current: list[Operator] = []

    async def strike(call: Call) -> Fault | None:
        if not at(call):
            return None
        relay.kills += 1
        ready.clear()
        dying = current.pop()
        await kill(dying)
        ready.set()
        return Fault(kind="Drop", carried_out=when == "After")

    async def keep_one() -> None:
        ready.set()
        while True:
            await ready.wait()
            if not current:
                current.append(Operator(options(world, proxy, **changes)))
                await current[0].start()
                prepare(current[0])
            await asyncio.sleep(0.01)

    if when == "Before":
        proxy.hook = strike
    else:
        proxy.after = strike
    task = asyncio.create_task(keep_one())
    try:
        yield relay
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for operator in current:
            await operator.stop()
            assert operator.failed is None, operator.failed


class Process:
    """`comd operator` as users start it."""

    def __init__(self, child: asyncio.subprocess.Process, log: Path) -> None:
        self._child, self.log = child, log

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self._child.send_signal(number)

    async def wait(self) -> int:
        return await self._child.wait()

    async def terminate(self) -> int:
        """Its exit code after SIGTERM."""
        self.send(signal.SIGTERM)
        return await asyncio.wait_for(self._child.wait(), timeout=30)


COMD_OPERATOR = ("comd_operator", "operator")
KOPF_RUN = ("kopf", "run", "--all-namespaces", "--module", "comd_operator.shell.handlers")


async def start_process(
    world: World, proxy: Proxy | None = None, *, command: Sequence[str] = COMD_OPERATOR, **changes: Any
) -> Process:
    """Its options are told by variables. Processes of one world have one log. command: a Python module and its arguments."""
    log = world.kubeconfig.with_name(f"{world.namespace}.log")
    chosen = asdict(options(world, proxy, **changes))
    told = {
        variable_of(name): str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in chosen.items()
    }
    with log.open("ab") as file:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *command), env={**os.environ, **told}, stdout=file, stderr=file
        )
    return Process(child, log)

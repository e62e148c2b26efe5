"""The two that are measured, each a process of its own: `comd operator`, and the floor."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from benchmarks.operator_bodies import IMAGE, first_step

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "runs" / "bench-operator"
"""Logs, and what the programs are given."""
REQUEST = re.compile(r'^comd_operator_api_requests_total\{code="(.*)",resource="(.*)",verb="(.*)"\} (\S+)$', re.M)
WRITES = ("create", "update", "patch", "delete")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Program:
    pid: int
    port: int = 0
    """Of `/metrics`; 0 where there are none."""

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss_mib(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024

    async def rest(self, *, most: float = 180.0) -> None:
        """Until it has had next to nothing to do for two seconds."""
        until = time.monotonic() + most
        while time.monotonic() < until:
            before = self.cpu_seconds()
            await asyncio.sleep(2.0)
            if self.cpu_seconds() - before < 0.06:
                return
        raise TimeoutError(f"process {self.pid} comes to no rest")

    async def metrics(self) -> str:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{self.port}/metrics") as answer:
            return await answer.text()

    async def requests(self) -> Counter[str]:
        """`create jobs` …, those that were refused included; without what the Lease needs."""
        found: Counter[str] = Counter()
        for _, resource, verb, count in REQUEST.findall(await self.metrics()):
            if resource != "leases":
                found[f"{verb} {resource}"] += int(float(count))
        return found

    async def writes(self) -> Counter[str]:
        requests = await self.requests()
        return Counter({what: count for what, count in requests.items() if what.split()[0] in WRITES})


@asynccontextmanager
async def operator(namespace: str, **options: str | float) -> AsyncIterator[Program]:
    """Watching, and the leader. Without a rate limit unless the options say otherwise."""
    port = _free_port()
    given: dict[str, str | float] = {
        "namespaces": namespace,
        "trainer_image": IMAGE,
        "qps": 0,
        "port": port,
        "address": "127.0.0.1",
        "log_level": "warning",
        "lease_namespace": namespace,
        **options,
    }
    flags = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    async with _running([sys.executable, "-m", "comd_operator", "operator", *flags], namespace) as process:
        program = Program(process.pid, port)
        await _until_leader(program, process)
        yield program


@asynccontextmanager
async def floor(namespace: str, *, workers: int) -> AsyncIterator[Program]:
    writes = FOLDER / f"{namespace}.writes.json"
    writes.write_text(json.dumps(await asyncio.to_thread(first_step, namespace)))
    command = [sys.executable, "-m", "benchmarks.operator_floor", "--namespace", namespace]
    command += ["--writes", str(writes), "--workers", str(workers)]
    async with _running(command, namespace) as process:
        log = FOLDER / f"{namespace}.log"
        await _until(lambda: log.read_text().startswith("ready"), process)
        yield Program(process.pid)


@asynccontextmanager
async def _running(command: list[str], name: str) -> AsyncIterator["subprocess.Popen[bytes]"]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        try:
            yield process
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command[2:4])} ended with {process.returncode}; see {log.name}")
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, 60)


async def _until_leader(program: Program, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 90
    while time.monotonic() < until and process.poll() is None:
        try:
            if "comd_operator_leader 1.0" in await program.metrics():
                return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.02)
    raise RuntimeError(f"the operator did not begin; see the newest log in {FOLDER}")


async def _until(holds: Callable[[], bool], process: "subprocess.Popen[bytes]", *, seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until or process.poll() is not None:
            raise RuntimeError(f"a program did not begin; see the newest log in {FOLDER}")
        await asyncio.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""Whole lives of runs, and what is written when an operator starts beside runs that have ended."""

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from benchmarks.operator_bodies import NAME, run_name
from benchmarks.operator_client import MERGE, Client, Write
from benchmarks.operator_load import CREATORS, Load
from benchmarks.operator_program import operator

from comd_api import API_VERSION
from comd_operator.runtime.api import namespaced
from tests.api.simulator import simulating
from tests.api.world import connect


@dataclass
class Lives:
    count: int
    stages: int = 0
    """Of each run."""
    seconds: float = 0.0
    cpu: float = 0.0
    writes: Counter[str] = field(default_factory=Counter)
    again: dict[str, Counter[str]] = field(default_factory=dict)
    """What an operator wrote that was started where all had ended, by what was there."""


async def lives(load: Load, *, count: int, finished: int) -> Lives:
    """count: of runs that are played from beginning to end. finished: of runs that are only said to have ended."""
    found = Lives(count)
    status: dict[str, Any] = {}
    async with load.place() as namespace:
        api = await connect(load.cluster.kubeconfig)
        async with simulating(api, namespace), operator(namespace) as program:
            await program.rest()
            cpu, begun = program.cpu_seconds(), time.monotonic()
            await load.make_runs(namespace, count)
            status = await _until_all_ended(load.client, namespace, count)
            found.seconds = time.monotonic() - begun
            await program.rest()
            found.cpu, found.writes = program.cpu_seconds() - cpu, await program.writes()
        await api.close()
        found.stages = len(status["stages"])
        found.again[f"{count:,} runs with their {count * found.stages:,} Jobs and pods"] = await _restarted(namespace)
    async with load.place() as namespace:
        await load.make_runs(namespace, finished)
        await _say_ended(load.client, namespace, finished, status)
        found.again[f"{finished:,} runs"] = await _restarted(namespace)
    return found


async def _restarted(namespace: str) -> Counter[str]:
    async with operator(namespace) as program:
        await program.rest()
        return await program.writes()


async def _until_all_ended(client: Client, namespace: str, count: int) -> dict[str, Any]:
    """The status of one of them."""
    path = namespaced(API_VERSION, "distillationruns", namespace)
    ended: set[str] = set()
    async with asyncio.timeout(900):
        async for line in client.watch(path, "0"):
            run = json.loads(line)["object"]
            phase = run.get("status", {}).get("phase")
            assert phase != "Failed", run["status"]
            if phase == "Succeeded":
                ended.add(run["metadata"]["name"])
                if len(ended) == count:
                    status: dict[str, Any] = run["status"]
                    return status
    raise AssertionError("the watch ended")


async def _say_ended(client: Client, namespace: str, count: int, status: dict[str, Any]) -> None:
    path = namespaced(API_VERSION, "distillationruns", namespace, NAME, subresource="status")
    body, limit = json.dumps({"status": status}), asyncio.Semaphore(CREATORS)

    async def say(name: str) -> None:
        async with limit:
            await client.write(Write("PATCH", path.replace(NAME, name), body, MERGE))

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(say(run_name(number)))

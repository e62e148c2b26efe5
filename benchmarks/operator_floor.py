"""The floor: watches runs and does nothing but the operator's writes, from texts that are ready. `python -m benchmarks.operator_floor`."""

import argparse
import asyncio
import json
from collections import deque
from pathlib import Path

from benchmarks.operator_bodies import filled_in
from benchmarks.operator_client import Client, Write

from comd_api import API_VERSION
from comd_operator.runtime.api import namespaced

PAGE = "500"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--writes", type=Path, required=True, help="JSON file of the writes for one run")
    parser.add_argument("--workers", type=int, required=True, help="runs that are written for at once")
    arguments = parser.parse_args()
    writes = [Write(*entry) for entry in json.loads(arguments.writes.read_text())]
    path = namespaced(API_VERSION, "distillationruns", arguments.namespace)
    waiting: deque[tuple[str, str, str]] = deque()
    news = asyncio.Semaphore(0)

    def add(run: dict[str, dict[str, str]]) -> None:
        own = run["metadata"]
        waiting.append((own["name"], own["uid"], own["resourceVersion"]))
        news.release()

    async with Client.connected() as client:

        async def work() -> None:
            while True:
                await news.acquire()
                name, uid, version = waiting.popleft()
                for write in writes:
                    await client.write(filled_in(write, name=name, uid=uid, version=version))

        more: dict[str, str] = {}
        while True:
            listed = await client.get(path, limit=PAGE, **more)
            for run in listed["items"]:
                add(run)
            if not listed["metadata"].get("continue"):
                break
            more = {"continue": listed["metadata"]["continue"]}
        async with asyncio.TaskGroup() as group:
            for _ in range(arguments.workers):
                group.create_task(work())
            print("ready", flush=True)
            async for line in client.watch(path, listed["metadata"]["resourceVersion"]):
                if line.startswith(b'{"type":"ADDED"'):
                    add(json.loads(line)["object"])


if __name__ == "__main__":
    asyncio.run(main())

"""All that happens to the runs and Jobs of a namespace, as watches of the test's own tell it: nothing is missed, nothing is polled."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from comd_api import API_VERSION
from comd_operator.planner import labels
from comd_operator.runtime.api import Api, namespaced


@dataclass
class Job:
    """One that was ever there."""

    object: dict[str, Any]
    """As it was last seen."""
    beside: list[str] = field(default_factory=list)
    """Names of Jobs of the same part of the same run that were neither ended nor gone when it was made."""
    gone: bool = False

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    @property
    def part(self) -> tuple[str | None, ...]:
        """Run, stage and number of the Job in its stage: of these one may be live at a time."""
        own = self.object["metadata"].get("labels", {})
        return tuple(own.get(key) for key in (labels.RUN_UID, labels.STAGE, labels.JOB_INDEX))

    @property
    def ended(self) -> bool:
        conditions = self.object.get("status", {}).get("conditions", [])
        return any(entry["type"] in ("Complete", "Failed") and entry["status"] == "True" for entry in conditions)

    @property
    def owners(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.object["metadata"].get("ownerReferences", [])
        return found


class Feed:
    def __init__(self, api: Api, namespace: str) -> None:
        self._api, self._namespace = api, namespace
        self.jobs: dict[str, Job] = {}
        """Every Job ever, by uid, in the order in which they were made."""
        self.runs: dict[str, dict[str, Any]] = {}
        """Runs that are there, by name."""
        self.versions: list[tuple[float, dict[str, Any]]] = []
        """Each state of a run, and when it was told."""
        self._news = asyncio.Event()

    async def change(self) -> None:
        """Until something else is so."""
        await self._news.wait()

    async def follow(self, path: str, version: str) -> None:
        begun = False
        while True:  # The server ends a watch now and then, such as when the custom resource's definition is changed.
            params = {"resourceVersion": version}
            async for event in self._api.watch(path, params=params, inactivity_timeout=600):
                obj = event["object"]
                if event["type"] == "ERROR" and obj.get("code") == 410 and not begun:
                    # Of a definition made a moment ago the server's cache may begin after the list. So far nothing was there.
                    again = await self._api.get(path)
                    assert again["items"] == [], f"what happened to {path} meanwhile was missed"
                    version = again["metadata"]["resourceVersion"]
                    break
                begun = True
                assert event["type"] in ("ADDED", "MODIFIED", "DELETED"), event
                if obj["kind"] == "Job":
                    self._on_job(event["type"], obj)
                else:
                    self._on_run(event["type"], obj)
                version = obj["metadata"]["resourceVersion"]
                self._news.set()
                self._news = asyncio.Event()
            await asyncio.sleep(0.05)

    def _on_job(self, kind: str, obj: dict[str, Any]) -> None:
        job = self.jobs.get(obj["metadata"]["uid"])
        if job is None:
            job = self.jobs[obj["metadata"]["uid"]] = Job(obj)
            others = [other for other in self.jobs.values() if other is not job and other.part == job.part]
            job.beside = [other.name for other in others if not other.gone and not other.ended]
        job.object, job.gone = obj, kind == "DELETED"

    def _on_run(self, kind: str, obj: dict[str, Any]) -> None:
        self.versions.append((time.monotonic(), obj))
        self.runs[obj["metadata"]["name"]] = obj
        if kind == "DELETED":
            del self.runs[obj["metadata"]["name"]]


@asynccontextmanager
async def following(api: Api, namespace: str) -> AsyncIterator[Feed]:
    feed = Feed(api, namespace)
    paths = [namespaced(API_VERSION, "distillationruns", namespace), namespaced("batch/v1", "jobs", namespace)]
    versions = [(await api.get(path))["metadata"]["resourceVersion"] for path in paths]
    tasks = [asyncio.create_task(feed.follow(path, version)) for path, version in zip(paths, versions, strict=True)]
    try:
        yield feed
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    errors = [error for error in ended if not isinstance(error, asyncio.CancelledError)]
    assert not errors, f"the test's own watch has ended: {errors}"

"""A namespace of the real API server, as a test sees it: what is applied, what becomes of it, what was ever made."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes.aio import config
from kubernetes.aio.client.configuration import Configuration

from comd_api import API_VERSION
from comd_api.kinds import RUN, SCHEDULE, Kind
from comd_operator.planner import labels
from comd_operator.runtime.api import Api, ApiError, namespaced
from comd_operator.runtime.limiter import TokenBucket
from comd_operator.runtime.metrics import Metrics
from tests.api.feed import Feed, Job, following
from tests.api.proxy import Proxy, serve
from tests.api.simulator import SCHEDULER, STORAGE, Script, Simulator, done, simulating
from tests.cluster.cluster import Cluster
from tests.unit.rule_examples import manifest

PATIENCE = 45.0
"""Seconds that a test waits for what should take one or two: the machine may be busy with other things."""


def make_manifest(name: str = "tiny", **changes: Any) -> dict[str, Any]:
    """Two rounds after preflight, on simulated nodes."""
    document = manifest(
        **{
            "rounds__count": 2,
            "storage": {"uri": STORAGE},
            "trainer__podTemplate__spec__schedulerName": SCHEDULER,
            "retry": {"limit": 1, "backoffSeconds": 1, "maxBackoffSeconds": 2},
            **changes,
        }
    )
    document["metadata"]["name"] = name
    return document


async def connect(kubeconfig: Path, *, context: str | None = None) -> Api:
    """Without a limit, as the administrator unless a context says otherwise."""
    configuration = Configuration()
    await config.load_kube_config(config_file=str(kubeconfig), context=context, client_configuration=configuration)
    bucket = TokenBucket(rate=0, burst=1)
    return Api(configuration=configuration, limiter=bucket, metrics=Metrics(), timeout=20.0, user_agent="test")


@dataclass(frozen=True, kw_only=True)
class World:
    api: Api
    namespace: str
    feed: Feed
    cluster: Cluster
    kubeconfig: Path
    """The administrator's; proxies add a context of theirs."""

    def runs(self, name: str | None = None, **more: Any) -> str:
        return namespaced(API_VERSION, "distillationruns", self.namespace, name, **more)

    def schedules(self, name: str | None = None, **more: Any) -> str:
        return namespaced(API_VERSION, SCHEDULE.plural, self.namespace, name, **more)

    def jobs(self, name: str | None = None) -> str:
        return namespaced("batch/v1", "jobs", self.namespace, name)

    def core(self, kind: str, name: str | None = None) -> str:
        """Path of an object of the core group: `pods`, `services` …"""
        return namespaced("v1", kind, self.namespace, name)

    async def apply(self, document: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = await self.api.create(self.runs(), document)
        return made

    async def change(self, name: str = "tiny", **spec: Any) -> None:
        await self.api.patch(self.runs(name), {"spec": spec}, content_type="application/merge-patch+json")

    async def delete_run(self, name: str = "tiny", *, policy: str = "Background") -> None:
        await self.api.delete(self.runs(name), body={"propagationPolicy": policy})

    async def delete_job(self, name: str, *, policy: str = "Background") -> None:
        await self.api.delete(self.jobs(name), body={"propagationPolicy": policy})

    async def run(self, name: str = "tiny") -> dict[str, Any]:
        found: dict[str, Any] = await self.api.get(self.runs(name))
        return found

    async def status(self, name: str = "tiny") -> dict[str, Any]:
        status: dict[str, Any] = (await self.run(name)).get("status", {})
        return status

    async def pods(self) -> list[dict[str, Any]]:
        found = await self.api.get(self.core("pods"), params={"labelSelector": labels.SELECTOR})
        pods: list[dict[str, Any]] = found["items"]
        return pods

    async def events(self, name: str = "tiny", *, kind: Kind = RUN) -> list[dict[str, Any]]:
        """What was told of a run, or of a schedule, oldest first."""
        listed = await self.api.get(self.core("events"))
        found = [event for event in listed["items"] if event["involvedObject"]["name"] == name]
        ours = [event for event in found if event["involvedObject"]["kind"] == kind.name]
        return sorted(ours, key=lambda event: (event["firstTimestamp"], int(event["metadata"]["resourceVersion"])))

    def job_names(self) -> list[str]:
        """Of all Jobs ever made, in order."""
        return [job.name for job in self.feed.jobs.values()]

    def job(self, name: str) -> Job:
        """The newest of that name."""
        return [job for job in self.feed.jobs.values() if job.name == name][-1]

    async def until(
        self, what: Callable[[dict[str, Any]], bool], name: str = "tiny", *, seconds: float = PATIENCE
    ) -> dict[str, Any]:
        """The status once it is as wanted."""

        def status() -> dict[str, Any]:
            found: dict[str, Any] = self.feed.runs.get(name, {}).get("status", {})
            return found

        await self.until_so(lambda: what(status()), status, seconds=seconds)
        return status()

    async def until_phase(self, phase: str, name: str = "tiny", *, seconds: float = PATIENCE) -> dict[str, Any]:
        return await self.until(lambda status: status.get("phase") == phase, name, seconds=seconds)

    async def until_reason(self, reason: str, name: str = "tiny", *, seconds: float = PATIENCE) -> dict[str, Any]:
        """Of the condition `Ready`."""
        return await self.until(lambda status: reason_of(status) == reason, name, seconds=seconds)

    async def until_job(self, name: str, *, seconds: float = PATIENCE) -> Job:
        """Once it is there with as many pods as it wants."""

        def is_active() -> bool:
            named = [job.object for job in self.feed.jobs.values() if job.name == name and not job.gone]
            return any(job.get("status", {}).get("active") == job["spec"]["parallelism"] for job in named)

        await self.until_so(is_active, self.job_names, seconds=seconds)
        return self.job(name)

    async def until_gone(self, name: str, *, seconds: float = PATIENCE) -> None:
        """Jobs of that name."""
        jobs = self.feed.jobs
        await self.until_so(
            lambda: all(job.gone for job in jobs.values() if job.name == name), self.job_names, seconds=seconds
        )

    async def until_event(self, words: str, name: str = "tiny", *, seconds: float = PATIENCE) -> dict[str, Any]:
        """One that was told of a run, with these words in its reason or message."""
        end = time.monotonic() + seconds
        while True:
            told = await self.events(name)
            found = next((event for event in told if words in f"{event['reason']}: {event['message']}"), None)
            if found is not None:
                return found
            assert time.monotonic() < end, f"no event {words!r} after {seconds:g} s: {told}"
            await asyncio.sleep(0.1)

    async def until_so(
        self, holds: Callable[[], bool], shown: Callable[[], object], *, seconds: float = PATIENCE
    ) -> None:
        """Asks again whenever a run or Job has changed, and now and then for what else may change."""
        try:
            async with asyncio.timeout(seconds):
                while not holds():
                    with suppress(TimeoutError):
                        async with asyncio.timeout(0.25):
                            await self.feed.change()
        except TimeoutError:
            raise AssertionError(f"not so after {seconds:g} s: {shown()}") from None

    def simulated(self, script: Script = done) -> AbstractAsyncContextManager[Simulator]:
        """Nodes for the pods of this namespace."""
        return simulating(self.api, self.namespace, script)

    def proxied(self, *, token: str | None = None) -> AbstractAsyncContextManager[Proxy]:
        """A way of its own to the API server, for one operator."""
        return serve(kubeconfig=self.kubeconfig, context=f"proxy-{os.urandom(4).hex()}", token=token)

    async def kubectl(self, *arguments: str, input: str | None = None) -> str:
        return await asyncio.to_thread(self.cluster.kubectl, "--namespace", self.namespace, *arguments, input=input)


def condition(status: dict[str, Any], kind: str) -> tuple[str, str, str]:
    """Status, reason, message."""
    found = next(entry for entry in status["conditions"] if entry["type"] == kind)
    return found["status"], found["reason"], found["message"]


def reason_of(status: dict[str, Any]) -> str | None:
    return next((entry["reason"] for entry in status.get("conditions", []) if entry["type"] == "Ready"), None)


def stage_of(status: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next((stage for stage in status.get("stages", []) if stage["name"] == name), {})
    return found


@asynccontextmanager
async def opened(cluster: Cluster, *, kubeconfig: Path, namespace: str) -> AsyncIterator[World]:
    """A world of its own, in a new namespace."""
    api = await connect(kubeconfig)
    try:
        await api.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
        await _until_usable(api, namespace)
        async with following(api, namespace) as feed:
            yield World(api=api, namespace=namespace, feed=feed, cluster=cluster, kubeconfig=kubeconfig)
        with suppress(ApiError):  # a test may have done so
            await api.delete(f"/api/v1/namespaces/{namespace}")
    finally:
        await api.close()


async def _until_usable(api: Api, namespace: str) -> None:
    """Pods can be made when the default service account is there."""
    for _ in range(600):
        try:
            await api.get(namespaced("v1", "serviceaccounts", namespace, "default"))
            return
        except ApiError as error:
            if error.status != 404:
                raise
            await asyncio.sleep(0.05)
    raise AssertionError("the controllers don't work")

"""A namespace of the real API server with an operator at work in it, and simulated nodes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from comd_api import API_VERSION
from comd_operator.planner import labels
from comd_operator.runtime.api import Api, namespaced
from comd_operator.runtime.limiter import TokenBucket
from comd_operator.runtime.metrics import Metrics
from comd_operator.shell.operator import Operator
from comd_operator.shell.options import Options
from tests.api.simulator import SCHEDULER
from tests.unit.rule_examples import manifest

DEFAULTS = {"trainer_image": "localhost/comd-trainer:test", "port": 0, "leader_election": False, "qps": 0.0}


def make_manifest(name: str = "tiny", **changes: Any) -> dict[str, Any]:
    """Two rounds after preflight, on simulated nodes."""
    document = manifest(
        **{
            "rounds__count": 2,
            "storage": {"uri": "s3://bucket/prefix"},
            "trainer__podTemplate__spec__schedulerName": SCHEDULER,
            "retry": {"limit": 1, "backoffSeconds": 1, "maxBackoffSeconds": 2},
            **changes,
        }
    )
    document["metadata"]["name"] = name
    return document


async def connect(kubeconfig: Path, *, user_agent: str = "test") -> Api:
    """Without a limit, as the administrator."""
    from kubernetes.aio import config
    from kubernetes.aio.client.configuration import Configuration

    configuration = Configuration()
    await config.load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
    bucket = TokenBucket(rate=0, burst=1)
    return Api(configuration=configuration, limiter=bucket, metrics=Metrics(), timeout=20.0, user_agent=user_agent)


class World:
    def __init__(self, api: Api, namespace: str) -> None:
        self.api, self.namespace = api, namespace

    def runs(self, name: str | None = None, **more: Any) -> str:
        return namespaced(API_VERSION, "distillationruns", self.namespace, name, **more)

    def jobs(self, name: str | None = None) -> str:
        return namespaced("batch/v1", "jobs", self.namespace, name)

    def pods(self, name: str | None = None) -> str:
        return namespaced("v1", "pods", self.namespace, name)

    async def apply(self, document: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = await self.api.create(self.runs(), document)
        return made

    async def change(self, name: str, **spec: Any) -> None:
        await self.api.patch(self.runs(name), {"spec": spec}, content_type="application/merge-patch+json")

    async def run(self, name: str = "tiny") -> dict[str, Any]:
        found: dict[str, Any] = await self.api.get(self.runs(name))
        return found

    async def status(self, name: str = "tiny") -> dict[str, Any]:
        status: dict[str, Any] = (await self.run(name)).get("status", {})
        return status

    async def job_list(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = (await self.api.get(self.jobs()))["items"]
        return items

    async def job_names(self) -> list[str]:
        return sorted(job["metadata"]["name"] for job in await self.job_list())

    async def pod_list(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = (await self.api.get(self.pods(), params={"labelSelector": labels.SELECTOR}))[
            "items"
        ]
        return items

    async def delete_job(self, name: str, *, policy: str = "Background") -> None:
        await self.api.delete(self.jobs(name), body={"propagationPolicy": policy})

    async def events(self) -> list[dict[str, Any]]:
        listed = await self.api.get(namespaced("v1", "events", self.namespace))
        return [event for event in listed["items"] if event["involvedObject"]["kind"] == "DistillationRun"]

    async def until(
        self, what: Callable[[dict[str, Any]], bool], name: str = "tiny", *, seconds: float = 30.0
    ) -> dict[str, Any]:
        """The status once it is as wanted."""
        end = time.monotonic() + seconds
        while True:
            status = await self.status(name)
            if what(status):
                return status
            assert time.monotonic() < end, f"not so after {seconds} s: {status}"
            await asyncio.sleep(0.05)

    async def until_phase(self, phase: str, name: str = "tiny", *, seconds: float = 30.0) -> dict[str, Any]:
        return await self.until(lambda status: status.get("phase") == phase, name, seconds=seconds)

    async def until_job(self, name: str, *, seconds: float = 30.0) -> dict[str, Any]:
        """The Job, once it is there with as many pods as it wants."""
        end = time.monotonic() + seconds
        while True:
            for job in await self.job_list():
                if (
                    job["metadata"]["name"] == name
                    and job.get("status", {}).get("active") == job["spec"]["parallelism"]
                ):
                    return job
            assert time.monotonic() < end, f"no Job {name} with its pods after {seconds} s: {await self.job_names()}"
            await asyncio.sleep(0.05)


def condition(status: dict[str, Any], kind: str) -> tuple[str, str, str]:
    """Status, reason, message."""
    found = next(entry for entry in status["conditions"] if entry["type"] == kind)
    return found["status"], found["reason"], found["message"]


@asynccontextmanager
async def operating(namespaces: str, *, context: str = "", **options: Any) -> AsyncIterator[Operator]:
    """An operator in this process. Its way to the API server is KUBECONFIG's."""
    operator = Operator(Options(**{**DEFAULTS, "namespaces": namespaces, "context": context, **options}))
    await operator.start()
    try:
        yield operator
    finally:
        await operator.stop()
    assert operator.failed is None, operator.failed

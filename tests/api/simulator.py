"""What nodes would do, on a cluster that has none: runs the pods of a scheduler's name of its own, and ends them as it is told."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from comd_api.stage import StageResult
from comd_api.status import ArtifactRef, Score
from comd_operator.planner import labels
from comd_operator.runtime.api import Api, ApiError, namespaced

SCHEDULER = "simulator"
STORAGE = "s3://bucket/prefix"
DIGEST = "sha256:" + "1" * 64
JOB_NAME = "batch.kubernetes.io/job-name"


@dataclass(frozen=True, kw_only=True)
class End:
    """How a pod's container ends."""

    code: int = 0
    message: str | None = None
    reason: str = ""
    conditions: list[dict[str, str]] = field(default_factory=list)
    pod: dict[str, str] = field(default_factory=dict)
    """What the pod itself says, such as `{"reason": "Evicted"}`."""
    after: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Waits:
    """A container that is not started."""

    reason: str
    message: str


Script = Callable[[dict[str, Any]], End | Waits | None]
"""From a pod to what becomes of it; None: it runs on."""


def done(pod: dict[str, Any]) -> End:
    """As a trainer that did its stage."""
    stage, storage = pod["metadata"]["labels"][labels.STAGE], decode(pod)["spec"]["storage"]["uri"]
    return End(message=result(stage, storage=storage).to_termination_message())


def runs_on(_pod: dict[str, Any]) -> None:
    """Until the test ends it."""


def result(stage: str, *, storage: str = STORAGE) -> StageResult:
    names = {"preflight": ["preflight"], "pretrain": ["student"]}.get(stage, ["student", "pools"])
    artifacts = [ArtifactRef(name=name, uri=f"{storage}/{stage}/{name}", digest=DIGEST) for name in names]
    scores = (
        []
        if stage == "preflight"
        else [Score(evaluation="test", role="student", value=0.5, low=0.4, high=0.6, num_items=9)]
    )
    return StageResult(exit_class="Done", artifacts=artifacts, scores=scores)


class Simulator:
    def __init__(self, api: Api, namespace: str | None, script: Script) -> None:
        self.api, self.namespace, self.script = api, namespace, script
        self.seen: set[str] = set()
        self.pods: dict[str, dict[str, Any]] = {}
        """Pods that were ever started, by name."""
        self.kill_with = 143
        """Code of a container whose pod is deleted."""
        self._told: dict[str, End | None] = {}
        self._stopped: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        path = namespaced("v1", "pods", self.namespace)
        while True:
            with suppress(ApiError):
                listed = await self.api.get(path, params={"labelSelector": labels.SELECTOR})
                for pod in listed["items"]:
                    await self._on(pod)
                params = {"labelSelector": labels.SELECTOR, "resourceVersion": listed["metadata"]["resourceVersion"]}
                async for event in self.api.watch(path, params=params, inactivity_timeout=600):
                    if event["type"] in ("ADDED", "MODIFIED"):
                        await self._on(event["object"])
            await asyncio.sleep(0.05)

    def pods_of(self, job: str) -> list[dict[str, Any]]:
        return [pod for pod in self.pods.values() if pod["metadata"]["labels"].get(JOB_NAME) == job]

    async def end_job(self, job: str, end: End | None = None) -> None:
        """Ends the pods of a Job, those that run and those that are yet to start: as it is said, or well."""
        self._told[job] = end
        for pod in self.pods_of(job):
            await self.end(pod, end or done(pod))

    async def _on(self, pod: dict[str, Any]) -> None:
        uid = pod["metadata"]["uid"]
        if pod["spec"].get("schedulerName") != SCHEDULER:
            return
        if "deletionTimestamp" in pod["metadata"]:
            await self._stop(pod)
            return
        if uid in self.seen:
            return
        self.seen.add(uid)
        end = self.script(pod)
        if isinstance(end, Waits):
            await self.set_state(pod, "Pending", {"waiting": {"reason": end.reason, "message": end.message}})
            return
        await self.set_state(pod, "Running", {"running": {"startedAt": moment()}})
        self.pods[pod["metadata"]["name"]] = pod
        job = pod["metadata"]["labels"].get(JOB_NAME)
        if job in self._told:
            end = self._told[job] or done(pod)
        if end is not None:
            task = asyncio.create_task(self.end(pod, end))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _stop(self, pod: dict[str, Any]) -> None:
        """SIGTERM, when a pod is deleted."""
        uid = pod["metadata"]["uid"]
        if uid not in self._stopped and pod["status"]["phase"] not in ("Succeeded", "Failed"):
            self._stopped.add(uid)
            await self.end(pod, End(code=self.kill_with))

    async def end(self, pod: dict[str, Any], end: End) -> None:
        """First the container, as the kubelet has it; then the pod."""
        await asyncio.sleep(end.after)
        state: dict[str, Any] = {
            "terminated": {
                "exitCode": end.code,
                "reason": end.reason or ("Completed" if end.code == 0 else "Error"),
                "message": end.message or "",
                "startedAt": moment(),
                "finishedAt": moment(),
            }
        }
        await self.set_state(pod, "Running", state)
        more = {**({"conditions": end.conditions} if end.conditions else {}), **end.pod}
        await self.set_state(pod, "Succeeded" if end.code == 0 else "Failed", state, **more)

    async def set_state(self, pod: dict[str, Any], phase: str, state: dict[str, Any], **more: Any) -> None:
        """more: further fields of the pod's status."""
        entry = {
            "name": "trainer",
            "image": "x",
            "imageID": "x",
            "ready": False,
            "restartCount": 0,
            "state": state,
        }
        status: dict[str, Any] = {"phase": phase, "containerStatuses": [entry], **more}
        path = namespaced("v1", "pods", pod["metadata"]["namespace"], pod["metadata"]["name"], subresource="status")
        with suppress(ApiError):  # it may have been deleted
            await self.api.patch(path, {"status": status}, content_type="application/strategic-merge-patch+json")


def moment() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@asynccontextmanager
async def simulating(api: Api, namespace: str | None, script: Script = done) -> AsyncIterator[Simulator]:
    simulator = Simulator(api, namespace, script)
    task = asyncio.create_task(simulator.run())
    try:
        yield simulator
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def decode(pod: dict[str, Any]) -> dict[str, Any]:
    """The stage's config, as the container gets it."""
    variables = pod["spec"]["containers"][0]["env"]
    text = next(entry["value"] for entry in variables if entry["name"] == "COMD_STAGE_CONFIG")
    config: dict[str, Any] = json.loads(text.replace("$$", "$"))
    return config

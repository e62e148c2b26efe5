"""Watches of different kinds don't run level: a status may speak of a Job that the watch of Jobs has not told of yet, and a Job may
have ended before the watch of Pods has told how. Before anything is concluded from what is not there, the API server is asked."""

from collections.abc import Sequence
from typing import Any

from comd_api import API_VERSION
from comd_api.kinds import RUN
from comd_operator.runtime.api import Api, ApiError, namespaced
from comd_operator.runtime.records import JobRecord, PodRecord

CONTROLLER = "batch.kubernetes.io/controller-uid"


def ends_are_told(job: JobRecord, pods: Sequence[PodRecord]) -> bool:
    """Whether pods tell all that there is to a Job's end: of one that is complete the first one's result, else how each ended."""
    ended = [pod for pod in pods if pod.job_uid == job.uid and pod.exit_code is not None]
    if job.ended == "Complete":
        return any(pod.index == 0 for pod in ended)
    return job.ended is None or len({pod.index for pod in ended}) >= job.nodes


class SecondLook:
    def __init__(self, *, api: Api) -> None:
        self._api = api

    async def run(self, *, namespace: str, name: str) -> dict[str, Any] | None:
        """None: there is no such run. Raises ApiError."""
        return await self._one(namespaced(API_VERSION, RUN.plural, namespace, name))

    async def job(self, *, namespace: str, name: str) -> dict[str, Any] | None:
        """None: there is no such Job. Raises ApiError."""
        return await self._one(namespaced("batch/v1", "jobs", namespace, name))

    async def _one(self, path: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = await self._api.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return found

    async def pods(self, job: JobRecord) -> list[dict[str, Any]]:
        """Those of a Job that are there, by the Job controller's own label: ours may have been changed. Raises ApiError."""
        params = {"labelSelector": f"{CONTROLLER}={job.uid}"}
        found: list[dict[str, Any]] = (await self._api.get(namespaced("v1", "pods", job.namespace), params=params))[
            "items"
        ]
        return found

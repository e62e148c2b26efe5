"""Everything that the operator writes: runs of a schedule, Jobs and a Service of a run, statuses, Events. Nothing else is ever written,
and nothing of the user's object but `status`."""

import hashlib
import logging
from datetime import datetime
from typing import Any

from comd_api import API_VERSION
from comd_api.kinds import RUN, SCHEDULE, Kind
from comd_api.run import DistillationRun, ObjectMeta
from comd_api.schedule import DistillationSchedule, ScheduleStatus
from comd_api.status import RunStatus
from comd_operator.planner import labels
from comd_operator.planner.manifests import service, service_name
from comd_operator.policies.children import Child
from comd_operator.policies.clock import to_text
from comd_operator.policies.events import Event
from comd_operator.policies.hold import Obstacle
from comd_operator.runtime.api import Api, ApiError, namespaced

log = logging.getLogger(__name__)

_MAY_PASS = (401, 408, 409, 429)
"""Refusals that say nothing about the Job: of who asks, of when."""
LEAVING_SECONDS, COLLISION_SECONDS, REFUSAL_SECONDS = 2.0, 10.0, 30.0
"""Until it is tried again: an earlier run's Job is on its way out; a webhook may be started again; a quota may be raised."""
MOST_WORDS = 1024


class ObstacleError(Exception):
    """A child can't be made, and the user has to know."""

    def __init__(self, obstacle: Obstacle) -> None:
        super().__init__(obstacle.message)
        self.obstacle = obstacle


class GoneError(Exception):
    """The run or schedule, or its namespace, is not there any more."""


class Writer:
    def __init__(self, *, api: Api, component: str = labels.OPERATOR_NAME) -> None:
        self._api = api
        self._component = component

    async def create_job(self, run: DistillationRun, manifest: dict[str, Any]) -> dict[str, Any]:
        """The Job as the server has it: made, or found when it is ours already.

        Raises:
            ObstacleError: it can't be made, or its name is another's.
            GoneError: the namespace is going.
            ApiError: the API server is not well; to be tried again.
        """
        path = namespaced("batch/v1", "jobs", run.metadata.namespace)
        return await self._create(run.metadata, manifest, path, what="Job")

    async def create_run(self, schedule: DistillationSchedule, manifest: dict[str, Any]) -> dict[str, Any]:
        """As `create_job`."""
        path = namespaced(API_VERSION, RUN.plural, schedule.metadata.namespace)
        return await self._create(schedule.metadata, manifest, path, what="DistillationRun", kind=SCHEDULE)

    async def delete_run(self, name: str, *, uid: str, namespace: str) -> None:
        """The run of a schedule; what it owns goes after it."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        options |= {"preconditions": {"uid": uid}}  # type: ignore[dict-item]
        try:
            await self._api.delete(namespaced(API_VERSION, RUN.plural, namespace, name), body=options)
        except ApiError as error:
            if error.status not in (404, 409):  # gone, or another one by now
                raise

    async def ensure_service(self, run: DistillationRun) -> None:
        """The Service that gives the pods of a run their names. Errors as `create_job`."""
        manifest = service(run)
        path, name = namespaced("v1", "services", run.metadata.namespace), manifest["metadata"]["name"]
        try:
            found = await self._api.get(f"{path}/{name}")
        except ApiError as error:
            if error.status == 404:
                await self._create(run.metadata, manifest, path, what="Service")
                return
            obstacle = _obstacle(error, what=f"Service {name}")
            if obstacle is None:
                raise
            raise ObstacleError(obstacle) from error
        _must_be_ours(run.metadata, found, what="Service")

    async def delete_service(self, run: DistillationRun) -> None:
        """If it is there, and this run's."""
        path = f"{namespaced('v1', 'services', run.metadata.namespace)}/{service_name(run)}"
        try:
            found = await self._api.get(path)
            _must_be_ours(run.metadata, found, what="Service")
            await self._api.delete(path, body={"preconditions": {"uid": found["metadata"]["uid"]}})
        except ObstacleError:
            return
        except ApiError as error:
            if error.status not in (403, 404, 409):  # It goes with the run, where it may not be deleted before.
                raise

    async def _create(
        self, owner: ObjectMeta, manifest: dict[str, Any], path: str, *, what: str, kind: Kind = RUN
    ) -> dict[str, Any]:
        """kind: of the owner."""
        name = manifest["metadata"]["name"]
        try:
            made: dict[str, Any] = await self._api.create(path, manifest)
        except ApiError as error:
            if error.status == 409 and error.reason == "AlreadyExists":
                found: dict[str, Any] = await self._api.get(f"{path}/{name}")
                _must_be_ours(owner, found, what=what, kind=kind)
                return found
            if is_namespace_gone(error):
                raise GoneError from error
            obstacle = _obstacle(error, what=f"{what} {name}")
            if obstacle is None:
                raise
            raise ObstacleError(obstacle) from error
        if what == "Job" and not labels.is_watched(made):
            await self._take_back(made, f"{path}/{name}")
        return made

    async def _take_back(self, job: dict[str, Any], path: str) -> None:
        """A Job that nothing would be told of: it is not there when it should be, and who suspends the run does not end it.

        Raises:
            ObstacleError: always.
            ApiError: it could not be deleted.
        """
        metadata = job["metadata"]
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": metadata["uid"]}}
        try:
            await self._api.delete(path, body=body)
        except ApiError as error:
            if error.status not in (404, 409):
                raise
        value = (metadata.get("labels") or {}).get(labels.MANAGED_BY)
        words = (
            f"Job {metadata['name']} was made with the label {labels.SELECTOR}, and came back "
            f"{'without it' if value is None else f'with {labels.MANAGED_BY}={value}'}; make the policy engine or webhook "
            "that does so leave the labels of the runs' Jobs and pods as they are"
        )
        raise ObstacleError(Obstacle(reason="LabelChanged", message=words, seconds=REFUSAL_SECONDS))

    async def delete_job(self, child: Child, *, namespace: str) -> dict[str, Any] | None:
        """The Job on its way out; None when it is gone. It waits for its pods to go, so that its successor is not begun beside
        them; but not for those of a lost node."""
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background" if child.lost else "Foreground",
            "preconditions": {"uid": child.uid},
        }
        try:
            going: dict[str, Any] = await self._api.delete(
                namespaced("batch/v1", "jobs", namespace, child.name), body=options
            )
        except ApiError as error:
            if error.status not in (404, 409):  # gone, or another one by now
                raise
            return None
        if "kind" not in going:  # Something between us and the server has answered.
            raise ApiError(status=0, reason="Garbled", message=f"no answer to a deletion: {str(going)[:80]}")
        return going if going["kind"] == "Job" else None

    async def write_status(
        self, metadata: ObjectMeta, status: RunStatus | ScheduleStatus, *, resource_version: str, kind: Kind = RUN
    ) -> dict[str, Any]:
        """The whole status in one write, refused by the server when the object has changed since it was read."""
        path = namespaced(API_VERSION, kind.plural, metadata.namespace, metadata.name, subresource="status")
        patch = [
            {"op": "replace", "path": "/metadata/resourceVersion", "value": resource_version},
            {"op": "add", "path": "/status", "value": status.to_wire()},
        ]
        try:
            written: dict[str, Any] = await self._api.patch(path, patch, content_type="application/json-patch+json")
            return written
        except ApiError as error:
            if error.status == 404:
                raise GoneError from error
            raise

    async def tell(self, metadata: ObjectMeta, event: Event, *, now: datetime, kind: Kind = RUN) -> None:
        """An Event, or one more of the same. One that is lost is no reason to fail."""
        mark = hashlib.sha256("/".join((str(metadata.uid), event.reason, event.message)).encode()).hexdigest()[:16]
        name, moment = f"{metadata.name}.{mark}", to_text(now)
        path = namespaced("v1", "events", metadata.namespace)
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": metadata.namespace},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": kind.name,
                "name": metadata.name,
                "namespace": metadata.namespace,
                "uid": metadata.uid,
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:MOST_WORDS],
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "reportingInstance": self._component,
            "firstTimestamp": moment,
            "lastTimestamp": moment,
            "count": 1,
        }
        try:
            try:
                await self._api.create(path, body)
            except ApiError as error:
                if error.status != 409:
                    raise
                old = await self._api.get(f"{path}/{name}")
                again = {"count": int(old.get("count") or 1) + 1, "lastTimestamp": moment}
                await self._api.patch(f"{path}/{name}", again, content_type="application/merge-patch+json")
        except ApiError as error:
            log.warning("event %s could not be written: %s", event.reason, error)


def is_namespace_gone(error: ApiError) -> bool:
    """Or on its way out. Other things that a server does not know are no reason to stop."""
    if error.status == 404:
        return error.message.startswith("namespaces ")
    return error.status == 403 and "being terminated" in error.message


def _obstacle(error: ApiError, *, what: str) -> Obstacle | None:
    """What the user has to know of a refusal; None when trying again is all there is to it."""
    message = f"{what} was refused: {error.message}"[:MOST_WORDS]
    if error.status == 500 and "failed calling webhook" in error.message:
        return Obstacle(reason="WebhookFailed", message=message, seconds=COLLISION_SECONDS)
    if 400 <= error.status < 500 and error.status not in _MAY_PASS:
        reason = "Forbidden" if error.status == 403 else "Invalid"
        return Obstacle(reason=reason, message=message, seconds=REFUSAL_SECONDS)
    return None


def _must_be_ours(owner: ObjectMeta, found: dict[str, Any], *, what: str, kind: Kind = RUN) -> None:
    """Adopts by owner alone: a label can be anybody's."""
    references = found["metadata"].get("ownerReferences") or []
    holder = next((reference for reference in references if reference.get("controller")), None)
    if holder is not None and holder["uid"] == owner.uid:
        return
    name = found["metadata"]["name"]
    word = "run" if kind is RUN else "schedule"
    leaving = holder is not None and holder.get("kind") == kind.name and holder.get("name") == owner.name
    if leaving:
        words = f"{what} {name} belongs to an earlier {word} of this name and is on its way out"
    else:
        words = f"{what} {name} exists and is not this {word}'s; delete it, or give the {word} another name"
    seconds = LEAVING_SECONDS if leaving else COLLISION_SECONDS
    raise ObstacleError(Obstacle(reason="NameCollision", message=words, seconds=seconds))

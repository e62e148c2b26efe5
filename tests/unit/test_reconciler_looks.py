"""When a run is looked at again though nothing was told, and what becomes of Jobs on nodes that do not answer."""

import asyncio
from datetime import timedelta
from typing import Any, cast

from comd_api.run import DistillationRun
from comd_operator.planner import ClusterDefaults, job_manifest, labels, plan_job, stage_config
from comd_operator.runtime.api import Api, ApiError
from comd_operator.runtime.metrics import Metrics
from comd_operator.runtime.observe import LOST_SECONDS, Patience
from comd_operator.runtime.progress import Progress
from comd_operator.runtime.reconciler import Reconciler, Stores
from comd_operator.runtime.records import Identity, read_job, read_pod, read_run, read_schedule
from comd_operator.runtime.second_look import SecondLook
from comd_operator.runtime.store import Store
from comd_operator.runtime.words import Words
from comd_operator.runtime.writes import Writer
from tests.unit.fake_api import FakeApi
from tests.unit.kube_objects import JOB_UID, MADE, at, condition, pod_object
from tests.unit.test_observe import TOO_LARGE
from tests.unit.test_planner_manifests import UID, in_s3, make

DEFAULTS = ClusterDefaults(trainer_image="x", storage_uri="s3://bucket/x")
JOB = "/apis/batch/v1/namespaces/team/jobs/tiny-preflight-a1"


def owners(record: Identity) -> tuple[str, ...]:
    return record.owners


class TakesStatus(FakeApi):
    """Answers the write of a status with the run as it is then."""

    def __init__(self, run: dict[str, Any]) -> None:
        super().__init__()
        self.run, self.version = run, 100
        self.refused: list[ApiError] = []
        """What the next writes of a status are answered."""

    async def patch(self, path: str, body: Any, *, content_type: str, **_: Any) -> Any:
        await super().patch(path, body, content_type=content_type)
        if not path.endswith("/status"):
            return body
        if self.refused:
            raise self.refused.pop(0)
        self.version += 1
        metadata = {**self.run["metadata"], "resourceVersion": str(self.version)}
        self.run = {**self.run, "metadata": metadata, "status": body[1]["value"]}
        return self.run


class Site:
    """A run whose first Job is there, a reconciler, and a clock that the test sets."""

    def __init__(self, defaults: ClusterDefaults = DEFAULTS) -> None:
        self.run: DistillationRun = in_s3(make())
        document = {**self.run.to_wire(), "apiVersion": "comd.dev/v1alpha1", "kind": "DistillationRun"}
        self.api, self.seconds, self.version = TakesStatus(document), 0.0, 1
        self.changed: set[str] = set()
        self.stores = Stores(
            schedules=Store(read=read_schedule, owners=owners),
            runs=Store(read=read_run, owners=owners),
            jobs=Store(read=read_job, owners=owners),
            pods=Store(read=read_pod, owners=owners),
        )
        api = cast(Api, self.api)
        self.reconciler = Reconciler(
            stores=self.stores,
            writer=Writer(api=api),
            words=Words(api=api),
            second_look=SecondLook(api=api),
            progress=Progress(every_seconds=30, on_change=print, clock=lambda: self.seconds),
            metrics=Metrics(),
            defaults=defaults,
            patience=Patience(start_seconds=300),
            on_change=self.changed.update,
            clock=lambda: self.seconds,
            now=lambda: MADE + timedelta(seconds=self.seconds),
        )
        plan = plan_job(self.run.spec, run="tiny", stage="preflight", job_index=0, attempt=1)
        self.job = job_manifest(self.run, plan, stage_config(self.run, plan))
        self.job["metadata"] |= {"uid": JOB_UID, "creationTimestamp": at(0)}
        self.api.answers["POST", JOB.rpartition("/")[0]] = self.versioned(self.job)
        self.tell(
            self.stores.runs, {**self.run.to_wire(), "apiVersion": "comd.dev/v1alpha1", "kind": "DistillationRun"}
        )
        self.look()

    def versioned(self, obj: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        return {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}

    def tell(self, store: Store[Any], obj: dict[str, Any]) -> None:
        """As the watch does."""
        store.put(self.versioned(obj))

    def pod(self, **state: Any) -> None:
        pod = pod_object(state={"running": {}}, **state)
        pod["metadata"]["labels"][labels.RUN_UID] = UID
        self.tell(self.stores.pods, pod)

    def delete(self) -> None:
        self.job["metadata"] |= {"deletionTimestamp": at(self.seconds)}
        self.tell(self.stores.jobs, self.job)

    def look(self, seconds: float = 0.0) -> float | None:
        """One reconcile, so much later."""
        self.seconds += seconds
        return asyncio.run(self.reconciler.reconcile(UID))

    @property
    def deletions(self) -> list[str]:
        return [call.body["propagationPolicy"] for call in self.api.told("DELETE") if call.path == JOB]


def test_a_node_that_does_not_answer_is_noticed_though_nobody_tells() -> None:
    site = Site()
    site.pod()
    assert site.look(10) is None, "a run without deadlines needs no look while its trainer works"
    site.pod(deleting=50)
    assert site.look(10) == 30 + LOST_SECONDS
    assert site.deletions == []
    site.look(30 + LOST_SECONDS)
    assert site.deletions == ["Background"], "its pods are not waited for"


def test_a_job_that_was_deleted_before_its_node_was_lost_is_let_go() -> None:
    site = Site()
    site.pod()
    site.look(10)
    site.delete()
    site.pod(deleting=50)
    assert site.look(10) == 30 + LOST_SECONDS
    site.look(30 + LOST_SECONDS)
    assert site.deletions == ["Background"], "it would wait for pods that never go"


def test_patience_is_over_though_nobody_tells() -> None:
    site = Site()
    conditions = [condition("PodScheduled", "False", reason="Unschedulable", message=TOO_LARGE, since=20)]
    pod = pod_object(phase="Pending", node=None, conditions=conditions)
    pod["metadata"]["labels"][labels.RUN_UID] = UID
    site.tell(site.stores.pods, pod)
    assert site.look(30) == 290
    assert site.look(200) == 90, "counted from when the scheduler first said so"
    site.look(90)
    assert site.deletions == ["Foreground"]


def test_a_run_s_schedule_hears_of_what_we_have_written() -> None:
    """The watch has nothing to tell of it any more."""
    site = Site()
    owner = {"kind": "DistillationSchedule", "uid": "uid-of-schedule", "controller": True}
    metadata = {**site.api.run["metadata"], "uid": UID, "ownerReferences": [owner], "generation": 2}
    site.api.run = {**site.api.run, "metadata": metadata}
    site.tell(site.stores.runs, {**site.api.run, "metadata": {**metadata, "resourceVersion": "0"}})
    site.changed.clear()
    site.version = site.api.version = 500
    site.tell(site.stores.runs, site.api.run)
    site.api.version = 600
    site.look(1)
    assert site.changed == {"uid-of-schedule"}, "and not the run itself, which is being looked at"

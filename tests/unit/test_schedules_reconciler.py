"""What is asked and written for a schedule, and when it is looked at again."""

import asyncio
from datetime import timedelta
from typing import Any, cast

from comd_operator.planner import ClusterDefaults
from comd_operator.runtime.api import Api
from comd_operator.runtime.metrics import Metrics
from comd_operator.runtime.reconciler import Stores
from comd_operator.runtime.records import read_job, read_pod, read_run, read_schedule
from comd_operator.runtime.schedules import ScheduleReconciler
from comd_operator.runtime.second_look import SecondLook
from comd_operator.runtime.store import Store
from comd_operator.runtime.writes import Writer
from tests.unit.fake_api import FakeApi, refusal
from tests.unit.kube_objects import pod_object
from tests.unit.schedules import NAME, START, schedule_manifest
from tests.unit.test_reconciler_looks import owners

UID, ROOT = "uid-of-schedule", "/apis/comd.dev/v1alpha1/namespaces/team"
RUN, RUN_UID = f"{NAME}-29627280", "uid-of-run"
DEFAULTS = ClusterDefaults(trainer_image="x", storage_uri="s3://bucket/x")


class SlowApi(FakeApi):
    """Answers as a server does, some seconds after it was asked."""

    def __init__(self, site: "Site") -> None:
        super().__init__()
        self.site, self.takes = site, 0.0

    def _answer(self, verb: str, path: str, body: Any) -> Any:
        self.site.seconds += self.takes
        answer = super()._answer(verb, path, body)
        if verb == "POST" and path.endswith("/distillationruns"):
            made = {"uid": RUN_UID, "creationTimestamp": "2026-05-01T12:00:00Z"}
            return self.site.versioned({**answer, "metadata": {**answer["metadata"], **made}})
        if verb == "PATCH" and path.endswith("/status"):
            self.site.document = self.site.versioned({**self.site.document, "status": body[1]["value"]})
            return self.site.document
        return answer


class Site:
    """An hourly schedule, half an hour before its first slot."""

    def __init__(self, **spec: Any) -> None:
        self.seconds, self.version = 0.0, 10
        self.changed: set[str] = set()
        self.stores = Stores(
            schedules=Store(read=read_schedule, owners=owners),
            runs=Store(read=read_run, owners=owners),
            jobs=Store(read=read_job, owners=owners),
            pods=Store(read=read_pod, owners=owners),
        )
        self.api = SlowApi(self)
        api = cast(Api, self.api)
        self.reconciler = ScheduleReconciler(
            stores=self.stores,
            writer=Writer(api=api),
            second_look=SecondLook(api=api),
            metrics=Metrics(),
            defaults=DEFAULTS,
            on_change=self.changed.update,
            clock=lambda: self.seconds,
            now=lambda: START + timedelta(seconds=self.seconds),
        )
        metadata = {"name": NAME, "namespace": "team", "uid": UID, "generation": 1}
        metadata |= {"creationTimestamp": "2026-05-01T11:30:00Z"}
        self.document = self.versioned({**schedule_manifest(**spec), "metadata": metadata})
        self.stores.schedules.put(self.document)

    def versioned(self, obj: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        return {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}

    def look(self, seconds: float = 0.0) -> float | None:
        self.seconds += seconds
        return asyncio.run(self.reconciler.reconcile(UID))

    def asked(self) -> list[tuple[str, str]]:
        calls = [(call.verb, call.path.rpartition("/")[2]) for call in self.api.calls]
        self.api.calls.clear()
        return calls


def test_a_slot_is_not_late_by_the_time_that_our_writes_take() -> None:
    site = Site()
    site.look(1790)
    site.api.takes = 4.0
    site.reconciler.stores.schedules.put(
        site.versioned({**site.document, "metadata": {**site.document["metadata"], "generation": 2}})
    )
    assert site.look() == 6.0, "in which the status was written for four of the ten seconds"


def test_a_slot() -> None:
    """A run, a status, an event; and the run is looked at, for the watch has nothing to tell of it any more."""
    site = Site()
    site.look()
    assert site.asked() == [("PATCH", "status")]
    site.look(1801)
    assert site.asked() == [("POST", "distillationruns"), ("PATCH", "status"), ("POST", "events")]
    assert site.changed == {RUN_UID, UID}
    site.look(1)
    assert site.asked() == []


def test_a_run_begins_with_the_one_that_has_succeeded_since_the_status_was_written() -> None:
    site = Site(startFrom="LastSuccessful", skipIfUnchanged=True)
    site.look(1801)
    (call,) = (call for call in site.api.calls if call.verb == "POST" and call.path.endswith("/distillationruns"))
    assert not {"startFrom", "skipIfUnchangedSince"} & call.body["spec"].keys()
    made = {"uid": RUN_UID, "creationTimestamp": "2026-05-01T12:00:00Z"}
    ended = {"phase": "Succeeded", "completionTime": "2026-05-01T12:59:59Z"}
    site.stores.runs.put(site.versioned({**call.body, "metadata": {**call.body["metadata"], **made}, "status": ended}))
    site.api.calls.clear()
    site.look(3600)
    (call, *_) = site.api.calls
    assert (call.verb, call.body["spec"]["startFrom"]) == ("POST", {"run": RUN})
    assert call.body["spec"]["skipIfUnchangedSince"] == RUN
    assert (site.document["status"]["lastSuccessfulRun"], len(site.api.calls)) == (RUN, 3), "one write, as ever"


def test_a_run_that_is_not_known_is_asked_for_before_it_counts_as_gone() -> None:
    """Watches don't run level."""
    site = Site()
    site.look(1801)
    made = site.stores.runs.of(UID)[0]
    run = {"kind": "DistillationRun", "metadata": {"name": RUN, "namespace": "team", "uid": RUN_UID}}
    owner = {"kind": "DistillationSchedule", "uid": UID, "controller": True}
    run["metadata"] |= {"creationTimestamp": "2026-05-01T12:00:00Z", "ownerReferences": [owner]}  # type: ignore[operator]
    site.stores.runs.discard(site.versioned(run))
    assert made not in site.stores.runs.of(UID)
    site.asked()
    site.api.answers["GET", f"{ROOT}/distillationruns/{RUN}"] = site.versioned(run)
    site.look(1)
    assert site.asked() == [("GET", RUN)], "it is there, and nothing has changed"
    assert [run.name for run in site.stores.runs.of(UID)] == [RUN]


def test_what_a_deleted_run_has_left_is_waited_for() -> None:
    site = Site(concurrencyPolicy="Forbid")
    site.look(1801)
    pod = pod_object(state={"running": {}})
    pod["metadata"] |= {"namespace": "team", "labels": {**pod["metadata"]["labels"], "comd.dev/run-uid": RUN_UID}}
    site.stores.pods.put(site.versioned(pod))
    gone = {"metadata": {"name": RUN, "namespace": "team"}}
    site.stores.runs.discard(site.versioned(gone))
    site.api.answers["GET", f"{ROOT}/distillationruns/{RUN}"] = refusal(404, "NotFound")
    site.asked()
    site.look(3600)
    assert site.reconciler.waiting == {RUN_UID: UID}
    assert ("POST", "distillationruns") not in site.asked(), "its pod still runs"
    site.stores.pods.discard(site.versioned(pod))
    site.look(3600)
    assert ("POST", "distillationruns") in site.asked()
    assert site.reconciler.waiting == {}


def test_a_name_that_is_another_s_is_tried_again() -> None:
    site = Site()
    site.look()
    site.api.answers["POST", f"{ROOT}/distillationruns"] = refusal(409, "AlreadyExists")
    foreign = {"metadata": {"name": RUN, "namespace": "team", "uid": "another"}}
    site.api.answers["GET", f"{ROOT}/distillationruns/{RUN}"] = foreign
    assert site.look(1801) == 10.0
    stalled = next(entry for entry in site.document["status"]["conditions"] if entry["type"] == "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "NameCollision")
    site.asked()
    assert site.look(4) == 6.0
    assert site.asked() == [], "before its time nothing is asked"
    del site.api.answers["POST", f"{ROOT}/distillationruns"]
    site.look(6)
    assert ("POST", "distillationruns") in site.asked()


def test_a_spec_that_no_schema_has_words_for_is_stalled() -> None:
    site = Site()
    site.document["spec"]["runTemplate"]["metadata"] = {"labels": {"not a key": "x"}}
    site.stores.schedules.put(site.versioned(site.document))
    assert site.look() is None
    assert site.asked() == [("PATCH", "status"), ("POST", "events")]
    stalled = next(entry for entry in site.document["status"]["conditions"] if entry["type"] == "Stalled")
    assert stalled["reason"] == "InvalidSpec"
    assert "spec.runTemplate.metadata.labels.not a key" in stalled["message"]
    site.look(60)
    assert site.asked() == []


def test_a_template_that_no_run_could_begin_with() -> None:
    site = Site()
    site.reconciler.defaults = ClusterDefaults()
    site.look(1801)
    stalled = next(entry for entry in site.document["status"]["conditions"] if entry["type"] == "Stalled")
    assert stalled["message"].startswith("spec.runTemplate.spec.storage is not set")
    assert ("POST", "distillationruns") not in site.asked()


def test_one_that_is_deleted_is_let_go() -> None:
    site = Site()
    metadata = {**site.document["metadata"], "deletionTimestamp": "2026-05-01T12:00:00Z"}
    site.stores.schedules.put(site.versioned({**site.document, "metadata": metadata}))
    assert site.look(1801) is None
    assert site.asked() == []

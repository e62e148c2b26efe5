"""What a look at a run costs: what is asked for, and what is found out again."""

from dataclasses import replace
from typing import Any

import pytest

from comd_api.stage import StageResult
from comd_operator.planner import labels
from comd_operator.runtime import reconciler
from tests.unit.kube_objects import JOB_UID, QUEUE, at, pod_object
from tests.unit.test_planner_manifests import UID
from tests.unit.test_reconciler_looks import DEFAULTS, JOB, Site


def asked(site: Site) -> list[Any]:
    return [call.path for call in site.api.told("GET")]


def test_the_events_of_a_job_that_no_controller_has_come_to_are_not_asked_for() -> None:
    """With a thousand runs at once the Job controller is behind: a thousand questions would only delay it."""
    site = Site()
    assert site.look(60) is None
    assert asked(site) == []


def test_those_of_a_job_that_was_started_without_pods_are() -> None:
    site = Site()
    site.api.answers["GET", "/api/v1/namespaces/team/events"] = {"items": []}
    site.tell(site.stores.jobs, {**site.job, "status": {"startTime": at(0)}})
    assert site.look(1) == 1
    assert asked(site) == []
    site.look(1)
    assert asked(site) == ["/api/v1/namespaces/team/events"]
    assert site.api.told("GET")[0].body["fieldSelector"] == f"involvedObject.uid={JOB_UID}"


def test_what_is_wrong_with_a_spec_is_found_out_once_a_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    monkeypatch.setattr(reconciler, "problem", looked.append)
    site = Site()
    for _ in range(3):
        site.look(1)
    assert len(looked) == 1
    run = {
        **site.api.run,
        "metadata": {**site.api.run["metadata"], "uid": UID, "generation": 2, "resourceVersion": "999"},
    }
    site.stores.runs.put(run)
    site.look(1)
    assert len(looked) == 2


def test_a_trainer_that_has_ended_is_no_write_of_its_own() -> None:
    """Its successor is made then, and the status written when its Job is complete: what it said of its progress stays until then."""
    site = Site()
    site.api.version += 1
    metadata = {**site.api.run["metadata"], "resourceVersion": str(site.api.version)}
    site.api.run = {
        **site.api.run,
        "metadata": metadata,
        "status": {**site.api.run["status"], "progress": "preflight 43 %"},
    }
    site.stores.runs.put(site.api.run)
    site.pod()
    site.look(1)
    writes = len(site.api.told("PATCH"))
    ended = {"exitCode": 0, "message": StageResult(exit_class="Done").to_termination_message()}
    pod = pod_object(state={"terminated": ended}, phase="Succeeded")
    pod["metadata"]["labels"][labels.RUN_UID] = UID
    site.tell(site.stores.pods, pod)
    successor = {**site.job, "metadata": {**site.job["metadata"], "name": "tiny-pretrain-a1", "uid": "another"}}
    site.api.answers["POST", JOB.rpartition("/")[0]] = site.versioned(successor)
    for _ in range(2):
        site.look(1)
    made = [call.body["metadata"]["name"] for call in site.api.told("POST") if call.body["kind"] == "Job"]
    assert made == ["tiny-preflight-a1", "tiny-pretrain-a1"]
    assert len(site.api.told("PATCH")) == writes


def test_a_job_that_waits_in_the_queue_is_one_status() -> None:
    """It is written when the Job is made; that the watch then tells of the Job is no news."""
    site = Site(replace(DEFAULTS, queue="gpus"))
    site.api.answers |= {
        ("GET", "/apis/kueue.x-k8s.io"): {"preferredVersion": {"groupVersion": "kueue.x-k8s.io/v1beta1"}},
        ("GET", "/apis/kueue.x-k8s.io/v1beta1/namespaces/team/workloads"): {"items": []},
    }
    metadata = {**site.job["metadata"], "labels": {**site.job["metadata"]["labels"], QUEUE: "gpus"}}
    site.tell(site.stores.jobs, {**site.job, "metadata": metadata, "spec": {**site.job["spec"], "suspend": True}})
    site.look(1)
    told = [call.body[1]["value"]["conditions"] for call in site.api.told("PATCH")]
    assert len(told) == 1
    queued = next(entry for entry in told[0] if entry["type"] == "Queued")
    assert (queued["status"], queued["reason"]) == ("True", "Queued")
    assert queued["message"] == "preflight: waits in the queue gpus"

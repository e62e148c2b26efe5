"""What is told of runs that can't be read, of pods that outlive their Job or don't start, and that no event is lost."""

from typing import Any

import pytest

from comd_api.stage import StageResult
from comd_api.status import ArtifactRef
from comd_operator.planner import ClusterDefaults, labels
from comd_operator.runtime.api import ApiError
from comd_operator.runtime.placing import QUIET_SECONDS
from comd_operator.runtime.reconciler import GONE_SECONDS, UNWATCHED_SECONDS
from tests.unit.fake_api import refusal
from tests.unit.kube_objects import JOB_UID, at, condition, pod_object
from tests.unit.test_planner_manifests import UID
from tests.unit.test_reconciler_looks import JOB, Site

EVENTS = "/api/v1/namespaces/team/events"


def begun_anew(site: Site, **changes: Any) -> None:
    """The run with another spec or status, as the watch tells of it."""
    site.api.version += 1
    metadata = {**site.api.run["metadata"], "uid": UID, "resourceVersion": str(site.api.version), "generation": 2}
    site.api.run = {**site.api.run, "metadata": metadata, **changes}
    site.stores.runs.put(site.api.run)


@pytest.mark.parametrize(
    ("trainer", "field"),
    [
        ({"resourcesPerNode": {"limits": {"cpu": -1}}}, "spec.trainer.resourcesPerNode.limits.cpu"),
        (
            {"podTemplate": {"spec": {"nodeSelector": {"gpu type": "a100"}}}},
            "spec.trainer.podTemplate.spec.nodeSelector",
        ),
    ],
)
def test_a_spec_that_no_schema_has_words_for_is_stalled(trainer: dict[str, Any], field: str) -> None:
    """Forms of a map's keys, and of a quantity that is a number: the API server takes them."""
    site = Site()
    spec = {**site.api.run["spec"], "trainer": trainer}
    begun_anew(site, spec=spec, status={})
    site.look(1)
    told = site.api.told("PATCH")[-1].body[1]["value"]
    assert (told["phase"], told["observedGeneration"]) == ("Stalled", 2)
    ready = next(entry for entry in told["conditions"] if entry["type"] == "Ready")
    assert ready["reason"] == "InvalidSpec"
    assert ready["message"].startswith(field)
    writes = len(site.api.told("PATCH"))
    site.look(1)
    assert len(site.api.told("PATCH")) == writes, "said once"


def test_a_status_of_another_version_is_left_alone() -> None:
    site = Site()
    writes = len(site.api.calls)
    begun_anew(site, status={"phase": "Pondering"})
    site.look(1)
    assert len(site.api.calls) == writes


def test_no_attempt_is_begun_beside_pods_that_outlive_their_job() -> None:
    site = Site()
    site.pod()
    site.look(1)
    site.api.answers["GET", JOB] = refusal(404)
    site.stores.jobs.discard(site.versioned(site.job))
    site.look(1)
    site.look(60)
    assert len(site.api.told("POST")) == 3, "the first Job, and two events"
    pod = pod_object(state={"terminated": {"exitCode": 75}}, phase="Failed")
    pod["metadata"]["labels"][labels.RUN_UID] = UID
    site.tell(site.stores.pods, pod)
    site.look(1)
    made = [call.body["metadata"]["name"] for call in site.api.told("POST") if call.body["kind"] == "Job"]
    assert made == ["tiny-preflight-a1", "tiny-preflight-a2"]


def test_a_job_that_vanished_is_not_followed_any_more() -> None:
    site = Site()
    pod = pod_object(state={"running": {}})
    pod["metadata"]["labels"][labels.RUN_UID] = UID
    pod["status"]["podIP"] = "10.0.0.7"
    site.tell(site.stores.pods, pod)
    site.look(1)
    assert site.reconciler.progress._followed
    site.api.answers["GET", JOB] = refusal(404)
    site.stores.jobs.discard(site.versioned(site.job))
    site.look(1)
    assert not site.reconciler.progress._followed


@pytest.mark.parametrize(
    "words",
    [
        'MountVolume.SetUp failed for volume "keys" : secret "hub" not found',
        'MountVolume.SetUp failed for volume "s3-ca-bundle" : configmap references non-existent config key: ca.crt',
    ],
)
def test_a_volume_that_is_not_there_is_told_and_given_up(words: str) -> None:
    site = Site()
    site.tell(site.stores.jobs, {**site.job, "status": {"startTime": site.job["metadata"]["creationTimestamp"]}})
    pod = pod_object(state={"waiting": {"reason": "ContainerCreating"}}, phase="Pending")
    pod["metadata"]["labels"][labels.RUN_UID] = UID
    site.tell(site.stores.pods, pod)
    site.api.answers["GET", EVENTS] = {"items": [{"reason": "FailedMount", "message": words}]}
    assert site.look(1) == 19
    site.look(19)
    told = site.api.told("PATCH")[-1].body[1]["value"]
    assert told["phase"] == "Stalled"
    assert words in next(entry["message"] for entry in told["conditions"] if entry["type"] == "Ready")
    site.look(300)
    assert site.deletions == ["Foreground"], "it holds no quota"


def test_why_pods_were_once_late_does_not_explain_that_they_are_gone() -> None:
    """A pod's object goes before its Job is told to have failed: an event of the time when a quota had no room is still there, and
    the Job must not be given up for it."""
    site = Site()
    status = {"startTime": site.job["metadata"]["creationTimestamp"], "active": 1}
    site.tell(site.stores.jobs, {**site.job, "status": status})
    site.pod()
    site.look(1000)
    refused = {"reason": "FailedCreate", "message": "exceeded quota: gpus, requested: a=1, used: a=0, limited: a=0"}
    site.api.answers["GET", EVENTS] = {"items": [refused]}
    writes = len(site.api.told("PATCH"))
    site.stores.pods.discard(site.versioned(pod_object()))
    site.look(1)
    assert site.deletions == []
    assert len(site.api.told("PATCH")) == writes


PODS = "/api/v1/namespaces/team/pods"


def relabelled(**changes: Any) -> dict[str, Any]:
    """A pod of the first Job on which somebody has changed our label."""
    pod = pod_object(**changes)
    pod["metadata"]["labels"] |= {labels.RUN_UID: UID, labels.MANAGED_BY: "platform"}
    return pod


def test_pods_that_no_watch_tells_of_are_asked_for_before_they_are_called_missing() -> None:
    site = Site()
    status = {"startTime": site.job["metadata"]["creationTimestamp"], "active": 1}
    site.tell(site.stores.jobs, {**site.job, "status": status})
    site.api.answers["GET", PODS] = {"items": [relabelled(state={"running": {}})]}
    assert site.look(1) == QUIET_SECONDS, "the watch of pods may be late"
    assert site.look(QUIET_SECONDS) == UNWATCHED_SECONDS
    assert site.look(1000) == UNWATCHED_SECONDS
    assert site.api.run["status"]["phase"] == "Running"
    assert not site.stores.pods.of(UID), "nobody would tell when it goes"


def test_the_result_of_a_pod_that_no_watch_tells_of_is_read() -> None:
    """The stage would be tried again for ever, at no cost."""
    site = Site()
    ended = {"exitCode": 0, "message": StageResult(exit_class="Done").to_termination_message()}
    site.api.answers["GET", PODS] = {"items": [relabelled(state={"terminated": ended}, phase="Succeeded")]}
    done = [condition("Complete", reason="CompletionsReached", since=100)]
    site.tell(site.stores.jobs, {**site.job, "status": {"conditions": done}})
    site.look(1)
    assert site.api.run["status"]["stages"][0]["phase"] == "Succeeded"
    selectors = [call.body["labelSelector"] for call in site.api.told("GET") if call.path == PODS]
    assert selectors == [f"batch.kubernetes.io/controller-uid={JOB_UID}"]


def test_what_was_seen_of_a_pod_counts_though_it_is_gone_when_its_job_is_asked_about() -> None:
    """Of two nodes one has left no pod, so that the API server is asked; the other's is gone by then."""
    site = Site()
    site.tell(site.stores.jobs, {**site.job, "spec": {**site.job["spec"], "completions": 2}})
    ended = {
        "exitCode": 64,
        "message": StageResult(exit_class="UserError", message="no bucket").to_termination_message(),
    }
    pod = pod_object(state={"terminated": ended}, phase="Failed")
    pod["metadata"]["labels"][labels.RUN_UID] = UID
    site.tell(site.stores.pods, pod)
    site.api.answers["GET", PODS] = {"items": []}
    failed = [condition("Failed", reason="BackoffLimitExceeded", since=100)]
    site.tell(
        site.stores.jobs, {**site.job, "spec": {**site.job["spec"], "completions": 2}, "status": {"conditions": failed}}
    )
    site.look(1)
    assert site.api.run["status"]["stages"][0]["exitClass"] == "UserError"


def test_an_event_is_told_though_the_deletion_after_it_fails() -> None:
    site = Site()
    spec = {**site.api.run["spec"], "suspend": True}
    begun_anew(site, spec=spec)
    site.api.answers["DELETE", JOB] = [refusal(500), {"kind": "Status"}]
    with pytest.raises(ApiError):
        site.look(1)
    site.look(1)
    told = [call.body["reason"] for call in site.api.told("POST") if call.body["kind"] == "Event"]
    assert told == ["JobStarted", "Suspended"]
    assert len(site.deletions) == 2


def test_a_run_whose_storage_moved_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """The operator's default was changed while the run went on."""
    site = Site()
    status = {
        "phase": "Running",
        "startTime": "2026-01-01T00:00:00Z",
        "stages": [
            {
                "name": "preflight",
                "phase": "Succeeded",
                "artifacts": [{"name": "preflight", "uri": "s3://old/x/a", "digest": "sha256:" + "0" * 64}],
            }
        ],
    }
    begun_anew(site, status=status)
    site.look(1)
    told = site.api.told("PATCH")[-1].body[1]["value"]
    ready = next(entry for entry in told["conditions"] if entry["type"] == "Ready")
    assert (told["phase"], ready["reason"]) == ("Stalled", "InvalidSpec")
    assert "s3://old/x/a" in ready["message"]
    assert [record.levelname for record in caplog.records if "s3://old/x/a" in record.message] == ["WARNING"]


def test_storage_that_moves_while_the_first_stage_runs_is_noticed_before_the_next_is_made() -> None:
    site = Site()
    site.pod()
    site.look(1)
    result = StageResult(
        exit_class="Done", artifacts=[ArtifactRef(name="preflight", uri="s3://old/x/a", digest="sha256:" + "0" * 64)]
    )
    ended = {"exitCode": 0, "message": result.model_dump_json(by_alias=True, exclude_none=True)}
    pod = pod_object(state={"terminated": ended}, phase="Succeeded")
    pod["metadata"]["labels"][labels.RUN_UID] = UID
    site.tell(site.stores.pods, pod)
    done = [condition("Complete", reason="CompletionsReached", since=100)]
    site.tell(site.stores.jobs, {**site.job, "status": {"conditions": done}})
    site.look(1)
    made = [call.body["metadata"]["name"] for call in site.api.told("POST") if call.body["kind"] == "Job"]
    assert made == ["tiny-preflight-a1"]
    told = site.api.told("PATCH")[-1].body[1]["value"]
    assert told["phase"] == "Stalled"
    ready = next(entry for entry in told["conditions"] if entry["type"] == "Ready")
    assert "s3://old/x/a" in ready["message"]


@pytest.mark.parametrize(
    "changes", [{"owner": None}, {"namespace": "elsewhere"}], ids=["of no Job", "in another namespace"]
)
def test_a_pod_that_only_carries_our_labels_holds_nothing_up(changes: dict[str, Any]) -> None:
    site = Site()
    site.pod()
    site.look(1)
    site.api.answers["GET", JOB] = refusal(404)
    site.stores.jobs.discard(site.versioned(site.job))
    site.stores.pods.discard(site.versioned(pod_object()))
    namespace = changes.pop("namespace", "team")
    pod = pod_object(state={"running": {}}, **changes)
    pod["metadata"] |= {"namespace": namespace, "name": "copy", "uid": "copy"}
    pod["metadata"]["labels"][labels.RUN_UID] = UID
    site.tell(site.stores.pods, pod)
    site.look(1)
    site.look(60)
    made = [call.body["metadata"]["name"] for call in site.api.told("POST") if call.body["kind"] == "Job"]
    assert made == ["tiny-preflight-a1", "tiny-preflight-a2"]


def test_a_run_that_another_manages_is_left_alone_even_if_it_can_not_be_read() -> None:
    site = Site()
    calls = len(site.api.calls)
    trainer = {"resourcesPerNode": {"limits": {"cpu": -1}}}
    begun_anew(site, spec={**site.api.run["spec"], "trainer": trainer, "managedBy": "example.com/other"}, status={})
    site.look(1)
    assert len(site.api.calls) == calls


def test_a_begun_run_that_can_not_be_read_any_more_is_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()
    calls = len(site.api.calls)
    begun_anew(site, spec={**site.api.run["spec"], "trainer": {"resourcesPerNode": {"limits": {"cpu": -1}}}})
    site.look(1)
    assert len(site.api.calls) == calls
    assert "left alone, though it was begun: spec.trainer.resourcesPerNode.limits.cpu" in caplog.text


def test_a_write_that_finds_nothing_is_no_end_unless_the_watch_says_so() -> None:
    """The kind itself may have been away, as when its definition is made anew."""
    site = Site()
    site.api.refused = [refusal(404), refusal(404)]
    begun_anew(site, spec={**site.api.run["spec"], "suspend": True})
    assert site.look(1) == GONE_SECONDS
    trainer = {"resourcesPerNode": {"limits": {"cpu": -1}}}
    begun_anew(site, spec={**site.api.run["spec"], "trainer": trainer}, status={})
    assert site.look(1) == GONE_SECONDS
    site.stores.runs.discard(site.versioned(site.api.run))
    assert site.look(1) is None


def test_a_job_that_was_there_already_is_looked_at_again() -> None:
    """The answer to its making was lost, and the watch tells nothing of it that the store has not had from our own question."""
    site = Site()
    site.api.answers["GET", JOB] = refusal(404)
    site.stores.jobs.discard(site.versioned(site.job))
    site.look(1)
    name = "tiny-preflight-a2"
    metadata = {**site.job["metadata"], "name": name, "uid": "second"}
    found = site.versioned({**site.job, "metadata": metadata, "status": {"startTime": at(70)}})
    site.api.answers["POST", JOB.rpartition("/")[0]] = refusal(409, "AlreadyExists")
    site.api.answers["GET", f"{JOB.rpartition('/')[0]}/{name}"] = found
    assert site.look(60) == 0.0
    assert site.api.told("PATCH")[-1].body[1]["value"]["stages"][0]["jobUid"] == "second"


def test_nobody_asks_for_the_progress_of_a_run_that_is_gone() -> None:
    site = Site()
    site.reconciler.progress.follow("job", ip="10.0.0.7", run_uid=UID)
    site.stores.jobs.discard(site.versioned(site.job))
    site.stores.runs.discard(site.versioned(site.api.run))
    site.look(1)
    assert not site.reconciler.progress._followed


def test_a_new_operator_keeps_the_progress_that_was_known() -> None:
    site = Site()
    site.pod()
    site.look(1)
    begun_anew(site, status={**site.api.run["status"], "progress": "check 40 %"})
    writes = len(site.api.told("PATCH"))
    site.look(1)
    told = [call.body[1]["value"].get("progress") for call in site.api.told("PATCH")[writes:]]
    assert set(told) <= {"check 40 %"}


def test_a_queue_that_the_operator_fills_in_is_waited_for_from_the_beginning() -> None:
    """Its Job is made suspended, and the status says from the first write on that it waits."""
    site = Site(ClusterDefaults(trainer_image="x", storage_uri="s3://bucket/x", queue="gpus"))
    (job,) = (call.body for call in site.api.told("POST") if call.body["kind"] == "Job")
    assert job["spec"]["suspend"] is True
    (write,) = site.api.told("PATCH")
    assert write.body[1]["value"]["phase"] == "Queued"


def unlabelled(site: Site, **metadata: Any) -> dict[str, Any]:
    """The Job after somebody has changed its labels, of which the watch says that it is gone; and its pod, which works on."""
    pod = pod_object(state={"running": {}})
    pod["metadata"]["labels"] |= {labels.RUN_UID: UID, "batch.kubernetes.io/job-name": "tiny-preflight-a1"}
    site.tell(site.stores.pods, pod)
    own = {**site.job["metadata"]["labels"], labels.MANAGED_BY: "platform"}
    site.stores.jobs.discard(site.versioned(site.job))
    return site.versioned({**site.job, "metadata": {**site.job["metadata"], "labels": own, **metadata}})


def test_a_job_that_our_label_was_taken_off_is_ours_all_the_same() -> None:
    site = Site()
    site.api.answers["GET", JOB] = unlabelled(site)
    writes = len(site.api.told("PATCH"))
    assert site.look(1) == UNWATCHED_SECONDS, "no watch tells of it"
    assert len(site.api.told("PATCH")) - writes <= 1
    assert not len(site.stores.jobs), "nor would one say that it has gone"
    made = [call.body["metadata"]["name"] for call in site.api.told("POST") if call.body["kind"] == "Job"]
    assert made == ["tiny-preflight-a1"]
    begun_anew(site, spec={**site.api.run["spec"], "suspend": True})
    site.look(1)
    site.look(5)
    assert site.deletions, "suspended: nothing of it runs"


def test_a_job_that_is_taken_from_the_run_is_told_and_its_pods_are_waited_for() -> None:
    site = Site()
    site.api.answers["GET", JOB] = unlabelled(site, ownerReferences=[])
    site.look(1)
    site.look(120)
    told = site.api.told("PATCH")[-1].body[1]["value"]
    ready = next(entry for entry in told["conditions"] if entry["type"] == "Ready")
    assert "Job tiny-preflight-a1 is no longer this run's" in ready["message"]
    made = [call.body["metadata"]["name"] for call in site.api.told("POST") if call.body["kind"] == "Job"]
    assert made == ["tiny-preflight-a1"]
    assert site.deletions == []


def test_pods_that_were_never_started_are_waited_for_too() -> None:
    site = Site()
    pod = pod_object(state={"waiting": {"reason": "ContainerCreating"}}, phase="Pending")
    pod["metadata"]["labels"][labels.RUN_UID] = UID
    site.tell(site.stores.pods, pod)
    site.api.answers["GET", JOB] = refusal(404)
    site.stores.jobs.discard(site.versioned(site.job))
    site.look(1)
    site.look(60)
    made = [call.body["metadata"]["name"] for call in site.api.told("POST") if call.body["kind"] == "Job"]
    assert made == ["tiny-preflight-a1"]


@pytest.mark.parametrize("uri", ["s3://old//x", "s3://old/x//"])
def test_slashes_too_many_are_no_other_storage(uri: str) -> None:
    """The trainer leaves them out of what it reports."""
    site = Site(ClusterDefaults(trainer_image="x", storage_uri=uri))
    artifact = {"name": "preflight", "uri": "s3://old/x/a", "digest": "sha256:" + "0" * 64}
    status = {
        "phase": "Running",
        "startTime": "2026-01-01T00:00:00Z",
        "stages": [{"name": "preflight", "phase": "Succeeded", "artifacts": [artifact]}],
    }
    spec = {name: value for name, value in site.api.run["spec"].items() if name != "storage"}
    site.stores.jobs.discard(site.versioned(site.job))
    begun_anew(site, spec=spec, status=status)
    site.look(1)
    made = [call.body["metadata"]["name"] for call in site.api.told("POST") if call.body["kind"] == "Job"]
    assert made[-1] == "tiny-pretrain-a1"

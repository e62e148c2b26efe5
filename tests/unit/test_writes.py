"""Everything that the operator writes, and what it makes of the API server's answers."""

import asyncio
from collections.abc import Awaitable
from typing import Any, cast

import pytest

from comd_api.run import DistillationRun
from comd_api.status import RunStatus
from comd_operator.planner import job_manifest, labels, plan_job, service, stage_config
from comd_operator.policies.children import Child
from comd_operator.policies.events import Event
from comd_operator.runtime.api import Api, ApiError
from comd_operator.runtime.writes import (
    COLLISION_SECONDS,
    LEAVING_SECONDS,
    REFUSAL_SECONDS,
    GoneError,
    ObstacleError,
    Writer,
)
from tests.unit.fake_api import FakeApi, refusal
from tests.unit.kube_objects import at, now
from tests.unit.test_planner_manifests import BATCH, UID, make

JOBS = "/apis/batch/v1/namespaces/team/jobs"
JOB = f"{JOBS}/tiny-round-1-a1"
SERVICES = "/api/v1/namespaces/team/services"
SERVICE = f"{SERVICES}/run-tiny"
STATUS = "/apis/comd.dev/v1alpha1/namespaces/team/distillationruns/tiny/status"
EVENTS = "/api/v1/namespaces/team/events"
RUN = make(trainer__numNodes=2, **BATCH)
PLAN = plan_job(RUN.spec, run="tiny", stage="round-1", job_index=0, attempt=1)
MANIFEST = job_manifest(RUN, PLAN, stage_config(RUN, PLAN))
EXISTS = refusal(409, "AlreadyExists", 'jobs.batch "tiny-round-1-a1" already exists')


def owned_by(uid: str, *, kind: str = "DistillationRun", name: str = "tiny", controller: bool = True) -> dict[str, Any]:
    reference = {"kind": kind, "name": name, "uid": uid, "controller": controller}
    return {"metadata": {"name": "tiny-round-1-a1", "uid": "job-uid", "ownerReferences": [reference]}}


def do(answers: dict[tuple[str, str], Any], act: Any) -> tuple[Any, FakeApi]:
    """What comes of an act of a Writer: its answer, or the error that it raised."""
    api = FakeApi(answers)
    awaitable: Awaitable[Any] = act(Writer(api=cast(Api, api)))

    async def result() -> Any:
        try:
            return await awaitable
        except (ApiError, ObstacleError, GoneError) as error:
            return error

    return asyncio.run(result()), api


def create(answers: dict[tuple[str, str], Any], run: DistillationRun = RUN) -> tuple[Any, FakeApi]:
    return do(answers, lambda writer: writer.create_job(run, MANIFEST))


def test_a_job_is_made_once() -> None:
    made, api = create({})
    assert made == MANIFEST
    assert api.calls == [("POST", JOBS, MANIFEST)]


@pytest.mark.parametrize(
    ("own", "says"),
    [({labels.MANAGED_BY: "platform"}, "came back with app.kubernetes.io/managed-by=platform"), ({}, "without it")],
)
def test_a_job_whose_label_is_changed_when_it_is_made_is_taken_back(own: dict[str, str], says: str) -> None:
    """No watch would tell of it."""
    changed = owned_by(UID)
    changed["metadata"]["labels"] = own
    error, api = create({("POST", JOBS): changed})
    assert isinstance(error, ObstacleError)
    assert error.obstacle.reason == "LabelChanged"
    assert "label app.kubernetes.io/managed-by=comd-operator" in str(error)
    assert says in str(error)
    assert "policy engine" in str(error)
    (deletion,) = api.told("DELETE")
    assert (deletion.path, deletion.body["preconditions"]) == (JOB, {"uid": "job-uid"})


def test_a_job_that_was_made_before_we_were_killed_is_ours() -> None:
    made, api = create({("POST", JOBS): EXISTS, ("GET", JOB): owned_by(UID)})
    assert made == owned_by(UID)
    assert [call.verb for call in api.calls] == ["POST", "GET"], "nothing of it is written over"


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"metadata": {"name": "tiny-round-1-a1"}}, "is not this run's; delete it, or give the run another name"),
        ({"metadata": {"name": "tiny-round-1-a1", "labels": MANIFEST["metadata"]["labels"]}}, "is not this run's"),
        (owned_by(UID, controller=False), "is not this run's"),
        (owned_by("other", kind="CronJob"), "is not this run's"),
        (owned_by("other", name="another-run"), "is not this run's"),
        (owned_by("the run before"), "belongs to an earlier run of this name and is on its way out"),
    ],
)
def test_a_job_of_another_s_is_left_alone(found: dict[str, Any], says: str) -> None:
    error, api = create({("POST", JOBS): EXISTS, ("GET", JOB): found})
    assert isinstance(error, ObstacleError)
    seconds = LEAVING_SECONDS if "earlier run" in says else COLLISION_SECONDS
    assert (error.obstacle.reason, error.obstacle.seconds) == ("NameCollision", seconds)
    assert says in error.obstacle.message
    assert "Job tiny-round-1-a1" in error.obstacle.message
    assert [call.verb for call in api.calls] == ["POST", "GET"]


TERMINATING = 'jobs.batch "tiny-round-1-a1" is forbidden: unable to create new content in namespace team because it is being terminated'
QUOTA = 'jobs.batch "tiny-round-1-a1" is forbidden: exceeded quota: jobs, requested: count/jobs.batch=1, used: 1, limited: 1'
NO_RIGHT = (
    'jobs.batch is forbidden: User "comd" cannot create resource "jobs" in API group "batch" in the namespace "team"'
)
INVALID = (
    'Job.batch "tiny-round-1-a1" is invalid: spec.template.spec.containers[0].resources.requests: Invalid value: "2"'
)
WEBHOOK = 'Internal error occurred: failed calling webhook "mjob.kb.io": no endpoints available for service "kueue-webhook-service"'


@pytest.mark.parametrize(
    ("answer", "kind", "reason", "seconds"),
    [
        (refusal(404, "NotFound", 'namespaces "team" not found'), GoneError, None, None),
        (refusal(403, "Forbidden", TERMINATING), GoneError, None, None),
        (refusal(403, "Forbidden", QUOTA), ObstacleError, "Forbidden", REFUSAL_SECONDS),
        (refusal(403, "Forbidden", NO_RIGHT), ObstacleError, "Forbidden", REFUSAL_SECONDS),
        (refusal(422, "Invalid", INVALID), ObstacleError, "Invalid", REFUSAL_SECONDS),
        (refusal(400, "BadRequest", "admission webhook denied the request"), ObstacleError, "Invalid", REFUSAL_SECONDS),
        (refusal(404, "NotFound", "404 page not found"), ObstacleError, "Invalid", REFUSAL_SECONDS),
        (refusal(413, "RequestEntityTooLarge", "denied by a policy"), ObstacleError, "Invalid", REFUSAL_SECONDS),
        (refusal(451, "", "no"), ObstacleError, "Invalid", REFUSAL_SECONDS),
        (refusal(500, "InternalError", WEBHOOK), ObstacleError, "WebhookFailed", COLLISION_SECONDS),
        (refusal(500, "InternalError", "etcdserver: request timed out"), ApiError, None, None),
        (refusal(409, "Conflict", 'Operation cannot be fulfilled on resourcequotas "jobs"'), ApiError, None, None),
        (refusal(429, "TooManyRequests", "slow down", retry_after=7), ApiError, None, None),
        (refusal(503, "ServiceUnavailable"), ApiError, None, None),
        (refusal(401, "Unauthorized"), ApiError, None, None),
        (refusal(0, "ServerDisconnectedError"), ApiError, None, None),
    ],
)
def test_what_a_refused_job_means(answer: ApiError, kind: type, reason: str | None, seconds: float | None) -> None:
    """For the user, for nobody any more, or for us to try again."""
    error, _ = create({("POST", JOBS): answer})
    assert type(error) is kind
    if isinstance(error, ObstacleError):
        assert (error.obstacle.reason, error.obstacle.seconds) == (reason, seconds)
        assert error.obstacle.message.startswith("Job tiny-round-1-a1 was refused: ")
        assert answer.message in error.obstacle.message
    if isinstance(error, ApiError):
        assert error is answer, "with its Retry-After"


def test_a_job_that_vanishes_while_it_is_looked_at_is_tried_again() -> None:
    error, _ = create({("POST", JOBS): EXISTS, ("GET", JOB): refusal(404)})
    assert isinstance(error, ApiError)


def test_a_long_refusal_is_cut_to_what_a_condition_holds() -> None:
    error, _ = create({("POST", JOBS): refusal(422, "Invalid", "x" * 9000)})
    assert len(error.obstacle.message) == 1024


def ensure(answers: dict[tuple[str, str], Any]) -> tuple[Any, FakeApi]:
    return do(answers, lambda writer: writer.ensure_service(RUN))


def test_the_service_is_made_once_and_then_found() -> None:
    _, api = ensure({("GET", SERVICE): refusal(404)})
    assert api.calls == [("GET", SERVICE, None), ("POST", SERVICES, service(RUN))]
    _, api = ensure({("GET", SERVICE): owned_by(UID)})
    assert [call.verb for call in api.calls] == ["GET"]


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ({("GET", SERVICE): owned_by("other", kind="App")}, ObstacleError),
        ({("GET", SERVICE): refusal(404), ("POST", SERVICES): refusal(409, "AlreadyExists")}, ObstacleError),
        (
            {
                ("GET", SERVICE): refusal(404),
                ("POST", SERVICES): refusal(404, "NotFound", 'namespaces "team" not found'),
            },
            GoneError,
        ),
        ({("GET", SERVICE): refusal(404), ("POST", SERVICES): refusal(403, "Forbidden", NO_RIGHT)}, ObstacleError),
        ({("GET", SERVICE): refusal(500)}, ApiError),
        ({("GET", SERVICE): refusal(403, "Forbidden", NO_RIGHT)}, ObstacleError),
    ],
)
def test_a_service_that_can_not_be_had(answers: dict[tuple[str, str], Any], kind: type) -> None:
    if ("POST", SERVICES) in answers:  # made by somebody in between
        answers = {**answers, ("GET", SERVICE): [answers["GET", SERVICE], owned_by("other", kind="App")]}
    error, _ = ensure(answers)
    assert type(error) is kind


@pytest.mark.parametrize(
    ("found", "verbs"),
    [
        (owned_by(UID), ["GET", "DELETE"]),
        (owned_by("other", kind="App"), ["GET"]),
        (refusal(404), ["GET"]),
        (refusal(403), ["GET"]),
    ],
)
def test_the_service_goes_when_it_is_ours(found: Any, verbs: list[str]) -> None:
    _, api = do({("GET", SERVICE): found}, lambda writer: writer.delete_service(RUN))
    assert [call.verb for call in api.calls] == verbs
    if "DELETE" in verbs:
        assert api.calls[-1].body == {"preconditions": {"uid": found["metadata"]["uid"]}}


@pytest.mark.parametrize(
    ("lost", "policy"),
    [(False, "Foreground"), (True, "Background")],
)
def test_a_deleted_job_goes_with_its_pods(lost: bool, policy: str) -> None:
    """Only the one that we have seen: another of its name may be there by now. Pods of a lost node are not waited for."""
    child = Child(name="tiny-round-1-a1", stage="round-1", attempt=1, state="Running", uid="job-uid", lost=lost)
    _, api = do({}, lambda writer: writer.delete_job(child, namespace="team"))
    (call,) = api.calls
    assert (call.verb, call.path) == ("DELETE", JOB)
    assert (call.body["propagationPolicy"], call.body["preconditions"]) == (policy, {"uid": "job-uid"})


@pytest.mark.parametrize(("status", "fails"), [(404, False), (409, False), (403, True), (500, True), (0, True)])
def test_a_job_that_is_gone_is_deleted(status: int, fails: bool) -> None:
    child = Child(name="tiny-round-1-a1", stage="round-1", attempt=1, state="Running", uid="job-uid")
    error, _ = do({("DELETE", JOB): refusal(status)}, lambda writer: writer.delete_job(child, namespace="team"))
    assert (error is not None) == fails


def write(answers: dict[tuple[str, str], Any]) -> tuple[Any, FakeApi]:
    status = RunStatus(phase="Running", observed_generation=2)
    return do(answers, lambda writer: writer.write_status(RUN.metadata, status, resource_version="41"))


def test_the_status_is_written_whole_in_one_write_and_nothing_else() -> None:
    _, api = write({})
    (call,) = api.calls
    assert (call.verb, call.path) == ("PATCH", STATUS)
    assert call.body == [
        {"op": "replace", "path": "/metadata/resourceVersion", "value": "41"},
        {"op": "add", "path": "/status", "value": RunStatus(phase="Running", observed_generation=2).to_wire()},
    ]
    assert api.content_types == ["application/json-patch+json"]


@pytest.mark.parametrize(("status", "kind"), [(404, GoneError), (409, ApiError), (422, ApiError), (500, ApiError)])
def test_a_status_that_is_not_taken(status: int, kind: type) -> None:
    error, _ = write({("PATCH", STATUS): refusal(status)})
    assert type(error) is kind


def tell(answers: dict[tuple[str, str], Any], text: str = "round-1", *, seconds: float = 0) -> tuple[Any, FakeApi]:
    event = Event(type="Normal", reason="StageSucceeded", message=text)
    return do(answers, lambda writer: writer.tell(RUN.metadata, event, now=now(seconds)))


def test_an_event() -> None:
    _, api = tell({})
    (call,) = api.calls
    assert (call.verb, call.path) == ("POST", EVENTS)
    assert call.body["involvedObject"] == {
        "apiVersion": "comd.dev/v1alpha1",
        "kind": "DistillationRun",
        "name": "tiny",
        "namespace": "team",
        "uid": UID,
    }
    assert (call.body["type"], call.body["reason"], call.body["message"]) == ("Normal", "StageSucceeded", "round-1")
    assert (call.body["firstTimestamp"], call.body["count"]) == (at(0), 1)
    assert call.body["source"] == {"component": "comd-operator"}


def test_the_same_event_is_counted_and_another_is_another() -> None:
    _, first = tell({})
    name = first.calls[0].body["metadata"]["name"]
    place = f"{EVENTS}/{name}"
    _, api = tell({("POST", EVENTS): refusal(409, "AlreadyExists"), ("GET", place): {"count": 4}}, seconds=60)
    assert api.calls[-1] == ("PATCH", place, {"count": 5, "lastTimestamp": at(60)})
    assert api.content_types == ["application/merge-patch+json"]
    assert tell({}, "round-2")[1].calls[0].body["metadata"]["name"] != name
    assert len(tell({}, "x" * 9000)[1].calls[0].body["message"]) == 1024


@pytest.mark.parametrize(
    "answers",
    [
        {("POST", EVENTS): refusal(403)},
        {("POST", EVENTS): refusal(0)},
        {("POST", EVENTS): refusal(409), ("GET", f"{EVENTS}/x"): refusal(404)},
    ],
)
def test_an_event_that_is_lost_is_no_reason_to_fail(
    answers: dict[tuple[str, str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    name = tell({})[1].calls[0].body["metadata"]["name"]
    answers = {(verb, path.replace("/x", f"/{name}")): answer for (verb, path), answer in answers.items()}
    result, _ = tell(answers)
    assert result is None
    assert "event StageSucceeded could not be written" in caplog.text

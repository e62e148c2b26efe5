"""Why a Job waits, in the words of Kueue 0.14 (measured: ../shared/peers.md A3 and A4), or of the Job's events."""

import asyncio
from typing import Any, cast

import pytest

from comd_operator.policies.queue import Wait
from comd_operator.runtime.api import Api, ApiError
from comd_operator.runtime.records import JobRecord
from comd_operator.runtime.words import LONGEST_SECONDS, NO_WORKLOAD_SECONDS, Words, of_events, of_workload
from tests.unit.fake_api import FakeApi, refusal
from tests.unit.kube_objects import at, condition, job, now

QUEUED = job(suspend=True, queue="gpus", conditions=[condition("Suspended", since=0)])
PREEMPTED = "Preempted to accommodate a workload (UID: a, JobUID: b) due to prioritization in the ClusterQueue"
NO_QUOTA = (
    "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor gpu, 4 more needed"
)


TAINTED = "untolerated taint {team other NoSchedule <nil>} in flavor spot"


def too_large(flavor: str = "gpu") -> str:
    return f"insufficient quota for nvidia.com/gpu in flavor {flavor}, request > maximum capacity (8 > 4)"


def unused(flavor: str = "gpu", resource: str = "nvidia.com/gpu") -> str:
    return f"insufficient unused quota for {resource} in flavor {flavor}, 4 more needed"


def assigning(*reasons: str) -> str:
    return "couldn't assign flavors to pod set main: " + ", ".join(reasons)


def workload(*conditions: Any, active: bool | None = None) -> dict[str, Any]:
    spec = {} if active is None else {"active": active}
    return {"spec": spec, "status": {"conditions": list(conditions)}}


def pending(text: str, reason: str = "Pending") -> Any:
    return condition("QuotaReserved", "False", reason=reason, message=text)


def evicted(reason: str, text: str = "told so", status: str = "True") -> Any:
    return condition("Evicted", status, reason=reason, message=text)


WORKLOADS: dict[str, tuple[dict[str, Any], Wait | None]] = {
    "just made": (workload(), None),
    "just made, without a status": ({"spec": {"active": True}}, None),
    "no quota": (workload(pending(NO_QUOTA)), Wait(reason="Pending", message=NO_QUOTA)),
    "preempts another": (
        workload(pending(f"{NO_QUOTA}. Pending the preemption of 1 workload(s)")),
        Wait(reason="Pending", message=f"{NO_QUOTA}. Pending the preemption of 1 workload(s)"),
    ),
    "admitted, before its Job is told": (
        workload(condition("QuotaReserved", reason="QuotaReserved"), condition("Admitted", reason="Admitted")), None,
    ),
    "preempted": (
        workload(evicted("Preempted", PREEMPTED), condition("Preempted", reason="InClusterQueue")),
        Wait(reason="Preempted", message=PREEMPTED),
    ),
    "preempted and queued again": (
        workload(evicted("Preempted", PREEMPTED), pending(NO_QUOTA), condition("Requeued", reason="Preempted")),
        Wait(reason="Preempted", message=PREEMPTED),
    ),
    "resumed": (
        workload(
            evicted("QuotaReserved", f"Previously: {PREEMPTED}", "False"), condition("QuotaReserved", reason="QuotaReserved")
        ),
        None,
    ),
    "deactivated": (
        workload(evicted("Deactivated", "The workload is deactivated"), active=False),
        Wait(reason="Deactivated", message="The workload is deactivated", stuck=True),
    ),
    "deactivated before it was admitted": (
        workload(pending(NO_QUOTA), active=False),
        Wait(reason="Deactivated", message="the Workload is deactivated", stuck=True),
    ),
    "deactivated after it was once preempted": (
        workload(evicted("QuotaReserved", f"Previously: {PREEMPTED}", "False"), active=False),
        Wait(reason="Deactivated", message="the Workload is deactivated", stuck=True),
    ),
    "longer than its label allows": (
        workload(evicted("DeactivatedDueToMaximumExecutionTimeExceeded", "exceeding the maximum"), active=False),
        Wait(reason="DeactivatedDueToMaximumExecutionTimeExceeded", message="exceeding the maximum", stuck=True),
    ),
    "activated again": (workload(active=True), None),
    "unknown queue": (
        workload(pending("LocalQueue nowhere doesn't exist", "Inadmissible")),
        Wait(reason="Inadmissible", message="LocalQueue nowhere doesn't exist", stuck=True),
    ),
    "its queue went while it was out": (
        workload(evicted("Preempted", PREEMPTED), pending("LocalQueue gpus doesn't exist", "Inadmissible")),
        Wait(reason="Inadmissible", message="LocalQueue gpus doesn't exist", stuck=True),
    ),
    "stopped and drained": (
        workload(evicted("ClusterQueueStopped", "The ClusterQueue is stopped")),
        Wait(reason="ClusterQueueStopped", message="The ClusterQueue is stopped"),
    ),
    "stopped": (
        workload(
            evicted("ClusterQueueStopped", "The ClusterQueue is stopped"), pending("ClusterQueue cq is inactive", "Inadmissible")
        ),
        Wait(reason="Inadmissible", message="ClusterQueue cq is inactive", stuck=True),
    ),
    "more than the queue's maximum": (
        workload(pending(assigning(too_large()))),
        Wait(reason="Pending", message=assigning(too_large()), stuck=True),
    ),
    "more than the maximum, in the words of later versions": (
        workload(
            pending(
                assigning(
                    "insufficient quota for nvidia.com/gpu in flavor gpu, previously considered podsets requests (0) + current podset "
                    "request (8) > maximum capacity (4)"
                )
            )
        ),
        Wait(
            reason="Pending",
            message=assigning(
                "insufficient quota for nvidia.com/gpu in flavor gpu, previously considered podsets requests (0) + current podset "
                "request (8) > maximum capacity (4)"
            ),
            stuck=True,
        ),
    ),
    "more than one flavor's maximum, and another's is only in use": (
        workload(pending(assigning(too_large("spot"), unused("on-demand")))),
        Wait(reason="Pending", message=assigning(too_large("spot"), unused("on-demand"))),
    ),
    "more than the maximum of each of two flavors": (
        workload(pending(assigning(too_large("spot"), too_large("on-demand")))),
        Wait(reason="Pending", message=assigning(too_large("spot"), too_large("on-demand")), stuck=True),
    ),
    "more than the maximum, of a flavor that has no CPU left either": (
        workload(pending(assigning(unused(resource="cpu"), too_large()))),
        Wait(reason="Pending", message=assigning(unused(resource="cpu"), too_large()), stuck=True),
    ),
    "a resource that the queue has nothing of": (
        workload(pending(assigning("resource cpu unavailable in ClusterQueue"))),
        Wait(reason="Pending", message=assigning("resource cpu unavailable in ClusterQueue"), stuck=True),
    ),
    "no flavor that its pods may run on": (
        workload(pending(assigning(TAINTED, "flavor big doesn't match node affinity"))),
        Wait(reason="Pending", message=assigning(TAINTED, "flavor big doesn't match node affinity"), stuck=True),
    ),
    "one flavor that its pods may not run on, and another that is in use": (
        workload(pending(assigning("flavor spot doesn't match node affinity", unused("big")))),
        Wait(reason="Pending", message=assigning("flavor spot doesn't match node affinity", unused("big"))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_the_words_of_a_workload(name: str) -> None:
    found, words = WORKLOADS[name]
    assert of_workload(found, job=QUEUED, now=now(600)) == words


@pytest.mark.parametrize(
    ("waiting", "after", "told"),
    [
        (QUEUED, 0.0, False),
        (QUEUED, NO_WORKLOAD_SECONDS - 0.1, False),
        (QUEUED, NO_WORKLOAD_SECONDS, True),
        (job(suspend=True, queue="gpus"), NO_WORKLOAD_SECONDS, True),
        # Counted from the newest suspension: a Workload that was just deleted is made again.
        (job(suspend=True, queue="gpus", conditions=[condition("Suspended", since=100)]), 104.0, False),
    ],
)
def test_a_job_without_a_workload(waiting: JobRecord, after: float, told: bool) -> None:
    """Kueue makes none for an unknown priority class, and says so nowhere but in its log."""
    words = of_workload(None, job=waiting, now=now(after))
    assert (words is not None) == told
    if words is not None:
        assert (words.reason, words.stuck) == ("NoWorkload", True)
        assert "priority class" in words.message


def event(reason: str, text: str, seconds: float | None, *, new_style: bool = False) -> dict[str, Any]:
    key = "eventTime" if new_style else "lastTimestamp"
    return {"reason": reason, "message": text, key: at(seconds) if seconds is not None else None}


@pytest.mark.parametrize(
    ("events", "suspended", "words"),
    [
        ([], True, None),
        ([], False, None),
        ([event("CreatedWorkload", "made", 1)], True, Wait(reason="CreatedWorkload", message="made")),
        (
            [event("Stopped", PREEMPTED, 60), event("CreatedWorkload", "made", 1), event("Started", "by cq", 2)],
            True,
            Wait(reason="Stopped", message=PREEMPTED),
        ),
        ([event("SuccessfulCreate", "pod", 1), event("Suspended", "Job suspended", 3)], True, None),
        (
            [event("FailedCreate", "quota 1", 1), event("FailedCreate", "quota 2", 9, new_style=True)],
            False,
            Wait(reason="FailedCreate", message="quota 2", stuck=True),
        ),
        ([event("FailedCreate", "before", 1)], True, None),
        ([event("Stopped", "before", 1)], False, None),
        ([event("FailedCreate", "no time", None)], False, Wait(reason="FailedCreate", message="no time", stuck=True)),
    ],
)
def test_the_words_of_events(events: list[dict[str, Any]], suspended: bool, words: Wait | None) -> None:
    assert of_events(events, suspended=suspended) == words


# Asking.

GROUP = ("GET", "/apis/kueue.x-k8s.io")
WORKLOAD_LIST = ("GET", "/apis/kueue.x-k8s.io/v1beta1/namespaces/team/workloads")
EVENT_LIST = ("GET", "/api/v1/namespaces/team/events")
V1BETA1 = {"preferredVersion": {"groupVersion": "kueue.x-k8s.io/v1beta1"}}


class Asker:
    """Asks about one Job, and lets time pass."""

    def __init__(self, answers: dict[tuple[str, str], Any], waiting: JobRecord = QUEUED) -> None:
        self.api = FakeApi(answers)
        self.words = Words(api=cast(Api, self.api))
        self.waiting, self.clock = waiting, 1000.0

    def ask(self, after: float = 0.0) -> tuple[Wait | None, float]:
        self.clock += after
        return asyncio.run(self.words.of(self.waiting, clock=self.clock, now=now(self.clock)))

    @property
    def asked(self) -> list[str]:
        return [call.path.rpartition("/")[2] for call in self.api.calls]


def listed(*items: Any) -> dict[str, Any]:
    return {"items": list(items)}


def test_the_workload_is_found_by_the_job_s_uid() -> None:
    asker = Asker({GROUP: V1BETA1, WORKLOAD_LIST: listed(workload(pending(NO_QUOTA)))})
    assert asker.ask()[0] == Wait(reason="Pending", message=NO_QUOTA)
    assert [call.path for call in asker.api.calls] == [GROUP[1], WORKLOAD_LIST[1]]
    assert asker.api.calls[1].body == {"labelSelector": "kueue.x-k8s.io/job-uid=22222222-job"}
    asker.ask(after=60)
    assert asker.asked == ["kueue.x-k8s.io", "workloads", "workloads"], "the version is asked for once"


def test_the_same_words_are_asked_for_ever_more_seldom() -> None:
    asker = Asker({GROUP: V1BETA1, WORKLOAD_LIST: listed(workload(pending(NO_QUOTA)))})
    pauses = [asker.ask(after=LONGEST_SECONDS)[1] for _ in range(8)]
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


def test_nothing_is_asked_before_its_time() -> None:
    asker = Asker({GROUP: V1BETA1, WORKLOAD_LIST: listed(workload(pending(NO_QUOTA)))})
    words, pause = asker.ask()
    again, left = asker.ask(after=0.4)
    assert again == words
    assert left == pytest.approx(pause - 0.4)
    assert asker.asked == ["kueue.x-k8s.io", "workloads"]


@pytest.mark.parametrize(
    "answers",
    [
        {GROUP: V1BETA1, WORKLOAD_LIST: listed(workload(condition("QuotaReserved", reason="QuotaReserved")))},
        {GROUP: V1BETA1, WORKLOAD_LIST: refusal(403), EVENT_LIST: refusal(403)},
        {GROUP: V1BETA1, WORKLOAD_LIST: refusal(403), EVENT_LIST: listed()},
    ],
)
def test_silence_is_asked_about_ever_more_seldom_too(answers: dict[tuple[str, str], Any]) -> None:
    """Who waits for an admission check says nothing for hours; and nobody says anything to who may not ask."""
    asker = Asker(answers)
    pauses = [asker.ask(after=LONGEST_SECONDS)[1] for _ in range(7)]
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


def test_words_that_change_all_the_time_are_not_written_down_all_the_time() -> None:
    other = workload(pending(f"{NO_QUOTA}. Pending the preemption of 1 workload(s)"))
    asker = Asker({GROUP: V1BETA1, WORKLOAD_LIST: [listed(workload(pending(NO_QUOTA))), listed(other)]})
    first = asker.ask()
    second = asker.ask(after=1)
    assert first[0] != second[0]
    assert second[1] == LONGEST_SECONDS


def test_words_after_silence_are_looked_at_again_soon() -> None:
    asker = Asker({GROUP: V1BETA1, WORKLOAD_LIST: [listed(workload()), listed(workload(pending(NO_QUOTA)))]})
    assert asker.ask() == (None, 1)
    assert asker.ask(after=1) == (Wait(reason="Pending", message=NO_QUOTA), 1)


def test_a_job_that_is_forgotten_is_asked_about_anew() -> None:
    asker = Asker({GROUP: V1BETA1, WORKLOAD_LIST: listed(workload(pending(NO_QUOTA)))})
    asker.ask()
    asker.ask(after=1)
    asker.words.forget(QUEUED.uid)
    assert asker.ask()[1] == 1
    asker.words.forget("nobody")


def test_a_thousand_waiting_jobs_are_no_load() -> None:
    """Each is asked about once in 200 s then: the words are a courtesy, and the rate limit is for what moves runs."""
    api = FakeApi({GROUP: V1BETA1, WORKLOAD_LIST: listed(workload(pending(NO_QUOTA)))})
    words = Words(api=cast(Api, api))
    jobs = [job(suspend=True, queue="gpus", uid=f"job-{number}") for number in range(1000)]
    due = dict.fromkeys(jobs, 0.0)

    async def wait(seconds: int) -> None:
        for second in range(seconds):
            for waiting in [each for each, when in due.items() if when <= second]:
                due[waiting] = second + (await words.of(waiting, clock=second, now=now(second)))[1]

    asyncio.run(wait(1000))
    before = len(api.calls)
    asyncio.run(wait(200))
    assert len(api.calls) - before <= 1200, "five in a second, and some"


def test_jobs_that_vanished_are_forgotten() -> None:
    api = FakeApi({GROUP: V1BETA1, WORKLOAD_LIST: listed(workload(pending(NO_QUOTA)))})
    words = Words(api=cast(Api, api))

    async def live() -> None:
        for number in range(500):
            waiting = job(suspend=True, queue="gpus", uid=f"job-{number}")
            await words.of(waiting, clock=number * 60.0, now=now(number * 60.0))

    asyncio.run(live())
    assert len(words._heard) < 50


@pytest.mark.parametrize("may_read_events", [True, False])
def test_without_the_right_to_workloads_the_job_s_events_speak(may_read_events: bool) -> None:
    events = listed(event("Stopped", PREEMPTED, 60)) if may_read_events else refusal(403)
    asker = Asker({GROUP: V1BETA1, WORKLOAD_LIST: refusal(403), EVENT_LIST: events})
    assert asker.ask()[0] == (Wait(reason="Stopped", message=PREEMPTED) if may_read_events else None)
    asker.ask(after=60)
    assert asker.asked == ["kueue.x-k8s.io", "workloads", "events", "events"], (
        "a right that is missing is not asked for again"
    )
    assert asker.api.calls[2].body["fieldSelector"] == "involvedObject.uid=22222222-job"


def test_without_kueue_a_queue_is_a_wait_that_can_not_end() -> None:
    asker = Asker({GROUP: [refusal(404), V1BETA1], WORKLOAD_LIST: listed(workload(pending(NO_QUOTA)))})
    words, _ = asker.ask()
    assert words is not None
    assert (words.reason, words.stuck) == ("NoKueue", True)
    assert asker.ask(after=60)[0] == Wait(reason="Pending", message=NO_QUOTA), "until somebody installs it"


def test_a_version_that_is_no_longer_served_is_asked_for_anew() -> None:
    later = ("GET", "/apis/kueue.x-k8s.io/v1/namespaces/team/workloads")
    asker = Asker(
        {
            GROUP: [V1BETA1, {"preferredVersion": {"groupVersion": "kueue.x-k8s.io/v1"}}],
            WORKLOAD_LIST: [listed(workload(pending(NO_QUOTA))), refusal(404)],
            later: listed(workload(pending("after the upgrade"))),
        }
    )
    asker.ask()
    asker.ask(after=60)
    assert asker.ask(after=60)[0] == Wait(reason="Pending", message="after the upgrade")


@pytest.mark.parametrize("place", [GROUP, WORKLOAD_LIST])
def test_an_api_server_that_is_not_well_is_asked_again(place: tuple[str, str]) -> None:
    answers: dict[tuple[str, str], Any] = {GROUP: V1BETA1, WORKLOAD_LIST: listed(workload(pending(NO_QUOTA)))}
    asker = Asker({**answers, place: refusal(503)})
    with pytest.raises(ApiError):
        asker.ask()
    asker.api.answers[place] = answers[place]
    assert asker.ask()[0] == Wait(reason="Pending", message=NO_QUOTA)


@pytest.mark.parametrize(
    ("waiting", "reason"),
    [(job(), "FailedCreate"), (job(suspend=True), None), (job(queue="gpus"), "FailedCreate")],
)
def test_a_job_that_no_queue_holds_speaks_by_its_events(waiting: JobRecord, reason: str | None) -> None:
    asker = Asker({EVENT_LIST: listed(event("FailedCreate", "exceeded quota", 3))}, waiting)
    words, _ = asker.ask()
    assert (words.reason if words is not None else None) == reason
    assert asker.asked == ["events"]

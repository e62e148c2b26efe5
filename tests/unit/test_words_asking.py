"""Whom the words of a waiting Job are asked of, and how often."""

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest

from comd_operator.policies.queue import Wait
from comd_operator.runtime.api import Api
from comd_operator.runtime.records import JobRecord
from comd_operator.runtime.words import LONGEST_SECONDS, UNREADABLE_SECONDS, Words
from tests.unit.fake_api import FakeApi, refusal
from tests.unit.kube_objects import condition, job, now
from tests.unit.test_words import NO_QUOTA, PREEMPTED, QUEUED, event, pending, workload

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
def test_without_the_right_to_workloads_the_job_s_events_speak(
    may_read_events: bool, caplog: pytest.LogCaptureFixture
) -> None:
    events = listed(event("Stopped", PREEMPTED, 60)) if may_read_events else refusal(403)
    asker = Asker({GROUP: V1BETA1, WORKLOAD_LIST: refusal(403), EVENT_LIST: events})
    assert asker.ask()[0] == (Wait(reason="Stopped", message=PREEMPTED) if may_read_events else None)
    asker.ask(after=60)
    assert asker.asked == ["kueue.x-k8s.io", "workloads", "events", "events"], (
        "a right that is missing is not asked for again"
    )
    assert caplog.text == "", "that a right is not given is no news each time"
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
@pytest.mark.parametrize("status", [0, 429, 500, 503])
def test_who_is_not_well_holds_nobody_up(place: tuple[str, str], status: int, caplog: pytest.LogCaptureFixture) -> None:
    """A run whose words can't be had can still be suspended. What was heard last stands until it is asked again."""
    asker = Asker({GROUP: V1BETA1, WORKLOAD_LIST: listed(workload(pending(NO_QUOTA))), place: refusal(status)})
    assert asker.ask() == (None, 1)
    assert "tiny-round-1-a2" in caplog.text
    del asker.api.answers[place]
    asker.api.answers |= {GROUP: V1BETA1, WORKLOAD_LIST: [listed(workload(pending(NO_QUOTA))), refusal(status)]}
    assert asker.ask(after=1)[0] == Wait(reason="Pending", message=NO_QUOTA)
    assert asker.ask(after=60)[0] == Wait(reason="Pending", message=NO_QUOTA)


@pytest.mark.parametrize(
    ("waiting", "reason"),
    [
        (job(), "FailedCreate"),
        (job(suspend=True), None),
        (job(queue="gpus"), "FailedCreate"),
        (job(queue="gpus", started=3), "FailedCreate"),
        (job(queue="gpus", started=900), None),  # It was preempted and admitted again since.
    ],
)
def test_a_job_that_no_queue_holds_speaks_by_its_events(waiting: JobRecord, reason: str | None) -> None:
    asker = Asker({EVENT_LIST: listed(event("FailedCreate", "exceeded quota", 3))}, waiting)
    words, _ = asker.ask()
    assert (words.reason if words is not None else None) == reason
    assert asker.asked == ["events"]


def test_words_about_what_is_over_are_not_heard_any_more() -> None:
    """What kept a Job in the queue says nothing of its pods once it was admitted."""
    asker = Asker({GROUP: V1BETA1, WORKLOAD_LIST: listed(workload(pending(NO_QUOTA))), EVENT_LIST: listed()})
    assert asker.ask()[0] is not None
    asker.waiting = job(queue="gpus")
    assert asker.ask(after=0.5)[0] is None


def test_a_right_that_is_missing_in_one_namespace_is_not_in_another_and_may_be_given_later() -> None:
    other = ("GET", WORKLOAD_LIST[1].replace("team", "other"))
    words = listed(workload(pending(NO_QUOTA)))
    answers = {GROUP: V1BETA1, WORKLOAD_LIST: [refusal(403), words], EVENT_LIST: listed(), other: words}
    asker = Asker(answers)
    assert asker.ask()[0] is None
    asker.waiting = replace(QUEUED, namespace="other", uid="another")
    assert asker.ask()[0] == Wait(reason="Pending", message=NO_QUOTA)
    asker.waiting = QUEUED
    assert asker.ask(after=LONGEST_SECONDS)[0] is None
    assert asker.ask(after=UNREADABLE_SECONDS)[0] == Wait(reason="Pending", message=NO_QUOTA)


def test_the_scheduler_counts_nodes_all_the_time_and_is_heard_now_and_then() -> None:
    words = Words(api=cast(Api, FakeApi()))

    def show(message: str, clock: float, *, stuck: bool = False) -> tuple[str, float | None]:
        wait, left = words.steady("job", Wait(reason="Unschedulable", message=message, stuck=stuck), clock=clock)
        return wait.message, left

    assert show("0/9 nodes", 0) == ("0/9 nodes", None)
    assert show("0/8 nodes", 10) == ("0/9 nodes", 20)
    assert show("0/7 nodes", 31) == ("0/7 nodes", None)
    assert show("no node could", 32, stuck=True) == ("no node could", None), "that it can't end is told at once"
    assert show("no node could", 40, stuck=True) == ("no node could", None)

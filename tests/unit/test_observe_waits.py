"""Jobs whose trainers have ended and whose pods have not; waits of which nobody tells, or that end by somebody's hand alone."""

from dataclasses import replace
from typing import Any

import pytest

from comd_operator.runtime.observe import LOST_SECONDS, OUTLIVED_SECONDS, next_look, observe
from comd_operator.runtime.placing import QUIET_SECONDS, UNBOUND_SECONDS, no_node_could, podless_key
from comd_operator.runtime.records import JobRecord, PodRecord, read_job
from tests.unit.kube_objects import (
    condition,
    ended_pod,
    homeless_pod,
    job,
    job_object,
    message,
    now,
    pod,
    running_pod,
)
from tests.unit.test_observe import DONE, PATIENCE, ages, seen

# A container beside the trainer's that lives on.


@pytest.mark.parametrize(
    ("pods", "state", "exit_class"),
    [
        ([ended_pod(0, text=DONE, phase="Running")], "Succeeded", "Done"),
        ([ended_pod(64, text=message("UserError", "no such bucket"), phase="Running")], "Failed", "UserError"),
        ([ended_pod(0, text="no JSON", phase="Running")], "Failed", "Failed"),
        ([ended_pod(0, text=DONE, phase="Running"), ended_pod(75, phase="Running", index=1)], "Failed", "TryAgain"),
    ],
)
def test_a_trainer_s_end_counts_though_its_pod_lives_on(pods: list[PodRecord], state: str, exit_class: str) -> None:
    found = job(nodes=len(pods))
    before = seen(found, *pods, after=90 + OUTLIVED_SECONDS - 1)
    assert before.state in ("Finishing", "Running")
    assert not before.lingers
    left = next_look(found, pods, wait=None, patience=PATIENCE, ages=ages(found, *pods, after=95), now=now(95))
    assert left == OUTLIVED_SECONDS - 5
    child = seen(found, *pods, after=90 + OUTLIVED_SECONDS)
    assert (child.state, child.exit_class, child.finished) == (state, exit_class, now(90))
    assert child.lingers, "it is to be deleted, and nothing is begun beside it until it is gone"


@pytest.mark.parametrize(
    "pods",
    [
        [ended_pod(0, text=DONE)],
        [ended_pod(143, phase="Running"), running_pod()],
        [ended_pod(0, text=DONE, phase="Running"), running_pod(index=1)],
    ],
    ids=["only the Job lags behind", "another pod of its index runs", "another node works"],
)
def test_a_pod_that_lives_on_is_one_of_which_every_trainer_has_ended(pods: list[PodRecord]) -> None:
    assert not seen(job(nodes=len({pod.index for pod in pods})), *pods, after=1e5).lingers


# Waits of which nobody tells, or that end by somebody's hand alone.

NOT_PLACED = replace(pod(phase="Pending", node=None), created=now(0))
GATED = replace(NOT_PLACED, gated="blocked by gates")
UNBOUND = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found"
FULL_AND_NEVER = "0/2 nodes are available: 2 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never."
NO_PLACE = (
    "0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) had untolerated taint {team: other}. preemption: not eligible "
    "due to preemptionPolicy=Never."
)


@pytest.mark.parametrize(
    ("words", "never"),
    [
        ('0/1 nodes are available: persistentvolumeclaim "nope" not found. not found', True),
        (NO_PLACE, True),
        (NO_PLACE.replace("0/3", "0/4").replace("2 node", "1 Insufficient cpu, 2 node"), False),
        (FULL_AND_NEVER, False),
        (UNBOUND, False),
    ],
)
def test_words_without_a_second_half(words: str, never: bool) -> None:
    assert no_node_could(words) == never


@pytest.mark.parametrize(
    ("found", "pods", "reason", "told", "stuck", "lost_patience"),
    [
        (job(started=0), [NOT_PLACED], "NotScheduled", QUIET_SECONDS, 300, "Queued"),
        (job(started=0), [GATED], "SchedulingGated", 0, 300, "Queued"),
        (job(started=0), [], "NoPods", QUIET_SECONDS, 300, "Queued"),
        (job(started=0), [homeless_pod(FULL_AND_NEVER, since=0)], "Unschedulable", 0, 300, "Queued"),
        (job(started=0), [homeless_pod(UNBOUND, since=0)], "Unschedulable", 0, UNBOUND_SECONDS, "Failed"),
    ],
)
def test_a_wait_of_which_nobody_says_that_it_never_ends(
    found: JobRecord, pods: list[PodRecord], reason: str, told: float, stuck: float, lost_patience: str
) -> None:
    """Queued when it is known, stalled later, and only what waiting can't mend is given up."""
    moments = [moment for moment in (told, stuck) if moment > 0]
    after = 0.0
    for moment in moments:
        look = next_look(
            found, pods, wait=None, patience=PATIENCE, ages=ages(found, *pods, after=after), now=now(after)
        )
        assert look == moment - after, "somebody looks then"
        after = moment
    if told:
        assert seen(found, *pods, after=told - 1).state == "Running"
    queued, stalled = seen(found, *pods, after=told), seen(found, *pods, after=stuck)
    assert queued.wait is not None
    assert stalled.wait is not None
    assert (queued.wait.reason, queued.wait.stuck, stalled.wait.stuck) == (reason, False, True)
    assert seen(found, *pods, after=1e5).state == lost_patience


def test_a_job_without_pods_says_who_wants_none() -> None:
    document = job_object(started=0)
    document["spec"]["parallelism"] = 0
    child = seen(read_job(document), after=0)
    assert child.wait is not None
    assert "Job tiny-round-1-a2 has no pods, and somebody has set its spec.parallelism to 0" in child.wait.message
    assert seen(job(deleting=10, started=0), after=1e5).wait is None, "of one that goes nothing is asked"


@pytest.mark.parametrize(("pods", "allowed"), [([], 300), ([ended_pod(143, deleting=110, grace=60)], 360)])
def test_a_job_that_does_not_go_is_overdue(pods: list[PodRecord], allowed: float) -> None:
    going = job(deleting=50, started=0)
    assert not seen(going, *pods, after=50 + allowed - 1).overdue
    assert seen(going, *pods, after=50 + allowed).overdue
    assert next_look(going, pods, wait=None, patience=PATIENCE, ages={}, now=now(50)) == allowed


def test_a_pod_is_lost_by_our_own_clock() -> None:
    """The server's may be a minute behind: its pods would be lost as soon as they are told to go."""
    going = running_pod(deleting=60, grace=30)
    for age, lost in ((0, False), (30 + LOST_SECONDS - 1, False), (30 + LOST_SECONDS, True)):
        child = observe(
            job(), [going], wait=None, progress=None, patience=PATIENCE, ages={going.uid: age}, now=now(1e5)
        )
        assert child.lost == lost


def with_status(found: dict[str, Any], **status: Any) -> JobRecord:
    return read_job({**found, "status": {**found["status"], **status}})


@pytest.mark.parametrize("made", [NOT_PLACED, GATED])
def test_a_pod_that_was_made_late_has_not_waited_since_its_job_began(made: PodRecord) -> None:
    """A quota had no room for it for an hour."""
    found, late = job(started=0), replace(made, created=now(3600))
    first = seen(found, late, after=3601)
    assert first.wait is None or not first.wait.stuck
    if made is NOT_PLACED:
        left = next_look(found, [late], wait=None, patience=PATIENCE, ages=ages(found, late, after=3601), now=now(3601))
        assert (first.state, left) == ("Running", QUIET_SECONDS - 1)
    stalled = seen(found, late, after=3600 + 300)
    assert stalled.wait is not None
    assert stalled.wait.stuck


def test_a_scheduler_that_fails_is_not_one_that_does_not_look() -> None:
    placed = condition("PodScheduled", "False", reason="SchedulerError", message="extender: connection refused")
    found, tried = job(started=0), pod(phase="Pending", node=None, conditions=[placed])
    assert seen(found, tried, after=5).state == "Running", "it tries again"
    child = seen(found, tried, after=30)
    assert child.wait is not None
    assert child.wait.reason == "NotScheduled"
    assert "extender: connection refused" in child.wait.message
    assert "no scheduler has looked" not in child.wait.message


def test_that_a_job_never_had_pods_is_known_after_a_start_as_before() -> None:
    """What we count ourselves begins anew then, and the run would be told of as running for a while."""
    found = job(started=0)
    child = observe(
        found, [], wait=None, progress=None, patience=PATIENCE, ages={podless_key(found): 0.0}, now=now(1000)
    )
    assert child.wait is not None
    assert (child.state, child.wait.reason, child.wait.stuck) == ("Queued", "NoPods", True)


@pytest.mark.parametrize(
    ("status", "vanished"),
    [
        ({}, False),
        ({"active": 1}, True),
        ({"uncountedTerminatedPods": {}}, False),
        ({"uncountedTerminatedPods": {"failed": ["x"]}}, True),
        ({"conditions": [condition("FailureTarget", reason="PodFailurePolicy")]}, True),
    ],
)
def test_pods_that_are_gone_before_their_job_has_ended(status: dict[str, Any], vanished: bool) -> None:
    found = with_status(job_object(started=0), **status)
    assert seen(found, after=1).vanished == vanished
    assert not seen(found, running_pod(), after=1).vanished

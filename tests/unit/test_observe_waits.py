"""Jobs whose trainers have ended and whose pods have not; waits of which nobody tells, or that end by somebody's hand alone."""

import pytest

from comd_operator.runtime.observe import LOST_SECONDS, OUTLIVED_SECONDS, next_look, observe
from comd_operator.runtime.placing import QUIET_SECONDS, UNBOUND_SECONDS, no_node_could
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

NOT_PLACED = pod(phase="Pending", node=None)
GATED = pod(
    phase="Pending",
    node=None,
    conditions=[condition("PodScheduled", "False", reason="SchedulingGated", message="blocked by gates")],
)
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

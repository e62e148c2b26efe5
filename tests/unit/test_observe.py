"""From Jobs and Pods, as the API server shows them, to what the brain is told: a row for each thing that happens on a cluster."""

from typing import Any

import pytest

from comd_operator.policies.children import Child
from comd_operator.policies.queue import Wait
from comd_operator.runtime.observe import LOST_SECONDS, Patience, next_look, observe, timed
from comd_operator.runtime.placing import no_node_could
from comd_operator.runtime.records import JobRecord, PodRecord
from tests.unit.kube_objects import (
    JOB_UID,
    MADE,
    complete_job,
    condition,
    ended_pod,
    homeless_pod,
    job,
    message,
    now,
    pod,
    running_pod,
    waiting_pod,
)

PATIENCE = Patience(start_seconds=300.0)
FULL = (
    "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. no new claims to deallocate, preemption: 0/2 nodes are available: "
    "2 No preemption victims found for incoming pod."
)
TOO_LARGE = (
    "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. no new claims to deallocate, preemption: 0/2 nodes are available: "
    "2 Preemption is not helpful for scheduling."
)


UNREACHABLE = 'Back-off pulling image "x": ErrImagePull: failed to pull image: context deadline exceeded'


def seen(
    job: JobRecord,
    *pods: PodRecord,
    after: float = 110.0,
    wait: Wait | None = None,
    progress: str | None = None,
    patience: Patience = PATIENCE,
) -> Child:
    return observe(
        job, pods, wait=wait, progress=progress, patience=patience, ages=ages(job, *pods, after=after), now=now(after)
    )


def ages(job: JobRecord, *pods: PodRecord, after: float) -> dict[str, float]:
    """As they would be if everything had been seen when it happened."""
    began: dict[str, float] = {}
    for key in timed([job], pods):
        pod = next((pod for pod in pods if pod.uid == key), None)
        if pod is not None and pod.deleting is not None:
            began[key] = (pod.deleting - MADE).total_seconds() - pod.grace_seconds
        else:
            ended = [(pod.finished - MADE).total_seconds() for pod in pods if pod.finished is not None]
            began[key] = max(ended, default=0.0)
    return {key: after - first for key, first in began.items()}


def test_what_a_job_is() -> None:
    child = seen(job(nodes=2), running_pod(), running_pod(index=1), progress="tune 43 %")
    assert (child.name, child.stage, child.attempt, child.job_index) == ("tiny-round-1-a2", "round-1", 2, 0)
    assert (child.uid, child.created) == (JOB_UID, MADE)
    assert (child.state, child.started, child.progress) == ("Running", True, "tune 43 %")
    assert not child.deleting
    assert child.live


@pytest.mark.parametrize(
    ("pods", "started"),
    [
        ([], False),
        ([pod(phase="Pending", node=None, conditions=[condition("PodScheduled")])], False),
        ([waiting_pod("ContainerCreating")], False),
        ([waiting_pod("ErrImagePull", "timeout")], False),
        ([running_pod()], True),
        ([running_pod(), waiting_pod("ContainerCreating", index=1)], True),
        ([ended_pod(128, why="StartError", text="no such file")], False),
        ([running_pod(owner="another-job")], False),
    ],
)
def test_a_job_runs_from_when_it_was_admitted(pods: list[PodRecord], started: bool) -> None:
    """What is not held back by anybody runs; `started` only when the trainer's first instruction was."""
    child = seen(job(), *pods)
    assert (child.state, child.started, child.wait) == ("Running", started, None)


ADMITTED_ONCE = condition("Suspended", "False", reason="JobResumed", since=30)


@pytest.mark.parametrize(
    ("conditions", "queue", "wait", "reason", "text", "preempted"),
    [
        ([], "gpus", None, "Queued", "waits in the queue gpus", False),
        ([condition("Suspended", since=0)], "gpus", None, "Queued", "waits in the queue gpus", False),
        (
            [condition("Suspended", since=1)],
            "gpus",
            Wait(reason="Pending", message="4 more needed"),
            "Pending",
            "4",
            False,
        ),
        # Kueue takes it back: spec.suspend first, the condition a tenth of a second later.
        ([ADMITTED_ONCE], "gpus", Wait(reason="Preempted", message="to accommodate"), "Preempted", "to acc", True),
        ([condition("Suspended", since=2)], "gpus", None, "Queued", "waits in the queue gpus", False),
        ([condition("Suspended", since=40)], "gpus", None, "Queued", "waits in the queue gpus", True),
        ([], None, None, "Suspended", "was suspended by somebody else", False),
        ([condition("Suspended", since=40)], None, None, "Suspended", "was suspended by somebody else", True),
    ],
)
def test_a_suspended_job_is_queued(
    conditions: list[Any], queue: str | None, wait: Wait | None, reason: str, text: str, preempted: bool
) -> None:
    child = seen(job(suspend=True, queue=queue, conditions=conditions), wait=wait)
    assert (child.state, child.preempted) == ("Queued", preempted)
    assert child.wait is not None
    assert child.wait.reason == reason
    assert text in child.wait.message
    assert not child.wait.stuck


@pytest.mark.parametrize(
    "fallen",
    [
        ended_pod(143, deleting=60),
        ended_pod(75, text=message("TryAgain", "stopped"), deleting=60),
        ended_pod(0, text=message()),
        running_pod(deleting=60),
    ],
)
def test_pods_of_a_job_that_the_queue_takes_back_tell_nothing(fallen: PodRecord) -> None:
    child = seen(job(suspend=True, queue="gpus", conditions=[ADMITTED_ONCE]), fallen)
    assert (child.state, child.exit_class, child.result, child.preempted) == ("Queued", None, None, True)


DONE = message("Done", counts=None)


@pytest.mark.parametrize(
    ("nodes", "pods", "state"),
    [
        (1, [ended_pod(0, text=DONE)], "Finishing"),
        (1, [ended_pod(0, text=DONE, phase="Running", finished=100)], "Finishing"),
        (1, [ended_pod(0, text="no JSON")], "Running"),
        (1, [ended_pod(0, text=message("Failed", "oh"))], "Running"),
        (1, [ended_pod(1, text=message("Failed", "oh"))], "Running"),
        (2, [ended_pod(0, text=DONE)], "Running"),
        (2, [ended_pod(0, text=DONE), running_pod(index=1)], "Running"),
        (2, [ended_pod(0, text=DONE), ended_pod(1, index=1)], "Running"),
        (2, [ended_pod(0, text=DONE), ended_pod(0, index=1, finished=95)], "Finishing"),
        (2, [ended_pod(0, text="unreadable"), ended_pod(0, text=DONE, index=1)], "Running"),
        # One pod of an index from before a preemption, one from after it.
        (1, [ended_pod(143, deleting=60), ended_pod(0, text=DONE)], "Finishing"),
        (1, [ended_pod(0, text=DONE, owner="the attempt before")], "Running"),
    ],
)
def test_finishing_is_every_index_ended_well_and_the_result_read(nodes: int, pods: list[PodRecord], state: str) -> None:
    child = seen(job(nodes=nodes), *pods)
    assert child.state == state
    assert (child.result is not None) == (state == "Finishing")
    if state == "Finishing":
        assert child.finished == max(pod.finished for pod in pods if pod.finished and pod.exit_code == 0)
        assert child.live, "its pods may still hold their GPUs"


@pytest.mark.parametrize(
    ("ended", "wait_seconds", "verdict"),
    [
        (running_pod(deleting=60), 0, "Running"),
        (running_pod(deleting=60), LOST_SECONDS - 1, "Running"),
        (running_pod(deleting=60), LOST_SECONDS + 1, "lost"),
        (waiting_pod("ContainerCreating", deleting=60), LOST_SECONDS + 1, "lost"),
        (ended_pod(143, deleting=60, phase="Running"), LOST_SECONDS + 1, "Running"),
        (running_pod(), 1e6, "Running"),
    ],
)
def test_a_pod_that_should_be_gone_long_since_is_on_a_lost_node(
    ended: PodRecord, wait_seconds: float, verdict: str
) -> None:
    child = seen(job(nodes=2), running_pod(index=1), ended, after=60 + wait_seconds)
    assert child.lost == (verdict == "lost")
    assert child.state == ("Failed" if verdict == "lost" else "Running")
    assert child.live, "its other pods still run"
    if child.lost:
        assert child.exit_class == "TryAgain"
        assert "node node-1 does not answer" in child.message


@pytest.mark.parametrize(
    ("pods", "held"),
    [
        ([waiting_pod("ContainerCreating")], None),
        ([waiting_pod("PodInitializing")], None),
        ([waiting_pod("ErrImagePull", "connection reset")], None),
        (
            [waiting_pod("ImagePullBackOff", 'Back-off pulling image "x"')],
            'ImagePullBackOff: Back-off pulling image "x"',
        ),
        ([waiting_pod("InvalidImageName", "x:y:z")], "InvalidImageName: x:y:z"),
        ([waiting_pod("ErrImageNeverPull", "not there")], "ErrImageNeverPull: not there"),
        ([waiting_pod("ImageInspectError", "broken")], "ImageInspectError: broken"),
        ([waiting_pod("CreateContainerConfigError", 'secret "s3" not found')], 'secret "s3" not found'),
        ([waiting_pod("CreateContainerError", "failed to generate spec")], "CreateContainerError: failed to generate"),
        ([running_pod(), waiting_pod("ImagePullBackOff", "no", index=1)], "ImagePullBackOff: no"),
        (
            [
                waiting_pod(
                    "CreateContainerConfigError", "failed to sync secret cache: timed out waiting for the condition"
                )
            ],
            None,
        ),
        ([waiting_pod("CreateContainerError", "context deadline exceeded")], None),
        # A registry that does not answer is none of these: the kubelet has tried more than once, and repeats the last error.
        ([waiting_pod("ImagePullBackOff", UNREACHABLE)], "ImagePullBackOff: x: context deadline exceeded"),
        ([waiting_pod("CreateContainerError", 'failed to reserve container name: "a" is reserved for "b"')], None),
        ([waiting_pod("ImagePullBackOff", "no", deleting=200)], None),
        ([waiting_pod("ImagePullBackOff", "no", owner="another-job")], None),
    ],
)
def test_what_can_not_start_is_given_up_at_once(pods: list[PodRecord], held: str | None) -> None:
    child = seen(job(nodes=len(pods)), *pods)
    if held is None:
        assert child.state == "Running"
        return
    assert (child.state, child.exit_class, child.lingers) == ("Failed", "CannotStart", True)
    assert held in child.message
    assert child.live, "it is still there, and is to be deleted"


SCHEDULER = {
    # pkg/scheduler/framework/types.go, FitError; framework/preemption, Preempt: Kubernetes 1.34.
    FULL: False,
    TOO_LARGE: True,
    "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: 0/2 nodes are available: 2 No preemption victims found for "
    "incoming pod.": False,
    "0/2 nodes are available: 1 Insufficient nvidia.com/gpu, 1 node(s) had untolerated taint {team: other}. no new claims to deallocate, "
    "preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for "
    "scheduling.": False,
    # Sorted as text: 10 stands before 2.
    "0/12 nodes are available: 12 Insufficient nvidia.com/gpu. preemption: 0/12 nodes are available: 10 Preemption is not helpful for "
    "scheduling, 2 No preemption victims found for incoming pod.": False,
    "0/12 nodes are available: 12 node(s) didn't match Pod's node affinity/selector. preemption: 0/12 nodes are available: 12 Preemption "
    "is not helpful for scheduling.": True,
    "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 1 Insufficient nvidia.com/gpu. no new claims to deallocate, "
    "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.": True,
    "0/3 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }, 2 Insufficient cpu. preemption: 0/3 "
    "nodes are available: 1 Preemption is not helpful for scheduling, 2 No preemption victims found for incoming pod.": False,
    '0/2 nodes are available: persistentvolumeclaim "data" not found. preemption: 0/2 nodes are available: 2 Preemption is not helpful '
    "for scheduling.": True,
    "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: not eligible due to preemptionPolicy=Never.": False,
    "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: not eligible due to a terminating pod on the nominated node.": (
        False
    ),
    "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.": False,
    "no nodes available to schedule pods": True,
    "": False,
}  # fmt: skip


@pytest.mark.parametrize("words", list(SCHEDULER))
def test_the_scheduler_s_words(words: str) -> None:
    """Full is a wait that ends; a pod that no node could ever take is not."""
    assert no_node_could(words) == SCHEDULER[words]
    child = seen(job(), homeless_pod(words))
    assert (child.state, child.lingers, child.preempted) == ("Queued", False, False)
    assert child.wait == Wait(reason="Unschedulable", message=words, stuck=SCHEDULER[words])


@pytest.mark.parametrize(
    ("words", "waited", "given_up"),
    [(TOO_LARGE, 299, False), (TOO_LARGE, 300, True), (FULL, 1e6, False)],
)
def test_patience_with_pods_that_no_node_could_take(words: str, waited: float, given_up: bool) -> None:
    """Counted from when the scheduler first said so, not from when the Job was made: it may have waited in a queue before."""
    child = seen(job(), homeless_pod(words, since=1000), after=1000 + waited)
    assert child.state == ("Failed" if given_up else "Queued")
    assert child.exit_class == ("CannotStart" if given_up else None)
    assert child.lingers == given_up
    assert not given_up or child.message == f"Unschedulable: {words}"


def test_one_pod_that_finds_no_node_holds_up_the_others() -> None:
    """And as long as one of them has not run, they have not shown that they can."""
    child = seen(job(nodes=2), running_pod(), homeless_pod(FULL, index=1))
    assert (child.state, child.started) == ("Queued", False)
    assert seen(job(nodes=2), running_pod(), running_pod(index=1)).started


NO_PODS = Wait(reason="FailedCreate", message="exceeded quota: gpus", stuck=True)


@pytest.mark.parametrize(
    ("pods", "after", "state"),
    [
        ([], 10, "Queued"),
        ([], 299, "Queued"),
        ([], 300, "Failed"),
        ([waiting_pod("ContainerCreating")], 10, "Queued"),
        ([waiting_pod("ContainerCreating")], 300, "Failed"),
        ([running_pod()], 300, "Running"),
        ([running_pod(owner="another-job")], 10, "Queued"),
    ],
)
def test_a_job_whose_pods_can_not_be_made_or_started(pods: list[PodRecord], after: float, state: str) -> None:
    child = seen(job(), *pods, wait=NO_PODS, after=after)
    assert child.state == state
    if state == "Queued":
        assert child.wait == NO_PODS
    if state == "Failed":
        assert (child.exit_class, child.lingers) == ("CannotStart", True)
        assert child.message == "FailedCreate: exceeded quota: gpus"


@pytest.mark.parametrize(
    ("found", "pods", "wait", "after", "look"),
    [
        (job(), [running_pod()], None, 110, None),
        (job(), [], None, 110, None),
        (job(), [homeless_pod(FULL, since=100)], None, 110, None),
        (job(), [homeless_pod(TOO_LARGE, since=100)], None, 110, 290),
        (job(), [homeless_pod(TOO_LARGE, since=100)], None, 500, None),
        (job(), [homeless_pod(TOO_LARGE, since=100)], None, 400, None),
        (job(), [running_pod(deleting=120)], None, 120 + LOST_SECONDS, None),
        (job(), [], NO_PODS, 110, 190),
        (job(), [waiting_pod("ContainerCreating")], NO_PODS, 110, 190),
        (job(), [running_pod()], NO_PODS, 110, None),
        (job(nodes=2), [running_pod(), running_pod(index=1, deleting=120)], None, 110, 10 + LOST_SECONDS),
        (job(nodes=2), [running_pod(deleting=130), running_pod(index=1, deleting=120)], None, 130, LOST_SECONDS - 10),
        (job(), [running_pod(deleting=60)], None, 110, None),
        (job(), [ended_pod(143, deleting=120)], None, 110, None),
        (job(deleting=50), [running_pod(deleting=120)], None, 110, 10 + LOST_SECONDS),
        (job(deleting=50), [homeless_pod(TOO_LARGE)], None, 400, None),
        (job(deleting=50, suspend=True), [running_pod(deleting=120)], None, 110, 10 + LOST_SECONDS),
        (job(suspend=True, queue="gpus"), [running_pod(deleting=120)], NO_PODS, 110, None),
        (complete_job(), [running_pod(deleting=120)], None, 110, None),
        (job(), [running_pod(deleting=120, owner="another-job")], None, 110, None),
    ],
)
def test_when_time_alone_will_tell(
    found: JobRecord, pods: list[PodRecord], wait: Wait | None, after: float, look: float | None
) -> None:
    """Nobody sends an event when a node does not answer, or patience is over."""
    counted = ages(found, *pods, after=after)
    assert next_look(found, pods, wait=wait, patience=PATIENCE, ages=counted, now=now(after)) == look
    if look is not None:
        before = seen(found, *pods, wait=wait, after=after + look - 1)
        assert seen(found, *pods, wait=wait, after=after + look).exit_class != before.exit_class


def test_patience_can_be_set() -> None:
    short = Patience(start_seconds=5)
    assert seen(job(), wait=NO_PODS, after=6, patience=short).exit_class == "CannotStart"
    assert seen(job(), wait=NO_PODS, after=4, patience=short).state == "Queued"


@pytest.mark.parametrize(
    ("going", "pods", "state"),
    [
        (job(deleting=50), [running_pod(deleting=120)], "Running"),
        (job(deleting=50), [], "Running"),
        (job(deleting=50), [ended_pod(0, text=DONE)], "Running"),
        (job(deleting=50), [waiting_pod("ImagePullBackOff", "no", deleting=120)], "Running"),
        # What waits goes on waiting until it is gone: nothing was admitted.
        (job(deleting=50, suspend=True, queue="gpus"), [], "Queued"),
        (job(deleting=50), [homeless_pod(FULL, deleting=120)], "Queued"),
    ],
)
def test_a_job_on_its_way_out_is_what_it_was(going: JobRecord, pods: list[PodRecord], state: str) -> None:
    child = seen(going, *pods)
    assert (child.state, child.exit_class, child.result) == (state, None, None)
    assert child.deleting
    assert child.live, "until it is gone"


@pytest.mark.parametrize("going", [job(deleting=50), job(deleting=50, suspend=True, queue="gpus")])
def test_a_job_on_its_way_out_is_not_waited_for_when_its_node_is_lost(going: JobRecord) -> None:
    child = seen(going, running_pod(deleting=60), after=60 + LOST_SECONDS + 1)
    assert (child.state, child.exit_class, child.lost, child.deleting) == ("Failed", "TryAgain", True, True)


def test_a_job_that_ended_before_it_was_deleted_has_ended() -> None:
    child = seen(
        job(deleting=120, conditions=[condition("Complete", since=100)]), ended_pod(0, text=message("Done")), after=121
    )
    assert (child.state, child.exit_class, child.deleting) == ("Succeeded", "Done", True)


def test_patience_begins_when_a_job_may_begin() -> None:
    """Not while it was queued, or no node was there for it yet."""
    admitted = job(conditions=[condition("Suspended", "False", since=1000)], started=1000)
    assert seen(admitted, wait=NO_PODS, after=1299).state == "Queued"
    assert seen(admitted, wait=NO_PODS, after=1300).state == "Failed"
    placed = [condition("PodScheduled", since=2000)]
    fresh = waiting_pod("ContainerCreating", conditions=placed)
    assert seen(admitted, fresh, wait=NO_PODS, after=2299).state == "Queued"
    assert seen(admitted, fresh, wait=NO_PODS, after=2300).state == "Failed"

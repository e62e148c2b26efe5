"""How a Job has ended, and who of its pods is to blame: a row for each end that a cluster has for it."""

import re
import threading
from typing import NamedTuple

import pytest

from comd_api.exit_codes import ExitCode
from comd_api.status import ExitClass
from comd_operator.planner.manifests import POLICY_CODES, _failure_rules
from comd_operator.policies.outcome import CLASS_OF_CODE
from comd_operator.runtime.observe import _CLASS_OF_RULE
from comd_operator.runtime.records import JobRecord, PodRecord
from comd_trainer.nodes import End, Nodes
from tests.unit.kube_objects import complete_job, condition, disrupted, ended_pod, failed_job, job, message, now, pod
from tests.unit.test_observe import DONE, seen


def rule(index: int, what: str) -> str:
    """The Job controller's words (pkg/controller/job/pod_failure_policy.go)."""
    return f"{what} matching FailJob rule at index {index}"


DISRUPTED_RULE = rule(0, "Pod team/tiny-round-1-a2-0-abcde has condition DisruptionTarget")


def exit_rule(index: int, code: int) -> str:
    return rule(index, f"Container trainer for pod team/tiny-round-1-a2-0-abcde failed with exit code {code}")


class Ended(NamedTuple):
    """How a Job has ended, and what is said of it."""

    job: JobRecord
    pods: list[PodRecord]
    state: str
    exit_class: str
    says: str
    has_result: bool = False


TIMEOUT = message("Failed", "the other ranks are gone")


def hearsay(end: End) -> str:
    """What the trainer of node 0 says when it only fell with another one: in its own words, for they are read."""
    nodes = Nodes(rank=0, num=2, rendezvous="x:1", stop=threading.Event())
    return message(end.exit_class, str(nodes._sentence(end)))


def elsewhere(exit_class: ExitClass, text: str) -> str:
    return hearsay(End(why="failed", node=1, message=text, exit_class=exit_class))


MISSED = hearsay(End(why="vanished", node=1))


ENDED = {
    "complete": Ended(complete_job(), [ended_pod(0, text=message("Done", "41 images"))], "Succeeded", "Done", "41", True),
    "complete, two nodes": Ended(
        complete_job(nodes=2), [ended_pod(0, index=1), ended_pod(0, text=DONE)], "Succeeded", "Done", "", True
    ),
    "complete, pod gone": Ended(complete_job(), [], "Failed", "TryAgain", "its pod was removed before its result was read"),
    "complete, first pod gone": Ended(
        complete_job(nodes=2), [ended_pod(0, index=1)], "Failed", "TryAgain", "removed before its result"
    ),
    "complete, no result": Ended(complete_job(), [ended_pod(0)], "Failed", "Failed", "ended well but left no result"),
    "complete, another's result": Ended(
        complete_job(), [ended_pod(0, text="that's\n\nall")], "Failed", "Failed", "the log ends: that's | all"
    ),
    "exit 64": Ended(
        failed_job(exit_rule(1, 64)),
        [ended_pod(64, text=message("UserError", "spec.data.images: no such folder"))],
        "Failed", "UserError", "spec.data.images: no such folder", True,
    ),
    "exit 64, no pod left": Ended(failed_job(exit_rule(1, 64)), [], "Failed", "UserError", "exit code 64"),
    "exit 64, no message": Ended(failed_job(exit_rule(1, 64)), [ended_pod(64)], "Failed", "UserError", "code 64"),
    "exit 64, of a kubelet that told no more": Ended(
        failed_job(), [ended_pod(64, text=message("UserError", "no such folder"), phase="Running")],
        "Failed", "UserError", "no such folder", True,
    ),
    "exit 65": Ended(
        failed_job(exit_rule(2, 65)),
        [ended_pod(65, text=message("BadData", "row 7 has no image"))],
        "Failed", "BadData", "row 7", True,
    ),
    "exit 65, no pod left": Ended(failed_job(exit_rule(2, 65)), [], "Failed", "BadData", "exit code 65"),
    "exit 75": Ended(
        failed_job(exit_rule(3, 75)),
        [ended_pod(75, text=message("TryAgain", "storage is away"))],
        "Failed", "TryAgain", "storage is away", True,
    ),
    "exit 75, no pod left": Ended(failed_job(exit_rule(3, 75)), [], "Failed", "TryAgain", "exit code 75"),
    "exit 1": Ended(
        failed_job(), [ended_pod(1, text=message("Failed", "loss is NaN"))], "Failed", "Failed", "loss is NaN", True
    ),
    "exit 1, only a log": Ended(
        failed_job(), [ended_pod(1, text="Traceback\n  line\nKeyError: 'x'\n")], "Failed", "Failed", "| KeyError: 'x'"
    ),
    "deleted by hand, no pod left": Ended(failed_job(), [], "Failed", "TryAgain", "was deleted before its end was read"),
    "deleted by hand, another node's pod left": Ended(
        failed_job(nodes=2), [ended_pod(0, text=DONE, index=1)], "Failed", "TryAgain", "was deleted before its end was read"
    ),
    "ended by somebody's deadline": Ended(
        job(conditions=[condition("Failed", reason="DeadlineExceeded", message="too long", since=100)]),
        [], "Failed", "Failed", "DeadlineExceeded: too long",
    ),
    "exit 137": Ended(failed_job(), [ended_pod(137)], "Failed", "OutOfMemory", "killed by signal 9"),
    "exit 139": Ended(failed_job(), [ended_pod(139)], "Failed", "Failed", "SIGSEGV"),
    "exit 143": Ended(failed_job(exit_rule(3, 143)), [ended_pod(143)], "Failed", "TryAgain", "stopped by signal 15"),
    "exit 143, no pod left": Ended(failed_job(exit_rule(3, 143)), [], "Failed", "TryAgain", "exit code 143"),
    "out of memory": Ended(
        failed_job(), [ended_pod(137, why="OOMKilled")], "Failed", "OutOfMemory", "raise trainer.resourcesPerNode.limits.memory"
    ),
    "out of memory, with a result": Ended(
        failed_job(),
        [ended_pod(1, why="OOMKilled", text=message("Failed", "rank 1 ended with signal 9"))],
        "Failed", "OutOfMemory", "more memory than its limit", True,
    ),
    "no such command": Ended(
        failed_job(),
        [ended_pod(128, why="StartError", text='exec: "comd-trainer": executable file not found in $PATH')],
        "Failed", "CannotStart", "executable file not found",
    ),
    "evicted by the API": Ended(
        failed_job(DISRUPTED_RULE),
        [ended_pod(143, conditions=disrupted("EvictionByEvictionAPI"), deleting=90)],
        "Failed", "TryAgain", "EvictionByEvictionAPI",
    ),
    "evicted, saved in time": Ended(
        failed_job(DISRUPTED_RULE),
        [ended_pod(75, text=message("TryAgain", "stopped"), conditions=disrupted("EvictionByEvictionAPI"), deleting=90)],
        "Failed", "TryAgain", "EvictionByEvictionAPI", True,
    ),
    "evicted, no pod left": Ended(failed_job(DISRUPTED_RULE), [], "Failed", "TryAgain", "has condition DisruptionTarget"),
    "preempted by the scheduler": Ended(
        failed_job(DISRUPTED_RULE),
        [ended_pod(137, conditions=disrupted("PreemptionByScheduler"), deleting=90)],
        "Failed", "TryAgain", "PreemptionByScheduler",
    ),
    "its node was low on memory": Ended(
        failed_job(DISRUPTED_RULE),
        [
            ended_pod(
                137,
                reason="Evicted",
                message="The node was low on resource: memory. Threshold quantity: 100Mi, available: 9Mi. Container trainer was "
                "using 9Gi, request is 0, has larger consumption of memory. ",
                conditions=disrupted("TerminationByKubelet"),
            )
        ],
        "Failed", "TryAgain", "The node was low on resource: memory",
    ),
    "its node was low on memory, in the words of older kubelets": Ended(
        failed_job(),
        [
            ended_pod(
                137,
                reason="Evicted",
                message="The node was low on resource: memory. Container trainer was using 9Gi, which exceeds its request of 0. ",
            )
        ],
        "Failed", "TryAgain", "low on resource",
    ),
    "its disk was full": Ended(
        failed_job(),
        [ended_pod(137, reason="Evicted", message='Usage of EmptyDir volume "scratch" exceeds the limit "1Gi". ')],
        "Failed", "Failed", 'volume "scratch" exceeds the limit',
    ),
    "its container wrote too much": Ended(
        failed_job(),
        [pod(phase="Failed", reason="Evicted", message='Container trainer exceeded its local ephemeral storage limit "1Gi". ')],
        "Failed", "Failed", "local ephemeral storage limit",
    ),
    "its pod wrote too much": Ended(
        failed_job(),
        [
            pod(
                phase="Failed",
                reason="Evicted",
                message="Pod ephemeral local storage usage exceeds the total limit of containers 2Gi. ",
            )
        ],
        "Failed", "Failed", "total limit of containers",
    ),
    "its node was shut down": Ended(
        failed_job(DISRUPTED_RULE),
        [
            ended_pod(
                143,
                reason="Terminated",
                message="Pod was terminated in response to imminent node shutdown.",
                conditions=disrupted("TerminationByKubelet"),
            )
        ],
        "Failed", "TryAgain", "imminent node shutdown",
    ),
    "its node was started again": Ended(failed_job(), [ended_pod(255, why="Unknown")], "Failed", "TryAgain", "Unknown"),
    "its container was not found again": Ended(
        failed_job(),
        [ended_pod(137, why="ContainerStatusUnknown", text="The container could not be located when the pod was terminated")],
        "Failed", "TryAgain", "ContainerStatusUnknown",
    ),
    "its node refused it": Ended(
        failed_job(),
        [pod(phase="Failed", reason="OutOfcpu", message="Node didn't have enough resource: cpu")],
        "Failed", "TryAgain", "OutOfcpu: Node didn't have enough",
    ),
    "failed before its container had run": Ended(
        failed_job(), [pod(phase="Failed")], "Failed", "CannotStart", "before its trainer was started: nobody says why"
    ),
    "its node was lost": Ended(
        failed_job(DISRUPTED_RULE),
        [pod(phase="Failed", conditions=disrupted("DeletionByTaintManager"), deleting=60)],
        "Failed", "TryAgain", "DeletionByTaintManager",
    ),
    "pod deleted by hand": Ended(failed_job(), [ended_pod(143, deleting=90)], "Failed", "TryAgain", "disrupted (deleted)"),
    "pod deleted by hand, gone in the same second": Ended(
        failed_job(), [ended_pod(137, finished=90, deleting=120, grace=30)], "Failed", "TryAgain", "disrupted (deleted)"
    ),
    "pod deleted by hand after it had failed": Ended(
        failed_job(), [ended_pod(1, text="loss is NaN", finished=90, deleting=121, grace=30)], "Failed", "Failed", "loss is NaN"
    ),
    "pod deleted by hand, saved in time": Ended(
        failed_job(exit_rule(3, 75)),
        [ended_pod(75, text=message("TryAgain", "stopped"), deleting=90)],
        "Failed", "TryAgain", "deleted", True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(ENDED))
def test_how_a_job_has_ended(name: str) -> None:
    row = ENDED[name]
    child = seen(row.job, *row.pods)
    assert (child.state, child.exit_class) == (row.state, row.exit_class)
    assert row.says in child.message
    assert (child.result is not None) == row.has_result
    assert child.finished == now(100), "when the Job ended"
    assert not child.live


BLAME = {
    "the user's error, whoever else fell": (
        failed_job(exit_rule(1, 64), nodes=3),
        [
            ended_pod(1, text=TIMEOUT),
            ended_pod(64, index=1, text=message("UserError", "no such column")),
            ended_pod(137, index=2, why="OOMKilled"),
        ],
        "UserError", "no such column",
    ),
    "the one that ran out of memory": (
        failed_job(nodes=2), [ended_pod(1, text=TIMEOUT), ended_pod(137, index=1, why="OOMKilled")],
        "OutOfMemory", "-1-abcde was killed",
    ),
    "the one whose node was drained, not the one that missed it": (
        failed_job(DISRUPTED_RULE, nodes=2),
        [ended_pod(1, text=TIMEOUT), ended_pod(143, index=1, conditions=disrupted("EvictionByEvictionAPI"), deleting=90)],
        "TryAgain", "EvictionByEvictionAPI",
    ),
    "the same, when the drained pod is gone already: the Job's message names the rule": (
        failed_job(DISRUPTED_RULE, nodes=2), [ended_pod(1, text=TIMEOUT)],
        "TryAgain", "has condition DisruptionTarget",
    ),
    "the user's error, when only the pod that missed the other is left": (
        failed_job(exit_rule(1, 64), nodes=2), [ended_pod(1, index=1, text=TIMEOUT)],
        "UserError", "exit code 64",
    ),
    "the one that failed, not those that the Job controller then deleted": (
        failed_job(nodes=2),
        [ended_pod(1, text=message("Failed", "loss is NaN"), finished=90), ended_pod(143, index=1, finished=92, deleting=121, grace=30)],
        "Failed", "loss is NaN",
    ),
    "the same, in the same second": (
        failed_job(nodes=2),
        [
            ended_pod(1, text=message("Failed", "loss is NaN"), finished=91),
            ended_pod(143, index=1, finished=92, deleting=121, grace=30),
        ],
        "Failed", "loss is NaN",
    ),
    "the same, when they saved in time": (
        failed_job(nodes=2),
        [
            ended_pod(1, text=message("Failed", "loss is NaN"), finished=90),
            ended_pod(75, index=1, text=message("TryAgain", "stopped"), finished=93, deleting=121, grace=30),
        ],
        "Failed", "loss is NaN",
    ),
    "the same, with a command that is not there": (
        failed_job(nodes=2),
        [
            ended_pod(128, why="StartError", text="no such command", finished=90),
            ended_pod(143, index=1, finished=92, deleting=121, grace=30),
        ],
        "CannotStart", "no such command",
    ),
    "the one that crashed, not the one that ended alike": (
        failed_job(nodes=2),
        [ended_pod(1, text=elsewhere("Failed", "loss is nan")), ended_pod(1, index=1, text=message("Failed", "loss is nan"))],
        "Failed", "^loss is nan$",
    ),
    "the same, when it was the slower to end": (
        failed_job(nodes=2),
        [
            ended_pod(1, text=elsewhere("OutOfMemory", "out of memory"), finished=90),
            ended_pod(1, index=1, text=message("OutOfMemory", "out of memory"), finished=92),
        ],
        "OutOfMemory", "^out of memory$",
    ),
    "the same, when its pod has gone": (
        failed_job(nodes=2), [ended_pod(1, text=elsewhere("Failed", "loss is nan"))],
        "Failed", r"^node 1 of 2 \(counted from 0\) ended the stage: loss is nan$",
    ),
    "the user's error, in the words of the one that found it": (
        failed_job(exit_rule(1, 64), nodes=2),
        [ended_pod(64, text=elsewhere("UserError", "no key")), ended_pod(64, index=1, text=message("UserError", "no key"))],
        "UserError", "^no key$",
    ),
    "the one that crashed without a word, not the one that missed it": (
        failed_job(nodes=2), [ended_pod(75, text=MISSED), ended_pod(139, index=1)], "Failed", "SIGSEGV",
    ),
    "the same, when the Job tells of the one that missed it": (
        failed_job(exit_rule(3, 75), nodes=2), [ended_pod(75, text=MISSED), ended_pod(139, index=1)], "Failed", "SIGSEGV",
    ),
    "the one whose node has gone, when only the one that missed it is left": (
        failed_job(exit_rule(3, 75), nodes=2), [ended_pod(75, text=MISSED)], "TryAgain", "does not answer any more",
    ),
    "the one that was deleted by hand before the other missed it": (
        failed_job(nodes=2),
        [ended_pod(1, text=TIMEOUT, finished=95), ended_pod(143, index=1, finished=92, deleting=121, grace=30)],
        "TryAgain", r"disrupted \(deleted\)",
    ),
    "nobody but the deleted": (
        failed_job(nodes=2),
        [ended_pod(143, finished=92, deleting=121), ended_pod(143, index=1, finished=93, deleting=121)],
        "TryAgain", r"disrupted \(deleted\)",
    ),
    "the one that failed, not the one that ended well": (
        failed_job(nodes=2), [ended_pod(0, text=DONE), ended_pod(1, index=1, text=message("Failed", "rank 1"))],
        "Failed", "rank 1",
    ),
    "not the attempt before": (
        failed_job(), [ended_pod(64, text=message("UserError", "old"), owner="the attempt before"), ended_pod(1, text="x")],
        "Failed", "the log ends: x",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BLAME))
def test_the_account_of_several_nodes_is_that_of_the_one_to_blame(name: str) -> None:
    failed, pods, exit_class, says = BLAME[name]
    for order in (pods, pods[::-1]):
        child = seen(failed, *order)
        assert (child.state, child.exit_class) == ("Failed", exit_class)
        assert re.search(says, child.message), child.message


def test_the_rules_of_a_job_and_the_classes_read_from_its_message_are_in_one_order() -> None:
    rules = _failure_rules()
    assert [*_CLASS_OF_RULE] == [str(index) for index in range(len(rules))]
    assert _CLASS_OF_RULE["0"] == "TryAgain"
    assert [pattern["type"] for pattern in rules[0]["onPodConditions"]] == ["DisruptionTarget"]
    for index, (code, written) in enumerate(zip(POLICY_CODES, rules[1:], strict=True), 1):
        assert written["onExitCodes"]["values"][0] == int(code)
        assert _CLASS_OF_RULE[str(index)] == CLASS_OF_CODE[code]
    assert set(POLICY_CODES) == {code for code in ExitCode if code in CLASS_OF_CODE}, (
        "every code of the contract has one"
    )

"""Runs in a queue of the real Kueue. It decides who runs when; the operator tells why one waits, and never fights it."""

import json
import time
from typing import Any

import pytest

from tests.kueue.install import queue
from tests.kueue.stand_in import pods, run, tell
from tests.nodes.operator_process import ACCOUNT, NAMESPACE
from tests.nodes.site import Run, Site, condition
from tests.nodes.undisturbed import undisturbed
from tests.nodes.world import STEPS, one_round

pytestmark = pytest.mark.timeout(600)
NO_QUOTA = "insufficient unused quota for nvidia.com/gpu in flavor gpu, 1 more needed"
PREEMPTED = "Preempted to accommodate a workload"
WITHIN_SECONDS = 10.0
"""In which a wait that can't end is told, once its Job is there."""


def until_running(run: Run, stage: str) -> None:
    """The pod of a stage runs."""
    run.until(lambda status: _stage(status, stage).get("phase") == "Running", seconds=180)
    deadline = time.monotonic() + 120
    while not pods(run, stage) or any(pod["status"]["phase"] != "Running" for pod in _of(run, stage)):
        assert time.monotonic() < deadline, run.pods(stage=stage)
        time.sleep(0.2)


def until_gone(run: Run, stage: str) -> None:
    """No pod of a stage is left. One that still ends when its Job is resumed fails that Job: another attempt, which costs nothing."""
    deadline = time.monotonic() + 60
    while pods(run, stage):
        assert time.monotonic() < deadline, run.pods(stage=stage)
        time.sleep(0.2)


def until_queued(run: Run, *, words: str) -> dict[str, Any]:
    def holds(status: dict[str, Any]) -> bool:
        is_so, _, message = condition(status, "Queued")
        return status.get("phase") == "Queued" and is_so == "True" and words in message

    return run.until(holds, seconds=180)


def _of(run: Run, stage: str) -> list[dict[str, Any]]:
    names = pods(run, stage)
    return [pod for pod in run.pods(stage=stage) if pod["metadata"]["name"] in names]


def _stage(status: dict[str, Any], name: str) -> dict[str, Any]:
    return next((stage for stage in status.get("stages", []) if stage["name"] == name), {})


def counts(run: Run) -> tuple[int, int, int]:
    """Of round 1: attempts, failures, preemptions."""
    stage = run.stage("round-1")
    return stage["attempt"], stage.get("failures", 0), stage.get("preemptions", 0)


def learnt(run: Run) -> dict[str, str]:
    """All that round 1 has made. (Preflight's report speaks of the GPU that was asked for.)"""
    return {name: digest for name, digest in run.files().items() if name.startswith("round-1/")}


def test_the_second_run_waits_in_kueue_s_words_until_the_first_is_done(site: Site) -> None:
    namespace = site.namespace("second")
    queue(site.cluster, namespace, gpus=1)
    first = run(site, namespace, "first", holds="round-1")
    until_running(first, "round-1")
    second = run(site, namespace, "second")
    status = until_queued(second, words=NO_QUOTA)
    assert condition(status, "Queued")[1] == "Pending"
    assert condition(status, "Stalled")[0] == "False", "a wait that ends by itself"
    assert pods(second, "round-1") == []
    tell(first, "round-1")
    for one in (first, second):
        one.until_phase("Succeeded")
        assert counts(one) == (1, 0, 0)
    assert second.stage("round-1")["queuedSeconds"] > 0


def test_a_higher_priority_takes_the_gpu_of_a_stage_that_goes_on_later(site: Site) -> None:
    """From its checkpoint, at no cost of its retry budget, which is zero; what it makes is what it would have made."""
    namespace = site.namespace("preempted")
    queue(site.cluster, namespace, gpus=1)
    high = run(site, namespace, "high", priority="high", holds="preflight round-1")
    until_running(high, "preflight")
    trainer = {**one_round()["spec"]["trainer"], "resourcesPerNode": {"limits": {"nvidia.com/gpu": "1"}}}
    low = site.apply(one_round(queue={"name": "lq", "priorityClass": "low"}, trainer=trainer), namespace)
    _, step = low.until_step(25)
    tell(high, "preflight")
    status = until_queued(low, words=PREEMPTED)
    assert _stage(status, "round-1")["preemptions"] == 1
    until_running(high, "round-1")
    tell(high, "round-1")
    high.until_phase("Succeeded")
    low.until_phase("Succeeded", seconds=300)
    assert counts(low) == (1, 0, 1)
    assert step <= low.resumed_at(1) < STEPS
    assert learnt(low) == learnt(undisturbed(site))
    assert low.leftovers() == []


def test_waits_that_can_not_end_are_stalled_with_the_reason(site: Site) -> None:
    namespace = site.namespace("stuck")
    queue(site.cluster, namespace, gpus=1)
    nowhere = run(site, namespace, "nowhere", queue="nowhere")
    unknown = run(site, namespace, "unknown", priority="unheard-of")
    large = run(site, namespace, "large", gpus=2)
    off = run(site, namespace, "off", holds="round-1")
    must_be_stalled(nowhere, "Inadmissible", "LocalQueue nowhere doesn't exist", job="nowhere-preflight-a1")
    must_be_stalled(
        unknown, "NoWorkload", "check that Kueue runs and that the priority class exists", job="unknown-preflight-a1"
    )
    must_be_stalled(large, "Pending", "request > maximum capacity (2 > 1)", job="large-round-1-a1")
    until_running(off, "round-1")
    set_active(off, "off-round-1-a1", active=False)
    must_be_stalled(off, "Deactivated", "The workload is deactivated", job=None)
    until_gone(off, "round-1")
    set_active(off, "off-round-1-a1", active=True)
    until_running(off, "round-1")
    tell(off, "round-1")
    off.until_phase("Succeeded")
    assert counts(off) == (1, 0, 1)
    assert pods(nowhere, "preflight") + pods(unknown, "preflight") + pods(large, "round-1") == []


def must_be_stalled(run: Run, reason: str, words: str, *, job: str | None) -> None:
    status = run.until(lambda status: condition(status, "Stalled")[0] == "True")
    assert condition(status, "Stalled")[1] == reason
    assert words in condition(status, "Stalled")[2]
    if job is not None:
        made = json.loads(run.kubectl("get", "job", job, "-o", "json"))["metadata"]["creationTimestamp"]
        told = next(entry for entry in status["conditions"] if entry["type"] == "Stalled")["lastTransitionTime"]
        assert _seconds(told) - _seconds(made) <= WITHIN_SECONDS


def _seconds(moment: str) -> float:
    return time.mktime(time.strptime(moment[:19], "%Y-%m-%dT%H:%M:%S"))


def set_active(run: Run, job: str, *, active: bool) -> None:
    """Of the Job's Workload."""
    uid = json.loads(run.kubectl("get", "job", job, "-o", "json"))["metadata"]["uid"]
    name = run.kubectl("get", "workloads", "-l", f"kueue.x-k8s.io/job-uid={uid}", "-o", "name").strip()
    run.kubectl("patch", name, "--type=merge", "-p", json.dumps({"spec": {"active": active}}))


def test_runs_are_suspended_and_resumed_without_a_fight(site: Site) -> None:
    """One that waits gives its place back, one that runs its GPU. The operator has no right to write to a Job at all."""
    for verb in ("patch", "update"):
        asked = ("auth", "can-i", verb, "jobs.batch", f"--as=system:serviceaccount:{NAMESPACE}:{ACCOUNT}", "-A")
        assert site.cluster.kubectl(*asked, check=False).strip().startswith("no")
    namespace = site.namespace("paused")
    queue(site.cluster, namespace, gpus=1)
    first = run(site, namespace, "first", holds="round-1")
    until_running(first, "round-1")
    second = run(site, namespace, "second", holds="round-1")
    until_queued(second, words=NO_QUOTA)

    second.change(suspend=True)
    second.until_phase("Suspended")
    second.kubectl("wait", "job/second-round-1-a1", "--for=delete", "--timeout=60s")
    second.change(suspend=False)
    until_queued(second, words=NO_QUOTA)

    first.change(suspend=True)
    first.until_phase("Suspended")
    until_running(second, "round-1")
    first.change(suspend=False)
    until_queued(first, words=NO_QUOTA)
    assert len(pods(second, "round-1")) == 1, "it was started once"

    for one in (second, first):
        until_running(one, "round-1")
        tell(one, "round-1")
        one.until_phase("Succeeded")
        assert counts(one) == (2, 0, 0)


def test_without_the_right_to_read_workloads_the_job_s_events_tell(without_workloads: Site) -> None:
    site = without_workloads
    namespace = site.namespace("events")
    queue(site.cluster, namespace, gpus=1)
    high = run(site, namespace, "high", priority="high", holds="preflight")
    until_running(high, "preflight")
    low = run(site, namespace, "low", priority="low", holds="round-1")
    until_running(low, "round-1")
    tell(high, "preflight")
    until_queued(low, words=PREEMPTED)
    high.until_phase("Succeeded")
    until_running(low, "round-1")
    tell(low, "round-1")
    low.until_phase("Succeeded")
    assert counts(low) == (1, 0, 1)

"""Whatever takes the pod of a stage away in the middle of training, the run goes on where it was and spends no retry."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.processes import wait
from tests.nodes.site import Run, Site
from tests.nodes.world import STEPS, one_round


def evict(run: Run, pod: dict[str, Any]) -> None:
    """As `kubectl drain` does."""
    name = pod["metadata"]["name"]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": run.namespace}}
    run.site.api.post(f"/api/v1/namespaces/{run.namespace}/pods/{name}/eviction", body)


def delete_pod(run: Run, pod: dict[str, Any]) -> None:
    run.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")


def delete_job(run: Run, _pod: dict[str, Any]) -> None:
    run.kubectl("delete", "job", "tiny-round-1-a1", "--wait=false")


def suspend_and_resume(run: Run, _pod: dict[str, Any]) -> None:
    run.change(suspend=True)
    run.until_phase("Suspended")
    wait("its Job gone", lambda: "tiny-round-1-a1" not in run.jobs(), 60)
    time.sleep(1.0)
    assert run.status()["phase"] == "Suspended"
    run.change(suspend=False)


DISTURBANCES: dict[str, tuple[Callable[[Run, dict[str, Any]], None], str]] = {
    "evicted": (evict, "round-1: TryAgain: "),
    "pod-deleted": (delete_pod, "round-1: TryAgain: "),
    "job-deleted": (delete_job, "Job tiny-round-1-a1 was deleted while it was under way"),
    "suspended": (suspend_and_resume, "spec.suspend is true"),
}
"""And the words that an event has for it."""


@pytest.mark.parametrize("name", DISTURBANCES)
def test_a_run_goes_on_from_its_checkpoint(name: str, site: Site, undisturbed: Run) -> None:
    disturb, words = DISTURBANCES[name]
    run = site.apply(one_round(), site.namespace(name))
    pod, step = run.until_step(25)
    disturb(run, pod)
    status = run.until_phase("Succeeded")
    stage = status["stages"][-1]
    assert (stage["attempt"], stage.get("failures", 0)) == (2, 0)
    assert step <= run.resumed_at(2) < STEPS
    assert run.files() == undisturbed.files()
    assert run.leftovers() == []
    told = [event["message"] for event in run.events()]
    assert any(words in message for message in told), json.dumps(told, indent=1)

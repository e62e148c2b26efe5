"""Whatever takes the pod of a stage away in the middle of training, the run goes on where it was and spends no retry."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.nodes.scenes import Scene, compare
from tests.nodes.site import Run, Site
from tests.nodes.undisturbed import undisturbed
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
    run.kubectl("wait", "job/tiny-round-1-a1", "--for=delete", "--timeout=600s")
    run.until_idle()
    assert run.jobs() == ["tiny-preflight-a1"]
    assert run.status()["phase"] == "Suspended"
    run.change(suspend=False)


def play(site: Site, *, name: str, disturb: Callable[[Run, dict[str, Any]], None], words: str) -> None:
    """words: what an event says of it."""
    run = site.apply(one_round(), site.namespace(name))
    pod, step = run.until_step(25)
    disturb(run, pod)
    status = run.until_phase("Succeeded")
    stage = status["stages"][-1]
    assert (stage["attempt"], stage.get("failures", 0)) == (2, 0)
    assert step <= run.resumed_at(2) < STEPS, "what was done is saved within the grace period"
    compare(run, to=undisturbed(site))
    told = [event["message"] for event in run.events()]
    assert any(words in message for message in told), json.dumps(told, indent=1)


SCENES: dict[str, Scene] = {
    name: partial(play, name=name, disturb=disturb, words=words)
    for name, disturb, words in (
        ("evicted", evict, "round-1: TryAgain: "),
        ("pod-deleted", delete_pod, "round-1: TryAgain: "),
        ("job-deleted", delete_job, "Job tiny-round-1-a1 was deleted while it was under way"),
        ("suspended", suspend_and_resume, "spec.suspend is true"),
    )
}

"""What a schema can't refuse and a cluster can't run: the kubelet's or the scheduler's own words are in the conditions within
seconds, and nothing is held that others could use."""

import time
from functools import partial
from typing import Any

from tests.cluster.cluster import GPUS
from tests.nodes.scenes import Scene
from tests.nodes.site import Run, Site, condition
from tests.nodes.world import one_round

WITHIN_SECONDS = 20.0
"""An image that can't be pulled takes longest: the kubelet tries twice, ten seconds apart, before it says that it gave up."""
PAUSE_SECONDS = 20
"""Between two attempts: so long nothing of the run may be there."""
QUOTA = {"count/jobs.batch": "10", "pods": "10", "requests.nvidia.com/gpu": "32"}
RETRY = {"limit": 0, "backoffSeconds": PAUSE_SECONDS}
TOO_MANY = 2 * GPUS
"""More than a node has, and as many as two have."""


def until_stalled(run: Run, reason: str, words: str, *, since: float) -> None:
    """since: when what can't be had was asked for."""
    run.until(lambda status: words in condition(status, "Stalled")[2])
    took = time.monotonic() - since
    assert took < WITHIN_SECONDS, f"{run.namespace}: said after {took:.1f} s"
    status = run.status()
    assert condition(status, "Stalled")[:2] == ("True", reason)
    assert status["phase"] == "Stalled"


def must_hold_nothing(run: Run, *, done: list[str]) -> None:
    """done: Jobs that have ended before; they are kept for their logs."""
    run.until(lambda status: "retryTime" in status["stages"][-1])
    run.until_idle()
    deadline = time.monotonic() + PAUSE_SECONDS / 2
    while run.jobs() != done or run.quota_used() != {**dict.fromkeys(QUOTA, "0"), "count/jobs.batch": str(len(done))}:
        assert time.monotonic() < deadline, f"{run.namespace} holds {run.jobs()}, {run.quota_used()}"
        time.sleep(0.2)
    status = run.status()
    assert status["phase"] == "Stalled"
    assert status["stages"][-1].get("failures", 0) == 0


def in_preflight(site: Site, *, name: str, words: str, spec: dict[str, Any], secret: bool = True) -> None:
    run = site.apply(one_round(retry=RETRY, **spec), site.namespace(name, secret=secret, quota=QUOTA))
    until_stalled(run, "CannotStart", words, since=time.monotonic())
    must_hold_nothing(run, done=[])


def after_preflight(site: Site, *, name: str, words: str, spec: dict[str, Any]) -> None:
    """preflight asks for no GPU, nor for a node that has one, and passes; the first stage that asks is the one that waits."""
    run = site.apply(one_round(retry=RETRY, **spec), site.namespace(name, quota=QUOTA))
    run.until(lambda status: len(status.get("stages", [])) == 2)
    until_stalled(run, "Unschedulable", words, since=time.monotonic())
    assert condition(run.status(), "Queued")[0] == "True"
    run.until(lambda status: condition(status, "Stalled")[1] == "CannotStart")
    must_hold_nothing(run, done=["tiny-preflight-a1"])


def mended_secret(site: Site) -> None:
    """The run goes on by itself when what was missing is there."""
    namespace = site.namespace("mended", secret=False)
    run = site.apply(one_round(retry={"limit": 0, "backoffSeconds": 2}), namespace)
    until_stalled(run, "CannotStart", 'secret "s3" not found', since=time.monotonic())
    site.create_secret(namespace)
    run.until(lambda status: status["stages"][0]["phase"] == "Succeeded")
    status = run.status()
    assert condition(status, "Stalled")[0] == "False"
    assert status["stages"][0]["attempt"] >= 2


SCENES: dict[str, Scene] = {
    "image": partial(
        in_preflight,
        name="image",
        spec={"trainer__image": "localhost/no-such-image:1"},
        words="ImagePullBackOff: ",
    ),
    "image-never-pulled": partial(
        in_preflight,
        name="image-never-pulled",
        spec={"trainer__image": "localhost/no-such-image:1", "trainer__imagePullPolicy": "Never"},
        words="ErrImageNeverPull: ",
    ),
    "secret": partial(in_preflight, name="secret", spec={}, secret=False, words='secret "s3" not found'),
    "key": partial(
        in_preflight,
        name="key",
        spec={"trainer__env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s3", "key": "no-such-key"}}}]},
        words="couldn't find key no-such-key in Secret",
    ),
    "node-selector": partial(
        after_preflight,
        name="node-selector",
        spec={"trainer__podTemplate__spec__nodeSelector": {"kubernetes.io/hostname": "node-9"}},
        words="didn't match Pod's node affinity/selector",
    ),
    "too-many-gpus": partial(
        after_preflight,
        name="too-many-gpus",
        spec={
            "training__batchSize": 2 * TOO_MANY,
            "training__firstRound": {"batchSize": 2 * TOO_MANY},
            "trainer": {"numProcPerNode": TOO_MANY, "resourcesPerNode": {"limits": {"nvidia.com/gpu": str(TOO_MANY)}}},
        },
        words="Insufficient nvidia.com/gpu",
    ),
    "mended-secret": mended_secret,
}

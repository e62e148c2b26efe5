"""A node is taken away in the middle of training, in order or by a power cut, and the stage is finished on the other one."""

from typing import Any

import pytest

from tests.nodes.scenes import compare
from tests.nodes.site import Run, Site
from tests.nodes.undisturbed import undisturbed, undisturbed_pair
from tests.nodes.world import CHECKPOINT_STEPS, one_round, two_ranks

pytestmark = pytest.mark.timeout(1800)
SHORT_GRACE = 15
BY_NODE = "kubernetes.io/hostname"


def on_two_nodes(**changes: Any) -> dict[str, Any]:
    """A rank and a GPU on each node, as long as there are two."""
    apart = {"labelSelector": {"matchLabels": {"comd.dev/stage": "round-1"}}, "topologyKey": BY_NODE}
    wish = {"weight": 100, "podAffinityTerm": apart}
    return two_ranks(
        trainer__numNodes=2,
        trainer__numProcPerNode=1,
        trainer__resourcesPerNode={"limits": {"nvidia.com/gpu": "1"}},
        trainer__podTemplate__spec__affinity={
            "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [wish]}
        },
        **changes,
    )


def rather_on(node: str, **changes: Any) -> dict[str, Any]:
    """One pod, there if it can be."""
    there = {"matchExpressions": [{"key": BY_NODE, "operator": "In", "values": [node]}]}
    wish = {"weight": 100, "preference": there}
    affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [wish]}}
    return one_round(trainer__podTemplate__spec__affinity=affinity, **changes)


def nodes_of(run: Run, attempt: int) -> list[str]:
    """Where the pods of an attempt at round 1 are, by their index."""
    pods = run.pods(stage="round-1", attempt=str(attempt))
    by_index = {pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]: pod for pod in pods}
    return [by_index[index]["spec"]["nodeName"] for index in sorted(by_index)]


def must_have_cost_nothing(run: Run, *, since: int, node: str, pods: int) -> None:
    """since: a step after which nothing was lost. node: where it was finished."""
    stage = run.until_phase("Succeeded")["stages"][-1]
    assert (stage["attempt"], stage.get("failures", 0)) == (2, 0)
    assert nodes_of(run, 2) == [node] * pods
    assert run.resumed_at(2) >= since > 0


def test_a_drained_node(site: Site) -> None:
    """Two nodes train together over the pod network; the one that is drained has rank 0."""
    run = site.apply(on_two_nodes(), site.namespace("drained"))
    _, step = run.until_step(25)
    first, second = nodes_of(run, 1)
    assert first != second
    number = site.cluster.nodes.index(first)
    try:
        site.cluster.drain(number)
        must_have_cost_nothing(run, since=step, node=second, pods=2)
    finally:
        site.cluster.uncordon(number)
    compare(run, to=undisturbed_pair(site))


def test_a_node_without_power(site: Site) -> None:
    """It is never heard of again while the stages run that it took part in: one all by itself, one together with the other node."""
    grace = {"trainer__podTemplate__spec__terminationGracePeriodSeconds": SHORT_GRACE}
    alone = site.apply(rather_on("node-1", **grace), site.namespace("power-alone"))
    both = site.apply(on_two_nodes(**grace), site.namespace("power-both"))
    steps = {run: run.until_step(CHECKPOINT_STEPS + 1)[1] for run in (alone, both)}
    assert nodes_of(alone, 1) == ["node-1"]
    assert sorted(nodes_of(both, 1)) == ["node-0", "node-1"]
    site.cluster.stop_node(1)
    try:
        for run, pods in ((alone, 1), (both, 2)):
            saved = (steps[run] - 1) // CHECKPOINT_STEPS * CHECKPOINT_STEPS
            must_have_cost_nothing(run, since=saved, node="node-0", pods=pods)
    finally:
        site.bring_back(1)
    told = " ".join(event["message"] for event in alone.events())
    assert "node node-1 does not answer any more" in told
    compare(alone, to=undisturbed(site))
    compare(both, to=undisturbed_pair(site))

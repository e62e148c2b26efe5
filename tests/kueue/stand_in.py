"""A stand-in for the trainer, first on the pod's PATH: it is done at once, or when it is told, and learns nothing."""

import json
from typing import Any

from comd_operator.planner import labels
from tests.api.simulator import result
from tests.nodes.site import Run, Site
from tests.nodes.world import STORAGE, one_round

NAME, MOUNT = "stand-in", "/stand-in"
SCRIPT = r"""#!/bin/bash
# Says when it begins and ends, in seconds, and leaves its stage's result.
trap 'exit 143' TERM
stage=$(sed -E 's/.*"stage":"([^"]+)".*/\1/' <<< "$COMD_STAGE_CONFIG")
echo "begin $stage $EPOCHREALTIME"
if [[ " $STAND_IN_HOLDS " == *" $stage "* ]]; then
    until [[ -e /tmp/go ]]; do sleep 0.2 & wait $!; done
fi
cat "/stand-in/$stage.json" > /dev/termination-log
echo "end $stage $EPOCHREALTIME"
"""
PATH = f"{MOUNT}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def config_map(stages: list[str]) -> dict[str, Any]:
    """The script, and a result for each stage, in the storage of tests/nodes."""
    results = {f"{stage}.json": result(stage, storage=STORAGE).to_termination_message() for stage in stages}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": NAME},
        "data": {"comd-trainer": SCRIPT, **results},
    }


def trainer(*, holds: str = "", **more: Any) -> dict[str, Any]:
    """`spec.trainer` with it. holds: stages in which it waits to be told, separated by blanks."""
    volume = {"name": NAME, "configMap": {"name": NAME, "defaultMode": 0o755}}
    return {
        "env": [{"name": "PATH", "value": PATH}, {"name": "STAND_IN_HOLDS", "value": holds}],
        "volumeMounts": [{"name": NAME, "mountPath": MOUNT}],
        "podTemplate": {"spec": {"volumes": [volume], "terminationGracePeriodSeconds": 15}},
        **more,
    }


def run(
    site: Site,
    namespace: str,
    name: str,
    *,
    queue: str = "lq",
    priority: str | None = None,
    gpus: int = 1,
    holds: str = "",
) -> Run:
    """Two stages, preflight and round-1, of which the second wants GPUs."""
    site.cluster.apply(json.dumps(config_map(["preflight", "round-1"])), namespace=namespace)
    asks = {"limits": {"nvidia.com/gpu": str(gpus)}}
    document = one_round(
        queue={"name": queue, **({"priorityClass": priority} if priority else {})},
        trainer=trainer(holds=holds, numProcPerNode=gpus, resourcesPerNode=asks),
    )
    document["metadata"]["name"] = name
    return site.apply(document, namespace)


def pods(run: Run, stage: str) -> list[str]:
    """Of this run, in a namespace of several."""
    found = run.pods(stage=stage)
    return [pod["metadata"]["name"] for pod in found if pod["metadata"]["labels"][labels.RUN] == run.name]


def tell(run: Run, stage: str) -> None:
    """The pod of a stage, which holds, that it may end."""
    for pod in pods(run, stage):
        run.kubectl("exec", pod, "--", "touch", "/tmp/go")

"""What the tests here run: one round on tiny models, seconds long, whose training can be met in its middle."""

import copy
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster
from tests.cluster.upload import upload
from tests.e2e.world import make_inputs, manifest
from tests.tiny import save_tiny_llava

BUCKET = "nodes"
STORAGE = f"s3://{BUCKET}/tiny"
STEPS = 160
CHECKPOINT_STEPS = 10
GRACE_SECONDS = 30


def upload_inputs(cluster: Cluster, folder: Path) -> None:
    """What a bucket must hold, put there by its API."""
    make_inputs(folder)
    (folder / "empty.jsonl").touch()
    save_tiny_llava(folder / "models" / "parts", seed=3).rename(folder / "models" / "student")
    upload(cluster.s3, folder, bucket=BUCKET, prefix="tiny/inputs")


def one_round(**changes: Any) -> dict[str, Any]:
    """Two stages, preflight and round-1: a finished student, no evaluation. No failure that counts is forgiven (`retry.limit` 0), and
    nothing is taken over from other tests, for what is run is the point. `a__b=…` sets `spec.a.b`."""
    document = manifest(
        student={"checkpoint": {"source": "inputs/models/student"}},
        storage={"uri": STORAGE},
        retry={"limit": 0, "backoffSeconds": 0},
        reuse="Never",
        trainer={"podTemplate": {"spec": {"terminationGracePeriodSeconds": GRACE_SECONDS}}},
    )
    spec = document["spec"]
    del spec["pretraining"], spec["data"]["evaluation"]
    spec["rounds"]["count"] = 1
    spec["training"] |= {"maxSteps": STEPS, "checkpointSteps": CHECKPOINT_STEPS}
    for path, value in changes.items():
        _set(spec, path.split("__"), copy.deepcopy(value))
    return document


def two_ranks(**changes: Any) -> dict[str, Any]:
    """The same on two GPUs of one node, with more steps: to drain a node takes a while."""
    return one_round(
        **{
            "training__maxSteps": 2 * STEPS,
            "trainer__numProcPerNode": 2,
            "trainer__resourcesPerNode": {"limits": {"nvidia.com/gpu": "2"}},
            **changes,
        }
    )


def _set(node: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        node = node.setdefault(name, {})
    node[path[-1]] = value

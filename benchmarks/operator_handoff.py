"""From the end of one stage's container to the beginning of the next one's, on real nodes: by the operator, and by a bare watcher.

The times are written inside the containers: a pod's status has whole seconds. Most stages are a stand-in's that lives for
milliseconds; some are the real trainer's, to see what it adds by starting and ending.
"""

import asyncio
import json
import re
import sys
import tempfile
import urllib.request
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.operator_client import Client, Write

from comd_api.run import DistillationRun
from comd_operator.planner import ClusterDefaults, fill, job_manifest, stage_config
from comd_operator.planner.jobs import plan_run
from comd_operator.runtime.api import namespaced
from tests.cluster.cluster import Cluster
from tests.cluster.layout import TRAINER_IMAGE
from tests.e2e.world import manifest
from tests.kueue import stand_in
from tests.nodes.image import IMAGE
from tests.nodes.operator_process import PORT
from tests.nodes.site import Run, Site
from tests.nodes.world import STORAGE, upload_inputs

ROUNDS = 5
TIMED = r"""#!/bin/bash
stage=$(sed -E 's/.*"stage":"([^"]+)".*/\1/' <<< "$COMD_STAGE_CONFIG")
echo "begin $stage $EPOCHREALTIME"
comd-trainer-itself "$@"
code=$?
echo "end $stage $EPOCHREALTIME"
exit $code
"""
MARK = re.compile(r"^(begin|end) (\S+) (\d+\.\d+)$", re.M)
WRITE = re.compile(
    r'^comd_operator_api_requests_total\{.*resource="(.*)",verb="(create|update|patch|delete)"\} (\S+)$', re.M
)


@dataclass
class HandOffs:
    operator: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    trainer: list[float] = field(default_factory=list)
    """By the operator too, between two stages of the real trainer: from its process's end to the next one's beginning."""
    start: list[float] = field(default_factory=list)
    """Of the real trainer: from its container's beginning to that of its first phase."""
    end: list[float] = field(default_factory=list)
    """… and from the end of its last phase to that of its container."""
    writes: list[float] = field(default_factory=list)
    """Of our own for each stage of a chain, without Events."""
    events: list[float] = field(default_factory=list)


def measure(cluster: Cluster, *, chains: int, trainer_runs: int) -> HandOffs:
    """chains: of the operator and of the floor, in turn; each hands over 6 times. trainer_runs: each hands over 3 times."""
    found = HandOffs()
    cluster.host_image(TRAINER_IMAGE)
    site = Site(cluster)
    with tempfile.TemporaryDirectory() as folder:
        upload_inputs(cluster, Path(folder) / "inputs")
    site.set_up()
    try:
        for _ in range(chains):
            _by_operator(site, found)
            found.floor += _gaps(*asyncio.run(_by_floor(site)))
        for _ in range(trainer_runs):
            _by_trainer(site, found)
    finally:
        site.operator.stop()
    return found


def _document(*, rounds: int, **trainer: Any) -> dict[str, Any]:
    document = manifest(storage={"uri": STORAGE}, trainer=trainer)
    document["spec"]["rounds"]["count"] = rounds
    return document


def _stages(rounds: int) -> list[str]:
    return ["preflight", "pretrain", *(f"round-{number}" for number in range(1, rounds + 1))]


def _by_operator(site: Site, found: HandOffs) -> None:
    namespace, stages = site.namespace("chain"), _stages(ROUNDS)
    site.cluster.apply(json.dumps(stand_in.config_map(stages)), namespace=namespace)
    before = _writes()
    run = site.apply(_document(rounds=ROUNDS, **stand_in.trainer()), namespace)
    run.until_phase("Succeeded", seconds=300)
    after = _writes()
    found.writes.append((after["writes"] - before["writes"]) / len(stages))
    found.events.append((after["events"] - before["events"]) / len(stages))
    found.operator += _gaps(*_marks(_logs(site, namespace)))


async def _by_floor(site: Site) -> tuple[dict[str, float], dict[str, float]]:
    """The same Jobs, made by whoever does nothing but watch for a container's good end."""
    namespace, stages = site.namespace("floor"), _stages(ROUNDS)
    site.cluster.apply(json.dumps(stand_in.config_map(stages)), namespace=namespace)
    bodies = _jobs(site, namespace)
    path, pods = namespaced("batch/v1", "jobs", namespace), namespaced("v1", "pods", namespace)
    async with Client.connected(site.cluster.kubeconfig) as client:
        lines = client.watch(pods, await client.version(pods))
        await client.write(Write("POST", path, bodies.pop(0)))
        done: set[str] = set()
        async for line in lines:
            pod = json.loads(line)["object"]
            state = pod["status"].get("containerStatuses", [{}])[0].get("state", {})
            if state.get("terminated", {}).get("exitCode") == 0 and pod["metadata"]["uid"] not in done:
                done.add(pod["metadata"]["uid"])
                if not bodies:
                    break
                await client.write(Write("POST", path, bodies.pop(0)))
    return _marks(_logs(site, namespace))


def _jobs(site: Site, namespace: str) -> list[str]:
    """As the operator makes them, but nobody's."""
    document = _document(rounds=ROUNDS, **stand_in.trainer())
    document["metadata"] |= {"namespace": namespace, "uid": "floor", "generation": 1}
    s3 = site.cluster.s3
    defaults = ClusterDefaults(
        trainer_image=IMAGE, storage_endpoint=s3.endpoint, storage_region="us-east-1", storage_secret="s3"
    )
    run = fill(DistillationRun.model_validate(document), defaults)
    bodies = []
    for plan in plan_run(run.spec, run=run.metadata.name):
        job = job_manifest(run, plan, stage_config(run, plan))
        del job["metadata"]["ownerReferences"], job["metadata"]["labels"]["app.kubernetes.io/managed-by"]
        del job["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/managed-by"]
        bodies.append(json.dumps(job))
    return bodies


def _by_trainer(site: Site, found: HandOffs) -> None:
    namespace = site.namespace("trainer")
    itself = f'#!/bin/bash\nexec {sys.prefix}/bin/comd-trainer "$@"\n'
    scripts = {"comd-trainer": TIMED, "comd-trainer-itself": itself}
    config_map = {**stand_in.config_map([]), "data": scripts}
    site.cluster.apply(json.dumps(config_map), namespace=namespace)
    run = site.apply(_document(rounds=2, **stand_in.trainer()), namespace)
    run.until_phase("Succeeded", seconds=580)
    logs = _logs(site, namespace)
    begins, ends = _marks(logs)
    found.trainer += _gaps(begins, ends)
    for stage, text in logs.items():
        first, last = _phases(text)
        found.start.append(first - begins[stage])
        found.end.append(ends[stage] - last)


def _logs(site: Site, namespace: str) -> dict[str, str]:
    """By stage."""
    run = Run(site, namespace, "tiny")
    pods = json.loads(run.kubectl("get", "pods", "-o", "json"))["items"]
    named = {pod["metadata"]["labels"]["comd.dev/stage"]: pod["metadata"]["name"] for pod in pods}
    return {stage: run.kubectl("logs", name) for stage, name in named.items()}


def _marks(logs: dict[str, str]) -> tuple[dict[str, float], dict[str, float]]:
    """When each stage's container began, and when it ended."""
    found = [match for text in logs.values() for match in MARK.findall(text)]
    begins = {stage: float(at) for kind, stage, at in found if kind == "begin"}
    return begins, {stage: float(at) for kind, stage, at in found if kind == "end"}


def _gaps(begins: dict[str, float], ends: dict[str, float]) -> list[float]:
    order = sorted(begins, key=lambda stage: begins[stage])
    return [begins[second] - ends[first] for first, second in pairwise(order)]


def _phases(log: str) -> tuple[float, float]:
    """When a trainer's first phase began and its last one ended, by its own log."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    finished = [(line["time"], re.match(r"\S+ finished in (\S+) s", line["message"])) for line in lines]
    times = [(datetime.fromisoformat(at).timestamp(), float(match[1])) for at, match in finished if match]
    return times[0][0] - times[0][1], times[-1][0]


def _writes() -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=10) as answer:
        found = WRITE.findall(answer.read().decode())
    return {
        "writes": sum(float(count) for resource, _, count in found if resource not in ("events", "leases")),
        "events": sum(float(count) for resource, _, count in found if resource == "events"),
    }

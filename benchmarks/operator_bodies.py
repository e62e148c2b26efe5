"""What is written in the benchmark: runs, and what the operator writes at a run's first step, recorded from its own code, so that
the floor writes the same to the byte."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from benchmarks.operator_client import Write

from comd_api.run import DistillationRun
from comd_operator.decide import decide
from comd_operator.planner import ClusterDefaults, fill, job_manifest, stage_config
from comd_operator.policies import ledger
from comd_operator.runtime.writes import Writer
from tests.api.simulator import SCHEDULER

MANIFEST = Path(__file__).resolve().parent.parent / "examples" / "digits" / "run.yaml"
IMAGE = "localhost/comd-trainer:test"
NAME, UID, VERSION = "b-tttttt", "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa", "@VERSION@"
"""What is filled in for each run."""


def run_name(number: int) -> str:
    """As long as NAME."""
    return f"b-{number:06d}"


def run_manifest(name: str) -> dict[str, Any]:
    """The quick start's, of a realistic size, for pods that no scheduler takes."""
    document: dict[str, Any] = yaml.safe_load(MANIFEST.read_text())
    document["metadata"]["name"] = name
    document["spec"]["trainer"] = {"podTemplate": {"spec": {"schedulerName": SCHEDULER}}}
    return document


class _Recorder:
    """In place of the API client: keeps what it is asked to write."""

    def __init__(self) -> None:
        self.writes: list[Write] = []

    async def create(self, path: str, body: Any) -> Any:
        self.writes.append(Write("POST", path, json.dumps(body)))
        return {**body, "metadata": {**body["metadata"], "uid": UID}}

    async def patch(self, path: str, body: Any, *, content_type: str) -> Any:
        self.writes.append(Write("PATCH", path, json.dumps(body), content_type))


def first_step(namespace: str) -> list[Write]:
    """POST of the Job, PATCH of the status, POST of the Event, with NAME, UID and VERSION in them."""
    document = run_manifest(NAME)
    document["metadata"] |= {"namespace": namespace, "uid": UID, "generation": 1}
    run = DistillationRun.model_validate(document)
    now = datetime.now(UTC)
    decision = decide(run, [], now)
    filled = fill(run, ClusterDefaults(trainer_image=IMAGE))
    config = stage_config(filled.replace(status=decision.ahead), decision.create[0])
    recorder = _Recorder()
    api: Any = recorder
    writer = Writer(api=api)

    async def write() -> None:
        made = await writer.create_job(filled, job_manifest(filled, decision.create[0], config))
        status = ledger.note_uid(decision.status, made["metadata"])
        await writer.write_status(filled.metadata, status, resource_version=VERSION)
        assert decision.event is not None
        await writer.tell(filled.metadata, decision.event, now=now)

    asyncio.run(write())
    return recorder.writes


def filled_in(write: Write, *, name: str, uid: str, version: str) -> Write:
    body = write.body.replace(NAME, name).replace(UID, uid).replace(VERSION, version)
    return write._replace(path=write.path.replace(NAME, name), body=body)

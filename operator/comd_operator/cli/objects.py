"""`comd plan --kubernetes`: the objects that the operator would create, of a schedule the run of its next slot and that run's, made by
the same brain and the same planner. Every stage is imagined to end well; what only the stages themselves can know (where an artifact
will lie, its digest) stands in words."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from comd_api.exit_codes import ExitCode, UserError
from comd_api.run import DistillationRun
from comd_api.schedule import DistillationSchedule
from comd_api.stage import StageResult
from comd_api.status import ArtifactRef
from comd_operator.decide import decide
from comd_operator.planner import fill, job_manifest, labels, num_nodes, problem, service, stage_config
from comd_operator.policies.children import Child
from comd_operator.schedules.runs import slot_manifest, template_problem
from comd_operator.schedules.timetable import timetable
from comd_operator.shell.options import Options
from comd_operator.validation import load_manifest
from comd_operator.validation.documents import format_document

NO_UID = "00000000-0000-0000-0000-000000000000"
NO_DIGEST = "sha256:" + "0" * 64
_MADE_BY = {"preflight": "preflight", "pretrain": "student", "tune": "student", "augment": "pools"}


def objects_command(file: Path, options: Options) -> int:
    """options: the operator's, which fill in what the run leaves out."""
    manifest = load_manifest(file)
    schedule = manifest if isinstance(manifest, DistillationSchedule) else None
    run = fill(manifest if isinstance(manifest, DistillationRun) else next_run(manifest), options.defaults)
    words = problem(run) if schedule is None else template_problem(schedule, options.defaults)
    if words is None and run.spec.managed_by not in (None, labels.MANAGER):
        words = (
            f"spec.managedBy is {run.spec.managed_by}, so that this operator ({labels.MANAGER}) leaves the run alone"
        )
    if words is not None:
        raise UserError(f"{file}: {words}")
    first = [] if schedule is None else [_next_manifest(schedule)]
    for document in (*first, *objects(run)):
        print("---\n" + format_document(document), end="", file=sys.stdout)
    return ExitCode.DONE


def next_run(schedule: DistillationSchedule) -> DistillationRun:
    """The run of the next slot, if it is the first one: a file knows of none before."""
    return DistillationRun.model_validate(_next_manifest(schedule), by_alias=True, by_name=False)


def _next_manifest(schedule: DistillationSchedule) -> dict[str, Any]:
    slot = timetable(tuple(schedule.spec.schedules), schedule.spec.time_zone).after(datetime.now(UTC))
    if slot is None:
        raise UserError(f"{schedule.metadata.name} has no slot any more")
    metadata = schedule.metadata.model_copy(update={"uid": schedule.metadata.uid or NO_UID})
    return slot_manifest(schedule.replace(metadata=metadata), slot, last=None)


def objects(run: DistillationRun) -> Iterator[dict[str, Any]]:
    """In the order in which they would be created."""
    metadata = run.metadata.model_copy(update={"uid": run.metadata.uid or NO_UID})
    run = run.replace(metadata=metadata, status=None, spec=run.spec.replace(suspend=False))
    now = datetime.now(UTC)
    children: list[Child] = []
    served = False
    while True:
        decision = decide(run, children, now)
        run = run.replace(status=decision.status)
        if not decision.create:
            return
        (job,) = decision.create
        if num_nodes(run, job) > 1 and not served:
            served = True
            yield service(run)
        yield job_manifest(run, job, stage_config(run, job))
        made = [_MADE_BY[phase] for phase in job.phases if phase in _MADE_BY]
        artifacts = [
            ArtifactRef(name=name, uri=f"known when {job.stage} is done", digest=NO_DIGEST)
            for name in dict.fromkeys(made)
        ]
        children = [
            Child(
                name=job.name,
                stage=job.stage,
                attempt=job.attempt,
                job_index=job.job_index,
                state="Succeeded",
                result=StageResult(exit_class="Done", artifacts=artifacts),
                finished=now,
            )
        ]

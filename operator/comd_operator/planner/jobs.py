"""Which Jobs a stage consists of: one, or with `execution: Phase` one for each phase."""

from dataclasses import dataclass

from comd_api.run import RunSpec
from comd_api.stages import phases_of, stage_names
from comd_api.status import PhaseName
from comd_operator.planner.names import job_name


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """A Job as both bodies make it: on the cluster a Kubernetes Job, on one machine a process."""

    name: str
    """At most 52 characters, a function of run, stage, attempt and phase."""
    stage: str
    phases: tuple[PhaseName, ...]
    """What it runs, in order."""
    attempt: int
    job_index: int = 0
    """Which Job of the stage it is, counted from 0."""


def jobs_of(spec: RunSpec, stage: str) -> list[tuple[PhaseName, ...]]:
    """The phases of each Job of a stage."""
    phases = phases_of(spec, stage)
    return [(phase,) for phase in phases] if spec.execution == "Phase" else [tuple(phases)]


def plan_job(spec: RunSpec, *, run: str, stage: str, job_index: int, attempt: int) -> JobPlan:
    phases = jobs_of(spec, stage)[job_index]
    phase = phases[0] if spec.execution == "Phase" else None
    return JobPlan(
        name=job_name(run=run, stage=stage, attempt=attempt, phase=phase),
        stage=stage,
        phases=phases,
        attempt=attempt,
        job_index=job_index,
    )


def plan_run(spec: RunSpec, *, run: str) -> list[JobPlan]:
    """Every Job of a run in which nothing fails, in order."""
    return [
        plan_job(spec, run=run, stage=stage, job_index=index, attempt=1)
        for stage in stage_names(spec)
        for index in range(len(jobs_of(spec, stage)))
    ]

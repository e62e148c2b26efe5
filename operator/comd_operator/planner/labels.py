"""How children are told apart: by labels, of which one finds all of them on the server's side."""

from collections.abc import Mapping
from typing import Any

from comd_api import GROUP
from comd_api.run import DistillationRun
from comd_operator.planner.jobs import JobPlan

MANAGED_BY = "app.kubernetes.io/managed-by"
OPERATOR_NAME = "comd-operator"
SELECTOR = f"{MANAGED_BY}={OPERATOR_NAME}"
"""What the operator watches: nobody else's Jobs and Pods reach its memory."""

MANAGER = f"{GROUP}/operator"
"""In `spec.managedBy` of a run, as good as nothing: this operator works on it."""

GENERATION = f"{GROUP}/generation"
"""An annotation: of the run, when a Job was made for it."""

SCHEDULE = f"{GROUP}/schedule"
"""A label of runs that a schedule has made: its name."""
SLOT = f"{GROUP}/slot"
"""An annotation: when the run was to start."""
CONTENT = f"{GROUP}/content"
"""An annotation: a hash of what of the run's spec a Job was made of (`planner.content`)."""

RUN, RUN_UID, STAGE, ROUND, ATTEMPT, JOB_INDEX = (
    f"{GROUP}/{name}" for name in ("run", "run-uid", "stage", "round", "attempt", "job-index")
)


def of_run(run: DistillationRun) -> dict[str, str]:
    assert run.metadata.uid is not None, "only an object of the API server has children"
    return {
        RUN: run.metadata.name,
        RUN_UID: run.metadata.uid,
        "app.kubernetes.io/name": "comd-trainer",
        "app.kubernetes.io/instance": run.metadata.name,
        "app.kubernetes.io/component": "trainer",
        "app.kubernetes.io/part-of": "comd",
        MANAGED_BY: OPERATOR_NAME,
    }


def of_job(run: DistillationRun, job: JobPlan) -> dict[str, str]:
    number = job.stage.removeprefix("round-")
    return {
        **of_run(run),
        STAGE: job.stage,
        ATTEMPT: str(job.attempt),
        JOB_INDEX: str(job.job_index),
        **({ROUND: number} if number != job.stage else {}),
    }


def is_watched(obj: Mapping[str, Any]) -> bool:
    """Whether the watches tell of an object: its label may have been changed, at once or later, by a policy engine or by hand."""
    return (obj["metadata"].get("labels") or {}).get(MANAGED_BY) == OPERATOR_NAME

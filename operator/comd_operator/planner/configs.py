"""What a Job is told: everything it needs, so that it asks nobody."""

from comd_api.artifact import root_of
from comd_api.profile import resolve
from comd_api.run import DistillationRun
from comd_api.stage import StageConfig
from comd_api.stages import round_of
from comd_api.status import ArtifactRef, RunStatus, StageStatus
from comd_operator.planner.jobs import JobPlan

INPUT_NAMES = ("preflight", "student", "pools")


def stage_config(run: DistillationRun, job: JobPlan) -> StageConfig:
    """The config of a Job: the spec with its profile resolved, and the artifacts of finished stages.

    `run.spec.storage` must be set: on the cluster the manifest names it, on one machine the local runner does.
    """
    assert run.spec.storage is not None, "storage is known before anything is planned"
    number = round_of(job.stage)
    return StageConfig(
        namespace=run.metadata.namespace,
        run=run.metadata.name,
        stage=job.stage,
        round=number,
        last_round=number == run.spec.rounds.count,
        attempt=job.attempt,
        phases=list(job.phases),
        spec=resolve(run.spec),
        inputs=inputs_of(run.status or RunStatus(), job.stage),
    )


def moved_storage(run: DistillationRun) -> str | None:
    """Why a run that was begun can't go on, when its artifacts lie elsewhere now: the operator's default was changed, or a store of its
    own that the run leaves out. One sentence; None when all is well."""
    assert run.spec.storage is not None, "storage is known before anything is planned"
    here = root_of(run.spec.storage.uri) + "/"
    begun = [ref.uri for stage in (run.status or RunStatus()).stages for ref in stage.artifacts]
    elsewhere = next((uri for uri in begun if not uri.startswith(here)), None)
    if elsewhere is None:
        return None
    return (
        f"the run's artifacts lie at {elsewhere}, but its storage is now {run.spec.storage.uri}; "
        "start the operator with the --storage-uri that the run was begun with"
    )


def inputs_of(status: RunStatus, stage: str) -> list[ArtifactRef]:
    """The newest `preflight`, `student` and `pools` that stages before this one have made."""
    earlier: list[StageStatus] = []
    for entry in status.stages:
        if entry.name == stage:
            break
        if entry.done:
            earlier.append(entry)
    newest = {ref.name: ref for entry in earlier for ref in entry.artifacts}
    return [newest[name] for name in INPUT_NAMES if name in newest]

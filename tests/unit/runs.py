"""Builders for the brain's tests: a run from a manifest with changes, children, results."""

from datetime import UTC, datetime, timedelta
from typing import Any

from comd_api.run import DistillationRun, Storage
from comd_api.stage import StageResult
from comd_api.status import ArtifactRef, ExitClass, RunStatus, Score
from comd_operator.decide import Decision, decide
from comd_operator.planner import JobPlan
from comd_operator.policies.children import Child
from tests.unit.rule_examples import manifest

START = datetime(2026, 1, 1, tzinfo=UTC)
ZERO = "sha256:" + "0" * 64


def make_run(**changes: Any) -> DistillationRun:
    """Two competing rounds unless the changes say otherwise."""
    run = DistillationRun.model_validate(manifest(**{"rounds__count": 2, **changes}), by_alias=True, by_name=False)
    return run.replace(spec=run.spec.replace(storage=Storage(uri="file:///store")))


def artifact(name: str, uri: str = "file:///store/x") -> ArtifactRef:
    return ArtifactRef(name=name, uri=uri, digest=ZERO)


def student_score(value: float, *, role: Any = "student", evaluation: str = "test") -> Score:
    return Score(evaluation=evaluation, role=role, value=value, low=0.0, high=1.0, num_items=100)


def running(job: JobPlan, *, progress: str | None = None) -> Child:
    return Child(
        name=job.name, stage=job.stage, attempt=job.attempt, job_index=job.job_index, state="Running", progress=progress
    )


def ended(job: JobPlan, exit_class: ExitClass = "Done", *, at: datetime, **result: Any) -> Child:
    return Child(
        name=job.name,
        stage=job.stage,
        attempt=job.attempt,
        job_index=job.job_index,
        state="Succeeded" if exit_class == "Done" else "Failed",
        result=StageResult(exit_class=exit_class, **result),
        finished=at,
    )


class World:
    """One body of the brain, in memory: applies decisions, and lets time pass."""

    def __init__(self, run: DistillationRun) -> None:
        self.run, self.now = run, START
        self.children: dict[str, Child] = {}
        self.jobs: list[JobPlan] = []
        self.events: list[str] = []

    @property
    def status(self) -> RunStatus:
        return self.run.status or RunStatus()

    @property
    def live(self) -> list[Child]:
        return [child for child in self.children.values() if child.live]

    @property
    def job(self) -> JobPlan:
        return self.jobs[-1]

    def step(self, seconds: float = 0.0) -> Decision:
        """One reconcile, `seconds` later."""
        self.now += timedelta(seconds=seconds)
        decision = decide(self.run, list(self.children.values()), self.now)
        for name in decision.delete:
            self.children.pop(name, None)
        for job in decision.create:
            assert job.name not in self.children, "a Job that is there is never made again"
            self.jobs.append(job)
            self.children[job.name] = running(job)
        self.run = self.run.replace(status=decision.status)
        if decision.event is not None:
            self.events.append(decision.event.reason)
        return decision

    def end(self, exit_class: ExitClass = "Done", *, after: float = 1.0, **result: Any) -> Decision:
        """The newest Job ends, and is seen to."""
        self.now += timedelta(seconds=after)
        if exit_class == "Done" and "artifacts" not in result and self.job.stage != "preflight":
            result["artifacts"] = [artifact("student", f"file:///store/{self.job.stage}")]
        self.children[self.job.name] = ended(self.job, exit_class, at=self.now, **result)
        return self.step()

    def change(self, **fields: Any) -> None:
        """The user edits the spec (Python names)."""
        metadata = self.run.metadata.model_copy(update={"generation": self.run.metadata.generation + 1})
        self.run = self.run.replace(spec=self.run.spec.replace(**fields), metadata=metadata)

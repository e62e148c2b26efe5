"""A run on a cluster, as the brain sees it: Jobs are made without having started, have a uid, wait, end before they are complete,
and linger when they are deleted; and the operator is killed between an act and writing it down."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from comd_api.run import DistillationRun
from comd_api.stage import StageResult
from comd_api.status import RunStatus, StageStatus
from comd_operator.decide import Decision, decide
from comd_operator.planner import JobPlan
from comd_operator.policies import ledger
from comd_operator.policies.children import Child
from comd_operator.policies.hold import Obstacle
from comd_operator.policies.queue import Wait
from tests.unit.runs import START, artifact

PENDING = Wait(reason="Pending", message="4 more needed")


class ClusterWorld:
    """Applies decisions as the reconciler does, and counts what is written."""

    def __init__(self, run: DistillationRun) -> None:
        self.run, self.now = run, START
        self.children: dict[str, Child] = {}
        self.made: list[str] = []
        self.writes = 0
        self.events: list[str] = []

    @property
    def status(self) -> RunStatus:
        return self.run.status or RunStatus()

    @property
    def stage(self) -> StageStatus:
        return self.status.stages[-1]

    @property
    def newest(self) -> str:
        return self.made[-1]

    def condition(self, kind: str) -> tuple[str, str]:
        return next((found.status, found.reason) for found in self.status.conditions if found.type == kind)

    def decide(self, obstacle: Obstacle | None = None) -> Decision:
        return decide(self.run, list(self.children.values()), self.now, obstacle=obstacle)

    def step(self, seconds: float = 0.0, *, obstacle: Obstacle | None = None, killed: bool = False) -> Decision:
        """One reconcile, so much later. killed: after the Jobs were made and before anything was written."""
        self.now += timedelta(seconds=seconds)
        decision = self.decide(obstacle)
        for job in decision.create:
            self._make(job)
            decision = replace(
                decision, status=ledger.note_uid(decision.status, {"name": job.name, "uid": f"uid-{job.name}"})
            )
        if killed:
            return decision
        for name in decision.delete:
            self.children[name] = replace(self.children[name], deleting=True)
        self.writes += decision.status != self.run.status
        if decision.event is not None:
            self.events.append(f"{decision.event.reason}: {decision.event.message}")
        self.run = self.run.replace(status=decision.status)
        return decision

    def settle(self) -> None:
        """As often as there is something new: at most a few times."""
        for _ in range(5):
            before = self.run.status
            self.step()
            if self.run.status == before:
                return
        raise AssertionError("it never comes to rest")

    def _make(self, job: JobPlan) -> None:
        assert job.name not in self.children, "a Job that is there is never made again"
        self.made.append(job.name)
        queued = self.run.spec.queue is not None
        self.children[job.name] = Child(
            name=job.name,
            stage=job.stage,
            attempt=job.attempt,
            job_index=job.job_index,
            state="Queued" if queued else "Running",
            uid=f"uid-{job.name}",
            created=self.now,
            started=False,
        )

    def set(self, name: str | None = None, **fields: Any) -> None:
        """What is seen of a Job from now on; of the newest one, when none is named."""
        name = name or self.newest
        self.children[name] = replace(self.children[name], **fields)

    def run_on(self, name: str | None = None) -> None:
        """Its containers run."""
        self.set(name, state="Running", started=True, wait=None, preempted=False)

    def finish(self, name: str | None = None, **result: Any) -> None:
        """Its containers have ended well; it is not complete yet."""
        name = name or self.newest
        if "artifacts" not in result and self.children[name].stage != "preflight":
            result["artifacts"] = [artifact("student", f"file:///store/{name}")]
        result = StageResult(exit_class="Done", **result) if result else StageResult(exit_class="Done")  # type: ignore[assignment]
        self.set(name, state="Finishing", started=True, result=result, finished=self.now)

    def complete(self, name: str | None = None) -> None:
        name = name or self.newest
        if self.children[name].state != "Finishing":
            self.finish(name)
        self.set(name, state="Succeeded", finished=self.now)

    def fail(self, exit_class: Any = "Failed", text: str = "no luck", name: str | None = None) -> None:
        self.set(name, state="Failed", exit_class=exit_class, message=text, started=True, finished=self.now)

    def give_up(self, text: str = "ImagePullBackOff: no such image", name: str | None = None) -> None:
        """Its pods can't be started; they are still there."""
        self.set(name, state="Failed", exit_class="CannotStart", message=text, lingers=True)

    def vanish(self, name: str | None = None) -> None:
        del self.children[name or self.newest]

    def clear(self) -> None:
        """What was deleted is gone."""
        self.children = {name: child for name, child in self.children.items() if not child.deleting}

    def change(self, **fields: Any) -> None:
        """The user edits the spec (Python names)."""
        metadata = self.run.metadata.model_copy(update={"generation": self.run.metadata.generation + 1})
        self.run = self.run.replace(spec=self.run.spec.replace(**fields), metadata=metadata)

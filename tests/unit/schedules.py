"""A schedule on a cluster, as its brain sees it: applies decisions as the reconciler does, and is killed where the test says."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from comd_api.schedule import DistillationSchedule, ScheduleStatus
from comd_api.status import RunPhase
from comd_operator.policies.hold import Obstacle
from comd_operator.schedules.decide import Decision, decide
from comd_operator.schedules.runs import ScheduledRun, manual_name, slot_manifest, slot_name
from tests.unit.rule_examples import manifest

START = datetime(2026, 5, 1, 11, 30, tzinfo=UTC)
NAME = "nightly"


def schedule_manifest(name: str = NAME, *, template: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """Hourly unless the changes say otherwise; names are aliases. template: changes of the run's manifest."""
    return {
        "apiVersion": "comd.dev/v1alpha1",
        "kind": "DistillationSchedule",
        "metadata": {"name": name},
        "spec": {"schedules": ["0 * * * *"], "runTemplate": {"spec": manifest(**(template or {}))["spec"]}, **spec},
    }


def make_schedule(**spec: Any) -> DistillationSchedule:
    schedule = DistillationSchedule.model_validate(schedule_manifest(**spec), by_alias=True, by_name=False)
    created = START.strftime("%Y-%m-%dT%H:%M:%SZ")
    metadata = {"uid": "uid-of-schedule", "namespace": "team", "creation_timestamp": created}
    return schedule.replace(metadata=schedule.metadata.model_copy(update=metadata))


class ScheduleWorld:
    def __init__(self, **spec: Any) -> None:
        self.schedule, self.now = make_schedule(**spec), START
        self.runs: dict[str, ScheduledRun] = {}
        self.made: list[str] = []
        """Names of all runs that were ever made for slots."""
        self.specs: dict[str, dict[str, Any]] = {}
        """What they were made with."""
        self.succeeded: dict[str, datetime] = {}
        """All runs that ever have, and when."""
        self.writes = 0
        self.events: list[str] = []
        self.wrong: str | None = None

    @property
    def status(self) -> ScheduleStatus:
        return self.schedule.status or ScheduleStatus()

    @property
    def active(self) -> list[ScheduledRun]:
        return [run for run in self.runs.values() if not run.ended]

    def condition(self, kind: str) -> tuple[str, str, str]:
        found = next(entry for entry in self.status.conditions if entry.type == kind)
        return found.status, found.reason, found.message

    def decide(self, obstacle: Obstacle | None = None) -> Decision:
        return decide(self.schedule, list(self.runs.values()), self.now, wrong=self.wrong, obstacle=obstacle)

    def step(self, seconds: float = 0.0, *, obstacle: Obstacle | None = None, calls: int = 99) -> Decision:
        """One reconcile, so much later. calls: of the API server, after which it is killed."""
        self.now += timedelta(seconds=seconds)
        decision = self.decide(obstacle)
        if decision.create:
            for slot in decision.create:
                if calls <= 0:
                    return decision
                self._make(slot, last=decision.status.last_successful_run)
                calls -= 1
            decision = self.decide()
            assert not decision.create, "what was made is there"
        if decision.status != self.status:
            if calls <= 0:
                return decision
            self.schedule = self.schedule.replace(status=decision.status)
            self.writes += 1
            calls -= 1
        else:
            assert decision.event is None, "nothing is told of what is not written down"
        if decision.event is not None:
            self.events.append(f"{decision.event.reason}: {decision.event.message}")
        for run in (*decision.replace, *decision.expire):
            if calls <= 0:
                return decision
            calls -= 1
            self.runs[run.name] = replace(run, going=True)
            if run.ended:
                del self.runs[run.name]
        return decision

    def _make(self, slot: datetime, *, last: str | None) -> None:
        name = slot_name(NAME, slot)
        if name in self.runs:
            return  # AlreadyExists, and ours
        self.made.append(name)
        self.specs[name] = slot_manifest(self.schedule, slot, last=last)["spec"]
        self.runs[name] = ScheduledRun(name=name, uid=f"uid-{name}", created=self.now)

    def trigger(self, mark: str) -> str:
        name = manual_name(NAME, mark=mark)
        self.runs[name] = ScheduledRun(name=name, uid=f"uid-{name}", created=self.now)
        return name

    def end(self, name: str, phase: RunPhase = "Succeeded", *, unchanged: bool = False) -> None:
        self.runs[name] = replace(self.runs[name], phase=phase, completed=self.now, unchanged=unchanged)
        if phase == "Succeeded":
            self.succeeded[name] = self.now

    def end_all(self, phase: RunPhase = "Succeeded") -> None:
        for run in self.active:
            self.end(run.name, phase)

    def clear(self) -> None:
        """What was deleted is gone, and all that it has had running."""
        self.runs = {name: run for name, run in self.runs.items() if not run.going}

    def edit(self, **spec: Any) -> None:
        """Python names."""
        metadata = self.schedule.metadata.model_copy(update={"generation": self.schedule.metadata.generation + 1})
        self.schedule = self.schedule.replace(spec=self.schedule.spec.replace(**spec), metadata=metadata)

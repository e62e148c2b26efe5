"""What holds under every interleaving: hypothesis plays the user, the cluster and the clock."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from comd_api.stage import StageResult
from comd_api.status import ExitClass, RunStatus
from comd_operator.decide import decide
from comd_operator.policies.children import Child
from comd_operator.policies.hold import Obstacle
from comd_operator.policies.queue import Wait
from tests.unit.runs import World, ended, make_run, student_score

EXIT_CLASSES: tuple[ExitClass, ...] = (
    "Done", "UserError", "BadData", "TryAgain", "CannotStart", "Failed", "OutOfMemory",
)  # fmt: skip
OBSTACLES = (None, None, Obstacle(reason="NameCollision", message="another's", seconds=2.0))
FAR = st.floats(0.0, 2000.0)

RUNS = st.fixed_dictionaries(
    {
        "execution": st.sampled_from(["Stage", "Phase"]),
        "suspendPolicy": st.sampled_from(["Now", "StageEnd"]),
        "rounds__count": st.integers(1, 3),
        "retry": st.fixed_dictionaries({"limit": st.integers(0, 3), "backoffSeconds": st.integers(0, 30)}),
        "activeDeadlineSeconds": st.none() | st.integers(1, 20_000),
        "stageDeadlineSeconds": st.none() | st.integers(1, 5000),
        "queueDeadlineSeconds": st.none() | st.integers(1, 5000),
        "queue": st.none() | st.just({"name": "gpus"}),
    }
)


class Interleavings(RuleBasedStateMachine):
    """Deleted Jobs linger here as long as hypothesis likes, as they do on a cluster; the queue admits and preempts; and the
    operator is killed between an act and writing it down."""

    @initialize(changes=RUNS)
    def begin(self, changes: dict[str, object]) -> None:
        self.world = World(make_run(**{**changes, "rounds__earlyStop": {"evaluation": "test", "patience": 1}}))
        self.going: dict[str, Child] = {}
        self.before = RunStatus()

    @rule(seconds=FAR, killed=st.booleans(), obstacle=st.sampled_from(OBSTACLES))
    def reconcile(self, seconds: float, killed: bool, obstacle: Obstacle | None) -> None:
        world = self.world
        world.now += timedelta(seconds=seconds)
        self.before = world.status
        observed = [*world.children.values(), *self.going.values()]
        decision = decide(world.run, observed, world.now, obstacle=obstacle)
        assert len(decision.create) <= 1
        assert not decision.create or obstacle is None
        still = [child for child in observed if child.live and child.state != "Finishing"]
        assert not decision.create or not still, "at most one live Job"
        for name in decision.delete:
            child = world.children.pop(name, None)
            if child is not None:
                self.going[name] = replace(child, deleting=True)
        for job in decision.create:
            assert job.name not in world.children
            world.jobs.append(job)
            world.children[job.name] = Child(
                name=job.name,
                stage=job.stage,
                attempt=job.attempt,
                job_index=job.job_index,
                state="Queued" if world.run.spec.queue else "Running",
                created=world.now,
            )
        if killed:
            return
        world.run = world.run.replace(status=decision.status)
        self.check_step(created=len(decision.create))

    def check_step(self, *, created: int) -> None:
        before, after = self.before, self.world.status
        if before.phase in ("Succeeded", "Failed"):
            assert after.phase == before.phase
            assert after.stages == before.stages
            assert created == 0
        for stage in before.stages:
            now = after.stage_named(stage.name)
            assert now is not None
            assert now.attempt >= stage.attempt
            assert now.failures >= stage.failures
            assert now.completed_jobs >= stage.completed_jobs
            if stage.phase in ("Succeeded", "Failed"):
                assert now == stage

    @precondition(lambda self: self.world.live)
    @rule(exit_class=st.sampled_from(EXIT_CLASSES), score=st.sampled_from([0.1, 0.5, 0.9]), data=st.data())
    def job_ends(self, exit_class: ExitClass, score: float, data: st.DataObject) -> None:
        child = data.draw(st.sampled_from(sorted(self.world.live, key=lambda child: child.name)))
        job = next(job for job in self.world.jobs if job.name == child.name)
        if child.state == "Finishing":
            exit_class = "Done"
        scores = [student_score(score)] if exit_class == "Done" else []
        self.world.children[child.name] = ended(
            job,
            exit_class,
            at=self.world.now,
            scores=scores,
        )

    @precondition(lambda self: self.world.live)
    @rule(state=st.sampled_from(["Queued", "Running", "Finishing"]), stuck=st.booleans(), data=st.data())
    def job_moves(self, state: Any, stuck: bool, data: st.DataObject) -> None:
        child = data.draw(st.sampled_from(sorted(self.world.live, key=lambda child: child.name)))
        if child.state == "Finishing":
            return  # its processes have ended
        wait = Wait(reason="Pending", message="no quota", stuck=stuck) if state == "Queued" else None
        result = StageResult(exit_class="Done") if state == "Finishing" else None
        moved = replace(child, state=state, wait=wait, result=result, preempted=child.state == "Running")
        self.world.children[child.name] = moved

    @precondition(lambda self: self.world.live)
    @rule(data=st.data())
    def job_can_not_start(self, data: st.DataObject) -> None:
        child = data.draw(st.sampled_from(sorted(self.world.live, key=lambda child: child.name)))
        if child.state == "Finishing":
            return
        self.world.children[child.name] = replace(
            child, state="Failed", exit_class="CannotStart", message="no such image", lingers=True, started=False
        )

    @precondition(lambda self: self.world.children)
    @rule(data=st.data())
    def job_vanishes(self, data: st.DataObject) -> None:
        del self.world.children[data.draw(st.sampled_from(sorted(self.world.children)))]

    @precondition(lambda self: self.going)
    @rule()
    def deleted_jobs_are_gone(self) -> None:
        self.going.clear()

    @rule(suspend=st.booleans())
    def user_edits(self, suspend: bool) -> None:
        self.world.change(suspend=suspend)

    @invariant()
    def at_most_one_live_job(self) -> None:
        live = [child for child in (*self.world.live, *self.going.values()) if child.state != "Finishing"]
        assert len(live) <= 1

    @invariant()
    def asking_again_changes_nothing(self) -> None:
        world = self.world
        children = [*world.children.values(), *self.going.values()]
        once = decide(world.run, children, world.now)
        gone = set(once.delete)
        after = [child for child in children if child.name not in gone]
        after += [
            Child(
                name=job.name,
                stage=job.stage,
                attempt=job.attempt,
                job_index=job.job_index,
                state="Queued" if world.run.spec.queue else "Running",
                started=False,
            )
            for job in once.create
        ]
        twice = decide(world.run.replace(status=once.status), after, world.now)
        if gone or once.requeue_after == 0:
            return
        assert twice.status == once.status
        assert not twice.create
        assert twice.event is None
        if once.status.phase in ("Suspended", "Succeeded", "Failed"):
            assert not [child for child in after if child.live and child.state != "Finishing"], "all was deleted"

    @invariant()
    def the_schema_holds_the_status(self) -> None:
        RunStatus.model_validate(self.world.status.to_wire())


Interleavings.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestInterleavings = Interleavings.TestCase


@settings(max_examples=80, deadline=None)
@given(changes=RUNS, ends=st.lists(st.sampled_from(EXIT_CLASSES), max_size=40))
def test_every_run_ends(changes: dict[str, object], ends: list[ExitClass]) -> None:
    """Whatever fails: once preemptions stop coming, the run comes to an end, having asked for every Job at most once."""
    world = World(make_run(**changes))
    script = iter(ends)
    for _ in range(400):
        decision = world.step()
        if world.status.phase in ("Succeeded", "Failed"):
            break
        if world.live:
            world.end(next(script, "Done"), after=5.0)
        else:
            assert decision.requeue_after is not None or decision.create, "somebody must look again"
            world.step(seconds=(decision.requeue_after or 0.0))
    assert world.status.phase in ("Succeeded", "Failed")
    assert not world.live
    names = [job.name for job in world.jobs]
    assert len(names) == len(set(names))
    assert all(stage.failures <= world.run.spec.retry.limit + 1 for stage in world.status.stages)

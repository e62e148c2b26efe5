"""`comd run`: the loop observe → decide → act with one machine as the world."""

import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType

from comd_api.exit_codes import TryAgainError
from comd_api.pods import Resources, Scratch
from comd_api.run import DistillationRun, Storage
from comd_api.stage import StageConfig
from comd_api.status import RunStatus
from comd_operator.decide import Decision, decide, interrupt
from comd_operator.local.process import TRAINER_COMMAND, TrainerProcess, kill_group
from comd_operator.local.student import link_student
from comd_operator.local.view import View
from comd_operator.local.workdir import TrainerLock, WorkDir
from comd_operator.planner import JobPlan, stage_config
from comd_operator.policies import ledger
from comd_operator.policies.events import Event
from comd_operator.validation import InvalidManifestError, check_update

ORPHAN_PATIENCE = 60.0
"""Seconds that the trainer of a `comd run` that was killed has to save and to end, before it is killed too."""
GRACE = 120.0
"""Seconds that a trainer has to save and to end when its Job is deleted (suspension, deadline)."""


def open_run(work: WorkDir, manifest: DistillationRun, *, storage: Storage) -> DistillationRun:
    """The run to go on with: the one of the folder, with what the manifest may change; or a new one.

    A run that has failed starts anew when it is asked for again, as deleting the object and applying it again would;
    its finished phases are found in the store. Raises InvalidManifestError when the manifest changes what a started run
    must keep.
    """
    wanted = manifest.replace(spec=manifest.spec.replace(storage=storage), status=None)
    saved = work.read_run()
    if saved is None:
        return wanted
    for field in ("name", "namespace"):
        there, here = getattr(saved.metadata, field), getattr(wanted.metadata, field)
        if there != here:
            raise InvalidManifestError(
                [f"metadata.{field}: {here}, but {work.root} holds the run {there}; use another --work-dir"]
            )
    if saved.status is not None and saved.status.phase == "Failed":
        return wanted
    problems = check_update(saved, wanted.replace(status=saved.status))
    if problems:
        raise InvalidManifestError(problems)
    changed = saved.spec != wanted.spec
    metadata = saved.metadata.model_copy(update={"generation": saved.metadata.generation + changed})
    return saved.replace(spec=wanted.spec, metadata=metadata)


def on_one_machine(config: StageConfig) -> StageConfig:
    """One machine is one node, with as many ranks as a cluster's nodes have together: so it comes to the same student. What each of
    those nodes and their scratch volumes are to have says nothing of this machine."""
    trainer = config.spec.trainer
    trainer = trainer.replace(
        num_nodes=1, num_proc_per_node=trainer.num_ranks, resources_per_node=Resources(), scratch=Scratch()
    )
    return config.replace(spec=config.spec.replace(trainer=trainer))


class LocalRunner:
    """Drives one run in one folder. `run()` may be called once."""

    def __init__(
        self,
        *,
        work: WorkDir,
        run: DistillationRun,
        view: View,
        command: Sequence[str] = TRAINER_COMMAND,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        poll: float = 0.2,
    ) -> None:
        self._work, self._run, self._view, self._command, self._now, self._poll = work, run, view, command, now, poll
        self._process: TrainerProcess | None = None
        self._stop_requests = 0

    def run(self) -> DistillationRun:
        """The run as it is when it has ended, is suspended, or was interrupted. Call it inside `work.locked()`."""
        lock = TrainerLock(self._work)
        try:
            self._end_orphan(lock)
            self._close_books_of_the_dead()
            with self._signals(), self._view:
                self._loop(lock)
        finally:
            if self._process is not None:
                self._process.kill()
            lock.close()
        return self._run

    @property
    def status(self) -> RunStatus:
        return self._run.status or RunStatus()

    def _loop(self, lock: TrainerLock) -> None:
        while True:
            self._work.beat()
            if self._stop_requests:
                self._interrupt()
                return
            children = [self._process.observe()] if self._process else []
            decision = decide(self._run, children, self._now())
            self._act(decision, lock)
            if self.status.phase in ("Succeeded", "Failed", "Suspended") and not decision.create:
                return
            self._view.update(self._run, self._process.progress() if self._process else None)
            self._pause(decision.requeue_after)

    def _act(self, decision: Decision, lock: TrainerLock) -> None:
        """Children first, then the status in one write, then events. A trainer that was started but not written down
        ends with us."""
        if self._process is not None and self._process.job.name in decision.delete:
            self._process.stop(grace=GRACE)
        for job in decision.create:
            self._start(job, lock, status=decision.status)
        self._save(decision.status)
        if decision.event is not None:
            self._view.event(decision.event)

    def _start(self, job: JobPlan, lock: TrainerLock, *, status: RunStatus) -> None:
        config = on_one_machine(stage_config(self._run.replace(status=status), job))
        self._process = TrainerProcess(job=job, config=config, work=self._work, lock=lock, command=self._command)

    def _save(self, status: RunStatus) -> None:
        if status == self._run.status:
            return
        had_student = self.status.student
        self._run = self._run.replace(status=status)
        self._work.write_run(self._run)
        if status.student is not None and status.student != had_student:
            link_student(self._work, status.student)
        if status.phase == "Succeeded":
            shutil.rmtree(self._work.scratch, ignore_errors=True)

    def _pause(self, requeue_after: float | None) -> None:
        seconds = self._poll if requeue_after is None else min(self._poll, requeue_after)
        if self._process is not None and self._process.observe().state == "Running":
            self._process.wait(seconds)
        else:
            time.sleep(max(seconds, 0.01))

    def _interrupt(self) -> None:
        """Ends the trainer and writes down that nothing failed."""
        if self._process is not None and self._process.observe().state == "Running":
            self._view.event(
                Event(type="Normal", reason="Stopping", message="the trainer saves and ends; once more to kill it")
            )
            self._process.ask_to_stop()
            while self._process.observe().state == "Running" and self._stop_requests < 2:
                self._process.wait(self._poll)
                self._work.beat()
            if self._process.observe().state == "Running":
                self._process.kill()
        if self._process is not None:
            # What the trainer finished before it heard us counts. Nothing is started: the spec is read as suspended.
            suspended = self._run.replace(spec=self._run.spec.replace(suspend=True, suspend_policy="Now"))
            self._run = self._run.replace(status=decide(suspended, [self._process.observe()], self._now()).status)
            self._process = None
        self._save(interrupt(self._run, self._now(), message="comd run was stopped; run it again to go on"))
        self._work.write_run(self._run)

    def _end_orphan(self, lock: TrainerLock) -> None:
        """Two trainers never write side by side: one that an earlier `comd run` left behind has been told to end by its
        parent's death."""
        if lock.try_take():
            return
        self._view.event(
            Event(type="Normal", reason="Waiting", message="the trainer of an earlier comd run saves and ends")
        )
        if lock.take(patience=ORPHAN_PATIENCE):
            return
        orphan = lock.holder()
        if orphan is not None:
            kill_group(orphan)
        if not lock.take(patience=5.0):
            raise TryAgainError(
                f"--work-dir {self._work.root}: a trainer of an earlier comd run still runs (process {orphan}); "
                "end it and try again"
            )

    def _close_books_of_the_dead(self) -> None:
        """After a `comd run` that was killed, its Job's time ends when it was last seen alive."""
        stage = ledger.current(self.status)
        if not ledger.in_flight(stage) and self.status.active_since is None:
            return
        died = self._work.last_alive() or self._now()
        self._run = self._run.replace(status=interrupt(self._run, died, message="comd run was killed; it goes on"))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def count(_number: int, _frame: FrameType | None) -> None:
            self._stop_requests += 1

        before = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

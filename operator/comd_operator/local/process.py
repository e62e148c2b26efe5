"""One trainer as a process: started, watched, ended. It has a session of its own, so that Ctrl-C in the terminal
reaches `comd run` alone, which then asks it to stop as kubelet would: SIGTERM to the supervisor, and SIGKILL to all
when that is not heard."""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from comd_api.stage import Progress, StageConfig
from comd_operator.local.log_tail import log_tail
from comd_operator.local.workdir import TrainerLock, WorkDir, replace_text
from comd_operator.planner import JobPlan
from comd_operator.policies.children import Child
from comd_operator.policies.outcome import outcome
from comd_operator.policies.progress import progress_text

TRAINER_COMMAND = (sys.executable, "-m", "comd_trainer", "run")
_PR_SET_PDEATHSIG = 1


class TrainerProcess:
    """A Job of the local body."""

    def __init__(
        self,
        *,
        job: JobPlan,
        config: StageConfig,
        work: WorkDir,
        lock: TrainerLock,
        command: Sequence[str] = TRAINER_COMMAND,
    ) -> None:
        self.job = job
        self.log = work.log(job.name)
        folder = work.job(job.name)
        folder.mkdir(parents=True, exist_ok=True)
        self._termination, self._progress = folder / "termination.json", folder / "progress.json"
        for old in (self._termination, self._progress):
            old.unlink(missing_ok=True)
        replace_text(folder / "config.json", json.dumps(config.to_wire(), indent=1))
        argv = [
            *command,
            *("--config", str(folder / "config.json")),
            *("--termination-message", str(self._termination)),
            *("--scratch", str(work.scratch)),
            *("--progress", str(self._progress)),
        ]
        self._stop_asked = False
        self._ended: Child | None = None
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock.descriptor,),
                preexec_fn=_die_with_parent(),
            )
        lock.note(process=self._process.pid)

    def observe(self) -> Child:
        """The Job as it is now."""
        if self._ended is None and self._process.poll() is not None:
            self._ended = self._child_that_ended(self._process.returncode)
        if self._ended is not None:
            return self._ended
        return Child(
            name=self.job.name,
            stage=self.job.stage,
            attempt=self.job.attempt,
            job_index=self.job.job_index,
            state="Running",
            progress=progress_text(self.progress()),
        )

    def progress(self) -> Progress | None:
        """What the trainer last said of itself."""
        return read_progress(self._progress)

    def wait(self, seconds: float) -> None:
        """Until it ends, for so long at most."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=seconds)

    def ask_to_stop(self) -> None:
        """SIGTERM to the supervisor, which tells its phase to save and to end."""
        self._stop_asked = True
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the supervisor and all of its processes."""
        self._stop_asked = True
        kill_group(self._process.pid)
        self._process.wait()

    def stop(self, *, grace: float) -> None:
        """Asks, and after `grace` seconds does not ask any more."""
        self.ask_to_stop()
        self.wait(grace)
        if self._process.poll() is None:
            self.kill()

    def _child_that_ended(self, code: int) -> Child:
        kill_group(self._process.pid)  # as a container's end would: nothing outlives the supervisor
        try:
            message = self._termination.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            message = None
        found = outcome(code=code, termination_message=message, tail=log_tail(self.log), stop_asked=self._stop_asked)
        return Child(
            name=self.job.name,
            stage=self.job.stage,
            attempt=self.job.attempt,
            job_index=self.job.job_index,
            state="Succeeded" if found.exit_class == "Done" else "Failed",
            exit_class=found.exit_class,
            message=found.message,
            result=found.result,
            finished=datetime.now(UTC),
        )


def read_progress(path: Path) -> Progress | None:
    """None when nothing was said yet, or nothing that makes sense."""
    try:
        return Progress.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None


def kill_group(leader: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _die_with_parent() -> Callable[[], None] | None:
    """What the child does between fork and exec: ask the kernel for a SIGTERM when `comd run` ends, however it ends
    (Linux alone can)."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:
            os._exit(1)

    return prepare

"""The folder of a local run, and the two locks that keep writers apart.

WORK/status.yaml   the whole object (metadata, spec, status), replaced atomically
WORK/store/        stands in for the bucket
WORK/jobs/JOB/     config.json, progress.json and termination.json of each Job
WORK/logs/JOB.log  what the trainer wrote to stdout and stderr
WORK/scratch/      what may be lost; removed when the run has succeeded
WORK/student       link to the folder of the newest student
WORK/runner.lock   held by `comd run`; touched every second, so that the next one knows until when this one lived
WORK/trainer.lock  held by `comd run` and by the trainer that it started, for the trainer may live a little longer
"""

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from comd_api.exit_codes import UserError
from comd_api.run import DistillationRun
from comd_operator.validation.documents import format_document, read_documents
from comd_operator.validation.sentences import sentence


class WorkDir:
    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.status_file = self.root / "status.yaml"
        self.store = self.root / "store"
        self.scratch = self.root / "scratch"
        self.student = self.root / "student"

    def create(self) -> None:
        try:
            for folder in (self.root, self.store, self.scratch, self.root / "logs", self.root / "jobs"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--work-dir {self.root}: can't be made ({error.strerror})") from None

    def log(self, job: str) -> Path:
        return self.root / "logs" / f"{job}.log"

    def job(self, job: str) -> Path:
        return self.root / "jobs" / job

    def read_run(self) -> DistillationRun | None:
        """The object as it was last written; None when this folder holds no run yet."""
        if not self.status_file.exists():
            return None
        document = read_documents(self.status_file)[0]
        try:
            return DistillationRun.model_validate(document, by_alias=True, by_name=False)
        except ValidationError as error:
            problem = sentence(error.errors(include_url=False)[0], DistillationRun)
            raise UserError(f"{self.status_file}: {problem}; repair it, or use another --work-dir") from None

    def write_run(self, run: DistillationRun) -> None:
        replace_text(self.status_file, format_document(run.to_wire()))

    def last_alive(self) -> datetime | None:
        """When the last `comd run` here was last seen alive."""
        try:
            return datetime.fromtimestamp((self.root / "runner.lock").stat().st_mtime, UTC)
        except FileNotFoundError:
            return None

    def beat(self) -> None:
        os.utime(self.root / "runner.lock")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone in this folder. Raises UserError when another `comd run` is in it."""
        path = self.root / "runner.lock"
        try:
            file = path.open("a+")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"--work-dir {self.root}: can't be written to ({error.strerror}); use another one"
            ) from None
        with file:
            if not _try_lock(file.fileno()):
                file.seek(0)
                raise UserError(
                    f"--work-dir {self.root}: "
                    f"another comd run (process {file.read().strip() or 'unknown'}) is at work here; "
                    "wait for it, or use another --work-dir"
                )
            # What `last_alive` reads must outlive the note of our own process.
            stat = path.stat()
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            os.utime(path, (stat.st_atime, stat.st_mtime))
            yield


class TrainerLock:
    """Held as long as a trainer of this folder lives, whoever started it: the descriptor is inherited."""

    def __init__(self, work: WorkDir) -> None:
        self._file = (work.root / "trainer.lock").open("a+")
        self._work = work

    @property
    def descriptor(self) -> int:
        return self._file.fileno()

    def try_take(self) -> bool:
        return _try_lock(self._file.fileno())

    def take(self, *, patience: float, poll: float = 0.2) -> bool:
        """Waits for an orphan of an earlier `comd run` to end; False when it did not in time."""
        end = time.monotonic() + patience
        while not self.try_take():
            if time.monotonic() > end:
                return False
            time.sleep(poll)
        return True

    def note(self, *, process: int) -> None:
        """Who holds it, with its start time, so that no other process of that number is taken for it."""
        self._file.truncate(0)
        self._file.write(json.dumps({"process": process, "started": start_time(process)}))
        self._file.flush()

    def holder(self) -> int | None:
        """The trainer that was noted, when it still lives."""
        self._file.seek(0)
        try:
            noted = json.loads(self._file.read())
        except ValueError:
            return None
        return (
            noted["process"]
            if noted["started"] is not None and start_time(noted["process"]) == noted["started"]
            else None
        )

    def close(self) -> None:
        self._file.close()


def start_time(process: int) -> str | None:
    """A process's start in clock ticks since boot, which tells it from a later one with its number; None where /proc
    has none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def replace_text(path: Path, text: str) -> None:
    """Readers see the old file or the new one, also after a crash of the machine."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""Starts a phase as a fresh process group through torch's elastic launcher, forked from a server that has imported everything.

A process that imports torch, DeepSpeed and transformers takes many seconds to start. The fork server does that once for a stage,
touches no device, and forks the ranks of each phase in a fraction of a second; their memory is given back whole when they end.
"""

import json
import logging
import multiprocessing
import os
import threading
from multiprocessing import forkserver
from pathlib import Path

from comd_api.exit_codes import BadDataError, ComdError, ExitCode, TryAgainError, UserError
from comd_trainer.worker import PhaseJob, read_errors, run_rank

log = logging.getLogger(__name__)

PRELOAD = ["comd_trainer.preload"]


def warm_up() -> None:
    """Starts the fork server, which goes on importing while the caller does something else."""
    multiprocessing.set_forkserver_preload(PRELOAD)
    forkserver.ensure_running()


def launch(job: PhaseJob, *, num_proc: int, stop: threading.Event, grace_seconds: float) -> None:
    """Runs the ranks of a phase and waits for them.

    Raises:
        ComdError: what the ranks said went wrong, with its exit code.
    """
    folder = Path(job.folder)
    for name in ("out", "scratch", "errors"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for stale in [*(folder / "errors").iterdir(), folder / "stop"]:
        stale.unlink(missing_ok=True)
    outcome: dict[str, BaseException] = {}
    # In a thread of its own, because torch's launcher would otherwise take over SIGTERM and kill the ranks before they could save.
    thread = threading.Thread(target=_elastic, args=(job, num_proc, outcome), name=f"launch-{job.phase}", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.05)
        if stop.is_set():
            (folder / "stop").touch()
            thread.join(timeout=grace_seconds)
            break
    if thread.is_alive():
        raise TryAgainError(
            f"phase {job.phase} did not stop within {grace_seconds:g} s; the next attempt goes on from its last checkpoint"
        )
    if "error" in outcome:
        raise _error_of(job, outcome["error"])


def _elastic(job: PhaseJob, num_proc: int, outcome: dict[str, BaseException]) -> None:
    # Imported here: it imports torch, which the supervisor itself needs for nothing else.
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What it would log is the ranks' own account again, with a traceback of itself.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_proc,
        run_id=f"{job.phase}-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.02,
        start_method="forkserver",
    )
    try:
        elastic_launch(config, run_rank)(job)
    except BaseException as error:
        outcome["error"] = error


def _error_of(job: PhaseJob, raised: BaseException) -> ComdError:
    """The ranks' own account where there is one; else what the launcher saw, such as the signal that killed a rank."""
    accounts = read_errors(Path(job.folder))
    if accounts:
        kinds: dict[ExitCode, type[ComdError]] = {
            ExitCode.USER_ERROR: UserError,
            ExitCode.BAD_DATA: BadDataError,
            ExitCode.TRY_AGAIN: TryAgainError,
        }
        first = accounts[0]
        return kinds.get(ExitCode(first["code"]), ComdError)(first["message"])
    failures = getattr(raised, "failures", None)
    if failures:
        rank, failure = min(failures.items())
        if failure.exitcode == -9:
            return KilledError(
                f"phase {job.phase}: rank {rank} was killed (signal 9); the usual cause is that memory ran out"
            )
        return ComdError(f"phase {job.phase}: rank {rank} ended with exit code {failure.exitcode}")
    return ComdError(f"phase {job.phase}: {type(raised).__name__}: {json.dumps(str(raised))}")


class KilledError(ComdError):
    """A rank got SIGKILL. Nothing but the kernel's out-of-memory killer does that inside a pod."""

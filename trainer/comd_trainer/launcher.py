"""Starts a phase as a fresh process group through torch's elastic launcher, forked from a server that has imported everything.

A process that imports torch, DeepSpeed and transformers takes many seconds to start. The fork server does that once for a stage,
touches no device, and forks the ranks of each phase in a fraction of a second; their memory is given back whole when they end.
"""

import json
import logging
import math
import multiprocessing
import os
import threading
import time
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Protocol

from comd_api.exit_codes import BadDataError, ComdError, ExitCode, TryAgainError, UserError
from comd_api.status import ExitClass
from comd_trainer.context import PreemptedError
from comd_trainer.worker import OUT_OF_MEMORY, PhaseJob, kind_of, read_errors, run_rank

log = logging.getLogger(__name__)

PRELOAD = ["comd_trainer.preload"]
POLL_SECONDS = 0.05
ABORT_SECONDS = 10.0
"""What ranks have to save and to end, when another node's end has made theirs pointless."""
MEETING_SECONDS = 300
"""Until the launchers of all nodes have met. Their supervisors have, when a phase begins."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which of a phase's ranks run here. They are counted node by node: those of node 0 come first."""

    num_proc: int
    """On every node."""
    node: int = 0
    num_nodes: int = 1
    meeting: str = ""
    """`host:port` on node 0 where the ranks of several nodes find each other."""


class Peers(Protocol):
    """What the launcher has to know of other nodes."""

    def over(self) -> bool:
        """Whether the stage has ended elsewhere."""
        ...

    def report(self, error: ComdError) -> None:
        """Lets the other nodes know, before this one has ended."""
        ...


def warm_up() -> None:
    """Starts the fork server, which goes on importing while the caller does something else."""
    multiprocessing.set_forkserver_preload(PRELOAD)
    forkserver.ensure_running()


def launch(
    job: PhaseJob, *, layout: Layout, stop: threading.Event, grace_seconds: float, peers: Peers | None = None
) -> None:
    """Runs this node's ranks of a phase and waits for them.

    Ranks are asked to save and to end when `stop` is set, when one of them has failed, and when another node has.

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
    thread = threading.Thread(target=_elastic, args=(job, layout, outcome), name=f"launch-{job.phase}", daemon=True)
    thread.start()
    _watch(thread, folder, stop=stop, grace_seconds=grace_seconds, peers=peers)
    if thread.is_alive():
        # Nobody waits for them any longer, least of all multiprocessing at this process's exit.
        for rank in multiprocessing.active_children():
            rank.kill()
        thread.join(timeout=1.0)
        raise TryAgainError(
            f"phase {job.phase} was told to stop, did not within {grace_seconds:g} s and was killed; "
            "the next attempt goes on from its last checkpoint"
        )
    if "error" in outcome:
        raise _error_of(job, outcome["error"], stop_asked=stop.is_set())


def _watch(
    thread: threading.Thread, folder: Path, *, stop: threading.Event, grace_seconds: float, peers: Peers | None
) -> None:
    """Until the ranks have ended or have no more time to. A failed rank makes torch's launcher kill the others after half a minute;
    that others are told at once lets them save what they have."""
    told, deadline = False, math.inf
    while thread.is_alive() and time.monotonic() < deadline:
        thread.join(timeout=POLL_SECONDS)
        now = time.monotonic()
        if stop.is_set():
            deadline = min(deadline, now + grace_seconds)
        if peers is not None and peers.over():
            deadline = min(deadline, now + ABORT_SECONDS)
        if not told and (deadline < math.inf or any((folder / "errors").glob("rank-*.json"))):
            told = True
            (folder / "stop").touch()
            accounts = read_errors(folder, stop_asked=stop.is_set())
            if peers is not None and accounts and accounts[0]["kind"] == "cause":
                peers.report(_told(accounts[0]))


def _elastic(job: PhaseJob, layout: Layout, outcome: dict[str, BaseException]) -> None:
    # Imported here: it imports torch, which the supervisor itself needs for nothing else.
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What it would log is the ranks' own account again, with a traceback of itself.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=layout.num_nodes,
        max_nodes=layout.num_nodes,
        nproc_per_node=layout.num_proc,
        max_restarts=0,
        monitor_interval=0.02,
        start_method="forkserver",
        **_rendezvous(job, layout),
    )
    try:
        elastic_launch(config, run_rank)(job)
    except BaseException as error:
        outcome["error"] = error


def _rendezvous(job: PhaseJob, layout: Layout) -> dict[str, Any]:
    """Where the ranks meet: several nodes in a store on node 0, whose place and members are known; a single one wherever it likes."""
    if layout.num_nodes == 1:
        return {
            "run_id": f"{job.phase}-{os.getpid()}",
            "rdzv_backend": "c10d",
            "rdzv_endpoint": "127.0.0.1:0",
            "local_addr": "127.0.0.1",
        }
    return {
        "run_id": f"{job.phase}-{job.key[:16]}",
        "rdzv_backend": "static",
        "rdzv_endpoint": layout.meeting,
        "rdzv_configs": {"rank": layout.node, "timeout": MEETING_SECONDS},
    }


def _error_of(job: PhaseJob, raised: BaseException, *, stop_asked: bool) -> ComdError:
    """The ranks' own account where there is one; else what the launcher saw, such as the signal that killed a rank."""
    accounts = read_errors(Path(job.folder), stop_asked=stop_asked)
    failures = getattr(raised, "failures", None)
    rank, failure = min(failures.items()) if failures else (None, None)
    if failure is not None and failure.exitcode < 0 and all(account["kind"] == "lost" for account in accounts):
        if failure.exitcode == -9:
            return KilledError(
                f"phase {job.phase}: rank {rank} was killed (signal 9); the usual cause is that memory ran out"
            )
        return ComdError(f"phase {job.phase}: rank {rank} was ended by signal {-failure.exitcode}")
    if accounts:
        return _told(accounts[0])
    if failure is not None:
        return _KINDS.get(failure.exitcode, ComdError)(
            f"phase {job.phase}: rank {rank} ended with exit code {failure.exitcode} and could not say why"
        )
    kind: type[ComdError] = LostPeerError if kind_of(raised) == "lost" else ComdError
    return kind(f"phase {job.phase}: {type(raised).__name__}: {json.dumps(str(raised))}")


_KINDS: dict[int, type[ComdError]] = {
    ExitCode.USER_ERROR: UserError,
    ExitCode.BAD_DATA: BadDataError,
    ExitCode.TRY_AGAIN: TryAgainError,
}


def _told(account: dict[str, Any]) -> ComdError:
    """A rank's account as the error that it was."""
    if account["kind"] == "stopped":
        return PreemptedError(account["message"])
    if account["kind"] == "lost":
        return LostPeerError(account["message"])
    return _KINDS.get(account["code"], ComdError)(account["message"])


class KilledError(ComdError):
    """A rank got SIGKILL. Nothing but the kernel's out-of-memory killer does that inside a pod."""


class LostPeerError(ComdError):
    """No rank of this node says more than that another one had gone."""


class ElsewhereError(ComdError):
    """Another node is the reason why this one ended. It ends as that one does: which of their pods the operator hears of first must not
    decide whether an attempt costs a retry."""

    def __init__(self, message: str, *, exit_class: ExitClass) -> None:
        super().__init__(message)
        self.exit_class = exit_class
        self.exit_code = next((code for code, name in _CLASSES.items() if name == exit_class), ExitCode.FAILED)


_CLASSES: dict[ExitCode, ExitClass] = {
    ExitCode.DONE: "Done",
    ExitCode.USER_ERROR: "UserError",
    ExitCode.BAD_DATA: "BadData",
    ExitCode.TRY_AGAIN: "TryAgain",
    ExitCode.FAILED: "Failed",
}


def exit_class_of(code: ExitCode, error: BaseException) -> ExitClass:
    """What the operator calls an end with this code, which has no room for memory that ran out."""
    if isinstance(error, ElsewhereError):
        return error.exit_class
    if isinstance(error, KilledError | MemoryError) or str(error).startswith(OUT_OF_MEMORY):
        return "OutOfMemory"
    return _CLASSES[code]

"""One rank of a phase: what runs in the processes that the launcher forks."""

import ctypes
import errno
import json
import logging
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Literal

from comd_api.exit_codes import ComdError, ExitCode
from comd_api.stage import StageConfig
from comd_api.status import ArtifactRef, PhaseName
from comd_trainer.context import PreemptedError

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
OUT_OF_MEMORY = ("out of memory", "out of GPU memory")
"""How the sentences begin that tell of it: an exit code has no room for the difference."""
COLLECTIVE_TIMEOUT = timedelta(hours=1)
"""How long a rank waits for the others. Said aloud, because the libraries' defaults differ and one rank's slow upload is no hang."""
LINGER_SECONDS = 1.0
"""A rank whose peer is gone stays so long, that the launcher meets the one that went first: its signal says why."""

Kind = Literal["cause", "stopped", "lost"]
"""Of an end: for a reason of its own; because it was asked to; because another rank had gone."""
LOST_PEER_TYPES = ("DistBackendError", "DistNetworkError", "DistStoreError")
LOST_PEER_SIGNS = ("/gloo/", "[c10d]", "NCCL error", "ncclRemoteError")


@dataclass(frozen=True, kw_only=True)
class PhaseJob:
    """What a rank has to know, small enough to be pickled to it."""

    config: str
    """`StageConfig` as JSON."""
    phase: PhaseName
    key: str
    artifacts: dict[str, dict[str, Any]]
    """`ArtifactRef` by name, as JSON objects."""
    fingerprints: dict[str, str]
    folder: str
    """This phase's working folder on this node: `out`, `scratch`, `errors`, `progress.json`, `metrics-*.json`, `stop`."""
    cache: str
    partial: str


def run_rank(job: PhaseJob) -> None:
    """Runs one rank and leaves an account of its error, if any, where the launcher looks.

    Torch's elastic launcher calls it with RANK, WORLD_SIZE, LOCAL_RANK and the rendezvous in the environment.
    """
    _die_with_parent()
    # Phases are asked to stop through a file, on which all ranks can agree; on a signal in the middle of a collective they can't.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rank = int(os.environ["RANK"])
    try:
        _run(job, rank)
    except BaseException as error:
        code, message = describe_error(error)
        kind = kind_of(error)
        if code == ExitCode.FAILED and kind == "cause":
            traceback.print_exc()
        if kind == "lost":
            message = f"phase {job.phase}: rank {rank} lost its connection to another rank ({message[:300]})"
            log.warning("%s", message)
        # On a disk that is full there is the exit code alone.
        with suppress(OSError):
            account = {"code": int(code), "message": message, "kind": kind, "rank": rank, "time": time.time()}
            _leave_account(Path(job.folder), account)
        sys.stderr.flush()
        if kind == "lost":
            time.sleep(LINGER_SECONDS)
        # Skips finalizers that would wait for the other ranks.
        os._exit(int(code))


def _leave_account(folder: Path, account: dict[str, Any]) -> None:
    """Whole or not at all, for the launcher looks while ranks are still ending."""
    file = folder / "errors" / f"rank-{account['rank']}.json"
    file.with_suffix(".partial").write_text(json.dumps(account))
    os.replace(file.with_suffix(".partial"), file)


def kind_of(error: BaseException) -> Kind:
    """Torch has no type of its own for a peer that is gone: gloo's and NCCL's errors are known by where they come from."""
    if isinstance(error, PreemptedError):
        return "stopped"
    if isinstance(error, ComdError):
        return "cause"
    if type(error).__name__ in LOST_PEER_TYPES or any(sign in str(error) for sign in LOST_PEER_SIGNS):
        return "lost"
    return "cause"


def describe_error(error: BaseException) -> tuple[ExitCode, str]:
    """Exit code and one sentence for an error that ended a phase."""
    if isinstance(error, ComdError):
        return error.exit_code, str(error)
    if is_disk_full(error):
        where = getattr(error, "filename", None) or "the scratch folder"
        # A volume that is too small is so each time; where others have filled the node's disk, its kubelet evicts.
        return ExitCode.FAILED, f"no space left on the disk at {where}; free some or give a larger volume"
    if isinstance(error, MemoryError):
        return (
            ExitCode.FAILED,
            f"{OUT_OF_MEMORY[0]}; lower training.microBatchSize or generation batch sizes, or give the stage more memory",
        )
    if type(error).__name__ == "OutOfMemoryError":
        return (
            ExitCode.FAILED,
            f"{OUT_OF_MEMORY[1]}; lower training.microBatchSize or the batch sizes of generation, "
            "raise training.deepspeed.zeroStage, or use more GPUs",
        )
    return ExitCode.FAILED, f"{type(error).__name__}: {error}"


def is_disk_full(error: BaseException) -> bool:
    """Also as safetensors (Rust) and torch's writer tell it, which raise no OSError."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(sign in str(error) for sign in ("No space left on device", "PytorchStreamWriter failed writing"))


def _run(job: PhaseJob, rank: int) -> None:
    import torch
    import torch.distributed as dist

    from comd_trainer.context import PROGRESS_FILE, PhaseContext, Progress, raise_if_there, use_devices
    from comd_trainer.logs import configure
    from comd_trainer.memory import measure_memory
    from comd_trainer.metrics import handed_over
    from comd_trainer.phases import phase_module
    from comd_trainer.store.artifacts import open_ref
    from comd_trainer.store.sources import Sources
    from comd_trainer.store.stores import open_store

    config = StageConfig.model_validate_json(job.config)
    configure(run=config.run, stage=config.stage, phase=job.phase, attempt=config.attempt, rank=rank)
    storage = config.spec.storage
    assert storage is not None, "the planner sets storage"
    local_rank = int(os.environ["LOCAL_RANK"])
    device = use_devices(local_rank)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])))
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=COLLECTIVE_TIMEOUT)
    folder, cache = Path(job.folder), Path(job.cache)
    check = partial(raise_if_there, folder / "stop")
    store = open_store(storage.uri, storage.s3, check=check)
    ctx = PhaseContext(
        config=config,
        store=store,
        sources=Sources(storage, store, cache, check),
        artifacts={
            name: open_ref(ArtifactRef.model_validate(ref), store=store, cache_dir=cache)
            for name, ref in job.artifacts.items()
        },
        fingerprints=job.fingerprints,
        out=folder / "out",
        scratch=folder / "scratch",
        partial=job.partial,
        progress=Progress(path=folder / PROGRESS_FILE if rank == 0 else None),
        stop_file=folder / "stop",
        rank=rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        local_rank=local_rank,
        num_local_ranks=int(os.environ["LOCAL_WORLD_SIZE"]),
    )
    with handed_over(folder, rank=rank, sample=partial(measure_memory, device)):
        phase_module(job.phase).run(ctx)
    dist.barrier()
    dist.destroy_process_group()


def _die_with_parent() -> None:
    """The fork server ends when nobody holds its pipe any more, that is with the supervisor: ranks are given the pipe too and let go of
    it. They must not outlive either and go on writing."""
    pipe = forkserver._forkserver._forkserver_alive_fd  # type: ignore[attr-defined]
    if pipe is not None:
        os.close(pipe)
        forkserver._forkserver._forkserver_alive_fd = None  # type: ignore[attr-defined]
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def read_errors(folder: Path, *, stop_asked: bool = False) -> list[dict[str, Any]]:
    """What the ranks said, the one that says most first: user errors and bad data before what they made the other ranks stumble over,
    and of equal ones the earliest. A rank that was stopped or lost a peer says the least, except that after `stop_asked` being
    stopped is the reason."""
    accounts = [json.loads(path.read_text()) for path in sorted((folder / "errors").glob("rank-*.json"))]
    codes = [ExitCode.USER_ERROR, ExitCode.BAD_DATA, ExitCode.TRY_AGAIN, ExitCode.FAILED]

    def place(account: dict[str, Any]) -> tuple[float, float]:
        weights = {"stopped": 1.5 if stop_asked else 4.0, "lost": 5.0}
        return weights.get(account["kind"], codes.index(ExitCode(account["code"]))), account["time"]

    return sorted(accounts, key=place)

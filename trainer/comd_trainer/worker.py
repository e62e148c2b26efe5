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
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from comd_api.exit_codes import ComdError, ExitCode
from comd_api.stage import StageConfig
from comd_api.status import ArtifactRef, PhaseName

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
OUT_OF_MEMORY = ("out of memory", "out of GPU memory")
"""How the sentences begin that tell of it: an exit code has no room for the difference."""
COLLECTIVE_TIMEOUT = timedelta(hours=1)
"""How long a rank waits for the others. Said aloud, because the libraries' defaults differ and one rank's slow upload is no hang."""


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
    """This phase's working folder: `out`, `scratch`, `errors`, `progress.json`, `stop`."""
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
        if code in (ExitCode.FAILED,):
            traceback.print_exc()
        account = {"code": int(code), "message": message, "rank": rank, "time": time.time()}
        errors = Path(job.folder) / "errors"
        (errors / f"rank-{rank}.json").write_text(json.dumps(account))
        sys.stderr.flush()
        # Skips finalizers that would wait for the other ranks.
        os._exit(int(code))


def describe_error(error: BaseException) -> tuple[ExitCode, str]:
    """Exit code and one sentence for an error that ended a phase."""
    if isinstance(error, ComdError):
        return error.exit_code, str(error)
    if is_disk_full(error):
        where = getattr(error, "filename", None) or "the scratch folder"
        return ExitCode.TRY_AGAIN, f"no space left on the disk at {where}; free some or give a larger volume"
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

    from comd_trainer.context import PhaseContext, Progress, use_devices
    from comd_trainer.logs import configure
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
    store = open_store(storage.uri, storage.s3)
    ctx = PhaseContext(
        config=config,
        store=store,
        sources=Sources(storage, store, cache),
        artifacts={
            name: open_ref(ArtifactRef.model_validate(ref), store=store, cache_dir=cache)
            for name, ref in job.artifacts.items()
        },
        fingerprints=job.fingerprints,
        out=folder / "out",
        scratch=folder / "scratch",
        partial=job.partial,
        progress=Progress(path=folder / "progress.json" if rank == 0 else None),
        stop_file=folder / "stop",
        rank=rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        local_rank=local_rank,
    )
    phase_module(job.phase).run(ctx)
    dist.barrier()
    dist.destroy_process_group()


def _die_with_parent() -> None:
    """The fork server ends when the supervisor does; its children must not outlive it and go on writing."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def read_errors(folder: Path) -> list[dict[str, Any]]:
    """What the ranks said, the one that says most first: user errors and bad data before what they made the other ranks stumble over,
    and of equal ones the earliest, for a lost peer is noticed after it was lost."""
    accounts = [json.loads(path.read_text()) for path in sorted((folder / "errors").glob("rank-*.json"))]
    order = [ExitCode.USER_ERROR, ExitCode.BAD_DATA, ExitCode.TRY_AGAIN, ExitCode.FAILED]
    return sorted(accounts, key=lambda account: (order.index(ExitCode(account["code"])), account["time"]))

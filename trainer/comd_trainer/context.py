"""What a phase is given. The supervisor makes it, the phases and their tests use it."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comd_api.exit_codes import TryAgainError
from comd_api.run import RunSpec
from comd_api.stage import StageConfig
from comd_trainer.store.artifacts import Artifact
from comd_trainer.store.sources import Sources
from comd_trainer.store.stores import Store

PROGRESS_FILE = "progress.json"


class PreemptedError(TryAgainError):
    """The phase was asked to stop and has saved what it had."""


@dataclass(kw_only=True)
class Progress:
    """Tells the supervisor how far a phase is, through a file that is replaced at most twice a second. Rank 0 alone writes."""

    path: Path | None = None
    """None: nobody listens."""
    total: int = 0
    unit: str = "items"
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    metrics: dict[str, Any] = field(default_factory=dict)
    _already_done: int = 0
    _written: float = 0.0

    def start(self, *, total: int, unit: str, done: int = 0) -> None:
        """Begins to count. `done` is what an earlier attempt had finished; it does not count towards the rate."""
        self.total, self.unit, self.done = total, unit, done
        self._already_done, self.started = done, time.monotonic()
        self._write(force=True)

    def update(self, *, done: int, **metrics: Any) -> None:
        self.done = done
        self.metrics.update(metrics)
        self._write(force=done >= self.total)

    def _write(self, *, force: bool) -> None:
        now = time.monotonic()
        if self.path is None or not (force or now - self._written > 0.5):
            return
        self._written = now
        elapsed = now - self.started
        fresh = self.done - self._already_done
        rate = fresh / elapsed if fresh > 0 and elapsed > 0 else None
        state = {
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "rate": rate,
            "secondsLeft": (self.total - self.done) / rate if rate else None,
            "metrics": self.metrics,
            "time": time.time(),
        }
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(state))
        os.replace(partial, self.path)


@dataclass(frozen=True, kw_only=True)
class PhaseContext:
    """Everything a phase reads, and where it writes. One for each rank."""

    config: StageConfig
    store: Store
    """Rooted at `spec.storage.uri`."""
    sources: Sources
    """Resolves the manifest's sources (data and models) to local files."""
    artifacts: Mapping[str, Artifact]
    """By name. Of earlier stages: `preflight`, `student`, `pools`. Of this stage: the phases that have run (`teach`, `tune` …)."""
    fingerprints: Mapping[str, str]
    """Content digest of every source in the manifest, taken by `preflight`."""
    out: Path
    """Empty folder: what rank 0 leaves here becomes the phase's artifact."""
    scratch: Path
    """Folder for what may be lost, shared by the ranks of a node. Nodes share the store and nothing else."""
    partial: str
    """Prefix in the store for what makes a retry cheap (checkpoints); empty once the artifact exists."""
    progress: Progress = field(default_factory=Progress)
    stop_file: Path | None = None
    """Appears when the phase shall stop."""
    rank: int = 0
    """Among those of all nodes, node by node."""
    world_size: int = 1
    local_rank: int = 0
    """Among those of this node."""
    num_local_ranks: int = 1
    """On this node."""

    @property
    def spec(self) -> RunSpec:
        """Resolved: every field that a profile decides is set."""
        return self.config.spec

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def stop_asked(self) -> bool:
        """Whether this rank was told to stop. Ranks may learn it at different times: agree before acting on it."""
        return self.stop_file is not None and self.stop_file.exists()

    def raise_if_stopped(self) -> None:
        """For loops without collectives, whose finished work is saved already."""
        if self.stop_file is not None:
            raise_if_there(self.stop_file)

    def set_meta(self, meta: Mapping[str, Any]) -> None:
        """Facts for the manifest: `counts`, `scores`, `stop` go into the stage's result. Rank 0 alone calls it."""
        (self.scratch / "meta.json").write_text(json.dumps(dict(meta)))


def raise_if_there(stop_file: Path) -> None:
    """The same before there is a context, such as while a store fetches what it is made of."""
    if stop_file.exists():
        raise PreemptedError("stopped by request; what was finished is kept and the next attempt goes on from there")


def use_devices(local_rank: int) -> str:
    """Device of this rank: `cuda:N` where there is one, else `cpu`."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        return f"cuda:{local_rank}"
    return "cpu"

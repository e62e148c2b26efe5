"""Checkpoints that a retry continues from, exactly: same losses, same weights.

Every rank writes its share to local disk and puts it into the store as an artifact of its own, manifest last; a checkpoint is
complete when the shares of all ranks are there. No rank waits for another one's upload (time-outs while
rank 0 writes). The newest complete one wins, and older ones are deleted when a newer one is complete.
"""

import json
import logging
import random
import re
import shutil
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from comd_trainer import metrics
from comd_trainer.context import PhaseContext
from comd_trainer.engine.restricted import RestrictedCheckpointEngine
from comd_trainer.store.artifacts import Artifact, open_artifact, publish

log = logging.getLogger(__name__)

TAG = "state"
_NAME = re.compile(r"step-(\d{8})-([0-9a-f]{8})/rank-(\d{5})/manifest\.json$")


@dataclass(kw_only=True)
class TrainState:
    """What a run of steps is, apart from weights and optimizer. Equal on all ranks, except for `dropped`."""

    step: int = 0
    """Optimizer steps done; the position in the data follows from it."""
    losses: list[float] = field(default_factory=list)
    """Of every step so far."""
    num_tokens: int = 0
    """Supervised tokens so far, over all ranks."""
    num_dropped: int = 0
    """Rows left out so far, over all ranks; one that comes back in the next epoch counts again."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Those that this rank met: id and reason."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A complete checkpoint in the store."""

    step: int
    attempt: str
    """Told apart by the attempt that wrote it, so that shares of two attempts never mix."""
    world_size: int


class Checkpoints:
    """The checkpoints of one phase, below `ctx.partial`; those of each ZeRO stage and number of ranks by themselves, for none can read
    another's, and the phase's key leaves both out (who ran out of memory may raise them, and then begins the phase again)."""

    def __init__(self, ctx: PhaseContext, *, zero_stage: int) -> None:
        self._ctx = ctx
        self._prefix = f"{ctx.partial}/checkpoints/zero-{zero_stage}-ranks-{ctx.world_size}"
        self._attempt = _agreed(uuid.uuid4().hex[:8])
        self._cache = ctx.scratch / f"checkpoint-cache-{ctx.rank:05d}"

    def save(self, engine: Any, state: TrainState) -> None:
        """Collective. Returns when this rank's share is in the store."""
        ctx = self._ctx
        began = time.monotonic()
        folder = ctx.scratch / f"checkpoint-{state.step:08d}-rank-{ctx.rank:05d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        engine.save_checkpoint(str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=True)
        (folder / "state.json").write_text(json.dumps(asdict(state)))
        _save_random_state(folder / "random.safetensors")
        self._prune()
        share = publish(
            ctx.store,
            prefix=self._share(state.step, self._attempt, ctx.rank),
            kind="checkpoint",
            key=f"{state.step}-{self._attempt}-{ctx.rank}",
            folder=folder,
            meta={"step": state.step, "rank": ctx.rank, "worldSize": ctx.world_size},
            cache_dir=self._cache,
        )
        shutil.rmtree(folder, ignore_errors=True)
        # A bucket's artifacts stay in this node's cache for who reads them next; a checkpoint is read after a restart if ever.
        shutil.rmtree(self._cache, ignore_errors=True)
        self._count("save", share, began=began)

    def resume(self, engine: Any) -> TrainState:
        """Collective. Loads the newest complete checkpoint into `engine`; a fresh state when there is none."""
        ctx = self._ctx
        found = _agreed(self.newest() if ctx.is_first else None)
        if found is None:
            return TrainState()
        began = time.monotonic()
        own = self._open_share(found, ctx.rank)
        folder = ctx.scratch / f"resume-rank-{ctx.rank:05d}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(own.folder(), folder, symlinks=False, copy_function=_link)
        if ctx.rank != 0:
            # Weights that every rank has are in the share of rank 0 alone.
            shared = self._open_share(found, 0).folder()
            (folder / TAG).mkdir(exist_ok=True)
            for path in sorted((shared / TAG).glob("mp_rank_*")):
                _link(path, folder / TAG / path.name)
        engine.checkpoint_engine = RestrictedCheckpointEngine(engine.checkpoint_engine)
        loaded, _ = engine.load_checkpoint(
            str(folder), tag=TAG, load_module_strict=False, load_lr_scheduler_states=False
        )
        assert loaded is not None, f"a complete checkpoint of step {found.step} did not load"
        _load_random_state(folder / "random.safetensors")
        state = TrainState(**json.loads((folder / "state.json").read_text()))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self._cache, ignore_errors=True)
        self._count("load", own, began=began)
        log.info("continues from the checkpoint of step %d", state.step)
        return state

    def _count(self, direction: Literal["save", "load"], share: Artifact, *, began: float) -> None:
        num_bytes = sum(entry.size for entry in share.manifest.files)
        metrics.add(metrics.CHECKPOINT_BYTES, num_bytes, direction=direction)
        if self._ctx.is_first:
            metrics.add(metrics.CHECKPOINTS, direction=direction)
            metrics.add(metrics.CHECKPOINT_SECONDS, time.monotonic() - began, direction=direction)

    def newest(self) -> Found | None:
        """The complete checkpoint with the most steps."""
        return max(self._complete(), key=lambda found: (found.step, found.attempt), default=None)

    def _complete(self) -> list[Found]:
        shares: dict[tuple[int, str], set[int]] = {}
        for stored in self._ctx.store.list(self._prefix):
            if match := _NAME.search(stored.path):
                shares.setdefault((int(match[1]), match[2]), set()).add(int(match[3]))
        complete = []
        for (step, attempt), ranks in sorted(shares.items()):
            first = self._open(self._share(step, attempt, min(ranks)))
            world_size = int(first.meta["worldSize"]) if first else -1
            if ranks == set(range(world_size)):
                complete.append(Found(step=step, attempt=attempt, world_size=world_size))
        return complete

    def _prune(self) -> None:
        """Deletes what is older than the newest complete checkpoint, torn ones included. Rank 0's work."""
        newest = self.newest() if self._ctx.is_first else None
        if newest is None:
            return
        stale: dict[str, list[str]] = {}
        for stored in self._ctx.store.list(self._prefix):
            match = re.search(r"step-(\d{8})-([0-9a-f]{8})/", stored.path)
            if match and (int(match[1]), match[2]) < (newest.step, newest.attempt):
                stale.setdefault(match[0], []).append(stored.path)
        for paths in stale.values():
            # Manifests first: a deletion that is cut short must not leave something that looks complete.
            for path in sorted(paths, key=lambda path: not path.endswith("manifest.json")):
                self._ctx.store.delete(path)

    def _open_share(self, found: Found, rank: int) -> Artifact:
        artifact = self._open(self._share(found.step, found.attempt, rank))
        assert artifact is not None, "a complete checkpoint has the shares of all ranks"
        return artifact

    def _open(self, prefix: str) -> Artifact | None:
        return open_artifact(self._ctx.store, prefix, cache_dir=self._cache)

    def _share(self, step: int, attempt: str, rank: int) -> str:
        return f"{self._prefix}/step-{step:08d}-{attempt}/rank-{rank:05d}"


def _agreed(value: Any) -> Any:
    """Rank 0's value, on all ranks."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _link(source: str | Path, target: str | Path) -> str:
    Path(target).symlink_to(Path(source).resolve())
    return str(target)


def _save_random_state(path: Path) -> None:
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    assert kind == "MT19937"
    state = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64))}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    version, words, gauss_next = random.getstate()
    extra = {"numpy": [int(position), int(has_gauss), float(gauss)], "python": [version, list(words), gauss_next]}
    save_file(state, path, metadata={"extra": json.dumps(extra)})


def _load_random_state(path: Path) -> None:
    from safetensors import safe_open

    state = load_file(path)
    with safe_open(path, framework="pt") as file:
        extra = json.loads(file.metadata()["extra"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    position, has_gauss, gauss = extra["numpy"]
    np.random.set_state(("MT19937", state["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, gauss_next = extra["python"]
    random.setstate((version, tuple(words), gauss_next))

"""Runs a training phase's loop in ranks of their own on a tiny LLaVA, forked from a server that has imported everything."""

import json
import multiprocessing
import os
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from comd_api.recipe import Component, DeepSpeed, Packing, Training
from comd_api.run import S3Options
from comd_trainer.context import PhaseContext, PreemptedError
from comd_trainer.store.file_store import FileStore
from comd_trainer.store.stores import open_store

SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["comd_trainer.preload", "tests.tiny"])
Precision = Literal["bf16", "fp16", "fp32"]
NUM_ROWS = 20
BATCH_SIZE = 8
NUM_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run of the loop: what is varied, and what shall go wrong."""

    name: str
    stage: int = 2
    precision: Precision = "fp32"
    micro: int = 4
    steps: int = NUM_STEPS
    checkpoint_steps: int = 100
    checkpointing: bool = False
    packing: int | None = None
    """Tokens of a packed sequence."""
    chunk_logits: int | None = None
    """In place of `loss.CHUNK_LOGITS`."""
    trainable: tuple[Component, ...] = ("Projector", "LanguageModel")
    stop_rank: int = 0
    stop_at: int | None = None
    """The rank `stop_rank` is asked to stop before this step (from 0)."""
    kill_rank: int = 0
    kill_at_step: int | None = None
    """SIGKILL in the middle of this step (from 0), when its rows are there and the others wait for their number."""
    kill_at_write: int | None = None
    """SIGKILL at the rank's n-th write to the store: in the middle of a checkpoint."""
    model: str = "MLP/llava"
    poisoned: bool = False
    """A weight is not a number."""
    max_length: int = 2048


def run_ranks(cases: list[Case], *, folder: Path, world_size: int) -> list[int]:
    """Runs all `cases` one after the other in one group of ranks; returns the ranks' exit codes. Each case leaves
    `folder/<name>/result.json` and `folder/<name>/out`."""
    for case in cases:
        for name in ("out", "scratch", "store"):
            (folder / case.name / name).mkdir(parents=True, exist_ok=True)
    meeting = folder / f"meeting-{len(list(folder.glob('meeting-*')))}"
    processes = [
        SPAWN.Process(target=_rank, args=(cases, str(folder), str(meeting), rank, world_size))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=240)
        if process.is_alive():
            process.kill()
            process.join()
    return [int(process.exitcode or 0) for process in processes]


def result(folder: Path, case: Case) -> dict[str, Any]:
    return dict(json.loads((folder / case.name / "result.json").read_text()))


def weights(folder: Path, case: Case) -> bytes:
    return (folder / case.name / "out" / "model.safetensors").read_bytes()


def plain(case: Case, name: str) -> Case:
    """The same case with nothing going wrong, for another attempt or as what it should come to."""
    return replace(case, name=name, stop_at=None, kill_at_step=None, kill_at_write=None)


def rows() -> list[Any]:
    """Rows with answers of unequal length; some without image, and whole micro-batches of them."""
    from comd_trainer.engine.batches import Example
    from tests.tiny import ask

    def turns(number: int) -> Any:
        return ask("And now?", "What is it?", "a square") if number % 4 == 1 else ask(f"What is the color of {number}?")

    return [
        Example(
            id=f"row-{number}",
            image=None if number % 3 == 0 else str(number),
            turns=turns(number),
            answer="the image is " + "red " * (number * 7 % 11) + "blue",
            complete=number % 5 != 0,
        )
        for number in range(NUM_ROWS)
    ]


def _rank(cases: list[Case], folder: str, meeting: str, rank: int, world_size: int) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)
    try:
        for case in cases:
            _run(case, Path(folder), rank, world_size)
    except BaseException:
        import traceback

        traceback.print_exc()
        (Path(folder) / f"error-{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)  # As the worker does: no finalizer that waits for the other ranks.
    dist.destroy_process_group()


def _run(case: Case, folder: Path, rank: int, world_size: int) -> None:
    from comd_trainer.engine import loss
    from comd_trainer.engine.loop import Plan, train
    from comd_trainer.models.freeze import freeze
    from comd_trainer.models.save import save_model
    from tests.tiny import load_tiny, tiny_image

    home = folder / case.name
    store: Any = open_store(f"file://{home}/store", S3Options())
    if case.kill_at_write is not None and rank == case.kill_rank:
        store = _DeadlyStore(f"file://{home}/store", countdown=case.kill_at_write)
    ctx = _Context(
        config=None,  # type: ignore[arg-type]
        store=store,
        sources=None,  # type: ignore[arg-type]
        artifacts={},
        fingerprints={},
        out=home / "out",
        scratch=home / "scratch",
        partial="phase/partial",
        rank=rank,
        local_rank=rank,
        world_size=world_size,
        stop_before=case.stop_at if rank == case.stop_rank else None,
        kill_before=case.kill_at_step if rank == case.kill_rank else None,
    )
    training = Training(
        micro_batch_size=case.micro,
        batch_size=BATCH_SIZE,
        precision=case.precision,
        checkpoint_steps=case.checkpoint_steps,
        max_length=case.max_length,
        packing=Packing(max_tokens=case.packing) if case.packing is not None else None,
        gradient_checkpointing=case.checkpointing,
        weight_decay=0.01,
        deepspeed=DeepSpeed(zero_stage=case.stage),
    )
    loss.CHUNK_LOGITS = case.chunk_logits or 1 << 25
    loaded = load_tiny(folder / case.model)
    if case.poisoned:
        loaded.model.lm_head.weight.data[5] = float("nan")
    plan = Plan(training=training, learning_rate=1e-3, batch_size=BATCH_SIZE, epochs=1, max_steps=case.steps, seed=3)
    try:
        outcome = train(
            ctx,
            loaded=loaded,
            parameters=freeze(loaded.model, case.trainable, field="spec.training.trainable"),
            examples=rows(),
            open_image=lambda name: tiny_image(int(name)),
            plan=plan,
        )
    except PreemptedError as error:
        if rank == 0:
            (home / "result.json").write_text(json.dumps({"preempted": str(error)}))
        return
    save_model(loaded.model, loaded.processor, ctx.out, writes=rank == 0)
    if rank == 0:
        state = outcome.state
        left = sorted({path.parts[-3] for path in (home / "store").rglob("rank-*/manifest.json")})
        report = {"losses": state.losses, "tokens": state.num_tokens, "dropped": state.dropped, "checkpoints": left}
        (home / "result.json").write_text(json.dumps(report))


class _DeadlyStore(FileStore):
    """Kills its process at the n-th thing that it is asked to write."""

    def __init__(self, uri: str, *, countdown: int) -> None:
        super().__init__(uri)
        self.countdown = countdown

    def _count(self) -> None:
        self.countdown -= 1
        if self.countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, *args: Any, **options: Any) -> bool:
        self._count()
        return super().write(*args, **options)

    def upload(self, *args: Any, **options: Any) -> None:
        self._count()
        super().upload(*args, **options)


@dataclass(frozen=True, kw_only=True)
class _Context(PhaseContext):
    """Is asked to stop before a step rather than by a file, so that a test can choose the moment."""

    stop_before: int | None = None
    kill_before: int | None = None
    asked: list[int] = field(default_factory=list)

    def stop_asked(self) -> bool:
        self.asked.append(1)
        if self.kill_before is not None and len(self.asked) > self.kill_before:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.stop_before is not None and len(self.asked) > self.stop_before

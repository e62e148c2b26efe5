"""What the phases `pretrain` and `tune` share: which student they begin with, and how they end.

Imports torch only inside functions, because recipes are computed where there is none.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comd_api.exit_codes import UserError
from comd_api.recipe import Component
from comd_api.run import RunSpec
from comd_trainer.context import PhaseContext, use_devices
from comd_trainer.data.images import Images

if TYPE_CHECKING:
    from comd_trainer.engine.batches import Example
    from comd_trainer.engine.loop import Plan
    from comd_trainer.models.load import LoadedModel

NAMED_ROWS = 50
"""Dropped rows that are named in the manifest; all of them are counted."""
STUDENT_FIELD = "spec.student.checkpoint.source"


def student_recipe(spec: RunSpec, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What the student of the manifest depends on: its settings and the content of its parts."""
    composed, checkpoint = spec.student.composed, spec.student.checkpoint
    if composed is not None:
        sources = [composed.vision_tower.source, composed.language_model.source]
        settings = composed.to_wire()
    else:
        assert checkpoint is not None, "a student is composed or a checkpoint"
        # Code that a checkpoint ships goes into the student's folder when it is trusted.
        sources, settings = [checkpoint.source], {"trustRemoteCode": checkpoint.trust_remote_code}
    return {"settings": settings, "sources": [fingerprints[source] for source in sources]}


def training_recipe(spec: RunSpec) -> dict[str, Any]:
    """The numbers that every training phase shares, without those that change cost and not the student."""
    own = {"learningRate", "batchSize", "epochs", "maxSteps", "firstRound", "trainable"}
    cost = {"microBatchSize", "packing", "gradientCheckpointing", "checkpointSteps", "deepspeed"}
    return {name: value for name, value in spec.training.to_wire().items() if name not in own | cost}


def open_student(ctx: PhaseContext) -> "LoadedModel":
    """The newest student: of this run's artifacts, else what the manifest names. On this rank's device, in fp32 or, for half
    precision, as DeepSpeed will want it."""
    import torch

    from comd_trainer.models.compose import LANGUAGE_FIELD, VISION_FIELD, compose
    from comd_trainer.models.load import load_model

    device = use_devices(ctx.local_rank)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[ctx.spec.training.precision]
    if dtype == torch.float16 and device == "cpu":
        raise UserError("spec.training.precision is fp16, which needs GPUs; use bf16 or fp32 on machines without")
    composed = ctx.spec.student.composed
    folder = newest_student(ctx)
    if folder is None and composed is not None:
        student = compose(
            composed,
            vision_folder=ctx.sources.folder(composed.vision_tower.source, field=VISION_FIELD),
            language_folder=ctx.sources.folder(composed.language_model.source, field=LANGUAGE_FIELD),
            seed=ctx.spec.seed,
            dtype=dtype,
        )
        model: Any = student.model
        model.to(device)
        return student
    checkpoint = ctx.spec.student.checkpoint
    if folder is None:
        assert checkpoint is not None, "a student is composed or a checkpoint"
        folder = ctx.sources.folder(checkpoint.source, field=STUDENT_FIELD)
    student = load_model(
        folder,
        dtype=dtype,
        device=device,
        trust_remote_code=checkpoint is not None and checkpoint.trust_remote_code,
        field=STUDENT_FIELD,
    )
    if student.kind != "image-text-to-text":
        raise UserError(
            f"{STUDENT_FIELD}: {folder.name} is a {student.model.config.model_type} model, which sees no images; "
            "give an image-text-to-text checkpoint, or compose one (student.composed)"
        )
    return student


def newest_student(ctx: PhaseContext) -> Path | None:
    """Folder of the student that this run made last; None before it made one."""
    for name in ("tune", "pretrain", "student"):
        if name in ctx.artifacts:
            return ctx.artifacts[name].folder()
    return None


def train_and_save(
    ctx: PhaseContext,
    *,
    student: "LoadedModel",
    trainable: Sequence[Component],
    field: str,
    examples: Sequence["Example"],
    plan: "Plan",
) -> None:
    """Trains, and leaves the student in Hugging Face layout in `ctx.out` with `training.jsonl` (loss of each step) beside it."""
    from comd_trainer.engine.loop import train
    from comd_trainer.models.freeze import freeze
    from comd_trainer.models.save import save_model

    images = Images(ctx.sources.folder(ctx.spec.data.images, field="data.images"))
    checkpoint = ctx.spec.student.checkpoint
    ships_code = checkpoint is not None and checkpoint.trust_remote_code
    outcome = train(
        ctx,
        loaded=student,
        parameters=freeze(student.model, trainable, field=field),
        examples=examples,
        open_image=images.open,
        plan=plan,
    )
    save_model(
        student.model,
        student.processor,
        ctx.out,
        source=ctx.sources.folder(checkpoint.source, field=STUDENT_FIELD)
        if checkpoint is not None and ships_code
        else None,
        writes=ctx.is_first,
    )
    if not ctx.is_first:
        return
    state = outcome.state
    with (ctx.out / "training.jsonl").open("w", encoding="utf-8") as file:
        for step, loss in enumerate(state.losses, start=1):
            file.write(f'{{"step":{step},"loss":{loss!r}}}\n')
    ctx.set_meta(
        {
            "steps": state.step,
            "rows": len(examples),
            "tokens": state.num_tokens,
            "finalLoss": state.losses[-1],
            "droppedRows": {
                "count": len(state.dropped),
                "rows": dict(list(state.dropped.items())[:NAMED_ROWS]),
            },
        }
    )

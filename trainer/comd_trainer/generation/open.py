"""From a role of the manifest to something that answers: loads a checkpoint, or gets ready to ask an endpoint."""

import gc
from dataclasses import replace
from pathlib import Path

import torch

from comd_api.exit_codes import UserError
from comd_api.roles import Checkpoint, Model
from comd_trainer.context import PhaseContext, use_devices
from comd_trainer.data.images import Images
from comd_trainer.generation.base import Generator
from comd_trainer.generation.endpoint import EndpointGenerator, read_key
from comd_trainer.generation.transformers import TransformersGenerator
from comd_trainer.models.load import LoadedModel, load_model

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

_kept: dict[tuple[str, torch.dtype, str, bool], LoadedModel] = {}
"""The model that this process loaded last, and no other: a judge that is asked again, or an augmentor that is asked in
waves, is not loaded each time. It goes with the process, which lasts for one phase."""


def open_generator(
    ctx: PhaseContext, model: Model, *, role: str, field: str, images: Images | None = None
) -> Generator:
    """A generator for a role. `field` is where the manifest sets the model ("spec.teacher"), for messages; `images`
    are what requests name theirs in, None when none of them has one."""
    if model.endpoint is not None:
        ranks = min(ctx.world_size, model.endpoint.concurrency)
        share = model.endpoint.concurrency // ranks + (ctx.rank < model.endpoint.concurrency % ranks)
        return EndpointGenerator(
            model.endpoint,
            images,
            field=f"{field}.endpoint",
            key=read_key(model.endpoint, field=f"{field}.endpoint"),
            concurrency=share,
            role=role,
            check=ctx.raise_if_stopped,
        )
    assert model.checkpoint is not None, "the contract's rule EXACTLY_ONE_MODEL"
    loaded = load_on_device(ctx, model.checkpoint, field=f"{field}.checkpoint.source")
    return TransformersGenerator(loaded, images, str(loaded.device), check=ctx.raise_if_stopped)


def open_checkpoint(
    ctx: PhaseContext, folder: Path, *, field: str, images: Images | None = None
) -> TransformersGenerator:
    """A generator for a checkpoint folder, in the precision of `spec.training`, on this rank's device."""
    loaded = load_on_device(ctx, folder, field=field)
    return TransformersGenerator(loaded, images, str(loaded.device), check=ctx.raise_if_stopped)


def load_on_device(ctx: PhaseContext, checkpoint: Checkpoint | Path, *, field: str) -> LoadedModel:
    """A checkpoint of the manifest, or a folder with one (the student's, which this run has made), in the precision of
    `spec.training` on this rank's device."""
    if isinstance(checkpoint, Path):
        folder, origin = checkpoint, ctx.spec.student.checkpoint
    else:
        folder, origin = ctx.sources.folder(checkpoint.source), checkpoint
    trust_remote_code = origin is not None and origin.trust_remote_code
    device = use_devices(ctx.local_rank)
    dtype = dtype_for(ctx.spec.training.precision, device)
    key = (str(folder), dtype, device, trust_remote_code)
    if key not in _kept:
        _kept.clear()
        release_memory()
        _kept[key] = load_model(folder, dtype=dtype, device=device, trust_remote_code=trust_remote_code, field=field)
    return replace(_kept[key], field=field)


def open_model(
    ctx: PhaseContext, model: Model | Path, *, role: str, field: str, images: Images | None = None
) -> Generator:
    if isinstance(model, Path):
        return open_checkpoint(ctx, model, field=field, images=images)
    return open_generator(ctx, model, role=role, field=field, images=images)


def open_images(ctx: PhaseContext) -> Images:
    """The images that rows name. Nothing is read before one is asked for."""
    return Images(ctx.sources.folder(ctx.spec.data.images))


def dtype_for(precision: str, device: str) -> torch.dtype:
    """Raises UserError for float16 on a CPU, where many operators don't exist in it."""
    if precision == "fp16" and device == "cpu":
        raise UserError("spec.training.precision is fp16, which needs GPUs; use bf16 or fp32 on machines without")
    return DTYPES[precision]


def release_memory() -> None:
    """Gives back what an earlier model of this process held, before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def max_ranks(model: Model | Path) -> int | None:
    """How many ranks may ask: no more than an endpoint's concurrency, which is for all ranks together."""
    return model.endpoint.concurrency if isinstance(model, Model) and model.endpoint is not None else None

"""What a phase needs imported, so that a fork server can import it once. Touches no device."""

import gc
import importlib

PRELOAD = (
    "torch",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torch.distributed.elastic.multiprocessing.api",
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage_1_and_2",
    "deepspeed.runtime.zero.stage3",
    "transformers",
    "transformers.generation",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.image_processing_clip",
    "transformers.models.siglip.modeling_siglip",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llava.modeling_llava",
    "transformers.models.llava.processing_llava",
    "comd_trainer.models.compose",
    "comd_trainer.models.save",
    "comd_trainer.engine.loop",
    "comd_trainer.generation.answering",
    "comd_trainer.generation.likelihood",
    "comd_trainer.generation.transformers",
    *(
        f"comd_trainer.phases.{name}"
        for name in ("pretrain", "teach", "tune", "answer", "assess", "augment", "evaluate")
    ),
)
"""Modules that phases would otherwise import first: torch's compiler is pulled in by AdamW's constructor, DeepSpeed's optimizers by
`deepspeed.initialize`; seconds each."""


def import_everything() -> None:
    """Imports all of `PRELOAD` that this installation has (names of submodules differ between releases).

    Nothing that is imported is garbage, and looking for some is a fifth of the time; what is there is then left out of later looks,
    which would copy memory that forked ranks share.
    """
    gc.disable()
    for name in PRELOAD:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            # A part of a library that its release does not have is no loss; one of ours that is missing is.
            if name.startswith("comd_trainer") or "." not in name:
                raise ModuleNotFoundError(f"{name} is needed to train: {error}") from error
    gc.freeze()
    gc.enable()

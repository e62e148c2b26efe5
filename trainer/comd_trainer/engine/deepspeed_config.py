"""DeepSpeed's configuration, derived from `spec.training`; nothing is left to defaults that changed between releases."""

import math
from typing import Any

from comd_api.recipe import Training


def num_micro_batches(*, batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Forward passes of each rank per optimizer step."""
    return math.ceil(batch_size / (micro_batch_size * world_size))


def deepspeed_config(training: Training, *, batch_size: int, world_size: int) -> dict[str, Any]:
    """The whole configuration. Gradients are averaged over ranks (the loss is scaled for it, see loss.py), and never divided by
    the number of micro-batches; learning rate and optimizer are ours."""
    # Packed, a forward pass holds as many rows as it may: what is said here is the least, one.
    micro = training.micro_batch_size if training.packing is None else 1
    steps = num_micro_batches(batch_size=batch_size, micro_batch_size=micro, world_size=world_size)
    zero: dict[str, Any] = {"stage": training.deepspeed.zero_stage}
    if training.deepspeed.zero_stage in (1, 2):
        zero |= {"contiguous_gradients": True, "overlap_comm": False, "reduce_scatter": True}
    if training.deepspeed.zero_stage == 3:
        zero |= {
            "contiguous_gradients": True,
            "overlap_comm": False,
            "stage3_gather_16bit_weights_on_model_save": False,
        }
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
        "train_batch_size": micro * steps * world_size,
        # 0.19 made 1.0 the default; older releases have 0.
        "gradient_clipping": training.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": training.precision == "bf16"},
        "fp16": {"enabled": training.precision == "fp16"},
        "prescale_gradients": False,
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
        "dump_state": False,
    }

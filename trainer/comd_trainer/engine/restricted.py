"""Reads DeepSpeed's checkpoint files without running what a pickle may hold.

DeepSpeed loads its files with `weights_only=False`, which runs any code that somebody with write access to the bucket put into
them. Tensors, containers and the few classes below are all that our checkpoints hold, so nothing else is let in.
"""

from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

SAFE = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


class RestrictedCheckpointEngine(TorchCheckpointEngine):  # type: ignore[misc]
    """As DeepSpeed's own, except that loading takes tensors, containers and `SAFE` alone."""

    def __init__(self, original: Any) -> None:
        self.name = original.name
        self.zipfile_serialization = getattr(original, "zipfile_serialization", True)

    def load(self, path: str, map_location: Any = None) -> Any:
        with torch.serialization.safe_globals(SAFE):
            return torch.load(path, map_location=map_location, weights_only=True)

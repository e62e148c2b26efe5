"""The loss: summed token cross-entropy over the number of supervised tokens in the whole global batch.

A mean per micro-batch, averaged, would weigh short answers too much and make losses depend on the number of GPUs.
"""

import inspect

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from comd_trainer.models.prompts import IGNORED, Encoded


def predicting_positions(labels: Tensor) -> Tensor:
    """Positions whose logits are needed: those before a supervised token of any row. (rows, length) -> (positions,), at least one.

    LLaVA's rows are mostly image and prompt, so that the language model's head runs on a fraction of the positions.
    """
    positions = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().flatten()
    return positions if positions.numel() else torch.zeros(1, dtype=torch.long, device=labels.device)


def summed_loss(model: nn.Module, batch: Encoded, *, keeps_logits: bool) -> Tensor:
    """Sum of the cross-entropy of all supervised tokens of `batch`, in fp32; 0 (with gradients 0) where there is none.

    `keeps_logits`: the model's forward takes `logits_to_keep`.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    positions = predicting_positions(batch["labels"])
    if keeps_logits:
        logits = model(**inputs, use_cache=False, logits_to_keep=positions).logits
    else:
        logits = model(**inputs, use_cache=False).logits[:, positions]
    targets = batch["labels"][:, positions + 1]
    return cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def takes_logits_to_keep(model: nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def num_supervised(batch: Encoded) -> int:
    return int((batch["labels"] != IGNORED).sum())

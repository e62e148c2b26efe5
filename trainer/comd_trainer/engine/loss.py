"""The loss: summed token cross-entropy over the number of supervised tokens in the whole global batch.

A mean per micro-batch, averaged, would weigh short answers too much and make losses depend on the number of GPUs.

Logits are what memory goes to: 800 tokens of a vocabulary of 152,000 in fp32 are half a gigabyte for one row, several times over.
LLaVA's rows are mostly image and prompt, so the head runs on the positions before supervised tokens alone; and it runs on a chunk of
them at a time, made again for the backward pass, so that no more than one chunk's logits ever exist.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from comd_trainer.models.prompts import IGNORED, Encoded

CHUNK_LOGITS = 1 << 25
"""Logits that exist at a time: 134 MB in fp32, 1,048 positions of Llama's vocabulary of 32,000."""


class LossModel(nn.Module):
    """A model that gives its loss rather than its logits: what DeepSpeed wraps, so that all of it lies in one forward pass."""

    def __init__(self, model: Any, *, chunked: bool) -> None:
        """`chunked`: as `takes_hidden_states` found."""
        super().__init__()
        self.model = model
        self.sum_loss: Callable[[Any, Encoded], Tensor] = chunked_loss if chunked else plain_loss
        if chunked:
            num_tokens = int(model.config.get_text_config().vocab_size)
            sum_in_head(model.get_output_embeddings(), chunk_size=max(1, CHUNK_LOGITS // num_tokens))

    def forward(self, batch: Encoded) -> Tensor:
        """Sum of the cross-entropy of all supervised tokens of `batch`, in fp32; 0 (with gradients 0) where there is none."""
        return self.sum_loss(self.model, batch)


def plain_loss(model: Any, batch: Encoded) -> Tensor:
    """The model's own forward pass, logits of all needed positions at once: for models that do what they like with their logits."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    positions = predicting_positions(batch["labels"])
    if takes_logits_to_keep(model):
        logits = model(**inputs, use_cache=False, logits_to_keep=positions).logits
    else:
        logits = model(**inputs, use_cache=False).logits[:, positions]
    targets = batch["labels"][:, positions + 1]
    return cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def chunked_loss(model: Any, batch: Encoded) -> Tensor:
    """The same from the body's last hidden states. The head must have been given to `sum_in_head`."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    hidden = body_of(model)(**inputs, use_cache=False).last_hidden_state
    targets = batch["labels"][:, 1:]
    chosen = targets != IGNORED
    # All parameters take part even where nothing is supervised, for ranks reduce the gradients of the same ones.
    chosen[0, 0] |= ~chosen.any()
    total: Tensor = model.get_output_embeddings()(hidden[:, :-1][chosen], targets[chosen])
    return total


def sum_in_head(head: nn.Module, *, chunk_size: int) -> None:
    """Lets the language model's head take targets as well, and then give their summed loss, `chunk_size` positions at a time.

    Inside the head's own forward pass, so that ZeRO-3 gathers its weight once, however many chunks a rank has.
    """
    logits_of = head.forward

    def forward(hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        if targets is None:
            plain: Tensor = logits_of(hidden)
            return plain
        one = partial(_chunk_loss, logits_of)
        if len(targets) <= chunk_size:
            return one(hidden, targets)
        parts = zip(torch.split(hidden, chunk_size), torch.split(targets, chunk_size), strict=True)
        return torch.stack([checkpoint(one, *part, use_reentrant=False) for part in parts]).sum()

    head.forward = forward


def _chunk_loss(logits_of: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> Tensor:
    """(positions, hidden size), (positions,) -> sum."""
    return cross_entropy(logits_of(hidden).float(), targets, ignore_index=IGNORED, reduction="sum")


def body_of(model: Any) -> Any:
    """The model without its head."""
    return getattr(model, model.base_model_prefix)


def takes_hidden_states(model: Any, batch: Encoded) -> bool:
    """Whether the loss of `batch` may be taken from the body's last hidden states: whether head and body alone give the model's logits.

    Not looked up but shown. Some models scale or bend their logits after the head, and code that a checkpoint ships may do anything.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    head = model.get_output_embeddings()
    if head is None or not hasattr(model, str(model.base_model_prefix)):
        return False
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
        found = body_of(model)(**inputs, use_cache=False)
        states = getattr(found, "last_hidden_state", None)
        return states is not None and bool(torch.equal(head(states), logits))


def predicting_positions(labels: Tensor) -> Tensor:
    """Positions whose logits are needed: those before a supervised token of any row. (rows, length) -> (positions,), at least one."""
    positions = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().flatten()
    return positions if positions.numel() else torch.zeros(1, dtype=torch.long, device=labels.device)


def takes_logits_to_keep(model: nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def num_supervised(batch: Encoded) -> int:
    return int((batch["labels"] != IGNORED).sum())

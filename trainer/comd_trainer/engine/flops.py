"""How much arithmetic a training step is, and how much a device can do: what model FLOPs utilisation (MFU) is the quotient of.

The estimate counts products with weight matrices: 2 operations for each weight and token forwards, 2 more where gradients of
activations are needed, 2 more where the weight itself learns (Kaplan et al., arXiv 2001.08361, section 2.1; 6 when all learn).
Attention over the sequence, and what is computed twice with gradient checkpointing, are left out, so that MFU is rather told too low.
A mixture of experts would be counted as if all experts worked.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from comd_api.recipe import Component
from comd_trainer.models.freeze import component_of

HALF_PEAKS = {
    "H100 80GB HBM3": 989.4e12,
    "H100 PCIe": 756.0e12,
    "H100 NVL": 835.5e12,
    "H200": 989.4e12,
    "GH200": 989.4e12,
    "B200": 2250.0e12,
    "A100": 312.0e12,
    "A800": 312.0e12,
    "A10": 125.0e12,
    "L4": 121.0e12,
    "L40S": 362.0e12,
}
"""Operations per second in bf16 and fp16 with tensor cores and without sparsity, by what the names of NVIDIA's devices hold; from
their data sheets."""


def half_peak(device_name: str) -> float | None:
    """Of a device as `torch.cuda.get_device_name` calls it (`NVIDIA A100-SXM4-80GB`); None for those that are not in the table."""
    words = f" {device_name.replace('-', ' ')} "
    fits = [name for name in HALF_PEAKS if f" {name} " in words]
    return HALF_PEAKS[max(fits, key=len)] if fits else None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Operations for each token of its kind, forwards and backwards."""

    vision: float
    """For each token of an image, in vision tower and projector."""
    language: float
    """For each token, images' included, in the language model."""
    head: float
    """For each token that is predicted and counts."""

    def of(self, *, tokens: float, image_tokens: float, supervised: float) -> float:
        return self.vision * image_tokens + self.language * tokens + self.head * supervised


def cost_of(model: Any) -> Cost:
    """Of a model whose parameters are frozen as they will be. Call it before ZeRO partitions them."""
    head = model.get_output_embeddings()
    lookups = model.get_input_embeddings()
    apart = {id(module.weight) for module in (head, lookups) if module is not None}
    weights: Counter[Component] = Counter()
    learns: set[Component] = set()
    for name, value in model.named_parameters():
        # What we know no place for is part of the language model, as the whole of a model without images is.
        part: Component = component_of(name) or "LanguageModel"
        if value.requires_grad:
            learns.add(part)
        if value.dim() >= 2 and id(value) not in apart:
            weights[part] += value.numel()
    vision, projector, language = (
        weights[part] * _passes(part, learns) for part in ("VisionTower", "Projector", "LanguageModel")
    )
    num_head = head.weight.numel() if head is not None else 0
    return Cost(
        vision=float(vision + projector),
        language=float(language),
        head=float(num_head * _passes("LanguageModel", learns)),
    )


_BEFORE: dict[Component, frozenset[Component]] = {
    "VisionTower": frozenset(),
    "Projector": frozenset({"VisionTower"}),
    "LanguageModel": frozenset({"VisionTower", "Projector"}),
}
"""What hands its outputs on to a component: whether gradients have to go through it."""


def _passes(part: Component, learns: set[Component]) -> int:
    """Operations for each weight and token."""
    if part in learns:
        return 6
    return 4 if _BEFORE[part] & learns else 2

"""Which parameters learn: the manifest's component names, mapped to those of LLaVA-style models."""

from collections.abc import Sequence

from torch.nn import Parameter
from transformers import PreTrainedModel

from comd_api.exit_codes import UserError
from comd_api.recipe import Component

PREFIXES: dict[Component, tuple[str, ...]] = {
    "VisionTower": ("model.vision_tower.", "model.visual.", "model.vision_model."),
    "Projector": ("model.multi_modal_projector.", "model.visual.merger.", "model.connector."),
    "LanguageModel": ("model.language_model.", "model.text_model.", "lm_head."),
}
"""LLaVA's names first, then those of its relatives (Qwen-VL, Idefics). The longest prefix that fits decides."""


def component_of(name: str) -> Component | None:
    """Component that the parameter `name` belongs to; None for what has no place in the three."""
    fits = [
        (len(prefix), part) for part, prefixes in PREFIXES.items() for prefix in prefixes if name.startswith(prefix)
    ]
    return max(fits)[1] if fits else None


def freeze(model: PreTrainedModel, trainable: Sequence[Component], *, field: str) -> list[tuple[str, Parameter]]:
    """Lets `trainable` learn and nothing else; returns their names and parameters, each tied one once.

    The second matrix of a linear projector stays the identity. `UserError` when a component has no parameter, `field` being
    the manifest's `….trainable`.
    """
    fixed_identity = getattr(model.config, "projector_hidden_act", None) == "linear"
    chosen = []
    for name, parameter in model.named_parameters():
        learns = component_of(name) in trainable
        if fixed_identity and name.startswith("model.multi_modal_projector.linear_2."):
            learns = False
        parameter.requires_grad_(learns)
        if learns:
            chosen.append((name, parameter))
    present = {component_of(name) for name, _ in chosen}
    for component in trainable:
        if component not in present:
            raise UserError(
                f"{field} names {component}, but the student ({type(model).__name__}) has no parameters of that kind that we know; "
                f"it has {', '.join(sorted(str(part) for part in {component_of(name) for name, _ in model.named_parameters()}))}"
            )
    return chosen

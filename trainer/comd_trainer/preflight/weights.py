"""What a checkpoint's safetensors headers tell of its weights, without the weights."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from comd_api.recipe import Component
from comd_trainer.store.listing import Listing

FIRST_READ = 1 << 17
"""Bytes of the first read of a file; the header of a checkpoint's shard is seldom longer."""
MAX_HEADER = 100_000_000
"""What the safetensors library itself takes for a header."""
INDEX = "model.safetensors.index.json"

Part = Component | Literal["Other"]
PREFIXES: dict[Component, tuple[str, ...]] = {
    "Projector": ("multi_modal_projector.", "visual.merger.", "connector."),
    "VisionTower": ("vision_tower.", "visual.", "vision_model."),
    "LanguageModel": ("language_model.", "text_model.", "lm_head.", "layers.", "embed_tokens.", "norm."),
}
"""`models.freeze.PREFIXES` in that order, as files name them: a leading `model.` may be missing, and older checkpoints have the
language model without a name of its own."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    name: str
    dtype: str
    """As safetensors writes it: `BF16`, `F32`, `I64` …"""
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def is_parameter(self) -> bool:
        """Whole numbers are positions and masks; of a quantised model they are weights, which are counted by their bytes."""
        return "F" in self.dtype


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a model's folder says of its weights. Parameters that are tied are counted once."""

    parameters: Mapping[Part, int]
    """How many there are, by component of an image-text-to-text model."""
    fixed: int = 0
    """Of the projector's, those that never learn: the second matrix of a linear projector (`models.freeze`)."""
    stored_bytes: int = 0
    """Of all tensors as they are stored."""
    quantized: bool = False
    """Stored in a form that stays when the model is loaded."""
    width: int | None = None
    """Of a vision tower's features, or of a language model's embeddings; None when the header does not tell."""

    @property
    def total(self) -> int:
        return sum(self.parameters.values())


def read_header(listing: Listing, name: str) -> list[Tensor] | None:
    """The tensors of a safetensors file: 8 bytes with the header's length, the header (JSON), the tensors. None for a file that is not
    as long as its header says, or whose header is none."""
    size = listing.files[name].size
    data = listing.read(name, start=0, size=min(size, FIRST_READ))
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(size - 8, MAX_HEADER):
        return None
    if len(data) < 8 + length:
        data += listing.read(name, start=len(data), size=8 + length - len(data))
    try:
        header = json.loads(data[8 : 8 + length])
        tensors = [_tensor(name, entry) for name, entry in header.items() if name != "__metadata__"]
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return tensors if size == 8 + length + max(ends, default=0) else None
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _tensor(name: str, entry: Mapping[str, Any]) -> Tensor:
    start, end = entry["data_offsets"]
    return Tensor(name=name, dtype=str(entry["dtype"]), shape=tuple(map(int, entry["shape"])), num_bytes=end - start)


def shards(listing: Listing, index: Mapping[str, Any] | None) -> list[str]:
    """The files that transformers loads, sorted: the one, else those that the index names, else all. They may not be there."""
    if "model.safetensors" in listing.files:
        return ["model.safetensors"]
    named = (index or {}).get("weight_map")
    if isinstance(named, dict) and named:
        return sorted({str(file) for file in named.values()})
    return [name for name in listing.names if name.endswith(".safetensors")]


def component_of(name: str) -> Part:
    """Component of an image-text-to-text model that a stored tensor belongs to."""
    plain = name.removeprefix("model.")
    return next((part for part, prefixes in PREFIXES.items() if plain.startswith(prefixes)), "Other")


def weigh(tensors: Iterable[Tensor], config: Mapping[str, Any], *, kind: str) -> Weights:
    """Counts a model's tensors. `kind` as `NamedSource.kind`: of a vision tower's checkpoint the vision half counts alone, and all of
    a language model is one component."""
    found = list(tensors)
    if kind == "vision-tower" and any(tensor.name.startswith("vision_model.") for tensor in found):
        found = [tensor for tensor in found if tensor.name.startswith("vision_model.")]
    if _is_tied(config) and any(tensor.name.endswith("embed_tokens.weight") for tensor in found):
        found = [tensor for tensor in found if not tensor.name.endswith("lm_head.weight")]
    whole: dict[str, Part] = {"vision-tower": "VisionTower", "language-model": "LanguageModel"}
    counts: Counter[Part] = Counter()
    for tensor in found:
        if tensor.is_parameter:
            counts[whole.get(kind) or component_of(tensor.name)] += tensor.count
    linear = config.get("projector_hidden_act") == "linear"
    second = [
        tensor.count for tensor in found if ".linear_2." in tensor.name and component_of(tensor.name) == "Projector"
    ]
    return Weights(
        parameters=dict(sorted(counts.items())),
        fixed=sum(second) if linear else 0,
        stored_bytes=sum(tensor.num_bytes for tensor in found),
        quantized="quantization_config" in config,
        width=_width(found, kind=kind),
    )


def compose(vision: Weights, language: Weights, *, projector: Literal["Linear", "MLP"]) -> Weights:
    """The student that is put together of two parts, projector included (`models.compose`)."""
    wide, out = vision.width, language.width
    first = wide * out + out if wide and out else 0
    second = out * out + out if wide and out else 0
    return Weights(
        parameters={
            "LanguageModel": language.total,
            "Projector": first + second,
            "VisionTower": vision.total,
        },
        fixed=second if projector == "Linear" else 0,
        stored_bytes=vision.stored_bytes + language.stored_bytes,
    )


def _is_tied(config: Mapping[str, Any]) -> bool:
    """Unless it is said not to be: transformers' default depends on the model, and what is counted must be there."""
    text = config.get("text_config")
    values = [part.get("tie_word_embeddings") for part in (config, text) if isinstance(part, Mapping)]
    return True in values or False not in values


def _width(tensors: list[Tensor], *, kind: str) -> int | None:
    ending, axis = ("patch_embedding.weight", 0) if kind == "vision-tower" else ("embed_tokens.weight", 1)
    shapes = [tensor.shape for tensor in tensors if tensor.name.endswith(ending) and len(tensor.shape) > axis]
    return shapes[0][axis] if shapes else None

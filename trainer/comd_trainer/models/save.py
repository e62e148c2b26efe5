"""Writes a checkpoint in Hugging Face layout that opens anywhere: sharded safetensors, index, config, processor.

Weights are gathered tensor by tensor and written shard by shard, so that rank 0 never holds more than one shard, with ZeRO-3 too.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

SHARD_BYTES = 4_000_000_000
"""Files of this size go up in parallel and are still read quickly."""


def save_model(
    model: PreTrainedModel,
    processor: Any,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    source: Path | None = None,
    writes: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes `model` and `processor` into `folder`.

    Collective when parameters are partitioned (ZeRO-3): every rank calls it, `writes` is true on rank 0 alone.
    `dtype`: of the floating point weights on disk; the model's own when None. `source`: folder whose Python files go along,
    for models that ship code.
    """
    tensors = list(_tensors(model))
    shards = plan_shards([(name, _num_bytes(tensor, dtype)) for name, tensor in tensors], limit=shard_bytes)
    by_name = dict(tensors)
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        shard: dict[str, Tensor] = {}
        for name in names:
            value = _gathered(by_name[name], dtype=dtype, keep=writes)
            if value is not None:
                shard[name] = value
            weight_map[name] = file
        if writes:
            save_file(shard, folder / file, metadata={"format": "pt"})
    if not writes:
        return
    if len(shards) > 1:
        total = sum(_num_bytes(tensor, dtype) for _, tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    _save_configs(model, folder, dtype=dtype)
    processor.save_pretrained(folder)
    if source is not None:
        for path in sorted(source.glob("*.py")):
            shutil.copyfile(path, folder / path.name)


def plan_shards(sizes: list[tuple[str, int]], *, limit: int) -> list[list[str]]:
    """Names grouped in order, each group at most `limit` bytes unless one tensor alone is larger."""
    shards: list[list[str]] = [[]]
    room = limit
    for name, size in sizes:
        if shards[-1] and size > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return shards


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Parameters and the buffers that belong to a checkpoint; of tied weights the first alone, as safetensors takes no shared
    storage and `from_pretrained` ties them again."""
    yield from model.named_parameters()
    persistent = set(model.state_dict(keep_vars=True))
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in persistent)


def _num_bytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    count = getattr(tensor, "ds_numel", None) or tensor.numel()
    stored = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return int(count) * stored.itemsize


def _gathered(tensor: Tensor, *, dtype: torch.dtype | None, keep: bool) -> Tensor | None:
    """The whole tensor on the CPU, on ranks that `keep` it. All ranks of a partitioned one must come here together."""
    if hasattr(tensor, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return _copied(tensor, dtype) if keep else None
    return _copied(tensor, dtype) if keep else None


def _copied(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    stored = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", stored, copy=True).contiguous()


def _save_configs(model: PreTrainedModel, folder: Path, *, dtype: torch.dtype | None) -> None:
    model.config.architectures = [type(model).__name__]
    model.config.dtype = dtype or model.dtype
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)

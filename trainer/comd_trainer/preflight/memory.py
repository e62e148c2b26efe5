"""How much memory each phase needs at least, from parameter counts and the manifest: pure arithmetic on what the engine does.

A lower bound: activations, the cache of keys and values, CUDA's own share, temporary tensors of the optimizer and fragmentation are
left out. So what is refused by it can't run, and what it lets pass may still not fit.

Training (`engine.loop`, DeepSpeed's code and a measurement of it, tests/unit/test_preflight_memory.py). P: all parameters, T: those that
learn, w: bytes of one in `training.precision`, N: ranks that share (1 with ZeRO stage 0), B: DeepSpeed's bucket of 500,000,000 gradients,
which it allocates whole whatever the model's size.

    weights     w P, with stage 3 w P / N
    states      12 T / N: fp32 master weights and AdamW's two moments; 8 T with stage 0 in fp32, where the weights are the master
    backward    gradients w T / N, with stage 0 and (while they are accumulated) stage 1 w T; with stages 1 to 3 and B w for the bucket
    step        stage 0: gradients, and their fp32 copy 4 T in half precision; stages 1 and 2: the fp32 copy of the larger of the
                optimizer's two groups, 4 M / N with M = 0.98 T matrices; stage 3: as backward, and the fp32 copy of one sub-group
                of at most 1,000,000,000: 4 min(M / N, 1e9)
    loading     w P: with every stage each rank has the whole model on its GPU before DeepSpeed shares it (`phases.training.open_student`)

    peak        max(loading, weights + states + max(backward, step))

Answering (`generation.open.load_on_device`): w P, whole on each rank, one model at a time; as stored for a quantised one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from comd_api.recipe import Component, Training
from comd_trainer.engine.deepspeed_config import deepspeed_config
from comd_trainer.preflight.weights import Weights

WIDTHS = {"bf16": 2, "fp16": 2, "fp32": 4}
"""Bytes of a parameter by `training.precision`."""
BUCKET = 500_000_000
SUB_GROUP = 1_000_000_000
"""DeepSpeed's defaults of `reduce_bucket_size` and `sub_group_size`, in elements; deepspeed_config sets neither."""

MATRICES = 0.98
"""Share of a model's parameters that surely stand in matrices. Vectors (biases, norms) are a group of their own, stepped after them."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one rank."""

    weights: int
    states: int = 0
    working: int = 0
    """Gradients and what is made of them, at the worst moment of a step."""
    loading: int = 0

    @property
    def peak(self) -> int:
        return max(self.loading, self.weights + self.states + self.working)


def num_trained(weights: Weights, trainable: Sequence[Component]) -> int:
    """Parameters that learn. What belongs to no component that we know is taken for frozen."""
    chosen = sum(weights.parameters.get(component, 0) for component in trainable)
    return chosen - (weights.fixed if "Projector" in trainable else 0)


def training_memory(
    *, total: int, trained: int, training: Training, batch_size: int, num_ranks: int, on_gpu: bool = True
) -> Memory:
    """What a rank of `pretrain` or `tune` needs for a model of `total` parameters, `trained` of which learn. On CPUs the bucket
    costs nothing: it is allocated and, but for what is used of it, never touched."""
    config = deepspeed_config(training, batch_size=batch_size, world_size=num_ranks)
    zero = config["zero_optimization"]
    stage = int(zero["stage"])
    width = WIDTHS[training.precision]
    half = width < 4
    share = _share(trained, num_ranks if stage else 1)
    bucket = width * int(zero.get("reduce_bucket_size", BUCKET)) if stage and on_gpu else 0
    accumulates = int(config["gradient_accumulation_steps"]) > 1
    gradients = width * (trained if stage == 1 and accumulates else share)
    matrices = int(MATRICES * share)
    if stage == 0:
        step = gradients + (4 * trained if half else 0)
    elif stage == 3:
        step = gradients + bucket + 4 * min(matrices, int(zero.get("sub_group_size", SUB_GROUP)))
    else:
        step = 4 * matrices
    return Memory(
        weights=width * (_share(total, num_ranks) if stage == 3 else total),
        states=(12 if half or stage else 8) * share,
        working=max(gradients + bucket, step),
        loading=width * total,
    )


def answering_memory(weights: Weights, *, precision: str) -> Memory:
    """What a rank of `teach`, `answer`, `assess`, `augment` or `evaluate` needs for a checkpoint."""
    whole = WIDTHS[precision] * weights.total
    return Memory(weights=min(weights.stored_bytes, whole) if weights.quantized else whole)


def on_node(memory: Memory, *, num_ranks: int) -> int:
    """Bytes on a node of `num_ranks` without GPUs. Weights are counted once: files that are mapped into memory are shared."""
    return memory.weights + num_ranks * (memory.states + memory.working)


def _share(count: int, num_ranks: int) -> int:
    return -(-count // num_ranks)

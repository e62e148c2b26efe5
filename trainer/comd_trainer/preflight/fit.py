"""Whether a run's models fit the memory that its manifest gives them, and whether its numbers of GPUs agree."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from comd_api.exit_codes import UserError
from comd_api.pods import Trainer, amount, gpu_problem
from comd_api.recipe import Component, Training
from comd_api.roles import Model
from comd_api.run import RunSpec
from comd_api.stages import phases_of
from comd_api.status import PhaseName
from comd_trainer.preflight.memory import Memory, answering_memory, num_trained, on_node, training_memory
from comd_trainer.preflight.named import LANGUAGE_FIELD, STUDENT_FIELD, VISION_FIELD, checkpoint_field
from comd_trainer.preflight.weights import Weights, compose

Role = Literal["student", "teacher", "assessor", "augmentor"]
GiB = 1 << 30
TIGHT = 0.85
"""From this share of a GPU's memory on, little is left for activations."""
MAX_RANKS = 16_384
TRAINING_PHASES = ("pretrain", "tune")


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one model costs in one phase."""

    phase: PhaseName
    role: Role
    field: str
    """Of the model."""
    total: int
    """Parameters."""
    trained: int
    """Of these, parameters that learn; 0 where it only answers."""
    memory: Memory
    """On each rank."""
    batch_size: int = 0
    """Of training."""


def check_gpu_counts(trainer: Trainer) -> None:
    """Each process of a node has a GPU of its own. An operator has looked at that before; nobody has for a config made by hand. Errors:
    UserError names both numbers where they differ."""
    said = gpu_problem(trainer)
    if said is not None:
        raise UserError(said)


def asks_for_gpus(trainer: Trainer) -> bool:
    """Whether a pod asks for anything but CPU, memory and disk: parts of GPUs have names of many kinds, all of them with a `/`."""
    limits = trainer.resources_per_node.limits or {}
    return any("/" in key and amount(quantity) > 0 for key, quantity in limits.items())


def student_weights(spec: RunSpec, weights: Mapping[str, Weights]) -> Weights:
    """The student's, by the fields of its parts."""
    composed = spec.student.composed
    if composed is None:
        return weights[STUDENT_FIELD]
    return compose(weights[VISION_FIELD], weights[LANGUAGE_FIELD], projector=composed.projector.type)


def needs(spec: RunSpec, weights: Mapping[str, Weights], *, on_gpu: bool) -> list[Need]:
    """Every phase with every model that it loads, in the order in which they run. `weights`: by field, of all model folders."""
    student = student_weights(spec, weights)
    found: list[Need] = []
    for phase in _phases(spec):
        if phase in TRAINING_PHASES:
            found += _training_needs(spec, student, phase=phase, on_gpu=on_gpu)
            continue
        for role, model, field in _answering(spec, phase):
            known = student if model is None else weights[checkpoint_field(field)]
            memory = answering_memory(known, precision=spec.training.precision)
            found.append(Need(phase=phase, role=role, field=field, total=known.total, trained=0, memory=memory))
    return found


def check_memory(spec: RunSpec, found: list[Need]) -> None:
    """Refuses what can't fit: on a GPU of `trainer.gpuMemory`, or, for a run without GPUs, on a node.

    Raises:
        UserError: names phase, role, what it needs and what there is, and what to change.
    """
    trainer = spec.trainer
    if trainer.gpu_memory is not None:
        there = amount(trainer.gpu_memory)
        for need in found:
            if need.memory.peak > there:
                raise UserError(
                    f"spec.trainer.gpuMemory is {trainer.gpu_memory}, but phase {need.phase} needs at least "
                    f"{gib(need.memory.peak)} on each of {_ranks(trainer.num_ranks, 'GPU')} for the {need.role} "
                    f"({_detail(need)}); {_mend(spec, need, there)}"
                )
        return
    limit = (trainer.resources_per_node.limits or {}).get("memory")
    if limit is None or asks_for_gpus(trainer):
        return
    for need in found:
        bytes_needed = on_node(need.memory, num_ranks=trainer.num_proc_per_node)
        if bytes_needed > amount(limit):
            raise UserError(
                f"spec.trainer.resourcesPerNode.limits.memory is {limit}, but phase {need.phase} needs at least {gib(bytes_needed)} "
                f"on each node for the {need.role} ({_detail(need)}) in {_ranks(trainer.num_proc_per_node, 'process')}; "
                f"give more memory, or a smaller {need.role}"
            )


def is_tight(spec: RunSpec, need: Need) -> bool:
    """Whether a phase that fits leaves little of a GPU for activations."""
    return spec.trainer.gpu_memory is not None and need.memory.peak > TIGHT * amount(spec.trainer.gpu_memory)


def largest(found: list[Need], phase: PhaseName) -> Need | None:
    return max((need for need in found if need.phase == phase), key=lambda need: need.memory.peak, default=None)


def report(found: list[Need]) -> list[dict[str, Any]]:
    return [
        {"phase": need.phase, "role": need.role, "parameters": need.total, "trained": need.trained}
        | {"bytesPerRank": need.memory.peak}
        for need in found
    ]


def gib(count: float) -> str:
    return f"{count / GiB:.1f} GiB" if count >= 0.05 * GiB else f"{count / (1 << 20):.1f} MiB"


def billions(count: int) -> str:
    """`13.3 B`, `86.2 M`, `41 k`."""
    for unit, name in ((10**9, "B"), (10**6, "M")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1000:.0f} k"


def _phases(spec: RunSpec) -> list[PhaseName]:
    """Each once: what a later round needs, the first needs too."""
    stages = ("pretrain", "round-1")
    return list(dict.fromkeys(phase for stage in stages for phase in phases_of(spec, stage)))


def _training_needs(spec: RunSpec, student: Weights, *, phase: PhaseName, on_gpu: bool) -> Iterator[Need]:
    training = spec.training
    trainable: list[Component] = training.trainable
    batch_sizes = [training.batch_size, training.first_round.batch_size or training.batch_size]
    if phase == "pretrain":
        assert spec.pretraining is not None, "phases_of"
        trainable, batch_sizes = spec.pretraining.trainable, [spec.pretraining.batch_size]
    trained = num_trained(student, trainable)
    batch_size = max(batch_sizes)
    memory = training_memory(
        total=student.total,
        trained=trained,
        training=training,
        batch_size=batch_size,
        num_ranks=spec.trainer.num_ranks,
        on_gpu=on_gpu,
    )
    yield Need(
        phase=phase,
        role="student",
        field="spec.student",
        total=student.total,
        trained=trained,
        memory=memory,
        batch_size=batch_size,
    )


def _answering(spec: RunSpec, phase: PhaseName) -> Iterator[tuple[Role, Model | None, str]]:
    """Models that a phase loads to ask them, with their fields; None for the student."""
    teacher: tuple[Role, Model | None, str] = ("teacher", spec.teacher, "spec.teacher")
    student: tuple[Role, Model | None, str] = ("student", None, "spec.student")
    judge: tuple[Role, Model | None, str] = ("assessor", spec.assessor.model or spec.teacher, "spec.teacher")
    if spec.assessor.model is not None:
        judge = ("assessor", spec.assessor.model, "spec.assessor.model")
    writer: tuple[Role, Model | None, str] = ("augmentor", spec.teacher, "spec.teacher")
    if spec.augmentor.model is not None:
        writer = ("augmentor", spec.augmentor.model, "spec.augmentor.model")
    chats = spec.augmentor.type == "Chat"
    asked = {
        "teach": [teacher] if _teaches(spec) else [],
        "answer": [teacher, student],
        "assess": [judge] if spec.assessor.type != "Reference" else [],
        "augment": ([writer] if chats else []) + ([judge] if chats and spec.augmentor.chat.check_answerable else []),
        "evaluate": [student, teacher],
    }
    for role, model, field in asked[phase]:
        if model is None or model.checkpoint is not None:
            yield role, model, field


def _teaches(spec: RunSpec) -> bool:
    """Whether the teacher is ever asked for what the student learns from."""
    return spec.data.seed.targets == "Teacher" or (spec.rounds.count > 1 and spec.augmentor.type != "Repeat")


def _detail(need: Need) -> str:
    memory = need.memory
    if need.phase not in TRAINING_PHASES:
        return f"{billions(need.total)} parameters, whole on each, without activations"
    parts = (
        f"weights {gib(memory.weights)}, master weights and AdamW {gib(memory.states)}, gradients {gib(memory.working)}"
    )
    if memory.loading > memory.weights + memory.states + memory.working:
        parts = f"{gib(memory.loading)} while it is loaded, whole on each"
    return f"{billions(need.total)} parameters, {billions(need.trained)} of them trained: {parts}, without activations"


def _mend(spec: RunSpec, need: Need, there: float) -> str:
    smaller = f"a smaller {need.role}, or GPUs with more memory"
    if need.phase not in TRAINING_PHASES:
        if need.role == "student":
            return f"use {smaller}"
        return f"use {smaller}, or put it behind an endpoint ({need.field}.endpoint), which may spread it over several GPUs"
    ranks = spec.trainer.num_ranks
    stages = range(spec.training.deepspeed.zero_stage + 1, 4)
    stage = next((stage for stage in stages if _peak(spec.training, need, stage=stage, num_ranks=ranks) <= there), None)
    if stage is not None:
        return f"set spec.training.deepspeed.zeroStage to {stage}, or use {smaller}"
    while ranks < MAX_RANKS:
        ranks *= 2
        for stage in range(spec.training.deepspeed.zero_stage, 4):
            if _peak(spec.training, need, stage=stage, num_ranks=ranks) <= there:
                raised = (
                    f" and set spec.training.deepspeed.zeroStage to {stage}"
                    if stage != spec.training.deepspeed.zero_stage
                    else ""
                )
                return f"use more GPUs, such as {ranks} (numNodes * numProcPerNode){raised}, or {smaller}"
    return f"use {smaller}"


def _peak(training: Training, need: Need, *, stage: int, num_ranks: int) -> int:
    changed = training.replace(deepspeed=training.deepspeed.replace(zero_stage=stage))
    return training_memory(
        total=need.total, trained=need.trained, training=changed, batch_size=need.batch_size, num_ranks=num_ranks
    ).peak


def _ranks(count: int, word: str) -> str:
    plural = f"{word}es" if word.endswith("s") else f"{word}s"
    return f"{count} {plural}" if count != 1 else f"1 {word}"

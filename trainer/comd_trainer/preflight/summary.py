"""Preflight's findings in one short paragraph, for the run's condition."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from comd_api.run import RunSpec
from comd_api.status import PhaseName
from comd_trainer.preflight.fit import Need, asks_for_gpus, billions, gib, is_tight, largest
from comd_trainer.preflight.images import SampledImages
from comd_trainer.preflight.named import BANK_FIELD, PRETRAINING_FIELD, SEED_FIELD, evaluation_field
from comd_trainer.preflight.overlap import FileOverlap
from comd_trainer.preflight.rows import DataRows

MAX_LENGTH = 600
"""Characters."""
ROLES = ("student", "teacher", "assessor", "augmentor")
NAMED_SETS = 2
"""Evaluation sets are named up to as many."""
WORDS = {SEED_FIELD: "seed rows", BANK_FIELD: "bank rows", PRETRAINING_FIELD: "pre-training pairs"}


def summarise(
    spec: RunSpec,
    *,
    rows: DataRows,
    images: SampledImages,
    overlap: Mapping[str, FileOverlap],
    found: list[Need],
    cautions: Sequence[str] = (),
    start: str | None = None,
) -> str:
    """What a user wants to know before GPUs are asked for: what should be mended, how much data, what is wrong with it, how large the
    models are. What does not fit into `MAX_LENGTH` is left out from the end."""
    sentences = [
        *cautions,
        start,
        counted(spec, rows),
        *overlaps(overlap),
        *bad_rows(spec, rows),
        *_bad_images(images),
        models(found),
        *memory(spec, found),
    ]
    text = ""
    for sentence in filter(None, sentences):
        longer = f"{text}; {sentence}" if text else sentence
        if len(longer) <= MAX_LENGTH:
            text = longer
    return text


def counted(spec: RunSpec, rows: DataRows) -> str:
    counts = rows.counts
    parts = [f"{counts[field]:,} {word}" for field, word in WORDS.items() if field in counts]
    held_out = {each.name: counts[evaluation_field(index)] for index, each in enumerate(spec.data.evaluation)}
    if held_out:
        parts.append(f"{sum(held_out.values()):,} rows of {_sets(held_out)}")
    return ", ".join(parts)


def overlaps(overlap: Mapping[str, FileOverlap]) -> Iterator[str]:
    for field, word in WORDS.items():
        if field not in overlap:
            continue
        found = overlap[field]
        shares = "an image" if found.images == found.rows else "an image or a text"
        end = "are learned from all the same" if field == PRETRAINING_FIELD else "are left out"
        yield f"{found.rows:,} {word} share {shares} with {_sets(found.evaluation)} and {end}"


def _sets(names: Collection[str]) -> str:
    if len(names) > NAMED_SETS:
        return f"{len(names)} evaluation sets"
    return f"evaluation set{'s' if len(names) > 1 else ''} {' and '.join(names)}"


def bad_rows(spec: RunSpec, rows: DataRows) -> Iterator[str]:
    names = WORDS | {evaluation_field(index): f"rows of {each.name}" for index, each in enumerate(spec.data.evaluation)}
    for field, count in rows.bad.items():
        missing = rows.missing.get(field, 0)
        why = f", {missing:,} for want of their image" if missing and missing < count else ""
        why = ", for want of their image" if missing == count else why
        yield f"{count:,} {names[field]} can't be used{why}"


def _bad_images(images: SampledImages) -> Iterator[str]:
    if images.bad:
        yield f"{images.bad} of {images.looked_at} images looked at can't be used"


def models(found: list[Need]) -> str:
    """Each model once, by the role that names it."""
    own = {"spec.student": "student", "spec.teacher": "teacher"}
    sizes = {own.get(need.field, need.role): need.total for need in found}
    parts = [f"{role} {billions(sizes[role])}" for role in ROLES if sizes.get(role)]
    return f"{', '.join(parts)} parameters" if parts else ""


def memory(spec: RunSpec, found: list[Need]) -> Iterator[str]:
    trainer = spec.trainer
    on_gpu = trainer.gpu_memory is not None or asks_for_gpus(trainer)
    count = trainer.num_ranks
    unit = "GPU" if on_gpu else "process"
    where = f"the {unit}" if count == 1 else f"each of {count} {unit}{'s' if on_gpu else 'es'}"
    of = f" of {trainer.gpu_memory}" if trainer.gpu_memory is not None else ""
    words: dict[PhaseName, str] = {"tune": "tuning", "pretrain": "pre-training"}
    for phase, word in words.items():
        need = largest(found, phase)
        if need is None:
            continue
        yield f"{word} needs at least {gib(need.memory.peak)} on {where}{of}, activations aside"
        if is_tight(spec, need):
            yield (
                "that leaves little for them: lower training.microBatchSize, set training.gradientCheckpointing, or share more "
                "(training.deepspeed.zeroStage)"
            )
    answering = [need for need in found if need.phase not in words]
    most = max(answering, key=lambda need: need.memory.peak, default=None)
    if most is not None:
        yield f"answering at least {gib(most.memory.peak)} ({most.role})"

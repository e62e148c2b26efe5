"""`comd plan FILE`: what would be run, made of what, making what."""

import math
import sys
from pathlib import Path
from typing import TextIO

from comd_api.exit_codes import ExitCode
from comd_api.profile import resolve
from comd_api.run import DistillationRun, RunSpec, Storage
from comd_api.schedule import DistillationSchedule
from comd_api.stages import phases_of, round_of, stage_names
from comd_api.start import StartFrom
from comd_api.status import PhaseName
from comd_operator.cli.rows import count_rows
from comd_operator.cli.storage import choose_storage
from comd_operator.local.workdir import WorkDir
from comd_operator.planner import jobs_of
from comd_operator.schedules.runs import template_run
from comd_operator.validation import load_manifest


def plan_command(file: Path, *, storage: str | None) -> int:
    manifest = load_manifest(file)
    run = manifest if isinstance(manifest, DistillationRun) else template_run(manifest)
    default = WorkDir(Path("runs") / run.metadata.name).store
    chosen = choose_storage(run.spec, storage, default=default)
    if isinstance(manifest, DistillationSchedule):
        from comd_operator.cli.schedule_plan import schedule_lines

        print("\n".join(schedule_lines(manifest, storage=chosen)))
    else:
        print_plan(run.replace(spec=run.spec.replace(storage=chosen)), sys.stdout)
    return ExitCode.DONE


def print_plan(run: DistillationRun, stream: TextIO) -> None:
    print("\n".join(plan_lines(run)), file=stream)


def plan_lines(run: DistillationRun) -> list[str]:
    """The plan as a tree: stages, their phases, and what each reads and makes. Numbers stand where they are known
    beforehand."""
    spec = resolve(run.spec)
    assert spec.storage is not None, "storage is chosen before a plan is made"
    stages = stage_names(spec)
    jobs = sum(len(jobs_of(spec, stage)) for stage in stages)
    lines = [f"{run.metadata.name}: {len(stages)} stages, {jobs} jobs, artifacts in {spec.storage.uri}"]
    if spec.skip_if_unchanged_since is not None:
        lines.append(
            f"  nothing but preflight, if neither data nor recipe have changed since run {spec.skip_if_unchanged_since}"
        )
    for stage in stages:
        lines.append(f"  {stage}")
        lines += [f"    {phase:<9} {phase_line(spec, spec.storage, stage, phase)}" for phase in phases_of(spec, stage)]
    return lines


def phase_line(spec: RunSpec, storage: Storage, stage: str, phase: PhaseName) -> str:
    """What a phase reads → what it makes."""
    number = round_of(stage)
    rounds, data = spec.rounds, spec.data
    train = "seed" if number <= 1 else f"train pool {number}"
    match phase:
        case "preflight":
            start = f"; the student of {start_text(spec.start_from)} found" if spec.start_from is not None else ""
            return f"manifest, data, models → access and content checked{start}"
        case "pretrain":
            assert spec.pretraining is not None, "it is a phase then"
            assert data.pretraining is not None, "a rule of the contract"
            pairs = count_rows(data.pretraining, storage)
            steps = steps_text(
                pairs,
                epochs=spec.pretraining.epochs,
                batch_size=spec.pretraining.batch_size,
                max_steps=spec.pretraining.max_steps,
            )
            return f"{_rows(pairs, 'pairs', data.pretraining)} → student 0, {steps}"
        case "teach":
            if number > 1:
                return f"{train} → answers to imitate"
            rows = _rows(count_rows(data.seed.instructions, storage), "rows", data.seed.instructions)
            new = f"what is new in {rows}, and a replay" if _carries_on(spec) else rows
            return f"{new} → answers to imitate"
        case "tune":
            return f"student {number - 1}, answers → student {number}, {_tune_steps(spec, storage, number)}"
        case "answer":
            draws = rounds.assessment.fresh_items if number < rounds.count else 0
            fresh = f" and {draws} unused bank items" if draws else ""
            pool = f"up to {rounds.assessment.sample_size} items of the cache pool"
            return f"{pool}{fresh} → answers of student {number} and teacher"
        case "assess":
            hard = f"hard from a gap of {rounds.threshold:g} with a teacher score of {rounds.teacher_floor:g} or more"
            return f"both answers ({spec.assessor.type}) → gaps; {hard}"
        case "augment":
            return f"{_augment_inputs(spec)} → {_new_items(spec)}, train pool {number + 1}, cache pool"
        case "evaluate":
            sets = ", ".join(_rows(count_rows(one.items, storage), "rows", one.name) for one in data.evaluation)
            return f"student {number}, {sets} → scores of student and teacher"
        case "promote":
            assert spec.promotion is not None, "it is a phase then"
            where = f"channels/{spec.promotion.channel}.json"
            return (
                f"newest student, the one that {where} points to ({spec.promotion.evaluation}) → the better one there"
            )


def start_text(start: StartFrom) -> str:
    """`run nightly-1`."""
    if start.artifact is not None:
        return start.artifact.uri
    return " or ".join(
        f"{kind} {name}" for kind, name in (("channel", start.channel), ("run", start.run)) if name is not None
    )


def _carries_on(spec: RunSpec) -> bool:
    """Whether round 1 begins with pools."""
    return spec.start_from is not None and spec.start_from.artifact is None


def _augment_inputs(spec: RunSpec) -> str:
    source = {"Chat": "", "Retrieval": ", bank", "Random": "bank", "Repeat": "train pool"}[spec.augmentor.type]
    return f"hard and easy items{source}" if spec.augmentor.type in ("Chat", "Retrieval") else source


def _new_items(spec: RunSpec) -> str:
    if spec.augmentor.type == "Repeat":
        return "no new items"
    augmentation = spec.rounds.augmentation
    numbers = [augmentation.hard_items, augmentation.easy_items]
    if spec.augmentor.type == "Random" and spec.rounds.assessment.fresh_items:
        numbers.append(spec.rounds.assessment.fresh_items)
    return f"{' + '.join(map(str, numbers))} new items ({spec.augmentor.type})"


def _tune_steps(spec: RunSpec, storage: Storage, number: int) -> str:
    training, first = spec.training, spec.training.first_round
    if number == 1 and _carries_on(spec):
        rows = None
    elif number == 1 or spec.augmentor.type == "Repeat":
        rows = count_rows(spec.data.seed.instructions, storage)
    else:
        rounds = spec.rounds
        new = rounds.augmentation.hard_items + rounds.augmentation.easy_items + rounds.assessment.fresh_items
        rows = new + round((rounds.replay_fraction or 0.0) * new)
    if number > 1:
        return steps_text(
            rows,
            epochs=training.epochs,
            batch_size=training.batch_size,
            max_steps=training.max_steps,
            most=spec.augmentor.type != "Repeat",
        )
    max_steps = first.max_steps if first.max_steps is not None else training.max_steps if first.epochs is None else None
    return steps_text(
        rows,
        epochs=first.epochs or training.epochs,
        batch_size=first.batch_size or training.batch_size,
        max_steps=max_steps,
    )


def steps_text(rows: int | None, *, epochs: float, batch_size: int, max_steps: int | None, most: bool = False) -> str:
    """`24 steps of 128`. Rows of a file are items unless a row is a conversation, which gives one item per turn."""
    if max_steps is not None:
        return f"{max_steps} steps of {batch_size}"
    if rows is None:
        return f"{epochs:g} epochs, steps of {batch_size}"
    steps = max(1, math.ceil(rows * epochs / batch_size))
    return f"{'at most' if most else 'about'} {steps} steps of {batch_size} ({epochs:g} epochs)"


def _rows(count: int | None, unit: str, name: str) -> str:
    return name if count is None else f"{name} ({count} {unit})"

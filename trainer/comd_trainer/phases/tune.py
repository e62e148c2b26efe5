"""Step a of a round: the student is tuned on the teacher's answers (method section 4a). Weights carry on from the round before,
optimizer and schedule are fresh (method section 12, row 6)."""

from collections.abc import Mapping
from typing import Any

from comd_api.run import RunSpec
from comd_api.stage import StageConfig
from comd_trainer.context import PhaseContext

INPUTS: tuple[str, ...] = ("pretrain", "student", "teach")


def recipe(config: StageConfig, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What the student depends on besides its inputs."""
    from comd_trainer.phases.training import student_recipe, training_recipe

    spec = config.spec
    return {
        "seed": spec.seed,
        "round": config.round,
        # Of a checkpoint without pre-training, round 1 begins with the checkpoint itself.
        "student": student_recipe(spec, fingerprints) if config.round == 1 and begins_with_checkpoint(spec) else None,
        "numbers": numbers(spec, round_=config.round),
        "trainable": sorted(spec.training.trainable),
        "training": training_recipe(spec),
        "images": fingerprints[spec.data.images],
        "maxBadRowFraction": spec.data.max_bad_row_fraction,
    }


def run(ctx: PhaseContext) -> None:
    from comd_trainer.data.rows import Answer, Item, read_rows
    from comd_trainer.data.seeds import derive
    from comd_trainer.engine.examples import from_answers
    from comd_trainer.engine.loop import Plan
    from comd_trainer.phases.training import open_student, train_and_save

    spec = ctx.spec
    teach = ctx.artifacts["teach"]
    items = read_rows(teach.path("items.jsonl"), Item)
    answers = read_rows(teach.path("answers.jsonl"), Answer)
    train_and_save(
        ctx,
        student=open_student(ctx),
        trainable=spec.training.trainable,
        field="spec.training.trainable",
        examples=from_answers(items, answers),
        plan=Plan(
            training=spec.training,
            **numbers(spec, round_=ctx.config.round),
            seed=derive(spec.seed, "tune", ctx.config.round),
            max_bad_row_fraction=spec.data.max_bad_row_fraction,
        ),
    )


def begins_with_checkpoint(spec: RunSpec) -> bool:
    return spec.pretraining is None and spec.start_from is None


def numbers(spec: RunSpec, *, round_: int) -> dict[str, Any]:
    """Learning rate, batch size and length of a round: those of `training`, except where `firstRound` differs in round 1."""
    training, first = spec.training, spec.training.first_round
    plain = {
        "learning_rate": training.learning_rate,
        "batch_size": training.batch_size,
        "epochs": training.epochs,
        "max_steps": training.max_steps,
    }
    if round_ != 1:
        return plain
    changes = {name: getattr(first, name) for name in plain if getattr(first, name) is not None}
    if first.epochs is not None and first.max_steps is None:
        # Epochs said of round 1 alone win over steps said of all rounds.
        changes["max_steps"] = None
    return plain | changes

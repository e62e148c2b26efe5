"""Stage 1: the student is put together and its projector learns from image and caption pairs (method section 3)."""

from collections.abc import Mapping
from typing import Any

from comd_api.stage import StageConfig
from comd_trainer.context import PhaseContext

INPUTS: tuple[str, ...] = ()


def recipe(config: StageConfig, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What the student depends on besides its inputs."""
    from comd_trainer.phases.training import student_recipe, training_recipe

    spec = config.spec
    assert spec.pretraining is not None, "the planner leaves the phase out"
    assert spec.data.pretraining is not None, "a rule of the contract"
    return {
        "seed": spec.seed,
        "student": student_recipe(spec, fingerprints),
        "pretraining": spec.pretraining.to_wire(),
        "training": training_recipe(spec),
        "pairs": fingerprints[spec.data.pretraining],
        "images": fingerprints[spec.data.images],
        "maxBadRowFraction": spec.data.max_bad_row_fraction,
    }


def run(ctx: PhaseContext) -> None:
    from comd_trainer.data.pairs import read_pairs
    from comd_trainer.engine.examples import from_pairs
    from comd_trainer.engine.loop import Plan
    from comd_trainer.phases.training import open_student, train_and_save

    spec = ctx.spec
    assert spec.pretraining is not None, "the planner leaves the phase out"
    assert spec.data.pretraining is not None, "a rule of the contract"
    pairs = read_pairs(
        ctx.sources.file(spec.data.pretraining, field="data.pretraining"),
        field="data.pretraining",
        max_bad_fraction=spec.data.max_bad_row_fraction,
    )
    train_and_save(
        ctx,
        student=open_student(ctx),
        trainable=spec.pretraining.trainable,
        field="spec.pretraining.trainable",
        examples=from_pairs(pairs, instructions=spec.pretraining.instructions, seed=spec.seed),
        plan=Plan(
            training=spec.training,
            learning_rate=spec.pretraining.learning_rate,
            batch_size=spec.pretraining.batch_size,
            epochs=spec.pretraining.epochs,
            max_steps=spec.pretraining.max_steps,
            seed=spec.seed,
            max_bad_row_fraction=spec.data.max_bad_row_fraction,
        ),
    )

"""Who answered better, and by how much: hard and easy items (method sections 4b and 5)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from comd_api.exit_codes import BadDataError
from comd_api.roles import Model
from comd_api.run import RunSpec
from comd_api.stage import StageConfig
from comd_trainer.context import PhaseContext
from comd_trainer.data.rows import Answer, Item, Review, Verdict, read_rows, write_rows
from comd_trainer.generation.base import fingerprint_of
from comd_trainer.judging.report import check_drops, summary, why_stop
from comd_trainer.judging.scores import (
    Scores,
    equal_answers,
    equal_verdict,
    likelihood_score,
    reference_scores,
    verdict_of,
    verdict_of_reviews,
)
from comd_trainer.phases.inputs import decoding_recipe
from comd_trainer.phases.judge import Compared, ask_judge

INPUTS = ("answer",)


class Assessed(NamedTuple):
    verdicts: list[Verdict]
    """Of the items whose answers differ."""
    reviews: list[Review]


def recipe(config: StageConfig, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    spec, rounds = config.spec, config.spec.rounds
    judges = spec.assessor.type == "Judge"
    return {
        "round": config.round,
        "lastRound": config.last_round,
        "assessor": spec.assessor.type,
        "model": None if spec.assessor.type == "Reference" else fingerprint_of(assessor_model(spec), fingerprints),
        "precision": spec.training.precision,
        "judge": spec.assessor.judge.to_wire() if judges else None,
        "decoding": decoding_recipe(spec.generation.assessor) if judges else None,
        "annotations": fingerprints[spec.data.annotations] if judges and spec.data.annotations else None,
        "images": fingerprints[spec.data.images],
        "threshold": rounds.threshold,
        "teacherFloor": rounds.teacher_floor,
        "hardItemsFloor": rounds.hard_items_floor,
        "belowFloor": rounds.below_floor,
        "hardItems": rounds.augmentation.hard_items,
        "maxDropFraction": spec.assessor.judge.max_drop_fraction,
        "seed": spec.seed,
    }


def run(ctx: PhaseContext) -> None:
    folder, spec = ctx.artifacts["answer"], ctx.spec
    items = read_rows(folder.path("items.jsonl"), Item)
    teacher = read_rows(folder.path("teacher.jsonl"), Answer)
    student = read_rows(folder.path("student.jsonl"), Answer)
    compared = [Compared(*row) for row in zip(items, teacher, student, strict=True)]
    differing = [row for row in compared if not equal_answers(row.teacher, row.student)]
    assessed = assess(ctx, differing)
    if not ctx.is_first:
        return
    found = {verdict.item: verdict for verdict in assessed.verdicts}
    verdicts = [found.get(item.id) or equal_verdict(item.id) for item in items]
    limit, field = spec.assessor.judge.max_drop_fraction, "assessor.judge.maxDropFraction"
    check_drops(verdicts, assessed.reviews, max_drop_fraction=limit, field=field, unasked=why_unasked(spec))
    write_rows(ctx.out / "verdicts.jsonl", verdicts)
    write_rows(ctx.out / "reviews.jsonl", assessed.reviews)
    meta = summary(verdicts, assessed.reviews, teacher=teacher, student=student)
    ctx.set_meta({**meta, "assessor": spec.assessor.type, **stop_meta(ctx, meta["counts"])})


def why_unasked(spec: RunSpec) -> str:
    if spec.assessor.type == "Reference":
        return "they have no known answer to compare with"
    return "their images have no annotations, and assessor.judge.evidence Annotations shows the judge nothing else"


def assess(ctx: PhaseContext, differing: list[Compared]) -> Assessed:
    """Verdicts by the kind of assessor that the manifest asks for."""
    if ctx.spec.assessor.type == "Judge":
        return by_judge(ctx, differing)
    if ctx.spec.assessor.type == "Likelihood":
        return by_likelihood(ctx, differing)
    return Assessed(
        [
            _verdict(ctx, row.item, reference_scores(row.item, teacher=row.teacher, student=row.student))
            for row in differing
        ],
        [],
    )


def by_judge(ctx: PhaseContext, differing: list[Compared]) -> Assessed:
    rounds = ctx.spec.rounds
    assert rounds.teacher_floor is not None, "the supervisor resolves the spec"
    reviews = ask_judge(ctx, differing, model=assessor_model(ctx.spec), field=assessor_field(ctx.spec))
    by_item: dict[str, list[Review]] = {row.item.id: [] for row in differing}
    for review in reviews:
        by_item[review.item].append(review)
    verdicts = [
        verdict_of_reviews(item, given, threshold=rounds.threshold, teacher_floor=rounds.teacher_floor)
        for item, given in by_item.items()
    ]
    return Assessed(verdicts, reviews)


def by_likelihood(ctx: PhaseContext, differing: list[Compared]) -> Assessed:
    """Both answers under one model; teacher's and student's in one pass, so that the model is loaded once."""
    from comd_trainer.generation.likelihood import score_answers

    model = assessor_model(ctx.spec)
    assert model.checkpoint is not None, "the contract's rules"
    rows = [(row.item, answer.text) for row in differing for answer in (row.teacher, row.student)]
    means = score_answers(
        ctx,
        checkpoint=model.checkpoint,
        fingerprint=fingerprint_of(model, ctx.fingerprints),
        rows=rows,
        field=assessor_field(ctx.spec),
    )
    scores = [likelihood_score(mean) for mean in means]
    pairs = [Scores(*pair) for pair in zip(scores[::2], scores[1::2], strict=True)]
    return Assessed([_verdict(ctx, row.item, pair) for row, pair in zip(differing, pairs, strict=True)], [])


def _verdict(ctx: PhaseContext, item: Item, scores: Scores | None) -> Verdict:
    rounds = ctx.spec.rounds
    assert rounds.teacher_floor is not None, "the supervisor resolves the spec"
    return verdict_of(item.id, scores, threshold=rounds.threshold, teacher_floor=rounds.teacher_floor)


def stop_meta(ctx: PhaseContext, counts: Mapping[str, int]) -> dict[str, Any]:
    """`stop` when no further round makes sense. The last round has none to stop. Raises BadDataError when `belowFloor`
    is `Fail`."""
    rounds = ctx.spec.rounds
    why = why_stop(
        counts,
        floor=rounds.hard_items_floor,
        hard_items=rounds.augmentation.hard_items,
        threshold=rounds.threshold,
    )
    if why is None or ctx.config.last_round:
        return {}
    if rounds.below_floor == "Fail":
        judged = counts["compared"] > counts["dropped"]
        mend = "lower rounds.threshold or rounds.hardItemsFloor" if judged else "use an assessor that gives scores"
        raise BadDataError(f"{why}; {mend}, or set rounds.belowFloor to Stop")
    return {"stop": why}


def assessor_model(spec: RunSpec) -> Model:
    return spec.assessor.model or spec.teacher


def assessor_field(spec: RunSpec) -> str:
    return "spec.assessor.model" if spec.assessor.model is not None else "spec.teacher"

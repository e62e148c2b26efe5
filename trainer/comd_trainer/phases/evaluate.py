"""The newest student, and the teacher beside it, on held-out questions (method section 8)."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from comd_api.data import EvaluationSet
from comd_api.roles import Model
from comd_api.stage import StageConfig
from comd_trainer import metrics
from comd_trainer.context import PhaseContext
from comd_trainer.data.rows import Item, write_rows
from comd_trainer.evaluation.scores import Prediction, details_of, judge_answer, judge_likelihoods, score_of
from comd_trainer.generation.base import fingerprint_of
from comd_trainer.phases.inputs import decoding_recipe, read_evaluation

INPUTS = ("tune", "pretrain", "student")

log = logging.getLogger(__name__)


class Candidate(NamedTuple):
    """A model that is evaluated."""

    role: Literal["student", "teacher"]
    model: Model | Path
    fingerprint: str
    field: str


def recipe(config: StageConfig, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    spec = config.spec
    start = spec.student.checkpoint
    return {
        "sets": [[each.name, each.metric, fingerprints[each.items]] for each in spec.data.evaluation],
        "images": fingerprints[spec.data.images],
        "maxBadRowFraction": spec.data.max_bad_row_fraction,
        "start": fingerprints[start.source] if start is not None else None,
        "teacher": fingerprint_of(spec.teacher, fingerprints),
        "decoding": decoding_recipe(spec.generation.evaluation),
        "precision": spec.training.precision,
        "seed": spec.seed,
    }


def run(ctx: PhaseContext) -> None:
    sets = read_evaluation(ctx)
    predictions: list[list[Prediction]] = []
    for candidate in (student_of(ctx), teacher_of(ctx)):
        for evaluation in ctx.spec.data.evaluation:
            made = predict(ctx, candidate, evaluation, sets[evaluation.name])
            if made:
                predictions.append(made)
                count_score(ctx, made, evaluation)
    if not ctx.is_first:
        return
    details = [details_of(made) for made in predictions]
    (ctx.out / "scores.json").write_text(json.dumps(details, indent=1) + "\n", encoding="utf-8")
    write_rows(ctx.out / "predictions.jsonl", [prediction for made in predictions for prediction in made])
    ctx.set_meta({"scores": [score_of(made).to_wire() for made in predictions]})


def count_score(ctx: PhaseContext, made: list[Prediction], evaluation: EvaluationSet) -> None:
    """At once: the teacher's answers may take longer than a scrape, and the phase is the stage's last."""
    if ctx.is_first:
        score = score_of(made)
        metrics.put(metrics.SCORE, score.value, evaluation=score.evaluation, role=score.role, metric=evaluation.metric)


def student_of(ctx: PhaseContext) -> Candidate:
    """The newest one: of this stage, else of the stage before, else where the run starts from."""
    for name in ("tune", "pretrain", "student"):
        if name in ctx.artifacts:
            artifact = ctx.artifacts[name]
            return Candidate("student", artifact.folder(), artifact.digest, "spec.student")
    start = ctx.spec.student.checkpoint
    assert start is not None, "a composed student is pre-trained before it is evaluated"
    return Candidate("student", Model(checkpoint=start), ctx.fingerprints[start.source], "spec.student")


def teacher_of(ctx: PhaseContext) -> Candidate:
    return Candidate("teacher", ctx.spec.teacher, fingerprint_of(ctx.spec.teacher, ctx.fingerprints), "spec.teacher")


def predict(ctx: PhaseContext, candidate: Candidate, evaluation: EvaluationSet, items: list[Item]) -> list[Prediction]:
    """One prediction for each item; none where an endpoint can't give the log-probabilities that the metric needs."""
    name, role, metric = evaluation.name, candidate.role, evaluation.metric
    if metric == "ChoiceLikelihood":
        scored = score_choices(ctx, candidate, items)
        return (
            [
                judge_likelihoods(item, each, evaluation=name, role=role)
                for item, each in zip(items, scored, strict=True)
            ]
            if scored
            else []
        )
    from comd_trainer.generation.answering import answer_items

    answers, _ = answer_items(
        ctx,
        role=role,
        model=candidate.model,
        fingerprint=candidate.fingerprint,
        items=items,
        decoding=ctx.spec.generation.evaluation,
        field=candidate.field,
    )
    return [
        judge_answer(item, answer, evaluation=name, role=role, metric=metric)
        for item, answer in zip(items, answers, strict=True)
    ]


def score_choices(ctx: PhaseContext, candidate: Candidate, items: list[Item]) -> list[list[float]]:
    """Mean log-probability of each option of each item; empty for an endpoint."""
    from comd_trainer.generation.likelihood import score_answers

    checkpoint = candidate.model.checkpoint if isinstance(candidate.model, Model) else candidate.model
    if checkpoint is None:
        if ctx.is_first:
            log.warning(
                "the %s is an endpoint, which gives no log-probabilities: no ChoiceLikelihood score", candidate.role
            )
        return []
    means = iter(
        score_answers(
            ctx,
            checkpoint=checkpoint,
            fingerprint=candidate.fingerprint,
            rows=[(item, choice) for item in items for choice in item.choices],
            field=candidate.field,
            batch_size=ctx.spec.generation.evaluation.batch_size,
        )
    )
    return [[next(means) for _ in item.choices] for item in items]

"""The stage `promote`: the run's student beside the one that its channel points to. It needs no GPU: both were evaluated before."""

import json
import logging
import shutil
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from comd_api.exit_codes import TryAgainError, UserError
from comd_api.promotion import Promotion
from comd_api.stage import StageConfig
from comd_api.status import Score
from comd_trainer.data.rows import read_dicts
from comd_trainer.evaluation.scores import Prediction
from comd_trainer.keys import phase_key, phase_prefix
from comd_trainer.outcome import Outcome, open_entry, outcome_path, read_outcome
from comd_trainer.promotion.channels import MovedError, Standing, history, move, pointer_path, read_pointer
from comd_trainer.promotion.compare import Verdict, judge
from comd_trainer.store.artifacts import Artifact, CorruptArtifactError, open_artifact, publish
from comd_trainer.store.stores import Store

log = logging.getLogger(__name__)

PREDICTIONS = "predictions.jsonl"
MANY = 50
"""Moves of a channel that are looked back on."""


class _End(NamedTuple):
    promoted: bool
    message: str


def promote(
    config: StageConfig, *, student: Artifact, store: Store, cache: Path, scratch: Path, now: datetime | None = None
) -> tuple[Artifact, bool]:
    """The artifact `promote`, whose `meta` has `promoted` and a `summary`, and whether it was there already: a run promotes its student
    once, and not again when it is applied again after somebody has rolled back.

    Raises:
        UserError: the run's own outcome is not that of its student.
        BadDataError: the pointer does not parse.
        TryAgainError: the store is away.
    """
    promotion = config.spec.promotion
    assert promotion is not None, "the stage is there because of it"
    outcome = read_outcome(store, namespace=config.namespace, run=config.run)
    if outcome is None or outcome.student.digest != student.digest or outcome.evaluation is None:
        raise UserError(
            f"{store.uri_of(outcome_path(config.namespace, config.run))} is not of this run's student {student.uri}, so that nothing is "
            "known to promote it by; run no two runs of one namespace and name in the same store"
        )
    evaluation = open_entry(outcome.evaluation, "evaluate", store=store, cache_dir=cache)
    inputs = {"student": student.digest, "evaluate": evaluation.digest}
    key = phase_key(phase="promote", recipe=promotion.to_wire(), inputs=inputs)
    prefix = phase_prefix(config, "promote", key)
    made = open_artifact(store, prefix, cache_dir=cache)
    if made is not None:
        return made, True
    before = read_pointer(store, promotion.channel)
    end = _decide(config, outcome, student, evaluation, before, store=store, cache=cache, now=now)
    where = pointer_path(promotion.channel)
    summary = f"promoted to {where}: {end.message}" if end.promoted else f"not promoted to {where}: {end.message}"
    log.info("%s", summary)
    report = {"promoted": end.promoted, "reason": end.message, "student": student.uri}
    shutil.rmtree(scratch / "out", ignore_errors=True)
    out = scratch / "out"
    out.mkdir(parents=True)
    (out / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True))
    meta = {"promoted": end.promoted, "summary": summary}
    return publish(store, prefix=prefix, kind="promote", key=key, folder=out, meta=meta, cache_dir=cache), False


def _decide(
    config: StageConfig,
    outcome: Outcome,
    student: Artifact,
    evaluation: Artifact,
    before: Standing | None,
    *,
    store: Store,
    cache: Path,
    now: datetime | None,
) -> _End:
    promotion = config.spec.promotion
    assert promotion is not None, "the stage is there because of it"
    own = f"{config.namespace}/{config.run}"
    if before is not None and before.pointer.digest == student.digest:
        again = "" if before.pointer.run == own else "the channel points to this student already: "
        return _End(True, f"{again}{before.pointer.reason}")
    if any(
        (each.run, each.digest) == (own, student.digest) for each in islice(history(store, promotion.channel), MANY)
    ):
        return _End(False, "it was promoted before, and somebody has moved the channel since")
    by_hand = f"comd promote --to {own}"
    verdict = Verdict(True, "the first of this channel")
    if before is not None:
        theirs = _evaluation_of(before, outcome, store=store, cache=cache)
        words = _incomparable(promotion, ours=evaluation, theirs=theirs, run=before.pointer.run)
        if words is not None or theirs is None:
            return _End(False, f"{words}; {by_hand} promotes without a comparison")
        verdict = judge(promotion, candidate=_predictions(evaluation), promoted=_predictions(theirs))
    if not verdict.better:
        return _End(False, verdict.message)
    try:
        move(
            store,
            promotion.channel,
            uri=student.uri,
            digest=student.digest,
            scores=scores_of(evaluation),
            run=own,
            outcome=outcome,
            reason=verdict.message,
            before=before,
            now=now,
        )
    except MovedError as error:
        return _End(False, f"{error}; {by_hand} promotes without a comparison")
    return _End(True, verdict.message)


def scores_of(evaluation: Artifact) -> list[Score]:
    return [Score.model_validate(each) for each in evaluation.meta.get("scores", [])]


def _evaluation_of(standing: Standing, outcome: Outcome, *, store: Store, cache: Path) -> Artifact | None:
    """What the promoted student has answered: to this run, where that began with it, else to the run that made it. None: it is gone."""
    entry = outcome.evaluation_of(standing.pointer.digest) or standing.pointer.outcome.evaluation
    if entry is None:
        return None
    try:
        return open_entry(entry, "evaluate", store=store, cache_dir=cache)
    except TryAgainError:
        raise
    except CorruptArtifactError as error:
        log.warning("%s", error)
        return None


def _incomparable(promotion: Promotion, *, ours: Artifact, theirs: Artifact | None, run: str) -> str | None:
    """Why the answers of both can't be compared, in a sentence."""
    if theirs is None:
        return f"what the promoted student of run {run} has answered is gone, so that they can't be compared"
    for name in (promotion.evaluation, *(guard.evaluation for guard in promotion.guards)):
        if asked_how(ours, name) != asked_how(theirs, name):
            return f"evaluation {name} was another one, or asked in another way, when the promoted student of run {run} answered it"
    return None


def asked_how(evaluation: Artifact, name: str) -> list[object]:
    """Rows, metric and decoding of one evaluation. Images are known by the rows that name them: their folder may have got more."""
    recipe = evaluation.meta.get("recipe", {})
    sets = [each for each in recipe.get("sets", []) if each[0] == name]
    return [sets, recipe.get("decoding"), recipe.get("precision")]


def _predictions(evaluation: Artifact) -> list[Prediction]:
    return [
        Prediction(**{**row, "log_probabilities": tuple(row["log_probabilities"])})
        for row in read_dicts(evaluation.path(PREDICTIONS))
    ]

"""Predictions of one model on one evaluation set, and their score on the wire and in full."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from comd_api.status import GroupScore, Score
from comd_trainer.data.rows import Answer, Item
from comd_trainer.evaluation.metrics import exact_match, likeliest, read_letter, wilson

MAX_GROUPS = 16
"""More groups than these do not go into the status; they are in the artifact."""
MAX_GROUP_NAME = 64


@dataclass(frozen=True, kw_only=True)
class Prediction:
    evaluation: str
    role: Literal["student", "teacher"]
    item: str
    text: str
    """What the model answered, or the option that it found likeliest."""
    reading: str | None
    """What was compared with the reference: the text itself, or the letter read from it; None when none could be read.
    """
    reference: str
    correct: bool
    group: str | None = None
    finish: Literal["stop", "length"] | None = None
    """None when nothing was generated."""
    log_probabilities: tuple[float, ...] = ()
    """Of the options, per token (`ChoiceLikelihood`)."""


def judge_answer(
    item: Item, answer: Answer, *, evaluation: str, role: Literal["student", "teacher"], metric: str
) -> Prediction:
    """`ExactMatch` and `MultipleChoice`: a generated answer."""
    assert item.reference is not None, "items without a known answer were left out when the file was read"
    if metric == "ExactMatch":
        reading: str | None = answer.text
        correct = exact_match(answer.text, item.reference)
    else:
        reading = read_letter(answer.text, num_choices=len(item.choices))
        correct = reading == item.reference.strip()
    return Prediction(
        evaluation=evaluation,
        role=role,
        item=item.id,
        text=answer.text,
        reading=reading,
        reference=item.reference,
        correct=correct,
        group=item.group,
        finish=answer.finish,
    )


def judge_likelihoods(
    item: Item, log_probabilities: Sequence[float], *, evaluation: str, role: Literal["student", "teacher"]
) -> Prediction:
    """`ChoiceLikelihood`: one mean log-probability for each option."""
    assert item.reference is not None
    assert len(log_probabilities) == len(item.choices)
    letter = likeliest(log_probabilities)
    return Prediction(
        evaluation=evaluation,
        role=role,
        item=item.id,
        text=item.choices[ord(letter) - ord("A")],
        reading=letter,
        reference=item.reference,
        correct=letter == item.reference.strip(),
        group=item.group,
        log_probabilities=tuple(log_probabilities),
    )


def groups_of(predictions: Sequence[Prediction]) -> list[GroupScore]:
    """Accuracy by group, in alphabetical order; items without a group are in none."""
    by_group: dict[str, list[bool]] = {}
    for prediction in predictions:
        if prediction.group is not None:
            by_group.setdefault(prediction.group, []).append(prediction.correct)
    return [
        GroupScore(name=name[:MAX_GROUP_NAME], value=sum(right) / len(right), num_items=len(right))
        for name, right in sorted(by_group.items())
    ]


def score_of(predictions: Sequence[Prediction]) -> Score:
    """Accuracy with interval of one role on one set, as the status shows it."""
    first = predictions[0]
    assert all((each.evaluation, each.role) == (first.evaluation, first.role) for each in predictions)
    interval = wilson(sum(each.correct for each in predictions), len(predictions))
    groups = groups_of(predictions)
    return Score(
        evaluation=first.evaluation,
        role=first.role,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        num_items=len(predictions),
        groups=groups if len(groups) <= MAX_GROUPS else [],
    )


def details_of(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The score and what the status has no room for: all groups, their plain mean (`balanced`: each group counts alike,
    however many items it has), and how many answers could not be read or were cut."""
    groups = groups_of(predictions)
    return {
        **score_of(predictions).to_wire(),
        "groups": [group.to_wire() for group in groups],
        "balanced": sum(group.value for group in groups) / len(groups) if groups else None,
        "correct": sum(each.correct for each in predictions),
        "unread": sum(each.reading is None for each in predictions),
        "cut": sum(each.finish == "length" for each in predictions),
    }

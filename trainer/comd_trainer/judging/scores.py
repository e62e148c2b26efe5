"""From scores to verdicts (method section 5). A score that never parsed is None and never becomes a number."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from comd_trainer.data.rows import Answer, Item, Label, Review, Verdict
from comd_trainer.data.text import normalise

LOWEST, HIGHEST = 1.0, 10.0


class Scores(NamedTuple):
    teacher: float
    student: float

    @property
    def gap(self) -> float:
        return self.teacher - self.student


def equal_answers(teacher: Answer, student: Answer) -> bool:
    """Nobody needs to be asked about these: their gap is 0 (method section 12, row 15b)."""
    return normalise(teacher.text) == normalise(student.text)


def likelihood_score(mean_log_probability: float) -> float:
    """1 for an answer that the model thinks impossible, 10 for a certain one. `mean_log_probability` is per token, at
    most 0."""
    return LOWEST + (HIGHEST - LOWEST) * math.exp(min(0.0, mean_log_probability))


def reference_score(answer: str, reference: str) -> float:
    """10 for the known answer, case and white space aside; else 1."""
    return HIGHEST if normalise(answer) == normalise(reference) else LOWEST


def label_of(scores: Scores, *, threshold: float, teacher_floor: float) -> Label:
    """Hard when the teacher leads by at least the threshold and is good enough to learn from (method section 12, row
    17)."""
    return "hard" if scores.gap >= threshold and scores.teacher >= teacher_floor else "easy"


def verdict_of(item: str, scores: Scores | None, *, threshold: float, teacher_floor: float) -> Verdict:
    """The verdict from one pair of scores; dropped when there is none."""
    if scores is None:
        return Verdict(item=item, label="dropped")
    return Verdict(
        item=item,
        label=label_of(scores, threshold=threshold, teacher_floor=teacher_floor),
        teacher=scores.teacher,
        student=scores.student,
        gap=scores.gap,
    )


def equal_verdict(item: str) -> Verdict:
    return Verdict(item=item, label="easy", gap=0.0, equal=True)


def verdict_of_reviews(item: str, reviews: Sequence[Review], *, threshold: float, teacher_floor: float) -> Verdict:
    """The verdict from both orders: the mean of each side's scores. One order that failed drops the item (method
    section 12, row 16): half a comparison carries the judge's bias for a place in full."""
    parsed = {review.order: scores for review in reviews if (scores := scores_of(review)) is not None}
    if set(parsed) != {"TS", "ST"}:
        return Verdict(item=item, label="dropped")
    first, second = parsed["TS"], parsed["ST"]
    mean = Scores((first.teacher + second.teacher) / 2, (first.student + second.student) / 2)
    return Verdict(
        item=item,
        label=label_of(mean, threshold=threshold, teacher_floor=teacher_floor),
        teacher=mean.teacher,
        student=mean.student,
        gap=mean.gap,
        order_disagreement=abs(first.gap - second.gap),
    )


def scores_of(review: Review) -> Scores | None:
    if review.teacher is None or review.student is None:
        return None
    return Scores(review.teacher, review.student)


def reference_scores(item: Item, *, teacher: Answer, student: Answer) -> Scores | None:
    """None for an item whose right answer nobody knows."""
    if item.reference is None:
        return None
    return Scores(reference_score(teacher.text, item.reference), reference_score(student.text, item.reference))

"""What a round says of its assessment (method section 12, row 30), and when it is refused (rows 16 and 18)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from comd_api.exit_codes import BadDataError
from comd_trainer.data.rows import Answer, Review, Verdict

SHOWN = 300
"""Characters of a reply that an error shows."""


def check_drops(
    verdicts: Sequence[Verdict], reviews: Sequence[Review], *, max_drop_fraction: float, field: str, unasked: str
) -> None:
    """Raises BadDataError when too many items have no verdict. `unasked`: why items have none that nobody was asked about."""
    dropped = [verdict.item for verdict in verdicts if verdict.label == "dropped"]
    if not dropped or len(dropped) <= max_drop_fraction * len(verdicts):
        return
    parsed = sum(review.teacher is not None for review in reviews)
    lost = set(dropped)
    failed = next((review for review in reviews if review.item in lost and review.teacher is None), None)
    told = f"{parsed} of {len(reviews)} replies parsed" if reviews else unasked
    shown = f"; one that did not: {failed.raw[:SHOWN]!r}" if failed is not None else ""
    raise BadDataError(
        f"{len(dropped)} of {len(verdicts)} compared items have no verdict, "
        f"more than {field} ({max_drop_fraction:g}) allows: {told}{shown}"
    )


def why_stop(counts: Mapping[str, int], *, floor: int, hard_items: int, threshold: float) -> str | None:
    """A sentence when there is too little to go on with (method section 12, row 18), or None. `counts` are those of
    `summary`.

    No hard items at all are too few whatever the floor, when new items are to be made from them; and without any verdict
    there is nothing to make items from. That the student has caught up is said only when every item has a verdict.
    """
    hard, dropped, compared = counts["hard"], counts["dropped"], counts["compared"]
    lost = f"{dropped} of {compared} compared items have no verdict"
    if hard + counts["easy"] == 0:
        return f"{lost}, so that there is nothing to make new items from"
    if hard >= max(floor, 1 if hard_items else 0):
        return None
    why = "the student has caught up with the teacher on what was compared" if not dropped else lost
    if hard >= floor:
        return f"there are no hard items at threshold {threshold:g} for rounds.augmentation.hardItems to be made from; {why}"
    return f"{hard} hard items at threshold {threshold:g} are fewer than rounds.hardItemsFloor ({floor}); {why}"


def summary(
    verdicts: Sequence[Verdict], reviews: Sequence[Review], *, teacher: Sequence[Answer], student: Sequence[Answer]
) -> dict[str, Any]:
    """Facts for the manifest, from which learning can be told from the judge's noise."""
    labels = Counter(verdict.label for verdict in verdicts)
    gaps = [verdict.gap for verdict in verdicts if verdict.gap is not None]
    disagreements = [verdict.order_disagreement for verdict in verdicts if verdict.order_disagreement is not None]
    return {
        "counts": {"compared": len(verdicts), **{label: labels[label] for label in ("hard", "easy", "dropped")}},
        "equalAnswers": sum(verdict.equal for verdict in verdicts),
        "gapHistogram": gap_histogram(gaps),
        "meanGap": _mean(gaps),
        "meanOrderDisagreement": _mean(disagreements),
        "orderFlips": _flips(reviews),
        "replies": len(reviews),
        "repliesParsed": sum(review.teacher is not None for review in reviews),
        "lengthCorrelation": length_correlation(verdicts, teacher=teacher, student=student),
    }


def gap_histogram(gaps: Sequence[float]) -> dict[str, int]:
    """Gaps by whole numbers: "-9" counts -9 <= gap < -8, "9" counts 9."""
    counted = Counter(int(np.floor(gap)) for gap in gaps)
    return {str(gap): counted[gap] for gap in sorted(counted)}


def length_correlation(
    verdicts: Sequence[Verdict], *, teacher: Sequence[Answer], student: Sequence[Answer]
) -> float | None:
    """Pearson correlation of the gap with how much longer (in characters) the teacher's answer is; near 1, the judge
    likes length. None where it is not defined."""
    longer = {t.item: len(t.text) - len(s.text) for t, s in zip(teacher, student, strict=True)}
    pairs = [
        (verdict.gap, longer[verdict.item]) for verdict in verdicts if verdict.gap is not None and not verdict.equal
    ]
    if len(pairs) < 3:
        return None
    gaps, lengths = np.array(pairs, np.float64).T
    if gaps.std() == 0 or lengths.std() == 0:
        return None
    return round(float(np.corrcoef(gaps, lengths)[0, 1]), 4)


def _flips(reviews: Sequence[Review]) -> int:
    """Items for which the winner depends on the order."""
    winners: dict[str, set[float]] = {}
    for review in reviews:
        if review.teacher is not None and review.student is not None:
            winners.setdefault(review.item, set()).add(float(np.sign(review.teacher - review.student)))
    return sum(len(signs) > 1 for signs in winners.values())


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None

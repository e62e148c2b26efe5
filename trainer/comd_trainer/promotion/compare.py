"""Whether a student is better than the one that is served: item by item, for both have answered the same questions. Pure."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from comd_api.promotion import Promotion
from comd_trainer.evaluation.scores import Prediction

_ROUNDING = 1e-9


class Paired(NamedTuple):
    """Two students on the items of one evaluation that both were asked."""

    num_items: int
    candidate: float
    """Accuracy."""
    promoted: float
    wins: int
    """Items that the candidate alone answers rightly."""
    losses: int
    """Items that the promoted student alone answers rightly."""

    @property
    def gain(self) -> float:
        return (self.wins - self.losses) / self.num_items

    @property
    def p_value(self) -> float:
        """Of so many wins or more among the items on which they differ, were both equally good: the exact one-sided sign test (McNemar,
        1947)."""
        return tail(self.wins, self.wins + self.losses)


class Verdict(NamedTuple):
    better: bool
    message: str


def tail(wins: int, trials: int) -> float:
    """P(X >= wins) of X ~ Binomial(trials, 1/2)."""
    whole = trials * math.log(2.0)
    logs = (
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) - whole
        for k in range(wins, trials + 1)
    )
    return min(1.0, math.fsum(math.exp(each) for each in logs))


def pair(evaluation: str, *, candidate: Sequence[Prediction], promoted: Sequence[Prediction]) -> Paired | None:
    """None without an item that both were asked. An item counts as the same when its known answer is, too."""

    def right(predictions: Sequence[Prediction]) -> dict[tuple[str, str], bool]:
        return {
            (each.item, each.reference): each.correct
            for each in predictions
            if each.evaluation == evaluation and each.role == "student"
        }

    ours, theirs = right(candidate), right(promoted)
    both = [(ours[key], theirs[key]) for key in ours if key in theirs]
    if not both:
        return None
    return Paired(
        num_items=len(both),
        candidate=sum(mine for mine, _ in both) / len(both),
        promoted=sum(other for _, other in both) / len(both),
        wins=sum(mine and not other for mine, other in both),
        losses=sum(other and not mine for mine, other in both),
    )


def judge(promotion: Promotion, *, candidate: Sequence[Prediction], promoted: Sequence[Prediction]) -> Verdict:
    """Whether the candidate takes the promoted student's place, and why, in a sentence."""
    name = promotion.evaluation
    decides = pair(name, candidate=candidate, promoted=promoted)
    if decides is None:
        return Verdict(False, f"no item of {name} was asked both students, so that they can't be compared")
    words = _words(name, decides)
    if decides.gain < promotion.min_gain - _ROUNDING or decides.gain <= _ROUNDING:
        wanted = f"minGain is {promotion.min_gain:g}" if promotion.min_gain else "nothing was gained"
        return Verdict(False, f"{words}; {wanted}")
    if decides.p_value > 1.0 - promotion.confidence + _ROUNDING:
        sure = f"which chance alone does with probability {decides.p_value:.3f}"
        return Verdict(False, f"{words}, {sure}; confidence is {promotion.confidence:g}")
    for guard in promotion.guards:
        guarded = pair(guard.evaluation, candidate=candidate, promoted=promoted)
        if guarded is None:
            return Verdict(False, f"no item of the guard {guard.evaluation} was asked both students; {words}")
        if -guarded.gain > guard.max_drop + _ROUNDING:
            drop = f"the guard {_words(guard.evaluation, guarded)}, and maxDrop is {guard.max_drop:g}"
            return Verdict(False, f"{drop}; {words}")
    return Verdict(True, f"{words} (p = {decides.p_value:.2g})")


def _words(name: str, found: Paired) -> str:
    return (
        f"{name} {found.candidate:.3f} against {found.promoted:.3f} ({found.gain:+.3f}: "
        f"{found.wins} items won, {found.losses} lost, of {found.num_items})"
    )

"""`rounds.earlyStop`: when an evaluation has not gained for some rounds. Known to both sides: the operator ends the rounds by it, and
`preflight` takes over no stage behind the end."""

from collections.abc import Sequence
from typing import NamedTuple

from comd_api.run import RunSpec
from comd_api.stages import round_of
from comd_api.status import Score

_ROUNDING = 1e-9


class Scored(NamedTuple):
    """A stage that is done."""

    stage: str
    scores: Sequence[Score]


def early_stop_reason(spec: RunSpec, done: Sequence[Scored]) -> str | None:
    """Why no further round is begun; None to go on.

    A round gains when its student is better than the best before it, and by at least `minGain`. The student before
    round 1 counts as a best; rounds without a score on the evaluation are passed over.
    """
    rule = spec.rounds.early_stop
    if rule is None:
        return None
    best: float | None = None
    best_at, without_gain = "", 0
    for stage, scores in done:
        value = _student_score(scores, rule.evaluation)
        if value is None:
            continue
        gain = None if best is None else value - best
        if gain is None or (gain > _ROUNDING and gain >= rule.min_gain - _ROUNDING):
            best, best_at, without_gain = value, stage, 0
        elif round_of(stage) > 0:
            without_gain += 1
    if without_gain < rule.patience:
        return None
    wanted = f"{rule.min_gain:g} or more" if rule.min_gain else "anything"
    return f"{rule.evaluation} has not gained {wanted} for {without_gain} rounds (best {best:.3f} after {best_at})"


def _student_score(scores: Sequence[Score], evaluation: str) -> float | None:
    return next((score.value for score in scores if score.evaluation == evaluation and score.role == "student"), None)

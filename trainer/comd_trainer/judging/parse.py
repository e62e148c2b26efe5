"""Reads the judge's reply: reasons, then one line of JSON with both scores. Strict, because a number that happens to
stand in the reasons ("in 3 of the 5 ...") is no score."""

import json
from typing import Any

from comd_trainer.judging.scores import HIGHEST, LOWEST


def parse_scores(reply: str) -> tuple[float, float] | None:
    """(score of answer A, score of answer B), or None.

    The last line must be `{"a": n, "b": n}`: these two keys, once each, numbers from 1 to 10. A reply with two
    different such lines contradicts itself and is None as well. A Markdown fence around the line is let pass.
    """
    lines = [line.strip() for line in reply.splitlines() if line.strip() and not line.strip().startswith("```")]
    if not lines:
        return None
    found = [scores for line in lines if (scores := _scores(line)) is not None]
    last = _scores(lines[-1])
    return last if last is not None and all(scores == last for scores in found) else None


def _scores(line: str) -> tuple[float, float] | None:
    if not (line.startswith("{") and line.endswith("}")):
        return None
    try:
        pairs = json.loads(line, object_pairs_hook=lambda pairs: pairs)
    except (json.JSONDecodeError, RecursionError):
        return None
    if not isinstance(pairs, list) or sorted(str(key) for key, _ in pairs) != ["a", "b"]:
        return None
    scores = dict(pairs)
    if not (_is_score(scores["a"]) and _is_score(scores["b"])):
        return None
    return float(scores["a"]), float(scores["b"])


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and LOWEST <= value <= HIGHEST

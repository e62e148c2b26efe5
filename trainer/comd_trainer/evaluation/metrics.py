"""Right or wrong, and how sure a share of right ones is (method section 8)."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from comd_trainer.data.text import normalise

Z_95 = 1.959963984540054
_ANSWER_IS = re.compile(r"The answer is ([A-Z])\.")


class Interval(NamedTuple):
    value: float
    low: float
    high: float


def wilson(correct: int, total: int) -> Interval:
    """Share of `correct` with its 95 % Wilson score interval, which stays within 0..1 and is honest for few items."""
    assert total > 0
    assert 0 <= correct <= total
    share = correct / total
    spread = Z_95 * Z_95 / total
    centre = (share + spread / 2) / (1 + spread)
    half = Z_95 * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def exact_match(answer: str, reference: str) -> bool:
    """The whole answer, case and white space aside."""
    return normalise(answer) == normalise(reference)


def read_letter(answer: str, *, num_choices: int) -> str | None:
    """The option that a generated answer names, as ScienceQA's evaluation in LLaVA reads it (method section 8.1).

    A bare letter, or a text that starts with `B. `, or exactly one match of `The answer is B.`; anything else, also a
    letter beyond the choices, is None and counts as wrong. There is no guessing.
    """
    text = answer.strip()
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:num_choices]
    if len(text) == 1:
        found = text
    elif len(text) >= 3 and text[0] in letters and text[1:3] == ". ":
        found = text[0]
    else:
        matches = _ANSWER_IS.findall(text)
        found = matches[0] if len(matches) == 1 else ""
    return found if found and found in letters else None


def likeliest(log_probabilities: Sequence[float]) -> str:
    """Letter of the option with the highest mean log-probability; of equal ones the first (method section 8.2)."""
    assert log_probabilities
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[int(np.argmax(log_probabilities))]

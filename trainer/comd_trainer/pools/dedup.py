"""Is an instruction new? ROUGE-L against older ones, and a limit on how often the same text may stand in the pool
(method section 12, row 24)."""

from array import array
from collections import Counter
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from comd_trainer.data.rows import Item
from comd_trainer.data.text import normalise, words

ROUNDING = 1e-9
"""Bounds are loosened by this, so that rounding can never exclude a pair that the exact score would not."""


class Duplicate(NamedTuple):
    reason: Literal["rouge", "repeats"]
    neighbour: str
    rouge: float


class _Words:
    """Words of any script for rouge-score, whose own tokenizer knows a-z and 0-9 only."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


class SimilarTexts:
    """Finds the older text that resembles a new one the most, if any does by more than `threshold`.

    ROUGE-L's F-measure is 2 * LCS / (n + m) for n and m words, and a longest common subsequence is no longer than the
    multiset of common words, which is counted for all older texts at once. Nearly all pairs are excluded by that bound,
    exactly: the verdicts are those of the full comparison.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._texts: list[str] = []
        self._known: set[str] = set()
        self._lengths = array("i")
        self._holders: dict[tuple[str, int], array[int]] = {}
        """Places of the texts that hold a word for the first, second … time."""
        # Imported here: it brings nltk, more than a second that only a prompted augmentor needs to pay.
        from rouge_score import rouge_scorer

        self._scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Words())

    def add(self, text: str) -> None:
        key = normalise(text)
        if key in self._known:
            return
        self._known.add(key)
        tokens = words(text)
        for token in _numbered(tokens):
            self._holders.setdefault(token, array("i")).append(len(self._texts))
        self._texts.append(text)
        self._lengths.append(len(tokens))

    def nearest(self, text: str) -> tuple[str, float] | None:
        """The older text with the highest F-measure above the threshold, and that measure. Of equal ones always the
        same."""
        bounds = self._bounds(words(text))
        best: tuple[str, float] | None = None
        places = np.flatnonzero(bounds + ROUNDING >= self.threshold)
        for place in places[np.argsort(-bounds[places], kind="stable")]:
            needed = self.threshold if best is None else best[1]
            if bounds[place] + ROUNDING < needed:
                break
            older = self._texts[place]
            score = float(self._scorer.score(older, text)["rougeL"].fmeasure)
            if score > needed:
                best = older, score
        return best

    def _bounds(self, tokens: list[str]) -> NDArray[np.float64]:
        """What the F-measure with each older text is at most."""
        found = [np.frombuffer(self._holders[token], np.intc) for token in _numbered(tokens) if token in self._holders]
        if not found:
            return np.zeros(len(self._texts))
        shared = np.bincount(np.concatenate(found), minlength=len(self._texts))
        return 2 * shared / (len(tokens) + np.frombuffer(self._lengths, np.intc))


def _numbered(tokens: list[str]) -> list[tuple[str, int]]:
    """Words with their number of occurrence, so that a multiset becomes a set."""
    seen: Counter[str] = Counter()
    numbered = []
    for token in tokens:
        numbered.append((token, seen[token]))
        seen[token] += 1
    return numbered


class Novelty:
    """The instructions so far, by image or all together."""

    def __init__(self, *, rouge_threshold: float, scope: Literal["Image", "Pool"], max_repeats: int) -> None:
        self.rouge_threshold, self.scope, self.max_repeats = rouge_threshold, scope, max_repeats
        self._similar: dict[str | None, SimilarTexts] = {}
        self._repeats: Counter[str] = Counter()

    def add(self, item: Item) -> None:
        place = self._place(item.image)
        self._similar.setdefault(place, SimilarTexts(self.rouge_threshold)).add(item.instruction)
        self._repeats[normalise(item.instruction)] += 1

    def duplicate(self, text: str, *, image: str | None) -> Duplicate | None:
        """Why the text is not new on this image; None when it is. A text that occurred `max_repeats` times is one too
        many."""
        similar = self._similar.get(self._place(image))
        found = None if similar is None else similar.nearest(text)
        if found is not None:
            return Duplicate("rouge", found[0], found[1])
        if self._repeats[normalise(text)] >= self.max_repeats:
            return Duplicate("repeats", text, 1.0)
        return None

    def _place(self, image: str | None) -> str | None:
        return image if self.scope == "Image" else None

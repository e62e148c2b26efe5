"""Is an instruction new? ROUGE-L against older ones, and a limit on how often the same text may stand in the pool
(method section 12, row 24)."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Literal, NamedTuple

from rouge_score import rouge_scorer

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
    multiset of common words. So a text above the threshold has m within n * t / (2 - t) .. n * (2 - t) / t, shares at
    least t * (n + m) / 2 words, and hence at least one of the new text's rarest words, those that it could not all do
    without. Nearly all pairs are excluded that way, exactly: the verdicts are those of the full comparison.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._texts: dict[str, tuple[str, int, Counter[str]]] = {}
        self._postings: dict[tuple[str, int], list[str]] = defaultdict(list)
        self._scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Words())

    def add(self, text: str) -> None:
        key = normalise(text)
        if key in self._texts:
            return
        tokens = words(text)
        self._texts[key] = (text, len(tokens), Counter(tokens))
        for token in _numbered(tokens):
            self._postings[token].append(key)

    def nearest(self, text: str) -> tuple[str, float] | None:
        """The older text with the highest F-measure above the threshold, and that measure; of equal ones the shortest,
        then by text."""
        tokens = words(text)
        counts, length = Counter(tokens), len(tokens)
        best: tuple[str, float] | None = None
        for key in self._possible(tokens):
            older, older_length, older_counts = self._texts[key]
            bound = 2 * sum((counts & older_counts).values()) / (length + older_length)
            if bound + ROUNDING < self.threshold or (best is not None and bound + ROUNDING < best[1]):
                continue
            score = float(self._scorer.score(older, text)["rougeL"].fmeasure)
            if score > self.threshold and (best is None or score > best[1]):
                best = (older, score)
        return best

    def _possible(self, tokens: list[str]) -> Iterable[str]:
        """Texts of a fitting length that share at least one of the rarest words, in an order that does not depend on
        hashing."""
        length = len(tokens)
        if not length:
            return []
        ratio = self.threshold / (2 - self.threshold)
        shortest, longest = length * ratio - ROUNDING, length / ratio + ROUNDING
        must_share = max(1, math.ceil(self.threshold * (length + math.ceil(shortest)) / 2 - ROUNDING))
        rarest = sorted(_numbered(tokens), key=lambda token: len(self._postings.get(token, ())))[
            : length - must_share + 1
        ]
        found = {
            key
            for token in rarest
            for key in self._postings.get(token, ())
            if shortest <= self._texts[key][1] <= longest
        }
        return sorted(found, key=self._order)

    def _order(self, key: str) -> tuple[int, str]:
        return self._texts[key][1], key


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

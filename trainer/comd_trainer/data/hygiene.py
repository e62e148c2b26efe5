"""Keeps what the student is evaluated on out of what it learns from (method section 12, row 29).

An image of an evaluation set is recognised by its bytes, or by its grey thumbnail when it was scaled or encoded again;
any item on it is left out, whatever it asks. A text alone counts only where it says enough: 13 words in a row that also
stand in an evaluation text, or, for items without an image, the same text. Questions such as "what is shown here?"
rightly occur on both sides.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from comd_trainer.data.images import ImageFacts, thumb_vectors
from comd_trainer.data.rows import Item
from comd_trainer.data.text import normalise, words

GRAM = 13
"""Words in a row by which a text is recognised."""
MAX_SHARED = 3
"""13 words that stand in more evaluation items than these are a template ("answer with the letter of ..."), and say
nothing."""
SAME_IMAGE = 0.995
"""Correlation of two 16 x 16 thumbnails from which they show the same picture. Encoding a photograph anew leaves about
0.999."""
BLOCK = 4096
MAX_EXAMPLES = 5

Kind = Literal["image", "text"]


class Overlap(NamedTuple):
    kind: Kind
    evaluation: str
    """Id of the evaluation item."""


class EvaluationData:
    """The evaluation sets' images and texts, to ask other items against."""

    def __init__(self, items: Sequence[Item], facts: Mapping[str, ImageFacts]) -> None:
        """`facts` of all images that `items` have."""
        self._by_digest: dict[str, str] = {}
        self._thumb_items: list[str] = []
        thumbs: list[str] = []
        self._texts: dict[str, str] = {}
        grams: dict[tuple[str, ...], str] = {}
        holders: Counter[tuple[str, ...]] = Counter()
        for item in items:
            fact = facts[item.image] if item.image is not None else None
            if fact is not None and fact.sha256 is not None and fact.sha256 not in self._by_digest:
                self._by_digest[fact.sha256] = item.id
                if fact.thumb is not None:
                    self._thumb_items.append(item.id)
                    thumbs.append(fact.thumb)
            if item.image is None:
                self._texts.setdefault(normalise(item.instruction), item.id)
            for gram in _grams(item.instruction):
                grams.setdefault(gram, item.id)
                holders[gram] += 1
        self._thumbs = thumb_vectors(thumbs)
        self._grams = {gram: item for gram, item in grams.items() if holders[gram] <= MAX_SHARED}

    def images(self, facts: Mapping[str, ImageFacts]) -> dict[str, str]:
        """Of the images in `facts` (by name), those that an evaluation set shows too, with one of its items."""
        found: dict[str, str] = {}
        unknown: list[str] = []
        for name, fact in facts.items():
            if fact.sha256 is not None and fact.sha256 in self._by_digest:
                found[name] = self._by_digest[fact.sha256]
            elif fact.thumb is not None:
                unknown.append(name)
        if not len(self._thumbs):
            return found
        for start in range(0, len(unknown), BLOCK):
            names = unknown[start : start + BLOCK]
            correlations = thumb_vectors([facts[name].thumb or "" for name in names]) @ self._thumbs.T
            best = correlations.argmax(axis=1)
            for row in np.flatnonzero(correlations.max(axis=1) >= SAME_IMAGE):
                found[names[int(row)]] = self._thumb_items[int(best[row])]
        return found

    def text(self, text: str, *, has_image: bool) -> str | None:
        """The evaluation item that a text was taken from, or None."""
        if not has_image and normalise(text) in self._texts:
            return self._texts[normalise(text)]
        return next((self._grams[gram] for gram in _grams(text) if gram in self._grams), None)


@dataclass(frozen=True)
class Cleaned:
    items: list[Item]
    removed: dict[str, Overlap] = field(default_factory=dict)
    """By id of the removed item."""

    def report(self) -> dict[str, Any]:
        """Counts and the first few pairs, for the manifest."""
        kinds: dict[Kind, list[str]] = defaultdict(list)
        for item, overlap in self.removed.items():
            kinds[overlap.kind].append(f"{item} ~ {overlap.evaluation}")
        return {
            "removed": len(self.removed),
            **{
                kind: {"removed": len(pairs), "examples": pairs[:MAX_EXAMPLES]} for kind, pairs in sorted(kinds.items())
            },
        }


def remove_overlap(items: Sequence[Item], *, facts: Mapping[str, ImageFacts], evaluation: EvaluationData) -> Cleaned:
    """The items that have nothing to do with the evaluation sets, in their order, and what was removed."""
    used = {item.image for item in items if item.image is not None}
    shown = evaluation.images({name: facts[name] for name in sorted(used)})
    kept: list[Item] = []
    removed: dict[str, Overlap] = {}
    for item in items:
        if item.image is not None and item.image in shown:
            removed[item.id] = Overlap("image", shown[item.image])
            continue
        found = evaluation.text(item.instruction, has_image=item.image is not None)
        if found is not None:
            removed[item.id] = Overlap("text", found)
        else:
            kept.append(item)
    return Cleaned(kept, removed)


def _grams(text: str) -> Iterable[tuple[str, ...]]:
    """Each run of 13 words once."""
    found = words(text)
    return dict.fromkeys(tuple(found[start : start + GRAM]) for start in range(len(found) - GRAM + 1))

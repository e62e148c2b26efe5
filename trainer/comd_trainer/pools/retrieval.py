"""New items from a bank of instructions: the most similar ones for hard items, the rarest ones for easy items (method
section 12, rows 19 and 20; `augmentor.type: Retrieval`)."""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from comd_trainer.data.rows import Item
from comd_trainer.data.seeds import rng
from comd_trainer.data.text import normalise, words
from comd_trainer.pools.parents import Parents

HEAD = 64
"""Most similar texts that are kept for a query; the rest of the ranking is worked out again in the rare case that all
are used up."""


class TextIndex:
    """TF-IDF vectors of distinct texts, held by word. Cosine similarities of one query cost one addition per shared
    word.

    Terms are words, weighted by `1 + log(count)` times `log((1 + N) / (1 + df)) + 1`, vectors have length 1.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.num_texts = len(texts)
        counts = [Counter(words(text)) for text in texts]
        frequency = Counter(word for count in counts for word in count)
        self._idf = {word: math.log((1 + self.num_texts) / (1 + df)) + 1 for word, df in frequency.items()}
        postings: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
        for index, count in enumerate(counts):
            for word, weight in self._vector(count).items():
                postings[word][0].append(index)
                postings[word][1].append(weight)
        self._postings = {
            word: (np.array(docs, np.int64), np.array(weights)) for word, (docs, weights) in postings.items()
        }

    def similarities(self, text: str) -> NDArray[np.float64]:
        """Cosine of the text with each indexed text, (num_texts,) in 0..1."""
        vector = self._vector(Counter(words(text)))
        scores = np.zeros(self.num_texts)
        for word, weight in vector.items():
            docs, weights = self._postings[word]
            # A word stands once in a text's vector, so no index comes twice and the sum needs no `np.add.at`.
            scores[docs] += weight * weights
        return scores

    def _vector(self, count: Counter[str]) -> dict[str, float]:
        """Words that no indexed text has are left out: they lower all similarities alike."""
        known = sorted(word for word in count if word in self._idf)
        weights = [(1 + math.log(count[word])) * self._idf[word] for word in known]
        norm = math.sqrt(sum(weight * weight for weight in weights))
        return {word: weight / norm for word, weight in zip(known, weights, strict=True)}


class HardRetriever:
    """Gives, for one hard item after another, the most similar bank item that has not been given yet.

    Items with the same text are told apart by chance only, so they are shuffled once and taken in turn.
    """

    def __init__(self, bank: Sequence[Item], *, seed: int, round: int) -> None:
        self._queues: dict[str, deque[Item]] = {}
        for place in rng(seed, "retrieval", round).permutation(len(bank)):
            item = bank[int(place)]
            self._queues.setdefault(normalise(item.instruction), deque()).append(item)
        self._texts = sorted(self._queues)
        self._index = TextIndex(self._texts)
        self._heads: dict[str, list[int]] = {}

    def take(self, parent: Item) -> Item | None:
        """None when no item is left that shares a word with the parent's instruction."""
        for place in self._ranking(normalise(parent.instruction)):
            queue = self._queues[self._texts[place]]
            if queue:
                return queue.popleft()
        return None

    def _ranking(self, text: str) -> Iterator[int]:
        if text not in self._heads:
            self._heads[text] = self._most_similar(text, HEAD)
        yield from self._heads[text]
        if len(self._heads[text]) >= HEAD:
            yield from self._most_similar(text, self._index.num_texts)

    def _most_similar(self, text: str, count: int) -> list[int]:
        """Places of the `count` best texts, best first and equal ones in alphabetical order; without those that share
        nothing."""
        scores = self._index.similarities(text)
        if count < len(scores):
            cut = np.partition(scores, len(scores) - count)[len(scores) - count]
            places = np.flatnonzero((scores >= cut) & (scores > 0))
        else:
            places = np.flatnonzero(scores > 0)
        order = np.lexsort((places, -scores[places]))
        return [int(place) for place in places[order][:count]]


def retrieve_hard(bank: Sequence[Item], parents: Parents, *, wanted: int, round: int, seed: int) -> list[Item]:
    """Up to `wanted` bank items for the hard branch. A parent for which nothing is left is passed over; fewer items
    come back only when nothing similar is left for any parent."""
    retriever = HardRetriever(bank, seed=seed, round=round)
    found: list[Item] = []
    spent: set[str] = set()
    num_parents = len({item.id for item in parents.items})
    attempt = 0
    while len(found) < wanted and len(spent) < num_parents:
        parent = parents.at(attempt)
        attempt += 1
        if parent.id in spent:
            continue
        item = retriever.take(parent)
        if item is None:
            spent.add(parent.id)
        else:
            found.append(replace(item, origin="hard", round=round, parent=parent.id))
    return found


def pick_easy(
    bank: Sequence[Item], parents: Parents, *, pool: Sequence[Item], wanted: int, candidates: int, round: int, seed: int
) -> list[Item]:
    """Up to `wanted` bank items for the easy branch: of `candidates` unused ones at a time, the one whose instruction
    is rarest in the cache pool and among the items picked so far; of equally rare ones the first drawn."""
    counts = Counter(normalise(item.instruction) for item in pool)
    left = list(bank)
    texts = [normalise(item.instruction) for item in left]
    found: list[Item] = []
    while len(found) < wanted and left:
        attempt = len(found)
        generator = rng(seed, "easy", round, attempt)
        drawn = generator.choice(len(left), size=min(candidates, len(left)), replace=False)
        place = int(min(drawn, key=lambda place: counts[texts[int(place)]]))
        item = left[place]
        counts[texts[place]] += 1
        found.append(replace(item, origin="easy", round=round, parent=parents.at(attempt).id))
        # The last one fills the hole: the list stays dense, and which place holds what is still arithmetic.
        left[place], texts[place] = left[-1], texts[-1]
        left.pop()
        texts.pop()
    return found

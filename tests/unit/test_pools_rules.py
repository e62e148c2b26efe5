"""Which items a round compares, makes and keeps (method section 12, rows 11, 17-26 and checks 3, 4)."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from comd_api.exit_codes import BadDataError
from comd_trainer.data.annotations import Annotation, Box
from comd_trainer.data.rows import Item, Turn, Verdict
from comd_trainer.data.text import words
from comd_trainer.pools.branch import Branch, Proposal, attempts_allowed, reasons_of
from comd_trainer.pools.dedup import Novelty, SimilarTexts
from comd_trainer.pools.filters import clean, reject_reason
from comd_trainer.pools.overlap import OverlappingImages
from comd_trainer.pools.parents import Parents, split
from comd_trainer.pools.prompts import answerable_turns, augment_turns, says_yes
from comd_trainer.pools.retrieval import TextIndex, pick_easy, retrieve_hard
from comd_trainer.pools.selection import draw, sample_for_assessment, unused
from comd_trainer.pools.update import next_cache, next_train, round_half_up


def item(id: str, text: str = "What is this thing?", image: str | None = "a.png", round_: int = 0) -> Item:
    return Item(id=id, image=image, turns=(Turn(role="user", text=text),), origin="seed", round=round_)


def items(count: int, *, start: int = 0, round_: int = 0) -> list[Item]:
    return [
        item(f"r{round_}-{n}", f"Question number {n} of round {round_}?", round_=round_)
        for n in range(start, start + count)
    ]


POOLS = st.builds(
    lambda old, mid, new: items(old) + items(mid, round_=1) + items(new, round_=2), *[st.integers(0, 12)] * 3
)


@given(POOLS, st.integers(1, 40), st.integers(0, 5))
def test_the_sample_holds_the_newest_and_nothing_twice(pool: list[Item], size: int, seed: int) -> None:
    sample = sample_for_assessment(pool, round=3, sample_size=size, seed=seed)
    newest = [each.id for each in pool if each.round == 2]
    ids = [each.id for each in sample]
    assert len(ids) == len(set(ids)) == min(size, len(pool))
    assert set(newest) <= set(ids) if len(newest) <= size else set(ids) <= set(newest)
    assert ids == [each.id for each in pool if each.id in set(ids)], "the pool's order"
    assert sample == sample_for_assessment(pool, round=3, sample_size=size, seed=seed)


def test_round_1_has_no_newest_items() -> None:
    pool = items(40)
    assert len(sample_for_assessment(pool, round=1, sample_size=5, seed=0)) == 5
    samples = {
        tuple(each.id for each in sample_for_assessment(pool, round=1, sample_size=5, seed=seed)) for seed in range(5)
    }
    assert len(samples) == 5


def test_unused_bank_items_are_new_by_id_and_by_question() -> None:
    pool = [item("bank/1", "Old question?"), item("seed/9", "What  IS this?", "b.png")]
    bank = [
        item("bank/1", "Changed since?", "z.png"),
        item("bank/2", "what is this?", "b.png"),
        item("bank/3", "what is this?", "c.png"),
        item("bank/4", "What is this?", "c.png"),
    ]
    assert [each.id for each in unused(bank, pool)] == ["bank/3"]
    follow_up = replace(
        bank[2], id="bank/5", turns=(Turn(role="user", text="a"), Turn(role="assistant", text="b"), *bank[2].turns)
    )
    assert unused([follow_up], [bank[2]]) == [follow_up], "the history is part of the question"


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 12), st.floats(0, 3), st.integers(0, 3))
def test_the_round_update(cached: int, made: int, fresh: int, fraction: float, seed: int) -> None:
    cache = items(cached)
    new = items(made, round_=2)
    extra = [replace(each, id=f"fresh-{each.id}", origin="fresh") for each in items(fresh, round_=2)]
    train = next_train(new=new, fresh=extra, earlier=cache, replay_fraction=fraction, round=2, seed=seed)
    grown = next_cache(cache=cache, new=new, fresh=extra)
    assert train[: made + fresh] == new + extra, "the train pool is replaced"
    replayed = train[made + fresh :]
    assert len(replayed) == min(cached, round_half_up(fraction * (made + fresh)))
    assert [each for each in cache if each in replayed] == replayed
    assert grown == cache + new + extra, "the cache pool is the union"
    for pool in (train, grown):
        assert len({each.id for each in pool}) == len(pool)
    assert train == next_train(new=new, fresh=extra, earlier=cache, replay_fraction=fraction, round=2, seed=seed)


@pytest.mark.parametrize(("value", "rounded"), [(0.0, 0), (0.5, 1), (1.5, 2), (2.5, 3), (2.49, 2)])
def test_halves_are_rounded_up(value: float, rounded: int) -> None:
    assert round_half_up(value) == rounded


def test_split_leaves_dropped_items_out() -> None:
    pool = items(4)
    labels: Sequence[Any] = ("hard", "easy", "dropped", "hard")
    verdicts = [Verdict(item=each.id, label=label) for each, label in zip(pool, labels, strict=True)]
    assert split(pool, verdicts) == ([pool[0], pool[3]], [pool[1]])


@given(st.integers(1, 12), st.integers(1, 50), st.integers(0, 5))
def test_cycle_uses_all_parents_before_one_comes_twice(count: int, attempts: int, seed: int) -> None:
    parents = Parents(items(count), order="Cycle", seed=seed, names=("hard", 1))
    uses = Counter(parents.at(attempt).id for attempt in range(attempts))
    assert max(uses.values()) - min([*uses.values(), 0 if len(uses) < count else 10**6]) <= 1
    assert [parents.visit(attempt) for attempt in (0, count - 1, count)] == [0, 0, 1]
    again = Parents(items(count), order="Cycle", seed=seed, names=("hard", 1))
    assert [again.at(a) for a in reversed(range(attempts))] == [parents.at(a) for a in reversed(range(attempts))]


def test_gap_draws_by_weight() -> None:
    parents = Parents(items(3), order="Gap", weights=[1.0, 0.0, 3.0], seed=1, names=("hard", 1))
    uses = Counter(parents.at(attempt).id for attempt in range(2000))
    assert uses["r0-1"] == 0
    assert 2.5 < uses["r0-2"] / uses["r0-0"] < 3.6


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("What is this?", None),
        ("Describe the scene in detail.", None),
        ("In the picture, count all wheels.", None),
        ("The man on the left, what is he holding?", None),
        ("¿Qué es esto aquí?", "non-ascii"),
        ("What now?", "short"),
        ("", "short"),
        ("- What is this?", "punctuation"),
        ("$5 or more?  Say which.", "punctuation"),
        ("The bus is red.", "statement"),
        ("There are three dogs here.", "statement"),
        ("Sure! What colour is the bus?", "meta"),
        ("Here is a new question: what is red?", "meta"),
        ("New instruction: what colour is it?", "meta"),
        ("What does the given instruction ask for?", "meta"),
        ("What is <image> about, really?", "meta"),
        ("As an AIDS ribbon, what colour is it?", None),
        ("As an AI, what do you see?", "meta"),
        ("What instruction does the sign give?", None),
        ("What question is the man asking?", None),
    ],
)
def test_filters(text: str, reason: str | None) -> None:
    assert reject_reason(text, finish="stop") == reason


def test_a_cut_candidate_is_turned_down_whatever_it_says() -> None:
    assert reject_reason("What is this?", finish="length") == "cut"


@given(st.text())
def test_filters_survive_anything(text: str) -> None:
    reject_reason(clean(text), finish="stop")


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (' "What is it?"\n', "What is it?"),
        ("'Why?' or 'how?'", "'Why?' or 'how?'"),
        ('"', '"'),
        ("`Say why.`", "Say why."),
    ],
)
def test_clean(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


class _Tokens:
    def tokenize(self, text: str) -> list[str]:
        return words(text)


def slowest_neighbour(older: list[str], text: str, threshold: float) -> float | None:
    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Tokens())
    best = max((float(scorer.score(other, text)["rougeL"].fmeasure) for other in older), default=0.0)
    return best if best > threshold else None


TEXTS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "the"]), max_size=9).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS, max_size=15), TEXTS, st.sampled_from([0.3, 0.5, 0.7, 2 / 3, 0.8, 0.99, 1.0]))
def test_bounds_exclude_no_pair_that_the_full_comparison_finds(older: list[str], text: str, threshold: float) -> None:
    index = SimilarTexts(threshold)
    for other in older:
        index.add(other)
    found = index.nearest(text)
    assert (found[1] if found else None) == slowest_neighbour(older, text, threshold)


def test_exactly_the_threshold_is_new() -> None:
    index = SimilarTexts(0.75)
    index.add("one two three four")
    assert index.nearest("one two three five") is None
    found = index.nearest("one two three four five")
    assert found is not None
    assert found[0] == "one two three four"
    assert found[1] == pytest.approx(8 / 9)


@pytest.mark.parametrize(("scope", "new"), [("Image", True), ("Pool", False)])
def test_the_same_question_on_another_image(scope: Any, new: bool) -> None:
    novelty = Novelty(rouge_threshold=0.7, scope=scope, max_repeats=50)
    novelty.add(item("1", "What is shown here?", "a.png"))
    assert (novelty.duplicate("What is shown here?", image="b.png") is None) is new
    same = novelty.duplicate("what is shown HERE", image="a.png")
    assert same is not None
    assert (same.reason, same.neighbour, same.rouge) == ("rouge", "What is shown here?", 1.0)


def test_a_text_may_stand_so_often_and_no_more() -> None:
    novelty = Novelty(rouge_threshold=0.7, scope="Image", max_repeats=3)
    for number in range(3):
        assert novelty.duplicate("What is shown here?", image=f"{number}.png") is None
        novelty.add(item(str(number), "What is  shown here?", f"{number}.png"))
    found = novelty.duplicate("WHAT is shown here?", image="4.png")
    assert found is not None
    assert found.reason == "repeats"


def test_scripts_other_than_latin_are_compared_too() -> None:
    novelty = Novelty(rouge_threshold=0.7, scope="Image", max_repeats=50)
    novelty.add(item("1", "Что видно на этой картинке?"))
    assert novelty.duplicate("Что видно на этой картинке сейчас?", image="a.png") is not None
    assert novelty.duplicate("Сколько здесь красных машин?", image="a.png") is None


def branch(wanted: int, *, factor: float = 3.0, name: Any = "hard") -> Branch:
    parents = Parents(items(4), order="Cycle", seed=0, names=(name, 2))
    return Branch(name=name, round=2, parents=parents, wanted=wanted, max_attempts=attempts_allowed(wanted, factor))


def play(it: Branch, text_of: Any) -> Novelty:
    novelty = Novelty(rouge_threshold=0.7, scope="Image", max_repeats=50)
    while wave := it.next_wave():
        for attempt in wave:
            it.offer(Proposal(attempt=attempt, image="a.png", text=text_of(attempt), finish="stop"), novelty)
    return novelty


def distinct(attempt: int) -> str:
    generator = random.Random(attempt)
    return "What about " + " ".join("".join(generator.choices("abcdefghij", k=6)) for _ in range(6)) + "?"


@given(st.integers(0, 25))
def test_a_branch_makes_exactly_what_is_wanted(wanted: int) -> None:
    it = branch(wanted)
    play(it, distinct)
    assert len(it.accepted) == wanted
    assert it.attempts == wanted == len(it.candidates), "nothing is looked at once there is enough"
    assert [each.id for each in it.accepted] == [f"round-2/hard-{n}" for n in range(1, wanted + 1)]
    assert {each.parent for each in it.accepted} <= {each.id for each in it.parents.items}


def test_half_of_the_candidates_bad_still_gives_all() -> None:
    it = branch(10)
    play(it, lambda attempt: distinct(attempt) if attempt % 2 else "Bad.")
    assert len(it.accepted) == 10
    assert reasons_of(it.candidates) == {"hard": {"short": it.attempts - 10}}


def test_accepted_items_are_new_to_each_other_on_an_image() -> None:
    it = branch(10, factor=20.0)
    play(it, lambda attempt: distinct(attempt // 3))
    texts = [each.instruction for each in it.accepted]
    for place, text in enumerate(texts):
        assert slowest_neighbour(texts[:place], text, 0.7) is None
    rejected = [each for each in it.candidates if not each.accepted]
    assert rejected
    assert all(each.neighbour in texts and each.rouge is not None and each.rouge > 0.7 for each in rejected)


@pytest.mark.parametrize(
    ("text_of", "reasons"), [(lambda _: "What is this thing?", "rouge 14"), (lambda _: "", "short 15")]
)
def test_a_generator_that_repeats_itself_ends(text_of: Any, reasons: str) -> None:
    it = branch(5)
    with pytest.raises(BadDataError, match=rf"of 5 hard items in 15 attempts.*maxAttemptsFactor.*{reasons}"):
        play(it, text_of)


def test_objections_are_reasons() -> None:
    it, novelty = branch(1), Novelty(rouge_threshold=0.7, scope="Image", max_repeats=50)
    it.offer(Proposal(attempt=0, image=None, text="What is this?", finish="stop", objection="unanswerable"), novelty)
    assert reasons_of(it.candidates) == {"hard": {"unanswerable": 1}}


def cosine(one: str, other: str, texts: list[str]) -> float:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True).fit(texts)
    first, second = vectorizer.transform([one]), vectorizer.transform([other])
    return float(first.multiply(second).sum())


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=8), TEXTS)
def test_tf_idf_is_scikit_learns(texts: list[str], query: str) -> None:
    found = TextIndex(texts).similarities(query)
    assert found.tolist() == pytest.approx([cosine(query, text, texts) for text in texts], abs=1e-9)


def bank_of(*texts: str, each: int = 1) -> list[Item]:
    return [item(f"bank/{text}/{n}", text, f"{n}.png") for text in texts for n in range(each)]


def test_retrieval_takes_the_most_similar_and_none_twice() -> None:
    bank = bank_of("count the red wheels", "count the wheels", "name the city", "what colour is the sky")
    parents = Parents([item("p", "Count the wheels!")], order="Cycle", seed=0, names=("hard", 3))
    found = retrieve_hard(bank, parents, wanted=3, round=3, seed=0)
    assert [each.instruction for each in found[:2]] == ["count the wheels", "count the red wheels"]
    assert found[2].instruction in ("name the city", "what colour is the sky"), "they share `the`"
    assert {(each.origin, each.round, each.parent) for each in found} == {("hard", 3, "p")}
    assert len(retrieve_hard(bank, parents, wanted=99, round=3, seed=0)) == 4


def test_what_shares_no_word_is_not_similar() -> None:
    parents = Parents([item("p", "Count wheels"), item("q", "zebra")], order="Cycle", seed=0, names=("hard", 1))
    found = retrieve_hard(bank_of("count wheels", "name cities", each=3), parents, wanted=9, round=1, seed=0)
    assert [each.parent for each in found] == ["p"] * 3


def test_beyond_the_head_of_the_ranking() -> None:
    texts = [f"common word{number}" for number in range(200)]
    parents = Parents([item("p", "common thing")], order="Cycle", seed=0, names=("hard", 1))
    found = retrieve_hard(bank_of(*texts), parents, wanted=200, round=1, seed=0)
    assert len({each.id for each in found}) == 200


@given(st.integers(1, 30), st.integers(0, 3))
def test_retrieval_counts_are_exact_and_repeatable(wanted: int, seed: int) -> None:
    bank = bank_of("count the wheels", "count the cars", "read the sign", each=10)
    parents = Parents([item("p", "count the cars"), item("q", "read it")], order="Cycle", seed=seed, names=("hard", 1))
    found = retrieve_hard(bank, parents, wanted=wanted, round=1, seed=seed)
    assert len({each.id for each in found}) == len(found) == wanted
    assert found == retrieve_hard(bank, parents, wanted=wanted, round=1, seed=seed)


def test_the_easy_branch_prefers_what_is_rare() -> None:
    bank = bank_of("how many are there", each=90) + bank_of("what is the sum", each=10)
    pool = [item(f"{n}", "how many are there") for n in range(50)]
    parents = Parents(items(3), order="Cycle", seed=0, names=("easy", 1))
    found = pick_easy(bank, parents, pool=pool, wanted=20, candidates=8, round=1, seed=0)
    rare = sum(each.instruction == "what is the sum" for each in found)
    assert rare >= 6, "one in ten of the bank, far more of the picked ones"
    one_each = pick_easy(bank, parents, pool=pool, wanted=20, candidates=1, round=1, seed=0)
    assert sum(each.instruction == "what is the sum" for each in one_each) < rare
    assert len({each.id for each in found}) == 20
    assert {each.origin for each in found} == {"easy"}
    assert len(pick_easy(bank, parents, pool=pool, wanted=999, candidates=8, round=1, seed=0)) == 100


def annotated(image: str, *labels: str) -> Annotation:
    return Annotation(image=image, boxes=tuple(Box(label=label, box=(0, 0, 1, 1)) for label in labels))


def test_overlapping_images() -> None:
    known = {
        each.image: each
        for each in (
            annotated("a", "dog", "cat", "car"),
            annotated("b", "dog", "cat", "bus"),
            annotated("c", "dog"),
            annotated("d", "kite"),
        )
    }
    images = OverlappingImages({"a", "b", "c", "d", "unknown"}, known)
    assert [images.choose("a", visit=visit) for visit in range(3)] == ["b", "c", "b"]
    assert images.choose("d", visit=0) == "d"
    assert images.choose(None, visit=0) is None
    assert OverlappingImages({"a", "c"}, known).choose("a", visit=0) == "c", "only images of the pool"


def test_augmentor_prompts() -> None:
    parent = item("p", "How many wheels?")
    (hard,) = augment_turns(parent, branch="hard", has_image=True, annotation=None)
    (easy,) = augment_turns(parent, branch="easy", has_image=True, annotation=annotated("a.png", "dog"))
    assert "same kind of skill" in hard.text
    assert "less often" in easy.text
    assert "dog: [" in easy.text
    assert all("How many wheels?" in each.text for each in (hard, easy))
    (bare,) = augment_turns(replace(parent, image=None), branch="hard", has_image=False, annotation=None)
    (asked,) = answerable_turns("Why?", has_image=False, annotation=None)
    assert "image" not in bare.text + asked.text
    history = (Turn(role="user", text="Is it a bus?"), Turn(role="assistant", text="Yes."))
    (follow,) = augment_turns(
        replace(parent, turns=(*history, *parent.turns)), branch="hard", has_image=True, annotation=None
    )
    assert "User: Is it a bus?\nAssistant: Yes." in follow.text


@pytest.mark.parametrize(
    ("reply", "yes"),
    [
        ("Yes", True),
        ("yes, it does", True),
        ("**Yes.**", True),
        ("No", False),
        ("yesterday", False),
        ("I think yes", False),
        ("", False),
    ],
)
def test_says_yes(reply: str, yes: bool) -> None:
    assert says_yes(reply) is yes


def test_draw_is_without_replacement_and_ordered() -> None:
    pool = items(20)
    drawn = draw(pool, 8, seed=3, name="fresh", round=1)
    assert [each for each in pool if each in drawn] == drawn
    assert len(drawn) == 8

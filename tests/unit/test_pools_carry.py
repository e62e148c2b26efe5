"""What a run that starts from another one makes of its pools."""

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from comd_trainer.data.rows import Item, Turn
from comd_trainer.pools.carry import carry, num_new, num_taken
from comd_trainer.pools.selection import pair_key

WORDS = st.sampled_from(["what is it", "what is it?", "how many", "who", "where", "when"])
IMAGES = st.sampled_from([None, "a.png", "b.png", "c.png"])


def item(id: str, text: str, image: str | None = "a.png", **more: object) -> Item:
    return replace(
        Item(id=id, image=image, turns=(Turn(role="user", text=text),), origin="seed"),
        **more,  # type: ignore[arg-type]
    )


def pool(prefix: str) -> st.SearchStrategy[list[Item]]:
    rows = st.tuples(WORDS, IMAGES, st.sampled_from([None, "red", "blue"]), st.integers(0, 3))
    return st.lists(rows, max_size=12).map(
        lambda found: [
            item(f"{prefix}{n}", text, image, reference=answer, round=round_, parent=f"{prefix}{n - 1}" if n else None)
            for n, (text, image, answer, round_) in enumerate(found)
        ]
    )


@given(pool("round-1/hard-"), pool("seed/").filter(bool), st.floats(0, 2), st.integers(0, 3))
def test_everything_is_there_once_and_the_new_is_learned(
    earlier: list[Item], seed: list[Item], share: float, number: int
) -> None:
    carried = carry(earlier, seed, replay_fraction=share, seed=number)
    ids = Counter(each.id for each in carried.cache)
    assert set(ids.values()) <= {1}
    assert {pair_key(each) for each in carried.cache} == {pair_key(each) for each in (*earlier, *seed)}
    old = [each for each in carried.cache if each.id.startswith("earlier/")]
    assert all(each.round == 0 for each in old), "rounds are counted anew"
    assert {each.parent for each in old} <= {None, *ids}
    new = [each for each in carried.train if not each.id.startswith("earlier/")]
    assert len(new) == carried.num_new == num_new(earlier, seed)
    if new:
        assert carried.num_replayed == len(carried.train) - len(new) == min(int(share * len(new) + 0.5), len(old))
        assert new == [each for each in carried.cache if each in new], "no seed item is taught twice"
    else:
        assert {pair_key(each) for each in carried.train} == {pair_key(each) for each in seed}, "all of it again"
    assert {each.id for each in carried.train} <= set(ids)
    assert carried == carry(earlier, seed, replay_fraction=share, seed=number)


@given(pool("seed/").filter(bool))
def test_carrying_on_twice_adds_nothing(seed: list[Item]) -> None:
    first = carry([], seed, replay_fraction=0.0, seed=0)
    answers = {pair_key(each): each.reference for each in seed}
    again = carry(first.cache, seed, replay_fraction=0.0, seed=0)
    if all(answers[pair_key(each)] == each.reference for each in seed):
        assert again.num_new == 0
        assert len(again.cache) == len({pair_key(each) for each in seed})
        assert again.cache == carry(again.cache, seed, replay_fraction=0.0, seed=0).cache


def test_a_row_is_known_by_image_and_words_and_new_with_another_answer() -> None:
    earlier = [item("seed/1", "what is it?", reference="red"), item("seed/2", "who?", reference="me")]
    renamed = item("seed/9", "What  is it?", reference="red")
    corrected = item("seed/2", "who?", reference="you")
    other_image = item("seed/1", "what is it?", image="b.png")
    carried = carry(earlier, [renamed, corrected, other_image], replay_fraction=0.0, seed=0)
    assert carried.train == [corrected, other_image]
    assert [each.reference for each in carried.cache] == ["red", "you", None], (
        "the corrected one takes the old one's place"
    )


def test_bank_items_in_the_pool_are_not_drawn_again() -> None:
    bank = [item("bank/1", "what is it?"), item("bank/2", "who?"), item("bank/3", "who?", image=None)]
    assert num_taken(bank, [item("earlier/x", "WHAT is it?"), item("earlier/y", "else")]) == 1

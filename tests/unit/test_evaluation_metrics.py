"""Right, wrong, and how sure (method section 8)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest  # type: ignore[import-untyped]

from comd_trainer.data.rows import Answer, Item, Turn
from comd_trainer.evaluation.metrics import exact_match, likeliest, read_letter, wilson
from comd_trainer.evaluation.scores import Prediction, details_of, judge_answer, judge_likelihoods, score_of


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        (" B \n", "B"),
        ("B. a bus", "B"),
        ("Because it is red. The answer is C.", "C"),
        ("The answer is A. The answer is B.", None),
        ("The answer is A. Yes, The answer is A.", None),
        ("The answer is B", None),
        ("the answer is B.", None),
        ("B.", None),
        ("B) a bus", None),
        ("E", None),
        ("E. too far", None),
        ("The answer is Z.", None),
        ("b", None),
        ("It is B", None),
        ("A bus. The answer is D.", "D"),
        ("", None),
    ],
)
def test_the_scienceqa_parser(answer: str, letter: str | None) -> None:
    assert read_letter(answer, num_choices=4) == letter


@given(st.text(), st.integers(2, 26))
def test_the_parser_names_a_choice_or_nothing(answer: str, num_choices: int) -> None:
    letter = read_letter(answer, num_choices=num_choices)
    assert letter is None or ord(letter) - ord("A") < num_choices


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [("It is five .", "it  is FIVE .\n", True), ("five", "it is five", False), ("", "x", False), ("5.", "5", False)],
)
def test_exact_match(answer: str, reference: str, same: bool) -> None:
    assert exact_match(answer, reference) is same


@pytest.mark.parametrize(("correct", "total"), [(8, 10), (0, 20), (20, 20), (1, 1), (3899, 4241)])
def test_wilson_is_scipys(correct: int, total: int) -> None:
    interval = binomtest(correct, total).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(correct, total) == pytest.approx((correct / total, interval.low, interval.high), abs=1e-9)


@given(st.integers(1, 5000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_intervals_hold_the_value_and_mirror(counts: tuple[int, int]) -> None:
    correct, total = counts
    value, low, high = wilson(correct, total)
    assert 0 <= low <= value <= high <= 1
    mirrored = wilson(total - correct, total)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - high, 1 - low))


def test_likeliest_takes_the_first_of_equal_ones() -> None:
    assert likeliest([-2.0, -1.0, -1.0]) == "B"


def item(id: str, *, reference: str, group: str | None = None, choices: tuple[str, ...] = ()) -> Item:
    turns = (Turn(role="user", text="Which?"),)
    return Item(id=id, image=None, turns=turns, origin="seed", reference=reference, group=group, choices=choices)


def predictions(rights: list[bool], groups: list[str | None]) -> list[Prediction]:
    return [
        judge_answer(
            item(f"{n}", reference="yes", group=group),
            Answer(item=f"{n}", model="m", text="Yes" if right else "no", finish="stop"),
            evaluation="held-out",
            role="student",
            metric="ExactMatch",
        )
        for n, (right, group) in enumerate(zip(rights, groups, strict=True))
    ]


def test_scores_by_group() -> None:
    score = score_of(predictions([True, False, True, True], ["b", "b", "a", None]))
    assert (score.evaluation, score.role, score.value, score.num_items) == ("held-out", "student", 0.75, 4)
    assert [(group.name, group.value, group.num_items) for group in score.groups] == [("a", 1.0, 1), ("b", 0.5, 2)]


def test_many_groups_are_in_the_details_only() -> None:
    made = predictions([True] * 20, [f"g{n:02}" for n in range(20)])
    assert score_of(made).groups == []
    details = details_of(made)
    assert len(details["groups"]) == 20
    assert details["balanced"] == 1.0


def test_balanced_counts_each_group_alike() -> None:
    details = details_of(predictions([True, True, True, False], ["a", "a", "a", "b"]))
    assert (details["value"], details["balanced"], details["correct"]) == (0.75, 0.5, 3)
    assert details_of(predictions([True], [None]))["balanced"] is None


def test_multiple_choice_reads_and_compares_letters() -> None:
    question = item("q", reference="B", choices=("a dog", "a bus"))
    for text, reading, correct in (("B. a bus", "B", True), ("A", "A", False), ("maybe", None, False)):
        answer = Answer(item="q", model="m", text=text, finish="length")
        made = judge_answer(question, answer, evaluation="e", role="teacher", metric="MultipleChoice")
        assert (made.reading, made.correct) == (reading, correct)
    assert details_of([made])["unread"] == details_of([made])["cut"] == 1


def test_choice_likelihood() -> None:
    question = item("q", reference="B", choices=("a dog", "a bus"))
    made = judge_likelihoods(question, [-3.0, -1.0], evaluation="e", role="student")
    assert (made.text, made.reading, made.correct, made.log_probabilities) == ("a bus", "B", True, (-3.0, -1.0))
    assert not judge_likelihoods(question, [-1.0, -3.0], evaluation="e", role="student").correct

"""When a student takes the place of the one that is served."""

from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comd_api.promotion import Guard, Promotion
from comd_trainer.evaluation.scores import Prediction
from comd_trainer.promotion.compare import judge, pair, tail


def asked(right: str, *, evaluation: str = "test", first: int = 0, reference: str = "red") -> list[Prediction]:
    """`right`: a character for each item, `1` for a right answer."""
    return [
        Prediction(
            evaluation=evaluation,
            role="student",
            item=f"{evaluation}-{number}",
            text="",
            reading="",
            reference=reference,
            correct=mark == "1",
        )
        for number, mark in enumerate(right, first)
    ]


def rule(**more: object) -> Promotion:
    return Promotion.model_validate({"evaluation": "test", "confidence": 0.95, **more})


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_tail_is_exact(wins: int, losses: int) -> None:
    trials = wins + losses
    exact = Fraction(sum(comb(trials, k) for k in range(wins, trials + 1)), 2**trials)
    assert tail(wins, trials) == pytest.approx(float(exact), rel=1e-9)


def test_the_tail_of_many() -> None:
    assert tail(50_000, 100_000) == pytest.approx(0.5, abs=0.01)
    assert tail(51_000, 100_000) < 1e-9


@pytest.mark.parametrize(
    ("candidate", "promoted", "changes", "better", "words"),
    [
        ("11111", "00000", {}, True, "test 1.000 against 0.000 (+1.000: 5 items won, 0 lost, of 5) (p = 0.031)"),
        ("1111", "0000", {}, False, "which chance alone does with probability 0.062; confidence is 0.95"),
        ("1111", "0000", {"confidence": 0.9}, True, "4 items won"),
        ("1010", "0101", {"confidence": 0.5}, False, "2 items won, 2 lost, of 4); nothing was gained"),
        ("0000", "0000", {"confidence": 0.5}, False, "nothing was gained"),
        ("0000", "1111", {"confidence": 0.5}, False, "(-1.000: 0 items won, 4 lost, of 4)"),
        ("1" * 20, "0" * 9 + "1" * 11, {"minGain": 0.5}, False, "minGain is 0.5"),
        ("1" * 20, "0" * 10 + "1" * 10, {"minGain": 0.5}, True, "+0.500"),
    ],
)
def test_the_rule(candidate: str, promoted: str, changes: dict[str, object], better: bool, words: str) -> None:
    found = judge(rule(**changes), candidate=asked(candidate), promoted=asked(promoted))
    assert found.better == better
    assert words in found.message


@pytest.mark.parametrize(
    ("guarded", "max_drop", "better"),
    [("1111", 0.0, True), ("1110", 0.0, False), ("1110", 0.25, True), ("", 0.0, False)],
)
def test_guards(guarded: str, max_drop: float, better: bool) -> None:
    found = judge(
        rule(guards=[Guard(evaluation="old", max_drop=max_drop).to_wire()]),
        candidate=asked("11111") + asked(guarded, evaluation="old"),
        promoted=asked("00000") + asked("1111", evaluation="old"),
    )
    assert found.better == better
    assert better or "guard" in found.message


def test_only_items_that_both_were_asked_count() -> None:
    found = pair("test", candidate=asked("11", first=1), promoted=asked("10"))
    assert found is not None
    assert (found.num_items, found.candidate, found.promoted) == (1, 1.0, 0.0)
    assert pair("test", candidate=asked("1"), promoted=asked("1", reference="blue")) is None
    other = judge(rule(), candidate=asked("1"), promoted=asked("1", reference="blue"))
    assert other == (False, "no item of test was asked both students, so that they can't be compared")


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30), st.floats(0.5, 0.999))
def test_of_two_students_one_at_most_is_better(answers: list[tuple[bool, bool]], confidence: float) -> None:
    ours = asked("".join("01"[mine] for mine, _ in answers))
    theirs = asked("".join("01"[other] for _, other in answers))
    both = [
        judge(rule(confidence=confidence), candidate=one, promoted=other).better
        for one, other in ((ours, theirs), (theirs, ours))
    ]
    assert sum(both) <= 1

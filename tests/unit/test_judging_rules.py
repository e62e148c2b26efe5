"""From a judge's words to a verdict (method section 5; section 12, "Checks worth having", 1 and 2)."""

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comd_api.exit_codes import BadDataError
from comd_trainer.data.annotations import Annotation
from comd_trainer.data.rows import Answer, Item, Review, Turn, Verdict
from comd_trainer.judging.parse import parse_scores
from comd_trainer.judging.prompts import in_order, judge_turns, review_of
from comd_trainer.judging.report import check_drops, gap_histogram, length_correlation, summary, why_stop
from comd_trainer.judging.scores import (
    Scores,
    equal_answers,
    equal_verdict,
    label_of,
    likelihood_score,
    reference_scores,
    verdict_of,
    verdict_of_reviews,
)

SCORES = st.integers(2, 20).map(lambda doubled: doubled / 2)


def answer(text: str, item: str = "i") -> Answer:
    return Answer(item=item, model="m", text=text, finish="stop")


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ('Both are fine.\n{"a": 7, "b": 8.5}', (7, 8.5)),
        ('{"b": 1, "a": 10}', (10, 1)),
        ('Reasons.\n\n```json\n{"a": 3, "b": 4}\n```\n', (3, 4)),
        ('  {"a": 3, "b": 4}  \n\n', (3, 4)),
        ('{"a": 3, "b": 4}\nSo\n{"a": 3, "b": 4}', (3, 4)),
        ("In 3 of the 5 cases A is right: 9 8", None),
        ("9 8", None),
        ("Score A: 7\nScore B: 9", None),
        ('{"a": 3, "b": 4}\nI hope this helps!', None),
        ('{"a": 3, "b": 4}\n{"a": 4, "b": 3}', None),
        ('The result is {"a": 3, "b": 4}', None),
        ('{"a": 0, "b": 4}', None),
        ('{"a": 3, "b": 11}', None),
        ('{"a": -1, "b": -1}', None),
        ('{"a": "3", "b": 4}', None),
        ('{"a": true, "b": 4}', None),
        ('{"a": null, "b": 4}', None),
        ('{"a": NaN, "b": 4}', None),
        ('{"a": Infinity, "b": 4}', None),
        ('{"a": [3], "b": 4}', None),
        ('{"a": 3}', None),
        ('{"a": 3, "b": 4, "c": 5}', None),
        ('{"a": 3, "a": 9, "b": 4}', None),
        ('{"A": 3, "B": 4}', None),
        ('{"a": ..., "b": ...}', None),
        ("[3, 4]", None),
        ("{" * 5000 + "}" * 5000, None),
        ("", None),
        ("\n```\n", None),
    ],
)
def test_parser(reply: str, scores: tuple[float, float] | None) -> None:
    assert parse_scores(reply) == scores


@given(st.text())
def test_the_parser_survives_anything_and_stays_in_range(reply: str) -> None:
    found = parse_scores(reply)
    assert found is None or all(1 <= score <= 10 for score in found)


@given(st.text(alphabet=st.characters(exclude_characters="{}")), st.floats(allow_nan=True), st.floats(allow_nan=True))
def test_only_scores_in_range_come_through(reasons: str, first: float, second: float) -> None:
    found = parse_scores(f"{reasons}\n" + json.dumps({"a": first, "b": second}))
    fits = all(1 <= score <= 10 for score in (first, second))
    assert found == ((first, second) if fits else None)


@given(st.text(alphabet=st.characters(exclude_characters="{}"), max_size=200))
def test_no_number_in_mere_reasons_is_a_score(reasons: str) -> None:
    assert parse_scores(reasons + " 7 9") is None


def reviews(first: Scores | None, second: Scores | None, item: str = "i") -> list[Review]:
    orders = (("TS", first), ("ST", second))
    return [
        Review(item=item, order=order, raw="", teacher=s.teacher if s else None, student=s.student if s else None)  # type: ignore[arg-type]
        for order, s in orders
    ]


def judged(first: Scores | None, second: Scores | None, *, threshold: float = 1.0, floor: float = 1.0) -> Verdict:
    return verdict_of_reviews("i", reviews(first, second), threshold=threshold, teacher_floor=floor)


@given(SCORES, SCORES, SCORES, SCORES)
def test_swapping_teacher_and_student_negates_the_gap(t1: float, s1: float, t2: float, s2: float) -> None:
    there, back = judged(Scores(t1, s1), Scores(t2, s2)), judged(Scores(s1, t1), Scores(s2, t2))
    assert there.gap is not None
    assert back.gap == -there.gap
    assert there.order_disagreement == back.order_disagreement
    assert (there.teacher, there.student) == (back.student, back.teacher)
    assert not (there.label == "hard" and back.label == "hard"), "both can't win"


@given(SCORES, SCORES)
def test_the_place_of_an_answer_in_the_reply_is_undone(first: float, second: float) -> None:
    reply = json.dumps({"a": first, "b": second})
    forward, backward = review_of("i", "TS", reply), review_of("i", "ST", reply)
    assert (forward.teacher, forward.student) == (first, second)
    assert (backward.teacher, backward.student) == (second, first)
    assert in_order("TS", teacher=answer("t"), student=answer("s")) == ("t", "s")
    assert in_order("ST", teacher=answer("t"), student=answer("s")) == ("s", "t")


@pytest.mark.parametrize(
    ("first", "second", "floor", "label"),
    [
        (Scores(8, 7), Scores(8, 7), 1, "hard"),  # a gap of exactly the threshold
        (Scores(8, 7), Scores(7, 6.5), 1, "easy"),  # 0.75
        (Scores(9, 7), Scores(6, 6), 1, "hard"),  # the mean is exactly 1
        (Scores(8, 7), Scores(6, 5), 7, "hard"),  # the teacher's mean is exactly the floor
        (Scores(7, 2), Scores(6.5, 2), 7, "easy"),
        (Scores(5, 5), Scores(5, 5), 1, "easy"),
        (Scores(2, 9), Scores(2, 9), 1, "easy"),
        (Scores(9, 1), None, 1, "dropped"),
        (None, Scores(9, 1), 1, "dropped"),
        (None, None, 1, "dropped"),
    ],
)
def test_labels(first: Scores | None, second: Scores | None, floor: float, label: str) -> None:
    verdict = judged(first, second, floor=floor)
    assert verdict.label == label
    assert (verdict.gap is None) == (label == "dropped")


@given(st.one_of(st.none(), st.tuples(SCORES, SCORES)), st.one_of(st.none(), st.tuples(SCORES, SCORES)))
def test_a_failed_order_never_yields_a_label(
    first: tuple[float, float] | None, second: tuple[float, float] | None
) -> None:
    verdict = judged(Scores(*first) if first else None, Scores(*second) if second else None)
    assert (verdict.label == "dropped") == (first is None or second is None)


def test_later_attempts_fill_in_what_failed() -> None:
    failed = Review(item="i", order="TS", raw="hm", teacher=None, student=None)
    verdict = verdict_of_reviews("i", [failed, *reviews(Scores(9, 1), Scores(8, 2))], threshold=1.0, teacher_floor=1.0)
    assert (verdict.label, verdict.gap, verdict.order_disagreement) == ("hard", 7.0, 2.0)


@given(st.floats(0.1, 9), SCORES, SCORES)
def test_the_threshold_decides(threshold: float, teacher: float, student: float) -> None:
    label = label_of(Scores(teacher, student), threshold=threshold, teacher_floor=1.0)
    assert (label == "hard") == (teacher - student >= threshold)


@given(st.floats(max_value=0.0, allow_nan=False), st.floats(max_value=0.0, allow_nan=False))
def test_likelihood_scores_lie_on_the_scale_and_rise(one: float, other: float) -> None:
    scores = likelihood_score(one), likelihood_score(other)
    assert all(1.0 <= score <= 10.0 for score in scores)
    assert (one <= other) <= (scores[0] <= scores[1])


def test_likelihood_scores_at_the_ends() -> None:
    assert likelihood_score(0.0) == likelihood_score(1e-7) == 10.0
    assert likelihood_score(-math.inf) == 1.0
    assert likelihood_score(math.log(0.5)) == pytest.approx(5.5)


def item(reference: str | None = None, *, image: str | None = "x.png", history: tuple[Turn, ...] = ()) -> Item:
    return Item(
        id="i", image=image, turns=(*history, Turn(role="user", text="What?")), origin="seed", reference=reference
    )


def test_reference_scores_compare_normalised() -> None:
    assert reference_scores(item("A  Bus."), teacher=answer("a bus."), student=answer("a car")) == (10.0, 1.0)
    assert reference_scores(item(None), teacher=answer("x"), student=answer("y")) is None
    dropped = verdict_of("i", None, threshold=1.0, teacher_floor=1.0)
    assert (dropped.label, dropped.gap) == ("dropped", None)


@pytest.mark.parametrize(
    ("teacher", "student", "equal"),
    [("A bus.", "a  BUS.\n", True), ("ﬁve", "five", True), ("a bus", "a bus.", False), ("", " ", True)],
)
def test_equal_answers(teacher: str, student: str, equal: bool) -> None:
    assert equal_answers(answer(teacher), answer(student)) is equal
    assert equal_verdict("i") == Verdict(item="i", label="easy", gap=0.0, equal=True)


def test_the_prompt_puts_what_is_shared_first() -> None:
    history = (Turn(role="user", text="Before?"), Turn(role="assistant", text="Yes."))
    annotation = Annotation(image="x.png", captions=("A red bus.",))
    (turn,) = judge_turns(item(history=history), first="ONE", second="TWO", annotation=annotation)
    text = turn.text
    places = [text.index(part) for part in ("strict grader", "A red bus.", "User: Before?", "What?", "ONE", "TWO")]
    assert places == sorted(places)
    (swapped,) = judge_turns(item(history=history), first="TWO", second="ONE", annotation=annotation)
    start = text.index("[Answer A]")
    assert swapped.text[:start] == text[:start]
    (without,) = judge_turns(item(image=None), first="ONE", second="TWO", annotation=None)
    assert "image" not in without.text
    assert parse_scores(text) is None, "a model that repeats its prompt has given no scores"


def verdicts(dropped: int, total: int) -> list[Verdict]:
    return [
        Verdict(item=f"{n}", label="dropped" if n < dropped else "easy", gap=None if n < dropped else 0.0)
        for n in range(total)
    ]


def test_drops_up_to_the_limit_are_let_pass() -> None:
    check_drops(
        verdicts(5, 100), [], max_drop_fraction=0.05, field="assessor.judge.maxDropFraction", unasked="no answer"
    )
    check_drops([], [], max_drop_fraction=0.0, field="assessor.judge.maxDropFraction", unasked="no answer")
    failed = Review(item="3", order="TS", raw="I can't say. " * 100, teacher=None, student=None)
    good = Review(item="50", order="TS", raw="", teacher=2.0, student=3.0)
    with pytest.raises(BadDataError) as caught:
        check_drops(
            verdicts(6, 100),
            [good, failed],
            max_drop_fraction=0.05,
            field="assessor.judge.maxDropFraction",
            unasked="no answer",
        )
    message = str(caught.value)
    assert "6 of 100 compared items have no verdict" in message
    assert "assessor.judge.maxDropFraction (0.05)" in message
    assert "1 of 2 replies parsed" in message
    assert "I can't say." in message
    assert len(message) < 1024


@pytest.mark.parametrize(
    ("hard", "easy", "dropped", "floor", "wanted", "stop"),
    [
        (50, 9, 0, 50, 10, None),
        (49, 9, 0, 50, 10, "has caught up with the teacher"),
        (0, 9, 0, 0, 10, "has caught up with the teacher"),
        (0, 9, 0, 0, 0, None),
        (1, 0, 0, 0, 10, None),
        (49, 9, 2, 50, 10, r"hardItemsFloor \(50\); 2 of 60 compared items have no verdict$"),
        (0, 0, 16, 0, 0, "^16 of 16 compared items have no verdict, so that there is nothing to make new items from$"),
        (0, 0, 16, 50, 10, "^16 of 16 compared items have no verdict"),
    ],
)
def test_when_a_round_stops_and_what_it_says(
    hard: int, easy: int, dropped: int, floor: int, wanted: int, stop: str | None
) -> None:
    counts = {"compared": hard + easy + dropped, "hard": hard, "easy": easy, "dropped": dropped}
    why = why_stop(counts, floor=floor, hard_items=wanted, threshold=1.0)
    assert (why is None) is (stop is None)
    assert stop is None or re.search(stop, why or "")


def test_summary_counts() -> None:
    given = [*reviews(Scores(9, 1), Scores(3, 4), "a"), *reviews(Scores(9, 1), None, "b")]
    found = [
        judged(Scores(9, 1), Scores(3, 4)).__class__(item="a", label="hard", gap=3.5, order_disagreement=9.0),
        Verdict(item="b", label="dropped"),
        equal_verdict("c"),
    ]
    texts = [answer("x" * 3, item) for item in "abc"]
    report = summary(found, given, teacher=texts, student=texts)
    assert report["counts"] == {"compared": 3, "hard": 1, "easy": 1, "dropped": 1}
    assert (report["equalAnswers"], report["orderFlips"]) == (1, 1)
    assert (report["replies"], report["repliesParsed"]) == (4, 3)
    assert report["gapHistogram"] == {"0": 1, "3": 1}
    assert report["lengthCorrelation"] is None


def test_histogram_and_length_correlation() -> None:
    assert gap_histogram([-0.5, 0.0, 0.99, 9.0]) == {"-1": 1, "0": 2, "9": 1}
    found = [Verdict(item=f"{n}", label="easy", gap=float(n)) for n in range(4)]
    teacher = [answer("x" * (10 * n), f"{n}") for n in range(4)]
    student = [answer("", f"{n}") for n in range(4)]
    assert length_correlation(found, teacher=teacher, student=student) == 1.0

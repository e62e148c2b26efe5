"""What whole rounds count: answers, the judge's replies, candidates; each once, and as the round's own counts have it."""

from collections import Counter
from pathlib import Path

import pytest

from comd_api.recipe import Decoding
from comd_trainer import metrics
from comd_trainer.generation.base import Request
from tests.unit.test_phases_rounds import SCRIPTS, chat_world, judge


@pytest.fixture
def own() -> metrics.Record:
    """This process's record, empty."""
    metrics.OWN.take()
    return metrics.OWN


def of(own: metrics.Record, metric: metrics.Metric) -> dict[tuple[str, ...], float]:
    return {labels: value for (name, labels), value in own.values().items() if name == metric.name}


def test_answers_by_role_and_where_they_come_from(
    own: metrics.Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = chat_world(tmp_path, monkeypatch)
    made = world.play_round(1, None)
    answers = of(own, metrics.ANSWERS)
    assert {role for role, _ in answers} == set(SCRIPTS), "and no role that nobody plays"
    for role in SCRIPTS:
        assert answers[role, "model"] == len(world.asked[role])
    assert answers["teacher", "cache"] == made["answer"].meta["counts"]["compared"], (
        "whom it has answered to learn from"
    )
    own.take()
    world.run("teach", 1, {})
    assert of(own, metrics.ANSWERS) == {("teacher", "cache"): 12}
    assert of(own, metrics.IMAGES) == {}, "nobody has looked at one"


def test_images_that_were_looked_at(own: metrics.Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat_world(tmp_path, monkeypatch).run("teach", 1, {})
    assert of(own, metrics.IMAGES) == {(): 12}


def test_the_judge_s_replies(own: metrics.Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One order of an item fails at first, and one to the end."""
    asked: Counter[str] = Counter()

    def moody(request: Request, decoding: Decoding) -> str:
        prompt = request.turns[-1].text
        asked[prompt] += 1
        if prompt == first(asked):
            return "I won't say."
        return "Let me think." if prompt == second(asked) and asked[prompt] == 1 else judge(request, decoding)

    world = chat_world(
        tmp_path,
        monkeypatch,
        scripts={**SCRIPTS, "assessor": moody},
        assessor={"judge": {"maxAttempts": 3, "maxDropFraction": 1.0}},
    )
    made = world.play_round(1, None)
    replies = of(own, metrics.JUDGE_REPLIES)
    assert replies == {("parsed",): len(asked) - 1, ("asked_again",): 3, ("dropped",): 1}
    meta = made["assess"].meta
    assert (meta["replies"], meta["repliesParsed"]) == (sum(replies.values()), replies["parsed",])


def first(asked: Counter[str]) -> str:
    return next(iter(asked))


def second(asked: Counter[str]) -> str | None:
    return list(asked)[1] if len(asked) > 1 else None


def test_candidates_by_branch_and_reason(own: metrics.Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short_at_times(request: Request, decoding: Decoding) -> str:
        return "Why?" if request.seed % 3 == 0 else SCRIPTS["augmentor"](request, decoding)

    made = chat_world(tmp_path, monkeypatch, scripts={**SCRIPTS, "augmentor": short_at_times}).play_round(1, None)
    candidates = of(own, metrics.CANDIDATES)
    rejected = {
        (branch, reason): number for (branch, result, reason), number in candidates.items() if result == "rejected"
    }
    told = made["augment"].meta["rejectedByReason"]
    assert rejected == {
        (branch, reason): number for branch, reasons in told.items() for reason, number in reasons.items()
    }
    assert any(reason == "short" for _, reason in rejected)
    accepted = {branch: number for (branch, _, reason), number in candidates.items() if reason == "none"}
    assert accepted == {"hard": 6, "easy": 4}


def test_scores_as_they_are_known(own: metrics.Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"id": f"e{number}", "image": "9.png", "instruction": f"What is part {number}?", "answer": f"it is {number}"}
        for number in range(4)
    ]
    world = chat_world(tmp_path, monkeypatch, evaluation_rows=rows)
    made = world.play_round(1, None)
    scores = {(role, value) for (_, role, _), value in of(own, metrics.SCORE).items()}
    assert scores == {(score["role"], score["value"]) for score in made["evaluate"].meta["scores"]}
    assert len(scores) == 2

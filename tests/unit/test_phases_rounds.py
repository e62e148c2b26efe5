"""Whole rounds with scripted models: pools, restarts, controls (method section 12, "Checks worth having")."""

import json
from pathlib import Path
from typing import Any

import pytest

from comd_api.exit_codes import BadDataError
from comd_api.recipe import Decoding
from comd_trainer.generation.base import Request
from comd_trainer.phases import phase_module
from tests.unit.phase_world import Script, StoppedError, World, make_world, rows_of

SEED_ROWS = [
    {
        "id": f"s{index}",
        "image": f"{index % 4}.png",
        "instruction": f"What is shown in part number {index} of it?",
        "answer": "a",
    }
    for index in range(12)
]
TOPICS = ["colour", "shape", "number", "texture", "shadow", "material"]
BANK_ROWS = [
    {
        "id": index,
        "image": f"b{index % 7}.png",
        "instruction": f"Which {TOPICS[index % 6]} has part number {index} of it?",
    }
    for index in range(60)
]
ROUNDS = {
    "count": 3,
    "hardItemsFloor": 1,
    "assessment": {"sampleSize": 10},
    "augmentation": {"hardItems": 6, "easyItems": 4, "easyCandidates": 3},
}


GOLDEN = [
    "bank/1",
    "bank/7",
    "bank/5",
    "bank/11",
    "bank/9",
    "bank/14",
    "bank/20",
    "bank/12",
    "bank/57",
    "bank/46",
    "seed/s4",
    "seed/s8",
    "seed/s11",
]


def number_in(text: str) -> int:
    return int("".join(letter for letter in text if letter.isdigit()) or "0")


def teacher(request: Request, _: Decoding) -> str:
    return f"it is {number_in(request.turns[-1].text)}"


def student(request: Request, _: Decoding) -> str:
    """Right on even numbers only."""
    number = number_in(request.turns[-1].text)
    return f"it is {number}" if number % 2 == 0 else "no idea"


def judge(request: Request, _: Decoding) -> str:
    text = request.turns[-1].text
    teacher_first = "no idea" in text.split("[Answer B]")[1]
    return 'One of them knows.\n{"a": 9, "b": 2}' if teacher_first else 'One of them knows.\n{"a": 2, "b": 9}'


def augmentor(request: Request, _: Decoding) -> str:
    words = ["apple", "bridge", "candle", "dragon", "engine", "forest", "guitar", "hammer"]
    drawn = [words[(request.seed >> shift) % 8] for shift in (0, 3, 6, 9, 12)]
    return f"Where do {' '.join(drawn)} {request.seed % 1000} meet?"


SCRIPTS: dict[str, Script] = {"teacher": teacher, "student": student, "assessor": judge, "augmentor": augmentor}


def chat_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> World:
    changes = {"rounds": ROUNDS, **changes}
    return make_world(tmp_path, monkeypatch, **{"scripts": SCRIPTS, "seed_rows": SEED_ROWS, **changes})


def bytes_of(made: Any) -> dict[str, bytes]:
    files = ("new.jsonl", "train.jsonl", "cache.jsonl", "candidates.jsonl")
    return {file: made["augment"].path(file).read_bytes() for file in files}


def test_a_round_replaces_the_train_pool_and_grows_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = chat_world(tmp_path, monkeypatch)
    first = world.play_round(1, None)

    verdicts = rows_of(first["assess"], "verdicts.jsonl")
    odd = {f"seed/s{number}" for number in range(12) if number % 2}
    assert {row["item"] for row in verdicts if row["label"] == "hard"} == {row["item"] for row in verdicts} & odd
    assert all(row["gap"] == 7.0 for row in verdicts if row["label"] == "hard")
    assert all(row["equal"] for row in verdicts if row["label"] == "easy")

    new = rows_of(first["augment"], "new.jsonl")
    assert [row["origin"] for row in new] == ["hard"] * 6 + ["easy"] * 4
    assert {row["parent"] for row in new if row["origin"] == "hard"} <= odd
    assert all(row["round"] == 1 for row in new)
    train, cache = rows_of(first["augment"], "train.jsonl"), rows_of(first["augment"], "cache.jsonl")
    replayed = [row for row in train if row["origin"] == "seed"]
    assert train[:10] == new
    assert len(replayed) == 3  # 0.25 * 10, rounded half up
    assert [row["id"] for row in cache] == [f"seed/s{n}" for n in range(12)] + [row["id"] for row in new]
    assert first["augment"].meta["counts"]["accepted"] == 10

    second = world.play_round(2, first["augment"])
    assert rows_of(second["teach"], "items.jsonl") == train
    compared = {row["id"] for row in rows_of(second["answer"], "items.jsonl")}
    assert compared == {row["id"] for row in new}, "the last round's new items fill the sample"
    assert len(rows_of(second["augment"], "cache.jsonl")) == 32
    third = world.play_round(3, second["augment"])
    assert "augment" not in third


def test_the_teacher_never_answers_an_item_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = chat_world(tmp_path, monkeypatch)
    made = world.play_round(1, None)
    world.play_round(2, made["augment"])
    prompts = [(request.image, request.turns) for request in world.asked["teacher"]]
    assert len(prompts) == len(set(prompts)) == 12 + 10
    assert made["answer"].meta["counts"] == {"compared": 10, "fresh": 0, "teacherAnswers": 0}


@pytest.mark.parametrize("kind", ["Chat", "Retrieval", "Random"])
def test_the_same_seed_gives_the_same_pools(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(name: str, seed: int) -> dict[str, bytes]:
        world = chat_world(tmp_path / name, monkeypatch, augmentor={"type": kind}, bank_rows=BANK_ROWS, seed=seed)
        return bytes_of(world.play_round(1, None))

    first = play("a", 5)
    assert play("b", 5) == first
    assert play("c", 6) != first


@pytest.mark.parametrize("role", ["teacher", "student", "assessor", "augmentor"])
@pytest.mark.parametrize("calls", [4, 7])
def test_a_restart_gives_the_same_pools_byte_for_byte(
    role: str, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = bytes_of(chat_world(tmp_path / "whole", monkeypatch).play_round(1, None))
    world = chat_world(tmp_path / "broken", monkeypatch)
    world.limits[role] = calls
    with pytest.raises(StoppedError):
        world.play_round(1, None)
    asked_before = len(world.asked[role])
    world.limits.clear()
    world.root = tmp_path / "broken" / "second-attempt"
    assert bytes_of(world.play_round(1, None)) == expected
    prompts = [(request.image, request.turns, request.seed) for request in world.asked[role]]
    assert asked_before > 0
    assert len(prompts) == len(set(prompts)), "what the first attempt had finished was not asked again"


def test_an_augmentor_that_repeats_itself_ends_with_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = {**SCRIPTS, "augmentor": lambda _request, _decoding: "What is in the very middle?"}
    world = chat_world(tmp_path, monkeypatch, scripts=scripts)
    with pytest.raises(BadDataError, match=r"made 2 of 6 hard items in 18 attempts.*maxAttemptsFactor.*rouge 16"):
        world.play_round(1, None)


def test_the_repeat_control_keeps_its_train_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = chat_world(tmp_path, monkeypatch, augmentor={"type": "Repeat"})
    first = world.play_round(1, None)
    assert set(first) == {"teach", "tune", "augment"}
    assert rows_of(first["augment"], "train.jsonl") == rows_of(first["teach"], "items.jsonl")
    assert rows_of(first["augment"], "new.jsonl") == []


def test_random_pays_for_as_many_answers_as_the_competition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = {**ROUNDS, "assessment": {"sampleSize": 10, "freshItems": 5}}
    pools = {}
    for kind in ("Random", "Retrieval"):
        world = chat_world(tmp_path / kind, monkeypatch, augmentor={"type": kind}, bank_rows=BANK_ROWS, rounds=rounds)
        pools[kind] = rows_of(world.play_round(1, None)["augment"], "train.jsonl")
    assert len(pools["Random"]) == len(pools["Retrieval"]) == 15 + 4
    assert {row["origin"] for row in pools["Random"]} == {"random", "seed"}
    assert {row["origin"] for row in pools["Retrieval"]} == {"hard", "easy", "fresh", "seed"}


def test_a_bank_that_is_too_small_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = chat_world(tmp_path, monkeypatch, augmentor={"type": "Retrieval"}, bank_rows=BANK_ROWS[:5])
    with pytest.raises(BadDataError, match=r"augmentation\.hardItems asks for 6 items, but data\.bank gives 5"):
        world.play_round(1, None)


def test_too_few_hard_items_stop_the_run_with_unchanged_pools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = chat_world(tmp_path, monkeypatch, rounds={**ROUNDS, "hardItemsFloor": 9})
    made = world.play_round(1, None)
    assert "fewer than rounds.hardItemsFloor (9)" in made["assess"].meta["stop"]
    assert rows_of(made["augment"], "new.jsonl") == []
    assert rows_of(made["augment"], "cache.jsonl") == rows_of(made["teach"], "items.jsonl")
    failing = chat_world(tmp_path / "fail", monkeypatch, rounds={**ROUNDS, "hardItemsFloor": 9, "belowFloor": "Fail"})
    with pytest.raises(BadDataError, match=r"rounds\.hardItemsFloor \(9\)"):
        failing.play_round(1, None)


@pytest.mark.parametrize(
    ("phase", "change", "differs"),
    [
        ("augment", {"rounds": {**ROUNDS, "hardItemsFloor": 9}}, True),  # by way of `stop`, which no digest holds
        ("augment", {"rounds": {**ROUNDS, "threshold": 2.0}}, False),  # by way of the verdicts
        ("augment", {"rounds": {**ROUNDS, "replayFraction": 0.5}}, True),
        ("augment", {"generation": {"augmentor": {"temperature": 0.5}}}, True),
        ("augment", {"generation": {"augmentor": {"batchSize": 1}}}, False),
        ("answer", {"generation": {"student": {"temperature": 0.5}}}, True),
        ("answer", {"rounds": {**ROUNDS, "hardItemsFloor": 9}}, False),
        ("assess", {"rounds": {**ROUNDS, "threshold": 2.0}}, True),
        ("assess", {"generation": {"assessor": {"temperature": 0.5}}}, True),
        ("teach", {"generation": {"student": {"temperature": 0.5}}}, False),
        ("teach", {"generation": {"teacher": {"temperature": 0.5}}}, True),
        ("teach", {"seed": 1}, True),
        ("evaluate", {"generation": {"student": {"temperature": 0.5}}}, False),
        ("evaluate", {"generation": {"evaluation": {"maxNewTokens": 5}}}, True),
    ],
)
def test_what_a_phase_depends_on(
    phase: Any, change: dict[str, Any], differs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds = [chat_world(tmp_path / name, monkeypatch, **changes) for name, changes in (("a", {}), ("b", change))]
    first, second = (phase_module(phase).recipe(world.config(1), world.fingerprints) for world in worlds)
    assert (first != second) == differs


def test_a_judge_that_never_parses_is_asked_again_and_then_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temperatures: list[float] = []

    def mumbling(_: Request, decoding: Decoding) -> str:
        temperatures.append(decoding.temperature or 0.0)
        return "A gets 9 of 10, B gets 3."

    world = chat_world(tmp_path, monkeypatch, scripts={**SCRIPTS, "assessor": mumbling})
    with pytest.raises(BadDataError, match=r"have no verdict.*0 of \d+ replies parsed.*A gets 9 of 10"):
        world.play_round(1, None)
    assert sorted(set(temperatures)) == [0.2, 0.4, pytest.approx(0.6), 0.8, 1.0]


@pytest.mark.parametrize(("hard_items", "floor"), [(0, 0), (6, 1)])
def test_a_round_without_any_verdict_stops_and_does_not_praise_the_student(
    hard_items: int, floor: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = chat_world(
        tmp_path,
        monkeypatch,
        scripts={**SCRIPTS, "assessor": lambda *_: "No idea.", "student": lambda *_: "words that no teacher says"},
        assessor={"judge": {"maxAttempts": 1, "maxDropFraction": 1.0}},
        rounds={**ROUNDS, "hardItemsFloor": floor, "augmentation": {"hardItems": hard_items, "easyItems": 4}},
    )
    made = world.play_round(1, None)
    assert made["assess"].meta["counts"]["dropped"] == made["assess"].meta["counts"]["compared"]
    assert "compared items have no verdict, so that there is nothing" in made["assess"].meta["stop"]
    assert rows_of(made["augment"], "new.jsonl") == []


def test_a_judge_that_needs_two_attempts_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shy(request: Request, decoding: Decoding) -> str:
        return judge(request, decoding) if (decoding.temperature or 0) > 0.3 else "I would rather not say."

    expected = chat_world(tmp_path / "a", monkeypatch).play_round(1, None)
    made = chat_world(tmp_path / "b", monkeypatch, scripts={**SCRIPTS, "assessor": shy}).play_round(1, None)
    assert rows_of(made["assess"], "verdicts.jsonl") == rows_of(expected["assess"], "verdicts.jsonl")
    assert made["assess"].meta["repliesParsed"] * 2 == made["assess"].meta["replies"]


def test_judge_prompts_share_their_beginning_in_both_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = chat_world(tmp_path, monkeypatch)
    world.play_round(1, None)
    asked = world.asked["assessor"]
    for first, second in zip(asked[::2], asked[1::2], strict=True):
        beginnings = {each.turns[0].text.split("[Answer A]")[0] for each in (first, second)}
        assert len(beginnings) == 1
        assert first.image == second.image
        assert "What is shown in part number" in beginnings.pop()


def test_original_targets_ask_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"seed": {"instructions": "seed.jsonl", "targets": "Original"}}
    world = chat_world(tmp_path, monkeypatch, data=data)
    made = world.run("teach", 1, {})
    assert {row["text"] for row in rows_of(made, "answers.jsonl")} == {"a"}
    assert "teacher" not in world.asked


def test_evaluation_images_never_reach_a_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = [{"id": "e1", "image": "2.png", "instruction": "Anything at all?", "answer": "yes"}]
    world = chat_world(tmp_path, monkeypatch, evaluation_rows=held_out)
    made = world.run("teach", 1, {})
    assert {row["image"] for row in rows_of(made, "items.jsonl")} == {"0.png", "1.png", "3.png"}
    report = made.meta["seedPool"]["evaluationOverlap"]
    assert report["removed"] == report["image"]["removed"] == 3
    assert report["image"]["examples"][0] == "seed/s2 ~ e1"


def test_evaluation_scores_student_and_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = [
        {
            "id": f"e{n}",
            "image": "h.png",
            "instruction": f"Tell me about {n} now",
            "answer": f"It is {n}",
            "group": "even" if n % 2 == 0 else "odd",
        }
        for n in range(10)
    ]
    world = chat_world(tmp_path, monkeypatch, evaluation_rows=held_out)
    made = world.run("evaluate", 0, {})
    scores = {score["role"]: score for score in made.meta["scores"]}
    assert (scores["student"]["value"], scores["teacher"]["value"]) == (0.5, 1.0)
    assert scores["student"]["groups"] == [
        {"name": "even", "value": 1.0, "numItems": 5},
        {"name": "odd", "value": 0.0, "numItems": 5},
    ]
    predictions = rows_of(made, "predictions.jsonl")
    assert [row["correct"] for row in predictions[:4]] == [True, False, True, False]
    assert len(predictions) == 20


def test_reference_compares_with_known_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**row, "answer": f"It is {index}"} for index, row in enumerate(SEED_ROWS)]
    made = chat_world(tmp_path, monkeypatch, seed_rows=rows, assessor={"type": "Reference"}).play_round(1, None)
    hard = [row for row in rows_of(made["assess"], "verdicts.jsonl") if row["label"] == "hard"]
    assert hard
    assert all((row["teacher"], row["student"], row["gap"]) == (10.0, 1.0, 9.0) for row in hard)
    unknown = [{key: value for key, value in row.items() if key != "answer"} for row in SEED_ROWS]
    world = chat_world(tmp_path / "unknown", monkeypatch, seed_rows=unknown, assessor={"type": "Reference"})
    with pytest.raises(BadDataError, match="no known answer to compare with"):
        world.play_round(1, None)


def test_likelihood_scores_only_differing_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[str] = []

    def score_answers(_: Any, *, rows: Any, **__: Any) -> list[float]:
        scored.extend(text for _, text in rows)
        return [0.0 if text.startswith("it is") else -50.0 for _, text in rows]

    monkeypatch.setattr("comd_trainer.generation.likelihood.score_answers", score_answers)
    made = chat_world(tmp_path, monkeypatch, assessor={"type": "Likelihood"}).play_round(1, None)
    hard = [row for row in rows_of(made["assess"], "verdicts.jsonl") if row["label"] == "hard"]
    assert len(scored) == 2 * len(hard)
    assert all((row["teacher"], row["gap"]) == (10.0, pytest.approx(9.0)) for row in hard)


def test_golden_pools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change here means that runs of an older version are not continued but begun anew: raise `keys.KEY_FORMAT` with it."""
    made = chat_world(tmp_path, monkeypatch, augmentor={"type": "Retrieval"}, bank_rows=BANK_ROWS).play_round(1, None)
    assert [row["id"] for row in rows_of(made["augment"], "train.jsonl")] == GOLDEN


def test_unanswerable_candidates_are_turned_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def checker(request: Request, decoding: Decoding) -> str:
        text = request.turns[-1].text
        if "yes or no" not in text:
            return judge(request, decoding)
        return "No." if number_in(text) % 3 == 0 else "Yes."

    chat = {"type": "Chat", "chat": {"checkAnswerable": True}}
    world = chat_world(tmp_path, monkeypatch, augmentor=chat, scripts={**SCRIPTS, "assessor": checker})
    made = world.play_round(1, None)
    new = rows_of(made["augment"], "new.jsonl")
    assert len(new) == 10
    assert all(number_in(row["turns"][0]["text"]) % 3 for row in new)
    assert "unanswerable" in {
        reason for reasons in made["augment"].meta["rejectedByReason"].values() for reason in reasons
    }


def test_annotations_stand_in_for_images_and_point_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = {"type": "Chat", "chat": {"image": "Overlapping"}}
    world = chat_world(tmp_path, monkeypatch, augmentor=chat, data={"annotations": "boxes.jsonl"})
    world.fingerprints["boxes.jsonl"] = "sha256:" + "f" * 64
    boxes = [{"label": "dog", "box": [0, 0, 1, 1]}]
    rows = [{"image": f"{n}.png", "captions": [f"Caption {n}."], "boxes": boxes} for n in (1, 3)]
    (tmp_path / "store" / "boxes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = world.play_round(1, None)
    for role in ("assessor", "augmentor"):
        for request in world.asked[role]:
            assert (request.image is None) == ("Caption" in request.turns[0].text)
    parents = {row["id"]: row["image"] for row in rows_of(made["teach"], "items.jsonl")}
    moved = {(parents[row["parent"]], row["image"]) for row in rows_of(made["augment"], "new.jsonl")}
    assert moved <= {("1.png", "3.png"), ("3.png", "1.png"), ("0.png", "0.png"), ("2.png", "2.png")}
    assert moved & {("1.png", "3.png"), ("3.png", "1.png")}

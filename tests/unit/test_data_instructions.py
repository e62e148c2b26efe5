"""Reading instruction rows: what is taken, what is dropped, and how that is said."""

import json
from pathlib import Path
from typing import Any

import pytest

from comd_api.exit_codes import BadDataError
from comd_trainer.data.annotations import read_annotations
from comd_trainer.data.instructions import Rows, check_share, drop_items, examples, metric_reason, read_rows
from comd_trainer.data.rows import Item, Turn, item_from_dict, to_json
from comd_trainer.data.seeds import derive, rng

GOOD = {"id": "1", "image": "a.png", "instruction": "What is this?"}


def rows_in(tmp_path: Path, *rows: Any, name: str = "rows.jsonl") -> Rows:
    path = tmp_path / name
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n", encoding="utf-8"
    )
    return read_rows(path, field="data.seed.instructions", prefix="seed/", origin="seed")


def test_a_full_row(tmp_path: Path) -> None:
    row = {
        "id": 7,
        "image": "a/b.png",
        "instruction": " <image>\nWhich? ",
        "answer": "B",
        "group": "NAT",
        "choices": ["x", "y"],
    }
    (item,) = rows_in(tmp_path, row).items
    assert item == Item(
        id="seed/7",
        image="a/b.png",
        turns=(Turn(role="user", text="Which?"),),
        origin="seed",
        group="NAT",
        reference="B",
        choices=("x", "y"),
    )
    assert item_from_dict(json.loads(to_json(item))) == item


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({**GOOD, "instruction": "  "}, "field instruction is empty"),
        ({**GOOD, "instruction": "<image>"}, "field instruction is empty"),
        ({**GOOD, "instruction": 3}, "field instruction must be a text, got int"),
        ({"id": "1", "image": "a.png"}, "field instruction is missing"),
        ({"image": "a.png", "instruction": "Hm?"}, "field id is missing"),
        ({**GOOD, "id": True}, "field id must be a text, got True"),
        ({**GOOD, "image": 4}, "field image must be a text, got int"),
        ({**GOOD, "choices": "A"}, "field choices must be a list of texts"),
        ({**GOOD, "choices": ["x"] * 27}, "at most 26 options, got 27"),
        ("[1, 2", "is not JSON"),
        (json.dumps("text"), "must be a JSON object, got str"),
        ({"id": "c", "conversations": []}, "conversations must be a list of turns"),
        ({"id": "c", "conversations": [{"from": "gpt", "value": "hi"}]}, r"conversations[0] must be the user's turn"),
        ({"id": "c", "conversations": [{"from": "dog", "value": "hi"}]}, "must be {from: human or gpt, value: text}"),
        ({"id": "c", "conversations": [{"from": "human", "value": "<image>"}]}, "conversations[0].value is empty"),
    ],
)
def test_bad_rows_are_dropped_and_named(row: Any, why: str, tmp_path: Path) -> None:
    rows = rows_in(tmp_path, {**GOOD, "id": "first"}, row)
    assert [item.id for item in rows.items] == ["seed/first"]
    assert rows.total == 2
    (told,) = rows.bad
    assert told.startswith("row 2: ")
    assert why in told


def test_the_same_id_twice_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match=r"data\.seed\.instructions: rows 1 and 3 have the same id '1'"):
        rows_in(tmp_path, GOOD, {**GOOD, "id": "2"}, GOOD)


CONVERSATION = {
    "id": "33",
    "image": "33.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A bus."},
        {"from": "human", "value": "Which colour?"},
        {"from": "gpt", "value": "Red."},
    ],
}


@pytest.mark.parametrize("as_list", [True, False])
def test_conversations_become_one_item_a_turn_with_history(as_list: bool, tmp_path: Path) -> None:
    rows = rows_in(tmp_path, [CONVERSATION], name="llava.json") if as_list else rows_in(tmp_path, CONVERSATION)
    first, second = rows.items
    assert (first.id, second.id) == ("seed/33#1", "seed/33#2")
    assert first.turns == (Turn(role="user", text="What is it?"),)
    assert [turn.text for turn in second.turns] == ["What is it?", "A bus.", "Which colour?"]
    assert (first.reference, second.reference) == ("A bus.", "Red.")
    assert rows.total == 1


def test_conversations_may_share_an_id_as_llavas_do(tmp_path: Path) -> None:
    short = {**CONVERSATION, "conversations": CONVERSATION["conversations"][:2]}
    rows = rows_in(tmp_path, CONVERSATION, short, short)
    assert [item.id for item in rows.items] == ["seed/33#1", "seed/33#2", "seed/33~2", "seed/33~3"]


def test_a_broken_json_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match=r"data\.seed\.instructions \(rows\.jsonl\) starts as a JSON list"):
        rows_in(tmp_path, '[{"id": "1"},')


def test_too_many_bad_rows_name_field_file_and_examples(tmp_path: Path) -> None:
    good = [{**GOOD, "id": str(number)} for number in range(19)]
    fine = rows_in(tmp_path, *good, {})
    check_share(fine, field="data.bank", source="bank.jsonl", max_bad_fraction=0.05)
    bad = rows_in(tmp_path, *good[1:], {}, {})
    with pytest.raises(
        BadDataError, match=r"data\.bank \(bank\.jsonl\): 2 of 20 rows.*maxBadRowFraction \(0\.05\).*row 19: field id"
    ):
        check_share(bad, field="data.bank", source="bank.jsonl", max_bad_fraction=0.05)


def test_a_file_without_usable_rows_is_refused_whatever_the_fraction(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    empty = read_rows(tmp_path / "empty.jsonl", field="data.bank", prefix="", origin="seed")
    with pytest.raises(BadDataError, match="holds no rows"):
        check_share(empty, field="data.bank", source="empty.jsonl", max_bad_fraction=1.0)
    with pytest.raises(BadDataError, match="1 of 1 rows"):
        check_share(rows_in(tmp_path, {}), field="data.bank", source="x", max_bad_fraction=1.0)


def test_a_row_whose_image_is_bad_counts_once(tmp_path: Path) -> None:
    rows = drop_items(rows_in(tmp_path, CONVERSATION, GOOD), lambda item: "gone" if item.image == "33.jpg" else None)
    assert [item.id for item in rows.items] == ["seed/1"]
    assert rows.bad == ("row 1: gone",)


def test_examples_are_few() -> None:
    assert examples(["a", "b"]) == "a; b"
    assert examples(["a", "b", "c", "d", "e"]) == "a; b; c; and 2 more"


@pytest.mark.parametrize(
    ("metric", "answer", "choices", "why"),
    [
        ("ExactMatch", "a bus", [], None),
        ("ExactMatch", None, [], "field answer is missing"),
        ("MultipleChoice", "B", ["x", "y"], None),
        ("MultipleChoice", "C", ["x", "y"], "a letter from A to B, got 'C'"),
        ("MultipleChoice", "x", ["x", "y"], "a letter from A to B"),
        ("ChoiceLikelihood", "A", ["x"], "at least 2 options for ChoiceLikelihood, got 1"),
    ],
)
def test_what_a_metric_needs(
    metric: str, answer: str | None, choices: list[str], why: str | None, tmp_path: Path
) -> None:
    (item,) = rows_in(tmp_path, {**GOOD, "answer": answer, "choices": choices}).items
    found = metric_reason(item, metric)
    assert (found is None) if why is None else (found is not None and why in found)


def annotations_in(tmp_path: Path, *rows: Any, max_bad: float = 0.0) -> Any:
    path = tmp_path / "boxes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_annotations(path, field="data.annotations", source="boxes.jsonl", max_bad_fraction=max_bad)


def test_annotations_read_as_text(tmp_path: Path) -> None:
    found = annotations_in(
        tmp_path, {"image": "a.png", "captions": ["A dog."], "boxes": [{"label": "Dog", "box": [0, 0.25, 1, 0.5]}]}
    )
    assert found["a.png"].labels == {"dog"}
    assert found["a.png"].as_text().splitlines()[:2] == ["A dog.", "Dog: [0.000, 0.250, 1.000, 0.500]"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"captions": ["x"]}, "field image"),
        ({"image": "a.png"}, "neither captions nor boxes"),
        ({"image": "a.png", "boxes": [{"label": "x", "box": [0, 0, 2, 1]}]}, "four numbers from 0 to 1"),
        ({"image": "a.png", "boxes": [{"label": "x", "box": [0, 0, 1]}]}, "a box must be"),
    ],
)
def test_bad_annotations_are_refused(row: Any, why: str, tmp_path: Path) -> None:
    good = {"image": "good.png", "captions": ["x"]}
    with pytest.raises(BadDataError, match=why):
        annotations_in(tmp_path, good, row)
    assert set(annotations_in(tmp_path, good, row, max_bad=0.5)) == {"good.png"}


def test_seeds_are_stable_and_unlike_each_other() -> None:
    assert derive(0, "judge", "a", 1) == 1271738408, "a change here changes every run's pools"
    assert rng(7, "x").integers(1000, size=3).tolist() == rng(7, "x").integers(1000, size=3).tolist()
    seeds = {derive(seed, name, number) for seed in range(10) for name in ("a", "b") for number in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert derive(1, "a", "b") != derive(1, "ab")
    assert derive(1, "1") != derive(1, 1)


def test_text_that_can_not_be_written_down_is_no_text(tmp_path: Path) -> None:
    """JSON can spell half a surrogate pair; a whole pair is one character, and a line separator ends no row."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"id": "1", "instruction": "what \\ud83d?"}\n{"id": "2", "instruction": "what \\ud83d\\ude00 \u2028?"}\n'
        '{"id": "3", "instruction": "what?", "choices": ["\\udc00"]}\n' + "[" * 100_000 + "\n"
    )
    rows = read_rows(path, field="data.bank", prefix="", origin="seed")
    assert [item.instruction for item in rows.items] == ["what \U0001f600 \u2028?"]
    assert rows.bad[:2] == (
        "row 1: field instruction holds half a surrogate pair, which is no character",
        "row 3: field choices holds half a surrogate pair, which is no character",
    )
    assert "row 4: is not JSON" in rows.bad[2]

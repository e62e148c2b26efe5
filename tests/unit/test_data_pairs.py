"""Pre-training rows: what is read, what is dropped and named, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from comd_api.exit_codes import BadDataError
from comd_trainer.data.pairs import read_pairs
from comd_trainer.data.rows import Pair


def pairs_in(tmp_path: Path, data: bytes | list[Any], *, max_bad: float = 0.0) -> list[Pair]:
    path = tmp_path / "pairs.jsonl"
    lines = data if isinstance(data, bytes) else "".join(json.dumps(row) + "\n" for row in data).encode()
    path.write_bytes(lines)
    return read_pairs(path, field="data.pretraining", max_bad_fraction=max_bad)


GOOD = {"id": "1", "image": "1.png", "caption": "a cat"}


def test_rows_and_llavas_conversations(tmp_path: Path) -> None:
    talk = {
        "id": 2,
        "image": "2.png",
        "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": " a dog "}],
    }
    expected = [Pair(id="1", image="1.png", caption="a cat"), Pair(id="2", image="2.png", caption="a dog")]
    assert pairs_in(tmp_path, [GOOD, talk]) == expected
    assert pairs_in(tmp_path, json.dumps([GOOD, talk]).encode()) == expected


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0b"])
def test_a_row_ends_where_its_line_ends(mark: str, tmp_path: Path) -> None:
    """Python's `str.splitlines` knows more ends of lines than JSON Lines has."""
    row = json.dumps({**GOOD, "caption": f"a{mark}cat"}, ensure_ascii=mark == "\x0b") + "\n"
    (pair,) = pairs_in(tmp_path, row.encode())
    assert pair.caption == f"a{mark}cat"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b'{"id": "2", "image": "2.png"}', "row 2: field caption is missing or not a text"),
        (b'{"id": "2", "image": "2.png", "caption": "\xff"}', "row 2: is not JSON"),
        (b"{", "row 2: is not JSON"),
        (b"7", "row 2: must be a JSON object, got int"),
        (json.dumps(GOOD).encode(), "row 2: id '1' stands twice"),
    ],
)
def test_bad_rows_are_named(bad: bytes, why: str, tmp_path: Path) -> None:
    data = json.dumps(GOOD).encode() + b"\n" + bad + b"\n"
    with pytest.raises(BadDataError, match=r"1 of 2 rows can't be used, more than data\.maxBadRowFraction") as caught:
        pairs_in(tmp_path, data)
    assert why in str(caught.value)
    assert [pair.id for pair in pairs_in(tmp_path, data, max_bad=0.5)] == ["1"]


def test_a_file_that_begins_with_no_text(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="row 1: is not JSON"):
        pairs_in(tmp_path, b"\xff\xfe\n")


def test_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="the file is empty"):
        pairs_in(tmp_path, b"\n")

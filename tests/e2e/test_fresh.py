"""Students that stay fresh: a run starts from an earlier one, learns what is new, and takes its place when it is better."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.runs import comd, status_of
from tests.e2e.test_reuse import phases, run
from tests.e2e.world import manifest, write_manifest

PROMOTION = {"evaluation": "held-out", "confidence": 0.5}
NUM_NEW, NUM_FRESH = 6, 6


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Path:
    """That of a finished run `tiny`, to write to."""
    return shutil.copytree(finished / "store", tmp_path / "store", copy_function=shutil.copy2)


def add_rows(store: Path) -> None:
    """New questions, which `tiny` was never asked."""
    file = store / "inputs" / "seed.jsonl"
    rows = [
        {"id": f"new-{n}", "image": f"{n}.png", "instruction": f"what is new in picture {n}?", "answer": "red"}
        for n in range(NUM_NEW)
    ]
    file.write_text(file.read_text() + "".join(json.dumps(row) + "\n" for row in rows))


def stage(status: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(entry for entry in status["stages"] if entry["name"] == name)
    return found


def rows_in(store: Path, run: str, path: str) -> list[dict[str, Any]]:
    (file,) = (store / "default" / run).glob(path)
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.timeout(900)
def test_a_run_that_starts_from_another_learns_what_is_new(finished: Path, store: Path, tmp_path: Path) -> None:
    theirs = status_of(finished)
    add_rows(store)
    ours = run(tmp_path, "next", store, startFrom={"run": "tiny"}, skipIfUnchangedSince="tiny", promotion=PROMOTION)
    started = {ref["name"]: ref for ref in ours["stages"][0]["artifacts"]}
    assert started["student"]["digest"] == theirs["student"]["digest"]
    assert (
        "begins with the student of run tiny (round-2); 6 of 30 seed rows are new to it" in ours["stages"][0]["message"]
    )
    assert [each["name"] for each in stage(ours, "pretrain")["phases"]] == ["evaluate"], (
        "nothing is trained before round 1"
    )
    before = [score["value"] for score in stage(ours, "pretrain")["scores"]]
    assert before == [score["value"] for score in theirs["stages"][-1]["scores"]], "it begins where the other one ended"

    taught = rows_in(store, "next", "round-1/teach/*/*/items.jsonl")
    replayed = [row for row in taught if row["id"].startswith("earlier/")]
    assert len(taught) - len(replayed) == NUM_NEW
    counts = stage(ours, "round-1")["counts"]
    assert counts["train"] == len(taught)
    # Of the old ones the teacher is asked nothing: neither for what is replayed nor for what is compared.
    assert counts["teacherAnswers"] == NUM_NEW + NUM_FRESH
    assert counts["train"] + counts["compared"] - counts["teacherAnswers"] > 10
    known = {
        row["turns"][-1]["text"] + str(row["image"])
        for row in rows_in(store, "tiny", "round-1/augment/*/*/cache.jsonl")
    }
    cache = rows_in(store, "next", "round-1/teach/*/*/cache.jsonl")
    assert known <= {row["turns"][-1]["text"] + str(row["image"]) for row in cache}, "its pools carry on"
    assert stage(ours, "promote")["promoted"] is True, "the first of its channel"
    pointer = json.loads((store / "channels" / "stable.json").read_text())
    assert (pointer["uri"], pointer["digest"]) == (ours["student"]["uri"], ours["student"]["digest"])
    assert (pointer["run"], pointer["scores"][0]["value"]) == (
        "default/next",
        stage(ours, "round-2")["scores"][0]["value"],
    )

    # What it has come to is found by a run that starts from the channel; that has nothing to do, for nothing has changed.
    idle = run(
        tmp_path, "idle", store, startFrom={"channel": "stable"}, skipIfUnchangedSince="next", promotion=PROMOTION
    )
    assert phases(idle) == {"preflight": "Succeeded"}
    assert idle["student"] == ours["student"]
    succeeded = next(entry for entry in idle["conditions"] if entry["type"] == "Succeeded")
    assert (succeeded["reason"], succeeded["message"]) == (
        "Unchanged",
        "neither data nor recipe have changed since run next, whose student this is",
    )
    # And stands for it in turn.
    idler = run(tmp_path, "idler", store, skipIfUnchangedSince="idle", promotion=PROMOTION)
    assert phases(idler) == {"preflight": "Succeeded"}

    # Deleted and applied again it costs nothing, and moves nothing.
    shutil.rmtree(tmp_path / "next")
    again = run(tmp_path, "next", store, startFrom={"run": "tiny"}, skipIfUnchangedSince="tiny", promotion=PROMOTION)
    assert phases(again) == {
        "preflight": "Succeeded",
        "pretrain": "Reused",
        "round-1": "Reused",
        "round-2": "Reused",
        "promote": "Succeeded",
    }
    assert again["student"] == ours["student"]
    assert json.loads((store / "channels" / "stable.json").read_text()) == pointer


@pytest.mark.timeout(900)
def test_where_no_row_is_new_another_recipe_goes_over_all_of_them(finished: Path, store: Path, tmp_path: Path) -> None:
    rounds = {**manifest()["spec"]["rounds"], "count": 1}
    ours = run(tmp_path, "again", store, startFrom={"run": "tiny"}, skipIfUnchangedSince="tiny", rounds=rounds)
    first = stage(ours, "round-1")
    # Two of the 24 rows ask what another one asks.
    assert (first["counts"]["train"], first["counts"]["teacherAnswers"]) == (22, 0)
    assert "no seed row is new to it" in ours["stages"][0]["message"]
    assert ours["student"]["digest"] != status_of(finished)["student"]["digest"]


@pytest.mark.timeout(900)
def test_a_student_alone(finished: Path, store: Path, tmp_path: Path) -> None:
    theirs = status_of(finished)["student"]
    uri = theirs["uri"].replace((finished / "store").as_uri(), store.as_uri())
    rounds = {**manifest()["spec"]["rounds"], "count": 1}
    start = {"artifact": {"uri": uri, "digest": theirs["digest"]}}
    ours = run(tmp_path, "alone", store, startFrom=start, rounds=rounds, execution="Phase")
    assert stage(ours, "round-1")["counts"]["train"] == 24
    started = {ref["name"]: ref for ref in ours["stages"][0]["artifacts"]}
    assert (started["student"]["digest"], "pools" in started) == (theirs["digest"], False)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        ({"startFrom": {"run": "nobody"}}, 64, "spec.startFrom.run: no round of default/nobody was finished in"),
        ({"startFrom": {"channel": "stable"}}, 64, "is not there, so that nothing was promoted yet"),
        (
            {"promotion": {"evaluation": "held-in"}},
            64,
            "promotion.evaluation must be the name of an entry of data.evaluation",
        ),
        ({"startFrom": {"run": "wrong"}}, 64, "spec.startFrom.run is the run itself"),
    ],
)
def test_bad_input(store: Path, tmp_path: Path, spec: dict[str, Any], code: int, words: str) -> None:
    file = write_manifest(tmp_path / "wrong.yaml", manifest("wrong", **spec))
    done = comd("run", file, "--work-dir", tmp_path / "wrong", "--storage", store.as_uri())
    assert done.returncode == code
    assert words in done.stdout + done.stderr
    assert not list((store / "default").glob("wrong/round-*"))
    if "startFrom" in spec and "itself" not in words:
        asked = comd("doctor", file, "--work-dir", tmp_path / "wrong", "--storage", store.as_uri())
        assert (asked.returncode, words in asked.stdout) == (code, True), asked.stdout


@pytest.mark.timeout(300)
def test_a_channel_by_hand(store: Path, tmp_path: Path) -> None:
    def promote(*arguments: str) -> tuple[int, str]:
        done = comd("promote", "--storage", store, *arguments)
        return done.returncode, done.stdout + done.stderr

    assert promote() == (0, f"{store.as_uri()}/channels/stable.json is not there: nothing was promoted yet\n")
    code, text = promote("--to", "default/tiny")
    assert (code, "points to default/tiny now" in text) == (0, True), text
    code, text = promote("--to", "previous")
    assert (code, "has pointed nowhere else before" in text) == (64, True), text
    code, text = promote("--channel", "UPPER")
    assert (code, "--channel" in text) == (64, True), text
    file = write_manifest(tmp_path / "run.yaml", manifest(promotion={**PROMOTION, "channel": "beta"}))
    done = comd("promote", "-f", file, "--storage", store)
    assert "channels/beta.json is not there" in done.stdout
    nowhere = comd("promote")
    assert (nowhere.returncode, "where is the channel?" in nowhere.stderr) == (64, True), nowhere.stderr

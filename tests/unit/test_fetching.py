"""A fetch says how far it is, and ends when its process is told to stop."""

import logging
from pathlib import Path

import pytest

from comd_api.exit_codes import TryAgainError
from comd_api.run import S3Options
from comd_trainer import metrics
from comd_trainer.context import PreemptedError, raise_if_there
from comd_trainer.store.fetching import LOG_SECONDS, FetchLog
from comd_trainer.store.stores import open_store


def test_a_long_fetch_says_how_far_it_is(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    moved: list[int] = []
    fetch = FetchLog("s3://bucket/images", num_files=10_425, num_bytes=120_000_000, clock=lambda: now[0])
    on_bytes = fetch.on_bytes(moved.append)
    with caplog.at_level(logging.INFO):
        for second in range(1, 26):
            now[0] = float(second)
            on_bytes(2_000_000)
            fetch.file_done()
    assert [record.getMessage() for record in caplog.records] == [
        "fetching s3://bucket/images: 9 of 10,425 files, 20 of 120 MB, 2.0 MB/s, about 50 s left",
        "fetching s3://bucket/images: 19 of 10,425 files, 40 of 120 MB, 2.0 MB/s, about 40 s left",
    ]
    assert sum(moved) == 50_000_000


def test_a_short_fetch_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    fetch = FetchLog("s3://bucket/images", num_files=2, num_bytes=2, clock=lambda: now[0])
    with caplog.at_level(logging.INFO):
        fetch.on_bytes(None)(1)
        now[0] = LOG_SECONDS - 0.1
        fetch.file_done()
    assert not caplog.records


def test_who_was_told_to_stop_fetches_nothing_more_and_saves_what_there_is(tmp_path: Path) -> None:
    stop_file = tmp_path / "stop"
    store = open_store((tmp_path / "store").as_uri(), S3Options(), check=lambda: raise_if_there(stop_file))
    store.write("in", b"1")
    store.download("in", tmp_path / "before")
    stop_file.touch()
    with pytest.raises(PreemptedError, match="stopped by request"):
        store.download("in", tmp_path / "after")
    assert not (tmp_path / "after").exists()
    store.write("out", b"2")
    store.upload(tmp_path / "before", "share")
    assert (store.read("out"), store.read("share")) == (b"2", b"1")


def test_a_download_that_is_given_up_is_no_failure_of_the_store(tmp_path: Path) -> None:
    calls = iter([None, TryAgainError("enough")])

    def check() -> None:
        error = next(calls)
        if error is not None:
            raise error

    store = open_store((tmp_path / "store").as_uri(), S3Options(), check=check)
    store.write("in", b"1")
    before = failures()
    with pytest.raises(TryAgainError, match="enough"):
        store.download("in", tmp_path / "in")
    assert failures() == before


def failures() -> float:
    return metrics.OWN.values()[metrics.STORE_ERRORS.name, ("failed",)]

"""What a bucket costs: requests that were repeated, bytes as they move. The counters of /metrics, by real transfers."""

from pathlib import Path

import pytest

from comd_api.run import S3Options
from comd_trainer import metrics
from comd_trainer.store.stores import open_store
from tests.s3 import versity
from tests.s3.test_s3_errors import server_that_says

LARGE = 20 << 20
"""Of several parts."""


@pytest.fixture
def own() -> metrics.Record:
    """This process's record, empty."""
    metrics.OWN.take()
    return metrics.OWN


@pytest.mark.usefixtures("s3_keys")
def test_requests_that_are_repeated(own: metrics.Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which nobody else notices."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "4")
    with server_that_says((503, "SlowDown"), (500, "InternalError"), (200, "content")) as store:
        assert store.read("a") == b"content"
    counted = own.values()
    assert counted["comd_store_errors", ("repeated",)] == 2
    assert counted["comd_store_errors", ("failed",)] == 0
    assert counted["comd_transfers", ("download",)] == 1


def test_bytes_there_and_back(own: metrics.Record, bucket: str, s3_keys: versity.Server, tmp_path: Path) -> None:
    store = open_store(f"s3://{bucket}/runs", S3Options(endpoint=s3_keys.endpoint))
    (tmp_path / "large").write_bytes(b"x" * LARGE)
    store.upload(tmp_path / "large", "large")
    store.download("large", tmp_path / "back")
    store.download("large", tmp_path / "again", size=LARGE)
    counted = own.values()
    assert counted["comd_transfer_bytes", ("upload",)] == LARGE
    assert counted["comd_transfer_bytes", ("download",)] == 2 * LARGE
    assert (counted["comd_transfers", ("upload",)], counted["comd_transfers", ("download",)]) == (1, 2)
    assert counted["comd_transfer_seconds", ("download",)] > 0

"""What a bucket costs: requests that were repeated, bytes as they move. The counters of /metrics, by real transfers."""

import errno
from pathlib import Path

import pytest

from comd_api.exit_codes import TryAgainError, UserError
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


def test_looking_for_what_is_not_there_is_no_failure(
    own: metrics.Record, bucket: str, s3_keys: versity.Server, tmp_path: Path
) -> None:
    """One `failed` brings an alert. A bucket that is not there is one."""
    there = open_store(f"s3://{bucket}/runs", S3Options(endpoint=s3_keys.endpoint))
    assert there.stat("a") is None
    assert not there.exists("a")
    assert list(there.list("a")) == []
    there.delete("a")
    there.probe("a")
    assert there.write("b", b"1")
    assert not there.write("b", b"1", if_absent=True)
    assert there.swap("a", b"2", expected=b"1") is None
    assert there.swap("b", b"2", expected=None) == b"1"
    assert there.read_range("b", start=5, size=1) == b""
    for look in (
        lambda: there.read("a"),
        lambda: there.read_range("a", start=0, size=1),
        lambda: there.download("a", tmp_path / "a"),
    ):
        with pytest.raises(FileNotFoundError):
            look()
    assert own.values()["comd_store_errors", ("failed",)] == 0
    with pytest.raises(UserError, match="does not exist"):
        open_store(f"s3://{bucket}-gone/runs", S3Options(endpoint=s3_keys.endpoint)).exists("a")
    assert own.values()["comd_store_errors", ("failed",)] == 1


def test_a_full_disk_is_not_the_bucket_s_fault(
    bucket: str, s3_keys: versity.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor counted as such by the operator, which looks for spec.storage in the sentence."""
    store = open_store(f"s3://{bucket}/runs", S3Options(endpoint=s3_keys.endpoint))
    store.write("a", b"x")

    def full(path: Path, data: bytes) -> int:
        del data
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(TryAgainError, match=r"^the trainer's scratch folder: no space is left for .*/a \(") as raised:
        store.download("a", tmp_path / "a", size=1)
    assert "spec.storage" not in str(raised.value)

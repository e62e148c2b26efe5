"""A pointer that several move: of those who saw the same, one wins, in a folder and in a bucket."""

import errno
import fcntl
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from comd_api.exit_codes import TryAgainError, UserError
from comd_api.run import S3Options
from comd_trainer import metrics
from comd_trainer.store import file_store, s3_store
from comd_trainer.store.hashing import in_parallel
from comd_trainer.store.stores import DamagedError, Store, open_store
from tests.s3 import versity
from tests.s3.proxy import between
from tests.s3.test_s3_errors import server_that_says
from tests.s3.test_stores import store

__all__ = ["store"]  # the fixture

PATH = "channels/stable.json"


# ---- what every store promises


def test_each_sees_what_was_there_when_it_was_not_as_expected(store: Store) -> None:
    assert store.swap(PATH, b"one", expected=b"other") is None, "there is none"
    assert not store.exists(PATH)
    assert store.swap(PATH, b"one", expected=None) == b"one"
    assert store.swap(PATH, b"two", expected=None) == b"one", "taken"
    assert store.swap(PATH, b"two", expected=b"other") == b"one", "changed since"
    assert store.read(PATH) == b"one"
    assert store.swap(PATH, b"two", expected=b"one") == b"two"
    assert store.swap(PATH, b"three", expected=b"one") == b"two", "changed since"
    assert store.read(PATH) == b"two"
    store.delete(PATH)
    assert store.swap(PATH, b"three", expected=b"two") is None, "deleted since"
    assert store.swap(PATH, b"", expected=None) == b""
    assert store.swap(PATH, b"four", expected=None) == b"", "an empty file is one"
    assert store.swap(PATH, b"four", expected=b"") == b"four"


def test_whether_writers_are_kept_apart_is_found_out_without_a_trace(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("x/kept", b"")
    store.probe_swap("x/preflight")
    assert [file.path for file in store.list("")] == ["x/kept"]
    for kind in (file_store.FileStore, s3_store.S3Store):
        monkeypatch.setattr(kind, "_put_over", lambda *_, **__: True, raising=False)
        monkeypatch.setattr(kind, "swap", lambda *_, **__: None)
    with pytest.raises(UserError, match=r"If-Match|does not read as it was written"):
        store.probe_swap("x/preflight")


def test_what_was_done_already_is_a_success(store: Store) -> None:
    """The reply was lost, and whoever asks asks again."""
    store.write(PATH, b"old")
    for _ in range(2):
        assert store.swap(PATH, b"new", expected=b"old") == b"new"
    assert store.swap(PATH, b"new", expected=None) == b"new"
    assert store.swap(PATH, b"new", expected=b"new") == b"new"


def test_nothing_else_is_seen_of_it(store: Store) -> None:
    store.swap(PATH, b"one", expected=None)
    store.swap(PATH, b"two", expected=b"one")
    assert [(file.path, file.size) for file in store.list("")] == [(PATH, 3)]


@pytest.mark.parametrize("expected", [None, b"before"])
def test_of_many_at_once_one_wins(store: Store, expected: bytes | None) -> None:
    for trial in range(10):
        path = f"race/{trial}"
        if expected is not None:
            store.write(path, expected)
        barrier = threading.Barrier(8)

        def swap(writer: int, path: str = path, barrier: threading.Barrier = barrier) -> bytes | None:
            barrier.wait()
            return store.swap(path, b"%d" % writer, expected=expected)

        found = in_parallel(swap, range(8), threads=8)
        assert len(set(found)) == 1, "all know who has won"
        assert sum(seen == b"%d" % writer for writer, seen in enumerate(found)) == 1
        assert store.read(path) == found[0]


def count_up(store: Store, *, writer: str, steps: int) -> None:
    """`steps` times: the number in the file grows by one, whoever else does the same."""
    expected: bytes | None = None
    for step in range(steps):
        while True:
            number = int(expected.split()[0]) if expected else 0
            data = f"{number + 1} {writer} {step}".encode()
            found = store.swap(PATH, data, expected=expected)
            expected = found
            if found == data:
                break


def test_no_step_is_lost_between_threads(store: Store) -> None:
    in_parallel(lambda writer: count_up(store, writer=str(writer), steps=10), range(4), threads=4)
    assert store.read(PATH).split()[0] == b"40"


def test_no_step_is_lost_between_processes(store: Store) -> None:
    """Of one store each, as in pods."""
    endpoint = "" if store.uri.startswith("file:") else store._store._options.endpoint  # type: ignore[attr-defined]
    code = (
        "import sys; from comd_api.run import S3Options; from comd_trainer.store.stores import open_store; "
        "from tests.s3.test_swap import count_up; uri, endpoint, writer = sys.argv[1:]; "
        "count_up(open_store(uri, S3Options(endpoint=endpoint or None)), writer=writer, steps=10)"
    )
    command = [sys.executable, "-c", code, store.uri, endpoint]
    root = Path(__file__).parents[2]
    running = [subprocess.Popen([*command, str(writer)], cwd=root, stderr=subprocess.PIPE) for writer in range(3)]
    for process in running:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told.decode()
    assert store.read(PATH).split()[0] == b"30"


def test_bytes_are_counted(store: Store) -> None:
    metrics.OWN.take()
    store.swap(PATH, b"four", expected=None)
    counted = metrics.OWN.values()
    assert counted["comd_transfer_bytes", ("upload",)] == 4
    assert counted["comd_transfers", ("upload",)] == 1


# ---- a folder


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/root", S3Options())


def place(folder: Store) -> Path:
    local = folder.local_path(PATH)
    assert local is not None
    return local


def test_nothing_is_made_where_nothing_is_to_be_done(folder: Store, tmp_path: Path) -> None:
    assert folder.swap(PATH, b"new", expected=b"old") is None
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_read_and_then_replaced_as_by_a_write(folder: Store, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"old")
    place(folder).parent.mkdir(parents=True)
    place(folder).symlink_to(tmp_path / "elsewhere")
    assert folder.swap(PATH, b"new", expected=b"old") == b"new"
    assert not place(folder).is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == b"old"


def test_what_is_no_file_is_not_waited_for(folder: Store) -> None:
    """Else one who takes "there is none" for what to expect next would try for ever."""
    place(folder).parent.mkdir(parents=True)
    place(folder).symlink_to("/no/such")
    with pytest.raises(UserError, match=r"^spec\.storage\.uri: .*stable\.json can't be used \(it is no file\)"):
        folder.swap(PATH, b"new", expected=None)
    place(folder).unlink()
    place(folder).mkdir()
    with pytest.raises(UserError, match=r"^spec\.storage\.uri: .*stable\.json can't be used"):
        folder.swap(PATH, b"new", expected=None)
    assert sorted(os.listdir(place(folder).parent)) == [file_store._LOCK, "stable.json"]


def test_one_who_is_stopped_with_the_lock_does_not_stop_all(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_store, "_LOCK_SECONDS", 0.2)
    folder.swap(PATH, b"one", expected=None)
    with (place(folder).parent / file_store._LOCK).open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(
            TryAgainError, match=r"^spec\.storage\.uri: somebody has held .*/channels/.comd-partial-lock"
        ):
            folder.swap(PATH, b"two", expected=b"one")
        assert folder.swap("other/stable.json", b"x", expected=None) == b"x", "of another folder"
    assert folder.swap(PATH, b"two", expected=b"one") == b"two", "the kernel gives it back"


def test_a_lock_is_given_back_though_a_child_has_inherited_it(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[int] = []
    lock = fcntl.flock

    def copied(descriptor: int, operation: int) -> None:
        if operation != fcntl.LOCK_UN:
            copies.append(os.dup(descriptor))  # what `fork` does
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", copied)
    monkeypatch.setattr(file_store, "_LOCK_SECONDS", 1.0)
    folder.swap(PATH, b"one", expected=None)
    assert folder.swap(PATH, b"two", expected=b"one") == b"two"
    for copy in copies:
        os.close(copy)


def test_others_who_may_write_to_the_folder_may_take_the_lock(folder: Store) -> None:
    place(folder).parent.mkdir(parents=True)
    place(folder).parent.chmod(0o2770)
    before = os.umask(0o077)
    try:
        folder.swap(PATH, b"one", expected=None)
    finally:
        os.umask(before)
    assert (place(folder).parent / file_store._LOCK).stat().st_mode & 0o777 == 0o660


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused(folder: Store, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(UserError, match=r"^spec\.storage\.uri: the file system of .*/channels has no locks \("):
        folder.swap(PATH, b"one", expected=None)
    assert list(folder.list("")) == []


def test_a_full_disk_changes_nothing(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.swap(PATH, b"one", expected=None)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(file_store, "_flush", full)
        with pytest.raises(TryAgainError, match="no space is left"):
            folder.swap(PATH, b"two", expected=b"one")
    assert folder.read(PATH) == b"one"
    assert sorted(os.listdir(place(folder).parent)) == [file_store._LOCK, "stable.json"]


# ---- a bucket


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are made again."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")


@pytest.mark.usefixtures("s3_keys", "patient")
@pytest.mark.parametrize("expected", [None, b"old"])
def test_a_lost_reply_is_not_taken_for_a_lost_race(
    bucket: str, s3_keys: versity.Server, expected: bytes | None
) -> None:
    """The put is made again, and refused because of the first."""
    if expected is not None:
        open_store(f"s3://{bucket}/p", S3Options(endpoint=s3_keys.endpoint)).write(PATH, expected)
    puts = itertools.count()
    with between(s3_keys.endpoint, loses=lambda right: right == "s3:PutObject" and next(puts) == 0) as traffic:
        there = open_store(f"s3://{bucket}/p", S3Options(endpoint=traffic.endpoint))
        assert there.swap(PATH, b"new", expected=expected) == b"new"
        assert traffic.requests.count("s3:PutObject") == 2
        assert there.read(PATH) == b"new"


def test_a_lost_reply_and_the_next_try(bucket: str, s3_keys: versity.Server) -> None:
    with between(s3_keys.endpoint, loses=lambda right: right == "s3:PutObject") as traffic:
        there = open_store(f"s3://{bucket}/p", S3Options(endpoint=traffic.endpoint))
        with pytest.raises(TryAgainError, match=r"^spec\.storage\.uri: s3://.*/channels/stable\.json can't be reached"):
            there.swap(PATH, b"new", expected=None)
    there = open_store(f"s3://{bucket}/p", S3Options(endpoint=s3_keys.endpoint))
    assert there.swap(PATH, b"new", expected=None) == b"new"


def test_what_it_costs(bucket: str, s3_keys: versity.Server) -> None:
    with between(s3_keys.endpoint) as traffic:
        there = open_store(f"s3://{bucket}/p", S3Options(endpoint=traffic.endpoint))
        there.swap(PATH, b"one", expected=None)
        there.swap(PATH, b"two", expected=b"one")
        there.swap(PATH, b"two", expected=b"two")
    assert traffic.requests == ["s3:PutObject", "s3:GetObject", "s3:PutObject", "s3:GetObject"]


@pytest.mark.parametrize(("expected", "reads_first"), [(None, False), (b"old", True)])
def test_who_may_only_read(bucket: str, s3_keys: versity.Server, expected: bytes | None, reads_first: bool) -> None:
    if expected is not None:
        open_store(f"s3://{bucket}/p", S3Options(endpoint=s3_keys.endpoint)).write(PATH, expected)
    with between(s3_keys.endpoint, denies=lambda right: right == "s3:PutObject") as traffic:
        there = open_store(f"s3://{bucket}/p", S3Options(endpoint=traffic.endpoint))
        with pytest.raises(
            UserError, match=r"^spec\.storage\.uri: access to .* is denied .*; allow s3:PutObject on s3://"
        ):
            there.swap(PATH, b"new", expected=expected)
    assert traffic.requests == ["s3:GetObject"] * reads_first


def test_changed_or_deleted_between_the_look_and_the_put(bucket: str, s3_keys: versity.Server) -> None:
    """By somebody who is let in after each GetObject: what is put then is refused by the service itself."""
    other = open_store(f"s3://{bucket}/p", S3Options(endpoint=s3_keys.endpoint))
    for change, left in ((lambda: other.write(PATH, b"theirs"), b"theirs"), (lambda: other.delete(PATH), None)):
        other.write(PATH, b"old")
        changes = iter([change])

        def between_the_two(right: str, changes: Iterator[Any] = changes) -> bool:
            if right == "s3:GetObject":
                next(changes, lambda: None)()
            return False

        with between(s3_keys.endpoint, loses=between_the_two) as traffic:
            there = open_store(f"s3://{bucket}/p", S3Options(endpoint=traffic.endpoint))
            assert there.swap(PATH, b"new", expected=b"old") == left
            assert traffic.requests == ["s3:GetObject", "s3:PutObject", "s3:GetObject"]
        assert other.exists(PATH) == (left is not None)


def test_written_anew_with_the_same_content(bucket: str, s3_keys: versity.Server) -> None:
    """As by one who moved the pointer and moved it back: it is what was expected, though no longer the same object."""
    other = open_store(f"s3://{bucket}/p", S3Options(endpoint=s3_keys.endpoint))
    other.write(PATH, b"old")
    gets = itertools.count()

    def away_and_back(right: str) -> bool:
        if right == "s3:GetObject" and next(gets) == 0:
            other.write(PATH, b"away")
        if right == "s3:PutObject" and other.read(PATH) == b"away":
            other.write(PATH, b"old")
        return False

    with between(s3_keys.endpoint, loses=away_and_back) as traffic:
        there = open_store(f"s3://{bucket}/p", S3Options(endpoint=traffic.endpoint))
        assert there.swap(PATH, b"new", expected=b"old") == b"new"
        assert traffic.requests.count("s3:PutObject") == 2


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store, "SWAP_PAUSE_SECONDS", 0.001)


@pytest.mark.usefixtures("s3_keys", "hasty")
@pytest.mark.parametrize("code", [(412, "PreconditionFailed"), (409, "ConditionalRequestConflict")])
def test_refused_though_it_is_as_expected(code: tuple[int, str]) -> None:
    """By a service in which another put is on its way, which then failed, or took its time."""
    missing = (404, "NoSuchKey")
    with server_that_says(code, missing, code, missing, (200, "")) as there:
        assert there.swap(PATH, b"new", expected=None) == b"new"
    with (
        server_that_says(*[code, missing] * (s3_store.SWAP_ATTEMPTS + 1)) as there,
        pytest.raises(
            TryAgainError, match=r"^spec\.storage\.uri: s3://bucket/x/channels/stable\.json is being written"
        ),
    ):
        there.swap(PATH, b"new", expected=None)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("times", [1, s3_store.SWAP_ATTEMPTS])
def test_an_object_that_is_half_replaced(
    bucket: str, s3_keys: versity.Server, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some services show it for a moment. One that is damaged for good is told so."""
    there = open_store(f"s3://{bucket}/p", S3Options(endpoint=s3_keys.endpoint))
    there.write(PATH, b"old")
    read, reads = s3_store.S3Store._read_tagged, itertools.count()

    def torn(store: s3_store.S3Store, path: str, **options: str) -> tuple[bytes, str]:
        if next(reads) < times:
            raise DamagedError("half")
        return read(store, path, **options)

    monkeypatch.setattr(s3_store.S3Store, "_read_tagged", torn)
    if times < s3_store.SWAP_ATTEMPTS:
        assert there.swap(PATH, b"new", expected=b"old") == b"new"
    else:
        with pytest.raises(DamagedError):
            there.swap(PATH, b"new", expected=b"old")


@pytest.mark.usefixtures("s3_keys")
def test_a_service_that_does_not_know_conditions() -> None:
    with server_that_says((501, "NotImplemented")) as there, pytest.raises(UserError, match="conditional writes"):
        there.swap(PATH, b"new", expected=None)
    with server_that_says((200, "old")) as there, pytest.raises(UserError, match="gives no ETag"):
        there.swap(PATH, b"new", expected=b"old")


def test_a_bucket_without_checksums_and_with_encryption(bucket: str, s3_keys: versity.Server) -> None:
    with ExitStack() as stack:
        traffic = stack.enter_context(between(s3_keys.endpoint))
        options = S3Options(
            endpoint=traffic.endpoint, server_side_encryption="AES256", request_checksum_calculation="WhenRequired"
        )
        there = open_store(f"s3://{bucket}/p", options)
        there.swap(PATH, b"one", expected=None)
        assert there.swap(PATH, b"two", expected=b"one") == b"two"
    puts = [
        headers for right, headers in zip(traffic.requests, traffic.headers, strict=True) if right == "s3:PutObject"
    ]
    assert len(puts) == 2
    assert all(headers["x-amz-server-side-encryption"] == "AES256" for headers in puts)
    assert not any("x-amz-checksum-crc32" in headers or "x-amz-trailer" in headers for headers in puts)
    assert ["if-none-match" in headers for headers in puts] == [True, False]
    assert ["if-match" in headers for headers in puts] == [False, True]

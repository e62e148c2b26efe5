import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from comd_api.artifact import FileEntry, Manifest
from comd_api.exit_codes import TryAgainError, UserError
from comd_api.run import S3Options
from comd_trainer.store import file_store
from comd_trainer.store.artifacts import open_artifact
from comd_trainer.store.errors import explain_local
from comd_trainer.store.hashing import fold, in_parallel
from comd_trainer.store.stores import Store, open_store, path_problem


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/root", S3Options())


@given(st.text())
def test_a_path_without_a_problem_stays_below_its_root(path: str) -> None:
    assume(path_problem(path) is None)
    root = "/data/store"
    joined = os.path.normpath(os.path.join(root, path))
    assert joined == f"{root}/{path}", "normalising changes nothing: no step up, no absolute path, no empty part"
    path.encode()


@pytest.mark.parametrize("uri", ["", "/data", "file:data", "file://host/data", "http://x/y", "data"])
def test_what_is_no_store(uri: str) -> None:
    with pytest.raises(UserError, match=r"spec\.storage\.uri: .* is no store; write s3://bucket/prefix or file:///"):
        open_store(uri, S3Options())


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///data", "/data/a"),
        ("file:///data/", "/data/a"),
        ("file:///my%20data", "/my data/a"),
        ("file:///my data", "/my data/a"),
        ("file:///100%", "/100%/a"),
        ("file:///a#b?c", "/a#b?c/a"),
        ("file:///", "/a"),
    ],
)
def test_how_a_folders_uri_reads(uri: str, path: str) -> None:
    store = open_store(uri, S3Options())
    assert store.local_path("a") == Path(path)
    assert store.uri_of("a") == f"{uri.rstrip('/')}/a" if uri != "file:///" else "file:///a"


def test_a_full_disk_is_worth_another_try_and_leaves_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(file_store, "_flush", full)
    with pytest.raises(
        TryAgainError, match=rf"^spec\.storage\.uri: no space is left for {tmp_path}/root/a/b .*; free some"
    ):
        store.write("a/b", b"x")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, TryAgainError),
        (errno.EDQUOT, TryAgainError),
        (errno.EACCES, UserError),
        (errno.EROFS, UserError),
        (errno.ENAMETOOLONG, UserError),
        (errno.ENOTDIR, UserError),
        (errno.EIO, TryAgainError),
        (errno.ESTALE, TryAgainError),
        (errno.EINTR, type(None)),
    ],
)
def test_what_the_operating_systems_errors_mean(number: int, error: type[object]) -> None:
    explained = explain_local(OSError(number, os.strerror(number)), path=Path("/data/x"), field="spec.storage.uri")
    assert isinstance(explained, error)
    if explained is not None:
        assert all(part in str(explained) for part in ("spec.storage.uri: ", "/data/x", os.strerror(number)))


def test_a_name_that_is_too_long_and_a_file_in_the_way(store: Store) -> None:
    with pytest.raises(UserError, match="File name too long"):
        store.write("a/" + "x" * 300, b"")
    store.write("file", b"")
    with pytest.raises(UserError, match=r"spec\.storage\.uri: .*root/file/below can't be used"):
        store.write("file/below", b"")


def test_a_file_system_without_hard_links_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert store.write("a", b"x")
    with pytest.raises(UserError, match="has no hard links"):
        store.write("b", b"x", if_absent=True)
    local = store.local_path("a")
    assert local is not None
    assert sorted(os.listdir(local.parent)) == ["a"]


def test_what_a_killed_writer_left_is_never_listed(store: Store) -> None:
    store.write("a/done", b"x")
    local = store.local_path("a/done")
    assert local is not None
    temporary = file_store._temporary(local)
    temporary.write_bytes(b"half")
    (local.parent / "link to nowhere").symlink_to("/no/such")
    assert [file.path for file in store.list("")] == ["a/done"]


meta = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
entries = st.builds(
    FileEntry,
    path=st.text(min_size=1, max_size=20).filter(lambda path: path_problem(path) is None),
    size=st.integers(0, 2**60),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
)
manifests = st.builds(
    Manifest,
    kind=st.text(),
    key=st.text(),
    root=st.text("0123456789abcdef", max_size=16),
    files=st.lists(entries, max_size=4),
    meta=st.dictionaries(st.text(), meta, max_size=4),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(manifest=manifests)
def test_a_manifest_comes_back_as_it_went(store: Store, tmp_path: Path, manifest: Manifest) -> None:
    store.write("prefix/manifest.json", manifest.to_bytes())
    artifact = open_artifact(store, "prefix", cache_dir=tmp_path)
    assert artifact is not None
    assert artifact.manifest == manifest
    assert artifact.digest == manifest.digest()


@given(st.lists(st.lists(st.text() | st.integers(), max_size=3), max_size=4), st.data())
def test_a_fold_tells_rows_apart(one: list[list[str | int]], data: st.DataObject) -> None:
    other = data.draw(st.just(one) | st.lists(st.lists(st.text() | st.integers(), max_size=3), max_size=4))
    assert (fold(one) == fold(other)) == (json.dumps(one) == json.dumps(other))


def test_work_in_threads_keeps_its_order_and_stops_at_an_error() -> None:
    assert in_parallel(lambda number: number * 2, range(100), threads=8) == [number * 2 for number in range(100)]
    begun: list[int] = []

    def fails(number: int) -> None:
        begun.append(number)
        if number == 3:
            raise KeyError(number)

    with pytest.raises(KeyError):
        in_parallel(fails, range(10_000), threads=2)
    assert len(begun) < 10_000


def test_a_probe_leaves_no_folder_that_was_not_there(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/new/root", S3Options())
    store.probe("a/b")
    assert list(tmp_path.iterdir()) == []
    store.write("a/kept", b"x")
    store.probe("a/b")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "kept", "new", "root"]


def test_a_folder_that_may_not_be_read_is_not_taken_for_an_empty_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("a/b", b"x")
    assert [file.path for file in store.list("a")] == ["a/b"]

    def refused(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(UserError, match=r"spec\.storage\.uri: .*a can't be used \(Permission denied\); give this"):
        list(store.list("a"))


def test_a_folder_that_can_not_be_made() -> None:
    """In /proc no folder can be, whoever asks."""
    with pytest.raises(
        UserError, match=r"^spec\.storage\.uri: the folder /proc/x can't be made \(.*\); choose another"
    ):
        open_store("file:///proc/x", S3Options()).write("a", b"x")
    with pytest.raises(UserError, match="choose another"):
        open_store("file:///proc/x", S3Options()).probe("a")

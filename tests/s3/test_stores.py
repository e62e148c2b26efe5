"""What every store promises, asked of a folder and of a real S3 server."""

import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comd_api.exit_codes import UserError
from comd_api.run import S3Options
from comd_trainer.store.hashing import in_parallel
from comd_trainer.store.stores import Store, open_store

MiB = 1 << 20
ONCE = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "file":
        return open_store(f"file://{tmp_path}/store root", S3Options())
    bucket = request.getfixturevalue("bucket")
    server = request.getfixturevalue("s3_keys")
    return open_store(f"s3://{bucket}/runs/of us", S3Options(endpoint=server.endpoint))


# One folder deep and of one length, so that no example makes a file where another has a folder.
names = st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="/"), min_size=1, max_size=40)
paths = st.tuples(names, names).map("/".join).filter(lambda path: not {".", ".."} & set(path.split("/")))


@ONCE
@given(path=paths, data=st.binary(max_size=200))
def test_what_is_written_under_any_name_is_read_listed_and_deleted(store: Store, path: str, data: bytes) -> None:
    assert store.write(path, data)
    assert store.read(path) == data
    folder = path.split("/")[0]
    assert [(file.path, file.size) for file in store.list(folder)] == [(path, len(data))]
    found = store.stat(path)
    assert found is not None
    assert found in list(store.list(""))
    store.delete(path)
    assert not store.exists(path)


@pytest.mark.parametrize(
    "path", ["", "/", "/a", "a/", "..", "../a", "a/../b", "a/./b", "a//b", "a\nb", "a\x00", "\ud800"]
)
def test_a_path_that_could_leave_the_store_is_refused_by_all_methods(store: Store, path: str, tmp_path: Path) -> None:
    local = tmp_path / "file"
    local.write_bytes(b"x")
    for call in (
        lambda: store.read(path),
        lambda: store.read_range(path, start=0, size=1),
        lambda: store.write(path, b""),
        lambda: store.write(path, b"", if_absent=True),
        lambda: store.swap(path, b"", expected=None),
        lambda: store.swap(path, b"", expected=b"x"),
        lambda: store.upload(local, path),
        lambda: store.download(path, tmp_path / "down"),
        lambda: store.delete(path),
        lambda: store.stat(path),
        lambda: store.exists(path),
        lambda: store.local_path(path),
        lambda: list(store.list(path or "..")),
    ):
        with pytest.raises(UserError, match=r"spec\.storage\.uri"):
            call()


def test_what_is_not_there(store: Store, tmp_path: Path) -> None:
    assert store.stat("no/such") is None
    assert not store.exists("no/such")
    assert list(store.list("no")) == []
    assert list(store.list("")) == []
    store.delete("no/such")
    with pytest.raises(FileNotFoundError):
        store.read("no/such")
    with pytest.raises(FileNotFoundError):
        store.read_range("no/such", start=0, size=1)
    with pytest.raises(FileNotFoundError):
        store.download("no/such", tmp_path / "down")
    assert not (tmp_path / "down").exists()
    store.write("no/such/file", b"x")
    assert store.stat("no/such") is None, "a folder is no file"
    with pytest.raises(FileNotFoundError):
        store.read("no/such")
    with pytest.raises(FileNotFoundError):
        store.read_range("no/such", start=0, size=1)


def test_a_prefix_is_a_folder_and_lists_are_sorted_and_whole(store: Store) -> None:
    for path in ("a/1", "a/b/2", "ab/3", "a-/4", "a/é"):
        store.write(path, b"x")
    assert [file.path for file in store.list("a")] == ["a/1", "a/b/2", "a/é"]
    assert [file.path for file in store.list("")] == ["a-/4", "a/1", "a/b/2", "a/é", "ab/3"]
    assert list(store.list("a/1")) == [], "a file has no files below it"
    many = [f"many/{number:04}" for number in range(1010)]  # one more page than S3 gives at once
    in_parallel(lambda path: store.write(path, b"x"), many, threads=8)
    assert [file.path for file in store.list("many")] == many


def test_the_etag_changes_with_the_content(store: Store) -> None:
    store.write("a", b"one")
    before = store.stat("a")
    store.write("a", b"two")
    after = store.stat("a")
    assert before is not None
    assert after is not None
    assert before.etag != after.etag


def test_a_conditional_put_never_replaces(store: Store) -> None:
    assert store.write("a/manifest", b"first", if_absent=True)
    assert not store.write("a/manifest", b"second", if_absent=True)
    assert store.read("a/manifest") == b"first"
    assert store.write("a/manifest", b"third")
    assert store.read("a/manifest") == b"third"


def test_of_many_conditional_puts_at_once_one_wins(store: Store) -> None:
    for trial in range(5):
        barrier = threading.Barrier(8)

        def put(writer: int, trial: int = trial, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return store.write(f"race/{trial}", str(writer).encode(), if_absent=True)

        won = in_parallel(put, range(8), threads=8)
        assert sum(won) == 1
        assert store.read(f"race/{trial}") == str(won.index(True)).encode()


@pytest.mark.parametrize("size", [0, 1, 8 * MiB, 20 * MiB + 7])
def test_files_go_up_and_down_whole_and_are_counted(store: Store, tmp_path: Path, size: int) -> None:
    local, back = tmp_path / "local", tmp_path / "new folder" / "back"
    local.write_bytes(os.urandom(size))
    up: list[int] = []
    down: list[int] = []
    store.upload(local, "x/big", on_bytes=up.append)
    store.download("x/big", back, on_bytes=down.append)
    assert back.read_bytes() == local.read_bytes()
    assert (sum(up), sum(down)) == (size, size)
    store.download("x/big", back, size=size, on_bytes=down.append)
    assert back.read_bytes() == local.read_bytes()
    assert sum(down) == 2 * size
    found = store.stat("x/big")
    assert found is not None
    assert found.size == size
    if store.uri.startswith("s3://") and size > 8 * MiB:
        assert "-" in found.etag, "went up in one piece"
    assert sorted(path.name for path in back.parent.iterdir()) == ["back"], "a partial file was left"


def test_an_upload_is_a_copy_unless_the_file_is_given_away(store: Store, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_bytes(b"before")
    store.upload(local, "copy")
    local.write_bytes(b"after!")
    assert store.read("copy") == b"before"


def test_a_store_can_be_handed_to_another_process(store: Store) -> None:
    import pickle

    store.write("a", b"x")
    copy: Store = pickle.loads(pickle.dumps(store))  # what multiprocessing does with an argument
    assert copy.uri == store.uri
    assert copy.read("a") == b"x"


@ONCE
@given(data=st.binary(min_size=1, max_size=50), start=st.integers(0, 60), size=st.integers(0, 60))
def test_a_range_is_what_a_slice_is(store: Store, data: bytes, start: int, size: int) -> None:
    store.write("a/b", data)
    assert store.read_range("a/b", start=start, size=size) == data[start : start + size]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(marks=st.lists(st.text("0ab./é", max_size=4), max_size=5))
def test_a_listing_in_parts_is_the_listing(store: Store, marks: list[str]) -> None:
    for name in ("a", "a.b", "aa/a", "b", "é/0"):
        store.write(f"folder/{name}", b"x")
    store.write("folder.txt", b"outside")
    assert list(store.list("folder", marks=marks)) == list(store.list("folder"))


def test_a_probe_leaves_nothing(store: Store) -> None:
    store.write("run/kept", b"x")
    store.probe("run/preflight")
    assert [file.path for file in store.list("")] == ["run/kept"]

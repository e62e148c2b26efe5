import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comd_api.exit_codes import UserError
from comd_api.run import Storage
from comd_trainer.store.artifacts import publish
from comd_trainer.store.sources import Sources
from comd_trainer.store.stores import open_store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "my storage"
    folder.mkdir()
    return folder


@pytest.fixture
def sources(root: Path, tmp_path: Path) -> Sources:
    storage = Storage(uri=root.as_uri())
    return Sources(storage, open_store(storage.uri, storage.s3), tmp_path / "cache")


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_relative_and_absolute_sources_are_the_files_themselves(sources: Sources, root: Path, tmp_path: Path) -> None:
    fill(root, {"data/seed.jsonl": b"{}", "images/a b.png": b"png"})
    assert sources.file("data/seed.jsonl") == root / "data/seed.jsonl"
    assert sources.folder("images") == root / "images"
    assert sources.folder("images/") == root / "images"
    assert sources.file((root / "images/a b.png").as_uri()) == root / "images/a b.png"
    assert sources.folder(f"file://{root}/data") == root / "data", "spaces may stand for themselves"
    assert not (tmp_path / "cache").exists(), "nothing was copied"


READS: list[Callable[[Sources, str, str], object]] = [
    lambda sources, source, field: sources.file(source, field=field),
    lambda sources, source, field: sources.folder(source, field=field),
    lambda sources, source, field: sources.fingerprint(source, field=field),
]


@pytest.mark.parametrize("read", READS, ids=["file", "folder", "fingerprint"])
@pytest.mark.parametrize("source", ["no/such", "file:///no/such", "data/seed.jsonl/below"])
def test_what_is_not_there_is_the_users_error(
    sources: Sources, root: Path, source: str, read: Callable[..., object]
) -> None:
    fill(root, {"data/seed.jsonl": b"{}"})
    with pytest.raises(
        UserError, match=r"^spec\.data\.bank: \S+ is not there: .*; put it there, or write s3://"
    ) as raised:
        read(sources, source, "spec.data.bank")
    assert source in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("read", READS, ids=["file", "folder", "fingerprint"])
@pytest.mark.parametrize("source", ["a/../../etc", "a/./b", "..", "../x", "a//b"])
def test_a_source_can_not_leave_the_store(sources: Sources, source: str, read: Callable[..., object]) -> None:
    with pytest.raises(UserError, match=r"^spec\.data\.bank: .*below spec\.storage\.uri"):
        read(sources, source, "spec.data.bank")


def test_a_folder_is_no_file_and_a_file_no_folder(sources: Sources, root: Path) -> None:
    fill(root, {"data/seed.jsonl": b"{}"})
    with pytest.raises(UserError, match=r"spec\.data\.bank: data is a folder, and a file is needed"):
        sources.file("data", field="spec.data.bank")
    with pytest.raises(UserError, match=r"spec\.data\.images: data/seed\.jsonl is a file, and a folder is needed"):
        sources.folder("data/seed.jsonl", field="spec.data.images")


segment = st.text("ab. é\\%\n", min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))
trees = st.dictionaries(
    st.lists(segment, min_size=1, max_size=2).map("/".join), st.binary(max_size=8), max_size=5
).filter(lambda tree: not any(f"{a}/" in f"{b}/" and a != b for a in tree for b in tree))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=trees, other=trees)
def test_fingerprints_differ_exactly_when_contents_do(
    sources: Sources, tmp_path_factory: pytest.TempPathFactory, one: dict[str, bytes], other: dict[str, bytes]
) -> None:
    prints = [sources.fingerprint(fill(tmp_path_factory.mktemp("t"), tree).as_uri()) for tree in (one, other, one)]
    assert prints[0] == prints[2], "where a folder lies does not matter"
    assert (prints[0] == prints[1]) == (one == other)


def test_a_fingerprint_goes_by_content_and_not_by_time(sources: Sources, root: Path) -> None:
    file = fill(root, {"images/a.png": b"one"}) / "images/a.png"
    before, of_file = sources.fingerprint("images"), sources.fingerprint("images/a.png")
    status = file.stat()
    os.utime(file, ns=(0, 0))
    assert (sources.fingerprint("images"), sources.fingerprint("images/a.png")) == (before, of_file)
    file.write_bytes(b"two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert sources.fingerprint("images") != before
    assert sources.fingerprint("images/a.png") != of_file


def test_links_are_followed_but_not_in_circles(sources: Sources, root: Path, tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside", {"a.png": b"one"})
    fill(root, {"images/b.png": b"b"})
    (root / "images/linked").symlink_to(outside)
    before = sources.fingerprint("images")
    (root / "images/linked/circle").symlink_to(root / "images")
    assert sources.fingerprint("images") == before
    (outside / "a.png").write_bytes(b"two")
    assert sources.fingerprint("images") != before


def test_eight_thousand_images_take_a_moment(sources: Sources, root: Path) -> None:
    fill(root, {f"images/{number:05}.png": number.to_bytes(4, "big") * 100 for number in range(8000)})
    sources.fingerprint("images")
    started = time.process_time()
    sources.fingerprint("images")
    assert time.process_time() - started < 5, "should take well under a second"


def test_an_artifact_can_be_a_source(sources: Sources, tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"weights"}
    plain = fill(tmp_path / "plain", files)
    artifact = publish(
        sources.store,
        prefix="default/run/round-1/tune/abc",
        kind="tune",
        key="k",
        folder=fill(tmp_path / "out", files),
        meta={},
        cache_dir=tmp_path / "cache",
    )
    for source in ("default/run/round-1/tune/abc", artifact.uri):
        assert {path.name: path.read_bytes() for path in sources.folder(source).iterdir()} == files
        assert sources.fingerprint(source) == sources.fingerprint(plain.as_uri())


def test_somebody_elses_manifest_json_is_a_file_like_others(sources: Sources, root: Path) -> None:
    fill(root, {"images/manifest.json": b'{"name": "web app"}', "images/a.png": b"x"})
    assert sources.folder("images") == root / "images"
    before = sources.fingerprint("images")
    fill(root, {"images/a.png": b"y"})
    assert sources.fingerprint("images") != before


def test_a_folder_that_may_not_be_read(sources: Sources, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(root, {"images/a.png": b"x"})

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))  # root, as tests may be, is never refused

    monkeypatch.setattr("comd_trainer.store.listing.sha256_of", refuse)
    with pytest.raises(UserError, match=r"spec\.data\.images: .*images can't be used \(Permission denied\)"):
        sources.fingerprint("images", field="spec.data.images")

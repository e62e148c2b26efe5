"""Sources in buckets: fetched once, whole, and told apart by what they hold."""

from collections.abc import Callable
from pathlib import Path

import pytest

from comd_api.exit_codes import TryAgainError, UserError
from comd_api.run import S3Options, Storage
from comd_trainer.store.artifacts import publish
from comd_trainer.store.hashing import in_parallel
from comd_trainer.store.sources import Sources
from comd_trainer.store.stores import Store, open_store
from tests.s3 import versity


@pytest.fixture
def store(bucket: str, s3_keys: versity.Server) -> Store:
    return open_store(f"s3://{bucket}/runs", S3Options(endpoint=s3_keys.endpoint))


def node(store: Store, s3_keys: versity.Server, cache: Path) -> Sources:
    return Sources(Storage(uri=store.uri, s3=S3Options(endpoint=s3_keys.endpoint)), store, cache)


@pytest.fixture
def sources(store: Store, s3_keys: versity.Server, tmp_path: Path) -> Sources:
    return node(store, s3_keys, tmp_path / "cache")


IMAGES = {"a.png": b"a", "sub/b.png": b"bb", "sub/c d.png": b""}


def fill(store: Store, folder: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        store.write(f"{folder}/{name}", data)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folders_and_files_come_here_once(store: Store, sources: Sources) -> None:
    fill(store, "data/images", IMAGES)
    moved: list[int] = []
    for source in ("data/images", "data/images/", f"{store.uri}/data/images"):
        assert contents(sources.folder(source, on_bytes=moved.append)) == IMAGES
        file = sources.file(f"{source.rstrip('/')}/sub/b.png", on_bytes=moved.append)
        assert (file.name, file.read_bytes()) == ("b.png", b"bb")
    assert sum(moved) <= 2 * (3 + 2), "each way of writing a source downloads once at most"


def test_ranks_share_one_download(store: Store, s3_keys: versity.Server, tmp_path: Path) -> None:
    fill(store, "images", IMAGES)
    moved: list[int] = []
    ranks = [node(store, s3_keys, tmp_path / "cache") for _ in range(4)]
    folders = in_parallel(lambda rank: rank.folder("images", on_bytes=moved.append), ranks, threads=4)
    assert len(set(folders)) == 1
    assert contents(folders[0]) == IMAGES
    assert sum(moved) == 3


def test_changed_content_is_fetched_again(store: Store, sources: Sources) -> None:
    fill(store, "images", IMAGES)
    before, folder = sources.fingerprint("images"), sources.folder("images")
    assert sources.fingerprint("images") == before
    store.write("images/a.png", b"z")
    assert sources.fingerprint("images") != before
    assert contents(sources.folder("images")) == {**IMAGES, "a.png": b"z"}
    assert contents(folder) == IMAGES, "who had the old folder open keeps it"


def test_an_interrupted_download_goes_on(
    store: Store, sources: Sources, monkeypatch: pytest.MonkeyPatch, s3_keys: versity.Server
) -> None:
    fill(store, "images", IMAGES)
    real = type(store).download
    fetched: list[str] = []

    def breaks(self: Store, path: str, local: Path, **options: object) -> None:
        if path.endswith("c d.png") and not fetched.count("broke"):
            fetched.append("broke")
            raise TryAgainError("away")
        fetched.append(path)
        real(self, path, local, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(type(store), "download", breaks)
    with pytest.raises(TryAgainError):
        sources.folder("images")
    assert contents(sources.folder("images")) == IMAGES
    assert sorted(set(fetched) - {"broke"}) == sorted(f"images/{name}" for name in IMAGES)
    assert len(fetched) == 4, "a file that had arrived was fetched again"
    del s3_keys


READS: list[Callable[[Sources, str], object]] = [
    lambda sources, source: sources.file(source, field="spec.data.bank"),
    lambda sources, source: sources.folder(source, field="spec.data.bank"),
    lambda sources, source: sources.fingerprint(source, field="spec.data.bank"),
]


@pytest.mark.parametrize("read", READS, ids=["file", "folder", "fingerprint"])
@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("no/such", "no/such is not there; write s3://"),
        ("s3://{bucket}/no/such", "is not there; write s3://"),
        ("s3://no-such-bucket/x", "'no-such-bucket', which does not exist"),
        ("s3://{bucket}", "names no file or folder of a bucket"),
        ("a/../../x", "below spec.storage.uri"),
    ],
)
def test_what_is_not_there_is_the_users_error(
    sources: Sources, bucket: str, source: str, says: str, read: Callable[[Sources, str], object]
) -> None:
    with pytest.raises(UserError, match=rf"^spec\.data\.bank: .*{says}"):
        read(sources, source.format(bucket=bucket))


def test_a_folder_is_no_file_and_a_file_no_folder(store: Store, sources: Sources) -> None:
    fill(store, "images", IMAGES)
    with pytest.raises(UserError, match=r"spec: images is a folder, and a file is needed"):
        sources.file("images")
    with pytest.raises(UserError, match=r"spec: images/a\.png is a file, and a folder is needed"):
        sources.folder("images/a.png")


def test_an_artifact_in_a_bucket_can_be_a_source(store: Store, sources: Sources, tmp_path: Path) -> None:
    out, plain = tmp_path / "out", tmp_path / "plain"
    for folder in (out, plain):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
    publish(store, prefix="student", kind="tune", key="k", folder=out, meta={}, cache_dir=tmp_path / "writer")
    assert contents(sources.folder(f"{store.uri}/student")) == {"model.safetensors": b"weights"}
    assert sources.fingerprint("student") == sources.fingerprint(plain.as_uri())


def test_a_large_file_is_given_up_in_the_middle(
    store: Store, s3_keys: versity.Server, tmp_path: Path, bucket: str
) -> None:
    size = 64 << 20
    store.write("model/weights", bytes(size))
    moved: list[int] = []

    def check() -> None:
        if sum(moved) > size // 8:
            raise TryAgainError("no more time")

    options = S3Options(endpoint=s3_keys.endpoint)
    stopped = open_store(store.uri, options, check=check)
    sources = Sources(Storage(uri=store.uri, s3=options), stopped, tmp_path / "cache", check)
    for source in ("model", f"s3://{bucket}/runs/model"):
        moved.clear()
        with pytest.raises(TryAgainError, match="no more time"):
            sources.folder(source, on_bytes=moved.append)
        assert size // 8 < sum(moved) < size
    assert contents(node(store, s3_keys, tmp_path / "cache").folder("model")) == {"weights": bytes(size)}

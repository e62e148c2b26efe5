"""Artifacts on a folder and on a real S3 server: whole and verified, or not there."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from comd_api.artifact import FileEntry, Manifest
from comd_api.run import S3Options
from comd_api.status import ArtifactRef
from comd_trainer.store.artifacts import Artifact, CorruptArtifactError, open_artifact, open_ref, publish
from comd_trainer.store.hashing import in_parallel, sha256_of
from comd_trainer.store.stores import Store, open_store

PREFIX = "default/run/round-1/tune/0123456789abcdef"
FILES = {
    "config.json": b"{}",
    "weights/model.safetensors": os.urandom(9 << 20),
    "empty": b"",
    "naïve name": b"x" * 1000,
}


@dataclass(frozen=True)
class Place:
    """A store, and where its objects lie as files, for tests that damage them."""

    store: Store
    folder: Path
    endpoint: str

    @property
    def is_bucket(self) -> bool:
        return self.store.uri.startswith("s3://")


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "file":
        return Place(open_store(f"file://{tmp_path}/root", S3Options()), tmp_path / "root", "")
    bucket = request.getfixturevalue("bucket")
    server = request.getfixturevalue("s3_keys")
    store = open_store(f"s3://{bucket}/runs", S3Options(endpoint=server.endpoint))
    return Place(store, server.folder / bucket / "runs", server.endpoint)


def made(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    folder.mkdir(exist_ok=True)
    return folder


def published(place: Place, tmp_path: Path, name: str = "out", **changes: Any) -> Artifact:
    arguments: dict[str, Any] = {
        "prefix": PREFIX,
        "kind": "tune",
        "key": "k",
        "folder": made(tmp_path / name),
        "meta": {"steps": 3, "none": None},
        "cache_dir": tmp_path / "cache",
        **changes,
    }
    return publish(place.store, **arguments)


def reopened(place: Place, cache: Path) -> Artifact:
    artifact = open_artifact(place.store, PREFIX, cache_dir=cache)
    assert artifact is not None
    return artifact


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_artifact_comes_back_as_it_went(place: Place, tmp_path: Path) -> None:
    moved: list[int] = []
    artifact = published(place, tmp_path, on_bytes=moved.append)
    assert sum(moved) == sum(map(len, FILES.values()))
    assert (artifact.meta, artifact.manifest.kind, artifact.manifest.key) == ({"steps": 3, "none": None}, "tune", "k")
    again = reopened(place, tmp_path / "another node")
    assert again.manifest == artifact.manifest
    assert again.digest == artifact.digest == artifact.manifest.digest()
    assert again.ref("student") == ArtifactRef(
        name="student", uri=f"{place.store.uri}/{PREFIX}", digest=artifact.digest
    )
    assert again.files == sorted(FILES)
    assert contents(again.folder()) == FILES
    for name, data in FILES.items():
        path = again.path(name)
        assert path.read_bytes() == data
        assert path == again.folder() / name, "has its own name, which readers of checkpoints go by"


def test_an_artifact_without_files(place: Place, tmp_path: Path) -> None:
    artifact = published(place, tmp_path, folder=made(tmp_path / "none", {}))
    assert contents(artifact.folder()) == {}


def test_the_second_to_publish_gets_the_first_ones(place: Place, tmp_path: Path) -> None:
    first = published(place, tmp_path)
    second = published(place, tmp_path, "other", meta={"steps": 4})
    assert second == first
    assert contents(second.folder()) == FILES


def test_a_folder_store_and_a_warm_cache_hold_the_very_files(place: Place, tmp_path: Path) -> None:
    folder = made(tmp_path / "out")
    inode = (folder / "config.json").stat().st_ino
    artifact = published(place, tmp_path, folder=folder)
    downloads: list[int] = []
    path = artifact.path("config.json", on_bytes=downloads.append)
    assert path.stat().st_ino == inode, "was copied, or uploaded and downloaded again"
    assert downloads == []
    assert contents(folder) == {}, "a second name was left, through which an artifact could be changed"


def test_a_file_with_other_names_is_copied(place: Place, tmp_path: Path) -> None:
    folder = made(tmp_path / "linked", {"a": b"content"})
    os.link(folder / "a", tmp_path / "outside")
    (tmp_path / "target").write_bytes(b"target")
    (folder / "b").symlink_to(tmp_path / "target")
    artifact = published(place, tmp_path, folder=folder)
    (tmp_path / "outside").write_bytes(b"changed")
    (tmp_path / "target").write_bytes(b"edited")
    assert contents(artifact.folder()) == {"a": b"content", "b": b"target"}


def test_each_file_is_downloaded_once(place: Place, tmp_path: Path) -> None:
    published(place, tmp_path)
    moved: list[int] = []
    ranks = [reopened(place, tmp_path / "node") for _ in range(4)]
    folders = in_parallel(lambda rank: rank.folder(on_bytes=moved.append), ranks, threads=4)
    assert all(contents(folder) == FILES for folder in folders)
    assert sum(moved) == (sum(map(len, FILES.values())) if place.is_bucket else 0)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(b"[]"), "damaged"),
        (lambda path: path.write_bytes(b"{} "), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.unlink(), "lacks its file"),
    ],
    ids=["other byte", "longer", "cut", "gone"],
)
def test_damage_is_found_and_named(place: Place, tmp_path: Path, damage: Callable[[Path], object], says: str) -> None:
    artifact = published(place, tmp_path)
    damage(place.folder / PREFIX / artifact.manifest.root / "config.json")
    fresh = reopened(place, tmp_path / "another node")
    for read in (lambda: fresh.path("config.json"), fresh.folder):
        with pytest.raises(CorruptArtifactError, match=rf"artifact {place.store.uri}/{PREFIX}.*{says}") as raised:
            read()
        assert "'config.json'" in str(raised.value)
    assert fresh.path("empty").read_bytes() == b""
    if place.is_bucket:
        assert not list((tmp_path / "another node" / "trees").rglob("config.json")), "damaged bytes were kept"


def test_damage_after_the_first_look_is_found_too(tmp_path: Path) -> None:
    place = Place(open_store(f"file://{tmp_path}/root", S3Options()), tmp_path / "root", "")
    path = published(place, tmp_path).path("config.json")
    path.write_bytes(b"[]")
    with pytest.raises(CorruptArtifactError, match="damaged"):
        reopened(place, tmp_path / "cache").path("config.json")


def test_a_file_is_hashed_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(open_store(f"file://{tmp_path}/root", S3Options()), tmp_path / "root", "")
    published(place, tmp_path)
    hashed: list[str | Path] = []

    def counted(path: str | Path) -> str:
        hashed.append(path)
        return sha256_of(path)

    monkeypatch.setattr("comd_trainer.store.artifacts.sha256_of", counted)
    for _ in range(3):
        reopened(place, tmp_path / "cache").folder()
    assert len(hashed) == len(FILES)


def test_asking_for_a_file_that_it_never_had(place: Place, tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifactError, match=r"has no file 'items\.jsonl'; it has config\.json, empty"):
        published(place, tmp_path).path("items.jsonl")


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"{",
        b"[]",
        b'{"kind": "tune"}',
        Manifest(kind="k", key="k", files=[FileEntry(path="../../x", size=1, sha256="0" * 64)]).to_bytes(),
        Manifest(kind="k", key="k", files=[FileEntry(path="/etc/passwd", size=1, sha256="0" * 64)]).to_bytes(),
        Manifest(kind="k", key="k", root="..", files=[]).to_bytes(),
    ],
)
def test_a_manifest_that_is_none(place: Place, tmp_path: Path, manifest: bytes) -> None:
    place.store.write(f"{PREFIX}/manifest.json", manifest)
    with pytest.raises(CorruptArtifactError, match=f"{place.store.uri}/{PREFIX}"):
        open_artifact(place.store, PREFIX, cache_dir=tmp_path)


def test_a_reference_is_held_to_its_digest(place: Place, tmp_path: Path) -> None:
    artifact = published(place, tmp_path)
    ref = artifact.ref("student")
    open_here = partial(open_ref, store=place.store, cache_dir=tmp_path / "cache")
    assert open_here(ref) == artifact
    for wrong, says in (
        (ref.replace(digest="sha256:" + "0" * 64), "was changed"),
        (ref.replace(uri=ref.uri + "0"), "is gone"),
        (ref.replace(uri="file:///elsewhere"), "does not lie in this run's store"),
        (ref.replace(uri=f"{place.store.uri}/../x"), "does not lie in this run's store"),
    ):
        with pytest.raises(CorruptArtifactError, match=f"artifact student at .*{says}"):
            open_here(wrong)


def test_of_two_that_publish_at_once_one_wins_whole(place: Place, tmp_path: Path) -> None:
    for trial in range(3):
        prefix, barrier = f"race/{trial}", threading.Barrier(2)

        def write(writer: int, prefix: str = prefix, barrier: threading.Barrier = barrier) -> Artifact:
            name = f"{prefix.replace('/', '-')}-{writer}"
            folder = made(tmp_path / name, {f"f{number}": bytes([writer]) * 1000 for number in range(8)})
            barrier.wait()
            return published(place, tmp_path, prefix=prefix, folder=folder, meta={"writer": writer})

        one, other = in_parallel(write, range(2), threads=2)
        assert one == other
        expected = {f"f{number}": bytes([one.meta["writer"]]) * 1000 for number in range(8)}
        assert contents(one.folder()) == expected
        leftovers = {file.path.split("/")[2] for file in place.store.list(prefix)}
        assert leftovers <= {"manifest.json", one.manifest.root}, "the loser's files were left"


class LosesReplies:
    """A store whose conditional puts take effect, but whose reply is lost and whose repetition is refused."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> bool:
        self._store.write(path, data, if_absent=if_absent)
        return False


def test_a_lost_reply_is_not_taken_for_a_lost_race(place: Place, tmp_path: Path) -> None:
    store: Store = LosesReplies(place.store)  # type: ignore[assignment]
    artifact = published(Place(store, place.folder, place.endpoint), tmp_path)
    assert contents(artifact.folder()) == FILES


KILLS = {
    "before anything": 0,
    "in the first file": 1,
    "after two files": 3,
    "before the manifest": "manifest",
    "in a big file": "bytes",
}


@pytest.mark.parametrize("point", KILLS.values(), ids=KILLS.keys())
def test_a_writer_that_is_killed_leaves_no_artifact_and_the_next_succeeds(
    place: Place, tmp_path: Path, point: int | str
) -> None:
    folder = made(tmp_path / "out")
    script = Path(__file__).with_name("killed_publisher.py")
    command = [sys.executable, script, place.store.uri, place.endpoint, PREFIX, folder, tmp_path / "cache", str(point)]
    killed = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert killed.returncode == -9, killed.stderr
    assert open_artifact(place.store, PREFIX, cache_dir=tmp_path / "cache") is None
    artifact = published(place, tmp_path, folder=made(tmp_path / "second attempt"))
    assert contents(reopened(place, tmp_path / "another node").folder()) == FILES
    kept = {file.path.removeprefix(f"{PREFIX}/").split("/")[0] for file in place.store.list(PREFIX)}
    assert kept == {"manifest.json", artifact.manifest.root}, "what the killed writer had written was left"


def test_a_writer_that_is_killed_after_the_manifest_has_published(place: Place, tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_publisher.py")
    command = [
        sys.executable,
        script,
        place.store.uri,
        place.endpoint,
        PREFIX,
        made(tmp_path / "out"),
        tmp_path / "cache",
        "published",
    ]
    assert subprocess.run(list(map(str, command)), timeout=120).returncode == -9
    assert contents(reopened(place, tmp_path / "another node").folder()) == FILES

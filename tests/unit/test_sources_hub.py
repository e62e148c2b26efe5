"""`hf://` sources through the real client, against a server that plays the hub (there is none to reach from a test)."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from comd_api.exit_codes import UserError
from comd_trainer.store import hub
from comd_trainer.store.hub import HubSource

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "pytorch_model.bin": b"pickle", "data/a.jsonl": b"{}\n"}


class Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if "gated" in path:
            self._reply(403, b"", {"X-Error-Code": "GatedRepo"})
        elif "broken" in path:
            self._reply(500, b"")
        elif path.startswith("/api/models/owner/name/tree/"):
            below = path.removeprefix("/api/models/owner/name/tree/").partition("/")[2]
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in FILES.items()
                if name.startswith(below)
            ]
            self._reply(200, json.dumps(entries).encode()) if entries else self._reply(
                404, b"", {"X-Error-Code": "EntryNotFound"}
            )
        elif path in (
            "/api/models/owner/name",
            "/api/models/owner/name/revision/main",
            f"/api/models/owner/name/revision/{COMMIT}",
        ):
            siblings = [{"rfilename": name} for name in FILES]
            self._reply(200, json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith(f"/owner/name/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/owner/name/resolve/{COMMIT}/")
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if wanted and name != "data/a.jsonl":  # that one is served by a part of the hub that knows no ranges
                first, last = int(wanted[1]), int(wanted[2])
                self._reply(206 if first < len(FILES[name]) else 416, FILES[name][first : last + 1])
                return
            self._reply(200, FILES[name], {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})
        elif "/revision/" in path and path.startswith("/api/models/owner/name/"):
            self._reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            self._reply(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


SCRIPT = """
import sys, json
from pathlib import Path
from comd_api.exit_codes import ComdError
from comd_api.run import Storage
from comd_trainer.store.sources import Sources
from comd_trainer.store.stores import open_store
storage = Storage(uri=Path(sys.argv[1]).as_uri())
sources = Sources(storage, open_store(storage.uri, storage.s3), Path(sys.argv[1]) / "cache")
for name, source in (pair.split("=", 1) for pair in sys.argv[2:]):
    try:
        found = getattr(sources, name)(source, field="spec.teacher.checkpoint")
        if name == "listing":
            found = {path: [entry.size, found.read(path, start=1, size=3).decode()] for path, entry in found.files.items()}
        print(json.dumps(found if isinstance(found, dict) else str(found)))
    except ComdError as error:
        print(json.dumps([int(error.exit_code), str(error)]))
"""


def ask(folder: Path, endpoint: str, *questions: str, **environment: str) -> list[Any]:
    """In a process of its own, because the client reads its endpoint when it is imported."""
    variables = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        **environment,
    }
    variables.pop("HF_HUB_OFFLINE", None) if "HF_HUB_OFFLINE" not in environment else None
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), *questions],
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_snapshots_fingerprints_and_a_hub_that_is_away(tmp_path: Path, endpoint: str) -> None:
    questions = [
        "folder=hf://owner/name",
        "fingerprint=hf://owner/name",
        f"fingerprint=hf://owner/name@{COMMIT}",
        "file=hf://owner/name/data/a.jsonl",
        "file=hf://owner/name/no-such.jsonl",
        "file=hf://owner/name",
    ]
    answers = ask(tmp_path, endpoint, *questions)
    folder, of_branch, of_commit, file, missing, no_file = answers
    assert sorted(
        path.relative_to(str(folder)).as_posix() for path in Path(str(folder)).rglob("*") if path.is_file()
    ) == [
        "config.json",
        "data/a.jsonl",
        "model.safetensors",
    ], "pickles stay on the hub"
    assert of_branch == of_commit
    assert str(of_branch).startswith("sha256:")
    assert Path(str(file)).read_bytes() == b"{}\n"
    assert missing[0] == 64
    assert "spec.teacher.checkpoint" in str(missing[1])
    assert no_file[0] == 64
    assert ask(tmp_path, "http://127.0.0.1:9", *questions[:2], HF_HUB_OFFLINE="1") == answers[:2], (
        "the cache is as good"
    )


def test_a_listing_reads_bytes_and_fetches_nothing(tmp_path: Path, endpoint: str) -> None:
    pinned = hub.at_commit("hf://owner/name", COMMIT, field="f")
    whole, below, missing = ask(
        tmp_path, endpoint, f"listing={pinned}", f"listing={pinned}/data", f"listing={pinned}/no-such"
    )
    assert whole == {
        "config.json": [2, "}"],
        "model.safetensors": [7, "eig"],
        "data/a.jsonl": [3, "}\n"],
    }, "pickles are never looked at"
    assert below == {"a.jsonl": [3, "}\n"]}
    assert missing[0] == 64
    assert "spec.teacher.checkpoint" in missing[1]
    assert "no folder 'no-such'" in missing[1]
    assert not list((tmp_path / "hf").rglob("model.safetensors"))


def test_without_a_network_the_snapshot_is_listed(tmp_path: Path, endpoint: str) -> None:
    pinned = hub.at_commit("hf://owner/name", COMMIT, field="f")
    ask(tmp_path, endpoint, f"folder={pinned}")
    questions = (f"listing={pinned}", f"listing={pinned}/no-such")
    found, missing = ask(tmp_path, "http://127.0.0.1:9", *questions, HF_HUB_OFFLINE="1")
    assert found["model.safetensors"] == [7, "eig"]
    assert missing[0] == 64


@pytest.mark.parametrize(
    ("source", "pinned"),
    [
        ("hf://o/n", "hf://o/n@c"),
        ("hf://o/n@main", "hf://o/n@c"),
        ("hf://datasets/o/n@refs%2Fpr%2F1/a/b.json", "hf://datasets/o/n@c/a/b.json"),
    ],
)
def test_a_source_at_a_commit(source: str, pinned: str) -> None:
    assert hub.at_commit(source, "c", field="f") == pinned
    assert hub.at_commit(pinned, "c", field="f") == pinned


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        ("hf://owner/nobody", 64, "is not on the hub"),
        ("hf://owner/name@v9", 64, "is not on the hub"),
        ("hf://owner/gated", 64, "is gated"),
        ("hf://owner/broken", 75, "does not serve"),
    ],
)
def test_what_the_hub_refuses(tmp_path: Path, endpoint: str, source: str, code: int, says: str) -> None:
    asked = ["folder", "fingerprint"] + (
        ["listing"] if code == 64 else []
    )  # the client repeats listings for 20 seconds
    for answer in ask(tmp_path, endpoint, *(f"{name}={source}" for name in asked)):
        assert answer[0] == code, answer
        assert re.fullmatch(rf"spec\.teacher\.checkpoint: .*{source}.*", str(answer[1]))
        assert says in str(answer[1])


def test_a_hub_that_is_away_is_worth_another_try(tmp_path: Path) -> None:
    for answer in ask(tmp_path, "http://127.0.0.1:9", "folder=hf://owner/name", "fingerprint=hf://owner/name"):
        assert answer[0] == 75, answer
        assert "does not serve" in str(answer[1])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf://o/n", ("model", "o/n", None, "")),
        ("hf://o/n@main", ("model", "o/n", "main", "")),
        ("hf://o/n@refs%2Fpr%2F1/a/b.json", ("model", "o/n", "refs/pr/1", "a/b.json")),
        ("hf://datasets/o/n@v1/train.jsonl", ("dataset", "o/n", "v1", "train.jsonl")),
        ("hf://o/n/", ("model", "o/n", None, "")),
    ],
)
def test_how_a_source_on_the_hub_reads(source: str, expected: tuple[str, str, str | None, str]) -> None:
    kind, repository, revision, path = expected
    assert hub.parse(source, field="f") == HubSource(kind=kind, repository=repository, revision=revision, path=path)


@pytest.mark.parametrize(
    "source", ["hf://", "hf://owner", "hf://owner/", "hf://datasets/owner", "hf://o/@main", "hf://o/n/../x"]
)
def test_what_is_no_source_on_the_hub(source: str) -> None:
    with pytest.raises(UserError, match=r"^f: .*write hf://owner/name"):
        hub.parse(source, field="f")

"""What the credentials may do is found out before anything else, and said in one sentence."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from comd_api.exit_codes import TryAgainError, UserError
from comd_api.run import S3Options
from comd_trainer.store.s3_rights import DEEDS
from comd_trainer.store.stores import open_store
from tests.s3 import versity
from tests.s3.proxy import between

PREFIX = "default/run/preflight"


def test_all_rights_leave_nothing_behind(bucket: str, s3_keys: versity.Server) -> None:
    with between(s3_keys.endpoint) as traffic:
        store = open_store(f"s3://{bucket}/p", S3Options(endpoint=traffic.endpoint))
        store.probe(PREFIX)
        assert list(store.list("")) == []
        assert set(traffic.requests) == set(DEEDS), "each right was tried"
        assert len(traffic.requests) <= 8


@pytest.mark.parametrize(
    ("denied", "says"),
    [
        (
            ["s3:PutObject"],
            r"may list, read and delete but not write \(AccessDenied on PutObject\); allow s3:PutObject on s3://B/p/\*",
        ),
        (
            ["s3:GetObject"],
            r"may list, write and delete but not read \(AccessDenied on GetObject\); allow s3:GetObject on s3://B/p/\*",
        ),
        (
            ["s3:ListBucket"],
            r"may read, write and delete but not list \(AccessDenied on ListObjectsV2\); allow s3:ListBucket on s3://B",
        ),
        (
            ["s3:DeleteObject"],
            r"may list, read and write but not delete \(AccessDenied on DeleteObject\); "
            r"allow s3:DeleteObject on s3://B/p/\*",
        ),
        (
            ["s3:PutObject", "s3:DeleteObject"],
            r"may list and read but not write or delete \(AccessDenied on PutObject, AccessDenied on DeleteObject\); "
            r"allow s3:PutObject and s3:DeleteObject on s3://B/p/\*",
        ),
        (
            ["s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
            r"may not list, read, write or delete \(.*\); "
            r"allow s3:ListBucket on s3://B and s3:GetObject, s3:PutObject and s3:DeleteObject on s3://B/p/\*",
        ),
    ],
)
def test_each_right_that_is_missing_is_named(
    bucket: str, s3_keys: versity.Server, denied: list[str], says: str
) -> None:
    with between(s3_keys.endpoint, denies=lambda right: right in denied) as traffic:
        store = open_store(f"s3://{bucket}/p", S3Options(endpoint=traffic.endpoint))
        with pytest.raises(UserError) as raised:
            store.probe(PREFIX)
    wanted = rf"spec\.storage\.uri \(s3://B/p\): the credentials {says}".replace("B/", f"{bucket}/")
    assert re.fullmatch(wanted.replace("s3://B", f"s3://{bucket}"), str(raised.value)), str(raised.value)


def test_a_bucket_that_does_not_exist(s3_keys: versity.Server) -> None:
    store = open_store("s3://no-such-bucket/p", S3Options(endpoint=s3_keys.endpoint))
    with pytest.raises(UserError, match=r"spec\.storage\.uri: s3://no-such-bucket/p.*'no-such-bucket'.*does not exist"):
        store.probe(PREFIX)


@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_keys(bucket: str, s3_keys: versity.Server, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "wrong")
    store = open_store(f"s3://{bucket}/p", S3Options(endpoint=s3_keys.endpoint))
    with pytest.raises(UserError, match=r"spec\.storage\.uri: the S3 credentials are refused for s3://.*/p "):
        store.probe(PREFIX)


@pytest.mark.usefixtures("s3_keys")
def test_a_server_that_is_away() -> None:
    store = open_store("s3://bucket/p", S3Options(endpoint=f"http://127.0.0.1:{versity.free_port()}"))
    with pytest.raises(TryAgainError, match=r"spec\.storage\.uri: s3://bucket/p can't be reached"):
        store.probe(PREFIX)


class _Forgetful(BaseHTTPRequestHandler):
    """Takes every put, as services did before conditional writes were known; answers every get with `content`."""

    content = b""

    def do_GET(self) -> None:
        self._reply(b"<ListBucketResult/>" if "list-type" in self.path else self.content)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._reply(b"")

    def do_DELETE(self) -> None:
        self._reply(b"")

    def _reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@contextmanager
def forgetful(content: bytes) -> Iterator[str]:
    handler = type("Handler", (_Forgetful,), {"content": content})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.usefixtures("s3_keys")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"made and removed by comd's preflight\n", r"overwrites an object that was to be written only if absent"),
        (b"something else", r"reads back as something else; use another service"),
    ],
)
def test_a_service_that_does_not_keep_its_word(content: bytes, says: str) -> None:
    with (
        forgetful(content) as endpoint,
        pytest.raises(UserError, match=rf"^spec\.storage\.uri \(s3://bucket/p\): .*{says}"),
    ):
        open_store("s3://bucket/p", S3Options(endpoint=endpoint)).probe(PREFIX)

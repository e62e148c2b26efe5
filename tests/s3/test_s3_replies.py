"""Addresses that are no S3 service's: a console, a login, an ingress that redirects. Each is said in a sentence that names the field."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from comd_api.exit_codes import TryAgainError, UserError
from comd_api.run import S3Options
from comd_trainer.store.s3_replies import judge_reply
from comd_trainer.store.stores import open_store
from tests.s3.test_s3_errors import operations

CONSOLE = b"<!DOCTYPE html><html><head><title>Console</title><meta charset=utf-8></head><body><br></body></html>"
BUSY = b"<html><head><title>500 Internal Server Error</title></head><body><br></body></html>"
HTML = {"Content-Type": "text/html; charset=utf-8"}
PLAIN = b"Client sent an HTTP request to an HTTPS server.\n"


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@contextmanager
def web(reply: Reply) -> Iterator[str]:
    """The address of a server that answers whatever it is asked with this."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body)

        do_PUT = do_POST = do_HEAD = do_DELETE = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


AWAY = {"Location": "https://s3.example.com/bucket"}
REDIRECTED = r"redirects to https://s3\.example\.com/bucket \({}\); set spec\.storage\.s3\.endpoint to"
PAGE = r"answers \w+ with a web page.*; set spec\.storage\.s3\.endpoint to the address and port"


WRONG = [
    *((Reply(status, b"", AWAY), UserError, REDIRECTED.format(status)) for status in (301, 302, 307, 308)),
    (Reply(200, CONSOLE, HTML), UserError, PAGE),
    (Reply(400, PLAIN), UserError, r"speaks TLS alone; write spec\.storage\.s3\.endpoint with https://"),
    (Reply(404, b"404 page not found\n"), TryAgainError, r"with 404 .*is spec\.storage\.s3\.endpoint right"),
]
OPERATIONS = ["list", "stat", "probe", "write", "upload", "read", "download"]
NOT_SEEN = {(200, "read"), (400, "download"), (404, "download")}
"""An object may be a web page, and a HEAD has no body to say more."""


@pytest.mark.usefixtures("s3_keys")
@pytest.mark.parametrize(
    ("operation", "reply", "error", "says"),
    [(name, *each) for each in WRONG for name in OPERATIONS if (each[0].status, name) not in NOT_SEEN],
    ids=lambda value: str(value.status) if isinstance(value, Reply) else value if value in OPERATIONS else "",
)
def test_an_address_that_is_no_service_s(
    operation: str, reply: Reply, error: type[Exception], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with web(reply) as endpoint:
        store = open_store("s3://bucket/x", S3Options(endpoint=endpoint))
        with pytest.raises(error, match=says) as raised:
            operations(store, tmp_path)[operation]()
    assert str(raised.value).startswith(f"spec.storage.uri: s3://bucket/x is not served by {endpoint}: it ")
    assert "\n" not in str(raised.value), "one sentence"


@pytest.mark.parametrize(
    ("operation", "status", "headers", "body"),
    [
        ("GetObject", 404, {}, b"<Error><Code>NoSuchKey</Code></Error>"),
        ("HeadObject", 404, {}, b""),
        ("GetObject", 200, {"content-type": "text/html"}, None),
        ("ListObjectsV2", 200, {"content-type": "application/xml"}, b"<ListBucketResult/>"),
        ("ListObjectsV2", 500, {"content-type": "text/html"}, BUSY),
        ("ListObjectsV2", 503, {"content-type": "text/html"}, CONSOLE),
        ("ListObjectsV2", 301, {"x-amz-bucket-region": "eu-west-1"}, b""),
        ("ListObjectsV2", 307, {}, b"<Error><Code>TemporaryRedirect</Code></Error>"),
        ("PutObject", 400, {}, b"<Error><Code>InvalidArgument</Code></Error>"),
    ],
)
def test_what_a_service_may_say_is_boto3_s_to_read(
    operation: str, status: int, headers: dict[str, str], body: bytes | None
) -> None:
    assert judge_reply(operation, status=status, headers=headers, body=body, start="x") is None


SETTINGS = "can't be used with the settings of boto3 that are here .*correct the variables AWS_"


@pytest.mark.usefixtures("s3_keys")
@pytest.mark.parametrize(
    ("variables", "config", "says"),
    [
        ({}, "no [section\n= x\n", SETTINGS),
        ({"AWS_PROFILE": "other"}, "", SETTINGS),
        ({"AWS_PROFILE": "a"}, "[profile a]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = b\n", SETTINGS),
        (
            {"AWS_PROFILE": "a"},
            "[profile a]\nsso_session = s\nsso_account_id = 1\nsso_role_name = r\nregion = eu-central-1\n"
            "[sso-session s]\nsso_region = eu-central-1\nsso_start_url = https://x.example.com/start\n",
            SETTINGS,
        ),
        ({"AWS_DEFAULT_REGION": "eu central"}, "", SETTINGS),
    ],
    ids=["a file that is none", "no such profile", "a profile that leads nowhere", "nobody is logged in", "no region"],
)
def test_boto3_s_own_settings(
    variables: dict[str, str], config: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the machine of somebody who asks comd doctor."""
    (tmp_path / "config").write_text(config)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"^spec\.storage\.uri: s3://bucket/x.* {says}"):
        list(open_store("s3://bucket/x", S3Options(endpoint="http://127.0.0.1:1")).list("a"))


@pytest.mark.usefixtures("s3_keys")
@pytest.mark.parametrize("port", ["99999", "x"])
def test_a_port_that_is_none(port: str) -> None:
    with pytest.raises(UserError, match=rf"spec\.storage\.s3\.endpoint 'http://127\.0\.0\.1:{port}' is no URL"):
        open_store("s3://bucket/x", S3Options(endpoint=f"http://127.0.0.1:{port}")).exists("a")

"""Every way in which a bucket can fail us, asked of a real server where it can fail so, else of one that plays it."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from comd_api.exit_codes import TryAgainError, UserError
from comd_api.run import S3Options
from comd_trainer.store import s3_client
from comd_trainer.store.s3_clock import ClockError
from comd_trainer.store.stores import Store, open_store
from tests.s3 import versity


def operations(store: Store, folder: Path) -> dict[str, Callable[[], object]]:
    local = folder / "local"
    local.write_bytes(b"x" * (9 << 20))
    return {
        "list": lambda: list(store.list("a")),
        "stat": lambda: store.stat("a"),
        "exists": lambda: store.exists("a"),
        "read": lambda: store.read("a"),
        "read a range": lambda: store.read_range("a", start=1, size=2),
        "list in parts": lambda: list(store.list("a", marks=["b"])),
        "probe": lambda: store.probe("a"),
        "write": lambda: store.write("a", b"x"),
        "write if absent": lambda: store.write("a", b"x", if_absent=True),
        "swap": lambda: store.swap("a", b"x", expected=b"y"),
        "swap for nothing": lambda: store.swap("a", b"x", expected=None),
        "upload": lambda: store.upload(local, "a"),
        "download": lambda: store.download("a", folder / "down"),
        "download of known size": lambda: store.download("a", folder / "down", size=1),
        "delete": lambda: store.delete("a"),
    }


OPERATIONS = [
    "list",
    "stat",
    "exists",
    "read",
    "read a range",
    "list in parts",
    "probe",
    "write",
    "write if absent",
    "swap",
    "swap for nothing",
    "upload",
    "download",
    "download of known size",
    "delete",
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_bucket_that_does_not_exist(s3_keys: versity.Server, tmp_path: Path, operation: str) -> None:
    store = open_store("s3://no-such-bucket/x", S3Options(endpoint=s3_keys.endpoint))
    with pytest.raises(UserError, match=r"spec\.storage\.uri.*s3://no-such-bucket/x.*'no-such-bucket'.*does not exist"):
        operations(store, tmp_path)[operation]()


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != "download"])
@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_a_wrong_key(
    bucket: str, s3_keys: versity.Server, tmp_path: Path, operation: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "wrong")
    store = open_store(f"s3://{bucket}", S3Options(endpoint=s3_keys.endpoint))
    with pytest.raises(UserError, match=r"spec\.storage\.uri.* refused for s3://.*credentials|credentials are refused"):
        operations(store, tmp_path)[operation]()


def test_a_wrong_key_while_downloading(
    bucket: str, s3_keys: versity.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A HEAD has no body to say more.
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = open_store(f"s3://{bucket}", S3Options(endpoint=s3_keys.endpoint))
    with pytest.raises(UserError, match=r"spec\.storage\.uri"):
        store.download("a", tmp_path / "down")


def test_no_keys_at_all(bucket: str, s3_keys: versity.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = open_store(f"s3://{bucket}", S3Options(endpoint=s3_keys.endpoint))
    with pytest.raises(UserError, match=r"spec\.storage\.uri.*no S3 credentials.*AWS_ACCESS_KEY_ID"):
        store.read("a")


@pytest.mark.usefixtures("s3_keys")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_server_that_is_down(tmp_path: Path, operation: str) -> None:
    store = open_store("s3://bucket/x", S3Options(endpoint=f"http://127.0.0.1:{versity.free_port()}"))
    with pytest.raises(TryAgainError, match=r"spec\.storage\.uri: s3://bucket/x.* can't be reached"):
        operations(store, tmp_path)[operation]()


@pytest.mark.usefixtures("s3_keys")
def test_a_server_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    port = versity.free_port()
    options = S3Options(endpoint=f"http://127.0.0.1:{port}")
    store = open_store("s3://bucket", options)
    with versity.serve(tmp_path, port=port) as server:
        server.make_bucket("bucket")
        store.write("a", b"x")
    with pytest.raises(TryAgainError):
        store.read("a")
    with versity.serve(tmp_path, port=port):
        assert store.read("a") == b"x"


@pytest.mark.usefixtures("s3_keys")
def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "READ_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = open_store("s3://bucket", S3Options(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}"))
        with pytest.raises(TryAgainError, match="can't be reached"):
            store.read("a")


def test_tls_where_there_is_none(s3_keys: versity.Server) -> None:
    store = open_store("s3://bucket", S3Options(endpoint=s3_keys.endpoint.replace("http://", "https://")))
    with pytest.raises((UserError, TryAgainError), match=r"spec\.storage\.uri: .*s3://bucket"):
        store.read("a")


class Plays(ThreadingHTTPServer):
    """Answers with each of `replies` in turn, the last one for ever."""

    def __init__(self, replies: list[tuple[int, str]], clock: timedelta) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies, self.clock = replies, clock


class _Handler(BaseHTTPRequestHandler):
    server: Plays

    def do_GET(self) -> None:
        replies = self.server.replies
        status, body = replies.pop(0) if len(replies) > 1 else replies[0]
        if status >= 300:
            body = f"<Error><Code>{body}</Code><Message>in words</Message></Error>"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_PUT = do_GET  # noqa: N815

    def date_time_string(self, timestamp: float | None = None) -> str:
        """What `send_response` writes as the header `Date`."""
        del timestamp
        return format_datetime(datetime.now(UTC) + self.server.clock, usegmt=True)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@contextmanager
def saying(*replies: tuple[int, str], clock: timedelta = timedelta(0)) -> Iterator[str]:
    """The endpoint of a service that says this. `clock`: how far its is ahead of ours."""
    with Plays(list(replies), clock) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextmanager
def server_that_says(*replies: tuple[int, str]) -> Iterator[Store]:
    with saying(*replies) as endpoint:
        yield open_store("s3://bucket/x", S3Options(endpoint=endpoint))


@pytest.mark.usefixtures("s3_keys")
@pytest.mark.parametrize(
    ("status", "code", "error", "says"),
    [
        (503, "SlowDown", TryAgainError, "does not serve requests at the moment"),
        (500, "InternalError", TryAgainError, "does not serve requests at the moment"),
        (502, "", TryAgainError, "does not serve requests at the moment"),
        (409, "ConditionalRequestConflict", TryAgainError, "does not serve requests at the moment"),
        (403, "AccessDenied", UserError, "access to .* is denied .*allow s3:GetObject on"),
        (400, "ExpiredToken", UserError, "credentials for .* have expired .*put new ones in their place"),
        (400, "KMS.NotFoundException", UserError, r"correct spec\.storage\.s3\.sseKmsKeyId"),
        (400, "AuthorizationHeaderMalformed", UserError, r"lies in another region; set spec\.storage\.s3\.region"),
        (403, "RequestTimeTooSkewed", ClockError, "because this machine's clock is wrong .*set the clock"),
        (501, "NotImplemented", UserError, "conditional writes"),
        (429, "TooManyRequests", TryAgainError, "does not serve requests at the moment"),
        (418, "Teapot", UserError, "requests are refused"),
    ],
)
def test_replies_that_the_real_server_can_not_be_made_to_give(
    status: int, code: str, error: type[Exception], says: str
) -> None:
    with server_that_says((status, code)) as store:
        with pytest.raises(error, match=rf"spec\.storage\.uri.*{says}") as raised:
            store.read("a")
        assert "s3://bucket/x" in str(raised.value)
        assert "\n" not in str(raised.value), "one sentence"


@pytest.mark.usefixtures("s3_keys")
def test_a_hiccup_is_not_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "4")
    with server_that_says((503, "SlowDown"), (500, "InternalError"), (200, "content")) as store:
        assert store.read("a") == b"content"

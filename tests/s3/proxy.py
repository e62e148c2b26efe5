"""Stands between a client and the S3 server: counts what passes, denies what a policy would deny (the server's own root key may
do everything), loses replies, and may tell another time than it is."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

Denies = Callable[[str], bool]
"""Told a right such as `s3:GetObject`."""
Loses = Callable[[str], bool]
"""Told the same, of a request that the server has done: whether its reply gets lost."""


@dataclass
class Traffic:
    endpoint: str
    requests: list[str] = field(default_factory=list)
    """Rights that were made use of, in order."""
    paths: list[str] = field(default_factory=list)
    """With their queries."""
    headers: list[dict[str, str]] = field(default_factory=list)
    """Of these requests, by lower-case name."""
    sent: int = 0
    """Bytes of bodies that the client got."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, right: str, path: str, sent: int, headers: dict[str, str]) -> None:
        with self._lock:
            self.requests.append(right)
            self.paths.append(path)
            self.headers.append(headers)
            self.sent += sent


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, target: str, denies: Denies, loses: Loses, clock: timedelta) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.clock = clock
        self.target = urlsplit(target).netloc
        self.denies, self.loses = denies, loses
        self.traffic = Traffic(f"http://127.0.0.1:{self.server_address[1]}")


_NOT_PASSED = ("content-length", "connection", "date")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Proxy

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        right = self._right()
        if self.server.denies(right):
            self._reply(403, b"<Error><Code>AccessDenied</Code><Message>by policy</Message></Error>", {})
            return
        connection = http.client.HTTPConnection(self.server.target, timeout=30)
        connection.request(self.command, self.path, body=body or None, headers=dict(self.headers.items()))
        found = connection.getresponse()
        data = found.read()
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.traffic.add(right, self.path, len(data), headers)
        connection.close()
        if self.server.loses(right):
            self.close_connection = True
            return
        self._reply(found.status, data, dict(found.getheaders()))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815

    def _right(self) -> str:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if self.command == "GET":
            return "s3:ListBucket" if "list-type" in query or path.count("/") < 2 else "s3:GetObject"
        return {"PUT": "s3:PutObject", "POST": "s3:PutObject", "DELETE": "s3:DeleteObject"}.get(
            self.command, "s3:GetObject"
        )

    def _reply(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        kept = {name: value for name, value in headers.items() if name.lower() not in _NOT_PASSED}
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        self.send_response(status)
        for name, value in {**kept, "Content-Length": length or str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def date_time_string(self, timestamp: float | None = None) -> str:
        """What `send_response` writes as the header `Date`."""
        del timestamp
        return format_datetime(datetime.now(UTC) + self.server.clock, usegmt=True)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@contextmanager
def between(
    endpoint: str,
    *,
    denies: Denies = lambda _: False,
    loses: Loses = lambda _: False,
    clock: timedelta = timedelta(0),
) -> Iterator[Traffic]:
    """A proxy in front of `endpoint` until the block ends. `clock`: how far the header `Date` is ahead of the time."""
    with _Proxy(endpoint, denies, loses, clock) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.traffic
        server.shutdown()

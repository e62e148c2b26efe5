"""`comd installed`: what it asks, and what it says of an operator that does not work."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from comd_api.exit_codes import ExitCode
from comd_operator.cli.main import main
from comd_operator.runtime.api import Api, ApiError
from tests.unit.fake_api import FakeApi

RUNS = "/apis/comd.dev/v1alpha1/distillationruns"
SCHEDULES = "/apis/comd.dev/v1alpha1/distillationschedules"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/comd-system/leases/comd"
FORBIDDEN = ApiError(status=403, reason="Forbidden", message="may not list distillationruns")


def lease(*, age: float = 1.0, holder: str | None = "pod_1") -> dict[str, Any]:
    renewed = (datetime.now(UTC) - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {"spec": {"holderIdentity": holder, "renewTime": renewed}}


@contextmanager
def operator(*statuses: int) -> Iterator[str]:
    """Answers with these, one after the other, the last one for ever. Its URL."""
    left = list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(left.pop(0) if len(left) > 1 else left[0])
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"told")

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class ClosedApi(FakeApi):
    async def close(self) -> None:
        pass


def installed(
    monkeypatch: pytest.MonkeyPatch, url: str, answers: dict[tuple[str, str], Any], *more: str
) -> tuple[int, FakeApi]:
    api = ClosedApi(answers)

    async def connect(**_: Any) -> FakeApi:
        return api

    monkeypatch.setattr(Api, "connect", connect)
    monkeypatch.setattr("comd_operator.cli.installed.AGAIN_SECONDS", 0.01)
    options = ("--lease-namespace=comd-system", "--lease-name=comd", "--seconds=0.05", *more)
    return main(["installed", f"--url={url}/", *options]), api


def test_all_is_well(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """At last: it is asked again while there is time."""
    answers = {("GET", RUNS): [FORBIDDEN, {"items": []}], ("GET", LEASE): lease()}
    with operator(503, 200) as url:
        code, api = installed(monkeypatch, url, answers, "--seconds=20")
    assert code == ExitCode.DONE
    assert capsys.readouterr().out.splitlines() == [
        "the custom resources are served, and may be listed",
        "the operator is ready",
        "a replica holds the Lease",
    ]
    assert [call.path for call in api.calls] == [RUNS, RUNS, SCHEDULES, LEASE]


def test_it_asks_in_the_operator_s_own_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    with operator(200) as url:
        _, api = installed(monkeypatch, url, {("GET", LEASE): lease()}, "--namespaces=a,b")
    root = "/apis/comd.dev/v1alpha1/namespaces"
    lists = [f"{root}/{name}/{kind}" for name in "ab" for kind in ("distillationruns", "distillationschedules")]
    assert [call.path for call in api.calls] == [*lists, LEASE]


GONE = ApiError(status=404, reason="NotFound", message="leases comd not found")
BROKEN: dict[str, tuple[Any, int, Any, str]] = {
    # What lists, /readyz and the Lease answer, and what is said.
    "no right": (FORBIDDEN, 200, lease, f"may be listed: {RUNS}: 403 Forbidden: may not list distillationruns"),
    "not ready": ({}, 503, lease, "the operator is ready: {url}/readyz answers 503: told"),
    "no Lease": ({}, 200, lambda: GONE, "a replica holds the Lease: "),
    "nobody": ({}, 200, lambda: lease(holder=""), "nobody holds comd-system/comd"),
    "dead": ({}, 200, lambda: lease(age=100), "pod_1 has not renewed comd-system/comd for 10"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_what_is_not_so_is_said(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    runs, status, held, words = BROKEN[name]
    with operator(status) as url:
        code, _ = installed(monkeypatch, url, {("GET", RUNS): runs, ("GET", LEASE): held()})
    assert code == ExitCode.FAILED
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("not so: "))
    assert words.format(url=url) in line


@pytest.mark.parametrize(
    ("url", "code", "says"), [("http://127.0.0.1:9", 1, "can't be reached"), ("nowhere", 64, "no URL")]
)
def test_nobody_there(
    url: str, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _ = installed(monkeypatch, url, {("GET", RUNS): {}, ("GET", LEASE): lease()})
    assert found == code
    told = capsys.readouterr()
    assert says in told.out + told.err

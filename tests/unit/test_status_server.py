"""Where a stage's status is served: on the addresses of either family, whichever the cluster gives its pods."""

import json
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from comd_api.exit_codes import ExitCode
from comd_api.run import RunSpec
from comd_api.stage import StageConfig
from comd_trainer import cli
from comd_trainer.supervisor import Supervisor
from tests.unit.rule_examples import manifest

IPV4, IPV6 = "127.0.0.1", "::1"


def has_ipv6() -> bool:
    with suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind((IPV6, 0))
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
CONFIG = StageConfig(
    namespace="team",
    run="tiny",
    stage="round-1",
    phases=["teach"],
    spec=RunSpec.model_validate(manifest()["spec"]),
)


@contextmanager
def serving(**where: Any) -> Iterator[int]:
    """The port that a stage's status is served on."""
    supervisor = Supervisor(config=CONFIG, scratch=Path("x"), termination_message=Path("x"), port=0, **where)
    server = supervisor.server
    server.start()
    try:
        assert server.port
        yield server.port
    finally:
        server.close()


def answers(host: str, port: int) -> bool:
    url = f"http://[{host}]:{port}/healthz" if ":" in host else f"http://{host}:{port}/healthz"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.read() == b"ok\n")
    except OSError:
        return False


@needs_ipv6
def test_both_families_are_served() -> None:
    with serving() as port:
        assert answers(IPV4, port)
        assert answers(IPV6, port)


def test_without_ipv6_the_other_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    made = socket.socket

    class NoIPv6(made):  # type: ignore[misc, valid-type]
        def __init__(self, family: int = -1, *rest: Any, **more: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(97, "Address family not supported by protocol")
            super().__init__(family, *rest, **more)

    monkeypatch.setattr(socket, "socket", NoIPv6)
    with serving() as port:
        assert answers(IPV4, port)
        assert not answers(IPV6, port)


@needs_ipv6
@pytest.mark.parametrize("address", [IPV4, IPV6])
def test_an_address_that_is_given_is_the_only_one(address: str) -> None:
    with serving(address=address) as port:
        assert {host for host in (IPV4, IPV6) if answers(host, port)} == {address}


@needs_ipv6
def test_the_command_has_the_same_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[str, Any] = {}

    class Told(Supervisor):
        def __init__(self, **arguments: Any) -> None:
            given.update(arguments)
            super().__init__(**arguments)

        def run(self) -> ExitCode:
            return ExitCode.DONE

    monkeypatch.setattr("comd_trainer.supervisor.Supervisor", Told)
    monkeypatch.setattr(cli, "begin", lambda _: None)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_wire()))
    assert cli.main(["run", "--config", str(tmp_path / "config.json"), "--port", "0"]) == 0
    with serving(address=given["address"]) as port:
        assert answers(IPV4, port)
        assert answers(IPV6, port)

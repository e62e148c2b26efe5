"""A start that can't succeed ends at once, in a sentence, whichever way the operator was started."""

import getpass
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from comd_operator.shell.handlers import name_the_user


def started(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COMD_OPERATOR_PORT": "0", **environment},
    )


def write_kubeconfig(folder: Path) -> Path:
    """Of a server where nobody answers."""
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(
        '{"apiVersion": "v1", "kind": "Config", "current-context": "x", "users": [{"name": "x", "user": {}}], '
        '"clusters": [{"name": "x", "cluster": {"server": "http://127.0.0.1:9"}}], '
        '"contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}]}'
    )
    return kubeconfig


def test_without_a_way_to_an_api_server(tmp_path: Path) -> None:
    done = started("comd_operator", "operator", KUBECONFIG=str(tmp_path / "none"))
    assert done.returncode == 64, done.stderr
    assert [line.partition(":")[:1] for line in done.stderr.splitlines()] == [("comd",)], "one line, and no traceback"
    assert done.stderr.startswith("comd: no way to an API server")


def test_a_context_that_is_not_there(tmp_path: Path) -> None:
    kubeconfig = write_kubeconfig(tmp_path)
    done = started("comd_operator", "operator", "--context", "nope", KUBECONFIG=str(kubeconfig))
    assert done.returncode == 64, done.stderr
    assert done.stderr == f"comd: --context: there is no context nope in {kubeconfig}; it has: x\n"


def test_under_kopf_run() -> None:
    done = started("kopf", "run", "-A", "-m", "comd_operator.shell.handlers", COMD_OPERATOR_QPS="abc")
    assert done.returncode != 0
    assert "COMD_OPERATOR_QPS: 'abc' is not a number" in done.stderr + done.stdout


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    kubeconfig = write_kubeconfig(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = str(taken.getsockname()[1])
        done = started(
            "comd_operator", "operator", "--address", "127.0.0.1", "--port", number, KUBECONFIG=str(kubeconfig)
        )
    assert done.returncode == 64, done.stderr
    assert done.stderr == f"comd: --port: {number} is taken; give --port another number, or 0\n"


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a platform gives the pod one: kopf would end with a traceback."""

    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setenv("LOGNAME", "somebody")
    name_the_user()
    assert getpass.getuser() == "somebody"
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    name_the_user()
    assert getpass.getuser() == "comd"

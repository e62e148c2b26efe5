"""The operator's image: what is in it, how big it is, that it is the same each time. How it works is shown by tests/install."""

import gzip
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from images.builders import Builder
from tests.images import built
from tests.images.container import config, container, identity

pytestmark = pytest.mark.timeout(1800)
MOST_BYTES = 150_000_000
"""Compressed, as a registry keeps it."""


def test_it_says_what_it_is(tool: Builder, operator: str) -> None:
    found = config(tool, operator)
    assert (found["User"], found["Entrypoint"], found["Cmd"]) == ("65532:65532", ["comd"], ["operator"])
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in found["Labels"].items()}
    assert labels["version"] == version("comd")
    assert labels["created"] == "2026-01-01T00:00:00Z"
    assert labels["licenses"] == "Apache-2.0"
    assert labels["title"] == "comd operator"


def test_it_runs_by_a_user_that_owns_nothing(tool: Builder, operator: str) -> None:
    with container(tool, operator) as box:
        assert box.run("comd", "--version").stdout == f"comd {version('comd')}\n"
        written = box.run("find", "/", "-xdev", "-type", "f", "-newer", "/opt/comd/pyvenv.cfg", "-path", "/opt/*")
        assert written.stdout == "", "bytecode is there already"
        assert box.run("python3", "-c", "import kopf, kubernetes.aio, aiohttp, celpy").returncode == 0
        assert "No module named 'torch'" in box.run("python3", "-c", "import torch").stderr


def test_its_user_needs_no_entry_in_the_password_file(tool: Builder, operator: str) -> None:
    """kopf asks who it is, and would not start."""
    code = "import kopf._core.engines.peering as peering; print(peering.detect_own_id(manual=True))"
    with container(tool, operator) as box:
        done = box.run("python3", "-c", code)
    assert done.stdout.startswith("comd@"), done.stderr


def test_bytecode_is_not_compared_with_its_source(tool: Builder, operator: str) -> None:
    """Flags of PEP 552: by hash, unchecked."""
    code = (
        "import asyncio, comd_operator.decide, kopf, pathlib\n"
        "for m in (asyncio, comd_operator.decide, kopf): print(pathlib.Path(m.__cached__).read_bytes()[4])"
    )
    with container(tool, operator) as box:
        assert box.run("python3", "-c", code).stdout.split() == ["1", "1", "1"]


def test_it_is_small(tool: Builder, operator: str, tmp_path: Path) -> None:
    archive, packed = tmp_path / "operator.tar", tmp_path / "operator.tar.gz"
    built.said(*tool.save(operator, archive))
    with archive.open("rb") as source, gzip.open(packed, "wb", compresslevel=6) as target:
        shutil.copyfileobj(source, target)
    assert packed.stat().st_size < MOST_BYTES


def test_a_second_build_gives_the_same_digest(tool: Builder, context: Path, operator: str) -> None:
    again = f"{built.REPOSITORY}/operator:again"
    built.build(tool, "operator", again, say=print, root=context)
    found = identity(tool, again)
    assert re.fullmatch("sha256:[0-9a-f]{64}", found[1])
    assert found == identity(tool, operator)

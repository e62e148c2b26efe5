"""Fixtures that several kinds of tests share: a real S3 server; a real Kubernetes cluster, in tests/cluster/fixtures.py."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3 import versity

pytest_plugins = ["tests.cluster.fixtures"]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[versity.Server]:
    """A real S3 server, for as long as the tests run. Without one, tests skip on a laptop and fail in CI."""
    try:
        versity.binary()
    except versity.NoServerError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    with versity.serve(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_keys(s3_server: versity.Server, monkeypatch: pytest.MonkeyPatch) -> versity.Server:
    """The server, with its credentials in the environment and requests that give up at once."""
    for name, value in {**s3_server.environment, "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    return s3_server


@pytest.fixture
def bucket(s3_keys: versity.Server, tmp_path: Path) -> str:
    """A bucket of this test's own."""
    name = f"b-{tmp_path.name.lower().replace('_', '-').strip('-')[:50]}-{os.urandom(3).hex()}"
    s3_keys.make_bucket(name)
    return name

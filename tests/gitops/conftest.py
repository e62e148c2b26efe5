"""Who is asked what GitOps tools see. Without Go, tests skip on a laptop and fail in CI."""

import os
from pathlib import Path

import pytest

from tests.chart import tools
from tests.gitops import definitions
from tests.gitops.judge import Judge, MissingError, provide

HERE = Path(__file__).parent
MISSING = pytest.StashKey[str]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds and fetches here what is missing, before a test goes into the cluster's network, from which no registry is in reach."""
    if session.config.option.collectonly or not any(item.path.is_relative_to(HERE) for item in session.items):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    try:
        provide(reporter.write_line if reporter else print)
        definitions.provide()
    except (MissingError, tools.MissingError) as error:
        session.config.stash[MISSING] = str(error)


def _or_skip(request: pytest.FixtureRequest) -> None:
    missing = request.config.stash.get(MISSING, None)
    if missing is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)


@pytest.fixture(scope="session")
def judge(request: pytest.FixtureRequest) -> Judge:
    _or_skip(request)
    return Judge(provide(print))


@pytest.fixture(scope="session")
def foreign(request: pytest.FixtureRequest) -> list[Path]:
    """Custom resource definitions of Argo CD and Flux."""
    _or_skip(request)
    return definitions.provide()

"""Who is asked what GitOps tools see. Without Go, tests skip on a laptop and fail in CI."""

import os

import pytest

from tests.gitops.judge import Judge, MissingError, provide


@pytest.fixture(scope="session")
def judge(request: pytest.FixtureRequest) -> Judge:
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    try:
        return Judge(provide(reporter.write_line if reporter else print))
    except MissingError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))

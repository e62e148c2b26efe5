"""The chart, rendered by the real helm."""

import os
from pathlib import Path

import pytest

from tests import prometheus
from tests.chart import schemas, tools
from tests.chart.helm import Helm

HERE = Path(__file__).parent
MISSING = pytest.StashKey[str]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds what is missing here, where no test's time limit runs and the terminal shows why it takes long."""
    ours = [item for item in session.items if item.path.is_relative_to(HERE)]
    wanted = {name for item in ours for name in ("helm", "kubeconform") if name in getattr(item, "fixturenames", ())}
    if session.config.option.collectonly or not wanted:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    say = reporter.write_line if reporter else print
    try:
        for name in sorted(wanted):
            tools.provide(name, say)
        if "kubeconform" in wanted:
            for folder, module in (tools.KUBERNETES, tools.MONITORING):
                tools.source(folder, module)
    except tools.MissingError as error:
        session.config.stash[MISSING] = str(error)


def _provided(request: pytest.FixtureRequest, name: str) -> Path:
    missing = request.config.stash.get(MISSING, None)
    if missing is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    return tools.provide(name, print)


@pytest.fixture(scope="session")
def helm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return Helm(_provided(request, "helm"), home=tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def kubeconform(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> schemas.Kubeconform:
    program = _provided(request, "kubeconform")
    folder = tmp_path_factory.mktemp("schemas")
    schemas.write(folder, kubernetes=tools.source(*tools.KUBERNETES), monitoring=tools.source(*tools.MONITORING))
    return schemas.Kubeconform(program, folder)


@pytest.fixture(scope="session")
def promtool() -> Path:
    try:
        return prometheus.provide(print)["promtool"]
    except prometheus.MissingError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))

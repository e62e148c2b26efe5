"""A site for all tests of this folder: the operator works on all of its namespaces at once, as in a cluster."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import prometheus
from tests.chart import tools as chart_tools
from tests.chart.helm import Helm
from tests.cluster.cluster import Cluster
from tests.nodes import image
from tests.nodes.site import Site
from tests.nodes.world import upload_inputs

NO_MONITORING = pytest.StashKey[str]()
AT_ONCE = 4
"""Scenes that play side by side: more than cores, for much of a scene is waiting."""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Gets Prometheus and helm here: tests run in the cluster's network, which has no way out."""
    wanted = any("monitoring_tools" in getattr(item, "fixturenames", ()) for item in session.items)
    if session.config.option.collectonly or not wanted:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    say = reporter.write_line if reporter else print
    try:
        prometheus.provide(say)
        chart_tools.provide("helm", say)
    except (prometheus.MissingError, chart_tools.MissingError) as error:
        session.config.stash[NO_MONITORING] = str(error)


@pytest.fixture(scope="session")
def monitoring_tools(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Helm]:
    """Prometheus, and helm, which renders the alerts."""
    missing = request.config.stash.get(NO_MONITORING, None)
    if missing is not None:
        pytest.fail(missing, pytrace=False) if os.environ.get("CI") == "true" else pytest.skip(missing)
    home = tmp_path_factory.mktemp("helm")
    return prometheus.provide(print)["prometheus"], Helm(chart_tools.provide("helm", print), home=home)


@pytest.fixture(scope="session")
def site(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    hidden = image.hidden_place()
    if hidden is not None:
        words = f"{hidden} can't be seen in a trainer's pod, which has folders of its own there: check the project out elsewhere"
        pytest.fail(words, pytrace=False) if os.environ.get("CI") == "true" else pytest.skip(words)
    site = Site(cluster)
    upload_inputs(cluster, tmp_path_factory.mktemp("nodes") / "inputs")
    site.set_up()
    yield site
    assert site.operator.stop() == 0


@pytest.fixture(scope="module")
def play(request: pytest.FixtureRequest, site: Site) -> Iterator[Callable[[str], None]]:
    """Starts those of the module's SCENES that were asked for, and tells how one went."""
    module = request.module
    wanted = {_scene(item) for item in request.session.items if getattr(item, "module", None) is module}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        playing = {name: pool.submit(scene, site) for name, scene in module.SCENES.items() if name in wanted}
        yield lambda name: playing[name].result()
        pool.shutdown(cancel_futures=True)


def _scene(item: pytest.Item) -> str:
    assert isinstance(item, pytest.Function)
    return str(item.callspec.params["scene"])

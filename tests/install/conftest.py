"""A cluster to install in: nodes that have the operator's image as it is built, the trainer's host image, helm."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chart import tools
from tests.chart.helm import Helm
from tests.cluster.cluster import Cluster
from tests.images import built
from tests.images.built import Built
from tests.nodes import image
from tests.nodes.site import Site

HERE = Path(__file__).parent
MISSING = pytest.StashKey[str]()


@dataclass(frozen=True)
class Place:
    """Its site has no operator: that is what is installed."""

    site: Site
    helm: Helm
    operator: Built

    @property
    def cluster(self) -> Cluster:
        return self.site.cluster


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds what is missing here: later the tests are in the cluster's network, which has no way out."""
    ours = any(item.path.is_relative_to(HERE) for item in session.items)
    if session.config.option.collectonly or not ours:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    say = reporter.write_line if reporter else print
    try:
        tools.provide("helm", say)
        built.provide("operator", say)
        hidden = image.hidden_place()
        if hidden is not None:
            raise built.MissingError(
                f"nothing is installed: {hidden} can't be seen in a trainer's pod; check the project out elsewhere"
            )
    except (tools.MissingError, built.MissingError) as error:
        session.config.stash[MISSING] = str(error)


@pytest.fixture(scope="session")
def provided(request: pytest.FixtureRequest) -> Built:
    """Before the cluster is started, which would be in vain without."""
    missing = request.config.stash.get(MISSING, None)
    if missing is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    return built.provide("operator", print)


@pytest.fixture(scope="session")
def place(provided: Built, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Place:
    image.provide(cluster)
    cluster.load(provided.archive)
    helm = Helm(tools.provide("helm", print), home=tmp_path_factory.mktemp("helm"))
    return Place(Site(cluster), helm, provided)

"""A site for all tests of this folder: the operator works on all of its namespaces at once, as in a cluster."""

from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.nodes.site import Run, Site
from tests.nodes.world import one_round, upload_inputs


@pytest.fixture(scope="session")
def site(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(cluster)
    upload_inputs(cluster, tmp_path_factory.mktemp("nodes") / "inputs")
    site.set_up()
    yield site
    assert site.operator.stop() == 0


@pytest.fixture(scope="session")
def undisturbed(site: Site) -> Run:
    """A run that ended well in one go: what all others must come to."""
    run = site.apply(one_round(), site.namespace("undisturbed"))
    run.until_phase("Succeeded")
    assert all(stage["attempt"] == 1 for stage in run.status()["stages"])
    return run

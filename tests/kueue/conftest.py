"""A site with Kueue. Opt-in: without its program, which `make test-kueue` builds, there is nothing to run."""

import json
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.kueue.install import install
from tests.kueue.program import MODULE
from tests.nodes.site import Site
from tests.nodes.world import upload_inputs


@pytest.fixture(scope="session")
def site(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    manager = MODULE.target / "kueue"
    if not manager.exists():
        pytest.skip("Kueue was not built: make test-kueue does that")
    install(cluster, manager=manager, folder=tmp_path_factory.mktemp("kueue"))
    site = Site(cluster)
    upload_inputs(cluster, tmp_path_factory.mktemp("world") / "inputs")
    site.set_up()
    yield site
    assert site.operator.stop() == 0


@pytest.fixture
def without_workloads(site: Site) -> Iterator[Site]:
    """The operator, without the right to read Workloads."""
    role = "clusterrole/comd-operator"
    rules = json.loads(site.cluster.kubectl("get", role, "-o", "json"))["rules"]
    fewer = [rule for rule in rules if "workloads" not in rule["resources"]]
    assert len(fewer) == len(rules) - 1

    def set_rules(wanted: object) -> None:
        patch = json.dumps([{"op": "replace", "path": "/rules", "value": wanted}])
        site.cluster.kubectl("patch", role, "--type=json", "-p", patch)
        site.operator.stop()
        site.operator.start()

    set_rules(fewer)
    yield site
    set_rules(rules)

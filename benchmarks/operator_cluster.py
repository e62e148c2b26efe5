"""Clusters of the benchmark's own."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from comd_api import API_VERSION
from comd_api.kinds import RUN, SCHEDULE, Kind
from tests.cluster import network
from tests.cluster.cluster import Cluster, sweep
from tests.cluster.processes import wait

CRDS = "crds"


@contextmanager
def inside(name: str, *, nodes: int) -> Iterator[Cluster]:
    """A new cluster, with this thread and what it starts in its network. It is gone afterwards."""
    sweep()
    own_network, own_environment = network.hold_own(), dict(os.environ)
    cluster = Cluster.up(f"{name}-{os.getpid()}", nodes=nodes, owned=True)
    try:
        cluster.enter()
        os.environ.update(cluster.environment)
        cluster.kubectl("apply", "-f", CRDS)
        for kind in (RUN, SCHEDULE):
            wait(f"our {kind.plural}", partial(_served, cluster, kind), 60)
        yield cluster
    finally:
        network.move(own_network)
        os.environ.clear()
        os.environ.update(own_environment)
        cluster.down()


def _served(cluster: Cluster, kind: Kind) -> bool:
    """Not only known: a list of them comes, and not the answer that their storage is being made."""
    time.sleep(0.2)
    return '"items"' in cluster.kubectl("get", "--raw", f"/apis/{API_VERSION}/{kind.plural}", check=False)

"""The control plane alone."""

import json
import os
import socket

from tests.cluster.cluster import Cluster
from tests.cluster.layout import CONTROL_IP


def test_an_api_server_that_controllers_and_the_scheduler_serve(control_plane: Cluster, namespace: str) -> None:
    spec = {"containers": [{"name": "c", "image": "i"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
    control_plane.apply(json.dumps(pod), namespace=namespace)
    control_plane.kubectl("-n", namespace, "wait", "--for=condition=PodScheduled=False", "pod/p", "--timeout=60s")


def test_the_test_process_is_in_its_network(control_plane: Cluster) -> None:
    assert os.environ["KUBECONFIG"] == str(control_plane.kubeconfig)
    socket.create_connection((CONTROL_IP, 6443), timeout=10).close()


def test_a_test_without_a_cluster_is_where_pytest_was_started() -> None:
    assert "nodes" not in [name for _, name in socket.if_nameindex()]
    assert "comd-cluster" not in os.environ.get("KUBECONFIG", "")

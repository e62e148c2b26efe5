"""Somebody who installs the chart for namespaces of his own, with no right to anything of the cluster's."""

from collections.abc import Sequence
from pathlib import Path

from tests.cluster.cluster import Cluster


def kubeconfig(cluster: Cluster, *, namespace: str, others: Sequence[str]) -> Path:
    """Of an admin of the release's namespace and of the others, who has there what the operator is given: Kubernetes lets nobody give
    away more than he has. operator/rbac.yaml must be applied."""
    kubectl = cluster.kubectl
    kubectl("-n", namespace, "create", "serviceaccount", "installer")
    account = f"--serviceaccount={namespace}:installer"
    verbs, resource = "--verb=create,get,update", "--resource=leases.coordination.k8s.io"
    kubectl("-n", namespace, "create", "role", "leases", verbs, resource)
    kubectl("-n", namespace, "create", "rolebinding", "leases", "--role=leases", account)
    for place in (namespace, *others):
        for role in ("admin", "comd-operator"):
            kubectl("-n", place, "create", "rolebinding", f"installer-{role}", f"--clusterrole={role}", account)
    return cluster.kubeconfig_for(user="installer", namespace=namespace)

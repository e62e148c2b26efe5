"""All objects are as Kubernetes' and the Prometheus operator's schemas have them, and helm's own linter has nothing to say."""

import json

import pytest

from tests.chart.helm import IMAGE, Helm, Object
from tests.chart.schemas import Kubeconform
from tests.chart.values_table import CHART

PEER: Object = {"namespaceSelector": {"matchLabels": {"a": "b"}}, "podSelector": {}}
RULE: Object = {
    "to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
    "ports": [{"port": 443, "protocol": "TCP"}],
}
MONITORING: Object = {
    "podMonitor": {"enabled": True, "labels": {"a": "b"}, "annotations": {"a": "b"}},
    "prometheusRule": {"enabled": True, "labels": {"a": "b"}, "annotations": {"a": "b"}},
    "dashboards": {"enabled": True, "labels": {"a": "b"}, "annotations": {"a": "b"}},
}
EVERYTHING: Object = {
    "imagePullSecrets": [{"name": "pull"}],
    "commonLabels": {"team": "vision"},
    "defaults": {
        "trainerImage": "x/y:1",
        "storage": {"uri": "s3://bucket/x", "endpoint": "http://s3:9000", "region": "eu-1", "secret": "s3"},
        "queue": "gpus",
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    },
    "replicas": 3,
    "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}},
    "podDisruptionBudget": {"maxUnavailable": "50%"},
    "resources": {"limits": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Gi"}},
    "podLabels": {"a": "b"},
    "podAnnotations": {"a": "b"},
    "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3}],
    "affinity": {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"a": "b"}}}
            ]
        }
    },
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}
    ],
    "priorityClassName": "system-cluster-critical",
    "extraEnv": [
        {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    ],
    "serviceAccount": {"annotations": {"a": "b"}},
    "service": {"labels": {"a": "b"}, "annotations": {"a": "b"}},
    "networkPolicy": {
        "metricsFrom": [PEER],
        "extraEgress": [RULE],
        "trainer": {"namespaces": ["a", "b"], "egress": [RULE]},
    },
    "monitoring": MONITORING,
}
SETS: dict[str, Object] = {
    "by default": {},
    "everything": EVERYTHING,
    "everything, in two namespaces": {**EVERYTHING, "watchNamespaces": ["team-a", "team-b"]},
    "little": {
        "replicas": 1,
        "runAsUser": None,
        "runAsGroup": None,
        "resources": {"requests": None, "limits": None},
        "nodeSelector": {"kubernetes.io/os": None},
        "topologySpreadConstraints": [],
        "networkPolicy": {"enabled": False},
        "rbac": {"create": False},
        "crds": {"enabled": False},
        "serviceAccount": {"create": False},
    },
}


@pytest.mark.parametrize("name", list(SETS))
def test_objects_are_as_their_schemas_have_them(helm: Helm, kubeconform: Kubeconform, name: str) -> None:
    assert kubeconform.problems(helm.render(SETS[name]).text) == []


def test_kubeconform_would_see_it(helm: Helm, kubeconform: Kubeconform) -> None:
    """A field that is not there, a wrong type, a kind that nobody knows."""
    text = helm.render({"monitoring": MONITORING}).text
    for right, wrong, says in (
        ("unhealthyPodEvictionPolicy:", "unhealthyPodPolicy:", "unhealthyPodPolicy"),
        ("replicas: 2", "replicas: two", "/spec/replicas"),
        ("podMetricsEndpoints:", "podMetricsEndpoint:", "podMetricsEndpoint"),
        ("kind: PodDisruptionBudget", "kind: PodBudget", "could not find schema"),
    ):
        assert right in text
        assert any(says in problem for problem in kubeconform.problems(text.replace(right, wrong))), wrong


@pytest.mark.parametrize("name", list(SETS))
def test_helm_lint(helm: Helm, name: str) -> None:
    values = json.dumps({**IMAGE, **SETS[name]})
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), "-f", "-", input=values)


def test_it_can_be_packed(helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("packed")
    helm("package", str(CHART), "--destination", str(folder))
    (archive,) = folder.glob("comd-operator-*.tgz")
    assert helm.render(chart=archive).objects == helm.render().objects

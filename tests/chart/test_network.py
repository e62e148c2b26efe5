"""Who reaches whom, and who is scraped: selectors are held against the labels and ports of the pods that they are for."""

import re
from typing import Any

import pytest

from comd_operator.planner import job_manifest, labels, plan_run, stage_config
from comd_operator.planner.defaults import TRAINER_PORT
from tests.chart.helm import FULLNAME, NAMESPACE, Helm, Object, Rendered
from tests.unit.runs import make_run

MONITORING: Object = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
OUT: Object = {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 443}]}


def trainer_pod() -> Object:
    run = make_run(trainer__image="x", storage={"uri": "s3://bucket/x"})
    run = run.replace(metadata=run.metadata.model_copy(update={"uid": "1"}))
    job = plan_run(run.spec, run=run.metadata.name)[0]
    template: Object = job_manifest(run, job, stage_config(run, job))["spec"]["template"]
    return template


def selects(selector: Object, pod: Object) -> bool:
    return bool(selector["matchLabels"].items() <= pod["metadata"]["labels"].items())


def ports_of(pod: Object) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}


def policies(rendered: Rendered) -> dict[str, Object]:
    made = [(each["metadata"], each["spec"]) for each in rendered.of("NetworkPolicy")]
    return {f"{metadata['namespace']}/{metadata['name']}": spec for metadata, spec in made}


def test_the_operator(helm: Helm) -> None:
    rendered = helm.render()
    (policy,) = policies(rendered).values()
    assert selects(policy["podSelector"], rendered.pod())
    assert not selects(policy["podSelector"], rendered.one("Pod"))
    assert not selects(policy["podSelector"], trainer_pod())
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [{"ports": [{"port": "metrics", "protocol": "TCP"}]}]
    assert "metrics" in ports_of(rendered.pod())
    dns, server, trainers = policy["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert [port["port"] for port in server["ports"]] == [443, 6443, 8443, 16443]
    assert trainers["ports"] == [{"port": TRAINER_PORT, "protocol": "TCP"}]
    assert selects(trainers["to"][0]["podSelector"], trainer_pod())
    assert trainers["to"][0]["namespaceSelector"] == {}


def test_the_operator_of_two_namespaces_whom_only_prometheus_may_ask(helm: Helm) -> None:
    network = {"metricsFrom": [MONITORING], "apiServerPorts": [6443], "extraEgress": [OUT]}
    rendered = helm.render({"watchNamespaces": ["a", "b"], "networkPolicy": network})
    policy = policies(rendered)[f"{NAMESPACE}/{FULLNAME}"]
    monitoring, test = policy["ingress"][0]["from"]
    assert monitoring == MONITORING
    assert selects(test["podSelector"], rendered.one("Pod"))
    _, server, trainers, out = policy["egress"]
    assert server["ports"] == [{"port": 6443, "protocol": "TCP"}]
    (expression,) = trainers["to"][0]["namespaceSelector"]["matchExpressions"]
    assert expression == {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]}
    assert out == OUT


def test_trainers(helm: Helm) -> None:
    network: Object = {"trainer": {"namespaces": ["b", "c"]}}
    rendered = helm.render({"watchNamespaces": ["a", "b"], "networkPolicy": network})
    found = policies(rendered)
    assert list(found) == [f"{NAMESPACE}/{FULLNAME}", *(f"{name}/{FULLNAME}-trainer" for name in ("a", "b", "c"))]
    policy = found[f"a/{FULLNAME}-trainer"]
    pod = trainer_pod()
    assert selects(policy["podSelector"], pod)
    assert policy["policyTypes"] == ["Ingress"]
    each_other, status = policy["ingress"]
    assert selects(each_other["from"][0]["podSelector"], pod)
    assert "ports" not in each_other, "processes meet on ports that nobody knows beforehand"
    assert status == {"ports": [{"port": "metrics", "protocol": "TCP"}]}
    assert ports_of(pod) == {"metrics": TRAINER_PORT}


def test_trainers_that_may_reach_little(helm: Helm) -> None:
    network: Object = {"metricsFrom": [MONITORING], "trainer": {"namespaces": ["a"], "egress": [OUT]}}
    rendered = helm.render({"networkPolicy": network})
    policy = policies(rendered)[f"a/{FULLNAME}-trainer"]
    monitoring, operator = policy["ingress"][1]["from"]
    assert monitoring == MONITORING
    assert selects(operator["podSelector"], rendered.pod())
    assert operator["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": NAMESPACE}
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    dns, each_other, out = policy["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert selects(each_other["to"][0]["podSelector"], trainer_pod())
    assert out == OUT


def test_none(helm: Helm) -> None:
    assert policies(helm.render({"watchNamespaces": ["a"], "networkPolicy": {"enabled": False}})) == {}


@pytest.mark.parametrize(
    ("values", "namespaces"), [({}, {"any": True}), ({"watchNamespaces": ["a"]}, {"matchNames": ["a"]})]
)
def test_who_is_scraped(helm: Helm, values: Object, namespaces: Any) -> None:
    monitor = {"enabled": True, "interval": "1m", "labels": {"release": "prometheus"}, "annotations": {"a": "b"}}
    rendered = helm.render({**values, "monitoring": {"podMonitor": monitor}})
    operator, trainer = rendered.of("PodMonitor")
    for each, pod in ((operator, rendered.pod()), (trainer, trainer_pod())):
        assert selects(each["spec"]["selector"], pod)
        (endpoint,) = each["spec"]["podMetricsEndpoints"]
        assert endpoint["port"] in ports_of(pod)
        assert endpoint["interval"] == "1m"
        assert each["metadata"]["labels"]["release"] == "prometheus"
        assert each["metadata"]["annotations"] == {"a": "b"}
    assert not selects(operator["spec"]["selector"], trainer_pod())
    assert not selects(trainer["spec"]["selector"], rendered.pod())
    assert "namespaceSelector" not in operator["spec"], "its own"
    assert trainer["spec"]["namespaceSelector"] == namespaces
    assert trainer["spec"]["podMetricsEndpoints"][0]["relabelings"] == [
        {"sourceLabels": [f"__meta_kubernetes_pod_label_{re.sub('[^a-z]', '_', label)}"], "targetLabel": name}
        for name, label in (("run", labels.RUN), ("attempt", labels.ATTEMPT))
    ]


def test_the_service_finds_the_operator_and_not_its_test(helm: Helm) -> None:
    rendered = helm.render()
    spec = rendered.one("Service")["spec"]
    assert selects({"matchLabels": spec["selector"]}, rendered.pod())
    assert not selects({"matchLabels": spec["selector"]}, rendered.one("Pod"))
    assert spec["ports"][0]["targetPort"] in ports_of(rendered.pod())
    budget = rendered.one("PodDisruptionBudget")["spec"]["selector"]
    assert selects(budget, rendered.pod())
    assert not selects(budget, rendered.one("Pod"))

"""What a release consists of, by its values."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from comd_api.crd import run_crd, schedule_crd
from comd_operator.planner.manifests import USER
from comd_operator.shell.options import Options, from_environment
from tests.chart.helm import FULLNAME, IMAGE, NAMESPACE, Helm, HelmError, Object, Rendered
from tests.chart.values_table import CHART

ROOT = CHART.parents[1]
CLUSTER_KINDS = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}
IN_TWO = {"watchNamespaces": ["team-a", "team-b"]}
ALL_MONITORING = {
    "monitoring": {
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboards": {"enabled": True},
    }
}


def test_by_default(helm: Helm) -> None:
    found = sorted((each["kind"], each["metadata"]["name"]) for each in helm.render().objects)
    assert found == [
        ("ClusterRole", FULLNAME),
        ("ClusterRole", f"{FULLNAME}-edit"),
        ("ClusterRole", f"{FULLNAME}-view"),
        ("ClusterRoleBinding", FULLNAME),
        ("CustomResourceDefinition", "distillationruns.comd.dev"),
        ("CustomResourceDefinition", "distillationschedules.comd.dev"),
        ("Deployment", FULLNAME),
        ("NetworkPolicy", FULLNAME),
        ("Pod", f"{FULLNAME}-test"),
        ("PodDisruptionBudget", FULLNAME),
        ("Role", f"{FULLNAME}-lease"),
        ("RoleBinding", f"{FULLNAME}-lease"),
        ("Service", FULLNAME),
        ("ServiceAccount", FULLNAME),
    ]


@pytest.mark.parametrize("values", [{}, IN_TWO, ALL_MONITORING], ids=["everywhere", "in two", "monitored"])
def test_every_object_is_labelled_and_has_its_place(helm: Helm, values: Object) -> None:
    rendered = helm.render({**values, "commonLabels": {"team": "vision"}})
    for each in rendered.objects:
        metadata = each["metadata"]
        assert metadata["labels"]["app.kubernetes.io/instance"] == "comd", metadata
        assert metadata["labels"]["app.kubernetes.io/part-of"] == "comd"
        assert metadata["labels"]["team"] == "vision"
        assert ("namespace" in metadata) == (each["kind"] not in CLUSTER_KINDS), metadata


def test_names_fit_whatever_the_release_is_called(helm: Helm) -> None:
    values = {**IN_TWO, **ALL_MONITORING}
    for release, changes in (("r" * 53, {}), ("comd", {"fullnameOverride": "f" * 60})):
        for each in helm.render({**values, **changes}, release=release).objects:
            assert len(each["metadata"]["name"]) <= 63, each["metadata"]["name"]
    assert helm.render(release="comd-operator").one("Deployment")["metadata"]["name"] == "comd-operator"
    assert helm.render({"nameOverride": "x"}).one("Deployment")["metadata"]["name"] == "comd-x"
    assert helm.render(release="comd.prod").one("Service")["metadata"]["name"] == "comd-prod-comd-operator"
    assert helm.render({"fullnameOverride": "x"}, release="1comd").one("Service")["metadata"]["name"] == "x"
    with pytest.raises(HelmError, match=r"1comd-comd-operator the name of a Service, which must begin with a letter"):
        helm.render(release="1comd")


def pods(rendered: Rendered) -> list[Object]:
    return [rendered.pod()["spec"], rendered.one("Pod")["spec"]]


@pytest.mark.parametrize("values", [{}, {"runAsUser": None, "runAsGroup": None}], ids=["by default", "without a user"])
def test_pods_are_restricted(helm: Helm, values: Object) -> None:
    """As pod-security.kubernetes.io/enforce: restricted asks for, and a read-only root file system."""
    for spec in pods(helm.render(values)):
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert (security.get("runAsUser"), security.get("runAsGroup")) == ((None, None) if values else (USER, USER))
        assert spec["enableServiceLinks"] is False
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        assert not {"hostNetwork", "hostPID", "hostIPC", "volumes"} & set(spec)


OPTIONS: Object = {
    "watchNamespaces": ["a", "b"],
    "defaults": {
        "trainerImage": "registry:5000/trainer:v1",
        "storage": {
            "uri": "s3://bucket/$(x)/$y",
            "endpoint": "http://s3:9000",
            "region": "eu-1",
            "secret": "s3",
            "s3": {"addressingStyle": "Path"},
        },
        "queue": "gpus",
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    },
    "workers": 3,
    "qps": 0.5,
    "burst": 2_000_000,
    "port": 9090,
    "leaseSeconds": 20,
    "resyncSeconds": 1_000_000,
    "progressSeconds": 60,
    "startPatienceSeconds": 0,
    "logFormat": "plain",
    "logLevel": "debug",
}
THE_PROCESS_S_OWN = {"address", "identity", "context"}


def test_options_are_what_values_say(helm: Helm) -> None:
    rendered = helm.render(OPTIONS)
    expected = Options(
        namespaces="a,b",
        trainer_image="registry:5000/trainer:v1",
        storage_uri="s3://bucket/$(x)/$y",
        storage_endpoint="http://s3:9000",
        storage_region="eu-1",
        storage_secret="s3",
        storage_s3='{"addressingStyle":"Path"}',
        queue="gpus",
        tolerations='[{"key":"nvidia.com/gpu","operator":"Exists"}]',
        workers=3,
        qps=0.5,
        burst=2_000_000,
        port=9090,
        lease_namespace=NAMESPACE,
        lease_name=FULLNAME,
        lease_seconds=20.0,
        resync_seconds=1_000_000.0,
        progress_seconds=60.0,
        start_patience_seconds=0.0,
        log_format="plain",
        log_level="debug",
    )
    assert from_environment(rendered.environment()) == expected
    same = {option.name for option in fields(Options) if getattr(expected, option.name) == option.default}
    assert same - {"leader_election"} == THE_PROCESS_S_OWN, "every other option has a value"
    container = rendered.pod()["spec"]["containers"][0]
    assert container["ports"] == [{"name": "metrics", "containerPort": 9090}]
    assert rendered.one("Service")["spec"]["ports"][0]["port"] == 9090
    test = rendered.one("Pod")["spec"]["containers"][0]
    assert test["env"] == container["env"]
    assert f"--url=http://{FULLNAME}.{NAMESPACE}:9090" in test["args"]


def test_defaults_are_the_operator_s_own(helm: Helm) -> None:
    expected = Options(lease_namespace=NAMESPACE, lease_name=FULLNAME, log_format="json")
    assert from_environment(helm.render().environment()) == expected


def test_what_is_given_to_the_pod(helm: Helm) -> None:
    given: Object = {
        "replicas": 3,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "commonLabels": {"team": "all", "area": "x"},
        "podLabels": {"team": "vision"},
        "podAnnotations": {"note": "x"},
        "imagePullSecrets": [{"name": "pull"}],
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {"x": 1}},
        "terminationGracePeriodSeconds": 7,
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy"}],
        "resources": {"limits": {"cpu": 1}},
        "livenessProbe": {"periodSeconds": 99},
    }
    rendered = helm.render(given)
    deployment, pod = rendered.one("Deployment"), rendered.pod()
    spec = pod["spec"]
    assert deployment["spec"]["replicas"] == 3
    assert deployment["spec"]["strategy"] == given["strategy"]
    assert pod["metadata"]["labels"]["team"] == "vision"
    assert pod["metadata"]["labels"]["area"] == "x"
    assert deployment["metadata"]["labels"]["team"] == "all"
    assert deployment["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert pod["metadata"]["annotations"]["note"] == "x"
    for name in ("imagePullSecrets", "priorityClassName", "tolerations", "affinity", "terminationGracePeriodSeconds"):
        assert spec[name] == given[name]
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux", "pool": "system"}
    container = spec["containers"][0]
    assert given["extraEnv"][0] in container["env"]
    assert container["resources"]["limits"]["cpu"] == 1
    assert container["livenessProbe"]["periodSeconds"] == 99
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}


@pytest.mark.parametrize(
    ("given", "found"), [({}, "operator"), ({"kubectl.kubernetes.io/default-container": "proxy"}, "proxy")]
)
def test_the_container_whose_log_is_shown(helm: Helm, given: dict[str, str], found: str) -> None:
    """Once: of a key that stands twice the API server takes the last, and other tools none."""
    rendered = helm.render({"podAnnotations": {"note": "x", **given}})
    assert rendered.pod()["metadata"]["annotations"] == {"kubectl.kubernetes.io/default-container": found, "note": "x"}
    assert rendered.text.count("kubectl.kubernetes.io/default-container") == 1


def test_replicas_are_spread(helm: Helm) -> None:
    (own,) = helm.render().pod()["spec"]["topologySpreadConstraints"]
    assert own["labelSelector"] == helm.render().one("Deployment")["spec"]["selector"]
    given = {**own, "labelSelector": {"matchLabels": {"a": "b"}}}
    assert helm.render({"topologySpreadConstraints": [given]}).pod()["spec"]["topologySpreadConstraints"] == [given]


@pytest.mark.parametrize(
    ("image", "found"),
    [
        ({}, "registry.example.com/comd/operator:{version}"),
        ({"tag": "x"}, "registry.example.com/comd/operator:x"),
        ({"tag": "x", "digest": f"sha256:{'0' * 64}"}, f"registry.example.com/comd/operator@sha256:{'0' * 64}"),
    ],
)
def test_the_image(helm: Helm, image: dict[str, str], found: str) -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    for spec in pods(helm.render({"image": {**IMAGE["image"], **image}})):
        assert spec["containers"][0]["image"] == found.format(version=version)


def test_without_an_image_it_is_said(helm: Helm) -> None:
    with pytest.raises(HelmError, match=r"image\.repository: it is not set"):
        helm.render({"image": {}})


@pytest.mark.parametrize(("replicas", "enabled", "made"), [(1, True, 0), (2, True, 1), (2, False, 0)])
def test_a_disruption_budget_is_for_several(helm: Helm, replicas: int, enabled: bool, made: int) -> None:
    budgets = helm.render({"replicas": replicas, "podDisruptionBudget": {"enabled": enabled}}).of("PodDisruptionBudget")
    assert [budget["spec"]["maxUnavailable"] for budget in budgets] == [1] * made


def test_the_custom_resources(helm: Helm) -> None:
    made = helm.render().of("CustomResourceDefinition")
    assert [each["metadata"]["annotations"] for each in made] == [{"helm.sh/resource-policy": "keep"}] * 2
    assert [each["spec"] for each in made] == [run_crd()["spec"], schedule_crd()["spec"]]
    unkept = helm.render({"crds": {"keep": False}}).of("CustomResourceDefinition")
    assert not any("annotations" in each["metadata"] for each in unkept)
    assert helm.render({"crds": {"enabled": False}}).of("CustomResourceDefinition") == []


def test_a_service_account_of_somebody_else_s(helm: Helm) -> None:
    for account, name in (({"create": False, "name": "own"}, "own"), ({"create": False}, "default")):
        rendered = helm.render({"serviceAccount": account})
        assert rendered.of("ServiceAccount") == []
        assert {spec["serviceAccountName"] for spec in pods(rendered)} == {name}
        assert rendered.one("ClusterRoleBinding")["subjects"][0]["name"] == name
    made = helm.render({"serviceAccount": {"name": "own", "annotations": {"a": "b"}}}).one("ServiceAccount")
    assert (made["metadata"]["name"], made["metadata"]["annotations"]) == ("own", {"a": "b"})


def rules_of(path: Path) -> dict[str, Any]:
    documents = list(yaml.safe_load_all(path.read_text()))
    return {each["kind"]: each["rules"] for each in documents if "rules" in each}


def test_rights_everywhere(helm: Helm) -> None:
    rendered, wanted = helm.render(), rules_of(ROOT / "operator" / "rbac.yaml")
    assert rendered.one("ClusterRole", FULLNAME)["rules"] == wanted["ClusterRole"]
    assert rendered.one("Role")["rules"] == wanted["Role"]
    subject = [{"kind": "ServiceAccount", "name": FULLNAME, "namespace": NAMESPACE}]
    for kind, role in (("ClusterRoleBinding", "ClusterRole"), ("RoleBinding", "Role")):
        binding = rendered.one(kind)
        assert binding["subjects"] == subject
        assert binding["roleRef"] == {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": role,
            "name": binding["metadata"]["name"],
        }


def test_rights_in_two_namespaces(helm: Helm) -> None:
    rendered, wanted = helm.render(IN_TWO), rules_of(ROOT / "operator" / "rbac.yaml")
    assert not {each["kind"] for each in rendered.objects} & CLUSTER_KINDS
    found = {(role["metadata"]["namespace"], role["metadata"]["name"]): role["rules"] for role in rendered.of("Role")}
    assert found == {
        ("team-a", FULLNAME): wanted["ClusterRole"],
        ("team-b", FULLNAME): wanted["ClusterRole"],
        (NAMESPACE, f"{FULLNAME}-lease"): wanted["Role"],
    }
    bound = {(each["metadata"]["namespace"], each["roleRef"]["name"]) for each in rendered.of("RoleBinding")}
    assert bound == set(found)
    assert {each["roleRef"]["kind"] for each in rendered.of("RoleBinding")} == {"Role"}
    assert {each["subjects"][0]["namespace"] for each in rendered.of("RoleBinding")} == {NAMESPACE}


def test_in_its_own_namespace_alone(helm: Helm) -> None:
    roles = helm.render({"watchNamespaces": [NAMESPACE]}).of("Role")
    assert sorted(role["metadata"]["name"] for role in roles) == [FULLNAME, f"{FULLNAME}-lease"]


def test_rights_without_kueue_and_without_any(helm: Helm) -> None:
    wanted = rules_of(ROOT / "operator" / "rbac.yaml")["ClusterRole"]
    rules = helm.render({"kueue": {"enabled": False}}).one("ClusterRole", FULLNAME)["rules"]
    assert [rule for rule in wanted if rule not in rules] == [
        {"apiGroups": ["kueue.x-k8s.io"], "resources": ["workloads"], "verbs": ["list"]}
    ]
    kinds = {each["kind"] for each in helm.render({"rbac": {"create": False}}).objects}
    assert not kinds & {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}


def test_people_s_rights_to_runs(helm: Helm) -> None:
    view, edit = (helm.render().one("ClusterRole", f"{FULLNAME}-{name}") for name in ("view", "edit"))
    aggregate = "rbac.authorization.k8s.io/aggregate-to-"
    assert {label for label in view["metadata"]["labels"] if label.startswith(aggregate)} == {
        f"{aggregate}{name}" for name in ("view", "edit", "admin")
    }
    assert f"{aggregate}view" not in edit["metadata"]["labels"]
    assert not {"create", "update", "patch", "delete"} & set(view["rules"][0]["verbs"])
    assert not [name for name in edit["rules"][0]["resources"] if name.endswith("/status")], "the operator's alone"
    assert {"distillationruns", "distillationschedules"} <= set(edit["rules"][0]["resources"])
    assert len(helm.render({"rbac": {"aggregate": False}}).of("ClusterRole")) == 1


@pytest.mark.parametrize(
    ("values", "words", "not_words"),
    [
        ({}, ["all namespaces", "helm test comd -n comd-system", "Every run must set spec.trainer.image"], ["uninstalling"]),
        (IN_TWO, ["team-a, team-b", "kubectl get crd", "kubectl -n team-a apply"], []),
        ({"defaults": {"trainerImage": "x", "storage": {"uri": "s3://bucket", "secret": "s3"}}}, ["secret generic s3"], ["must set"]),
        ({"crds": {"keep": False}}, ["deletes every run"], []),
        (
            {"replicas": 0},
            ["replicas is 0: nothing works in all namespaces", "--set replicas=2"],
            ["The comd operator", "helm test", "rollout status"],
        ),
        ({"monitoring": {"prometheusRule": {"enabled": True}}}, ["set monitoring.prometheusRule.runbookUrl"], []),
        (
            {"monitoring": {"prometheusRule": {"enabled": True, "runbookUrl": "https://wiki.example.com/comd"}}},
            [],
            ["runbookUrl"],
        ),
    ],
)  # fmt: skip
def test_notes(helm: Helm, values: Object, words: list[str], not_words: list[str]) -> None:
    text = helm.notes(values)
    assert [word for word in words if word not in text] == []
    assert [word for word in not_words if word in text] == []

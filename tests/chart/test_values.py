"""Values: each has a comment, a place in the schema and a row in the README; what can't be is refused by its name."""

import json
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from pydantic.alias_generators import to_camel

from comd_api.base import NAME_FORM, REGION_FORM, STORE_FORM, URL_FORM
from comd_api.crd import structural_schema
from comd_api.pods import IMAGE_FORM, LABEL_KEY_FORM, QUANTITY_FORM, SUBDOMAIN_FORM
from comd_api.run import S3Options
from comd_operator.shell.options import _KNOWN, _LEAST
from comd_operator.shell.s3_options import ELSEWHERE
from tests.chart import values_table
from tests.chart.helm import Helm, HelmError, Object
from tests.chart.values_table import CHART

SCHEMA: Object = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
VALUES: Object = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))


def test_versions_are_the_project_s() -> None:
    project = tomllib.loads((CHART.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["apiVersion"] == "v2"
    assert (chart["version"], chart["appVersion"]) == (project["version"], project["version"])


def test_the_readme_has_all_of_them_with_their_comments() -> None:
    text = values_table.README.read_text(encoding="utf-8")
    assert text == values_table.with_table(text), "run `python -m tests.chart.values_table`"


def target(node: Object) -> Object:
    if "$ref" not in node:
        return node
    found: Object = SCHEMA["definitions"][node["$ref"].rpartition("/")[2]]
    return found


def walk(values: Any, schema: Object, path: str = "") -> Iterator[tuple[str, Object]]:
    """Values that have fields, and their schemas."""
    schema = target(schema)
    if isinstance(values, dict) and "properties" in schema:
        yield path, schema
        for name, value in values.items():
            yield from walk(value, schema["properties"].get(name, {}), f"{path}.{name}")


def test_the_schema_knows_every_value_and_no_other() -> None:
    given = dict(walk(VALUES, SCHEMA))
    assert set(SCHEMA["properties"]) == {*VALUES, "global"}
    for path, schema in given.items():
        names, known = set(values_at(path)), set(schema["properties"])
        may_be_left_out = path.strip(".") in (
            "",
            "defaults.storage.s3",
            "strategy",
            "resources",
            "livenessProbe",
            "readinessProbe",
            "affinity",
        )
        assert names <= known if may_be_left_out else names == known, path


def values_at(path: str) -> Object:
    found = VALUES
    for name in filter(None, path.split(".")):
        found = found[name]
    return found


def objects_of(node: Any, path: str = "") -> Iterator[tuple[str, Object]]:
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield path, node
        for name, inner in node.items():
            yield from objects_of(inner, f"{path}/{name}")


def test_the_schema_is_closed_everywhere() -> None:
    assert [path for path, node in objects_of(SCHEMA) if "additionalProperties" not in node] == [
        "/properties/global",
        "/definitions/kubernetes",
    ]


def test_forms_are_the_contract_s() -> None:
    def form(path: str) -> str:
        node = SCHEMA
        for name in path.split("."):
            node = target(node)["properties"][name]
        return str(target(node)["pattern"]).removeprefix("^$|")

    assert form("defaults.trainerImage") == IMAGE_FORM
    assert form("defaults.storage.uri") == STORE_FORM
    assert form("defaults.storage.endpoint") == URL_FORM
    assert form("defaults.storage.region") == REGION_FORM
    assert form("defaults.storage.secret") == form("serviceAccount.name") == SUBDOMAIN_FORM
    assert form("defaults.queue") == SCHEMA["definitions"]["name"]["pattern"] == NAME_FORM
    assert list(SCHEMA["definitions"]["labels"]["patternProperties"]) == [LABEL_KEY_FORM]
    (amount,) = SCHEMA["definitions"]["amounts"]["patternProperties"].values()
    assert amount["anyOf"][0]["pattern"] == QUANTITY_FORM


def test_further_fields_of_the_bucket_are_the_contract_s() -> None:
    """All but those that are values of their own."""
    ours = structural_schema(S3Options)["properties"]
    fields = SCHEMA["properties"]["defaults"]["properties"]["storage"]["properties"]["s3"]["properties"]
    assert fields.keys() == ours.keys() - ELSEWHERE.keys()
    for name, field in fields.items():
        assert {key: field.get(key) for key in ("enum", "pattern")} == {
            key: ours[name].get(key) for key in ("enum", "pattern")
        }
    bundle, reference = ours["caBundle"]["properties"], target(fields["caBundle"]["properties"]["secretKeyRef"])
    assert bundle.keys() == fields["caBundle"]["properties"].keys()
    assert reference["required"] == bundle["secretKeyRef"]["required"]
    assert {name: part["pattern"] for name, part in reference["properties"].items()} == {
        name: part["pattern"] for name, part in bundle["secretKeyRef"]["properties"].items()
    }


def test_bounds_are_the_operator_s() -> None:
    properties = SCHEMA["properties"]
    assert {name: properties[to_camel(name)]["minimum"] for name in _LEAST} == {
        **_LEAST,
        "port": 1024,  # whoever is not root may not open a lower one, and none would leave probes without an answer
    }
    assert properties["logLevel"]["enum"] == list(_KNOWN["log_level"])
    assert properties["logFormat"]["enum"] == list(_KNOWN["log_format"])


WRONG: list[tuple[Object, str]] = [
    ({"replica": 2}, "'replica' not allowed"),
    ({"fullnameOverride": "1comd"}, "fullnameOverride"),
    (
        {"extraEnv": [{"name": "COMD_OPERATOR_PORT", "value": "9999"}]},
        "extraEnv: COMD_OPERATOR_PORT is set by a value of the chart's own",
    ),
    # A blank in a file, or `--set x=null`, takes a value away.
    ({"port": None}, "missing property 'port'"),
    ({"watchNamespaces": None}, "missing property 'watchNamespaces'"),
    ({"networkPolicy": None}, "missing property 'networkPolicy'"),
    ({"networkPolicy": {"apiServerPorts": None}}, "missing property 'apiServerPorts'"),
    ({"networkPolicy": {"trainer": {"namespaces": None}}}, "missing property 'namespaces'"),
    ({"defaults": {"storage": {"s3": None}}}, "missing property 's3'"),
    ({"livenessProbe": None}, "missing property 'livenessProbe'"),
    (
        {"commonLabels": {"app.kubernetes.io/name": "x"}},
        "commonLabels: app.kubernetes.io/name: x is the chart's own label",
    ),
    ({"podLabels": {"app.kubernetes.io/name": "x"}}, "podLabels: app.kubernetes.io/name: x is the chart's own label"),
    ({"service": {"labels": {"helm.sh/chart": "x"}}}, "service.labels: helm.sh/chart: x is the chart's own label"),
    *(
        (
            {"monitoring": {name: {"enabled": True, "labels": {"app.kubernetes.io/part-of": "x"}}}},
            f"monitoring.{name}.labels: app.kubernetes.io/part-of: x is the chart's own label",
        )
        for name in ("podMonitor", "prometheusRule", "dashboards")
    ),
    ({"replicas": "two"}, "/replicas"),
    ({"replicas": -1}, "/replicas"),
    ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy"),
    ({"image": {"repository": "x y"}}, "/image/repository"),
    ({"image": {"repository": "registry.example.com/comd/operator:0.1.0"}}, "/image/repository"),
    ({"image": {"repository": f"registry.example.com/comd/operator@sha256:{'0' * 64}"}}, "/image/repository"),
    ({"image": {"repository": "https://registry.example.com/comd/operator"}}, "/image/repository"),
    ({"image": {"repository": "registry.example.com/comd/Operator"}}, "/image/repository"),
    ({"image": {"digest": "0123"}}, "/image/digest"),
    ({"image": {"name": "x"}}, "'name' not allowed"),
    ({"imagePullSecrets": ["pull"]}, "/imagePullSecrets/0"),
    ({"watchNamespaces": "team-a"}, "/watchNamespaces"),
    ({"watchNamespaces": ["Team"]}, "/watchNamespaces/0"),
    ({"watchNamespaces": ["a", "a"]}, "/watchNamespaces"),
    ({"defaults": {"storage": {"uri": "bucket/runs"}}}, "/defaults/storage/uri"),
    *(
        ({"defaults": {"storage": {"uri": uri}}}, "/defaults/storage/uri")
        for uri in ("s3://a.", "s3://ab", "s3://bucket-/runs", f"s3://{'a' * 64}/runs", "s3://.bucket", "s3://Bucket")
    ),
    *(
        ({"defaults": {"storage": {"secret": secret}}}, "/defaults/storage/secret")
        for secret in ("a..b", "a.-b", "a-.b", "a.", "Keys")
    ),
    *(
        ({"defaults": {"trainerImage": image}}, "/defaults/trainerImage")
        for image in (
            "registry.example.com/comd/Trainer:1",
            "registry.example.com//comd/trainer",
            "comd/trainer:",
            "comd/trainer:1:2",
            "comd/trainer@sha256:0123",
            "comd/trainer/",
            "https://registry.example.com/comd/trainer",
        )
    ),
    *(
        ({"networkPolicy": {"metricsFrom": [{"ipBlock": {"cidr": cidr}}]}}, "/networkPolicy/metricsFrom/0/ipBlock/cidr")
        for cidr in ("foo", "10.0.0.0", "10.0.0.0/33", "10.0.0.256/8", "fd00::/129", "10.0.0.0/8 ", "fd00/8")
    ),
    (
        {"networkPolicy": {"extraEgress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.1"]}}]}]}},
        "/networkPolicy/extraEgress/0/to/0/ipBlock/except/0",
    ),
    ({"defaults": {"storage": {"endpoint": "s3:9000"}}}, "/defaults/storage/endpoint"),
    ({"defaults": {"storage": {"bucket": "x"}}}, "'bucket' not allowed"),
    ({"defaults": {"storage": {"s3": {"addressingStyle": "path"}}}}, "/defaults/storage/s3/addressingStyle"),
    ({"defaults": {"storage": {"s3": {"region": "eu-1"}}}}, "'region' not allowed"),
    ({"defaults": {"storage": {"s3": {"caBundle": {"secretKeyRef": {"name": "x"}}}}}}, "/defaults/storage/s3/caBundle"),
    ({"defaults": {"trainerImage": "x y"}}, "/defaults/trainerImage"),
    ({"defaults": {"queue": "My Queue"}}, "/defaults/queue"),
    ({"defaults": {"tolerations": [{"effct": "NoSchedule"}]}}, "'effct' not allowed"),
    ({"defaults": {"tolerations": [{"effect": "Never"}]}}, "/defaults/tolerations/0/effect"),
    ({"workers": 0}, "/workers"),
    ({"qps": "fast"}, "/qps"),
    ({"leaseSeconds": 1}, "/leaseSeconds"),
    ({"port": 80}, "/port"),
    ({"logLevel": "loud"}, "/logLevel"),
    ({"runAsUser": 0}, "/runAsUser"),
    ({"resources": {"limit": {}}}, "'limit' not allowed"),
    ({"resources": {"limits": {"memory": "512 MB"}}}, "/resources/limits/memory"),
    ({"podLabels": {"a": True}}, "/podLabels/a"),
    ({"podAnnotations": {"a b": "x"}}, "at '/podAnnotations': additional properties 'a b' not allowed"),
    ({"strategy": {"type": "Recreat"}}, "/strategy/type"),
    ({"affinity": {"nodeAffinty": {}}}, "'nodeAffinty' not allowed"),
    ({"topologySpreadConstraints": [{"maxSkew": 1}]}, "/topologySpreadConstraints/0"),
    ({"extraEnv": {"A": "b"}}, "/extraEnv"),
    ({"extraEnv": [{"name": "A", "value": 3}]}, "/extraEnv/0/value"),
    ({"livenessProbe": {"period": 3}}, "'period' not allowed"),
    ({"crds": {"kept": True}}, "'kept' not allowed"),
    ({"crds": {"keep": "yes"}}, "/crds/keep"),
    ({"networkPolicy": {"metricsFrom": [{"podSelectr": {}}]}}, "'podSelectr' not allowed"),
    ({"networkPolicy": {"apiServerPorts": []}}, "/networkPolicy/apiServerPorts"),
    ({"networkPolicy": {"trainer": {"egress": [{"form": []}]}}}, "'form' not allowed"),
    ({"monitoring": {"podMonitor": {"interval": "30 s"}}}, "/monitoring/podMonitor/interval"),
    ({"monitoring": {"serviceMonitor": {"enabled": True}}}, "'serviceMonitor' not allowed"),
]


@pytest.mark.parametrize(("values", "says"), WRONG, ids=[json.dumps(values) for values, _ in WRONG])
def test_a_wrong_value_is_refused_by_its_name(helm: Helm, values: Object, says: str) -> None:
    with pytest.raises(HelmError) as caught:
        helm.render(values)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "repository",
    ["comd", "comd/operator", "localhost/comd-operator", "registry:5000/team__a/comd.operator", "10.0.0.1:5000/a--b/c"],
)
def test_any_repository_is_taken(helm: Helm, repository: str) -> None:
    (container,) = helm.render({"image": {"repository": repository, "tag": "1"}}).one("Deployment")["spec"]["template"][
        "spec"
    ]["containers"]
    assert container["image"] == f"{repository}:1"


@pytest.mark.parametrize(
    "values",
    [
        *(
            {"defaults": {"trainerImage": image}}
            for image in (
                "trainer",
                "registry:5000/comd/trainer:v1.0_rc",
                f"10.0.0.1:5000/a--b/c__d.e@sha256:{'0' * 64}",
                f"comd/trainer:1@sha512:{'a' * 128}",
                "Registry.Example.com/comd/trainer:1",
            )
        ),
        *(
            {"defaults": {"storage": {"uri": uri}}}
            for uri in ("s3://abc", "s3://my.bucket/runs/", f"s3://{'a' * 63}", "file:///store")
        ),
        *({"defaults": {"storage": {"secret": secret}}} for secret in ("a", "a.b", "s3-keys.team-a")),
        *(
            {"networkPolicy": {"metricsFrom": [{"ipBlock": {"cidr": cidr, "except": [cidr]}}]}}
            for cidr in ("0.0.0.0/0", "10.0.0.255/32", "192.168.1.0/24", "::/0", "fd00:1::/128", "::ffff:10.0.0.0/104")
        ),
    ],
    ids=json.dumps,
)
def test_any_right_form_is_taken(helm: Helm, values: Object) -> None:
    assert helm.render(values).one("Deployment")


def test_as_a_part_of_another_chart(helm: Helm) -> None:
    """Helm hands `global` to every chart that is a part of another."""
    assert helm.render({"global": {"anything": 1}}).one("Deployment")

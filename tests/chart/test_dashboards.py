"""Dashboards: whole as Grafana reads them, found by its sidecar, and asking for what is exported."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.chart import dashboards, exported
from tests.chart.helm import FULLNAME, NAMESPACE, Helm, Object
from tests.chart.values_table import CHART

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
UNITS = {"none", "s", "ops", "reqps", "bytes", "Bps", "percentunit", "sci", "flops"}
"""Of Grafana's, those that are meant here."""
JOBS = {"fleet": exported.OPERATOR, "run": exported.TRAINER}
"""Whose series a dashboard asks for."""
WIDTH = 24
"""Columns of Grafana's grid."""


@pytest.fixture(params=sorted(JOBS))
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def test_there_are_no_others() -> None:
    assert {path.stem for path in (CHART / "files" / "dashboards").iterdir()} == JOBS.keys()


def test_the_sidecar_finds_them(helm: Helm, name: str) -> None:
    assert helm.render().of("ConfigMap") == []
    made = helm.render({"monitoring": {"dashboards": {"enabled": True}}})
    found = made.one("ConfigMap", f"{FULLNAME}-{name}")
    assert found["metadata"]["namespace"] == NAMESPACE
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["annotations"] == {"grafana_folder": "comd"}
    (key,) = found["data"]
    assert key == f"comd-{name}.json"
    assert json.loads(found["data"][key]) == dashboards.load(name)
    own = {
        "labels": {"grafana_dashboard": None, "find": "me"},
        "annotations": {"grafana_folder": None, "k8s-sidecar-target-directory": "x"},
    }
    changed = helm.render({"monitoring": {"dashboards": {"enabled": True, **own}}}).one(
        "ConfigMap", f"{FULLNAME}-{name}"
    )
    assert changed["metadata"]["labels"]["find"] == "me"
    assert "grafana_dashboard" not in changed["metadata"]["labels"]
    assert changed["metadata"]["annotations"] == {"k8s-sidecar-target-directory": "x"}


def test_they_are_whole(name: str) -> None:
    board = dashboards.load(name)
    assert board["uid"] == f"comd-{name}"
    assert board["title"].startswith("comd: ")
    assert board["schemaVersion"] >= 36
    assert "id" not in board, "which Grafana gives"
    for panel in board["panels"]:
        assert panel["type"] in ("stat", "timeseries")
        assert panel["datasource"] == DATASOURCE
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert [target["refId"] for target in panel["targets"]] == list("ABCDE")[: len(panel["targets"])]
        assert all(target["legendFormat"] for target in panel["targets"])
    assert len({panel["title"] for panel in board["panels"]}) == len(board["panels"])
    assert [panel["id"] for panel in board["panels"]] == list(range(1, len(board["panels"]) + 1))


def test_panels_lie_side_by_side_and_on_no_other(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboards.load(name)["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= WIDTH
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_their_variables_are_there_and_used(name: str) -> None:
    board = dashboards.load(name)
    variables = board["templating"]["list"]
    assert variables[0]["name"] == "datasource"
    assert all(variable["datasource"] == DATASOURCE for variable in variables[1:])
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board))) - {"__rate_interval"}
    assert used == {variable["name"] for variable in variables}
    series = exported.series()[JOBS[name]]
    for variable in variables[1:]:
        asked, label = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
        assert label in series[asked]


def test_they_ask_for_what_is_exported(name: str) -> None:
    series = exported.series()[JOBS[name]] | dashboards.STANDARD
    chosen = {"fleet": {"job"}, "run": {"namespace", "run"}}[name]
    for query in dashboards.queries(name):
        for asked, matchers in exported.selected(query.text):
            assert asked in series, f"{query.panel}: nobody exports {asked}"
            assert chosen <= set(matchers), f"{query.panel} asks for all there is"
            assert set(matchers) | exported.grouped(query.text) <= series[asked] | exported.SCRAPED[JOBS[name]], (
                query.panel
            )
        told = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
        assert told <= exported.grouped(query.text), query.panel


def test_every_metric_is_shown(name: str) -> None:
    """What nobody looks at need not be exported."""
    shown = {asked for query in dashboards.queries(name) for asked, _ in exported.selected(query.text)}
    known = set(exported.series()[JOBS[name]])
    unseen = {each for each in known if not each.endswith(("_bucket", "_sum", "_count"))} - shown
    assert unseen == {"fleet": set(), "run": {"comd_trainer_build_info"}}[name]


def test_they_can_be_read_by_prometheus(promtool: Path, tmp_path: Path, name: str) -> None:
    rules: list[dict[str, Any]] = [
        {"record": f"query:{number}", "expr": dashboards.filled(query.text)}
        for number, query in enumerate(dashboards.queries(name))
    ]
    (tmp_path / "rules.json").write_text(json.dumps({"groups": [{"name": name, "rules": rules}]}))
    done = subprocess.run(
        [str(promtool), "check", "rules", "rules.json"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout + done.stderr


def test_a_broken_query_would_be_seen(promtool: Path, tmp_path: Path) -> None:
    broken: Object = {"groups": [{"name": "x", "rules": [{"record": "x", "expr": "sum by (a) (b"}]}]}
    (tmp_path / "rules.json").write_text(json.dumps(broken))
    assert subprocess.run(
        [str(promtool), "check", "rules", "rules.json"], cwd=tmp_path, capture_output=True, check=False
    ).returncode

"""A real Prometheus scrapes a real run: all that dashboards and alerts ask for is there. With COMD_PICTURE the answers are written to
that file (`make dashboards`)."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests import metrics_table
from tests.chart import dashboards, exported
from tests.chart.helm import Helm
from tests.cluster.layout import CONTROL_IP
from tests.e2e.service import serving
from tests.nodes import monitoring, picture
from tests.nodes.monitoring import Prometheus
from tests.nodes.site import Run, Site
from tests.nodes.world import one_round

NO_GPU = "no GPU, whose peak or memory could be told"
WITHOUT = {"MFU": NO_GPU, "Device memory": NO_GPU, "Lateness of slots": "no schedule, whose slots could be late"}
"""Panels that can't have data here."""
SELDOM = {
    "Watches begun anew": "no watch was begun anew",
    "Candidates": "the stage ended before a scrape that saw them",
    "Scores": "the stage ended before a scrape that saw them",
}
"""Those that may have none."""
NOT_HERE = {
    "comd_peak_flops_per_second",
    "comd_device_memory_bytes",
    "comd_device_memory_peak_bytes",
    "comd_device_memory_size_bytes",
}
SELDOM_HERE = {
    "comd_operator_watch_restarts_total",
    "comd_operator_queue_retries_total",
    "comd_candidates_total",
    "comd_score",
}


def talkative(url: str) -> dict[str, Any]:
    """A run that asks everybody for everything: a busy teacher, a moody judge, a writer, all behind an endpoint."""

    def endpoint(model: str, **more: int) -> dict[str, Any]:
        return {"endpoint": {"url": url, "model": model, **more}}

    return one_round(
        student={
            "composed": {
                "visionTower": {"source": "inputs/models/vision-tower"},
                "projector": {"type": "MLP"},
                "languageModel": {"source": "inputs/models/language-model"},
            }
        },
        teacher=endpoint("busy-teacher", concurrency=2),  # so that phases in which it is asked last for some scrapes
        assessor={"type": "Judge", "model": endpoint("moody-judge")},
        augmentor={"type": "Chat", "model": endpoint("writer"), "chat": {"maxAttemptsFactor": 20}},
        pretraining={"batchSize": 4, "maxSteps": 6, "learningRate": 0.001},
        data__pretraining="inputs/pairs.jsonl",
        data__evaluation=[{"name": "held-out", "items": "inputs/eval.jsonl"}],
        rounds__count=2,
        rounds__assessment={"sampleSize": 10, "freshItems": 4},
        rounds__augmentation={"hardItems": 6, "easyItems": 4},
        training__maxSteps=60,
        training__checkpointSteps=20,
    )


@pytest.mark.timeout(1800)
def test_a_real_prometheus_has_all_that_is_asked_for(
    site: Site, monitoring_tools: tuple[Path, Helm], tmp_path: Path
) -> None:
    program, helm = monitoring_tools
    jobs = {"operatorJob": monitoring.OPERATOR, "trainerJob": monitoring.TRAINER}
    alerts = helm.render({"monitoring": {"prometheusRule": {"enabled": True, **jobs}}}).one("PrometheusRule")["spec"]
    with (
        serving(CONTROL_IP) as url,
        monitoring.prometheus(program, site.cluster, tmp_path, alerts=alerts) as prometheus,
    ):
        run = site.apply(talkative(url), site.namespace("metrics"))
        run.until_phase("Succeeded")
        answers_are_there(prometheus, run)
        alerts_are_computed(prometheus)
        names_are_those_of_the_page(prometheus)
        status_has_what_a_scrape_saw(prometheus, run)


def answers_are_there(prometheus: Prometheus, run: Run) -> None:
    """To every query of both dashboards."""
    variables = {"operator": monitoring.OPERATOR, "namespace": run.namespace, "run": run.name}
    answers = {
        name: [prometheus.answer(query, **variables) for query in dashboards.queries(name)] for name in dashboards.NAMES
    }
    found = [answer for given in answers.values() for answer in given]
    empty = {answer.query.panel for answer in found if not answer.series}
    assert empty - SELDOM.keys() == WITHOUT.keys()
    if "COMD_PICTURE" in os.environ:
        text = picture.page(answers, without=WITHOUT | SELDOM)
        Path(os.environ["COMD_PICTURE"]).write_text(text, encoding="utf-8")


def alerts_are_computed(prometheus: Prometheus) -> None:
    rules = prometheus.rules()
    assert len(rules) >= 11
    for rule in rules:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule
        for name, matchers in exported.selected(rule["query"]):
            found = prometheus.over_time(f'{name}{{job="{matchers["job"]}"}}')
            assert found, f"{rule['name']}: there was never any {name}"
    assert {rule["name"] for rule in rules if rule["state"] == "firing"} <= {"ComdRunsStalled", "ComdRetriesBurning"}, (
        "what scenes beside this one may bring about"
    )


def names_are_those_of_the_page(prometheus: Prometheus) -> None:
    """Both ways: docs/metrics.md lists what was scraped, and what it lists was scraped."""
    known = metrics_table.series_of([*metrics_table.trainer_rows(), *metrics_table.operator_rows()])
    page = metrics_table.PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE)) == {
        row.name for row in (*metrics_table.trainer_rows(), *metrics_table.operator_rows())
    }
    scraped = prometheus.names()
    assert scraped <= known.keys()
    assert known.keys() - scraped - SELDOM_HERE == NOT_HERE


def status_has_what_a_scrape_saw(prometheus: Prometheus, run: Run) -> None:
    """The same numbers, where a scrape came in time: of a round's items it did, for phases follow that take longer than one."""
    own = f'namespace="{run.namespace}", run="{run.name}"'
    counts = run.stage("round-1")["counts"]
    for kind in ("hard", "easy", "dropped", "compared"):
        found = prometheus.over_time(f'max(comd_round_items{{{own}, stage="round-1", kind="{kind}"}})')
        assert found == [({}, float(counts[kind]))], kind
    ((_, steps),) = prometheus.over_time(f'sum(comd_steps_total{{{own}, stage="round-1"}})')
    assert steps == 60
    candidates = prometheus.over_time(f'sum(comd_candidates_total{{{own}, stage="round-1", result="rejected"}})')
    assert all(0 < rejected <= counts["rejected"] for _, rejected in candidates), "the stage may end before a scrape"
    scores = {(score["role"], score["value"]) for stage in run.status()["stages"] for score in stage.get("scores", [])}
    seen = prometheus.over_time(f"comd_score{{{own}}}")
    assert {(labels["role"], value) for labels, value in seen} <= scores

"""What is scraped: names that dashboards and alerts rely on, numbers that are counted at the moment, and no label without bounds."""

import re

import pytest
from botocore.exceptions import EndpointConnectionError
from prometheus_client import generate_latest

from comd_api.exit_codes import TryAgainError
from comd_api.status import RunStatus, StageStatus
from comd_operator.runtime.measures import measure
from comd_operator.runtime.metrics import Metrics
from comd_trainer.store.s3_errors import explain_s3
from comd_trainer.store.stores import STORAGE_FIELD


def scrape(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def test_the_names() -> None:
    metrics = Metrics()
    metrics.count_runs(list)
    metrics.watch_ages(dict)
    names = set(re.findall(r"^# TYPE (\S+)", scrape(metrics), flags=re.MULTILINE))
    assert {name for name in names if name.startswith("comd_")} == {
        "comd_operator_api_rate_limit_wait_seconds",
        "comd_operator_api_request_duration_seconds",
        "comd_operator_api_requests_total",
        "comd_operator_build_info",
        "comd_operator_events_total",
        "comd_operator_leader",
        "comd_operator_queue_adds_total",
        "comd_operator_queue_depth",
        "comd_operator_queue_latency_seconds",
        "comd_operator_queue_longest_running_seconds",
        "comd_operator_queue_retries_total",
        "comd_operator_reconcile_duration_seconds",
        "comd_operator_reconciles_total",
        "comd_operator_watch_age_seconds",
        "comd_operator_watch_restarts_total",
        "comd_runs",
        "comd_schedule_lateness_seconds",
        "comd_schedule_slots_total",
        "comd_stage_duration_seconds",
        "comd_stage_queue_wait_seconds",
        "comd_stage_retries_total",
    }
    assert "process_resident_memory_bytes" in names


def test_runs_and_watches_are_looked_at_when_somebody_asks() -> None:
    metrics = Metrics()
    phases, ages = ["Running", "Running", "Failed"], {"jobs": 3.5}
    metrics.count_runs(lambda: phases)
    metrics.watch_ages(lambda: ages)
    text = scrape(metrics)
    assert 'comd_runs{phase="Running"} 2.0' in text
    assert 'comd_runs{phase="Queued"} 0.0' in text, "also what there is none of"
    assert 'comd_operator_watch_age_seconds{resource="jobs"} 3.5' in text
    phases.clear()
    ages["jobs"] = 4.5
    text = scrape(metrics)
    assert 'comd_runs{phase="Running"} 0.0' in text
    assert 'comd_operator_watch_age_seconds{resource="jobs"} 4.5' in text


def test_what_is_rare_is_told_before_it_happens() -> None:
    """A counter whose first value is 1 has no increase in Prometheus."""
    text = scrape(Metrics())
    for stage in ("preflight", "pretrain", "round"):
        assert f'comd_stage_duration_seconds_count{{result="Failed",stage="{stage}"}} 0.0' in text
        assert f'comd_stage_queue_wait_seconds_count{{stage="{stage}"}} 0.0' in text
        assert f'comd_stage_retries_total{{cause="other",exit_class="OutOfMemory",stage="{stage}"}} 0.0' in text
        assert f'comd_stage_retries_total{{cause="store",exit_class="TryAgain",stage="{stage}"}} 0.0' in text
    assert 'exit_class="Done"' not in text


def test_two_in_one_process_do_not_meet() -> None:
    one, two = Metrics(), Metrics()
    one.leader.set(1)
    assert "comd_operator_leader 1.0" in scrape(one)
    assert "comd_operator_leader 0.0" in scrape(two)


def test_no_label_grows_with_the_runs() -> None:
    labels = {label for value in vars(Metrics()).values() for label in getattr(value, "_labelnames", ())}
    assert labels == {"result", "verb", "resource", "code", "reason", "version", "stage", "exit_class", "cause"}


def store_is_away() -> str:
    """As a trainer says it."""
    error = explain_s3(EndpointConnectionError(endpoint_url="https://s3"), uri="s3://bucket/runs", field=STORAGE_FIELD)
    assert isinstance(error, TryAgainError)
    return str(error)


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (store_is_away(), "store"),
        (f"2 problems: (1) spec.student: x is missing; (2) {store_is_away()}", "store"),
        ("spec.teacher.endpoint: no answer for 900 s", "other"),
        ("the pod was evicted", "other"),
        (None, "other"),
    ],
)
def test_attempts_that_end_because_of_the_store_are_told_apart(message: str | None, cause: str) -> None:
    """The pod's own counter is gone with the pod, mostly before it was scraped."""
    metrics = Metrics()
    runs = StageStatus(name="round-1", phase="Running", attempt=1)
    ended = runs.replace(phase="Retrying", exit_class="TryAgain", message=message)
    measure(metrics, RunStatus(stages=[runs]), RunStatus(stages=[ended]))
    for each in ("store", "other"):
        told = f'comd_stage_retries_total{{cause="{each}",exit_class="TryAgain",stage="round"}} {float(each == cause)}'
        assert told in scrape(metrics)

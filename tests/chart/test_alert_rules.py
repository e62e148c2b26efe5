"""Each alert as Prometheus itself computes it (`promtool test rules`): when it comes, what it says, and when it keeps silent."""

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.exported import OPERATOR, TRAINER
from tests.chart.helm import Helm, Object

RULES: Object = {"monitoring": {"prometheusRule": {"enabled": True}}}
RUN = {"namespace": "team", "run": "digits"}


def of_operator(name: str, values: str, **labels: str) -> Object:
    return _series(name, values, {"job": OPERATOR, **labels})


def of_trainer(name: str, values: str, **labels: str) -> Object:
    return _series(name, values, {"job": TRAINER, "pod": "digits-0", "stage": "round-1", **RUN, **labels})


def _series(name: str, values: str, labels: dict[str, str]) -> Object:
    told = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return {"series": f"{name}{{{told}}}", "values": values}


@dataclass(frozen=True)
class Case:
    """Series by the minute (`0+3x60`: sixty minutes, 3 more in each) and what comes of them at `minute`."""

    alert: str
    series: list[Object]
    minute: int
    description: str | None = None
    """None: silence."""
    labels: dict[str, str] = field(default_factory=dict)


NOT_LEADING = "Nobody has held the Lease for five minutes, or no replica can be scraped. Jobs that run go on; no new ones are made."
LATENCY = "comd_operator_queue_latency_seconds_bucket"
ON_STAGE = {**RUN, "stage": "round-1"}
CASES = {
    "no replica leads": Case(
        "ComdOperatorNotLeading",
        [of_operator("comd_operator_leader", "0x20", pod=pod) for pod in "ab"],
        10,
        NOT_LEADING,
        {"severity": "critical"},
    ),
    "none is scraped": Case("ComdOperatorNotLeading", [], 10, NOT_LEADING, {"severity": "critical"}),
    "not for long": Case("ComdOperatorNotLeading", [of_operator("comd_operator_leader", "1x8 0x5", pod="a")], 12),
    "one leads, one stands by": Case(
        "ComdOperatorNotLeading",
        [of_operator("comd_operator_leader", value, pod=pod) for pod, value in (("a", "0x20"), ("b", "1x20"))],
        10,
    ),
    "a silent watch": Case(
        "ComdWatchStale",
        [
            of_operator("comd_operator_watch_age_seconds", f"{age}x20", pod="a", resource=name)
            for name, age in (("jobs", 200), ("pods", 9))
        ],
        10,
        "a has heard nothing of jobs for 3m 20s, though the API server gives a sign of life every minute.",
        {"pod": "a", "resource": "jobs"},
    ),
    "bookmarks come": Case(
        "ComdWatchStale", [of_operator("comd_operator_watch_age_seconds", "9x20", pod="a", resource="jobs")], 10
    ),
    "one in ten requests fails": Case(
        "ComdApiErrors",
        [
            of_operator("comd_operator_api_requests_total", f"0+{count}x60", code=code)
            for code, count in (("200", 90), ("500", 10))
        ],
        40,
        "10% of the requests got no answer, or one that says that the server is busy, broken, or does not know the operator.",
    ),
    "what is not there is no error": Case(
        "ComdApiErrors",
        [
            of_operator("comd_operator_api_requests_total", f"0+{count}x60", code=code)
            for code, count in (("200", 50), ("404", 50))
        ],
        40,
    ),
    "runs wait": Case(
        "ComdQueueNotKeepingUp",
        [of_operator(LATENCY, f"0+{count}x60", le=le) for le, count in (("5.0", 0), ("10.0", 60), ("+Inf", 60))],
        40,
        "One of a hundred runs waits for 9.95s or longer until it is worked on.",
    ),
    "runs wait a little": Case(
        "ComdQueueNotKeepingUp",
        [of_operator(LATENCY, f"0+{count}x60", le=le) for le, count in (("2.5", 60), ("5.0", 60), ("+Inf", 60))],
        40,
    ),
    "a worker hangs": Case(
        "ComdWorkerStuck",
        [of_operator("comd_operator_queue_longest_running_seconds", "300x20", pod="a")],
        10,
        "A worker of a has been at its run for 5m 0s; a second is usual.",
        {"pod": "a"},
    ),
    "workers work": Case(
        "ComdWorkerStuck", [of_operator("comd_operator_queue_longest_running_seconds", "0 100 0 100 0x20", pod="a")], 10
    ),
    "runs are stalled": Case(
        "ComdRunsStalled",
        [of_operator("comd_runs", f"{count}x30", phase=phase) for phase, count in (("Stalled", 2), ("Running", 7))],
        20,
        "2 runs have been stalled for a quarter of an hour: their conditions say what is missing. "
        "They go on by themselves when it is there.",
    ),
    "runs run": Case("ComdRunsStalled", [of_operator("comd_runs", "0x30", phase="Stalled")], 20),
    "retries burn": Case(
        "ComdRetriesBurning",
        [of_operator("comd_stage_retries_total", "0+1x120", stage="round", exit_class="OutOfMemory", cause="other")],
        90,
        "Attempts of round that failed within the last hour and were followed by another: 60 (OutOfMemory).",
        {"stage": "round", "exit_class": "OutOfMemory"},
    ),
    "preemptions cost nothing": Case(
        "ComdRetriesBurning",
        [of_operator("comd_stage_retries_total", "0+1x120", stage="round", exit_class="TryAgain", cause="other")],
        90,
    ),
    "slots are missed": Case(
        "ComdSlotsMissed",
        [of_operator("comd_schedule_slots_total", "0x30 2x60", result="Missed")],
        40,
        "Slots within the last hour that nobody started in time: 2. They are not made up for.",
    ),
    "slots were missed before the operator came back": Case(
        "ComdSlotsMissed",
        [of_operator("comd_schedule_slots_total", "_x20 3x60", result="Missed")],
        40,
        "Slots within the last hour that nobody started in time: 3. They are not made up for.",
    ),
    "slots were missed long ago": Case(
        "ComdSlotsMissed", [of_operator("comd_schedule_slots_total", "_x20 3x120", result="Missed")], 100
    ),
    "slots are skipped, as the schedule says": Case(
        "ComdSlotsMissed", [of_operator("comd_schedule_slots_total", "0+1x60", result="Skipped")], 40
    ),
    "a stage is stuck": Case(
        "ComdStageStuck",
        [of_trainer("comd_last_progress_time_seconds", "0x80", phase="tune")],
        70,
        "tune of round-1 of the run team/digits has not moved for 1h 10m 0s.",
        {**ON_STAGE, "phase": "tune"},
    ),
    "a stage moves": Case(
        "ComdStageStuck", [of_trainer("comd_last_progress_time_seconds", "0+60x80", phase="tune")], 70
    ),
    "half of the replies can't be read": Case(
        "ComdJudgeFailing",
        [
            of_trainer("comd_judge_replies_total", f"0+{count}x60", result=result, pod=pod)
            for result, count in (("parsed", 4), ("asked_again", 3), ("dropped", 1))
            for pod in ("digits-0", "digits-1")
        ],
        40,
        "50% of the replies to round-1 of the run team/digits have no scores that parse; items without any are dropped.",
        ON_STAGE,
    ),
    "a tenth of the replies": Case(
        "ComdJudgeFailing",
        [
            of_trainer("comd_judge_replies_total", f"0+{count}x60", result=result)
            for result, count in (("parsed", 9), ("asked_again", 1))
        ],
        40,
    ),
    "an endpoint answers nobody": Case(
        "ComdEndpointErrors",
        [
            of_trainer("comd_endpoint_errors_total", "0+12x60", role="teacher", reason="busy"),
            of_trainer("comd_endpoint_errors_total", "0+18x60", role="teacher", reason="failed"),
            of_trainer("comd_answers_total", "0x60", role="teacher", source="model"),
            of_trainer("comd_answers_total", "0+900x60", role="teacher", source="cache"),
        ],
        40,
        "The endpoint of the teacher of the run team/digits refuses or breaks off 500m requests a second, more than it answers.",
        {**RUN, "role": "teacher"},
    ),
    "an endpoint is busy at times": Case(
        "ComdEndpointErrors",
        [
            of_trainer("comd_endpoint_errors_total", "0+12x60", role="teacher", reason="busy"),
            of_trainer("comd_answers_total", "0+100x60", role="teacher", source="model"),
        ],
        40,
    ),
    "the store fails": Case(
        "ComdStoreErrors",
        [of_trainer("comd_store_errors_total", "0+4x60", end="repeated", phase=phase) for phase in ("teach", "tune")],
        40,
        "Operations of the run team/digits on its bucket within a quarter of an hour (repeated): 120.",
        {**RUN, "end": "repeated"},
    ),
    "the store fails at times": Case(
        "ComdStoreErrors",
        [
            of_trainer("comd_store_errors_total", "0+1x60", end="repeated"),
            of_trainer("comd_store_errors_total", "0x60", end="failed"),
        ],
        40,
    ),
    "one operation fails, and its pod ends": Case(
        "ComdStoreErrors",
        [of_trainer("comd_store_errors_total", "0x35 1x2 stale", end="failed")],
        45,
        "Operations of the run team/digits on its bucket within a quarter of an hour (failed): 1.",
        {**RUN, "end": "failed"},
    ),
    "attempts end because the store is away": Case(
        "ComdStoreAway",
        [
            of_operator("comd_stage_retries_total", "0x20 1x60", stage=stage, exit_class="TryAgain", cause="store")
            for stage in ("preflight", "round")
        ],
        70,
        "Attempts that could do no more without the bucket within the last hour: 2.",
    ),
    "attempts end for other reasons": Case(
        "ComdStoreAway",
        [
            of_operator("comd_stage_retries_total", "0+1x60", stage="round", exit_class="TryAgain", cause="other"),
            of_operator("comd_stage_retries_total", "0x60", stage="round", exit_class="TryAgain", cause="store"),
        ],
        30,
    ),
}


@pytest.fixture(scope="module")
def groups(helm: Helm) -> list[Object]:
    found: list[Object] = helm.render(RULES).one("PrometheusRule")["spec"]["groups"]
    return found


def promtool_says(
    promtool: Path, folder: Path, groups: list[Object], *command: str
) -> subprocess.CompletedProcess[str]:
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    return subprocess.run([str(promtool), *command], cwd=folder, capture_output=True, text=True, check=False)


def told(folder: Path, case: Case, promtool: Path, groups: list[Object]) -> subprocess.CompletedProcess[str]:
    """Of the alert's annotations the description alone is compared: it is the one that is made of what was measured."""
    alerts: list[dict[str, Any]] = [
        {**rule, "annotations": {"description": rule["annotations"]["description"]}}
        for group in groups
        for rule in group["rules"]
    ]
    expected = (
        []
        if case.description is None
        else [
            {"exp_labels": {"severity": "warning", **case.labels}, "exp_annotations": {"description": case.description}}
        ]
    )
    test = {"eval_time": f"{case.minute}m", "alertname": case.alert, "exp_alerts": expected}
    whole = {"interval": "1m", "input_series": case.series, "alert_rule_test": [test]}
    (folder / "test.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [whole]})
    )
    return promtool_says(promtool, folder, [{"name": "comd", "rules": alerts}], "test", "rules", "test.yaml")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_when_it_comes_and_what_it_says(case: Case, promtool: Path, groups: list[Object], tmp_path: Path) -> None:
    done = told(tmp_path, case, promtool, groups)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_is_seen_to_come_and_to_keep_silent(groups: list[Object]) -> None:
    alerts = [rule["alert"] for group in groups for rule in group["rules"]]
    for speaks in (True, False):
        seen = {case.alert for case in CASES.values() if (case.description is not None) == speaks}
        assert seen == set(alerts), "without a case"


def test_promtool_would_see_it(promtool: Path, groups: list[Object], tmp_path: Path) -> None:
    """That a test here can fail: the alert comes, and silence is expected."""
    case = CASES["a stage is stuck"]
    assert told(tmp_path, Case(case.alert, case.series, case.minute), promtool, groups).returncode != 0


def test_rules_are_whole(promtool: Path, groups: list[Object], tmp_path: Path) -> None:
    """With all annotations, as they are installed."""
    done = promtool_says(promtool, tmp_path, groups, "check", "rules", "--lint=all", "--lint-fatal", "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr

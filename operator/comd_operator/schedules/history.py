"""`successfulRunsHistoryLimit` and `failedRunsHistoryLimit`."""

from collections.abc import Sequence

from comd_api.schedule import ScheduleSpec
from comd_operator.schedules.runs import ScheduledRun


def expired(spec: ScheduleSpec, runs: Sequence[ScheduledRun]) -> list[ScheduledRun]:
    """Runs that are over and more than are kept: those that ended first. Those that had nothing to do are counted apart, else some quiet
    nights would drive out the runs that have made something."""
    limits = (
        ("Succeeded", False, spec.successful_runs_history_limit),
        ("Succeeded", True, spec.successful_runs_history_limit),
        ("Failed", False, spec.failed_runs_history_limit),
    )
    found: list[ScheduledRun] = []
    for phase, unchanged, limit in limits:
        ended = sorted(
            (run for run in runs if (run.phase, run.unchanged) == (phase, unchanged) and not run.going),
            key=lambda run: (run.completed or run.created, run.name),
        )
        found += ended[: max(0, len(ended) - limit)]
    return found

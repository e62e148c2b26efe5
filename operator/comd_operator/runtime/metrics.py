"""Every metric of the operator, in one place. None has a run's name as a label: their number would grow with the runs."""

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, Metric

from comd_api.status import RunPhase

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LONG = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 24 * 3600.0, 72 * 3600.0)

Cause = Literal["store", "other"]
"""What ended an attempt, as far as an alert is about it."""
CAUSES: tuple[Cause, ...] = get_args(Cause)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a time of birth beside every counter, which nobody asks for


class Metrics:
    """Collectors in a registry of their own, so that a test has its own too; the process's memory, descriptors and garbage
    collections are among them."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        own = "comd_operator"
        self.reconciles = Counter(
            f"{own}_reconciles", "Runs and schedules that were worked on.", ["result"], registry=registry
        )
        self.reconcile_duration = Histogram(
            f"{own}_reconcile_duration_seconds",
            "Time to work on a run or schedule once.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue_depth = Gauge(
            f"{own}_queue_depth", "Runs and schedules that wait to be worked on.", registry=registry
        )
        self.queue_adds = Counter(f"{own}_queue_adds", "Runs and schedules put into the queue.", registry=registry)
        self.queue_retries = Counter(
            f"{own}_queue_retries", "Runs and schedules put back after an error.", registry=registry
        )
        self.queue_latency = Histogram(
            f"{own}_queue_latency_seconds", "Wait in the queue.", buckets=_SECONDS, registry=registry
        )
        self.queue_longest = Gauge(
            f"{own}_queue_longest_running_seconds",
            "Since when the longest of the workers has been at its run or schedule.",
            registry=registry,
        )
        self.api_requests = Counter(
            f"{own}_api_requests",
            "Requests to the API server, by its verbs; code 0: no answer.",
            ["verb", "resource", "code"],
            registry=registry,
        )
        self.api_duration = Histogram(
            f"{own}_api_request_duration_seconds",
            "Time to an answer; of a watch, until it begins.",
            ["verb", "resource"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.api_wait = Histogram(
            f"{own}_api_rate_limit_wait_seconds",
            "Wait for our own rate limit (--qps, --burst).",
            buckets=(0.0, *_SECONDS),
            registry=registry,
        )
        self.watch_restarts = Counter(
            f"{own}_watch_restarts", "Watches begun anew.", ["resource", "reason"], registry=registry
        )
        self.leader = Gauge(f"{own}_leader", "1 while this replica holds the Lease and works.", registry=registry)
        self.events = Counter(f"{own}_events", "Events told.", ["reason"], registry=registry)
        self.build_info = Gauge(f"{own}_build_info", "Always 1.", ["version"], registry=registry)
        self.build_info.labels(version=_version()).set(1)
        self.stage_duration = Histogram(
            "comd_stage_duration_seconds",
            "Active time of stages that have ended, all attempts together.",
            ["stage", "result"],
            buckets=_LONG,
            registry=registry,
        )
        self.stage_queue_wait = Histogram(
            "comd_stage_queue_wait_seconds",
            "Time that stages which have ended waited to be admitted and scheduled.",
            ["stage"],
            buckets=_LONG,
            registry=registry,
        )
        self.stage_retries = Counter(
            "comd_stage_retries",
            "Attempts that are followed by another; cause store: what ended them blames spec.storage.",
            ["stage", "exit_class", "cause"],
            registry=registry,
        )
        self.schedule_slots = Counter(
            "comd_schedule_slots",
            "Slots of schedules that are settled: started, skipped because a run was not over, or missed.",
            ["result"],
            registry=registry,
        )
        self.schedule_lateness = Histogram(
            "comd_schedule_lateness_seconds",
            "From a slot to when its run was made.",
            buckets=(*_SECONDS, 60.0, 300.0, 3600.0),
            registry=registry,
        )
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """What is rare: a series that is first seen at 1 has not increased, as Prometheus sees it."""
        for result in ("Started", "Skipped", "Missed"):
            self.schedule_slots.labels(result=result)
        for stage in ("preflight", "pretrain", "round", "promote"):
            self.stage_queue_wait.labels(stage=stage)
            for result in ("Succeeded", "Failed"):
                self.stage_duration.labels(stage=stage, result=result)
            for exit_class in ("TryAgain", "CannotStart", "Failed", "OutOfMemory", "Deadline"):
                for cause in CAUSES:
                    self.stage_retries.labels(stage=stage, exit_class=exit_class, cause=cause)

    def count_runs(self, phases: Callable[[], Iterable[str]]) -> None:
        """Runs by phase, counted when somebody asks."""
        self.registry.register(_Runs(phases))

    def watch_ages(self, ages: Callable[[], dict[str, float]]) -> None:
        """Seconds since each watch last gave a sign of life, the oldest of its kind."""
        self.registry.register(_Ages(ages))


class _Runs:
    def __init__(self, phases: Callable[[], Iterable[str]]) -> None:
        self._phases = phases

    def collect(self) -> Iterator[Metric]:
        tally = Tally(self._phases())
        family = GaugeMetricFamily("comd_runs", "Runs by phase.", labels=["phase"])
        for phase in get_args(RunPhase):  # Those without a run too: a line falls to 0 and does not break off.
            family.add_metric([phase], tally[phase])
        yield family


class _Ages:
    def __init__(self, ages: Callable[[], dict[str, float]]) -> None:
        self._ages = ages

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "comd_operator_watch_age_seconds",
            "Since the last event, bookmark or list of a resource's watch.",
            labels=["resource"],
        )
        for resource, age in sorted(self._ages().items()):
            family.add_metric([resource], age)
        yield family


def _version() -> str:
    try:
        return version("comd")
    except PackageNotFoundError:
        return "unknown"

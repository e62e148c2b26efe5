"""`/metrics`, `/healthz` and `/progress` of a stage, up across its phases; and the progress file that `comd run` reads."""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from comd_api.stage import Progress, StageConfig
from comd_api.status import PhaseName, PhaseTime
from comd_trainer import metrics
from comd_trainer.context import PROGRESS_FILE

log = logging.getLogger(__name__)


class StageStatus:
    """The newest state of the stage, put together when somebody asks."""

    def __init__(self, config: StageConfig, *, own: metrics.Record = metrics.OWN) -> None:
        """`own`: what this process, the supervisor, counts."""
        self.config = config
        self.phase: PhaseName | None = None
        self.phase_folder: Path | None = None
        """Where the ranks of the running phase leave how far they are and what they have counted."""
        self.finished: list[PhaseTime] = []
        self.started = time.time()
        self.phase_started = self.started
        self._own = own
        self._kept: dict[PhaseName, metrics.Values] = {}
        """Of each phase, what processes have counted that are no longer asked."""
        self._state: dict[str, Any] = {}
        """What the running phase said last of how far it is: so it stays while its artifact is published and its folder goes."""
        self._ranks_count = False
        """Whether there are ranks whose records are not in `_kept` yet."""
        self._lock = threading.Lock()
        """Nothing may be told twice, nor left out, while it moves from the ranks' files into `_kept`: a counter never falls."""

    def begin(self, phase: PhaseName, finished: list[PhaseTime]) -> None:
        """A phase begins; `finished` are those before it. What was counted before the first is the first one's."""
        with self._lock:
            if self.phase is not None:
                self._keep(self.phase, self._own.take())
            self.phase_folder, self._ranks_count, self._state = None, False, {}
            self.finished = finished
            self.phase = phase
            self.phase_started = time.time()

    def watch(self, folder: Path) -> None:
        with self._lock:
            self.phase_folder, self._ranks_count = folder, True

    def settle(self) -> None:
        """The ranks have ended, and what they have left will be removed."""
        with self._lock:
            if self.phase is not None and self._ranks_count:
                self._keep(self.phase, self._of_ranks())
            self._ranks_count = False

    def progress(self) -> Progress:
        state = self._phase_state()
        return Progress(
            stage=self.config.stage,
            phase=self.phase,
            done=state.get("done", 0),
            total=state.get("total", 0),
            unit=state.get("unit", ""),
            rate=state.get("rate"),
            seconds_left=state.get("secondsLeft"),
            metrics=state.get("metrics", {}),
        )

    def collect(self) -> Iterator[Metric]:
        """Prometheus' collector protocol. Runs are told apart by the pod's labels, not by ours."""
        stage = self.config.stage
        labels = {"stage": stage}
        yield _gauge("comd_stage_start_time_seconds", "When this attempt of the stage began.", labels, self.started)
        yield InfoMetricFamily("comd_trainer_build", "Version of the trainer.", value={"version": version("comd")})
        seconds = GaugeMetricFamily(
            "comd_phase_seconds", "Wall time of finished phases.", labels=["stage", "phase", "reused"]
        )
        for done in list(self.finished):
            seconds.add_metric([stage, done.name, str(done.reused).lower()], done.seconds)
        yield seconds
        if self.phase is not None:
            yield from self._running({**labels, "phase": self.phase})
        yield from _families(stage, self._counted())

    def _running(self, labels: dict[str, str]) -> Iterator[Metric]:
        state = self._phase_state()
        yield _gauge(
            "comd_phase_done", "Steps or items of the running phase that are done.", labels, state.get("done", 0)
        )
        yield _gauge("comd_phase_total", "Steps or items of the running phase.", labels, state.get("total", 0))
        if state.get("rate") is not None:
            yield _gauge(
                "comd_phase_rate",
                "Steps or items of the running phase per second, over all ranks.",
                labels,
                state["rate"],
            )
        yield _gauge(
            "comd_last_progress_time_seconds",
            "When the running phase last moved.",
            labels,
            state.get("time", self.phase_started),
        )

    def _counted(self) -> dict[PhaseName, metrics.Values]:
        """By phase, what has been counted so far."""
        with self._lock:
            counted = dict(self._kept)
            if self.phase is not None:
                counted[self.phase] = metrics.joined(
                    [counted.get(self.phase, {}), self._of_ranks(), self._own.values()]
                )
        return counted

    def _of_ranks(self) -> metrics.Values:
        if self.phase_folder is None or not self._ranks_count:
            return {}
        return metrics.read_folder(self.phase_folder)

    def _keep(self, phase: PhaseName, values: metrics.Values) -> None:
        lasting = {key: value for key, value in values.items() if metrics.BY_NAME[key[0]].stays}
        self._kept[phase] = metrics.joined([self._kept.get(phase, {}), lasting])

    def _phase_state(self) -> dict[str, Any]:
        with self._lock:
            if self.phase_folder is not None:
                with suppress(OSError, json.JSONDecodeError):
                    self._state = json.loads((self.phase_folder / PROGRESS_FILE).read_text())
            return self._state


def _families(stage: str, counted: dict[PhaseName, metrics.Values]) -> Iterator[Metric]:
    """Those of which there is a value, in the order of the list of metrics."""
    for metric in metrics.ALL:
        make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = make(metric.name, metric.text, labels=["stage", "phase", *metric.labels])
        for phase, values in counted.items():
            for (name, labels), value in values.items():
                if name == metric.name:
                    family.add_metric([stage, phase, *labels], value)
        if family.samples:
            yield family


def _gauge(name: str, text: str, labels: dict[str, str], value: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


class _Server(ThreadingHTTPServer):
    """On an address of either family. `::` takes in all addresses of IPv4 as well, and only these where there is no IPv6."""

    def __init__(self, address: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        if address == "::" and not socket.has_dualstack_ipv6():
            address = "0.0.0.0"
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class StatusServer:
    """Serves the status over HTTP when there is a port, and keeps the progress file new when there is one."""

    def __init__(self, *, config: StageConfig, progress_file: Path | None, address: str, port: int | None) -> None:
        self.status = StageStatus(config)
        self.progress_file = progress_file
        self.address, self.port = address, port
        self._http: _Server | None = None
        self._closing = threading.Event()

    def start(self) -> None:
        if self.port is not None:
            self._http = _Server(self.address, self.port, _handler(self.status))
            self.port = self._http.server_port
            threading.Thread(target=self._http.serve_forever, name="http", daemon=True).start()
            log.info("serving /metrics, /healthz and /progress on %s, port %d", self._http.server_address[0], self.port)
        if self.progress_file is not None:
            threading.Thread(target=self._write_progress, name="progress", daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()

    def _write_progress(self) -> None:
        assert self.progress_file is not None
        partial = self.progress_file.with_suffix(".partial")
        while True:
            partial.write_text(json.dumps(self.status.progress().to_wire()))
            os.replace(partial, self.progress_file)
            if self._closing.wait(timeout=0.25):
                return


def _handler(status: StageStatus) -> type[BaseHTTPRequestHandler]:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(status)  # a collector by its protocol

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?", 1)[0]
            if path == "/metrics":
                self._answer(generate_latest(registry), CONTENT_TYPE_LATEST)
            elif path == "/healthz":
                self._answer(b"ok\n", "text/plain")
            elif path == "/progress":
                self._answer(json.dumps(status.progress().to_wire()).encode(), "application/json")
            else:
                self.send_error(404)

        def _answer(self, body: bytes, content_type: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            log.debug(format, *args)

    return Handler

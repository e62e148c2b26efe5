"""A real Prometheus beside the cluster: it scrapes trainers with the relabelings of docs/metrics.md, and the operator, and computes the
chart's alerts. What the dashboards ask is asked over its HTTP API.

Debian builds it without the discovery of Kubernetes' pods, so pods are told it over HTTP, with the labels that that one would give them.
"""

import json
import math
import re
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.chart import dashboards
from tests.chart.dashboards import Query
from tests.cluster.cluster import Cluster
from tests.nodes import operator_process
from tests.nodes.api import Api
from tests.nodes.site import ROOT

PORT = 19_090
OPERATOR, TRAINER = "comd-operator", "comd-trainer"
"""Jobs, as this configuration calls them."""
SCRAPE = "250ms"
"""Phases here last a second or two."""
RATE_INTERVAL = "10s"
"""For `$__rate_interval`."""


@dataclass(frozen=True)
class Answer:
    """To one query of a dashboard: what each series said last; of rates and increases, which end at 0, the most that it was."""

    query: Query
    series: dict[str, float]
    """By the panel's legend."""


class Prometheus:
    def __init__(self, address: str, *, began: float) -> None:
        self._address, self._began = address, began

    def get(self, path: str, **parameters: str) -> Any:
        url = f"{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None

    def over_time(
        self, query: str, *, choose: Callable[[list[float]], float] = lambda numbers: numbers[-1]
    ) -> list[tuple[dict[str, str], float]]:
        """Labels of each series that there has been, and the number that is chosen of its numbers: its last."""
        found = self.get("query_range", query=query, start=str(self._began), end=str(time.time()), step="1")
        chosen = []
        for series in found["result"]:
            numbers = [float(value) for _, value in series["values"] if not math.isnan(float(value))]
            if numbers:
                chosen.append((series["metric"], choose(numbers)))
        return chosen

    def answer(self, query: Query, **variables: str) -> Answer:
        text = dashboards.filled(query.text, rate_interval=RATE_INTERVAL, **variables)
        found = self.over_time(text, choose=max) if re.search(r"\b(rate|increase)\(", text) else self.over_time(text)
        series = {_legend(query, labels): number for labels, number in found}
        return Answer(query, series)

    def names(self) -> set[str]:
        """Of our own series."""
        return {name for name in self.get("label/__name__/values") if name.startswith("comd_")}

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]


def _legend(query: Query, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), query.legend)


@contextmanager
def prometheus(program: Path, cluster: Cluster, folder: Path, *, alerts: dict[str, Any]) -> Iterator[Prometheus]:
    """It runs as long as the block lasts. `alerts`: the spec of a PrometheusRule."""
    (folder / "alerts.yaml").write_text(yaml.safe_dump(alerts))
    address = f"http://127.0.0.1:{PORT}"
    command = [
        *(cluster.layout.program("setpriv"), "--pdeathsig", "KILL", str(program)),
        f"--config.file={folder}/prometheus.yaml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{PORT}",
    ]
    began = time.time()
    with _discovery(Api(cluster)) as discovery, (cluster.logs / "prometheus.log").open("ab") as log:
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(_configuration(discovery)))
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            _wait_until_ready(address, process, log=log.name)
            yield Prometheus(address, began=began)
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait_until_ready(address: str, process: "subprocess.Popen[bytes]", *, log: str) -> None:
    deadline = time.monotonic() + 60
    while not _is_ready(address):
        assert process.poll() is None, f"Prometheus ended, see {log}"
        assert time.monotonic() < deadline, f"Prometheus is not ready, see {log}"
        time.sleep(0.1)


@contextmanager
def _discovery(api: Api) -> Iterator[str]:
    """The URL under which all pods are told, as they are at the moment."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pods = api.get("/api/v1/pods")["items"]
            body = json.dumps([target for pod in pods for target in targets_of(pod)]).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def targets_of(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """As Prometheus' own discovery has them: one for each port of a pod that has an address; names of labels with `_` for what is no
    letter."""
    metadata, address = pod["metadata"], pod["status"].get("podIP")
    own = {f"pod_label_{re.sub('[^a-zA-Z0-9_]', '_', name)}": value for name, value in metadata["labels"].items()}
    own |= {"namespace": metadata["namespace"], "pod_name": metadata["name"]}
    return [
        {
            "targets": [f"{address}:{port['containerPort']}"],
            "labels": {
                f"__meta_kubernetes_{name}": value
                for name, value in {**own, "pod_container_port_name": port["name"]}.items()
            },
        }
        for container in pod["spec"]["containers"]
        for port in container.get("ports", [])
        if address is not None and pod["status"]["phase"] == "Running"
    ]


def _configuration(discovery: str) -> dict[str, Any]:
    (trainers,) = yaml.safe_load(_documented())
    assert trainers["job_name"] == TRAINER
    assert trainers.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    trainers["http_sd_configs"] = [{"url": discovery, "refresh_interval": "1s"}]
    place = {"namespace": operator_process.NAMESPACE, "pod": "comd-operator-0"}
    targets = [{"targets": [f"127.0.0.1:{operator_process.PORT}"], "labels": place}]
    return {
        "global": {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE, "evaluation_interval": "1s"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [trainers, {"job_name": OPERATOR, "static_configs": targets}],
    }


def _documented() -> str:
    """The scrape configuration that docs/metrics.md gives."""
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"), re.S)
    found: str = block
    return found


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/-/ready", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False

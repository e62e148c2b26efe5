"""A release of the chart on real nodes, with the image that was built, as whoever has a kubeconfig installs it."""

import json
import re
import time
import urllib.request
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from comd_operator.planner.defaults import TRAINER_PORT
from tests.chart.helm import FULLNAME, RELEASE, Object
from tests.chart.values_table import CHART
from tests.install.conftest import Place
from tests.nodes.image import IMAGE
from tests.nodes.site import SLOW, Run

PORT = 8080
SELECTOR = "app.kubernetes.io/component=operator"


class Release:
    def __init__(self, place: Place, namespace: str, values: Object, *, kubeconfig: Path, folder: Path) -> None:
        self._place, self.namespace, self._kubeconfig = place, namespace, kubeconfig
        s3 = place.cluster.s3
        self._values = folder / f"{namespace}.json"
        self._values.write_text(
            json.dumps(
                {
                    "image": {"repository": place.operator.repository, "pullPolicy": "Never"},
                    "defaults": {
                        "trainerImage": IMAGE,
                        "storage": {"endpoint": s3.endpoint, "region": "us-east-1", "secret": "s3"},
                    },
                    "leaseSeconds": 4,
                    **values,
                }
            )
        )

    def helm(self, *arguments: str) -> str:
        return self._place.helm(*arguments, f"--namespace={self.namespace}", kubeconfig=self._kubeconfig)

    def install(self) -> None:
        self.helm("install", RELEASE, str(CHART), f"--values={self._values}", "--wait", "--timeout=5m")

    def upgrade(self, *arguments: str, chart: Path = CHART) -> None:
        """Returns when the new pods are ready and the old ones are gone."""
        self.helm("upgrade", RELEASE, str(chart), f"--values={self._values}", "--wait", "--timeout=5m", *arguments)
        self._place.cluster.kubectl(
            "-n", self.namespace, "rollout", "status", f"deployment/{FULLNAME}", "--timeout=300s"
        )

    def test(self) -> None:
        self.helm("test", RELEASE, "--timeout=3m")

    def uninstall(self) -> None:
        self.helm("uninstall", RELEASE, "--wait", "--timeout=3m")

    def pods(self) -> dict[str, Object]:
        """The operator's, by name, that are not on their way out."""
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        listed = self._place.site.api.get(path, labelSelector=SELECTOR)["items"]
        return {pod["metadata"]["name"]: pod for pod in listed if "deletionTimestamp" not in pod["metadata"]}

    def leaders(self) -> list[float]:
        """What each replica says of itself: 1 where it works."""
        return [scraped(pod, PORT)["comd_operator_leader"] for pod in self.pods().values()]

    def until_one_leads(self) -> None:
        """A replica that stands by takes over within the Lease's time."""
        end = time.monotonic() + 60
        while sum(self.leaders()) != 1:
            assert time.monotonic() < end, f"{self.leaders()} replicas work"
            time.sleep(0.5)


def scraped(pod: dict[str, Any], port: int) -> dict[str, float]:
    """A pod's metrics as Prometheus gets them: the newest sample of each name."""
    with urllib.request.urlopen(f"http://{pod['status']['podIP']}:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


def scraped_trainer(run: Run) -> dict[str, float]:
    """Of the first of the run's pods that can be asked."""
    end = time.monotonic() + SLOW
    while True:
        for pod in run.pods():
            if pod["status"]["phase"] == "Running" and pod["status"].get("podIP"):
                try:
                    return scraped(pod, TRAINER_PORT)
                except OSError:
                    continue  # It serves in a moment, or has just ended.
        assert time.monotonic() < end, f"no trainer of {run.namespace} could be asked: {run.status()}"
        time.sleep(0.2)


def must_have_run_once(status: dict[str, Any]) -> None:
    """Nothing was disturbed: each stage ended well at the first attempt."""
    for stage in status["stages"]:
        assert (stage["phase"], stage["attempt"], stage["failures"]) == ("Succeeded", 1, 0), stage


def allowed(place: Place, kubeconfig: Path, verb: str, resource: str) -> bool:
    """Of the cluster, or of all namespaces."""
    asks = (f"--kubeconfig={kubeconfig}", "auth", "can-i", verb, resource, "--all-namespaces")
    answer = place.cluster.kubectl(*asks, check=False)
    assert re.search(r"^(yes|no)", answer, re.M), answer
    return re.search(r"^yes", answer, re.M) is not None

"""`comd operator` as a process outside the cluster, with the rights that operator/rbac.yaml gives it and no others."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.cluster.cluster import Cluster
from tests.nodes.image import IMAGE

NAMESPACE = "comd-system"
ACCOUNT = "comd-operator"
"""As operator/rbac.yaml calls them."""
PORT = 18_080
LEASE_SECONDS = 4
"""A killed operator's Lease is taken over after so long."""
PATIENCE_SECONDS = 4
"""How long pods that no node could take are waited for."""


class OperatorProcess:
    """One process at a time; what it logs is added to the cluster's logs."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._process: subprocess.Popen[bytes] | None = None
        self._kubeconfig: Path | None = None
        self.log: Path = cluster.logs / "operator.log"

    def start(self) -> None:
        """Returns when it has seen everything once."""
        if self._kubeconfig is None:
            self._kubeconfig = self._cluster.kubeconfig_for(user=ACCOUNT, namespace=NAMESPACE, duration="4h")
        options = {
            "trainer-image": IMAGE,
            "storage-endpoint": self._cluster.s3.endpoint,
            "storage-region": "us-east-1",
            "storage-secret": "s3",
            "address": "127.0.0.1",
            "port": PORT,
            "lease-namespace": NAMESPACE,
            "lease-seconds": LEASE_SECONDS,
            "start-patience-seconds": PATIENCE_SECONDS,
            "log-format": "plain",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        # It ends when the tests do, however they end.
        bound = [self._cluster.layout.program("setpriv"), "--pdeathsig", "KILL"]
        command = [*bound, sys.executable, "-m", "comd_operator", "operator", *arguments]
        with self.log.open("ab") as log:
            environment = {**os.environ, **self._cluster.environment, "KUBECONFIG": str(self._kubeconfig)}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + 60
        while not self._is_ready():
            assert self._process.poll() is None, f"the operator ended: {self.log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"the operator is not ready: {self.log.read_text()[-2000:]}"
            time.sleep(0.1)

    def kill(self) -> None:
        """As a node's power cut does: nothing is said, the Lease is still held."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """As Kubernetes stops a pod. Its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        assert self._process is not None, "it was started"
        self._process.send_signal(number)
        code = self._process.wait(timeout=30)
        self._process = None
        return code

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False

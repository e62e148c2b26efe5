"""Programs and files that these tests need: helm and kubeconform, which Go builds from the modules beside this file, and the schemas of
Kubernetes and of the Prometheus operator, which lie in their own modules."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests import gotools
from tests.cluster import programs

MODULES = Path(__file__).parent / "modules"
PACKAGES = {"helm": "helm.sh/helm/v4/cmd/helm", "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform"}
KUBERNETES = (programs.KUBERNETES.folder, "k8s.io/kubernetes")
"""Of the version that the test cluster runs."""
MONITORING = (MODULES / "monitoring", "github.com/prometheus-operator/prometheus-operator")


class MissingError(Exception):
    """Why there are no tests of the chart here, in one line."""


def find(name: str) -> Path | None:
    """Where it is, without building it. One on PATH may be of another major version, so it is not asked."""
    found = shutil.which(name, path=os.environ.get("COMD_TEST_BIN", os.devnull))
    if found:
        return Path(found)
    return _target(name) if _target(name).exists() else None


def provide(name: str, say: Callable[[str], None]) -> Path:
    """Builds it where it is missing: helm in about two minutes, once a machine. Raises MissingError."""
    found = find(name)
    if found is not None:
        return found
    if gotools.go() is None:
        raise MissingError(f"no tests of the chart: no Go to build {name}")
    target = _target(name)
    with gotools.locked(target.parent):
        if not target.exists():
            say(f"building {name}")
            try:
                gotools.build(MODULES / name, PACKAGES[name], target)
            except subprocess.CalledProcessError as error:
                raise MissingError(f"go could not build {name} (exit {error.returncode}), see above") from None
    return target


def source(folder: Path, module: str) -> Path:
    """Where the files of a module lie that the go.mod in `folder` pins. Raises MissingError."""
    if gotools.go() is None:
        raise MissingError(f"no Go to get {module}")
    command = ["go", "mod", "download", "-json", module]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingError(f"go could not get {module}: {(done.stderr or done.stdout).strip()}")
    return Path(json.loads(done.stdout)["Dir"])


def _target(name: str) -> Path:
    return gotools.cache() / gotools.key(sorted((MODULES / name).iterdir())) / name

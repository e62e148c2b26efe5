"""The real Kueue: its manager, built by Go, and the manifests of the same version, both from the module beside the cluster's."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests import gotools
from tests.cluster.processes import ClusterError
from tests.cluster.programs import Module, flags

PACKAGE = "sigs.k8s.io/kueue/cmd/kueue"
MODULE = Module("kueue", {"kueue": PACKAGE})


def manager(say: Callable[[str], None]) -> Path:
    """The program; built in about seven minutes, once a machine."""
    target = MODULE.target / "kueue"
    with gotools.locked(MODULE.target):
        if not target.exists():
            if gotools.go() is None:
                raise ClusterError("no Go to build kueue")
            say("building kueue (about seven minutes, once a machine)")
            try:
                gotools.build(MODULE.folder, PACKAGE, target, flags=flags(MODULE))
            except subprocess.CalledProcessError as error:
                raise ClusterError(f"go could not build kueue (exit {error.returncode}), see above") from None
    return target


def source() -> Path:
    """The module's folder in Go's cache, where its manifests are."""
    command = ["go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kueue"]
    done = subprocess.run(command, cwd=MODULE.folder, check=True, capture_output=True, text=True)
    return Path(done.stdout.strip())


if __name__ == "__main__":
    print(manager(print))

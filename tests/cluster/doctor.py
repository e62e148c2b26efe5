"""What a machine lacks for a test cluster, in one line; and getting what can be got."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests import gotools
from tests.cluster import programs
from tests.cluster.processes import ClusterError

CONTROL_PACKAGES = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
"""Programs of the operating system, and Debian's package of each."""
NODE_PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "iptables": "iptables",
    "runc": "runc",
}
CNI_PACKAGE = "containernetworking-plugins"

PURPOSE = {
    False: "no test cluster, so what needs an API server is not run",
    True: "no test cluster, so what needs nodes and pods is not run",
}


class MissingError(Exception):
    """This machine can't run a cluster. The message is one line: what is not run, and all that is missing for it."""


def missing_packages(*, with_nodes: bool) -> list[str]:
    wanted = {**CONTROL_PACKAGES, **(NODE_PACKAGES if with_nodes else {})}
    found = {package for program, package in wanted.items() if programs.system_program(program) is None}
    if with_nodes and programs.cni_folder() is None:
        found.add(CNI_PACKAGE)
    return sorted(found)


def unbuilt(*, with_nodes: bool) -> list[str]:
    return [name for name in programs.names(with_nodes=with_nodes) if programs.find(name) is None]


def lacks(*, with_nodes: bool) -> list[str]:
    """What stands in the way and can't be got here, as phrases. Empty: `prepare` should succeed."""
    if sys.platform != "linux":
        return ["not Linux"]
    found = []
    if os.geteuid() != 0:
        found.append("not root")
    elif programs.system_program("unshare") and not _may_make_namespaces():
        found.append("root here may not make namespaces")
    packages = missing_packages(with_nodes=with_nodes)
    if packages and shutil.which("apt-get") is None:
        found.append(f"no apt-get to install {' '.join(packages)}")
    absent = unbuilt(with_nodes=with_nodes)
    for_go = [name for name in absent if name != "pause"]
    if for_go and gotools.go() is None:
        found.append(f"no Go to build {' '.join(for_go)}")
    if "pause" in absent and shutil.which("cc") is None:
        found.append("no C compiler for the process that holds a pod")
    return found


def prepare(*, with_nodes: bool, say: Callable[[str], None]) -> dict[str, str]:
    """Installs and builds what is missing; returns where each program is. Raises MissingError."""
    problems = lacks(with_nodes=with_nodes)
    if problems:
        raise MissingError(f"{PURPOSE[with_nodes]}: {', '.join(problems)}")
    try:
        packages = missing_packages(with_nodes=with_nodes)
        if packages:
            say(f"installing {' '.join(packages)}")
            with gotools.locked(gotools.cache()):
                install(missing_packages(with_nodes=with_nodes))
        found = programs.provide(programs.names(with_nodes=with_nodes), say)
    except (ClusterError, subprocess.CalledProcessError) as error:
        raise MissingError(f"{PURPOSE[with_nodes]}: {error}") from error
    system = [*CONTROL_PACKAGES, *(NODE_PACKAGES if with_nodes else ())]
    found |= {name: place for name in system if (place := programs.system_program(name))}
    if with_nodes and (plugins := programs.cni_folder()):
        found["cni"] = plugins
    return found


def report() -> tuple[list[str], bool]:
    """A line for a control plane and a line for nodes, and whether both can be."""
    lines, fine = [], True
    for with_nodes, what in ((False, "control plane"), (True, "control plane and nodes")):
        problems = lacks(with_nodes=with_nodes)
        if problems:
            fine = False
            lines.append(f"{what}: {PURPOSE[with_nodes]}: {', '.join(problems)}")
            continue
        todo = []
        if packages := missing_packages(with_nodes=with_nodes):
            todo.append(f"installs {' '.join(packages)}")
        if absent := unbuilt(with_nodes=with_nodes):
            todo.append(f"builds {' '.join(absent)}")
        lines.append(f"{what}: ready" + (f"; the first start {' and '.join(todo)}" if todo else ""))
    return lines, fine


def install(packages: list[str]) -> None:
    """apt's lists are read again only if they don't know a package: that takes longer than all else."""
    if not packages:
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *packages]
    if _apt(install, environment) != 0:
        _apt(["apt-get", "update", "--quiet"], environment)
        if code := _apt(install, environment):
            raise ClusterError(f"apt-get could not install {' '.join(packages)} (exit {code}), see above")


def _apt(command: list[str], environment: dict[str, str]) -> int:
    return subprocess.run(command, env=environment, stdout=sys.stderr, check=False).returncode


def _may_make_namespaces() -> bool:
    command = ["unshare", "--mount", "--pid", "--uts", "--net", "--fork", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0 and os.access(
        Path("/sys/fs/cgroup"), os.W_OK
    )

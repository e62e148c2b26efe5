"""Process 1 of a "machine": `python -m tests.cluster.machine NAME STATE MACHINE`.

A machine is a pid namespace with a mount and a host name space, all machines of a cluster being in its one network
namespace. `control` runs the control plane, `node-N` containerd, kubelet and pods. When process 1 ends, the kernel ends
all that ran below it and drops its mounts, which is why `down` has little left to do.
"""

import json
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import NoReturn

from tests.cluster import cgroups, components, images
from tests.cluster.layout import API, CONTROL, PAUSE, Layout, Node, load
from tests.cluster.processes import ClusterError, run, search_path, wait

RESTART_SECONDS = 1.0


class Machine:
    """Starts programs, buries the dead, starts again what should run."""

    def __init__(self, layout: Layout, name: str, programs: dict[str, components.Program]):
        self.layout, self.name, self.programs = layout, name, programs
        self.pids: dict[str, int] = {}
        socket.sethostname(name)
        # This mount namespace is ours alone: nothing that follows is seen outside.
        run("mount", "--make-rshared", "/")  # kubelet's volumes must reach the containers
        run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")

    def start(self, name: str) -> None:
        program = self.programs[name]
        with (self.layout.logs / f"{self.name}.{name}.log").open("ab") as log:
            self.pids[name] = subprocess.Popen(
                [self.layout.program(name), *program.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PATH": search_path(), **program.environment},
            ).pid
        partial = self.layout.state / f"{self.name}.partial"
        partial.write_text(json.dumps(self.pids))
        partial.replace(self.layout.state / f"{self.name}.json")

    def watch(self) -> NoReturn:
        while True:
            ended, status = os.wait()  # also of orphans that we inherit
            for name, pid in list(self.pids.items()):
                if pid == ended:
                    with self.layout.ended.open("a") as notes:
                        code = os.waitstatus_to_exitcode(status)
                        notes.write(f"{time.strftime('%H:%M:%S')} {self.name}: {name} ended: {code}\n")
                    time.sleep(RESTART_SECONDS)
                    self.start(name)


def run_control(layout: Layout) -> NoReturn:
    programs = components.control_programs(layout)
    machine = Machine(layout, CONTROL, programs)
    machine.start("etcd")
    machine.start("kube-apiserver")
    trust = ssl.create_default_context(cafile=layout.pki / "ca.crt")
    wait("kube-apiserver ready", lambda: _is_ready(trust), 180, every=0.05)  # the others give up without it
    for name in programs:
        if name not in machine.pids:
            machine.start(name)
    machine.watch()


def run_node(layout: Layout, node: Node) -> NoReturn:
    machine = Machine(layout, node.name, components.node_programs(layout, node))
    if cgroups.UNIFIED.is_mount():
        run("umount", "--lazy", str(cgroups.UNIFIED))
    # Images are in memory: they vanish with us, and an overlay over / (images.host_image) can't have its upper layer
    # somewhere below /.
    store = node.folder / "containerd"
    store.mkdir()
    run("mount", "-t", "tmpfs", "-o", "mode=711,size=8g", "tmpfs", str(store))
    for place in components.OWN_PLACES:
        own = node.folder / place[1:].replace("/", ".")
        own.mkdir()
        Path(place).mkdir(parents=True, exist_ok=True)
        run("mount", "--bind", str(own), place)
    for path in components.TUNABLES:
        run("mount", "--bind", str(node.folder / "tunables" / path.replace("/", ".")), f"/proc/sys/{path}")
    machine.start("containerd")
    wait("containerd answers", lambda: _answers(layout, node), 120)
    pause = Path(layout.program("pause")).read_bytes()
    image = images.archive(PAUSE, [{"pause": images.Entry(pause)}], ["/pause"])
    images.ctr(layout, node, "images", "import", "-", stdin=image)
    machine.start("kubelet")
    machine.watch()


def _is_ready(trust: ssl.SSLContext) -> bool:
    try:
        with urllib.request.urlopen(f"{API}/readyz", context=trust, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _answers(layout: Layout, node: Node) -> bool:
    command = [layout.program("ctr"), f"--address={node.socket}", "version"]
    return node.socket.exists() and subprocess.run(command, capture_output=True, check=False).returncode == 0


def main() -> None:
    name, state, machine = sys.argv[1:]
    layout = load(name, Path(state))
    if layout is None:
        raise ClusterError(f"there is no cluster in {state}")
    if machine == CONTROL:
        run_control(layout)
    run_node(layout, layout.node(int(machine.rpartition("-")[2])))


if __name__ == "__main__":
    try:
        main()
    except ClusterError as problem:
        sys.exit(f"cluster: {problem}")

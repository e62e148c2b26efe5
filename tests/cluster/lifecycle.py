"""Bringing a cluster up and taking it down, and its nodes one by one. All of it may be repeated."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.cluster import cgroups, components, network
from tests.cluster.layout import CONTROL, CONTROL_IP, S3_PORT, SERVICE_IP, Layout, Node
from tests.cluster.processes import (
    ClusterError,
    alive,
    children,
    direct,
    identity,
    start_time,
    status_field,
    wait,
)

ROOT = Path(__file__).resolve().parents[2]
SLOW = 180.0
"""Seconds for what takes 5 s on an idle machine: others may keep all cores busy."""

Say = Callable[[str], None]


def kubectl(layout: Layout, *arguments: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    command = [layout.program("kubectl"), f"--kubeconfig={layout.admin}", *arguments]
    return subprocess.run(
        network.within(layout, *command),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **direct()},
    )


def ask(layout: Layout, machine: str, *arguments: str) -> Callable[[], str]:
    """A test for `wait`: kubectl's answer, as long as the machine lives."""

    def test() -> str:
        if layout.init(machine) is None:
            raise ClusterError(f"{machine} ended:\n{_tail(layout.logs / f'{machine}.log')}")
        done = kubectl(layout, *arguments)
        return done.stdout.strip() if done.returncode == 0 else ""

    return test


def up(layout: Layout, *, nodes: int, gpus: int, say: Say) -> None:
    """Starts what doesn't run yet, and waits until all of it is usable."""
    if layout.init(CONTROL) is None:
        down(layout)
        layout.save()
        components.configure_control(layout)
        network.make(layout)
        _start_machine(layout, CONTROL)
    wait("kube-apiserver", ask(layout, CONTROL, "get", "--raw=/readyz"), SLOW)
    say("API server ready")
    if nodes:
        rules = kubectl(layout, "apply", "-f", str(components.CONFIG / "coredns-rbac.yaml"))
        if rules.returncode:
            raise ClusterError(f"coredns' rights: {rules.stderr.strip()}")
    for number in range(nodes):
        start_node(layout, layout.node(number), gpus=gpus, say=say)
    wait("controllers", ask(layout, CONTROL, "get", "serviceaccount", "default"), SLOW)
    say("controllers work: the default service account is there")
    if nodes:
        # By the address of a service: kube-proxy's rules are written.
        service = ("--server=https://" + SERVICE_IP, "--request-timeout=1s", "get", "--raw=/readyz")
        wait("kube-proxy", ask(layout, CONTROL, *service), SLOW)
        wait("coredns", lambda: _answers(layout, f"http://{CONTROL_IP}:8181/ready"), SLOW)
        wait("the S3 server", lambda: _answers(layout, f"http://{CONTROL_IP}:{S3_PORT}"), SLOW)
        say("services, names and the S3 server work")


def down(layout: Layout) -> None:
    """Without a trace; the marker goes last, so that an interrupted `down` can be repeated."""
    for machine in reversed(layout.machines()):
        stop_machine(layout, machine)
    network.remove(layout)
    cgroups.remove(layout.name)
    if layout.state.exists():
        shutil.rmtree(layout.state)


def start_node(layout: Layout, node: Node, *, gpus: int, say: Say) -> None:
    if layout.init(node.name) is None:
        stop_node(layout, node)
        components.configure_node(layout, node)
        network.add_node(layout, node)
        cgroups.make(node.cgroup)
        _start_machine(layout, node.name)
        # A kubelet that registers sets extended resources to 0, so wait for that.
        log = layout.logs / f"{node.name}.kubelet.log"
        answers = ask(layout, node.name, "version")
        wait(f"{node.name} registered", lambda: answers() and _has(log, "Successfully registered node"), SLOW)
        say(f"{node.name} registered")
    if gpus:
        # Both, or the scheduler waits for the kubelet's next report.
        status = {key: {"nvidia.com/gpu": str(gpus)} for key in ("capacity", "allocatable")}
        patch = ("--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))
        wait(f"GPUs of {node.name}", ask(layout, node.name, "patch", "node", node.name, *patch), SLOW)
    ready = '{.status.conditions[?(@.type=="Ready")].status}{.spec.taints}'
    test = ask(layout, node.name, "get", "node", node.name, "-o", f"jsonpath={ready}")
    wait(f"{node.name} ready", lambda: test() == "True", SLOW)
    say(f"{node.name} Ready, without taints, {gpus} GPUs")


def stop_node(layout: Layout, node: Node) -> None:
    """As if its power were cut."""
    stop_machine(layout, node.name)
    cgroups.remove(node.cgroup)
    if node.folder.exists():
        shutil.rmtree(node.folder)


def stop_machine(layout: Layout, machine: str) -> None:
    pid = layout.init(machine)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)  # the kernel ends all the others with it
        wait(f"process 1 of {machine} gone", lambda: start_time(pid) is None, SLOW, every=0.02)
    (layout.state / f"{machine}.pid").unlink(missing_ok=True)


def status(layout: Layout) -> tuple[list[str], bool]:
    """Lines to read, and whether all that should run does."""
    if not layout.machines():
        return ["down"], False
    lines, total, fine = [], 0, True
    for machine in layout.machines():
        pids = program_pids(layout, machine)
        for program, pid in pids.items():
            rss = int((status_field(pid, "VmRSS") or "0").split()[0]) // 1024
            total, fine = total + rss, fine and rss > 0
            lines.append(f"{machine:10} {program:24} " + (f"pid {pid:>8} {rss:6} MiB" if rss else "ENDED"))
    lines.append(f"{'all':48} {total:6} MiB")
    nodes = kubectl(layout, "get", "nodes", "-o", "wide")
    lines.append(nodes.stdout.strip() or "no nodes" if nodes.returncode == 0 else "no answer from the API server")
    lines.extend(unasked(layout))
    return lines, fine and nodes.returncode == 0


def program_pids(layout: Layout, machine: str) -> dict[str, int | None]:
    """The pid that each of a machine's programs has outside; None for one that is being started again."""
    init = layout.init(machine)
    outside = {}
    for child in children(init) if init else []:
        inner = status_field(child, "NSpid")
        if inner:
            outside[int(inner.split()[-1])] = child
    try:
        inside: dict[str, int] = json.loads((layout.state / f"{machine}.json").read_text())
    except FileNotFoundError:
        return {}
    return {program: outside.get(pid) for program, pid in inside.items()}


def unasked(layout: Layout) -> list[str]:
    """Programs that ended though nobody asked them to, each as a line. They were started again."""
    return layout.ended.read_text().splitlines() if layout.ended.exists() else []


def _start_machine(layout: Layout, machine: str) -> None:
    """Below `unshare`, which stays; it ends its child when it ends, and itself when this cluster's owner ends."""
    command = [layout.program("unshare"), "--mount", "--pid", "--uts", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
    if layout.owner and alive(layout.owner) == os.getpid():
        command = [layout.program("setpriv"), "--pdeathsig", "KILL", *command]
    command += [sys.executable, "-m", "tests.cluster.machine", layout.name, str(layout.state), machine]
    log = layout.logs / f"{machine}.log"
    with log.open("ab") as out:
        outer = subprocess.Popen(
            network.within(layout, *command),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            cwd=ROOT,
            env={**os.environ, **direct()},
        )

    def child() -> list[int]:
        if outer.poll() is not None:
            raise ClusterError(f"{machine} ended:\n{_tail(log)}")
        return children(outer.pid)

    pid = wait(f"process 1 of {machine}", child, SLOW, every=0.02)[0]
    (layout.state / f"{machine}.pid").write_text(identity(pid))


def _answers(layout: Layout, url: str) -> bool:
    """Whether anything does, were it to refuse. A process of its own asks: this one may be in another network."""
    code = (
        "import sys, urllib.error, urllib.request as r\n"
        "try: r.urlopen(sys.argv[1], timeout=2)\n"
        "except urllib.error.HTTPError as e: sys.exit(e.code >= 500)\n"
    )
    command = network.within(layout, sys.executable, "-c", code, url)
    return subprocess.run(command, capture_output=True, check=False, env={**os.environ, **direct()}).returncode == 0


def _has(log: Path, text: str) -> bool:
    return log.exists() and text in log.read_text(errors="replace")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:] if log.exists() else "(no log)"

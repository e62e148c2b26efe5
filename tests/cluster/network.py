"""The cluster's network namespace: making it, running in it, moving this very process into it.

It has a name, so that tests can enter it, and no way out. The machine's own network gets no interface, route or rule.
"""

import ctypes
import os

from tests.cluster.layout import CONTROL_IP, SERVICE_CIDR, Layout, Node
from tests.cluster.processes import ClusterError, run

CLONE_NEWNET = 0x40000000


def make(layout: Layout) -> None:
    run(layout.program("ip"), "netns", "add", layout.name)
    for arguments in (
        ["link", "set", "lo", "up"],
        ["link", "add", "nodes", "type", "bridge"],  # a dummy device would do, but some kernels have none
        ["address", "add", f"{CONTROL_IP}/24", "dev", "nodes"],
        ["link", "set", "nodes", "up"],
        # No default route: what is not in the cluster fails at once. Addresses of services need some route, else a
        # process gets "unreachable" before kube-proxy's rules see its packet.
        ["route", "add", SERVICE_CIDR, "dev", "nodes"],
    ):
        run(*within(layout, layout.program("ip"), *arguments))
    run(*within(layout, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"))


def add_node(layout: Layout, node: Node) -> None:
    run(*within(layout, layout.program("ip"), "address", "replace", f"{node.ip}/24", "dev", "nodes"))


def remove(layout: Layout) -> None:
    if layout.network.exists():
        run(layout.program("ip"), "netns", "delete", layout.name)


def within(layout: Layout, *command: str) -> list[str]:
    """The command as it must be called to run in the cluster's network.

    Not `ip netns exec`: that mounts /sys anew, without the cgroups below it.
    """
    return [layout.program("nsenter"), f"--net={layout.network}", "--", *command]


def beside_kubelet(layout: Layout, node: Node, *command: str) -> list[str]:
    """The command as it must be called to run where a node's kubelet and containerd do."""
    pid = layout.init(node.name)
    if pid is None:
        raise ClusterError(f"{node.name} does not run")
    return [layout.program("nsenter"), f"--target={pid}", "--mount", "--net", "--pid", "--uts", "--", *command]


def hold_own() -> int:
    """A descriptor by which this thread can return to the network that it is in now."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def enter(layout: Layout) -> None:
    """Moves this thread; threads and processes that it starts later are in that network too."""
    descriptor = os.open(layout.network, os.O_RDONLY)
    try:
        move(descriptor)
    finally:
        os.close(descriptor)


def move(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise ClusterError(f"can't enter a network namespace: {os.strerror(ctypes.get_errno())}")

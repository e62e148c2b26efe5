"""Where everything of a cluster is: its addresses, its files, the programs that it runs."""

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.processes import ClusterError, alive

CONTROL = "control"
CONTROL_IP = "10.10.0.1"
"""The API server, DNS and the S3 server."""
S3_PORT = 7070
SERVICE_CIDR = "10.96.0.0/16"
SERVICE_IP = "10.96.0.1"
"""The service kubernetes.default."""
POD_CIDR = "10.244.0.0/16"
API = f"https://{CONTROL_IP}:6443"
PAUSE = "localhost/pause:1"
TRAINER_IMAGE = "localhost/comd-trainer:test"
"""The name by which pods find the host image: this machine's files, this Python, this checkout."""

MARKER = "comd-test-cluster.json"
"""The file by which a state folder is known to be one: `down` removes no folder without it."""
LONGEST_SOCKET = 107 - len("/node-9/containerd.sock")


@dataclass(frozen=True)
class Node:
    """The names, addresses and places of one node."""

    number: int
    cluster: str
    state: Path

    @property
    def name(self) -> str:
        return f"node-{self.number}"

    @property
    def ip(self) -> str:
        return f"10.10.0.{10 + self.number}"

    @property
    def pods(self) -> str:
        return f"10.244.{self.number}.0/24"

    @property
    def bridge(self) -> str:
        return f"pods{self.number}"

    @property
    def folder(self) -> Path:
        return self.state / self.name

    @property
    def socket(self) -> Path:
        return self.folder / "containerd.sock"

    @property
    def cgroup(self) -> str:
        return f"{self.cluster}/{self.name}"


@dataclass(frozen=True)
class Layout:
    """One cluster's. All of it is written down in the state folder's marker, so that a later command finds it again."""

    name: str
    """Of the network namespace and of the cgroup."""
    state: Path
    programs: dict[str, str]
    """Where each program is; with these, the cluster never looks for another one."""
    with_nodes: bool = False
    owner: str | None = None
    """The process that the cluster ends with; None if it stays until `down`."""
    checkout: str = ""
    """The folder of the project that it was started from, whose files its host image shows."""

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def ended(self) -> Path:
        """Where a machine notes that one of its programs ended, though nobody asked it to."""
        return self.logs / "ended.log"

    @property
    def admin(self) -> Path:
        return self.state / "admin.kubeconfig"

    @property
    def network(self) -> Path:
        return Path("/run/netns") / self.name

    def program(self, name: str) -> str:
        try:
            return self.programs[name]
        except KeyError:
            raise ClusterError(f"cluster {self.name} was brought up without {name}, for a control plane only") from None

    def node(self, number: int) -> Node:
        return Node(number, self.name, self.state)

    def machines(self) -> list[str]:
        """The names of those that run."""
        return [file.stem for file in sorted(self.state.glob("*.pid")) if self.init(file.stem)]

    def nodes(self) -> list[Node]:
        return [self.node(int(name.rpartition("-")[2])) for name in self.machines() if name != CONTROL]

    def init(self, machine: str) -> int | None:
        """The pid of a machine's process 1, if it lives."""
        try:
            return alive((self.state / f"{machine}.pid").read_text())
        except FileNotFoundError:
            return None

    def save(self) -> None:
        """Makes the state folder, which must not be there."""
        self.state.mkdir(mode=0o755, parents=True)
        record = {
            "name": self.name,
            "programs": self.programs,
            "with_nodes": self.with_nodes,
            "owner": self.owner,
            "checkout": self.checkout,
        }
        (self.state / MARKER).write_text(json.dumps(record, indent=1) + "\n")


def default_state(name: str) -> Path:
    """A folder of the temporary directory; the path of a socket below it may not be long."""
    return Path(tempfile.gettempdir()) / f"comd-cluster-{name}"


def load(name: str, state: Path) -> Layout | None:
    """The cluster of that name and folder, up or not; None if there is no such folder. Refuses what is not ours."""
    if not state.exists():
        return None
    try:
        layout = Layout(state=state, **json.loads((state / MARKER).read_text()))
    except (OSError, ValueError, TypeError):
        raise ClusterError(f"{state} was not made by this program (no {MARKER} in it), so it is left alone") from None
    if layout.name != name:
        raise ClusterError(f"{state} belongs to the cluster {layout.name}, not to {name}, so it is left alone")
    return layout


def check_new(name: str, state: Path) -> None:
    """Refuses a cluster that could harm something else or could not work."""
    if not name.replace("-", "").isalnum() or len(name) > 40:
        raise ClusterError(f"{name!r}: a cluster's name is of letters, digits and dashes, 40 at most")
    if len(os.fsencode(state)) > LONGEST_SOCKET:
        raise ClusterError(f"{state}: too long for the path of a socket; {LONGEST_SOCKET} bytes at most")
    if (Path("/run/netns") / name).exists():
        raise ClusterError(
            f"there is a network namespace {name} that {state} does not know of; use another --name, or, "
            f"if nothing uses it: ip netns delete {name}"
        )


def forsaken() -> list[Layout]:
    """Clusters in the temporary directory whose owner has ended without taking them down."""
    found = []
    for marker in Path(tempfile.gettempdir()).glob(f"comd-cluster-*/{MARKER}"):
        try:
            layout = Layout(state=marker.parent, **json.loads(marker.read_text()))
        except (OSError, ValueError, TypeError):
            continue
        if layout.owner and not alive(layout.owner) and marker.parent == default_state(layout.name):
            found.append(layout)
    return found


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]

"""What runs on each machine, and how it is called and configured."""

import resource
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster import certificates
from tests.cluster.layout import CONTROL_IP, PAUSE, POD_CIDR, S3_PORT, SERVICE_CIDR, Layout, Node
from tests.s3 import versity

CONFIG = Path(__file__).parent / "config"
ETCD = "http://127.0.0.1:2379"
OWN_PLACES = ("/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/var/log/containers")
"""Paths that are compiled in somewhere; each node has its own folders there."""

TUNABLES = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What kubelet would write into the machine's kernel. It leaves alone what it finds right, so each node sees files with
these values instead of the real ones."""


@dataclass(frozen=True)
class Program:
    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def s3_server(layout: Layout) -> versity.Server:
    """The S3 server that pods and tests reach."""
    return versity.Server(f"http://{CONTROL_IP}:{S3_PORT}", "test-key", "test-secret", layout.state / "s3" / "objects")


def configure_control(layout: Layout) -> None:
    layout.logs.mkdir()
    certificates.make_authority(layout)
    for template in ("kube-proxy.json", "Corefile"):
        _fill(layout, template, layout.state / template)


def configure_node(layout: Layout, node: Node) -> None:
    for log in layout.logs.glob(f"{node.name}.*log"):  # of its life before its power was cut
        log.rename(log.with_name(f"{log.name}.before"))
    certificates.make_node(layout, node)
    values = {
        "FOLDER": node.folder,
        "NODE": node.name,
        "NODE_IP": node.ip,
        "NODE_PODS": node.pods,
        "BRIDGE": node.bridge,
        "SOCKET": node.socket,
        "CGROUP": node.cgroup,
        "CNI_BIN": layout.program("cni"),
        "RUNC": layout.program("runc"),
        "NOFILE": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
    }
    for template in ("containerd.toml", "kubelet.json"):
        _fill(layout, template, node.folder / template, **values)
    _fill(layout, "10-bridge.conflist", node.folder / "cni" / "10-bridge.conflist", **values)
    (node.folder / "resolv.conf").write_text(f"nameserver {CONTROL_IP}\n")
    tunables = node.folder / "tunables"
    tunables.mkdir()
    for path, value in TUNABLES.items():
        (tunables / path.replace("/", ".")).write_text(value + "\n")


def control_programs(layout: Layout) -> dict[str, Program]:
    pki = layout.pki
    found = {
        "etcd": [
            f"--data-dir={layout.state}/etcd",
            "--unsafe-no-fsync",
            "--log-level=warn",
            f"--listen-client-urls={ETCD}",
            f"--advertise-client-urls={ETCD}",
            "--listen-peer-urls=http://127.0.0.1:2380",
        ],
        "kube-apiserver": [
            f"--etcd-servers={ETCD}",
            "--secure-port=6443",
            # This becomes the endpoint of kubernetes.default, which pods must reach: loopback would not do.
            f"--advertise-address={CONTROL_IP}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            f"--client-ca-file={pki}/ca.crt",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-signing-key-file={pki}/service-account.key",
            f"--service-account-key-file={pki}/service-account.pub",
            f"--kubelet-certificate-authority={pki}/ca.crt",
            f"--kubelet-client-certificate={pki}/apiserver-kubelet.crt",
            f"--kubelet-client-key={pki}/apiserver-kubelet.key",
            "--kubelet-preferred-address-types=InternalIP",
            # A dead node's pods are given up after 20 s + 5 s (Kubernetes' own: 50 s + 300 s).
            "--default-not-ready-toleration-seconds=5",
            "--default-unreachable-toleration-seconds=5",
        ],
        "kube-controller-manager": [
            f"--kubeconfig={layout.state}/kube-controller-manager.kubeconfig",
            # Each controller has its own identity and rights, as in a real cluster.
            "--use-service-account-credentials",
            "--leader-elect=false",
            f"--service-account-private-key-file={pki}/service-account.key",
            f"--root-ca-file={pki}/ca.crt",
            f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key",
            "--bind-address=127.0.0.1",
            "--controllers=*",
            "--node-monitor-grace-period=20s",
            "--node-monitor-period=2s",
            # Controllers start one after another, and 5 s later at the default of 20 requests a second.
            "--kube-api-qps=300",
            "--kube-api-burst=600",
        ],
        "kube-scheduler": [
            f"--kubeconfig={layout.state}/kube-scheduler.kubeconfig",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        ],
    }
    programs = {name: Program(arguments) for name, arguments in found.items()}
    if layout.with_nodes:
        programs["kube-proxy"] = Program([f"--config={layout.state}/kube-proxy.json"])
        programs["coredns"] = Program([f"-conf={layout.state}/Corefile"])
        command = versity.command("", f"{CONTROL_IP}:{S3_PORT}", layout.state / "s3")
        programs["versitygw"] = Program(command[1:], s3_server(layout).secrets)
    return programs


def node_programs(layout: Layout, node: Node) -> dict[str, Program]:
    kubelet = [
        f"--config={node.folder}/kubelet.json",
        f"--kubeconfig={layout.state}/{node.name}.kubeconfig",
        f"--hostname-override={node.name}",
        f"--node-ip={node.ip}",
        f"--root-dir={node.folder}/kubelet",
    ]
    return {"containerd": Program([f"--config={node.folder}/containerd.toml"]), "kubelet": Program(kubelet)}


def _fill(layout: Layout, template: str, target: Path, **values: object) -> None:
    """Writes a file of config/ with its @NAMES@ replaced."""
    text = (CONFIG / template).read_text()
    always = {
        "STATE": layout.state,
        "PKI": layout.pki,
        "CONTROL_IP": CONTROL_IP,
        "POD_CIDR": POD_CIDR,
        "PAUSE": PAUSE,
    }
    for key, value in (always | values).items():
        text = text.replace(f"@{key}@", str(value))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)

"""The cluster's authority, its certificates, and kubeconfigs."""

import base64
import json
from pathlib import Path
from typing import Any

from tests.cluster.layout import API, CONTROL_IP, SERVICE_IP, Layout, Node
from tests.cluster.processes import run

USERS = {
    "admin": "/O=system:masters/CN=admin",
    "kube-controller-manager": "/CN=system:kube-controller-manager",
    "kube-scheduler": "/CN=system:kube-scheduler",
    "kube-proxy": "/CN=system:kube-proxy",
    "coredns": "/CN=system:coredns",
}


def make_authority(layout: Layout) -> None:
    """Everything the control plane needs; P-256, because all of it is made in 0.2 s."""
    layout.pki.mkdir(mode=0o700)
    _certificate(layout, "ca", "/CN=cluster-ca")
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    addresses = [CONTROL_IP, "127.0.0.1", SERVICE_IP]
    sans = [*(f"IP:{address}" for address in addresses), *(f"DNS:{name}" for name in ["localhost", *names])]
    _certificate(layout, "apiserver", "/CN=kube-apiserver", *sans, server=True)
    _certificate(layout, "apiserver-kubelet", "/O=system:masters/CN=kube-apiserver-kubelet-client")
    for user, subject in USERS.items():
        _certificate(layout, user, subject)
        _certificate_kubeconfig(layout, user)
    key = layout.pki / "service-account.key"
    run("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)
    run("openssl", "pkey", "-in", key, "-pubout", "-out", layout.pki / "service-account.pub")


def make_node(layout: Layout, node: Node) -> None:
    subject = f"/O=system:nodes/CN=system:node:{node.name}"
    _certificate(layout, node.name, subject)
    _certificate_kubeconfig(layout, node.name)
    _certificate(layout, f"{node.name}-server", subject, f"IP:{node.ip}", f"DNS:{node.name}", server=True)


def token_kubeconfig(layout: Layout, path: Path, *, user: str, namespace: str, token: str) -> Path:
    """For whom a bearer token stands, with a namespace to begin in."""
    return _kubeconfig(layout, path, user, {"token": token}, namespace=namespace)


def _certificate(layout: Layout, name: str, subject: str, *sans: str, server: bool = False) -> None:
    """A key, and a certificate that the cluster's authority has signed."""
    usage = "serverAuth" if server else "clientAuth"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "365", "-subj", subject]
    command += ["-keyout", f"{layout.pki}/{name}.key", "-out", f"{layout.pki}/{name}.crt"]
    if name == "ca":
        extensions = ["keyUsage=critical,keyCertSign,cRLSign,digitalSignature"]
    else:
        command += ["-CA", f"{layout.pki}/ca.crt", "-CAkey", f"{layout.pki}/ca.key"]
        extensions = [
            "basicConstraints=critical,CA:FALSE",
            "keyUsage=critical,digitalSignature",
            f"extendedKeyUsage={usage}",
        ]
    if sans:
        extensions.append("subjectAltName=" + ",".join(sans))
    for extension in extensions:
        command += ["-addext", extension]
    run(*command)


def _certificate_kubeconfig(layout: Layout, user: str) -> None:
    credentials = {
        "client-certificate-data": _data(layout.pki / f"{user}.crt"),
        "client-key-data": _data(layout.pki / f"{user}.key"),
    }
    _kubeconfig(layout, layout.state / f"{user}.kubeconfig", user, credentials)


def _kubeconfig(
    layout: Layout, path: Path, user: str, credentials: dict[str, str], *, namespace: str | None = None
) -> Path:
    """Everything in one file, JSON being YAML too."""
    cluster = {"server": API, "certificate-authority-data": _data(layout.pki / "ca.crt")}
    context = {"cluster": layout.name, "user": user} | ({"namespace": namespace} if namespace else {})
    content: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": layout.name,
        "clusters": [{"name": layout.name, "cluster": cluster}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": layout.name, "context": context}],
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _data(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()

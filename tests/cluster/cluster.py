"""A running cluster, as tests hold it."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tests import gotools
from tests.cluster import certificates, components, doctor, images, lifecycle, network
from tests.cluster.layout import API, Layout, Node, check_new, default_state, forsaken, load
from tests.cluster.processes import ClusterError, direct, identity
from tests.s3 import versity

ROOT = Path(__file__).resolve().parents[2]

GPUS = 8


class Cluster:
    """One cluster. `up` makes it or finds it running, `find` finds it."""

    def __init__(self, layout: Layout, *, gpus: int = GPUS):
        self.layout = layout
        self.gpus = gpus

    @classmethod
    def up(
        cls,
        name: str,
        *,
        nodes: int,
        gpus: int = GPUS,
        state: Path | None = None,
        owned: bool = False,
        say: Callable[[str], None] = print,
    ) -> "Cluster":
        """Starts it, or what is missing of it. `owned`: it ends when this process does, however that ends."""
        state = (state or default_state(name)).absolute()
        layout = load(name, state)
        if layout is None or not layout.machines():
            if layout is not None:
                lifecycle.down(layout)
            check_new(name, state)
            programs = doctor.prepare(with_nodes=nodes > 0, say=say)
            owner = identity(os.getpid()) if owned else None
            layout = Layout(name, state, programs, with_nodes=nodes > 0, owner=owner, checkout=str(ROOT))
        elif layout.checkout != str(ROOT):
            raise ClusterError(
                f"cluster {name} is up, started from {layout.checkout}, whose files its pods see; "
                "use another --name, or take it down there first"
            )
        elif nodes and not layout.with_nodes:
            raise ClusterError(f"cluster {name} is up as a control plane only; take it down first")
        begun = time.monotonic()

        def progress(text: str) -> None:
            say(f"{time.monotonic() - begun:6.1f} s  {text}")

        lifecycle.up(layout, nodes=nodes, gpus=gpus, say=progress)
        return cls(layout, gpus=gpus)

    @classmethod
    def find(cls, name: str, state: Path | None = None) -> "Cluster | None":
        layout = load(name, (state or default_state(name)).absolute())
        return cls(layout) if layout else None

    def down(self) -> None:
        lifecycle.down(self.layout)

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.layout.admin

    @property
    def environment(self) -> dict[str, str]:
        """Variables for a client inside the cluster's network, as the administrator."""
        return {"KUBECONFIG": str(self.kubeconfig), **direct()}

    @property
    def api_url(self) -> str:
        return API

    @property
    def nodes(self) -> list[str]:
        """The names of those that run."""
        return [node.name for node in self.layout.nodes()]

    @property
    def s3(self) -> versity.Server:
        """The S3 server inside the cluster's network. It is there when there are nodes."""
        if not self.layout.with_nodes:
            raise ClusterError("a control plane only has no S3 server")
        return components.s3_server(self.layout)

    @property
    def logs(self) -> Path:
        return self.layout.logs

    def kubectl(self, *arguments: str, input: str | None = None, check: bool = True) -> str:
        """What kubectl prints, as the administrator. With check=False an error's text is returned like an answer."""
        done = lifecycle.kubectl(self.layout, *arguments, stdin=input)
        if check and done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout if done.returncode == 0 else done.stdout + done.stderr

    def apply(self, manifest: str, *, namespace: str | None = None) -> None:
        """YAML or JSON, one document or several."""
        self.kubectl(*(["--namespace", namespace] if namespace else []), "apply", "-f", "-", input=manifest)

    def stop_node(self, number: int) -> None:
        """Cuts its power: kubelet, containers and their files are gone; what it was stays in the API for a while."""
        lifecycle.stop_node(self.layout, self.layout.node(number))

    def start_node(self, number: int) -> None:
        """Gives its power back, and waits until it is ready, with the images that the others have."""
        node = self.layout.node(number)
        lifecycle.start_node(self.layout, node, gpus=self.gpus, say=lambda _: None)
        for kind, name in self._images():
            self._provide(node, kind, name)

    def cordon(self, number: int) -> None:
        self.kubectl("cordon", self.layout.node(number).name)

    def uncordon(self, number: int) -> None:
        self.kubectl("uncordon", self.layout.node(number).name)

    def drain(self, number: int, *, timeout: float = 120) -> None:
        """Cordons it and evicts its pods, through the eviction API."""
        options = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", f"--timeout={timeout:g}s")
        self.kubectl("drain", self.layout.node(number).name, *options)

    def host_image(self, name: str) -> None:
        """On every node an image of that name whose files are this machine's; see images.host_image."""
        self._provide_everywhere("host", name)

    def load(self, *archives: Path) -> None:
        """Imports archives of images on every node."""
        for archive in archives:
            self._provide_everywhere("archive", str(archive.absolute()))

    def _provide_everywhere(self, kind: str, name: str) -> None:
        for node in self.layout.nodes():
            self._provide(node, kind, name)
        known = self._images()
        if [kind, name] not in known:
            (self.layout.state / "images.json").write_text(json.dumps([*known, [kind, name]]))

    def _provide(self, node: Node, kind: str, name: str) -> None:
        if kind == "host":
            images.host_image(self.layout, node, name)
        else:
            images.load(self.layout, node, Path(name))

    def _images(self) -> list[list[str]]:
        """What was put on the nodes, for those that start later: kind, and name or file."""
        record = self.layout.state / "images.json"
        return json.loads(record.read_text()) if record.exists() else []

    def kubeconfig_for(self, *, user: str, namespace: str, duration: str = "1h") -> Path:
        """A kubeconfig with a bearer token of a service account, whose rights are then all that a client has."""
        token = self.kubectl("--namespace", namespace, "create", "token", user, f"--duration={duration}").strip()
        path = self.layout.state / "kubeconfigs" / f"{namespace}.{user}.kubeconfig"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        return certificates.token_kubeconfig(self.layout, path, user=user, namespace=namespace, token=token)

    def unasked(self) -> list[str]:
        """Programs of the cluster that ended though nobody asked them to."""
        return lifecycle.unasked(self.layout)

    def enter(self) -> None:
        """Moves this thread into the cluster's network; its later threads and processes are there too."""
        network.enter(self.layout)

    def save_logs(self, folder: Path) -> Path:
        """Logs of the cluster and of the pods that are there, and what the API knows of events, pods and jobs."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.layout.logs, folder / "logs", dirs_exist_ok=True)
        for node in self.layout.nodes():
            pods = node.folder / "var.log.pods"
            if pods.exists():
                shutil.copytree(pods, folder / "pods" / node.name, dirs_exist_ok=True, ignore_dangling_symlinks=True)
        objects = self.kubectl("get", "events,pods,jobs", "-A", "-o", "yaml", "--request-timeout=20s", check=False)
        (folder / "objects.yaml").write_text(objects)
        return folder


def sweep() -> None:
    """Takes down clusters whose test process ended without doing so."""
    with gotools.locked(gotools.cache() / "sweep"):
        for layout in forsaken():
            lifecycle.down(layout)

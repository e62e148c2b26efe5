"""The programs that a cluster runs: where they are found, how they are built.

Each is looked for in the folders COMD_TEST_BIN and KUBEBUILDER_ASSETS and on PATH; else Go builds it from the module
beside this file that pins it. One of Kubernetes that was found must be of the pinned minor version: a machine often has
some kubectl of its own.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests import gotools
from tests.cluster.processes import ClusterError, search_path
from tests.s3 import versity

HERE = Path(__file__).parent
CNI_FOLDERS = ("/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni")
CNI_PLUGINS = ("bridge", "host-local", "loopback", "portmap")


@dataclass(frozen=True)
class Module:
    """A Go module below modules/, and the package of each program that is built from it."""

    name: str
    packages: dict[str, str]

    @property
    def folder(self) -> Path:
        return HERE / "modules" / self.name

    @property
    def target(self) -> Path:
        return gotools.cache() / gotools.key(sorted(self.folder.iterdir()), flags(self))


KUBERNETES = Module(
    "kubernetes",
    {
        name: f"k8s.io/kubernetes/cmd/{name}"
        for name in (
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubectl",
            "kubelet",
            "kube-proxy",
        )
    },
)
MODULES = (
    KUBERNETES,
    Module("etcd", {"etcd": "go.etcd.io/etcd/server/v3"}),
    Module("coredns", {"coredns": "."}),
)
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
NODES = ("kubelet", "kube-proxy", "coredns", "versitygw", "pause")
"""What there is besides where pods run."""


def names(*, with_nodes: bool) -> tuple[str, ...]:
    return CONTROL_PLANE + NODES if with_nodes else CONTROL_PLANE


def version() -> str:
    """Of Kubernetes, as its module pins it."""
    found = re.search(r"k8s\.io/kubernetes (v\S+)", (KUBERNETES.folder / "go.mod").read_text())
    assert found is not None
    return found[1]


def flags(module: Module) -> str:
    """The linker's. Without them Kubernetes says that it is version 0, and clients refuse to talk to it."""
    if module is not KUBERNETES:
        return "-s -w"
    major, minor, _ = version().removeprefix("v").split(".")
    value = "k8s.io/component-base/version.git"
    return f"-s -w -X {value}Version={version()} -X {value}Major={major} -X {value}Minor={minor}"


def find(name: str) -> str | None:
    """Where the program is, without building it."""
    if name == "pause":
        built = pause_target()
        return str(built) if built.exists() else None
    if name == "versitygw":
        return versity.find()
    module = next(module for module in MODULES if name in module.packages)
    folders = [os.environ.get("COMD_TEST_BIN"), os.environ.get("KUBEBUILDER_ASSETS"), os.environ.get("PATH")]
    for path in filter(None, folders):
        found = shutil.which(name, path=path)
        if found and (module is not KUBERNETES or _fits(found)):
            return found
    built = module.target / name
    return str(built) if built.exists() else None


def _fits(program: str) -> bool:
    """Whether it is of the minor version that the module pins."""
    arguments = ["version", "--client"] if Path(program).name == "kubectl" else ["--version"]
    minor = version().rpartition(".")[0]
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return re.search(rf"{re.escape(minor)}\.\d", done.stdout) is not None


def provide(wanted: Iterable[str], say: Callable[[str], None]) -> dict[str, str]:
    """Where each program is; those that are nowhere are built: all of them in about eight minutes, once a machine."""
    return {name: find(name) or _built(name, say) for name in wanted}


def _built(name: str, say: Callable[[str], None]) -> str:
    if name == "versitygw":
        say("building versitygw")
        return str(versity.binary())
    if name == "pause":
        target = pause_target()
        with gotools.locked(target.parent):
            if not target.exists():
                _compile_pause(target)
        return str(target)
    module = next(module for module in MODULES if name in module.packages)
    with gotools.locked(module.target):
        target = module.target / name
        if not target.exists():
            say(f"building {name}")
            try:
                gotools.build(module.folder, module.packages[name], target, flags=flags(module))
            except subprocess.CalledProcessError as error:
                raise ClusterError(f"go could not build {name} (exit {error.returncode}), see above") from None
    return str(target)


def pause_target() -> Path:
    return gotools.cache() / gotools.key([HERE / "pause.c"]) / "pause"


def _compile_pause(target: Path) -> None:
    """The process that holds a pod's namespaces. Static, because its image holds nothing else."""
    partial = target.with_suffix(".partial")
    done = subprocess.run(
        ["cc", "-static", "-Os", "-s", "-o", str(partial), str(HERE / "pause.c")],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"cc could not make pause: {done.stderr.strip()}")
    os.replace(partial, target)


def cni_folder() -> str | None:
    """Where the plugins are that connect a pod to its node's network."""
    return next((place for place in CNI_FOLDERS if all((Path(place) / name).exists() for name in CNI_PLUGINS)), None)


def system_program(name: str) -> str | None:
    """One that comes with the operating system's packages."""
    return shutil.which(name, path=search_path())

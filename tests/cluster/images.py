"""Images without a registry: written as tar files, imported on every node."""

import hashlib
import io
import json
import os
import platform
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.layout import Layout, Node, short_hash
from tests.cluster.network import beside_kubelet
from tests.cluster.processes import ClusterError, run

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Entry:
    """A file, or a folder (data None), of an image's layer."""

    data: bytes | None = None
    mode: int = 0o755
    owner: int = 0
    group: int = 0


def ctr(layout: Layout, node: Node, *arguments: str, stdin: bytes | None = None) -> str:
    """containerd's own client; the socket is a file, so it is reached from everywhere."""
    return run(layout.program("ctr"), f"--address={node.socket}", "--namespace=k8s.io", *arguments, stdin=stdin)


def load(layout: Layout, node: Node, archive: Path) -> None:
    """An archive as `docker save` writes it, or an OCI one."""
    ctr(layout, node, "images", "import", str(archive.absolute()))


def archive(
    name: str,
    layers: Sequence[Mapping[str, Entry]],
    command: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> bytes:
    """An image as `docker save` would write it."""
    blobs = {f"layer{number}.tar": _tar(layer) for number, layer in enumerate(layers)}
    variables = {"PATH": os.defpath, **(environment or {})}
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Cmd": list(command), "Env": [f"{key}={value}" for key, value in variables.items()]},
        "rootfs": {
            "type": "layers",
            "diff_ids": ["sha256:" + hashlib.sha256(blob).hexdigest() for blob in blobs.values()],
        },
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": list(blobs)}]
    files = {"config.json": json.dumps(config).encode(), **blobs, "manifest.json": json.dumps(manifest).encode()}
    return _tar({path: Entry(data) for path, data in files.items()})


def host_image(layout: Layout, node: Node, name: str) -> None:
    """An image whose root file system is this machine's, read-only below, writable above.

    Two small layers are imported; then / is mounted over the place where containerd unpacked the lower one. Nothing is
    copied. The upper layer says what differs from the machine: folders that only their owner may enter there, on the
    way to this Python, its packages and this checkout, may be entered by every user, as containers run as others.
    """
    marker = f"host-image.{short_hash(name)}"
    environment = {
        "PATH": os.pathsep.join([f"{sys.prefix}/bin", os.environ.get("PATH", os.defpath)]),
        "HOME": str(Path.home()),
        "LANG": "C.UTF-8",
    }
    image = archive(name, [{marker: Entry(b"")}, opened_folders()], ["/bin/sh"], environment)
    ctr(layout, node, "images", "import", "-", stdin=image)
    shown = node.folder / f"shown.{short_hash(name)}"
    if shown.exists():
        return  # the layers are there, and / lies over the lower one already
    store = node.folder / "containerd" / "io.containerd.snapshotter.v1.overlayfs" / "snapshots"
    found = run(*beside_kubelet(layout, node, "sh", "-c", f"ls -d {store}/*/fs/{marker}")).split()
    run(*beside_kubelet(layout, node, "mount", "--bind", "/", str(Path(found[0]).parent)))
    shown.touch()


def opened_folders(places: Sequence[Path] | None = None) -> dict[str, Entry]:
    """Folders on the way to these places that others may not enter, as they should look in a pod."""
    opened: dict[str, Entry] = {}
    for place in places if places is not None else shown_places():
        for folder in [*reversed(place.parents), place]:
            there = folder.stat()
            if there.st_mode & 0o005 != 0o005:
                mode = there.st_mode & 0o7777 | 0o055
                opened[str(folder).lstrip("/")] = Entry(None, mode, there.st_uid, there.st_gid)
    return opened


def shown_places() -> list[Path]:
    """What a pod must find: this Python, its packages, this checkout. They must lie on the root file system."""
    given = [Path(sys.prefix), Path(sys.base_prefix), ROOT]
    places = sorted({*(place.resolve() for place in given), Path(sys.executable).resolve().parent})
    for place in places:
        if place.stat().st_dev != Path("/").stat().st_dev:
            raise ClusterError(f"{place} is not on the root file system, which is all that the host image can show")
    return places


def _tar(entries: Mapping[str, Entry]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        for path, entry in entries.items():
            info = tarfile.TarInfo(path)
            info.mode, info.uid, info.gid = entry.mode, entry.owner, entry.group
            if entry.data is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(entry.data)
            out.addfile(info, io.BytesIO(entry.data or b""))
    return buffer.getvalue()

"""The control groups below which a node's pods are: folders with the cluster's name, so that removing ours can't hit others'.

Version 1 (one hierarchy for each controller) is what the project is tested on; version 2 is written by its documentation.
"""

import os
from pathlib import Path

from tests.cluster.processes import wait

ROOT = Path("/sys/fs/cgroup")
UNIFIED = ROOT / "unified"
"""Where a machine with version 1 shows version 2 beside it; two versions at once confuse runtimes."""
CONTROLLERS = ("cpuset", "cpu", "io", "memory", "pids")


def hierarchies() -> list[Path]:
    if is_version_2():
        return [ROOT]
    return [path for path in ROOT.iterdir() if path.is_dir() and not path.is_symlink() and path != UNIFIED]


def is_version_2() -> bool:
    return (ROOT / "cgroup.controllers").exists()


def make(name: str) -> None:
    for hierarchy in hierarchies():
        folder = hierarchy
        for part in Path(name).parts:
            parent, folder = folder, folder / part
            if is_version_2():
                there = (parent / "cgroup.controllers").read_text().split()
                wanted = " ".join(f"+{controller}" for controller in CONTROLLERS if controller in there)
                (parent / "cgroup.subtree_control").write_text(wanted)
            folder.mkdir(exist_ok=True)
            if hierarchy.name == "cpuset":  # a new one is empty: nothing could run in it
                for file in ("cpuset.cpus", "cpuset.mems"):
                    (folder / file).write_text((parent / file).read_text())


def remove(name: str) -> None:
    for hierarchy in hierarchies():
        for folder, _, _ in os.walk(hierarchy / name, topdown=False):
            wait(f"{folder} empty", lambda folder=folder: _removed(folder), 30, every=0.05)  # type: ignore[misc]


def _removed(folder: str) -> bool:
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        pass
    except OSError:  # processes in it are still dying
        return False
    return True

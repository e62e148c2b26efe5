"""Running other programs, waiting, and telling one process from a later one with the same pid."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")


class ClusterError(Exception):
    """Something that the user should read without a traceback."""


def run(*command: str | Path, stdin: bytes | None = None, env: Mapping[str, str] | None = None) -> str:
    """What the command prints; an error with what it complains of."""
    done = subprocess.run([str(part) for part in command], input=stdin, capture_output=True, env=env)
    if done.returncode:
        complaint = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise ClusterError(f"{' '.join(str(part) for part in command)}: {complaint}")
    return done.stdout.decode()


def wait(what: str, test: Callable[[], Found], seconds: float, every: float = 0.1) -> Found:
    """Calls test until it returns something true, and returns that."""
    end = time.monotonic() + seconds
    while True:
        found = test()
        if found:
            return found
        if time.monotonic() > end:
            raise ClusterError(f"{what}: not after {seconds:g} s")
        time.sleep(every)


def start_time(pid: int) -> str | None:
    """A process's start in clock ticks; None when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None


def identity(pid: int) -> str:
    """What `alive` tells this very process by, also after its pid was given to another."""
    return f"{pid} {start_time(pid)}"


def alive(identity: str) -> int | None:
    """The pid, if that process still runs."""
    pid, _, started = identity.partition(" ")
    return int(pid) if pid.isdigit() and start_time(int(pid)) == started else None


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def status_field(pid: int | None, name: str) -> str | None:
    """A line of /proc/PID/status."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name + ":")), None)


def direct() -> dict[str, str]:
    """Variables for a process whose requests stay in the cluster, whatever proxies the machine has."""
    return {"NO_PROXY": "*", "no_proxy": "*"}


def search_path() -> str:
    """PATH, and the folders of administrators' programs, which a user's PATH may lack."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

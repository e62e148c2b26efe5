"""Runs `comd` as a user would, and looks at what it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml


def environment(**more: str) -> dict[str, str]:
    """That of the test as it is now, on one thread and with a wide terminal."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "NO_COLOR": "1", **more}


def comd(*arguments: str | Path, timeout: float = 600, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "comd_operator", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment(**more))


def start_comd(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "comd_operator", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment())


def status_of(work: Path) -> dict[str, Any]:
    status: dict[str, Any] = yaml.safe_load((work / "status.yaml").read_text())["status"]
    return status


def contents(work: Path, *, store: str = "store", run: str = "tiny") -> dict[str, str]:
    """SHA-256 of every file of every artifact, by `stage/phase/file`: what must not depend on how often a run was interrupted."""
    found: dict[str, str] = {}
    root = work / store / "default" / run
    for manifest in sorted(root.glob("*/*/*/manifest.json")):
        stage, phase = manifest.relative_to(root).parts[:2]
        for entry in json.loads(manifest.read_text())["files"]:
            found[f"{stage}/{phase}/{entry['path']}"] = entry["sha256"]
    return found

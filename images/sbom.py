"""`make sbom`: what is in the images, as CycloneDX, one file for each.

Made by cyclonedx-py of the locks alone, so without a network and the same every time. Packages of the base are not in it: their list is the
base's. This module runs in an environment that holds requirements/sbom.txt.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement

from images.recipe import NAMES, ROOT

IMAGE = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.11.15",
    "python_version": "3.11",
    "sys_platform": "linux",
}
"""The Dockerfiles' base, as a lock's markers see it. Locks hold what other systems need, too."""


def held(lock: str) -> str:
    """The lock's entries that such an image holds."""
    environment = {**{name: str(value) for name, value in default_environment().items()}, **IMAGE}
    entries = re.findall(r"^[A-Za-z0-9].*?(?=^[A-Za-z0-9]|\Z)", lock, re.S | re.M)
    pins = [(entry, Requirement(entry.partition("\\")[0].strip())) for entry in entries]
    return "".join(entry for entry, pin in pins if pin.marker is None or pin.marker.evaluate(environment))


def command(requirements: Path, target: Path) -> list[str]:
    """What writes the bill: pins with hashes, below the project and its version."""
    return [
        *(sys.executable, "-W", "ignore::UserWarning", "-m", "cyclonedx_py", "requirements", str(requirements)),
        f"--pyproject={ROOT / 'pyproject.toml'}",
        "--mc-type=application",
        "--output-reproducible",
        "--output-format=JSON",
        f"--output-file={target}",
    ]


def main() -> None:
    folder = ROOT / "dist" / "sbom"
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        target = folder / f"{name}.cdx.json"
        with tempfile.TemporaryDirectory() as scratch:
            requirements = Path(scratch) / f"{name}.txt"
            requirements.write_text(
                held((ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")), encoding="utf-8"
            )
            subprocess.run(command(requirements, target), check=True)
        print(target.relative_to(ROOT))


if __name__ == "__main__":
    main()

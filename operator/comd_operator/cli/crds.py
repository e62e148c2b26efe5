"""`comd crds`: writes the CustomResourceDefinitions. `make crds` calls it; users never need to, so that the help does
not list it."""

from pathlib import Path

from comd_api.crd import run_crd, schedule_crd
from comd_api.kinds import RUN, SCHEDULE
from comd_operator.validation.documents import format_document

FOLDERS = (Path("crds"), Path("charts/comd-operator/files/crds"))
"""For kubectl, and for the chart, which can't hold a file that lies outside of it."""
HEADER = "# Generated from crds/comd_api by `make crds`. Don't edit.\n"


def crd_files() -> dict[str, str]:
    """File name → content, the same for the same types, so that CI can compare."""
    definitions = {RUN: run_crd(), SCHEDULE: schedule_crd()}
    return {f"{kind.plural}.yaml": HEADER + format_document(crd) for kind, crd in definitions.items()}


def write_crds(out: Path) -> list[Path]:
    """Writes every file into the folder `out`; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in crd_files().items():
        path = out / name
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written

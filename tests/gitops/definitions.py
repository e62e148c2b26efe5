"""How Argo CD and Flux define the kinds of which examples/gitops has objects: files of their modules, which go.mod in definitions/ pins."""

from pathlib import Path

from tests.chart import tools

FOLDER = Path(__file__).parent / "definitions"
FILES = {
    "github.com/argoproj/argo-cd/v3": "manifests/crds/application-crd.yaml",
    "github.com/fluxcd/kustomize-controller": "config/crd/bases/kustomize.toolkit.fluxcd.io_kustomizations.yaml",
    "github.com/fluxcd/source-controller": "config/crd/bases/source.toolkit.fluxcd.io_gitrepositories.yaml",
}


def provide() -> list[Path]:
    """Fetched where they are missing, 30 MB once a machine. Raises tools.MissingError."""
    return [tools.source(FOLDER, module) / file for module, file in FILES.items()]

"""What documents and examples say is true: manifests validate and have a plan, paths are there."""

import re
from pathlib import Path

import pytest
import yaml

from comd_api.promotion import Promotion
from comd_operator.cli.main import main
from comd_operator.validation import check_manifest

ROOT = Path(__file__).parents[2]
MANIFESTS = sorted(
    path
    for path in (ROOT / "examples").rglob("*.yaml")
    if re.search(r"^kind: Distillation(Run|Schedule)$", path.read_text(encoding="utf-8"), re.MULTILINE)
)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_example_is_valid_and_has_a_plan(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(path)]) == 0
    assert main(["plan", str(path)]) == 0
    assert "round-1" in capsys.readouterr().out


def test_there_are_examples() -> None:
    assert {ROOT / "examples/digits/run.yaml", ROOT / "examples/schedule/schedule.yaml"} <= set(MANIFESTS)


def test_the_guides_manifests_are_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/guide.md").read_text(encoding="utf-8"), re.DOTALL)
    whole = [block for block in blocks if "kind:" in block]
    assert (len(blocks), len(whole)) == (3, 2)
    for block in whole:
        run, problems = check_manifest(yaml.safe_load(block))
        assert problems == []
        assert run is not None
        part = yaml.safe_load(next(block for block in blocks if "kind:" not in block))
        assert Promotion.model_validate(part["promotion"]).guards


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "docs/cluster.md",
        "docs/guide.md",
        "docs/runbooks.md",
        "docs/schedules.md",
        "docs/storage.md",
        "charts/comd-operator/README.md",
        "examples/digits/README.md",
    ],
)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert [target for target in targets if not ((ROOT / document).parent / target).exists()] == []

"""The trainer's image: it starts, answers and trains, with what it has, as a pod's user, and compiles nothing."""

import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from comd_api.run import DistillationRun
from comd_api.stage import StageResult
from comd_api.status import ArtifactRef
from comd_operator.planner import plan_run, stage_config
from images.builders import Builder
from tests.e2e.world import make_inputs, manifest
from tests.images.container import Container, config, container

pytestmark = pytest.mark.timeout(3600)
STORE = "/data"
OPS = "import shutil, torch; print(shutil.which('cc'), shutil.which('nvcc'), torch.version.cuda is not None)"


class Box:
    """A container, a run, and folders of this machine that it may write to: a store and a scratch folder. /tmp is its own."""

    def __init__(self, inside: Container, folder: Path) -> None:
        self._inside, self._folder, self.scratch = inside, folder, folder / "scratch"
        self._run = DistillationRun.model_validate(manifest(storage={"uri": f"file://{STORE}"}))
        self.scratch.mkdir()
        for place in (folder, self.scratch):
            place.chmod(0o777)

    def trainer(
        self, *arguments: str, stage: str, inputs: list[ArtifactRef] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """comd-trainer with the config of a stage."""
        job = next(job for job in plan_run(self._run.spec, run="tiny") if job.stage == stage)
        whole = stage_config(self._run, job).replace(inputs=inputs or [])
        return self._inside.run(
            *("comd-trainer", *arguments, "--scratch=/scratch"),
            variables={"HOME": "/scratch", "COMD_STAGE_CONFIG": json.dumps(whole.to_wire())},
            volumes={self._folder: STORE, self.scratch: "/scratch"},
        )

    def play(self, stage: str, inputs: list[ArtifactRef] | None = None) -> list[ArtifactRef]:
        """As its Job would; what it has made."""
        message = self.scratch / f"{stage}.json"
        done = self.trainer("run", f"--termination-message=/scratch/{message.name}", stage=stage, inputs=inputs)
        assert done.returncode == 0, done.stdout + done.stderr
        return StageResult.model_validate_json(message.read_text()).artifacts


def test_it_says_what_it_is(tool: Builder, trainer: str) -> None:
    found = config(tool, trainer)
    assert (found["User"], found["Entrypoint"], found["Cmd"]) == ("65532:65532", ["comd-trainer"], ["run"])
    with container(tool, trainer) as inside:
        assert inside.run("comd-trainer", "--version").stdout == f"comd-trainer {version('comd')}\n"


def test_a_stage_trains_and_compiles_nothing(tool: Builder, trainer: str, tmp_path: Path) -> None:
    for path in [make_inputs(tmp_path / "inputs"), *(tmp_path / "inputs").rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)  # of checkpoints too, which only their owner could read
    with container(tool, trainer) as inside:
        assert inside.run("python3", "-c", OPS).stdout.splitlines()[-1] == "None None True", "no compiler, and CUDA"
        box = Box(inside, tmp_path)
        looked = box.trainer("doctor", stage="preflight")
        assert looked.returncode == 0, looked.stdout + looked.stderr
        found = box.play("preflight")
        made = box.play("pretrain", found)
    assert [ref.name for ref in made] == ["student"]
    assert (tmp_path / made[0].uri.removeprefix(f"file://{STORE}/") / "manifest.json").exists()
    assert not [path for path in box.scratch.rglob("*") if path.suffix in (".so", ".o", ".cu", ".ninja")]

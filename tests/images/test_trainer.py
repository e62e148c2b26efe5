"""The trainer's image: it starts, answers and trains, with what it has, as a pod's user, and compiles nothing."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from comd_api.run import DistillationRun
from comd_operator.planner import plan_run, stage_config
from images.builders import Builder
from tests.e2e.world import make_inputs, manifest
from tests.images.container import Container, config, container

pytestmark = pytest.mark.timeout(3600)
STORE = "/data"
OPS = "import deepspeed.ops.op_builder.builder as b, shutil, torch; print(shutil.which('cc'), shutil.which('nvcc'), torch.version.cuda)"


def test_it_says_what_it_is(tool: Builder, trainer: str) -> None:
    found = config(tool, trainer)
    assert (found["User"], found["Entrypoint"], found["Cmd"]) == ("65532:65532", ["comd-trainer"], ["run"])
    with container(tool, trainer) as box:
        assert box.run("comd-trainer", "--version").stdout == f"comd-trainer {version('comd')}\n"


def test_a_stage_trains_and_compiles_nothing(tool: Builder, trainer: str, tmp_path: Path) -> None:
    make_inputs(tmp_path / "inputs")
    run = DistillationRun.model_validate(manifest(storage={"uri": f"file://{STORE}"}))
    with container(tool, trainer) as box:
        assert box.run("python3", "-c", OPS).stdout.splitlines()[-1].startswith("None None 1"), "no compiler, and CUDA"
        for stage in ("preflight", "pretrain"):
            done, said = play(box, run, stage, tmp_path)
            assert done == 0, said
        student = list(tmp_path.rglob("pretrain/pretrain/*/manifest.json"))
        assert student, sorted(tmp_path.rglob("manifest.json"))
        scratch = tmp_path / "scratch"
        assert not [path for path in scratch.rglob("*") if path.suffix in (".so", ".o", ".cu", ".ninja")]


def play(box: Container, run: DistillationRun, stage: str, folder: Path) -> tuple[int, str]:
    """The stage as its Job runs it: what may be written is /tmp, the scratch folder and the store. Exit code, and what was said."""
    job = next(job for job in plan_run(run.spec, run="tiny") if job.stage == stage)
    scratch = folder / "scratch"
    for place in (folder, scratch):
        place.mkdir(exist_ok=True)
        place.chmod(0o777)
    done = box.run(
        *("comd-trainer", "run", "--scratch=/scratch", "--termination-message=/scratch/result.json"),
        variables={"HOME": "/scratch", "COMD_STAGE_CONFIG": json.dumps(stage_config(run, job).to_wire())},
        volumes={folder: STORE, scratch: "/scratch"},
    )
    return done.returncode, done.stdout + done.stderr

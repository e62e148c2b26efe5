"""`comd doctor`: whom it asks what, and what it makes of the answer. That the trainer's answers are right, tests/s3 and tests/e2e show."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from comd_api.exit_codes import ComdError, UserError
from comd_api.stage import StageConfig
from comd_operator.cli.doctor import doctor_command
from comd_operator.shell.options import Options
from tests.unit.rule_examples import in_bucket, manifest

TRAINER = """
import json, pathlib, sys
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
config = json.load(open(arguments["--config"]))
pathlib.Path({seen!r}).write_text(json.dumps([config, arguments]))
print({says!r})
sys.exit({code})
"""


class Trainer:
    """Says what it is told to, and keeps what it was asked."""

    def __init__(self, folder: Path, says: Any, *, code: int = 0) -> None:
        self._seen = folder / "seen.json"
        text = says if isinstance(says, str) else json.dumps({"findings": says})
        script = TRAINER.format(seen=str(self._seen), says=text, code=code)
        self.command = (sys.executable, "-c", script)

    @property
    def config(self) -> StageConfig:
        return StageConfig.model_validate(json.loads(self._seen.read_text())[0])

    @property
    def arguments(self) -> dict[str, str]:
        found: dict[str, str] = json.loads(self._seen.read_text())[1]
        return found

    @property
    def was_asked(self) -> bool:
        return self._seen.exists()


FINE = [{"check": "storage", "verdict": "ok", "message": "fine"}]
BAD = [{"check": "storage", "verdict": "failed", "message": "spec.storage is wrong", "exitCode": 64}]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(folder: Path, asked: Trainer, /, *, output: str = "text", options: Options | None = None, **spec: Any) -> int:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(manifest(**spec)))
    return doctor_command(file, work_dir=None, storage=None, output=output, options=options, command=asked.command)


def test_a_run_on_this_machine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `comd run` would have it: a folder, one node, no volume."""
    trainer = Trainer(folder, FINE)
    pods = {"numNodes": 2, "resourcesPerNode": {"limits": {"nvidia.com/gpu": 3}}, "scratch": {"sizeLimit": "1Gi"}}
    assert ask(folder, trainer, storage=in_bucket(), trainer=pods) == 0
    config = trainer.config
    assert (config.stage, config.phases, config.inputs) == ("preflight", ["preflight"], [])
    assert config.spec.storage is not None
    assert config.spec.storage.uri == (folder / "runs/tiny/store").as_uri()
    used = config.spec.trainer
    assert (used.num_nodes, used.num_proc_per_node, used.resources_per_node.limits) == (1, 2, None)
    assert used.scratch.size_limit is None
    assert trainer.arguments["--scratch"] == str(folder / "runs/tiny/scratch")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok       manifest  as comd run has it: file:///")
    assert lines[0].endswith("in place of s3://bucket/x; --kubernetes looks at that, as pods would")
    assert lines[1:] == ["ok       storage   fine"]
    assert not (folder / "runs").exists()


def test_a_run_on_a_cluster(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The manifest's own bucket and pods, and what the operator fills in."""
    trainer = Trainer(folder, BAD)
    options = Options(trainer_image="registry/trainer:1", storage_region="eu-1")
    pods = {"numNodes": 2, "scratch": {"sizeLimit": "1Gi"}}
    assert ask(folder, trainer, options=options, output="json", storage=in_bucket(), trainer=pods) == 64
    storage = trainer.config.spec.storage
    assert storage is not None
    assert (storage.uri, storage.s3.region) == ("s3://bucket/x", "eu-1")
    assert trainer.config.spec.trainer.num_nodes == 2
    assert trainer.config.spec.trainer.scratch.size_limit == "1Gi"
    assert "--scratch" not in trainer.arguments, "its pods' are not here"
    assert json.loads(capsys.readouterr().out) == {"findings": BAD, "exitCode": 64}


def test_a_run_without_storage_is_told_both_ways_to_give_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(folder, FINE)
    assert ask(folder, trainer, options=Options(trainer_image="x"), storage=None) == 64
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("failed   manifest  spec.storage is not set, and pods share no folder; set spec.storage.uri")
    assert line.endswith("or start the operator with --storage-uri (the chart's defaults.storage.uri)")
    assert not trainer.was_asked


def test_an_image_is_the_operator_s_to_fill_in(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpus = {"resourcesPerNode": {"limits": {"nvidia.com/gpu": 3}}}
    assert ask(folder, Trainer(folder, FINE), options=Options(), storage=in_bucket(), trainer=gpus) == 64
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("warning  manifest  spec.trainer.image is not set, so that the operator must")
    assert lines[1].startswith("failed   manifest  spec.trainer.resourcesPerNode.limits asks for 3 GPUs")
    assert ask(folder, Trainer(folder, FINE), options=Options(), storage=in_bucket()) == 0


@pytest.mark.parametrize(("code", "error"), [(64, UserError), (1, ComdError), (0, ComdError)])
@pytest.mark.parametrize("says", ["", "no JSON", "[]", '{"findings": [{"verdict": "well"}]}'])
def test_a_trainer_that_makes_no_sense(folder: Path, says: str, code: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="the trainer"):
        ask(folder, Trainer(folder, says, code=code))

"""`comd-trainer doctor` as a command: what it prints, how it ends, what it leaves."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from comd_trainer import logs
from comd_trainer.cli import main
from tests.e2e.world import make_inputs, manifest


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """The command sets up the logs of its process, which here is that of all other tests."""
    root = logging.getLogger()
    level, handlers, levels = root.level, root.handlers[:], {name: logging.getLogger(name).level for name in logs.QUIET}
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    logging.captureWarnings(False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("store") / "inputs").parent


def config(folder: Path, **spec: Any) -> str:
    """A file with the config of a stage."""
    path = folder / "config.json"
    stage = {"namespace": "team", "run": "tiny", "stage": "preflight", "phases": ["preflight"]}
    path.write_text(json.dumps({**stage, "spec": {**manifest()["spec"], **spec}}))
    return str(path)


def contents(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_lines_and_nothing_that_stays(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(store)
    scratch = tmp_path / "scratch"
    assert (
        main(["doctor", "--config", config(tmp_path, storage={"uri": store.as_uri()}), "--scratch", str(scratch)]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    names = ["storage", "models", "data", "images", "overlap", "numbers", "memory", "scratch"]
    assert [line.split()[:2] for line in lines] == [["ok", name] for name in names]
    assert contents(store) == before
    assert not scratch.exists()


def test_one_object_by_the_variable_that_pods_have(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = config(tmp_path, storage={"uri": store.as_uri()}, teacher={"checkpoint": {"source": "inputs/none"}})
    monkeypatch.setenv("COMD_STAGE_CONFIG", Path(file).read_text())
    assert main(["doctor", "-o", "json"]) == 64
    found = {one["check"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert found["models"]["exitCode"] == 64
    assert found["models"]["message"].startswith("spec.teacher.checkpoint.source: inputs/none is not there")
    assert [found[name]["verdict"] for name in ("data", "memory", "scratch")] == ["ok", "skipped", "skipped"]


def test_bad_data_alone_is_65(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.jsonl").touch()
    data = {**manifest()["spec"]["data"], "bank": (tmp_path / "empty.jsonl").as_uri()}
    assert main(["doctor", "--config", config(tmp_path, storage={"uri": store.as_uri()}, data=data)]) == 65
    assert "failed   data      spec.data.bank" in capsys.readouterr().out


def test_without_storage_or_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["doctor", "--config", config(tmp_path)]) == 64
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("failed   storage   spec.storage is not set: give storage.uri, as s3://bucket/prefix")
    monkeypatch.delenv("COMD_STAGE_CONFIG", raising=False)
    assert main(["doctor"]) == 64
    assert capsys.readouterr().err == "comd-trainer: no stage config: give --config FILE or set COMD_STAGE_CONFIG\n"

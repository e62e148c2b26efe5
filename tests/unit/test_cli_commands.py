"""`comd` on the command line: exit codes, sentences, no tracebacks."""

import errno
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from comd_api.exit_codes import UserError
from comd_api.run import Storage
from comd_operator.cli.main import main
from comd_operator.cli.plan import plan_lines, steps_text
from comd_operator.cli.rows import count_rows
from comd_operator.cli.storage import choose_storage
from tests.unit.rule_examples import COMPOSED, manifest
from tests.unit.runs import make_run


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(manifest(rounds__count=2)))
    return path


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "the following arguments are required"),
        (["fly"], "invalid choice: 'fly'"),
        (["run"], "the following arguments are required: file"),
        (["plan", "a.yaml", "-f", "b.yaml"], "one file, not two"),
        (["run", "x.yaml", "--fast"], "unrecognized arguments: --fast"),
        (["validate"], "the following arguments are required: FILE"),
        (["doctor"], "the following arguments are required: file"),
        (
            ["doctor", "x.yaml", "--kubernetes", "--storage", "/x"],
            "--storage and --work-dir are of runs on this machine",
        ),
        (["doctor", "x.yaml", "-o", "yaml"], "invalid choice: 'yaml'"),
    ],
)
def test_a_wrong_command_line_is_64(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 64
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "plan", "validate", "doctor"])
def test_a_missing_file_is_64(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "/nowhere/run.yaml"]) == 64
    assert "/nowhere/run.yaml: there is no such file" in capsys.readouterr().err


def test_the_file_may_be_given_as_kubectl_has_it(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-f", str(file)]) == 0
    shown = capsys.readouterr().out
    assert main(["plan", str(file)]) == 0
    assert capsys.readouterr().out == shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert not caught.value.code
    assert capsys.readouterr().out.startswith("comd ")


def test_validate(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: tiny valid\n"
    assert main(["validate", "-f", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: tiny valid\n"
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump(manifest(rounds__threshold=12, seed=-1)))
    assert main(["validate", str(file), str(bad)]) == 64
    shown = capsys.readouterr()
    assert shown.out == f"{file}: tiny valid\n"
    assert [line.partition(" ")[0] for line in shown.err.splitlines()] == [f"{bad}:", f"{bad}:"]


def test_run_of_a_bad_manifest_makes_nothing(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(yaml.safe_dump(manifest(seed=-1)))
    assert main(["run", str(file)]) == 64
    assert not (tmp_path / "runs").exists()
    assert "spec.seed: -1 is less than 0" in capsys.readouterr().err


def test_run_in_a_folder_that_can_t_be_made(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(file), "--work-dir", str(file / "below")]) == 64
    assert "can't be made" in capsys.readouterr().err


def test_plan_runs_nothing(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(file)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"tiny: 4 stages, 4 jobs, artifacts in file://{tmp_path}/runs/tiny/store")
    assert not (tmp_path / "runs").exists()


def test_plan_counts_what_is_on_this_machine(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "seed.jsonl").write_text("{}\n" * 300 + "\n")
    assert main(["plan", str(file), "--storage", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "seed.jsonl (300 rows) → answers to imitate" in out
    assert "about 8 steps of 128 (3 epochs)" in out
    assert "at most 704 steps of 32 (3 epochs)" in out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"student": {"composed": COMPOSED}, "pretraining": {"maxSteps": 9}, "data__pretraining": "s3://b/c.jsonl"},
            "s3://b/c.jsonl → student 0, 9 steps of 128",
        ),
        ({"augmentor__type": "Repeat"}, "train pool → no new items"),
        ({"augmentor__type": "Random", "data__bank": "b"}, "bank → 3000 + 3000 new items (Random)"),
        ({"rounds__assessment__freshItems": 5, "data__bank": "b"}, "and 5 unused bank items → answers of student 1"),
        ({"training__firstRound": {"maxSteps": 4}}, "student 0, answers → student 1, 4 steps of 128"),
        ({"training__maxSteps": 4}, "student 1, answers → student 2, 4 steps of 32"),
        ({"execution": "Phase"}, "tiny: 4 stages, 13 jobs"),
        ({"rounds__profile": "lion"}, "with a teacher score of 1 or more"),
    ],
)  # fmt: skip
def test_plan_lines(changes: dict[str, Any], says: str) -> None:
    assert says in "\n".join(plan_lines(make_run(**changes)))


def test_steps_text() -> None:
    assert steps_text(10, epochs=1.0, batch_size=4, max_steps=None) == "about 3 steps of 4 (1 epochs)"
    assert steps_text(None, epochs=1.0, batch_size=4, max_steps=None) == "1 epochs, steps of 4"


@pytest.mark.parametrize(
    ("option", "own", "uri"),
    [
        (None, None, "file:///default"),
        (None, "s3://own/x", "file:///default"),
        ("manifest", "s3://own/x", "s3://own/x"),
        ("s3://bucket/p", "s3://own/x", "s3://bucket/p"),
        ("file:///folder", None, "file:///folder"),
        ("/folder", None, "file:///folder"),
    ],
)
def test_choose_storage(option: str | None, own: str | None, uri: str) -> None:
    storage = None if own is None else {"uri": own, "s3": {"region": "eu-1"}}
    spec = make_run().spec.replace(storage=None if storage is None else Storage.model_validate(storage))
    chosen = choose_storage(spec, option, default=Path("/default"))
    assert chosen.uri == uri
    if uri == "s3://bucket/p":
        assert chosen.s3.region == "eu-1", "another bucket of the same service"


@pytest.mark.parametrize("option", ["manifest", "ftp://x", "s3://"])
def test_choose_storage_refuses(option: str) -> None:
    says = r"(manifest: the manifest has no spec\.storage|.*: right would be s3://bucket/prefix .*; or a folder, or manifest$)"
    with pytest.raises(UserError, match=rf"^--storage {says}"):
        choose_storage(make_run().spec.replace(storage=None), option, default=Path("/default"))


def test_count_rows_looks_at_this_machine_alone(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n\n{}\n")
    here = Storage(uri=f"file://{tmp_path}")
    assert count_rows("rows.jsonl", here) == 2
    assert count_rows(f"file://{tmp_path}/rows.jsonl", Storage(uri="s3://bucket")) == 2
    assert count_rows("rows.jsonl", Storage(uri="s3://bucket")) is None
    assert count_rows("none.jsonl", here) is None
    assert count_rows("hf://owner/name", here) is None


def test_validate_needs_neither_rich_nor_a_trainer() -> None:
    import subprocess

    code = (
        "import sys; from comd_operator.cli.main import main; main(['validate', '/nowhere']);"
        "print([m for m in ('rich', 'torch', 'comd_trainer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_full_disk_is_one_sentence_and_75(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "status.yaml")

    monkeypatch.setattr("comd_operator.local.workdir.replace_text", no_room)
    monkeypatch.setattr("comd_operator.local.process.replace_text", no_room)
    assert main(["run", str(file), "--quiet"]) == 75
    assert capsys.readouterr().err == "comd: status.yaml: No space left on device; make room and run it again\n"

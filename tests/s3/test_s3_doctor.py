"""`comd doctor` on a bucket: a line for each check, nothing that stays, and the same sentences as a run's condition."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from comd_operator.cli.main import main
from tests.e2e.world import make_inputs, manifest, write_manifest
from tests.s3 import versity
from tests.s3.proxy import between
from tests.s3.test_s3_preflight import options, upload

CHECKS = ["manifest", "storage", "clock", "models", "data", "images", "overlap", "numbers", "memory", "scratch"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs") / "inputs")


def doctor(
    endpoint: str, bucket: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], *more: str, **spec: Any
) -> tuple[int, dict[str, tuple[str, str]]]:
    """Exit code, and by check what was found and said; of several failures of one check the last."""
    s3 = {**options(endpoint).to_wire(), **spec.pop("s3", {})}
    file = write_manifest(tmp_path / "run.yaml", manifest(storage={"uri": f"s3://{bucket}/p", "s3": s3}, **spec))
    code = main(
        ["doctor", str(file), "--kubernetes", "--trainer-image", "registry.example/comd:1", "-o", "json", *more]
    )
    report = json.loads(capfd.readouterr().out)
    assert report["exitCode"] == code
    return code, {found["check"]: (found["verdict"], found["message"]) for found in report["findings"]}


def test_all_is_well_and_nothing_stays(
    bucket: str, s3_keys: versity.Server, inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    upload(s3_keys, bucket, inputs)
    objects = s3_keys.folder / bucket
    before = sorted(objects.rglob("*"))
    code, found = doctor(s3_keys.endpoint, bucket, tmp_path, capfd)
    assert (code, list(found)) == (0, [name for name in CHECKS if name != "manifest"])
    assert {verdict for verdict, _ in found.values()} == {"ok"}
    assert found["data"][1].startswith("24 seed rows, 90 bank rows, 16 pre-training pairs")
    assert [path for path in sorted(objects.rglob("*")) if path.is_file()] == [
        path for path in before if path.is_file()
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "run.yaml"]


def test_a_line_for_each_check(
    bucket: str, s3_keys: versity.Server, inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As `comd run --storage manifest` would use it, too."""
    upload(s3_keys, bucket, inputs)
    storage = {"uri": f"s3://{bucket}/p", "s3": options(s3_keys.endpoint).to_wire()}
    file = write_manifest(tmp_path / "run.yaml", manifest(storage=storage))
    work = ["--work-dir", str(tmp_path / "work"), "--storage", "manifest"]
    assert main(["doctor", "-f", str(file), *work]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", name] for name in CHECKS if name != "manifest"]
    assert lines[-1].endswith(" here")
    assert not (tmp_path / "work").exists()


def test_all_the_news_at_once(
    bucket: str, s3_keys: versity.Server, inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A right, a model, a limit that is too small: each is told, with those of the manifest itself."""
    upload(s3_keys, bucket, inputs)
    gpus = {"resourcesPerNode": {"limits": {"nvidia.com/gpu": 2}}}
    with between(s3_keys.endpoint, denies=lambda right: right == "s3:DeleteObject") as traffic:
        code, found = doctor(
            traffic.endpoint, bucket, tmp_path, capfd, trainer=gpus, teacher={"checkpoint": {"source": "inputs/none"}}
        )
    assert code == 64
    assert {name for name, (verdict, _) in found.items() if verdict == "failed"} == {
        "manifest",
        "storage",
        "gpus",
        "models",
    }
    assert found["storage"][1].endswith(f"allow s3:DeleteObject on s3://{bucket}/p/*")
    assert found["models"][1].startswith("spec.teacher.checkpoint.source: inputs/none is not there")
    assert found["data"][0] == "ok", "who may read is told of what there is"
    assert found["memory"] == ("skipped", "is looked at when this is mended: models, gpus")


def test_scratch_that_is_too_small(
    bucket: str, s3_keys: versity.Server, inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    upload(s3_keys, bucket, inputs)
    code, found = doctor(s3_keys.endpoint, bucket, tmp_path, capfd, trainer={"scratch": {"sizeLimit": "1Mi"}})
    assert code == 64
    assert found["scratch"][0] == "failed"
    assert found["scratch"][1].startswith("spec.trainer.scratch.sizeLimit is 1Mi, but round-1 needs at least ")


@pytest.mark.parametrize(
    ("minutes", "code", "verdict", "says"),
    [
        (1, 0, "ok", "within "),
        (-7, 0, "warning", "clock is 7 minutes ahead of"),
        (7, 0, "warning", "clock is 7 minutes behind"),
        (60, 64, "failed", "clock is 60 minutes behind that of the service of s3://B/p"),
    ],
)
def test_the_clock(
    bucket: str,
    s3_keys: versity.Server,
    inputs: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    minutes: int,
    code: int,
    verdict: str,
    says: str,
) -> None:
    """A service that does not look at ours: its replies tell."""
    upload(s3_keys, bucket, inputs)
    with between(s3_keys.endpoint, clock=timedelta(minutes=minutes)) as traffic:
        ended, found = doctor(traffic.endpoint, bucket, tmp_path, capfd)
    assert (ended, found["clock"][0]) == (code, verdict)
    assert says.replace("B", bucket) in found["clock"][1]
    assert found["storage"][0] == found["data"][0] == "ok"


def test_a_service_that_is_away(tmp_path: Path, s3_keys: versity.Server, capfd: pytest.CaptureFixture[str]) -> None:
    del s3_keys
    code, found = doctor(f"http://127.0.0.1:{versity.free_port()}", "bucket", tmp_path, capfd)
    assert code == 75
    assert found["storage"][1].startswith("spec.storage.uri: s3://bucket/p can't be reached")
    assert "clock" not in found, "nobody has told the time"
    assert {found[name][0] for name in ("models", "data", "images", "scratch")} == {"skipped"}

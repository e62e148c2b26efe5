"""The same run over a bucket of a real S3 server that checks signatures, and what is said when it can't be reached."""

from pathlib import Path

import boto3
import pytest

from tests.e2e.runs import comd, contents, status_of
from tests.e2e.world import manifest, write_manifest
from tests.s3.versity import Server


def upload(server: Server, bucket: str, folder: Path, prefix: str) -> None:
    client = boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder).as_posix()}")


@pytest.mark.timeout(1200)
def test_a_run_over_s3_makes_the_same_artifacts(
    s3_keys: Server, bucket: str, inputs: Path, finished: Path, tmp_path: Path
) -> None:
    upload(s3_keys, bucket, inputs, "distillation/inputs")
    storage = {"uri": f"s3://{bucket}/distillation", "s3": {"endpoint": s3_keys.endpoint, "region": "us-east-1"}}
    path = write_manifest(tmp_path / "run.yaml", manifest(storage=storage))
    done = comd("run", path, "--work-dir", tmp_path / "work", "--storage", "manifest")
    assert done.returncode == 0, done.stdout + done.stderr
    student = status_of(tmp_path / "work")["student"]
    assert student["uri"].startswith(f"s3://{bucket}/distillation/default/tiny/round-2/tune/")
    assert student["digest"] == status_of(finished)["student"]["digest"]
    ours, theirs = contents(s3_keys.folder / bucket, store="distillation"), contents(finished)
    assert made(ours) == made(theirs)
    assert ours.keys() == theirs.keys()


def made(found: dict[str, str]) -> dict[str, str]:
    """Without the files that name a source's fingerprint: a bucket's is taken of sizes and ETags, a folder's of contents."""
    named = ("report.json", "teacher.jsonl", "answers.jsonl")
    return {path: digest for path, digest in found.items() if not path.endswith(named)}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("storage", "code", "words"),
    [
        ({"uri": "s3://no-such-bucket-here/x"}, 64, "no-such-bucket-here"),
        ({"uri": "s3://{bucket}/x", "s3": {"endpoint": "http://127.0.0.1:9"}}, 75, "127.0.0.1:9"),
    ],
)
def test_a_store_that_is_not_there(
    s3_keys: Server, bucket: str, tmp_path: Path, storage: dict[str, object], code: int, words: str
) -> None:
    """A wrong bucket ends the run; a server that is away is tried again, until somebody stops it (here: a deadline)."""
    options = {"endpoint": s3_keys.endpoint, "region": "us-east-1", **storage.get("s3", {})}  # type: ignore[dict-item]
    wanted = {"uri": str(storage["uri"]).format(bucket=bucket), "s3": options}
    document = manifest(storage=wanted, activeDeadlineSeconds=15)
    done = comd(
        "run", write_manifest(tmp_path / "run.yaml", document), "--work-dir", tmp_path / "w", "--storage", "manifest"
    )
    status = status_of(tmp_path / "w")
    said = done.stderr + str(status["stages"][0].get("message", ""))
    if code == 64:
        assert done.returncode == 64, done.stdout + done.stderr
        assert words in said
    else:
        assert status["phase"] == "Failed"
        assert "activeDeadlineSeconds" in said
        assert words in done.stdout + said

"""The same run over a bucket of a real S3 server that checks signatures, and what is said when it can't be reached."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import boto3
import pytest

from tests.e2e.runs import comd, contents, status_of
from tests.e2e.world import manifest, write_manifest
from tests.s3.policy import for_user
from tests.s3.proxy import between
from tests.s3.test_s3_errors import saying
from tests.s3.versity import Server, serve


def upload(server: Server, bucket: str, folder: Path, prefix: str) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
    )
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder).as_posix()}")


@pytest.fixture
def least(s3_keys: Server, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, seen by a user who may do what the policy of docs/storage.md allows in the bucket `runs`, and nothing else."""
    del s3_keys  # for the environment without any others
    (tmp_path / "users").mkdir()
    with serve(tmp_path, options=["--iam-dir", str(tmp_path / "users")]) as root:
        user = root.make_user("least-rights", "of-the-user")
        root.make_bucket("runs", policy=for_user("least-rights", bucket="runs", prefix="distillation"))
        upload(root, "runs", inputs, "distillation/inputs")
        for name, value in user.environment.items():
            monkeypatch.setenv(name, value)
        yield user


@pytest.mark.timeout(1200)
def test_a_run_over_s3_makes_the_same_artifacts(least: Server, finished: Path, tmp_path: Path) -> None:
    storage = {"uri": "s3://runs/distillation", "s3": {"endpoint": least.endpoint, "region": "us-east-1"}}
    path = write_manifest(tmp_path / "run.yaml", manifest(storage=storage))
    asked = comd("doctor", path, "--kubernetes")
    assert asked.returncode == 0, asked.stdout + asked.stderr
    done = comd("run", path, "--work-dir", tmp_path / "work", "--storage", "manifest")
    assert done.returncode == 0, done.stdout + done.stderr
    student = status_of(tmp_path / "work")["student"]
    assert student["uri"].startswith("s3://runs/distillation/default/tiny/round-2/tune/")
    assert student["digest"] == status_of(finished)["student"]["digest"]
    ours, theirs = contents(least.folder / "runs", store="distillation"), contents(finished)
    assert made(ours) == made(theirs)
    assert ours.keys() == theirs.keys()


def test_the_policy_is_enforced(least: Server, tmp_path: Path) -> None:
    """Else the run above would show nothing."""
    storage = {"uri": "s3://runs/elsewhere", "s3": {"endpoint": least.endpoint, "region": "us-east-1"}}
    path = write_manifest(tmp_path / "run.yaml", manifest(storage=storage))
    asked = comd("doctor", path, "--kubernetes")
    assert asked.returncode == 64
    assert "the credentials may not list, read, write or delete (AccessDenied on ListObjectsV2" in asked.stdout


def made(found: dict[str, str]) -> dict[str, str]:
    """Without the files that name a source's fingerprint: a bucket's is taken of sizes and ETags, a folder's of contents."""
    named = ("report.json", "teacher.jsonl", "answers.jsonl")
    return {path: digest for path, digest in found.items() if not path.endswith(named)}


def refused(endpoint: str, bucket: str, tmp_path: Path) -> str:
    """What stands in the condition of a run that its storage ends; `comd doctor` must say the same."""
    storage = {"uri": f"s3://{bucket}/x", "s3": {"endpoint": endpoint, "region": "eu-west-1"}}
    file = write_manifest(tmp_path / "run.yaml", manifest(storage=storage))
    done = comd("run", file, "--work-dir", tmp_path / "w", "--storage", "manifest")
    assert done.returncode == 64, done.stdout + done.stderr
    status = status_of(tmp_path / "w")
    assert status["stages"][0]["exitClass"] == "UserError"
    (message,) = [entry["message"] for entry in status["conditions"] if entry["type"] == "Failed"]
    asked = comd("doctor", file, "--storage", "manifest", "--work-dir", tmp_path / "w")
    assert asked.returncode == 64
    sentence = str(message).removeprefix("preflight: ")
    assert sentence.partition(" (")[0] in asked.stdout
    return sentence


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("code", "status", "hours", "says"),
    [
        (
            "AuthorizationHeaderMalformed",
            400,
            0,
            r"the bucket of s3://bucket/x\S* lies in another region; set spec\.storage\.s3\.region",
        ),
        ("ExpiredToken", 400, 0, r"the S3 credentials for s3://bucket/x\S* have expired .*put new ones in their place"),
        (
            "RequestTimeTooSkewed",
            403,
            1,
            r"this machine's clock is 60 minutes behind that of the service .*set the clock \(NTP\)",
        ),
    ],
)
@pytest.mark.usefixtures("s3_keys")
def test_what_only_some_services_say(code: str, status: int, hours: int, says: str, tmp_path: Path) -> None:
    with saying((status, code), clock=timedelta(hours=hours)) as endpoint:
        assert re.match(rf"^spec\.storage\.uri: {says}", refused(endpoint, "bucket", tmp_path))


@pytest.mark.timeout(300)
def test_a_clock_that_the_service_does_not_look_at(s3_keys: Server, bucket: str, inputs: Path, tmp_path: Path) -> None:
    upload(s3_keys, bucket, inputs, "x/inputs")
    with between(s3_keys.endpoint, clock=timedelta(hours=-1)) as traffic:
        said = refused(traffic.endpoint, bucket, tmp_path)
    assert said.startswith("spec.storage.uri: this machine's clock is 60 minutes ahead of that of the service"), said


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

"""preflight on a bucket: what it fetches, and what it says of rights, keys and buckets before it looks at anything else."""

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from comd_api.exit_codes import BadDataError, TryAgainError, UserError
from comd_api.profile import resolve
from comd_api.run import RunSpec
from comd_api.stage import StageConfig
from comd_trainer.preflight import check
from comd_trainer.store.artifacts import Artifact
from comd_trainer.store.sources import Sources
from comd_trainer.store.stores import open_store
from tests.e2e.world import make_inputs, manifest
from tests.s3 import versity
from tests.s3.proxy import Traffic, between
from tests.tiny import tiny_image

WEIGHTS = 48 << 20
NUM_IMAGES = 300


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of the tiny world, with a large teacher and many images that no row names."""
    folder = make_inputs(tmp_path_factory.mktemp("inputs") / "inputs")
    header = f'{{"model.language_model.layers.0.weight":{{"dtype":"BF16","shape":[{WEIGHTS // 2}],"data_offsets":[0,{WEIGHTS}]}}}}'
    with (folder / "models/teacher/model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header.encode())
        file.truncate(file.tell() + WEIGHTS)
    for number in range(NUM_IMAGES):
        tiny_image(number, size=(64, 64)).save(folder / "images" / f"more-{number}.png")
    return folder


def upload(server: versity.Server, bucket: str, folder: Path) -> None:
    store = open_store(f"s3://{bucket}/p/inputs", options(server.endpoint))
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.upload(path, path.relative_to(folder).as_posix())


def options(endpoint: str) -> Any:
    from comd_api.run import S3Options

    return S3Options(endpoint=endpoint, region="us-east-1")


def run(endpoint: str, bucket: str, work: Path, **changes: Any) -> Artifact:
    spec = manifest(storage={"uri": f"s3://{bucket}/p", "s3": options(endpoint).to_wire()}, **changes)["spec"]
    config = StageConfig(
        namespace="default",
        run="tiny",
        stage="preflight",
        phases=["preflight"],
        spec=resolve(RunSpec.model_validate(spec)),
    )
    assert config.spec.storage is not None
    store = open_store(config.spec.storage.uri, config.spec.storage.s3)
    sources = Sources(config.spec.storage, store, work / "cache")
    return check(config, store=store, sources=sources, cache=work / "cache", scratch=work)


@pytest.fixture
def traffic(s3_keys: versity.Server) -> Iterator[Traffic]:
    with between(s3_keys.endpoint) as found:
        yield found


def test_a_large_model_and_many_images_are_not_fetched(
    bucket: str, s3_keys: versity.Server, inputs: Path, traffic: Traffic, tmp_path: Path
) -> None:
    upload(s3_keys, bucket, inputs)
    artifact = run(traffic.endpoint, bucket, tmp_path / "work")
    assert traffic.sent < 2_000_000, "a forty-eighth of the weights alone"
    assert traffic.requests.count("s3:GetObject") < 120, "files of four models, four data files, some images"
    teacher = next(need for need in artifact.meta["memory"] if need["role"] == "teacher")
    assert teacher["parameters"] == WEIGHTS // 2
    assert {path.name for path in (tmp_path / "work").rglob("*.png")} == set(), (
        "the images that were looked at are gone"
    )
    sent, requests = traffic.sent, len(traffic.requests)
    again = run(traffic.endpoint, bucket, tmp_path / "again")
    assert (again.prefix, again.digest, again.meta) == (artifact.prefix, artifact.digest, artifact.meta)
    assert traffic.sent - sent <= sent + 10_000
    assert len(traffic.requests) - requests <= requests


def test_a_bucket_and_a_folder_tell_the_same(
    bucket: str, s3_keys: versity.Server, inputs: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(inputs, tmp_path / "store" / "p" / "inputs")
    shutil.copyfile(
        folder / "images/0.png", folder / "images/33.png"
    )  # an evaluation image: the same content, another name
    upload(s3_keys, bucket, folder)
    there = run(s3_keys.endpoint, bucket, tmp_path / "work").meta
    storage = {"uri": folder.parent.as_uri()}
    config = StageConfig(
        namespace="default",
        run="tiny",
        stage="preflight",
        phases=["preflight"],
        spec=resolve(RunSpec.model_validate(manifest(storage=storage)["spec"])),
    )
    assert config.spec.storage is not None
    store = open_store(config.spec.storage.uri, config.spec.storage.s3)
    work = tmp_path / "here"
    sources = Sources(config.spec.storage, store, work / "cache")
    here = check(config, store=store, sources=sources, cache=work / "cache", scratch=work).meta
    of_the_place = {"fingerprints", "facts"}  # A bucket's are of ETags.
    assert there["facts"]["student"] == here["facts"]["student"]
    assert {name: value for name, value in there.items() if name not in of_the_place} == {
        name: value for name, value in here.items() if name not in of_the_place
    }
    assert there["evaluationOverlap"]["spec.data.pretraining"] == {
        "rows": 1,
        "images": 1,
        "evaluation": {"held-out": 1},
    }


def test_images_that_are_not_there_show_in_the_listing(
    bucket: str, s3_keys: versity.Server, inputs: Path, traffic: Traffic, tmp_path: Path
) -> None:
    upload(s3_keys, bucket, inputs)
    open_store(f"s3://{bucket}/p", options(s3_keys.endpoint)).delete("inputs/images/33.png")
    with pytest.raises(
        BadDataError, match=r"evaluation\[0\]\.items .*: 1 of 8 rows can't be used.*image '33\.png' is not a file"
    ):
        run(traffic.endpoint, bucket, tmp_path / "work")


def test_images_that_do_not_decode(bucket: str, s3_keys: versity.Server, inputs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(inputs, tmp_path / "inputs")
    for number in range(40):
        (folder / "images" / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes([number]))
    upload(s3_keys, bucket, folder)
    with pytest.raises(
        BadDataError, match=r"the images of 12 of 12 rows drawn from it can't be used, .* does not decode"
    ):
        run(s3_keys.endpoint, bucket, tmp_path / "work")


def test_a_missing_right_is_told_with_all_that_can_be_said_besides(
    bucket: str, s3_keys: versity.Server, inputs: Path, tmp_path: Path
) -> None:
    """Who may not write can still read."""
    upload(s3_keys, bucket, inputs)
    store = open_store(f"s3://{bucket}/p", options(s3_keys.endpoint))
    right = (
        rf"spec\.storage\.uri \(s3://{bucket}/p\): the credentials may list, read and delete but not write "
        rf"\(AccessDenied on PutObject\); allow s3:PutObject on s3://{bucket}/p/\*"
    )
    with between(s3_keys.endpoint, denies=lambda right: right == "s3:PutObject") as traffic:
        with pytest.raises(UserError, match=rf"^{right}$"):
            run(traffic.endpoint, bucket, tmp_path / "a")
        store.delete("inputs/bank.jsonl")
        store.write("inputs/seed.jsonl", b"{}\n")
        more = r"\(2\) spec\.data\.bank: inputs/bank\.jsonl is not there; .*"
        with pytest.raises(UserError, match=rf"^2 problems: \(1\) {right}; {more}"):
            run(traffic.endpoint, bucket, tmp_path / "b")


def test_who_may_not_read_is_told_nothing_of_what_there_is(
    bucket: str, s3_keys: versity.Server, tmp_path: Path
) -> None:
    with (
        between(s3_keys.endpoint, denies=lambda right: right == "s3:ListBucket") as traffic,
        pytest.raises(UserError, match=r"^spec\.storage\.uri .* read, write and delete but not list [^\n]*"),
    ):
        run(traffic.endpoint, bucket, tmp_path)
    assert len(traffic.requests) <= 5


@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_keys(
    bucket: str, s3_keys: versity.Server, tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "wrong")
    with pytest.raises(
        UserError, match=r"^spec\.storage\.uri: the S3 credentials are refused .*; correct the access key"
    ):
        run(s3_keys.endpoint, bucket, tmp_path)


def test_a_bucket_that_does_not_exist(s3_keys: versity.Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^spec\.storage\.uri: .* 'no-such-bucket', which does not exist .*create it"):
        run(s3_keys.endpoint, "no-such-bucket", tmp_path)


@pytest.mark.usefixtures("s3_keys")
def test_a_service_that_is_away(tmp_path: Path) -> None:
    with pytest.raises(TryAgainError, match=r"^spec\.storage\.uri: s3://bucket/p can't be reached"):
        run(f"http://127.0.0.1:{versity.free_port()}", "bucket", tmp_path)


def test_a_source_in_another_bucket_is_blamed_on_its_own_field(
    bucket: str, s3_keys: versity.Server, inputs: Path, tmp_path: Path
) -> None:
    upload(s3_keys, bucket, inputs)
    s3_keys.make_bucket(f"other-{bucket}"[:60])
    teacher = {"checkpoint": {"source": f"s3://{f'other-{bucket}'[:60]}/teacher"}}
    with pytest.raises(
        UserError, match=rf"^spec\.teacher\.checkpoint\.source: s3://{f'other-{bucket}'[:60]}/teacher is not there"
    ):
        run(s3_keys.endpoint, bucket, tmp_path, teacher=teacher)

"""Brings a folder into a bucket of the cluster's S3 server; runs inside its network.

python -m tests.cluster upload FOLDER s3://BUCKET/PREFIX
"""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.cluster.cluster import Cluster
from tests.s3 import versity


def upload(
    s3: versity.Server, folder: Path, *, bucket: str, prefix: str, wanted: Callable[[str], bool] = lambda _: True
) -> int:
    """How many files. The bucket is made where there is none. Small files, many at once: `upload_file` would take twice the time."""
    try:
        s3.make_bucket(bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise
    client = boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        region_name="us-east-1",
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        config=Config(max_pool_connections=16),
    )

    def put(path: Path) -> None:
        key = f"{prefix}/{path.relative_to(folder).as_posix()}".lstrip("/")
        client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())

    files = [path for path in folder.rglob("*") if path.is_file() and wanted(path.relative_to(folder).as_posix())]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, files))
    return len(files)


def main(name: str, state: str, folder: str, uri: str) -> int:
    """Of the cluster with that name and state folder."""
    cluster = Cluster.find(name, Path(state))
    assert cluster is not None, "who calls has found it"
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket:
        sys.exit(f"cluster: {uri!r} is not s3://BUCKET/PREFIX")
    if not Path(folder).is_dir():
        sys.exit(f"cluster: {folder} is no folder")
    count = upload(cluster.s3, Path(folder), bucket=bucket, prefix=prefix.rstrip("/"))
    print(f"{count} files are in {uri}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""A real S3 server for tests: versitygw over a folder. It checks signatures, honours conditional puts and does
multipart uploads.

The binary is the one on PATH or in the folder COMD_TEST_BIN; else it is built from the `go.mod` beside this file and
kept in `~/.cache/comd/bin/`, named by the digest of `go.sum`, so that a fresh clone does not build it again.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tests import gotools

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

HERE = Path(__file__).parent
TOOL = "github.com/versity/versitygw/cmd/versitygw"
READY_SECONDS = 30.0


class NoServerError(Exception):
    """There is no binary and no Go to build one."""


@dataclass(frozen=True)
class Server:
    endpoint: str
    access_key: str
    secret_key: str
    folder: Path
    """Where the objects lie as files: `<bucket>/<key>`."""

    @property
    def environment(self) -> dict[str, str]:
        """What boto3 needs to find the credentials, and no others."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    @property
    def secrets(self) -> dict[str, str]:
        """What the server itself reads them from."""
        return {"ROOT_ACCESS_KEY": self.access_key, "ROOT_SECRET_KEY": self.secret_key}

    def make_bucket(self, name: str, *, policy: str | None = None) -> None:
        """`policy`: the bucket's, as JSON."""
        client = self._client()
        client.create_bucket(Bucket=name)
        if policy is not None:
            client.put_bucket_policy(Bucket=name, Policy=policy)

    def make_user(self, name: str, secret: str) -> "Server":
        """The server as a user sees it who may do what policies allow. It must have been started with `--iam-dir`."""
        root = ["--access", self.access_key, "--secret", self.secret_key, "--endpoint-url", self.endpoint]
        user = ["create-user", "--access", name, "--secret", secret, "--role", "user"]
        subprocess.run([str(binary()), "admin", *root, *user], check=True, capture_output=True)
        return replace(self, access_key=name, secret_key=secret)

    def _client(self) -> "S3Client":
        import boto3  # here, because the test cluster's commands need the rest of this file and have no second to lose

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )


def binary() -> Path:
    """The server's executable, built if need be (about a minute, then never again). Errors: NoServerError."""
    found = find()
    if found:
        return Path(found)
    if gotools.go() is None:
        raise NoServerError(
            "no S3 server: versitygw is neither on PATH nor in COMD_TEST_BIN, and there is no Go to build it"
        )
    cached = _cached()
    with gotools.locked(cached.parent):
        if not cached.exists():
            _build(cached)
    return cached


def find() -> str | None:
    """Where the executable is, if it need not be built."""
    named = os.environ.get("COMD_TEST_BIN")
    found = shutil.which("versitygw", path=named) if named else None
    cached = _cached()
    return found or shutil.which("versitygw") or (str(cached) if cached.exists() else None)


def _cached() -> Path:
    return gotools.cache() / gotools.key([HERE / "go.sum"]) / "versitygw"


def _build(target: Path) -> None:
    gotools.build(HERE, TOOL, target)


def command(program: Path | str, address: str, folder: Path) -> list[str]:
    """The server's command line; it keeps objects and their metadata in `folder`."""
    objects, sidecar = folder / "objects", folder / "sidecar"
    for path in (objects, sidecar):
        path.mkdir(parents=True, exist_ok=True)
    return [str(program), "--port", address, "posix", "--sidecar", str(sidecar), str(objects)]


@contextmanager
def serve(
    folder: Path, *, port: int | None = None, options: Sequence[str] = (), scheme: str = "http"
) -> Iterator[Server]:
    """Runs a server on 127.0.0.1 that keeps its objects in `folder`, until the block ends. `options`: further ones of its command
    line, such as a certificate for the scheme `https`."""
    port = port or free_port()
    server = Server(f"{scheme}://127.0.0.1:{port}", "test-key", "test-secret", folder / "objects")
    program, *arguments = command(binary(), f"127.0.0.1:{port}", folder)
    arguments = [program, *options, *arguments]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log, env={**os.environ, **server.secrets})
    try:
        _wait_until_ready(process, port, log=folder / "server.log")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int, *, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError(f"versitygw did not start:\n{log.read_text()[-2000:]}")

"""The ways to a bucket: who one is, where it is, what it is asked for. boto3's own code on one side, a real S3 server on the other."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from comd_api.exit_codes import TryAgainError, UserError
from comd_api.pods import LocalObjectReference, SecretKeySelector
from comd_api.run import CABundleSource, S3Options
from comd_trainer.store.s3_client import CA_BUNDLE_VARIABLE, KEYS
from comd_trainer.store.s3_store import PART_BYTES
from comd_trainer.store.stores import Store, open_store
from tests.s3 import versity
from tests.s3.credentials import Giver, giving
from tests.s3.proxy import between

ROLE = "arn:aws:iam::111122223333:role/comd"
PREFIX = "default/run/preflight"


def must_work(store: Store, folder: Path) -> None:
    """Small and large, there and back."""
    store.probe(PREFIX)
    large = bytes(range(256)) * ((2 * PART_BYTES + 512) // 256)
    (folder / "large").write_bytes(large)
    store.upload(folder / "large", "a/large")
    store.download("a/large", folder / "back")
    assert (folder / "back").read_bytes() == large
    assert store.write("a/small", b"x", if_absent=True)
    assert not store.write("a/small", b"y", if_absent=True)
    assert [file.path for file in store.list("a")] == ["a/large", "a/small"]


# ---- who one is


@pytest.fixture
def giver(s3_keys: versity.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Giver]:
    """Pods have no keys; whoever has the right token is given some."""
    for name in KEYS:
        monkeypatch.delenv(name)
    with giving(Giver(s3_keys.access_key, s3_keys.secret_key, token="of-the-pod", role=ROLE)) as found:
        yield found


@pytest.fixture
def web_identity(giver: Giver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What EKS's webhook puts into the pods of a service account with a role; and where STS is, which it leaves out."""
    token = tmp_path / "token"
    token.write_text(giver.token)
    variables = {
        "AWS_ROLE_ARN": ROLE,
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_STS_REGIONAL_ENDPOINTS": "regional",
        "AWS_ENDPOINT_URL_STS": giver.url,
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return token


@pytest.mark.usefixtures("web_identity")
def test_a_service_account_with_a_role(bucket: str, s3_keys: versity.Server, giver: Giver, tmp_path: Path) -> None:
    must_work(open_store(f"s3://{bucket}/p", S3Options(endpoint=s3_keys.endpoint)), tmp_path)
    assert giver.asked == ["AssumeRoleWithWebIdentity"]


@pytest.mark.usefixtures("web_identity")
def test_a_session_s_token_goes_with_every_request(bucket: str, s3_keys: versity.Server, giver: Giver) -> None:
    giver.session = "of-this-session"
    with between(s3_keys.endpoint) as traffic:
        store = open_store(f"s3://{bucket}/p", S3Options(endpoint=traffic.endpoint))
        with pytest.raises(UserError, match="InvalidToken"):  # the real server knows no sessions
            store.probe(PREFIX)
    assert {headers["x-amz-security-token"] for headers in traffic.headers} == {"of-this-session"}


@pytest.mark.parametrize(
    ("code", "error", "says"),
    [
        (
            "AccessDenied",
            UserError,
            r"the role of the pod's service account can't be assumed for s3://bucket/p.*trust policy",
        ),
        ("InvalidIdentityToken", UserError, r"the role of the pod's service account can't be assumed .*trust policy"),
        ("ExpiredTokenException", TryAgainError, r"no credentials for s3://bucket/p.* are given at the moment"),
        ("Throttling", TryAgainError, r"no credentials for s3://bucket/p.* are given at the moment"),
    ],
)
@pytest.mark.usefixtures("web_identity")
def test_a_role_that_is_refused(
    s3_keys: versity.Server, giver: Giver, code: str, error: type[Exception], says: str
) -> None:
    giver.refuses = code
    store = open_store("s3://bucket/p", S3Options(endpoint=s3_keys.endpoint))
    for ask in (lambda: store.probe(PREFIX), lambda: store.read("a")):
        with pytest.raises(error, match=rf"^spec\.storage\.uri: {says}"):
            ask()


def test_a_token_that_is_not_mounted_is_no_missing_object(s3_keys: versity.Server, web_identity: Path) -> None:
    web_identity.unlink()
    store = open_store("s3://bucket/p", S3Options(endpoint=s3_keys.endpoint))
    with pytest.raises(UserError, match=r"^spec\.storage\.uri: the service account's token \(IRSA.*No such file"):
        store.read("a")


def test_a_token_of_another_service_account(bucket: str, s3_keys: versity.Server, web_identity: Path) -> None:
    web_identity.write_text("of another")
    store = open_store(f"s3://{bucket}/p", S3Options(endpoint=s3_keys.endpoint))
    with pytest.raises(UserError, match=r"AssumeRoleWithWebIdentity.* to this service account of this namespace"):
        store.probe(PREFIX)


def test_eks_pod_identity(
    bucket: str, s3_keys: versity.Server, giver: Giver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(giver.token)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{giver.url}/v1/credentials")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
    must_work(open_store(f"s3://{bucket}/p", S3Options(endpoint=s3_keys.endpoint)), tmp_path)
    assert giver.asked == ["/v1/credentials"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"AWS_ACCESS_KEY_ID": "key\n"}, "the variable AWS_ACCESS_KEY_ID holds a blank or the end of a line"),
        ({"AWS_SECRET_ACCESS_KEY": " secret"}, "the variable AWS_SECRET_ACCESS_KEY holds a blank"),
        (
            {"AWS_SECRET_ACCESS_KEY": ""},
            r"the key AWS_SECRET_ACCESS_KEY of the Secret 'keys' \(spec\.storage\.s3\.secretRef\) is empty; it needs the keys "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, with values",
        ),
        ({"AWS_SECRET_ACCESS_KEY": None}, "AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not; set both"),
        ({"AWS_ACCESS_KEY_ID": None}, "AWS_SECRET_ACCESS_KEY is set and AWS_ACCESS_KEY_ID is not; set both"),
        ({"AWS_MAX_ATTEMPTS": "many"}, "AWS_MAX_ATTEMPTS is 'many'; give a whole number of 1 or more"),
    ],
)
def test_keys_that_are_none(
    s3_keys: versity.Server, changes: dict[str, str | None], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in changes.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    options = S3Options(endpoint=s3_keys.endpoint, secret_ref=LocalObjectReference(name="keys"))
    with pytest.raises(UserError, match=rf"^spec\.storage\.uri: .*{says}"):
        open_store("s3://bucket/p", options).read("a")


# ---- where it is


class Authority:
    """An authority of one's own, and a server's certificate that it has signed."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.server, self.key = folder / "ca.crt", folder / "server.crt", folder / "server.key"
        new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        self._run(*new, "-subj", "/CN=own-authority", "-keyout", folder / "ca.key", "-out", self.certificate)
        signed: list[str | Path] = [
            "-CA",
            self.certificate,
            "-CAkey",
            folder / "ca.key",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ]
        extensions = ["-addext", "basicConstraints=critical,CA:FALSE"]
        self._run(*new, "-subj", "/CN=s3", *signed, *extensions, "-keyout", self.key, "-out", self.server)

    def _run(self, *arguments: str | Path) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    @property
    def options(self) -> list[str]:
        """Of the S3 server."""
        return ["--cert", str(self.server), "--key", str(self.key)]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def with_tls(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[versity.Server]:
    folder = tmp_path_factory.mktemp("tls")
    with versity.serve(folder, options=authority.options, scheme="https") as server:
        (server.folder / "bucket").mkdir()
        yield server


BUNDLE = CABundleSource(secret_key_ref=SecretKeySelector(name="ca", key="ca.crt"))


@pytest.mark.usefixtures("s3_keys")
def test_certificates_that_the_operator_mounts(
    with_tls: versity.Server, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CA_BUNDLE_VARIABLE, str(authority.certificate))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")  # the server closes connections without saying so
    must_work(open_store("s3://bucket/mounted", S3Options(endpoint=with_tls.endpoint, ca_bundle=BUNDLE)), tmp_path)


@pytest.mark.usefixtures("s3_keys")
def test_certificates_of_this_machine(
    with_tls: versity.Server, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for `comd run`, whether or not the manifest names an object of the cluster's."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.certificate))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")  # the server closes connections without saying so
    must_work(open_store("s3://bucket/local", S3Options(endpoint=with_tls.endpoint, ca_bundle=BUNDLE)), tmp_path)


@pytest.mark.usefixtures("s3_keys")
def test_a_certificate_that_nobody_vouches_for(with_tls: versity.Server) -> None:
    store = open_store("s3://bucket/p", S3Options(endpoint=with_tls.endpoint))
    with pytest.raises(
        UserError, match=r"not trusted here .*spec\.storage\.s3\.caBundle, for comd run .*AWS_CA_BUNDLE"
    ):
        store.probe(PREFIX)


@pytest.mark.usefixtures("s3_keys")
@pytest.mark.parametrize(
    ("variable", "field"), [(CA_BUNDLE_VARIABLE, r"spec\.storage\.s3\.caBundle"), ("AWS_CA_BUNDLE", "AWS_CA_BUNDLE")]
)
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_are_none(
    with_tls: versity.Server,
    variable: str,
    field: str,
    content: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "bundle.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv(variable, str(path))
    store = open_store("s3://bucket/p", S3Options(endpoint=with_tls.endpoint, ca_bundle=BUNDLE))
    with pytest.raises(UserError, match=rf"^{field}: {path} can't be read as certificates .*; give a bundle in PEM"):
        store.probe(PREFIX)


def this_machine(host: Any, *arguments: Any, **options: Any) -> Any:
    """`*.localhost` is this machine (RFC 6761), which not every resolver knows."""
    return RESOLVE("127.0.0.1" if str(host).endswith("localhost") else host, *arguments, **options)


RESOLVE = socket.getaddrinfo


@pytest.mark.usefixtures("s3_keys")
@pytest.mark.parametrize(
    ("style", "host"),
    [("Virtual", "bucket.localhost"), ("Path", "localhost"), ("Auto", "localhost"), (None, "localhost")],
)
def test_the_bucket_s_name_in_the_path_or_in_the_host_s(
    style: Any, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", this_machine)
    with versity.serve(tmp_path / "server", options=["--virtual-domain", "localhost"]) as server:
        (server.folder / "bucket").mkdir()
        with between(server.endpoint) as traffic:
            endpoint = traffic.endpoint.replace("127.0.0.1", "localhost")
            must_work(open_store("s3://bucket/p", S3Options(endpoint=endpoint, addressing_style=style)), tmp_path)
    assert {headers["host"].partition(":")[0] for headers in traffic.headers} == {host}


# ---- what it is asked for


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"server_side_encryption": "AES256"}, {"x-amz-server-side-encryption": "AES256"}),
        (
            {"server_side_encryption": "aws:kms", "sse_kms_key_id": "alias/comd"},
            {
                "x-amz-server-side-encryption": "aws:kms",
                "x-amz-server-side-encryption-aws-kms-key-id": "alias/comd",
            },
        ),
        ({}, {}),
    ],
)
def test_every_object_is_encrypted_as_it_was_asked(
    bucket: str, s3_keys: versity.Server, options: dict[str, Any], asked: dict[str, str], tmp_path: Path
) -> None:
    """Of an upload in parts, the request that begins it (S3 refuses these headers elsewhere)."""
    with between(s3_keys.endpoint) as traffic:
        must_work(open_store(f"s3://{bucket}/p", S3Options(endpoint=traffic.endpoint, **options)), tmp_path)
    writes = [
        (path, {name: value for name, value in headers.items() if name.startswith("x-amz-server-side-encryption")})
        for right, path, headers in zip(traffic.requests, traffic.paths, traffic.headers, strict=True)
        if right == "s3:PutObject"
    ]
    beginning = [found for path, found in writes if "uploadId=" not in path]
    assert len(beginning) == 2 + 1 + 2, "the probe's, one upload's, two small ones"
    assert all(found == asked for found in beginning)
    parts = [found for path, found in writes if "uploadId=" in path]
    assert len(parts) >= 3
    assert not any(parts)


@pytest.mark.parametrize(("setting", "sent"), [(None, True), ("WhenSupported", True), ("WhenRequired", False)])
def test_checksums_of_requests(bucket: str, s3_keys: versity.Server, setting: Any, sent: bool, tmp_path: Path) -> None:
    options = {"request_checksum_calculation": setting, "response_checksum_validation": setting}
    with between(s3_keys.endpoint) as traffic:
        must_work(open_store(f"s3://{bucket}/p", S3Options(endpoint=traffic.endpoint, **options)), tmp_path)
    found = [
        headers for right, headers in zip(traffic.requests, traffic.headers, strict=True) if right == "s3:PutObject"
    ]
    assert any("x-amz-checksum-crc32" in headers or "x-amz-trailer" in headers for headers in found) == sent
    asks = [
        headers for right, headers in zip(traffic.requests, traffic.headers, strict=True) if right == "s3:GetObject"
    ]
    assert any(headers.get("x-amz-checksum-mode") == "ENABLED" for headers in asks) == sent

"""The client of an S3 service: `spec.storage.s3` in boto3's words, and what is wrong with what boto3 finds around it."""

import base64
import os
import ssl
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import InvalidRegionError

from comd_api.exit_codes import UserError
from comd_api.run import S3Options

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
ATTEMPTS = 5
"""Tries of one request (environment: AWS_MAX_ATTEMPTS). Waits between them grow to some ten seconds together; longer
outages are for exit code 75 and the operator's backoff."""
CONNECTIONS = 32
CA_BUNDLE_VARIABLE = "COMD_S3_CA_BUNDLE"
"""Names the file that the operator mounts for `spec.storage.s3.caBundle`. It holds for the bucket alone: who gives out credentials
(STS) has certificates of its own."""
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
TOKEN_FILES = {
    "AWS_WEB_IDENTITY_TOKEN_FILE": "IRSA, workload identity",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "EKS Pod Identity",
}
"""Variables by which a cloud's webhook names the token of a pod's service account."""


def connect(options: S3Options, *, field: str, environment: Mapping[str, str] = os.environ) -> "S3Client":
    """A client of its own session: boto3's default session is not safe to share between threads. Asks nothing of the service yet.

    Raises:
        UserError: the environment or the options can't be used; `field` is what is blamed where no field of its own is.
    """
    problem = environment_problem(environment, secret=options.secret_ref.name if options.secret_ref else None)
    if problem is not None:
        raise UserError(f"{field}: {problem}")
    config = Config(
        **client_settings(options),
        retries={"mode": "adaptive", "total_max_attempts": _attempts(environment, field=field)},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=CONNECTIONS,
        user_agent_extra="comd",
    )
    bundle = ca_bundle(options, environment)
    try:
        urlsplit(options.endpoint or "").port  # noqa: B018  # raises for one that is none, which boto3 finds out at the first request
        return boto3.session.Session().client(
            "s3", endpoint_url=options.endpoint, region_name=options.region, verify=bundle, config=config
        )
    except InvalidRegionError:
        raise  # a ValueError too
    except ValueError as error:
        raise UserError(f"{field}: spec.storage.s3.endpoint {options.endpoint!r} is no URL ({error})") from error


def client_settings(options: S3Options) -> dict[str, Any]:
    """Arguments of botocore's `Config`, of the options that are set. What is left out boto3 takes from its own settings."""
    settings: dict[str, Any] = {}
    if options.addressing_style is not None:
        settings["s3"] = {"addressing_style": options.addressing_style.lower()}
    words = {"WhenSupported": "when_supported", "WhenRequired": "when_required"}
    if options.request_checksum_calculation is not None:
        settings["request_checksum_calculation"] = words[options.request_checksum_calculation]
    if options.response_checksum_validation is not None:
        settings["response_checksum_validation"] = words[options.response_checksum_validation]
    return settings


def write_arguments(options: S3Options) -> dict[str, Any]:
    """Arguments of every request that begins an object: how it is to be encrypted."""
    found = {"ServerSideEncryption": options.server_side_encryption, "SSEKMSKeyId": options.sse_kms_key_id}
    return {name: value for name, value in found.items() if value is not None}


def checksum(client: "S3Client", data: bytes) -> dict[str, str]:
    """The argument of a put that carries its checksum in front, unless none is wanted. boto3 itself sends it behind the body, in chunks:
    a service that refuses the put before it has read all of them, as one that is conditional, breaks off the connection."""
    if client.meta.config.request_checksum_calculation != "when_supported":  # type: ignore[attr-defined]
        return {}
    return {"ChecksumCRC32": base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()}


def environment_problem(environment: Mapping[str, str], *, secret: str | None = None) -> str | None:
    """Why boto3 could not use what it finds there, where it would not say so itself or not in words that help. One sentence. `secret`:
    the name of the Secret that the variables were to come from."""
    for name in (*KEYS, "AWS_SESSION_TOKEN"):
        value = environment.get(name, "")
        if value and value.split() != [value]:
            return (
                f"the variable {name} holds a blank or the end of a line, which no key has; make the Secret anew, without the end "
                "of the line (printf, not echo)"
            )
        if secret is not None and name in KEYS and name in environment and not value:
            return (
                f"the key {name} of the Secret {secret!r} (spec.storage.s3.secretRef) is empty; it needs the keys "
                f"{' and '.join(KEYS)}, with values"
            )
    given = [name for name in KEYS if environment.get(name)]
    if len(given) == 1:
        (missing,) = set(KEYS) - set(given)
        return f"the variable {given[0]} is set and {missing} is not; set both"
    return None if given else _token_problem(environment)


def _token_problem(environment: Mapping[str, str]) -> str | None:
    """boto3 reads these files when it first needs credentials, and takes one that is missing for an object that is."""
    for name, means in TOKEN_FILES.items():
        path = environment.get(name)
        if path is None:
            continue
        try:
            with open(path, encoding="utf-8") as file:
                empty = not file.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            return (
                f"the service account's token ({means}) can't be read: {name} is {path} ({_reason(error)}); mount it there, readable "
                "for the pod's user (securityContext.fsGroup)"
            )
        if empty:
            return f"the service account's token ({means}) is empty: {name} is {path}; mount a token there"
    if "AWS_WEB_IDENTITY_TOKEN_FILE" in environment and not environment.get("AWS_ROLE_ARN"):
        return (
            "AWS_WEB_IDENTITY_TOKEN_FILE is set and AWS_ROLE_ARN is not; annotate the service account with the role "
            "(eks.amazonaws.com/role-arn)"
        )
    return None


def ca_bundle(options: S3Options, environment: Mapping[str, str]) -> str | None:
    """The file of certificates that the endpoint's is checked by; None for those of botocore. Errors: UserError when it can't be read
    as such."""
    mounted = environment.get(CA_BUNDLE_VARIABLE) if options.ca_bundle is not None else None
    field, path = (
        ("spec.storage.s3.caBundle", mounted) if mounted else ("AWS_CA_BUNDLE", environment.get("AWS_CA_BUNDLE"))
    )
    if not path:
        return None
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise UserError(
            f"{field}: {path} can't be read as certificates ({_reason(error)}); give a bundle in PEM"
        ) from error
    return path


def _attempts(environment: Mapping[str, str], *, field: str) -> int:
    text = environment.get("AWS_MAX_ATTEMPTS") or str(ATTEMPTS)
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{field}: AWS_MAX_ATTEMPTS is {text!r}; give a whole number of 1 or more, or leave it out")
    return int(text)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)

"""What an S3 service's errors mean for a run: the user's mistake (64), or worth another try (75)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import botocore.exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.exceptions import RetriesExceededError
from urllib3.exceptions import HTTPError

from comd_api.exit_codes import ComdError, TryAgainError, UserError
from comd_trainer.store.s3_clock import ClockError, clock_sentence, date_of
from comd_trainer.store.stores import DamagedError

_MISSING = {"NoSuchKey", "404", "NotFound"}
_TAKEN = {"PreconditionFailed", "412"}
_PAST_END = {"InvalidRange", "416"}
_KEYS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "AuthFailure",
    "InvalidSecurity",
    "XAdminUserNotFound",  # versitygw's
}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
_DENIED = {
    "AccessDenied",
    "AllAccessDisabled",
    "AccountProblem",
    "NotSignedUp",
    "403",
    "Forbidden",
    "401",
    "Unauthorized",
}
_REGION = {
    "AuthorizationHeaderMalformed",
    "PermanentRedirect",
    "IllegalLocationConstraintException",
    "301",
    "InvalidRegionName",
}
_BUSY = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestTimeout",
    "RequestLimitExceeded",
    "ConditionalRequestConflict",
    "OperationAborted",
}
RIGHTS = {
    "ListObjectsV2": "s3:ListBucket",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "DeleteObject": "s3:DeleteObject",
}
"""What each of our requests needs to be allowed."""
KMS_RIGHTS = ("kms:GenerateDataKey", "kms:Decrypt")
"""What a key needs to allow besides, where objects are encrypted with it: to write, and to read and to write in parts."""
_KMS_RIGHT = re.compile(r"\bkms:[A-Za-z]+")
_NO_CREDENTIALS = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.NoAuthTokenError)
_SETTINGS = (
    boto.ConfigNotFound,
    boto.ConfigParseError,
    boto.InvalidConfigError,
    boto.ProfileNotFound,
    boto.SSOError,
    boto.TokenRetrievalError,
    boto.InvalidRegionError,
    boto.InvalidRetryModeError,
    boto.InvalidProxiesConfigError,
    boto.EndpointProviderError,
    boto.UnsupportedS3ConfigurationError,
    boto.UnsupportedS3AccesspointConfigurationError,
)
"""Of boto3's own settings, which are around this process and not in the run."""
_AWAY = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.CredentialRetrievalError,
    boto.MetadataRetrievalError,
    boto.IncompleteReadError,
    RetriesExceededError,
    HTTPError,
)


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def is_missing(error: ClientError) -> bool:
    return code_of(error) in _MISSING


def is_taken(error: ClientError) -> bool:
    """Whether a conditional put was refused because the key exists."""
    return code_of(error) in _TAKEN


def is_overtaken(error: ClientError) -> bool:
    """Whether a conditional put was refused because the object is not what it was, or is being written at this moment. A key that
    was to match and is gone is missing."""
    return code_of(error) in _TAKEN | _MISSING | {"ConditionalRequestConflict"}


def is_denied(error: ClientError) -> bool:
    """Whether the credentials are known but lack a right."""
    return code_of(error) in _DENIED and error.operation_name in RIGHTS


def right_of(error: ClientError) -> str:
    """What the request that was refused needs to be allowed: of the bucket, or of the key that its objects are encrypted with."""
    named = _KMS_RIGHT.search(_message_of(error))
    return named[0] if named else RIGHTS.get(error.operation_name, "every request that comd makes")


def is_past_end(error: ClientError) -> bool:
    """Whether a range was asked for that begins behind the object's end."""
    return code_of(error) in _PAST_END


def explain_s3(error: Exception, *, uri: str, field: str) -> ComdError | None:
    """One sentence that names the field, the URI and what would be right; None for errors that were not foreseen."""
    if isinstance(error, ClientError):
        return _explain_reply(error, uri=uri, field=field)
    if isinstance(error, _NO_CREDENTIALS):
        return UserError(
            f"{field}: there are no S3 credentials for {uri}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
            "(a Secret, spec.storage.s3.secretRef) or give the pod a service account that may use the bucket "
            "(spec.trainer.podTemplate.spec.serviceAccountName)"
        )
    if isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return UserError(
            f"{field}: the certificate of {uri}'s endpoint is not trusted here ({error}); give its authority's certificates in "
            "spec.storage.s3.caBundle, for comd run by the variable AWS_CA_BUNDLE"
        )
    if isinstance(error, boto.SSLError) and "WRONG_VERSION_NUMBER" in str(error):
        return UserError(
            f"{field}: the endpoint of {uri} does not speak TLS; write spec.storage.s3.endpoint with http://"
        )
    if isinstance(error, boto.FlexibleChecksumError):
        return DamagedError(f"{field}: {uri} is damaged ({error})")
    if isinstance(error, _AWAY):
        return TryAgainError(f"{field}: {uri} can't be reached ({error})")
    if isinstance(error, _SETTINGS):
        return UserError(
            f"{field}: {uri} can't be used with the settings of boto3 that are here ({error}); correct the variables AWS_… of this "
            "process, or the files that they name"
        )
    if isinstance(error, boto.ParamValidationError | boto.NoRegionError):
        return UserError(f"{field}: {uri} can't be used ({error})")
    return None


def _explain_reply(error: ClientError, *, uri: str, field: str) -> ComdError | None:
    code = code_of(error)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    detail = f"{code}: {_message_of(error)}".rstrip(": ")
    bucket = uri.removeprefix("s3://").partition("/")[0]
    if error.operation_name.startswith("AssumeRole"):
        return _explain_role(error, uri=uri, field=field, status=status, detail=detail)
    if code in {"NoSuchBucket", "InvalidBucketName"}:
        return UserError(
            f"{field}: {uri} names the bucket {bucket!r}, which does not exist ({code}); create it or correct the name"
        )
    if code in _EXPIRED:
        return UserError(
            f"{field}: the S3 credentials for {uri} have expired ({detail}); put new ones in their place (a Secret's AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN), or use a service account, whose credentials renew themselves"
        )
    if code in _KEYS:
        return UserError(
            f"{field}: the S3 credentials are refused for {uri} ({detail}); correct the access key and its secret"
        )
    if code.startswith("KMS."):
        return UserError(
            f"{field}: {uri}'s objects can't be encrypted or decrypted ({detail}); correct spec.storage.s3.sseKmsKeyId, or the key"
        )
    if code in _DENIED:
        right = right_of(error)
        where = f"s3://{bucket}" if right == "s3:ListBucket" else uri if not right.startswith("kms:") else "its key"
        return UserError(
            f"{field}: access to {uri} is denied ({detail}, on {error.operation_name}); allow {right} on {where}"
        )
    if code == "RequestTimeTooSkewed":
        offset = _offset(error.response)
        if offset is None or abs(offset) < timedelta(minutes=1):  # who says so and who writes the date may be two
            return ClockError(
                f"{field}: {uri} refuses requests because this machine's clock is wrong ({detail}); set the clock"
            )
        return ClockError(f"{field}: {clock_sentence(offset, uri=uri)} ({detail})")
    if code in _REGION:
        return UserError(f"{field}: {_region_sentence(error, uri=uri)} ({detail})")
    if code == "NotImplemented":
        return UserError(
            f"{field}: the service of {uri} lacks something that a store needs, such as conditional writes "
            f"({detail}); use another, or spare it what spec.storage.s3 can leave out (requestChecksumCalculation: WhenRequired, "
            "no serverSideEncryption)"
        )
    if code in _BUSY or status in (408, 429) or status >= 500:
        return TryAgainError(f"{field}: {uri} does not serve requests at the moment ({detail})")
    if 400 <= status < 500:  # services have codes of their own; none of these gets better by itself
        return UserError(
            f"{field}: requests are refused for {uri} ({detail}); correct spec.storage or the S3 credentials"
        )
    return None


def _explain_role(error: ClientError, *, uri: str, field: str, status: int, detail: str) -> ComdError:
    """STS gives no credentials for a service account's role. A token that has just expired is a new one at the next try."""
    if code_of(error) in _BUSY | _EXPIRED or status in (408, 429) or status >= 500:
        return TryAgainError(f"{field}: no credentials for {uri} are given at the moment ({detail})")
    return UserError(
        f"{field}: the role of the pod's service account can't be assumed for {uri} ({detail}); its trust policy must allow "
        "sts:AssumeRoleWithWebIdentity to this service account of this namespace"
    )


def _region_sentence(error: ClientError, *, uri: str) -> str:
    """Services name the right region in the body or in a header, or not at all."""
    headers: dict[str, str] = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    details: dict[str, Any] = dict(error.response.get("Error", {}))
    region = details.get("Region") or headers.get("x-amz-bucket-region")
    if region:
        return f"the bucket of {uri} lies in the region {region}; set spec.storage.s3.region to {region}"
    return f"the bucket of {uri} lies in another region; set spec.storage.s3.region to the bucket's"


def _offset(response: Any) -> timedelta | None:
    """How far our clock is ahead, by the header `Date` of a refusal."""
    theirs = date_of(response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date"))
    return datetime.now(UTC) - theirs if theirs is not None else None


def _message_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Message", ""))


@contextmanager
def s3_errors(*, uri: str, field: str) -> Iterator[None]:
    """Turns boto3's errors at `uri` into ours. Missing keys become `FileNotFoundError`."""
    try:
        yield
    except (ClientError, BotoCoreError, RetriesExceededError, HTTPError) as error:
        if isinstance(error, ClientError) and is_missing(error):
            raise FileNotFoundError(2, "no such object", uri) from error
        explained = explain_s3(error, uri=uri, field=field)
        if explained is None:
            raise
        raise explained from error

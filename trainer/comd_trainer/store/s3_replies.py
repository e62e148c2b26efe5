"""Replies that no S3 service gives: from a console, a login page, or a proxy that leads elsewhere. boto3 takes them for a busy service or
a missing object, or follows them without an end."""

import re
from collections.abc import Mapping
from typing import Any

from comd_api.exit_codes import ComdError, TryAgainError, UserError

_REDIRECTS = {301, 302, 303, 307, 308}
_CODE = b"<Code>"
"""In every error that an S3 service sends with a body."""
_PLAIN_HTTP = re.compile(rb"http request (was sent )?to (an )?https", re.IGNORECASE)
"""What Go's and nginx' servers say."""

_TITLE_OF_ERROR = re.compile(rb"<title>[^<]*(50\d|error)", re.IGNORECASE)


class Replies:
    """Hears a client's replies before boto3 reads them, from any thread."""

    def __init__(self, *, uri: str, field: str, endpoint: str | None) -> None:
        self._start = f"{field}: {uri} is not served by {endpoint or 'AWS, as seen from here'}"

    def hear(self, operation_model: Any, response_dict: Mapping[str, Any], **_: Any) -> None:
        """A handler of botocore's event `before-parse`."""
        body = response_dict["body"]
        error = judge_reply(
            operation_model.name,
            status=response_dict["status_code"],
            headers={name.lower(): value for name, value in response_dict["headers"].items()},
            body=body if isinstance(body, bytes) else None,
            start=self._start,
        )
        if error is not None:
            raise error


def judge_reply(
    operation: str, *, status: int, headers: Mapping[str, str], body: bytes | None, start: str
) -> ComdError | None:
    """None for what a service may say. `body`: None where it is an object's. `start`: how the sentence begins."""
    told = body is not None and _CODE in body
    if status in _REDIRECTS and not told and "x-amz-bucket-region" not in headers:
        where = headers.get("location", "nowhere")
        return UserError(
            f"{start}: it redirects to {where} ({status}); set spec.storage.s3.endpoint to the S3 service's own address, with the "
            "scheme that it speaks"
        )
    if body is not None and headers.get("content-type", "").startswith("text/html") and _is_well(status, body):
        return UserError(
            f"{start}: it answers {operation} with a web page, as a console or a login does; set spec.storage.s3.endpoint to the "
            "address and port of the S3 service"
        )
    if status == 400 and body is not None and _PLAIN_HTTP.search(body):
        return UserError(f"{start}: it speaks TLS alone; write spec.storage.s3.endpoint with https://")
    if status == 404 and not told and not operation.startswith("Head"):  # to a HEAD there is no body
        return TryAgainError(
            f"{start}: it answers {operation} with 404 and without the reason that an S3 service gives; is "
            "spec.storage.s3.endpoint right, up to the port and without a path, and is the service behind it up?"
        )
    return None


def _is_well(status: int, body: bytes) -> bool:
    """Whether a page came with 200. Where boto3 waits for XML it has made a 500 of that already; a proxy's own 500 says so in its title."""
    return status == 200 or (status == 500 and not _TITLE_OF_ERROR.search(body))

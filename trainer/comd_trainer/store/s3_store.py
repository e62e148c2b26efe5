"""A bucket as a store: boto3, with s3transfer's parallel multipart transfers."""

import os
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError
from s3transfer.manager import TransferConfig, TransferManager
from s3transfer.subscribers import BaseSubscriber
from urllib3.exceptions import HTTPError

from comd_api.artifact import root_of
from comd_api.exit_codes import TryAgainError, UserError
from comd_api.run import S3Options
from comd_trainer.store.counted import count_repeats
from comd_trainer.store.errors import SCRATCH_FIELD, local_errors
from comd_trainer.store.hashing import in_parallel
from comd_trainer.store.s3_client import checksum, connect, write_arguments
from comd_trainer.store.s3_clock import Clock
from comd_trainer.store.s3_errors import is_missing, is_overtaken, is_past_end, is_taken, s3_errors
from comd_trainer.store.s3_replies import Replies
from comd_trainer.store.s3_rights import probe_rights
from comd_trainer.store.stores import PROBE, STORAGE_FIELD, DamagedError, OnBytes, StoredFile, checked, probe_path

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BODY_ATTEMPTS = 3
"""Tries of a read whose body broke off or does not fit its checksum, which botocore does not repeat."""
PART_BYTES = 8 << 20
"""Files above this travel in parts; AWS's guide advises ranges of 8 to 16 MB. s3transfer enlarges it for files of more
than 10,000 parts."""
THREADS = 16
LISTS_AT_ONCE = 8
_NO_ETAG = f'"{"0" * 32}"'
"""That no object has."""
SWAP_ATTEMPTS = 5
"""Tries of a conditional put that is refused though the object reads as it should, and of a read of an object that seems damaged:
another put is on its way."""
SWAP_PAUSE_SECONDS = 0.1
"""Before the second try; twice as long before each that follows."""


class S3Store:
    """Objects below `s3://bucket/prefix`. Credentials come from where boto3 looks, and are refreshed by it."""

    def __init__(self, uri: str, options: S3Options, *, field: str = STORAGE_FIELD) -> None:
        self._uri = root_of(uri)
        self._bucket, _, root = self._uri.removeprefix("s3://").partition("/")
        if root:
            checked(root, field=field)
        self._key_prefix = f"{root}/" if root else ""
        self._options = options
        self._field = field
        self._as_written = write_arguments(options)
        self._clock = Clock()
        self._lock = Lock()
        self._opened: tuple[S3Client, TransferManager] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # A rank that is handed a store opens its own connections.
        return _reopen, (self._uri, self._options, self._field)

    @property
    def uri(self) -> str:
        return self._uri

    def uri_of(self, path: str) -> str:
        return f"{self._uri}/{path}"

    def local_path(self, path: str) -> Path | None:
        checked(path, field=self._field)
        return None

    def list(self, prefix: str, *, marks: Sequence[str] = ()) -> Iterator[StoredFile]:
        start = self._key(prefix) + "/" if prefix else self._key_prefix
        if not marks:
            yield from self._listed(start, after="", until="")
            return
        # A service gives a thousand names for each request, and the next thousand only after it.
        cuts = ["", *sorted({start + mark for mark in marks}, key=str.encode), ""]
        parts = in_parallel(
            lambda cut: list(self._listed(start, after=cut[0], until=cut[1])), pairwise(cuts), threads=LISTS_AT_ONCE
        )
        for part in parts:
            yield from part

    def _listed(self, start: str, *, after: str, until: str) -> Iterator[StoredFile]:
        """Objects whose keys begin with `start`, from behind the key `after` up to and with the key `until`; no bound where it is
        empty."""
        options = {"StartAfter": after} if after else {}
        with s3_errors(uri=f"s3://{self._bucket}/{start}".rstrip("/"), field=self._field):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket,
                Prefix=start,
                **options,  # type: ignore[arg-type]
            )
            for page in pages:
                for entry in page.get("Contents", ()):
                    if until and entry["Key"].encode() > until.encode():
                        return
                    if not entry["Key"].endswith("/"):  # what consoles make to show an empty folder
                        yield self._stored_file(entry["Key"], size=entry["Size"], etag=entry["ETag"])

    def stat(self, path: str) -> StoredFile | None:
        # By listing: a HEAD can't tell a missing bucket or a wrong key from a missing object. The shortest key with
        # this prefix comes first.
        key = self._key(path)
        with s3_errors(uri=self.uri_of(path), field=self._field):
            found = self._client.list_objects_v2(Bucket=self._bucket, Prefix=key, MaxKeys=1).get("Contents", [])
        if not found or found[0]["Key"] != key:
            return None
        return self._stored_file(key, size=found[0]["Size"], etag=found[0]["ETag"])

    def exists(self, path: str) -> bool:
        return self.stat(path) is not None

    def read(self, path: str) -> bytes:
        return self._read(path)

    def read_range(self, path: str, *, start: int, size: int) -> bytes:
        return self._read(path, Range=f"bytes={start}-{start + size - 1}") if size > 0 else b""

    def _read(self, path: str, **options: str) -> bytes:
        return self._read_tagged(path, **options)[0]

    def _read_tagged(self, path: str, **options: str) -> tuple[bytes, str]:
        """Content and ETag, by the same reply."""
        key = self._key(path)
        with s3_errors(uri=self.uri_of(path), field=self._field):
            for attempt in range(BODY_ATTEMPTS):
                try:
                    found = self._client.get_object(Bucket=self._bucket, Key=key, **options)  # type: ignore[arg-type]
                except ClientError as error:
                    if is_past_end(error):
                        return b"", ""
                    raise
                try:
                    return found["Body"].read(), found.get("ETag", "")
                except (BotoCoreError, HTTPError):
                    if attempt == BODY_ATTEMPTS - 1:
                        raise
        raise AssertionError("unreachable")

    def probe(self, prefix: str) -> None:
        path = probe_path(prefix)
        with s3_errors(uri=self._uri, field=self._field):
            probe_rights(
                self._client,
                bucket=self._bucket,
                key=self._key(path),
                as_written=self._as_written | checksum(self._client, PROBE),
                uri=self._uri,
                field=self._field,
            )

    def clock_offset(self) -> timedelta | None:
        return self._clock.offset

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> bool:
        key = self._key(path)
        with s3_errors(uri=self.uri_of(path), field=self._field):
            arguments = self._as_written | checksum(self._client, data)
            if not if_absent:
                self._client.put_object(Bucket=self._bucket, Key=key, Body=data, **arguments)
                return True
            try:
                self._client.put_object(Bucket=self._bucket, Key=key, Body=data, IfNoneMatch="*", **arguments)
            except ClientError as error:
                if not is_taken(error):
                    raise
                return False
        return True

    def swap(self, path: str, data: bytes, *, expected: bytes | None) -> bytes | None:
        found: bytes | None = None
        etag: str | None = None
        if expected is not None:  # else the put alone tells, which saves a request
            found, etag = self._content(path)
            if found != expected or found == data:
                return found
        for attempt in range(SWAP_ATTEMPTS):
            _pause(attempt)
            if self._put_over(path, data, etag=etag):
                return data
            # Somebody was faster, or it was us: a lost reply, and boto3's repetition was refused. What is there tells.
            found, etag = self._content(path)
            if found != expected or found == data:
                return found
        raise TryAgainError(f"{self._field}: {self.uri_of(path)} is being written by others all the time")

    def probe_swap(self, prefix: str) -> None:
        path = probe_path(prefix)
        try:
            self.write(path, PROBE)
            if self._put_over(path, PROBE, etag=_NO_ETAG):
                raise UserError(
                    f"{self._field} ({self._uri}): the service overwrites an object that was to be replaced only as it was (If-Match), so "
                    "that two who promote at once would not be kept apart; use a service or a version with conditional writes, or leave "
                    "spec.promotion out"
                )
        finally:
            self.delete(path)

    def _put_over(self, path: str, data: bytes, *, etag: str | None) -> bool:
        """Puts an object in the place of the one with this ETag, or of none. False when that is not what is there any more."""
        key = self._key(path)
        with s3_errors(uri=self.uri_of(path), field=self._field):
            arguments = self._as_written | checksum(self._client, data)
            arguments |= {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
            try:
                self._client.put_object(Bucket=self._bucket, Key=key, Body=data, **arguments)
            except ClientError as error:
                if not is_overtaken(error):
                    raise
                return False
        return True

    def _content(self, path: str) -> tuple[bytes | None, str | None]:
        """Content and ETag; None for both when there is no such object."""
        for attempt in range(SWAP_ATTEMPTS):
            _pause(attempt)
            try:
                data, etag = self._read_tagged(path)
                break
            except FileNotFoundError:
                return None, None
            except DamagedError:
                # Not every service replaces objects at once: versitygw with a sidecar gives the old content with the new checksum
                # for a moment. (And with the new ETag: without checksums a swap could not be trusted there.)
                if attempt == SWAP_ATTEMPTS - 1:
                    raise
        if not etag:  # and a put with an empty If-Match may be taken for one without
            raise UserError(f"{self._field}: the service of {self.uri_of(path)} gives no ETag; use another")
        return data, etag

    def upload(self, local: Path, path: str, *, owned: bool = False, on_bytes: OnBytes | None = None) -> None:
        del owned  # nothing to gain here
        key = self._key(path)
        with local_errors(local, field=SCRATCH_FIELD), s3_errors(uri=self.uri_of(path), field=self._field):
            self._transfers.upload(
                str(local), self._bucket, key, extra_args=self._as_written, subscribers=_subscribers(on_bytes)
            ).result()

    def download(self, path: str, local: Path, *, size: int | None = None, on_bytes: OnBytes | None = None) -> None:
        if size is not None and size <= PART_BYTES:
            self._download_small(path, local, on_bytes)
            return
        key = self._key(path)
        with local_errors(local, field=SCRATCH_FIELD), s3_errors(uri=self.uri_of(path), field=self._field):
            local.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._download(key, local, on_bytes)
            except ClientError as error:
                if is_missing(error):
                    self.stat(path)  # says so when it is the bucket that is missing
                raise

    def delete(self, path: str) -> None:
        key = self._key(path)
        with s3_errors(uri=self.uri_of(path), field=self._field):
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def _download_small(self, path: str, local: Path, on_bytes: OnBytes | None) -> None:
        """With one request. s3transfer makes two, and costs more than they do: a folder of images takes half the time without it."""
        data = self.read(path)
        with local_errors(local, field=SCRATCH_FIELD):
            local.parent.mkdir(parents=True, exist_ok=True)
            partial = local.with_name(f"{local.name}.{uuid.uuid4().hex[:8]}")
            try:
                partial.write_bytes(data)
                os.replace(partial, local)
            finally:
                partial.unlink(missing_ok=True)
        if on_bytes is not None:
            on_bytes(len(data))

    def _download(self, key: str, local: Path, on_bytes: OnBytes | None) -> None:
        for attempt in range(BODY_ATTEMPTS):
            try:
                # Into another name first, which s3transfer does by itself.
                self._transfers.download(self._bucket, key, str(local), subscribers=_subscribers(on_bytes)).result()
                return
            except FlexibleChecksumError:
                if attempt == BODY_ATTEMPTS - 1:  # not hurt on the way: it lies there so
                    raise

    def _key(self, path: str) -> str:
        return self._key_prefix + checked(path, field=self._field)

    def _stored_file(self, key: str, *, size: int, etag: str) -> StoredFile:
        return StoredFile(path=key.removeprefix(self._key_prefix), size=size, etag=etag.strip('"'))

    @property
    def _client(self) -> "S3Client":
        return self._open()[0]

    @property
    def _transfers(self) -> TransferManager:
        return self._open()[1]

    def _open(self) -> "tuple[S3Client, TransferManager]":
        with self._lock:
            if self._opened is None:
                with s3_errors(uri=self._uri, field=self._field):
                    client = connect(self._options, field=self._field)
                replies = Replies(uri=self._uri, field=self._field, endpoint=self._options.endpoint)
                client.meta.events.register("before-parse.s3", replies.hear)
                client.meta.events.register("after-call.s3", self._clock.hear)
                client.meta.events.register("after-call.s3", count_repeats)
                transfers = TransferManager(
                    client,
                    TransferConfig(
                        multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_request_concurrency=THREADS
                    ),
                )
                self._opened = client, transfers
            return self._opened


def _pause(attempt: int) -> None:
    if attempt:
        time.sleep(SWAP_PAUSE_SECONDS * 2 ** (attempt - 1))


def _reopen(uri: str, options: S3Options, field: str) -> S3Store:
    return S3Store(uri, options, field=field)


def _subscribers(on_bytes: OnBytes | None) -> list[BaseSubscriber]:
    return [] if on_bytes is None else [_Progress(on_bytes)]


class _Progress(BaseSubscriber):
    def __init__(self, on_bytes: OnBytes) -> None:
        self._on_bytes = on_bytes

    def on_progress(self, future: Any, bytes_transferred: int, **kwargs: Any) -> None:
        del future, kwargs
        if bytes_transferred:
            self._on_bytes(bytes_transferred)  # less than 0 when a part is sent again

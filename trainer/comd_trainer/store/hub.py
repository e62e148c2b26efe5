"""`hf://` sources: snapshots of the Hugging Face hub, in its own cache folder (HF_HOME)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import quote, unquote

from comd_api.exit_codes import TryAgainError, UserError
from comd_trainer.store.hashing import fold
from comd_trainer.store.listing import Entry, Listing, below, local_listing

_PICKLES = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.tflite", "*.ot"]
"""Weights in formats that we never load: safetensors only, left on the hub."""


@dataclass(frozen=True, kw_only=True)
class HubSource:
    kind: str
    """`model` or `dataset`."""
    repository: str
    """`owner/name`"""
    revision: str | None
    """Branch, tag or commit; None for the default branch."""
    path: str
    """Below the repository; empty for all of it."""


def parse(source: str, *, field: str) -> HubSource:
    """`hf://[datasets/]owner/name[@revision][/path]`, as huggingface_hub's own file system writes it (`/` in a revision
    as `%2F`)."""
    rest = source.removeprefix("hf://")
    kind = "dataset" if rest.startswith("datasets/") else "model"
    owner, _, rest = rest.removeprefix("datasets/").partition("/")
    name_and_revision, _, path = rest.partition("/")
    name, _, revision = name_and_revision.partition("@")
    if not owner or not name or ".." in path.split("/"):
        raise UserError(
            f"{field}: {source!r} is no source on the hub; write hf://owner/name or hf://owner/name@revision"
        )
    return HubSource(kind=kind, repository=f"{owner}/{name}", revision=unquote(revision) or None, path=path.strip("/"))


def at_commit(source: str, commit: str, *, field: str) -> str:
    """The same source, at a commit in place of a branch or tag that may move."""
    found = parse(source, field=field)
    kind = "datasets/" if found.kind == "dataset" else ""
    path = f"/{found.path}" if found.path else ""
    return f"hf://{kind}{found.repository}@{quote(commit, safe='')}{path}"


def fingerprint(source: str, *, field: str) -> str:
    """The commit, and the path there."""
    return fold([("hub", commit_of(source, field=field), parse(source, field=field).path)])


def commit_of(source: str, *, field: str) -> str:
    """Hex digest of the commit that the source stands for now. Without a network, of the one that is here."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]

    wanted = parse(source, field=field)
    with _hub_errors(source, field=field):
        try:
            info = HfApi().repo_info(wanted.repository, revision=wanted.revision, repo_type=wanted.kind)
        except HfHubHTTPError:
            raise  # the hub answered
        except (OfflineModeIsEnabled, HTTPError):
            return _snapshot(wanted, local_only=True).name
    assert info.sha, f"the hub gives no commit of {source}"
    return str(info.sha)


def fetch(source: str, *, field: str) -> Path:
    """The file or folder that the source stands for, on this machine."""
    wanted = parse(source, field=field)
    with _hub_errors(source, field=field):
        local = _snapshot(wanted, local_only=False) / wanted.path
    if not local.exists():
        raise UserError(f"{field}: {source} is not there: {wanted.repository} has nothing at {wanted.path!r}")
    return local


def listing(source: str, *, field: str) -> Listing:
    """What a folder on the hub holds, without fetching it; pickled weights aside, as `fetch`. Without a network, the snapshot that
    is here."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        EntryNotFoundError,
        HfHubHTTPError,
        HTTPError,
        OfflineModeIsEnabled,
    )
    from huggingface_hub.hf_api import RepoFile

    wanted = parse(source, field=field)
    with _hub_errors(source, field=field):
        try:
            tree = HfApi().list_repo_tree(
                wanted.repository,
                wanted.path or None,
                recursive=True,
                revision=wanted.revision,
                repo_type=wanted.kind,
            )
            found = [entry for entry in tree if isinstance(entry, RepoFile)]
        except EntryNotFoundError:
            found = []
        except HfHubHTTPError:
            raise  # the hub answered
        except (OfflineModeIsEnabled, HTTPError):
            folder = _snapshot(wanted, local_only=True) / wanted.path
            if folder.is_dir():
                return local_listing(folder, source=source, field=field)
            found = []
    if not found:
        raise UserError(
            f"{field}: {source} is not there: {wanted.repository} has no folder {wanted.path!r}; correct the path"
        )
    files = {
        below(entry.path, wanted.path): Entry(
            size=entry.size, content=entry.lfs.sha256 if entry.lfs is not None else entry.blob_id
        )
        for entry in found
        if not (wanted.kind == "model" and any(fnmatch(entry.path, pattern) for pattern in _PICKLES))
    }

    def read_range(path: str, start: int, size: int) -> bytes:
        with _hub_errors(source, field=field):
            return _read(wanted, f"{wanted.path}/{path}" if wanted.path else path, start=start, size=size)

    return Listing(
        source=source,
        field=field,
        files=files,
        read_range=read_range,
        fingerprint=lambda: fingerprint(source, field=field),
    )


def _read(wanted: HubSource, path: str, *, start: int, size: int) -> bytes:
    """Some bytes of a file. A server that does not know ranges is not listened to for longer than to their end."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    if size <= 0:
        return b""
    url = hf_hub_url(wanted.repository, path, repo_type=wanted.kind, revision=wanted.revision)
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{start + size - 1}", "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
        if response.status_code == 416:
            return b""
        hf_raise_for_status(response)
        skipped = start if response.status_code == 200 else 0
        data = bytearray()
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) >= skipped + size:
                break
    return bytes(data[skipped : skipped + size])


def _snapshot(wanted: HubSource, *, local_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        wanted.repository,
        repo_type=wanted.kind,
        revision=wanted.revision,
        allow_patterns=[wanted.path, f"{wanted.path}/*"] if wanted.path else None,
        ignore_patterns=_PICKLES if wanted.kind == "model" else None,
        local_files_only=local_only,
    )
    return Path(folder)


@contextmanager
def _hub_errors(source: str, *, field: str) -> Iterator[None]:
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"{field}: {source} is gated; accept its terms on the hub and set HF_TOKEN to a token that may read it"
        ) from error
    except (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.DisabledRepoError,
        errors.HFValidationError,
    ) as error:
        raise UserError(
            f"{field}: {source} is not on the hub, or HF_TOKEN may not read it ({type(error).__name__}); "
            "correct the name or the revision, or set HF_TOKEN"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise UserError(
                f"{field}: the hub refuses {source} (HTTP {status}); set HF_TOKEN to a token that may read it"
            ) from error
        raise TryAgainError(f"{field}: the hub does not serve {source} at the moment (HTTP {status})") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, HTTPError) as error:
        # The client looks into its cache when the hub fails, and says only that it found nothing there. HTTPError is
        # that of the HTTP library that this version of the client is built on.
        raise TryAgainError(
            f"{field}: the hub does not serve {source} at the moment, and this machine's cache lacks it ({type(error).__name__})"
        ) from error

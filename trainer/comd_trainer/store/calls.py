"""A content-addressed cache of model calls: what a model answered once is never asked again, by any run that shares the
prefix.

Each `append` writes one immutable shard of JSON Lines, named by the SHA-256 of its bytes, so that any number of ranks
and runs may write at once and a torn shard is recognised by its name.
"""

import hashlib
import json
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from comd_trainer.store.hashing import in_parallel
from comd_trainer.store.stores import DamagedError, Store

SHARDS_AT_ONCE = 16
_SHARD = re.compile(r"(?:^|/)([0-9a-f]{64})\.jsonl$")
_KEY = re.compile(r"[0-9a-f]+")

log = logging.getLogger(__name__)


class CallCache:
    def __init__(self, store: Store, prefix: str) -> None:
        """`prefix`: a folder of the store that holds nothing else."""
        self._store = store
        self._prefix = prefix

    def load(self, keys: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
        """Replies by key; of all keys, or of those asked for that are there. Where two writers answered the same call
        at the same time, every reader takes the same one of the two. Shards that are torn are named in the log and left
        out: their calls are made again."""
        wanted = None if keys is None else set(keys)
        if wanted is not None and not wanted:
            return {}
        shards = sorted(file.path for file in self._store.list(self._prefix) if _SHARD.search(file.path))
        replies: dict[str, dict[str, Any]] = {}
        for rows in in_parallel(lambda path: self._read(path, wanted), shards, threads=SHARDS_AT_ONCE):
            for key, reply in rows.items():
                replies.setdefault(key, reply)
        return replies

    def append(self, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Keeps replies by the hex key of their call. Once it returns they outlive this process; one call per minute or
        so of work, and not per row, keeps shards few."""
        lines = [_line(key, reply) for key, reply in rows]
        if not lines:
            return
        data = "".join(lines).encode()
        name = hashlib.sha256(data).hexdigest()
        # Not `if_absent`: the same name is the same content, and this heals a shard that was damaged.
        self._store.write(f"{self._prefix}/{name}.jsonl", data)

    def _read(self, path: str, wanted: set[str] | None) -> dict[str, dict[str, Any]]:
        match = _SHARD.search(path)
        assert match is not None, path
        try:
            data = self._store.read(path)
        except FileNotFoundError:
            log.warning("shard %s was deleted while it was read", self._store.uri_of(path))
            return {}
        except DamagedError:
            data = b""
        if hashlib.sha256(data).hexdigest() != match[1]:
            log.warning("shard %s is damaged and left out; its calls are made again", self._store.uri_of(path))
            return {}
        return _parsed(data, wanted)


def _line(key: str, reply: Mapping[str, Any]) -> str:
    assert _KEY.fullmatch(key), f"a call's key is a digest in hex, not {key!r}"
    return json.dumps([key, dict(reply)], ensure_ascii=True, separators=(",", ":")) + "\n"


def _parsed(data: bytes, wanted: set[str] | None) -> dict[str, dict[str, Any]]:
    replies: dict[str, dict[str, Any]] = {}
    for line in data.splitlines():
        key, reply = json.loads(line)
        if wanted is None or key in wanted:
            replies.setdefault(key, reply)
    return replies

"""Digests of files and of sets of files, and the threads that make many of them."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def sha256_of(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fold(rows: Iterable[Sequence[str | int]]) -> str:
    """One digest of many facts, in the order given. JSON keeps the facts apart, whatever they hold."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(list(row)).encode())
    return "sha256:" + digest.hexdigest()


def in_parallel(function: Callable[[In], Out], items: Iterable[In], *, threads: int) -> list[Out]:
    """`[function(item) …]` in order. The first error is raised, and what has not begun by then never begins."""
    with ThreadPoolExecutor(max_workers=threads) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise

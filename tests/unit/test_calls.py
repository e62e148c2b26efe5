import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comd_api.run import S3Options
from comd_trainer.store.calls import CallCache
from comd_trainer.store.hashing import in_parallel
from comd_trainer.store.stores import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}", S3Options())


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
rows = st.dictionaries(st.integers(0, 50).map(key), st.dictionaries(st.text(), values, max_size=3), max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(rows, max_size=4), wanted=st.none() | st.sets(st.integers(0, 50).map(key)))
def test_what_was_kept_is_found_again(store: Store, batches: list[dict[str, Any]], wanted: set[str] | None) -> None:
    prefix = f"calls/{hashlib.sha256(repr(batches).encode()).hexdigest()}"
    cache = CallCache(store, prefix)
    for batch in batches:
        cache.append(list(batch.items()))
    found = CallCache(store, prefix).load(wanted)
    kept = {key for batch in batches for key in batch}
    assert set(found) == (kept if wanted is None else kept & wanted)
    assert all(any(reply == batch.get(key) for batch in batches) for key, reply in found.items())
    assert CallCache(store, prefix).load(wanted) == found, "every reader takes the same reply"


def test_text_of_all_kinds_survives(store: Store) -> None:
    cache = CallCache(store, "calls")
    reply = {"text": "line\nline\u2028line\r\x00 \ud800 日本 🙂", "finish": "stop"}
    cache.append([(key(1), reply)])
    assert cache.load() == {key(1): reply}


def test_nothing_is_nothing(store: Store) -> None:
    cache = CallCache(store, "calls")
    assert cache.load() == {}
    cache.append([])
    assert list(store.list("")) == []
    cache.append([(key(1), {})])
    assert cache.load([]) == {}
    assert cache.load([key(2)]) == {}


def test_a_key_that_is_no_digest_is_a_mistake(store: Store) -> None:
    with pytest.raises(AssertionError, match="digest in hex"):
        CallCache(store, "calls").append([("an instruction", {})])


@pytest.mark.parametrize(
    "damaged",
    [lambda _: b"", lambda _: b'["aa", {"text": "forged"}]\n', lambda data: data[:-3], lambda data: data + data],
    ids=["empty", "forged", "cut", "longer"],
)
def test_a_torn_shard_is_left_out_and_named(
    store: Store, damaged: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    cache = CallCache(store, "calls")
    cache.append([(key(1), {"text": "one"})])
    torn = next(store.list("calls")).path
    cache.append([(key(2), {"text": "two"})])
    store.write(torn, damaged(store.read(torn)))
    store.write("calls/notes.txt", b"not ours")
    store.write("calls/" + "0" * 64 + ".jsonl.part", b"not ours")
    with caplog.at_level(logging.WARNING):
        assert cache.load() == {key(2): {"text": "two"}}
    assert [record.message for record in caplog.records] == [
        f"shard {store.uri}/{torn} is damaged and left out; its calls are made again"
    ]
    cache.append([(key(1), {"text": "one"})])  # the same call, made again
    assert cache.load() == {key(1): {"text": "one"}, key(2): {"text": "two"}}


def test_a_shard_is_json_lines_named_by_its_digest(store: Store) -> None:
    CallCache(store, "calls").append([(key(1), {"text": "one"}), (key(2), {"text": "two"})])
    (file,) = store.list("calls")
    data = store.read(file.path)
    assert file.path == f"calls/{hashlib.sha256(data).hexdigest()}.jsonl"
    assert [json.loads(line) for line in data.splitlines()] == [[key(1), {"text": "one"}], [key(2), {"text": "two"}]]


def test_many_may_write_and_read_at_once(store: Store) -> None:
    barrier = threading.Barrier(8)

    def rank(number: int) -> None:
        cache = CallCache(store, "calls")
        barrier.wait()
        for step in range(5):
            cache.append([(key(100 * number + step), {"n": number})])
            cache.load()

    in_parallel(rank, range(8), threads=8)
    assert CallCache(store, "calls").load() == {key(100 * n + step): {"n": n} for n in range(8) for step in range(5)}


def test_a_hundred_thousand_rows_load_in_seconds(store: Store) -> None:
    cache = CallCache(store, "calls")
    for shard in range(200):
        cache.append([(key(500 * shard + row), {"text": "an answer " * 40, "finish": "stop"}) for row in range(500)])
    started = time.monotonic()
    assert len(cache.load()) == 100_000
    assert time.monotonic() - started < 20, "should take about two seconds"
    assert sum(file.size for file in store.list("calls")) < 100_000 * (400 + 110), "110 bytes a row besides the text"

"""What is known of the objects of one kind: small records, found by name and by owner. A list replaces all of it, so that what
vanished while nobody watched does not stay as a ghost.

The answers to our own writes come in beside the watch, earlier or later than it. What is right is told by resource versions, which
the API server counts up for all objects of a kind together: of two states of an object the higher one counts, and an object that we
don't hold, at a version that the watch has passed already, is one that was deleted since. No memory of deletions is needed.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
Key = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True)
class _Held(Generic[T]):
    record: T
    version: int
    owners: tuple[str, ...]


class Store(Generic[T]):
    """Its methods return the owners whose objects have changed, to be looked at."""

    def __init__(self, *, read: Callable[[dict[str, Any]], T], owners: Callable[[T], tuple[str, ...]]) -> None:
        """read: the record of an object; one that it raises an error for is logged and taken as not being there. owners: under which
        it is found; itself may be one of them."""
        self._read, self._owners = read, owners
        self._held: dict[Key, _Held[T]] = {}
        self._by_owner: dict[str, dict[Key, T]] = {}
        self._passed: dict[str | None, int] = {}
        """By namespace, or None where one watch covers all: the version up to which its list and watch have told all."""

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[T]:
        """The records as they are now, whatever happens while they are gone through."""
        return iter([held.record for held in self._held.values()])

    def get(self, namespace: str, name: str) -> T | None:
        held = self._held.get((namespace, name))
        return held.record if held is not None else None

    def of(self, owner: str) -> list[T]:
        return list(self._by_owner.get(owner, {}).values())

    def put(self, obj: dict[str, Any]) -> set[str]:
        """An object as the watch tells of it, or as the answer to a write of ours has it. Nothing happens when it is old news."""
        key, version = _key(obj), _version(obj)
        held = self._held.get(key)
        if version <= (held.version if held is not None else self._passed_in(key[0])):
            return set()
        return self._set(key, self._hold(obj))

    def discard(self, obj: dict[str, Any]) -> set[str]:
        """The watch tells that an object was deleted; its version is that of the deletion."""
        key, version = _key(obj), _version(obj)
        held = self._held.get(key)
        touched = self._set(key, None) if held is not None and held.version <= version else set()
        scope = key[0] if key[0] in self._passed else None
        self.advance(version, namespace=scope)
        return touched

    def advance(self, version: int, *, namespace: str | None = None) -> None:
        """The watch (of a namespace) has told of everything up to this version; to be said after each event and bookmark."""
        self._passed[namespace] = max(version, self._passed.get(namespace, 0))

    def replace(
        self, objects: Iterable[dict[str, Any]], *, resource_version: str, namespace: str | None = None
    ) -> set[str]:
        """All there is (in a namespace) as of a version. What is newer than the list, such as what we have made since, stays."""
        listing = self.listing(namespace=namespace)
        listing.add(objects)
        return listing.finish(resource_version)

    def listing(self, *, namespace: str | None = None) -> "Listing[T]":
        """`replace` page by page, so that the bodies of thousands of objects are never in memory together."""
        return Listing(self, namespace=namespace)

    def _replace(self, listed: dict[Key, _Held[T]], *, version: int, began: int, namespace: str | None) -> set[str]:
        """began: how far the watch was when the list was asked for."""
        if began <= version < self._passed.get(namespace, 0):
            return set()  # The watch has overtaken the list, and knows better.
        went_back = version < began
        if went_back:
            log.warning("the API server went back to an earlier state (%d): taking that as it is", version)
        touched: set[str] = set()
        for key, held in list(self._held.items()):
            here = namespace is None or key[0] == namespace
            if here and key not in listed and (held.version <= version or went_back):
                touched |= self._set(key, None)
        for key, new in listed.items():
            old = self._held.get(key)
            if old is None or new.version > old.version or (went_back and new.version != old.version):
                touched |= self._set(key, new)
        self._passed[namespace] = version
        return touched

    def _hold(self, obj: dict[str, Any]) -> _Held[T] | None:
        try:
            record = self._read(obj)
            return _Held(record, _version(obj), self._owners(record))
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            log.error("%s can't be read and is left out: %r", "/".join(_key(obj)), error)
            return None

    def _passed_in(self, namespace: str) -> int:
        return max(self._passed.get(namespace, 0), self._passed.get(None, 0))

    def _set(self, key: Key, new: _Held[T] | None) -> set[str]:
        old = self._held.pop(key, None)
        for owner in old.owners if old is not None else ():
            siblings = self._by_owner[owner]
            del siblings[key]
            if not siblings:
                del self._by_owner[owner]
        if new is not None:
            self._held[key] = new
            for owner in new.owners:
                self._by_owner.setdefault(owner, {})[key] = new.record
        return {owner for held in (old, new) if held is not None for owner in held.owners}


class Listing(Generic[T]):
    """A list that is being read. Nothing changes before `finish`."""

    def __init__(self, store: Store[T], *, namespace: str | None) -> None:
        self._store, self._namespace = store, namespace
        self._began = store._passed.get(namespace, 0)
        self._listed: dict[Key, _Held[T]] = {}

    def add(self, objects: Iterable[dict[str, Any]]) -> None:
        for obj in objects:
            held = self._store._hold(obj)
            if held is not None:
                self._listed[_key(obj)] = held

    def finish(self, resource_version: str) -> set[str]:
        return self._store._replace(
            self._listed, version=int(resource_version), began=self._began, namespace=self._namespace
        )


def _key(obj: dict[str, Any]) -> Key:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _version(obj: dict[str, Any]) -> int:
    return int(obj["metadata"]["resourceVersion"])

"""What is known of the objects of one kind: small records, found by name and by owner. A list replaces all of it, so that what
vanished while nobody watched does not stay as a ghost."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

KEPT_DELETIONS = 1024


class Record(Protocol):
    @property
    def namespace(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def uid(self) -> str: ...
    @property
    def resource_version(self) -> str: ...


R = TypeVar("R", bound=Record)


class Store(Generic[R]):
    """Fed by a watch and by the answers to our own writes, which may come before or after the watch has told of them."""

    def __init__(self, *, read: Callable[[dict[str, Any]], R], owner: Callable[[R], str | None]) -> None:
        self._read, self._owner = read, owner
        self._records: dict[tuple[str, str], R] = {}
        self._by_owner: dict[str, dict[tuple[str, str], R]] = {}
        self._deleted: OrderedDict[str, None] = OrderedDict()
        """Uids of late: a late answer to a write of ours must not bring one back."""

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[R]:
        return iter(list(self._records.values()))

    def get(self, namespace: str, name: str) -> R | None:
        return self._records.get((namespace, name))

    def of(self, owner: str) -> list[R]:
        return list(self._by_owner.get(owner, {}).values())

    def put(self, obj: dict[str, Any]) -> set[str]:
        """Owners to look at: none when nothing newer was told."""
        record = self._read(obj)
        if record.uid in self._deleted:
            return set()
        key = (record.namespace, record.name)
        old = self._records.get(key)
        if old is not None and old.uid == record.uid and not _newer(record, old):
            return set()
        return self._drop(key) | self._keep(key, record)

    def discard(self, obj: Mapping[str, Any]) -> set[str]:
        """Deleted, as the watch says."""
        metadata = obj["metadata"]
        self._bury(metadata["uid"])
        key = (metadata["namespace"], metadata["name"])
        old = self._records.get(key)
        if old is None or old.uid != metadata["uid"]:
            return set()
        return self._drop(key)

    def replace(
        self, objects: Iterable[dict[str, Any]], *, resource_version: str, namespace: str | None = None
    ) -> set[str]:
        """All there is (in a namespace) as of a version; returns the owners of whatever differs. What is newer than the list, such
        as what we have made since, stays."""
        as_of = int(resource_version)
        touched: set[str] = set()
        listed: set[tuple[str, str]] = set()
        for obj in objects:
            listed.add((obj["metadata"]["namespace"], obj["metadata"]["name"]))
            touched |= self.put(obj)
        for key, record in list(self._records.items()):
            here = namespace is None or record.namespace == namespace
            if here and key not in listed and int(record.resource_version) <= as_of:
                self._bury(record.uid)
                touched |= self._drop(key)
        return touched

    def _keep(self, key: tuple[str, str], record: R) -> set[str]:
        self._records[key] = record
        owner = self._owner(record)
        if owner is None:
            return set()
        self._by_owner.setdefault(owner, {})[key] = record
        return {owner}

    def _drop(self, key: tuple[str, str]) -> set[str]:
        old = self._records.pop(key, None)
        owner = self._owner(old) if old is not None else None
        if owner is None:
            return set()
        siblings = self._by_owner[owner]
        del siblings[key]
        if not siblings:
            del self._by_owner[owner]
        return {owner}

    def _bury(self, uid: str) -> None:
        self._deleted[uid] = None
        while len(self._deleted) > KEPT_DELETIONS:
            self._deleted.popitem(last=False)


def _newer(record: Record, old: Record) -> bool:
    return int(record.resource_version) > int(old.resource_version)

"""The store against a server that is listed and watched, with our own writes' answers coming in whenever they like."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from comd_operator.runtime.store import Store

NAMESPACES = ("n1", "n2")
PLACES = st.tuples(st.sampled_from(NAMESPACES), st.sampled_from(("a", "b", "c")))
OWNERS = st.sampled_from(("x", "y", None))


@dataclass(frozen=True)
class Small:
    namespace: str
    name: str
    version: int
    owner: str | None


def read(obj: dict[str, Any]) -> Small:
    metadata = obj["metadata"]
    return Small(metadata["namespace"], metadata["name"], int(metadata["resourceVersion"]), obj["owner"])


def make_store() -> Store[Small]:
    return Store(read=read, owners=lambda record: (record.owner,) if record.owner is not None else ())


def thing(name: str, version: int, *, owner: str | None = "x", namespace: str = "n1", uid: str = "u") -> dict[str, Any]:
    metadata = {"namespace": namespace, "name": name, "uid": uid, "resourceVersion": str(version)}
    return {"metadata": metadata, "owner": owner}


class Server:
    """What the API server promises: one count of versions, events in their order."""

    def __init__(self) -> None:
        self.version = 10
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.log: list[tuple[int, str, dict[str, Any]]] = []

    def write(self, place: tuple[str, str], *, owner: str | None) -> dict[str, Any]:
        """Creates or changes; returns the answer."""
        self.version += 1
        old = self.objects.get(place)
        uid = old["metadata"]["uid"] if old else f"u{self.version}"
        obj = thing(place[1], self.version, owner=owner, namespace=place[0], uid=uid)
        self.log.append((self.version, "MODIFIED" if old else "ADDED", obj))
        self.objects[place] = obj
        return obj

    def delete(self, place: tuple[str, str]) -> None:
        self.version += 1
        old = self.objects.pop(place)
        gone = {**old, "metadata": {**old["metadata"], "resourceVersion": str(self.version)}}
        self.log.append((self.version, "DELETED", gone))

    def list(self, namespace: str | None) -> list[dict[str, Any]]:
        return [obj for place, obj in self.objects.items() if namespace in (None, place[0])]


class StoreMachine(RuleBasedStateMachine):
    """One watch for all, or one for each namespace; each breaks, lags and lists anew as it likes."""

    @initialize(apart=st.booleans())
    def start(self, apart: bool) -> None:
        self.server, self.store = Server(), make_store()
        self.scopes: tuple[str | None, ...] = NAMESPACES if apart else (None,)
        self.at: dict[str | None, int] = {}
        self.answers: list[dict[str, Any]] = []
        self.listing: dict[str | None, tuple[list[dict[str, Any]], int]] = {}
        for scope in self.scopes:
            self.begin_list(scope)
            self.end_list(scope)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.catch_up()

    def scope_of(self, obj: dict[str, Any]) -> str | None:
        namespace: str = obj["metadata"]["namespace"]
        return namespace if namespace in self.scopes else None

    def expect_told(self, before: dict[tuple[str, str], Small], touched: set[str]) -> None:
        """Every owner whose objects differ is told of, and nobody else."""
        after = self.held()
        changed = {
            record.owner
            for place in before.keys() | after.keys()
            if before.get(place) != after.get(place)
            for record in (before.get(place), after.get(place))
            if record is not None and record.owner is not None
        }
        assert touched == changed

    def held(self) -> dict[tuple[str, str], Small]:
        return {(record.namespace, record.name): record for record in self.store}

    @rule(place=PLACES, owner=OWNERS)
    def somebody_writes(self, place: tuple[str, str], owner: str | None) -> None:
        self.server.write(place, owner=owner)

    @rule(place=PLACES, owner=OWNERS)
    def we_write(self, place: tuple[str, str], owner: str | None) -> None:
        self.answers.append(self.server.write(place, owner=owner))

    @precondition(lambda self: self.server.objects)
    @rule(data=st.data())
    def somebody_deletes(self, data: st.DataObject) -> None:
        self.server.delete(data.draw(st.sampled_from(sorted(self.server.objects))))

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def an_answer_comes(self, data: st.DataObject) -> None:
        answer = self.answers.pop(data.draw(st.integers(0, len(self.answers) - 1)))
        before = self.held()
        self.expect_told(before, self.store.put(answer))

    @rule(data=st.data(), count=st.integers(1, 3), bookmark=st.booleans())
    def the_watch_goes_on(self, data: st.DataObject, count: int, bookmark: bool) -> None:
        scope = data.draw(st.sampled_from(self.scopes))
        if scope in self.listing:
            return
        coming = [entry for entry in self.server.log if entry[0] > self.at[scope] and self.sees(scope, entry[2])]
        for version, kind, obj in coming[:count]:
            before = self.held()
            touched = self.store.discard(obj) if kind == "DELETED" else self.store.put(obj)
            self.expect_told(before, touched)
            self.advance(scope, version)
        if bookmark and len(coming) <= count:
            self.advance(scope, self.server.version)

    def advance(self, scope: str | None, version: int) -> None:
        self.at[scope] = version
        self.store.advance(version, namespace=scope)

    def sees(self, scope: str | None, obj: dict[str, Any]) -> bool:
        return scope in (None, obj["metadata"]["namespace"])

    @rule(data=st.data())
    def a_list_begins(self, data: st.DataObject) -> None:
        self.begin_list(data.draw(st.sampled_from(self.scopes)))

    @precondition(lambda self: self.listing)
    @rule(data=st.data())
    def a_list_ends(self, data: st.DataObject) -> None:
        self.end_list(data.draw(st.sampled_from(sorted(self.listing, key=str))))

    def begin_list(self, scope: str | None) -> None:
        self.listing[scope] = (self.server.list(scope), self.server.version)

    def end_list(self, scope: str | None) -> None:
        """Its answer may be as old as it likes; what we wrote meanwhile must survive it."""
        objects, version = self.listing.pop(scope)
        before = self.held()
        self.expect_told(before, self.store.replace(objects, resource_version=str(version), namespace=scope))
        self.at[scope] = version

    @rule()
    def catch_up(self) -> None:
        """Whatever happened: once all answers and events are in, store and server are equal."""
        for scope in list(self.listing):
            self.end_list(scope)
        for scope in self.scopes:
            for version, kind, obj in self.server.log:
                if version > self.at[scope] and self.sees(scope, obj):
                    _ = self.store.discard(obj) if kind == "DELETED" else self.store.put(obj)
                    self.advance(scope, version)
        while self.answers:
            self.store.put(self.answers.pop())
        assert self.held() == {place: read(obj) for place, obj in self.server.objects.items()}

    @invariant()
    def the_index_is_right(self) -> None:
        if not hasattr(self, "store"):
            return
        for owner in ("x", "y"):
            wanted = {record for record in self.store if record.owner == owner}
            assert set(self.store.of(owner)) == wanted
            assert len(self.store.of(owner)) == len(wanted)
        assert set(self.store._by_owner) == {record.owner for record in self.store} - {None}, "nothing is left behind"
        assert len(self.store) == len(list(self.store))
        for record in self.store:
            assert self.store.get(record.namespace, record.name) is record


StoreMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestStore = StoreMachine.TestCase


def test_our_own_new_object_survives_a_list_that_is_older() -> None:
    store = make_store()
    store.put(thing("a", 12))
    assert store.replace([thing("b", 5)], resource_version="10") == {"x"}
    assert {record.name for record in store} == {"a", "b"}
    assert store.replace([thing("b", 5)], resource_version="13") == {"x"}
    assert {record.name for record in store} == {"b"}


def test_a_late_answer_does_not_bring_back_what_came_and_went_between_two_lists() -> None:
    store = make_store()
    store.replace([], resource_version="10")
    store.replace([], resource_version="20")
    assert store.put(thing("a", 15)) == set()
    assert len(store) == 0


def test_a_late_answer_to_a_write_on_an_earlier_object_of_that_name_is_old_news() -> None:
    store = make_store()
    store.replace([thing("a", 20, uid="second")], resource_version="20")
    assert store.put(thing("a", 15, uid="first")) == set()
    assert [record.version for record in store] == [20]


def test_a_bookmark_counts_as_having_been_told() -> None:
    store = make_store()
    store.replace([], resource_version="10")
    store.advance(20)
    assert store.put(thing("a", 15)) == set()
    assert store.put(thing("a", 21)) == {"x"}


def test_a_deletion_counts_as_having_been_told_and_what_is_told_stays_told() -> None:
    store = make_store()
    store.replace([thing("a", 5)], resource_version="10")
    assert store.discard(thing("a", 20)) == {"x"}
    assert store.put(thing("a", 15)) == set()
    store.advance(12)
    assert store.put(thing("a", 15)) == set()


def test_the_deletion_of_an_earlier_object_leaves_the_one_that_we_have_made_since() -> None:
    store = make_store()
    store.replace([thing("a", 5, uid="first")], resource_version="10")
    store.put(thing("a", 12, uid="second"))
    assert store.discard(thing("a", 11, uid="first")) == set()
    assert [record.version for record in store] == [12]


def test_a_namespace_is_replaced_and_the_other_left_alone() -> None:
    store = make_store()
    store.replace([thing("a", 5)], resource_version="10", namespace="n1")
    store.replace([thing("a", 6, owner="y", namespace="n2")], resource_version="11", namespace="n2")
    assert store.replace([], resource_version="12", namespace="n1") == {"x"}
    assert [record.namespace for record in store] == ["n2"]


def test_a_server_restored_from_a_backup_is_believed(caplog: pytest.LogCaptureFixture) -> None:
    """Its versions begin again lower: what is held from the lost future has to go."""
    store = make_store()
    store.replace([thing("a", 90), thing("b", 91)], resource_version="100")
    store.put(thing("c", 101))
    assert store.replace([thing("a", 40, owner="y")], resource_version="50") == {"x", "y"}
    assert [(record.name, record.version) for record in store] == [("a", 40)]
    assert store.put(thing("d", 51)) == {"x"}
    assert "earlier state" in caplog.text


def test_one_object_that_cannot_be_read_is_left_out_and_the_others_are_not(caplog: pytest.LogCaptureFixture) -> None:
    store = make_store()
    bad = thing("bad", 5)
    del bad["owner"]
    store.replace([thing("a", 4), bad, thing("b", 6)], resource_version="10")
    assert {record.name for record in store} == {"a", "b"}
    assert "n1/bad" in caplog.text
    worse = thing("a", 11)
    del worse["owner"]
    assert store.put(worse) == {"x"}
    assert {record.name for record in store} == {"b"}


def test_a_list_that_the_watch_has_overtaken_changes_nothing() -> None:
    """As of a standby that takes over: it lists beside its watch, and pages take their time."""
    store = make_store()
    store.replace([thing("a", 90), thing("gone", 91, uid="v")], resource_version="95")
    listing = store.listing()
    listing.add([thing("a", 90), thing("gone", 91, uid="v")])
    store.put(thing("a", 103))
    store.discard(thing("gone", 104, uid="v"))
    store.put(thing("new", 105, uid="w"))
    store.advance(105)
    assert listing.finish("100") == set()
    assert sorted((record.name, record.version) for record in store) == [("a", 103), ("new", 105)]
    assert store.put(thing("gone", 91, uid="v")) == set(), "what is old stays old"

"""Nonsense that one object, pod or server tells: nothing but that one suffers from it."""

import asyncio
import json
from datetime import timedelta
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from comd_api.run import Retry
from comd_api.stage import Progress as Said
from comd_api.status import Counts
from comd_operator.policies.clock import to_text
from comd_operator.policies.outcome import parse_result
from comd_operator.policies.progress import progress_text
from comd_operator.policies.retry import pause_left
from comd_operator.runtime import depth
from comd_operator.runtime.api import Api, ApiError, _decode
from comd_operator.runtime.lease import Lease
from comd_operator.runtime.reconciler import FAILING_SECONDS
from comd_operator.runtime.store import Store
from comd_operator.runtime.writes import REFUSAL_SECONDS
from tests.unit.fake_api import FakeApi, refusal
from tests.unit.kube_objects import MADE
from tests.unit.test_reconciler_looks import Site
from tests.unit.test_reconciler_mends import begun_anew

JOBS = "/apis/batch/v1/namespaces/team/jobs"


def nested(levels: int) -> str:
    return '{"a":' * levels + '"x"' + "}" * levels


@given(
    st.recursive(
        st.none() | st.text('ab"\\[]{}é', max_size=4) | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text("[{a", max_size=2), inner),
        max_leaves=20,
    )
)
def test_what_is_not_deep_is_left_as_it_is(value: Any) -> None:
    data = json.dumps(value, ensure_ascii=False).encode()
    assert depth.cut(data) == data


@pytest.mark.parametrize("levels", [depth.MOST_LEVELS, depth.MOST_LEVELS + 1, 1_200, 9_000])
def test_an_object_that_is_nested_too_deep_hides_no_other(levels: int) -> None:
    listed = f'{{"items": [{nested(levels)}, {{"name": "[\\"}}"}}, {nested(3)}]}}'.encode()
    assert _decode(listed)["items"][1:] == [{"name": '["}'}, {"a": {"a": {"a": "x"}}}]
    assert json.loads(depth.cut(listed))["items"][1:] == [{"name": '["}'}, {"a": {"a": {"a": "x"}}}]


def test_what_breaks_off_in_the_depth_is_no_answer() -> None:
    with pytest.raises(ApiError, match="no JSON"):
        _decode(b'{"a":' * 2_000)


def test_a_record_that_can_t_be_made_leaves_the_others() -> None:
    def read(obj: dict[str, Any]) -> str:
        if obj["metadata"]["name"] == "deep":
            raise RecursionError
        return str(obj["metadata"]["name"])

    store = Store(read=read, owners=lambda _: ("run",))
    objects = [
        {"metadata": {"namespace": "team", "name": name, "uid": name, "resourceVersion": "1"}}
        for name in ("deep", "flat")
    ]
    store.replace(objects, resource_version="1")
    assert list(store.of("run")) == ["flat"]


@pytest.mark.parametrize("levels", [150, 250, 600])
def test_a_deep_manifest_is_told_of(levels: int) -> None:
    site = Site()
    affinity = json.loads(nested(levels))
    begun_anew(
        site, spec={**site.api.run["spec"], "trainer": {"podTemplate": {"spec": {"affinity": affinity}}}}, status={}
    )
    site.look(1)
    assert site.api.told("PATCH") or levels < 200


@pytest.mark.parametrize("text", ["[" * 4_096, '{"a":' * 800])
def test_a_result_that_is_nested_too_deep_is_none(text: str) -> None:
    assert parse_result(text) is None


@pytest.mark.parametrize("number", [10**20, -1])
def test_counts_are_what_the_api_server_takes(number: int) -> None:
    with pytest.raises(ValidationError):
        Counts(hard=number)
    result = {"exitClass": "Done", "message": "", "counts": {"hard": number}}
    assert parse_result(json.dumps(result)) is None


@pytest.mark.parametrize(("done", "percent"), [(0, 0), (166, 100)])
def test_no_more_than_all(done: int, percent: int) -> None:
    assert progress_text(Said(stage="round-1", phase="tune", done=done, total=100)) == f"tune {percent} %"


@pytest.mark.parametrize(("ahead", "left"), [(-5, 0.0), (0, 0.0), (30, 30.0), (61, 61.0), (62, 0.0), (86_400, 0.0)])
def test_a_pause_that_another_clock_has_written(ahead: float, left: float) -> None:
    """Longest pause: 60 s, and up to one more by rounding up."""
    retry = Retry(max_backoff_seconds=60)
    assert pause_left(to_text(MADE + timedelta(seconds=ahead)), retry, MADE) == left


def test_a_server_that_wants_to_be_left_alone_for_a_day() -> None:
    assert ApiError.of({}, status=503, retry_after=86_400.0).retry_after == 60.0
    assert ApiError.of({"details": {"retryAfterSeconds": 3_600}}, status=429).retry_after == 60.0
    assert ApiError.of({"details": {"retryAfterSeconds": 7}}, status=429).retry_after == 7.0


@pytest.mark.parametrize("answer", [[[]], "ok", {}, {"metadata": None}, None])
@pytest.mark.parametrize("verb", ["GET", "POST"])
def test_an_answer_that_is_no_lease(verb: str, answer: Any) -> None:
    one = "/apis/coordination.k8s.io/v1/namespaces/default/leases/comd-operator"
    api = FakeApi({("GET", one): refusal(404), (verb, one if verb == "GET" else one.rpartition("/")[0]): answer})
    lease = Lease(api=cast(Api, api), namespace="default", name="comd-operator", identity="me")
    with pytest.raises(ApiError, match="no Lease"):
        asyncio.run(lease._try_to_take())


@pytest.mark.parametrize("error", [refusal(500, "InternalError", "boom"), refusal(401, "Unauthorized", "who are you")])
def test_a_job_that_can_t_be_made_for_a_while_is_told_of(error: ApiError) -> None:
    site = Site()
    site.stores.jobs.replace([], resource_version="50")
    site.api.answers["POST", JOBS] = error
    begun_anew(site, status={})
    before = len(site.api.told("PATCH"))
    with pytest.raises(ApiError):
        site.look(1)
    assert len(site.api.told("PATCH")) == before, "it may pass"
    site.look(FAILING_SECONDS)
    told = site.api.told("PATCH")[-1].body[1]["value"]
    ready = next(entry for entry in told["conditions"] if entry["type"] == "Ready")
    assert (told["phase"], ready["reason"]) == ("Stalled", "ApiError")
    assert ready["message"].startswith("the API server does not take the Job: ")
    writes = len(site.api.told("PATCH"))
    site.look(REFUSAL_SECONDS)
    assert len(site.api.told("PATCH")) == writes, "said once"
    site.api.answers["POST", JOBS] = site.versioned(site.job)
    site.look(REFUSAL_SECONDS)
    assert site.api.told("PATCH")[-1].body[1]["value"]["phase"] == "Running"

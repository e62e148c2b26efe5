"""Runs that end well in one go: what all others must come to. Each kind is run once in a session, by whoever asks first."""

from concurrent.futures import Future
from threading import Lock
from typing import Any

from tests.nodes.site import SLOW, Run, Site
from tests.nodes.world import one_round, two_ranks

_lock = Lock()
_made: dict[str, Future[Run]] = {}


def undisturbed(site: Site) -> Run:
    """One pod, one rank."""
    return _once("undisturbed", site, one_round())


def undisturbed_pair(site: Site) -> Run:
    """One pod, two ranks, each on a GPU of its own."""
    return _once("two-gpus", site, two_ranks(), gpus=2)


def _once(name: str, site: Site, document: dict[str, Any], *, gpus: int | None = None) -> Run:
    with _lock:
        first = name not in _made
        made = _made.setdefault(name, Future())
    if first:
        try:
            run = site.apply(document, site.namespace(name))
            status = run.until_phase("Succeeded")
            assert all(stage["attempt"] == 1 for stage in status["stages"])
            if gpus is not None:
                (pod,) = run.pods(stage="round-1")
                assert pod["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": str(gpus)}
            made.set_result(run)
        except BaseException as error:
            made.set_exception(error)
            raise
    return made.result(timeout=SLOW)

"""Nobody watches over a run for a while."""

import pytest

from tests.nodes.scenes import compare
from tests.nodes.site import Site
from tests.nodes.undisturbed import undisturbed
from tests.nodes.world import one_round


@pytest.mark.timeout(1800)
def test_a_run_goes_on_under_the_successor_of_a_killed_operator(site: Site) -> None:
    """Killed as the first Job was made, and again in the middle of training, which ends before the next operator looks."""
    run = site.apply(one_round(), site.namespace("operator-killed"))
    run.until(lambda status: status.get("stages"))
    site.operator.kill()
    site.operator.start()
    run.until_step(10)
    site.operator.kill()
    run.kubectl("wait", "job/tiny-round-1-a1", "--for=condition=Complete", "--timeout=600s")
    assert run.status()["phase"] == "Running"
    site.operator.start()
    status = run.until_phase("Succeeded")
    assert [stage["attempt"] for stage in status["stages"]] == [1, 1]
    assert run.jobs() == ["tiny-preflight-a1", "tiny-round-1-a1"]
    assert len(run.pods()) == 2
    compare(run, to=undisturbed(site))

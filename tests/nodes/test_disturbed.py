"""Runs on real nodes, whatever happens to them."""

from collections.abc import Callable

import pytest

from tests.nodes.scenes import Scene, disturbed, ends
from tests.nodes.undisturbed import undisturbed, undisturbed_pair

pytestmark = pytest.mark.timeout(1800)
WELL: dict[str, Scene] = {"one-rank": undisturbed, "two-gpus": undisturbed_pair}
LONGEST = {"by-phase": ends.by_phase}
SCENES = {**WELL, **LONGEST, **disturbed.SCENES, **ends.SCENES}
"""In the order in which they begin."""


@pytest.mark.parametrize("scene", WELL)
def test_a_run_that_nobody_disturbs_ends_well_at_the_first_attempt(scene: str, play: Callable[[str], None]) -> None:
    play(scene)


@pytest.mark.parametrize("scene", disturbed.SCENES)
def test_a_stage_whose_pod_is_taken_away_goes_on_from_its_checkpoint(scene: str, play: Callable[[str], None]) -> None:
    play(scene)


@pytest.mark.parametrize("scene", ends.SCENES)
def test_the_end_of_a_stage_is_what_it_was(scene: str, play: Callable[[str], None]) -> None:
    play(scene)

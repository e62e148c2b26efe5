"""Runs that can't work on this cluster."""

from collections.abc import Callable

import pytest

from tests.nodes.scenes import stalled

pytestmark = pytest.mark.timeout(1800)
SCENES = stalled.SCENES


@pytest.mark.parametrize("scene", SCENES)
def test_what_is_wrong_is_said_within_seconds_and_nothing_is_held(scene: str, play: Callable[[str], None]) -> None:
    play(scene)

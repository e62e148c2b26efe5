"""Storage that can't be used, on real nodes: the kubelet's, the store's and the trainer's words in the run's condition."""

from collections.abc import Callable

import pytest

from tests.nodes.scenes import storage

pytestmark = pytest.mark.timeout(1800)
SCENES = storage.SCENES
"""In the order in which they begin."""


@pytest.mark.parametrize("scene", SCENES)
def test_what_is_wrong_stands_in_the_condition(scene: str, play: Callable[[str], None]) -> None:
    play(scene)

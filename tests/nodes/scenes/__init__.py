"""Whole runs, each with its own trouble. A scene plays in a namespace of its own, so that several play side by side; what is
not as it should be it raises."""

from collections.abc import Callable

from tests.nodes.site import Run, Site

Scene = Callable[[Site], object]


def compare(run: Run, *, to: Run) -> None:
    """The same losses, weights, answers and scores, byte for byte; and nothing half done is left."""
    assert run.files() == to.files()
    assert run.leftovers() == []

"""Which run, stage and attempt, or which schedule, a log line is about, so that each carries it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from comd_api.status import StageStatus

_about: ContextVar[dict[str, str | int]] = ContextVar("about", default={})  # noqa: B039


@contextmanager
def about(*, namespace: str, stage: StageStatus | None = None, **who: str) -> Iterator[None]:
    """who: `run` or `schedule`, by its name."""
    token = _about.set({**who, "namespace": namespace})
    at(stage)
    try:
        yield
    finally:
        _about.reset(token)


def at(stage: StageStatus | None) -> None:
    """From now on, within `about`."""
    if stage is not None:
        _about.set({**_about.get(), "stage": stage.name, "attempt": stage.attempt})


def fields() -> dict[str, str | int]:
    return _about.get()

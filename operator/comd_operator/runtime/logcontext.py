"""Which run, stage and attempt a log line is about, so that each carries it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from comd_api.status import StageStatus

_about: ContextVar[dict[str, str | int]] = ContextVar("about", default={})  # noqa: B039


@contextmanager
def about(*, run: str, namespace: str, stage: StageStatus | None) -> Iterator[None]:
    fields: dict[str, str | int] = {"run": run, "namespace": namespace}
    if stage is not None:
        fields |= {"stage": stage.name, "attempt": stage.attempt}
    token = _about.set(fields)
    try:
        yield
    finally:
        _about.reset(token)


def fields() -> dict[str, str | int]:
    return _about.get()

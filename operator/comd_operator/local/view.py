"""What `comd run` shows while it works: a picture on a terminal, else one line per event and per interval."""

import math
import sys
import time
from typing import Any, Protocol, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from comd_api.run import DistillationRun
from comd_api.stage import Progress
from comd_api.stages import phases_of, stage_names
from comd_api.status import RunStatus, StageStatus
from comd_operator.policies.events import Event

PLAIN_INTERVAL = 5.0
"""Seconds between two plain lines of progress."""
LIVE_INTERVAL = 0.25


class View(Protocol):
    """Entered when work begins, left when it ends."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: Any) -> None: ...
    def update(self, run: DistillationRun, progress: Progress | None) -> None: ...
    def event(self, event: Event) -> None: ...


def open_view(*, quiet: bool, stream: TextIO = sys.stderr) -> View:
    """The live picture on a terminal, else plain lines; quiet leaves warnings alone."""
    if quiet or not stream.isatty():
        return PlainView(stream=stream, quiet=quiet)
    return LiveView(Console(file=stream))


class PlainView:
    def __init__(self, *, stream: TextIO, quiet: bool = False, interval: float = PLAIN_INTERVAL) -> None:
        self._stream, self._quiet, self._interval = stream, quiet, interval
        self._last = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        pass

    def update(self, run: DistillationRun, progress: Progress | None) -> None:
        if self._quiet or progress is None or time.monotonic() - self._last < self._interval:
            return
        self._last = time.monotonic()
        self._say(progress_line(run.status or RunStatus(), progress))

    def event(self, event: Event) -> None:
        if not self._quiet or event.type == "Warning":
            self._say(f"{event.reason}: {event.message}")

    def _say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=self._stream, flush=True)


class LiveView:
    """Redrawn by our own loop, so that no thread runs beside the one that starts processes."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._last = -math.inf

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._live.__exit__(*exc_info)

    def update(self, run: DistillationRun, progress: Progress | None) -> None:
        if time.monotonic() - self._last < LIVE_INTERVAL:
            return
        self._last = time.monotonic()
        self._live.update(picture(run, progress), refresh=True)

    def event(self, event: Event) -> None:
        style = "yellow" if event.type == "Warning" else "dim"
        self._live.console.print(Text(f"{time.strftime('%H:%M:%S')} {event.reason}: {event.message}", style=style))


def progress_line(status: RunStatus, progress: Progress) -> str:
    """`round-1 tune 40/120 steps 33% loss=1.23 2.1 steps/s 38 s left`."""
    parts = [status.stage or progress.stage, progress.phase or "starting"]
    if progress.total:
        parts += [
            f"{progress.done}/{progress.total} {progress.unit}".rstrip(),
            f"{100 * progress.done // progress.total}%",
        ]
    parts += [f"{name}={value_text(value)}" for name, value in progress.metrics.items()]
    if progress.rate:
        parts.append(f"{progress.rate:.3g} {progress.unit or 'items'}/s")
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left")
    return " ".join(parts)


def picture(run: DistillationRun, progress: Progress | None) -> RenderableType:
    """All stages, what is known of each, and a bar for the phase that runs."""
    status = run.status or RunStatus()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("stage", "state", "time", "score", "hard / easy"):
        table.add_column(name)
    for name in stage_names(run.spec):
        table.add_row(*_stage_row(run, name, status.stage_named(name)))
    parts: list[RenderableType] = [Text(f"{run.metadata.name}  {status.phase}", style="bold"), table]
    if progress is not None and status.stage is not None:
        parts.append(Text(f"{status.stage}: " + _phases_text(run, status.stage, progress)))
        if progress.total:
            parts.append(ProgressBar(total=progress.total, completed=progress.done, width=50))
        parts.append(Text(progress_line(status, progress)))
    return Group(*parts)


def _stage_row(run: DistillationRun, name: str, stage: StageStatus | None) -> tuple[str, ...]:
    if stage is None:
        return (name, "", "", "", "")
    state = stage.phase if stage.attempt < 2 else f"{stage.phase} (attempt {stage.attempt})"
    first = run.spec.data.evaluation[0].name if run.spec.data.evaluation else None
    scores = {score.role: score.value for score in stage.scores if score.evaluation == first}
    score = " / ".join(f"{scores[role]:.3f}" for role in ("student", "teacher") if role in scores)
    counts = stage.counts
    pools = f"{counts.hard} / {counts.easy}" if counts is not None and counts.hard is not None else ""
    seconds = sum(time.seconds for time in stage.phases) or stage.active_seconds
    return (name, state, duration(seconds) if seconds else "", score, pools)


def _phases_text(run: DistillationRun, stage: str, progress: Progress) -> str:
    names = [str(name) for name in phases_of(run.spec, stage)]
    here = names.index(progress.phase) if progress.phase in names else -1
    return "  ".join(
        f"✓ {name}" if index < here else f"▶ {name}" if index == here else f"· {name}"
        for index, name in enumerate(names)
    )


def value_text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """`8.4 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

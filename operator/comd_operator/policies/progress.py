"""How far a stage is, in few words."""

from comd_api.stage import Progress


def progress_text(progress: Progress | None) -> str | None:
    """`tune 43 %`."""
    if progress is None or progress.phase is None:
        return None
    return f"{progress.phase} {100 * progress.done // progress.total} %" if progress.total else progress.phase

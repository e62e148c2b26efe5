"""How far a stage is, in few words."""

from comd_api.stage import Progress


def progress_text(progress: Progress | None) -> str | None:
    """`tune 43 %`."""
    if progress is None or progress.phase is None:
        return None
    if progress.total <= 0:
        return progress.phase
    percent = 100 * progress.done // progress.total
    return f"{progress.phase} {min(100, max(0, percent))} %"

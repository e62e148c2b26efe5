"""The stage `preflight`. `check` runs it; later stages ask `check_unchanged` and take their sources from `pinned`."""

from comd_trainer.preflight.named import NamedSource, answering_models, named_sources, pinned
from comd_trainer.preflight.rows import check_numbers
from comd_trainer.preflight.stage import changed_sources, check, check_unchanged, take_fingerprints

__all__ = [
    "NamedSource",
    "answering_models",
    "changed_sources",
    "check",
    "check_numbers",
    "check_unchanged",
    "named_sources",
    "pinned",
    "take_fingerprints",
]

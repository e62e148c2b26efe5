"""The phases of a stage, one module each; every one reads like the method.

A phase module has `INPUTS` (names of the artifacts it reads), `recipe` (everything else that its content depends on) and `run`.
`run` is called in every rank of a fresh process group; modules import torch inside it, so that keys can be computed without.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol, cast

from comd_api.stage import StageConfig
from comd_api.status import PhaseName
from comd_trainer.context import PhaseContext


class Phase(Protocol):
    INPUTS: tuple[str, ...]

    def recipe(self, config: StageConfig, fingerprints: Mapping[str, str]) -> dict[str, Any]:
        """JSON-able: what the artifact's content depends on besides its inputs."""

    def run(self, ctx: PhaseContext) -> None:
        """Leaves the artifact's files in `ctx.out`."""


def phase_module(name: PhaseName) -> Phase:
    return cast(Phase, import_module(f"comd_trainer.phases.{name}"))

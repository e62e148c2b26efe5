"""When a run's student takes the place of the one that is served: `channels/<channel>.json` below the store's root."""

from typing import Annotated

from pydantic import Field

from comd_api.base import ApiModel, Name, Rule
from comd_api.status import ShortText


class Guard(ApiModel):
    """An evaluation on which the student must not have become worse."""

    evaluation: ShortText
    """Name of an entry of `data.evaluation`."""
    max_drop: Annotated[float, Field(ge=0, le=1)] = 0.0
    """By how much its accuracy may be below the promoted student's all the same."""


class Promotion(ApiModel):
    """After the last round the student is compared with the one that the channel points to, item by item. The first of a channel is
    promoted without."""

    channel: Name = "stable"
    """Name of the pointer. All runs in one store that promote to the same channel compete for it."""
    evaluation: ShortText
    """Name of the entry of `data.evaluation` that decides."""
    min_gain: Annotated[float, Field(ge=0, le=1)] = 0.0
    """By how much its accuracy must at least be above the promoted student's."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """How sure it must be that the gain is none of chance: by a one-sided exact sign test over the items that one of both students
    answers rightly and the other does not (McNemar)."""
    guards: Annotated[list[Guard], Field(max_length=16)] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["evaluation"]},
    )
    """Evaluations on which it must not be worse."""

    rules = (
        Rule(
            "self.guards.all(guard, guard.evaluation != self.evaluation)",
            "guards are other evaluations than the one that decides; take it out of guards",
        ),
    )

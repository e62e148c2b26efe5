"""The kinds of the group, by the names that the API server has for them."""

from typing import NamedTuple


class Kind(NamedTuple):
    name: str
    plural: str
    short: str


RUN = Kind("DistillationRun", "distillationruns", "drun")
SCHEDULE = Kind("DistillationSchedule", "distillationschedules", "dsched")

"""`DistillationSchedule`: runs that are made of a template at the times of cron expressions, as CronJob makes Jobs."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from comd_api import API_VERSION
from comd_api.base import ApiModel, Rule, Timestamp
from comd_api.pods import Annotations, Labels
from comd_api.run import ObjectMeta, RunSpec
from comd_api.status import Condition, ShortText

MAX_SCHEDULE_NAME = 52
"""The name of a slot's run is the schedule's, `-`, and minutes since 1970 of up to 10 digits: 63 characters, as a label takes."""

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


def _one_of(words: tuple[str, ...]) -> str:
    """Upper or lower case, letter by letter: a pattern for every kind of regular expression there is."""
    return "|".join("".join(f"[{letter.upper()}{letter}]" for letter in word) for word in words)


def _field(value: str) -> str:
    """A list of values, ranges and steps."""
    term = rf"([*?]|({value})(-({value}))?)(/[1-9][0-9]?)?"
    return rf"{term}(,{term})*"


_FIELDS = (
    "[0-5]?[0-9]",
    "[01]?[0-9]|2[0-3]",
    "0?[1-9]|[12][0-9]|3[01]",
    f"0?[1-9]|1[0-2]|{_one_of(MONTHS)}",
    f"[0-6]|{_one_of(WEEKDAYS)}",
)
CRON_FORM = rf"^({'|'.join(MACROS)}|{' +'.join(map(_field, _FIELDS))})$"
ZONE_FORM = r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$"
SCHEDULE_FORMS = {
    CRON_FORM: "minute, hour, day of month, month and day of week (0-6 or SUN-SAT), each *, numbers, ranges and steps, such as "
    f"'30 2 * * 1-5', or {', '.join(MACROS)}; a time zone belongs into spec.timeZone",
    ZONE_FORM: "a name of the IANA database, such as Europe/Berlin",
}
"""What a pattern asks for, in words, for error messages."""

CronExpression = Annotated[str, StringConstraints(pattern=CRON_FORM, max_length=128)]


class RunMeta(ApiModel):
    """What runs of the schedule carry beside the operator's own labels."""

    labels: Labels = Field(default_factory=dict)
    annotations: Annotations = Field(default_factory=dict)

    rules = (
        Rule(
            "self.labels.all(key, !key.startsWith('comd.dev/'))",
            "labels may have no keys that begin with comd.dev/, which are the operator's own",
        ),
    )


class RunTemplate(ApiModel):
    """What each run is made of."""

    metadata: RunMeta = Field(default_factory=RunMeta)
    spec: RunSpec


class ScheduleSpec(ApiModel):
    schedules: Annotated[
        list[CronExpression], Field(min_length=1, max_length=16, json_schema_extra={"x-kubernetes-list-type": "set"})
    ]
    """Cron expressions, as CronJob takes them. A time that several of them name is one slot."""
    time_zone: Annotated[str, StringConstraints(pattern=ZONE_FORM, max_length=64)] = "Etc/UTC"
    """IANA name of the zone whose clock the schedules mean. Times that it skips have no slot, times that it repeats have two."""
    concurrency_policy: Literal["Allow", "Forbid", "Replace"] = "Allow"
    """What becomes of a slot while a run of the schedule is not over: it starts beside it; it is skipped; or that run is deleted
    first."""
    starting_deadline_seconds: Annotated[int, Field(ge=1, le=31_536_000)] | None = None
    """A slot that could not be started within so many seconds is missed."""
    catch_up: Annotated[int, Field(ge=1, le=100)] = 1
    """How many slots are made up when several have passed unstarted; the newest ones."""
    start_from: Literal["Scratch", "LastSuccessful"] = "Scratch"
    """What runs begin with: `runTemplate.spec.student`; or the newest student that the schedule has come to, which with
    `runTemplate.spec.promotion` is the promoted one. The first run begins from scratch."""
    skip_if_unchanged: bool = False
    """A run of a slot whose data and recipe are those of the last one that succeeded is done with `preflight`, without a GPU."""
    suspend: bool = False
    """No slot is started. Slots that pass meanwhile are made up afterwards, as far as `catchUp` and `startingDeadlineSeconds` allow.
    Runs that were started go on."""
    successful_runs_history_limit: Annotated[int, Field(ge=0, le=100)] = 3
    """How many runs that succeeded are kept."""
    failed_runs_history_limit: Annotated[int, Field(ge=0, le=100)] = 1
    run_template: RunTemplate

    rules = (
        Rule(
            "self.startFrom == 'Scratch' || !has(self.runTemplate.spec.startFrom)",
            "startFrom LastSuccessful says what runs begin with; take startFrom out of runTemplate.spec",
        ),
        Rule(
            "!self.skipIfUnchanged || !has(self.runTemplate.spec.skipIfUnchangedSince)",
            "skipIfUnchanged says which run is compared with; take skipIfUnchangedSince out of runTemplate.spec",
        ),
        Rule(
            "self.catchUp == 1 || self.concurrencyPolicy == 'Allow'",
            "catchUp of more than 1 starts runs beside each other and needs concurrencyPolicy: Allow",
        ),
        Rule(
            "!self.timeZone.matches('^[Ll][Oo][Cc][Aa][Ll]([Tt][Ii][Mm][Ee])?$')",
            "timeZone must be the same on every machine; write a name of the IANA database, such as Europe/Berlin",
        ),
    )


class RunReference(ApiModel):
    """A run of the schedule."""

    name: Annotated[str, Field(max_length=63)]
    uid: ShortText


class ScheduleStatus(ApiModel):
    observed_generation: int = 0
    timetable: Annotated[str, Field(max_length=2304)] | None = None
    """Schedules and time zone for which slots are counted. When they change, slots count from when the change was seen."""
    settled_time: Timestamp | None = None
    """Slots up to this time are settled: started, skipped or missed."""
    pending_slot: Timestamp | None = None
    """The slot whose run is made as soon as the runs that it replaces are gone."""
    last_schedule_time: Timestamp | None = None
    """The last slot that was started."""
    last_successful_time: Timestamp | None = None
    """When a run of the schedule last succeeded."""
    last_successful_run: Annotated[str, Field(max_length=63)] | None = None
    """Which run that was: what `startFrom` and `skipIfUnchanged` go by, also when the run is not kept any more."""
    next_schedule_times: Annotated[list[Timestamp], Field(max_length=3)] = Field(
        default_factory=list, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
    num_active: int = 0
    """Runs that are not over."""
    active: Annotated[list[RunReference], Field(max_length=32)] = Field(
        default_factory=list, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
    """The newest of them."""
    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class DistillationSchedule(ApiModel):
    """Makes a DistillationRun of a template at each time that its cron expressions name."""

    api_version: Literal["comd.dev/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    kind: Literal["DistillationSchedule"] = "DistillationSchedule"
    metadata: ObjectMeta
    spec: ScheduleSpec
    status: ScheduleStatus | None = None

    rules = (
        Rule(
            f"size(self.metadata.name) <= {MAX_SCHEDULE_NAME} && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
            f"metadata.name may have at most {MAX_SCHEDULE_NAME} of the characters a-z, 0-9 and -, because runs are named after it",
        ),
    )

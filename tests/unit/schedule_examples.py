"""Manifests of schedules, right and wrong. The API server is asked the same table."""

from typing import Any

from tests.unit.schedules import schedule_manifest

GOOD: list[dict[str, Any]] = [
    {},
    {"schedules": ["@daily", "*/5 1-3,7 ? JAN-mar MON,fri"], "timeZone": "America/Argentina/Buenos_Aires"},
    {"schedules": ["0 0 1 1 0"], "timeZone": "Etc/GMT+12"},
    {"concurrencyPolicy": "Allow", "catchUp": 7, "startingDeadlineSeconds": 1},
    {"successfulRunsHistoryLimit": 0, "failedRunsHistoryLimit": 0, "suspend": True},
    {"startFrom": "LastSuccessful", "skipIfUnchanged": True},
    {"startFrom": "LastSuccessful", "template": {"promotion": {"evaluation": "test"}}},
    {"skipIfUnchanged": True, "template": {"startFrom": {"channel": "stable"}}},
    {"startFrom": "LastSuccessful", "template": {"skipIfUnchangedSince": "before"}},
]

_FORM = "has the wrong form; right would be minute, hour, day of month"
REFUSED: list[tuple[dict[str, Any], str]] = [
    (schedule_manifest("n" * 53), "metadata.name may have at most 52"),
    (schedule_manifest("with.dots"), "metadata.name may have at most 52"),
    (schedule_manifest(schedules=[]), "spec.schedules"),
    (schedule_manifest(schedules=["0 0 * *"]), _FORM),
    (schedule_manifest(schedules=["0 0 * * * *"]), _FORM),
    (schedule_manifest(schedules=["60 0 * * *"]), _FORM),
    (schedule_manifest(schedules=["0 24 * * *"]), _FORM),
    (schedule_manifest(schedules=["0 0 0 * *"]), _FORM),
    (schedule_manifest(schedules=["0 0 * 13 *"]), _FORM),
    (schedule_manifest(schedules=["0 0 * * 7"]), _FORM),
    (schedule_manifest(schedules=["*/0 0 * * *"]), _FORM),
    (schedule_manifest(schedules=["0 0 L * *"]), _FORM),
    (schedule_manifest(schedules=["@every 1h"]), _FORM),
    (schedule_manifest(schedules=["@reboot"]), _FORM),
    (schedule_manifest(schedules=["TZ=Europe/Berlin 0 0 * * *"]), "a time zone belongs into spec.timeZone"),
    (schedule_manifest(schedules=["CRON_TZ=UTC @daily"]), _FORM),
    (schedule_manifest(timeZone="Local"), "spec.timeZone must be the same on every machine"),
    (schedule_manifest(timeZone="../etc"), "spec.timeZone"),
    (schedule_manifest(timeZone=""), "spec.timeZone"),
    (schedule_manifest(concurrencyPolicy="Sometimes"), "right would be Allow, Forbid or Replace"),
    (schedule_manifest(concurrencyPolicy="Forbid", catchUp=2), "spec.catchUp of more than 1 starts runs beside each other"),
    (schedule_manifest(catchUp=0), "spec.catchUp"),
    (schedule_manifest(startingDeadlineSeconds=0), "spec.startingDeadlineSeconds"),
    (schedule_manifest(successfulRunsHistoryLimit=-1), "spec.successfulRunsHistoryLimit"),
    (schedule_manifest(startFrom="Sometimes"), "right would be Scratch or LastSuccessful"),
    (
        schedule_manifest(startFrom="LastSuccessful", template={"startFrom": {"run": "before"}}),
        "spec.startFrom LastSuccessful says what runs begin with; take startFrom out of runTemplate.spec",
    ),
    (
        schedule_manifest(skipIfUnchanged=True, template={"skipIfUnchangedSince": "before"}),
        "take skipIfUnchangedSince out of runTemplate.spec",
    ),
    (schedule_manifest(template={"promotion": {"evaluation": "none"}}), "promotion.evaluation must be the name of an entry"),
    (schedule_manifest(template={"training__batchSize": 7, "training__microBatchSize": 2}), "training.batchSize must be a multiple"),
    (
        schedule_manifest(
            runTemplate={"metadata": {"labels": {"comd.dev/run": "x"}}, "spec": schedule_manifest()["spec"]["runTemplate"]["spec"]}
        ),
        "labels may have no keys that begin with comd.dev/",
    ),
]  # fmt: skip
"""Refused by the schema and its rules."""

ONLY_TEXT: list[tuple[dict[str, Any], str]] = [
    (schedule_manifest(schedules=["0 0 31 2 *"]), "spec.schedules[0]: '0 0 31 2 *' never comes"),
    (schedule_manifest(schedules=["30-10 * * * *"]), "never comes, because of its minute"),
    (schedule_manifest(timeZone="Europe/Berln"), "spec.timeZone: 'Europe/Berln' is no time zone"),
]
"""Taken by the API server, for which they are only text; refused by `comd validate`, and by the operator in a condition."""

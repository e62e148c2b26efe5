"""From which difference on a clock is a warning, and from which a refusal."""

from datetime import UTC, datetime, timedelta

import pytest

from comd_api.exit_codes import UserError
from comd_trainer.preflight.examine import judge_clock
from comd_trainer.preflight.findings import Caution
from comd_trainer.store.s3_clock import date_of

URI = "s3://bucket/x"


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (0.0, "within 1 s"),
        (-42.0, "within 42 s"),
        (299.0, "within 299 s"),
        (300.0, "5 minutes ahead of"),
        (-301.0, "5 minutes behind"),
        (899.0, "15 minutes ahead of"),
    ],
)
def test_a_clock_that_services_take(seconds: float, says: str) -> None:
    told = judge_clock(timedelta(seconds=seconds), uri=URI)
    assert says in told
    assert isinstance(told, Caution) == (abs(seconds) >= 300)


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (900, "15 minutes ahead of"),
        (-3600, "60 minutes behind"),
        (3600, "60 minutes ahead of"),
        (7_200, "2.0 hours ahead of"),
        (-36_000, "10.0 hours behind"),
    ],
)
def test_a_clock_that_they_refuse(seconds: int, says: str) -> None:
    with pytest.raises(UserError) as raised:
        judge_clock(timedelta(seconds=seconds), uri=URI)
    assert str(raised.value) == (
        f"spec.storage.uri: this machine's clock is {says} that of the service of {URI}, and requests are refused from 15 minutes on; "
        "set the clock (NTP)"
    )


@pytest.mark.parametrize(
    ("header", "date"),
    [
        ("Wed, 25 Nov 2026 18:00:00 GMT", datetime(2026, 11, 25, 18, tzinfo=UTC)),
        ("Wed, 25 Nov 2026 18:00:00 -0000", datetime(2026, 11, 25, 18, tzinfo=UTC)),
        ("yesterday", None),
        ("", None),
        (None, None),
    ],
)
def test_a_date_as_services_write_it(header: str | None, date: datetime | None) -> None:
    assert date_of(header) == date

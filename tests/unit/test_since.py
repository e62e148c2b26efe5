"""Since when something has been so, by our own clock."""

from comd_operator.runtime.since import Since


def test_it_is_counted_from_when_it_was_seen_first() -> None:
    since = Since()
    assert since.ages("run", ["pod"], clock=100) == {"pod": 0}
    assert since.ages("other", ["pod"], clock=105) == {"pod": 0}, "each owner's is its own"
    assert since.ages("run", ["pod", "job"], clock=110) == {"pod": 10, "job": 0}
    assert since.ages("run", ["job"], clock=120) == {"job": 10}
    assert since.ages("run", ["pod", "job"], clock=130) == {"pod": 0, "job": 20}, "what was not so is counted anew"


def test_nothing_is_remembered_of_what_is_not_so() -> None:
    since = Since()
    since.ages("run", ["pod"], clock=100)
    since.ages("run", [], clock=110)
    since.ages("other", ["pod"], clock=110)
    since.forget("other")
    since.forget("other")
    assert since._seen == {}

"""The throttler's policy, held against a simulation that takes one step at a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from casemate.config import Config
from casemate.ksm.policy import MOST_PAGES, Pace, Policy, paces

SECONDS = st.integers(0, 200)
PACES = st.lists(SECONDS, min_size=0, max_size=4).map(
    lambda all: [Pace(f"pace{number}", 10, 1, seconds) for number, seconds in enumerate(all)]
)


def test_the_paces_follow_each_other_as_documented() -> None:
    policy = Policy(paces(Config()))
    assert policy.at(5.0) == (None, None), "nothing has started"
    policy.kick(100.0)
    seen = []
    now: float | None = 100.0
    while now is not None:
        pace, change = policy.at(now)
        seen.append((now, pace and (pace.name, pace.share, pace.pause)))
        now = change
    assert seen == [
        (100.0, ("aggressive", 10, 1)),
        (130.0, ("standard", 100, 10)),
        (250.0, ("slow", 500, 100)),
        (370.0, None),
    ]


def test_a_start_begins_anew_at_every_pace() -> None:
    for moment in (110.0, 130.0, 249.0, 300.0, 370.0, 5000.0):
        policy = Policy(paces(Config()))
        policy.kick(100.0)
        policy.kick(moment)
        pace, change = policy.at(moment)
        assert pace is not None and pace.name == "aggressive" and change == moment + 30


@given(PACES, st.lists(st.tuples(st.sampled_from(("kick", "look")), st.integers(0, 300)), max_size=30))
def test_like_a_simulation_second_by_second(all: list[Pace], steps: list[tuple[str, int]]) -> None:
    policy, now = Policy(all), 0
    # What runs, and for how many seconds more; the simulation knows nothing of times.
    waiting: list[tuple[str, int]] = []
    for what, seconds in steps:
        for _ in range(seconds):
            if waiting:
                name, left = waiting[0]
                waiting = [(name, left - 1), *waiting[1:]] if left > 1 else waiting[1:]
        now += seconds
        if what == "kick":
            policy.kick(now)
            waiting = [(pace.name, pace.seconds) for pace in all if pace.seconds]
        pace, change = policy.at(now)
        if waiting:
            assert pace is not None and (pace.name, change) == (waiting[0][0], now + waiting[0][1])
        else:
            assert (pace, change) == (None, None)


@given(PACES, st.floats(0, 1e9), st.floats(0, 1e9))
def test_the_next_change_is_a_change_and_lies_ahead(all: list[Pace], start: float, later: float) -> None:
    policy = Policy(all)
    policy.kick(start)
    pace, change = policy.at(start + later)
    if pace is not None:
        assert change is not None and change > start + later
        assert policy.at(change)[0] != pace
    else:
        assert change is None


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_start_that_is_told_late_does_not_turn_time_back(first: float, second: float) -> None:
    one, two = Policy(paces(Config())), Policy(paces(Config()))
    for policy, order in ((one, (first, second)), (two, (second, first))):
        for moment in order:
            policy.kick(moment)
    assert one.at(max(first, second) + 1) == two.at(max(first, second) + 1)


@given(st.integers(0, 1 << 60), st.integers(1, 1_000_000))
def test_the_pages_are_a_share_that_the_kernel_takes(anonymous: int, share: int) -> None:
    pages = Pace("pace", share, 1, 1).pages(anonymous)
    assert 1 <= pages <= MOST_PAGES
    if 1 <= anonymous // share <= MOST_PAGES:
        assert pages == anonymous // share

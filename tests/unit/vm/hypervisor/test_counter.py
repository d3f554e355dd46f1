"""The frequency of the host's counter: readings that are disturbed, and those that cannot be believed."""

from __future__ import annotations

import time

import pytest

from casemate.vm.hypervisor.counter import INTERVAL_NS, Counter


class World:
    """A clock, a counter of 2 GHz beside it, and delays that come between a look at one and at the other."""

    def __init__(self, delays: list[int], rate: float = 2.0) -> None:
        self.now = 1_000_000_000
        self.delays = delays
        self.rate = rate
        self.slept = 0.0

    def clock(self) -> int:
        self.now += 100
        return self.now

    def read(self) -> int:
        count = int(self.now * self.rate)
        self.now += self.delays.pop(0) if self.delays else 0
        return count

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.now += round(seconds * 1e9)

    def counter(self) -> Counter:
        return Counter(self.read, self.clock, self.sleep)


def test_this_host() -> None:
    begun = time.monotonic()
    first, second = Counter().khz(), Counter().khz()
    if first is None or second is None:
        pytest.skip("this host's counter cannot be read")
    assert abs(first - second) < first / 100
    assert time.monotonic() - begun < 5


def test_interruptions_are_not_taken_for_the_counter() -> None:
    slow = 9_000_000
    found = World([slow, slow, slow, 0, slow, slow, 0]).counter().khz()
    assert found is not None and abs(found - 2_000_000) < 200


def test_a_host_that_is_always_interrupted() -> None:
    found = World([500_000] * 19 + [30_000] + [500_000] * 19 + [30_000]).counter().khz()
    assert found is not None and abs(found - 2_000_000) < 20_000  # the guest corrects up to 1 %


def test_no_time_is_lost_where_there_was_other_work() -> None:
    world = World([])
    counter = world.counter()
    world.now += INTERVAL_NS
    assert counter.khz() is not None and not world.slept


@pytest.mark.parametrize("rate", [0.0, -2.0, 0.01, 1000.0])
def test_what_cannot_be_is_not_believed(rate: float) -> None:
    assert World([], rate).counter().khz() is None


def test_another_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casemate.vm.hypervisor.counter.machine", lambda: "aarch64")
    assert Counter().khz() is None

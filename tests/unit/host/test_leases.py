"""Leases, and the addresses and user ids that are leased."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from casemate.config import Config
from casemate.errors import HostError, NetworkError
from casemate.host import ipam, uids
from casemate.host.leases import Leases
from casemate.ids import new_id


def test_a_lease_is_exclusive_stays_and_is_released_by_its_owner_alone(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "x")
    mine, other = new_id(), new_id()
    assert leases.held(mine) is None
    name = leases.acquire(mine, 10, 5)
    assert name is not None and 10 <= int(name) < 15
    assert leases.acquire(mine, 10, 5) == name
    assert leases.held(mine) == name and leases.holder(name) == mine
    assert leases.acquire(other, int(name), 1) is None
    leases.release(other)
    assert leases.holder(name) == mine
    leases.release(mine)
    leases.release(mine)
    assert leases.holder(name) is None
    assert leases.acquire(other, int(name), 1) == name


def test_every_number_is_given_out_before_it_is_full(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    names = [leases.acquire(new_id(), 100, 40) for _ in range(40)]
    assert sorted(int(name) for name in names if name) == list(range(100, 140))
    late = new_id()
    assert leases.acquire(late, 100, 40) is None
    assert list((tmp_path / "owners").iterdir()) != [] and leases.held(late) is None
    assert not (tmp_path / "owners" / late).is_symlink()


def test_a_crash_between_the_two_links_hurts_nobody(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    victim, dead = new_id(), new_id()
    name = leases.acquire(victim, 0, 3)
    assert name is not None
    (tmp_path / "owners" / dead).symlink_to(name)  # what a killed acquire() may leave
    assert leases.held(dead) is None
    leases.release(dead)
    assert leases.holder(name) == victim
    assert leases.acquire(dead, 0, 3) not in (None, name)


def test_many_at_once_get_different_ones(tmp_path: Path) -> None:
    got: list[str | None] = []

    def take() -> None:
        for _ in range(25):
            got.append(Leases(tmp_path).acquire(new_id(), 0, 220))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert None not in got
    assert len(set(got)) == len(got) == 200


def test_a_lease_is_quick_when_ten_thousand_are_out(tmp_path: Path) -> None:
    config = Config(run=tmp_path)
    for _ in range(10_000):
        ipam.lease(new_id(), config)
    best = 1.0
    for _ in range(5):
        one = new_id()
        start = time.thread_time()
        ipam.lease(one, config)
        ipam.release(one, config)
        best = min(best, time.thread_time() - start)
    assert best < 0.02


def test_addresses_leave_out_three_and_the_error_says_what_to_do(tmp_path: Path) -> None:
    config = Config(run=tmp_path, network="192.0.2.8/29")
    assert ipam.gateway(config) == "192.0.2.9"
    ids = [new_id() for _ in range(5)]
    addresses = {ipam.lease(one, config) for one in ids}
    assert addresses == {f"192.0.2.{last}" for last in range(10, 15)}
    with pytest.raises(NetworkError, match="no address is left in 192.0.2.8/29.*larger network"):
        ipam.lease(new_id(), config)
    moved = replace(config, network="10.0.0.0/24")  # the configuration has changed since the lease
    assert ipam.held(ids[0], moved) in addresses
    ipam.release(ids[0], moved)
    assert ipam.held(ids[0], config) is None
    ipam.release(new_id(), Config(run=tmp_path / "none"))


def test_a_network_is_read_by_its_prefix_even_when_given_with_host_bits() -> None:
    assert ipam.gateway(Config(network="10.87.3.4/16")) == "10.87.0.1"


def test_user_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(run=tmp_path)
    mine, other = new_id(), new_id()
    uid = uids.lease(mine, config)
    assert config.uid_base <= uid < config.uid_base + 65536
    assert uids.lease(mine, config) == uid != uids.lease(other, config)
    uids.release(mine, config)
    uids.release(mine, config)
    monkeypatch.setattr(uids, "COUNT", 1)
    uids.lease(new_id(), config)
    with pytest.raises(HostError, match="user ids"):
        uids.lease(new_id(), config)


def test_only_ids_may_lease(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        Leases(tmp_path).acquire("../x", 0, 5)

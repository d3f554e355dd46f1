"""Bounds meant for the host become bounds that the guest can give."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.agent import devices, resources
from casemate.protocol.wire import RequestFailed

MOST, PIDS = 200 << 20, 1000


def bounded(**asked: Any) -> dict[str, Any]:
    return resources.bounded(asked, MOST, PIDS)


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({"limit": 64 << 20}, {"limit": 64 << 20}),
        ({"limit": 1 << 40}, {"limit": MOST}),
        ({"limit": -1}, {"limit": MOST}),
        ({"limit": 1}, {"limit": 1 << 20}),
        ({"limit": 0, "reservation": 0, "swap": 5}, None),
        ({"limit": 64 << 20, "reservation": 80 << 20}, {"limit": 64 << 20, "reservation": 64 << 20}),
        ({"reservation": 80 << 20}, {"reservation": 80 << 20}),
        ({"swappiness": 5, "kernel": 9, "kernelTCP": 9, "disableOOMKiller": True}, None),
    ],
)
def test_memory(asked: dict[str, Any], given: dict[str, Any] | None) -> None:
    assert bounded(memory=asked) == ({} if given is None else {"memory": given})


@pytest.mark.parametrize(("asked", "given"), [(7, 7), (5000, PIDS), (-1, PIDS)])
def test_processes(asked: int, given: int) -> None:
    assert bounded(pids={"limit": asked}) == {"pids": {"limit": given}}
    assert bounded(pids={"limit": 0}) == bounded(pids={}) == {}


def test_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})

    def given(text: str) -> str:
        value: str = bounded(cpu={"cpus": text})["cpu"]["cpus"]
        return value

    assert given("1-2") == "1,2"
    assert given("2, 3") == "2,3"
    assert given("0-100") == "0,1,2,3"
    assert given("6,7") == "0,1", "as many as were asked for"
    assert given("3,9") == "0,1"
    asked = {"shares": 5, "quota": -1, "period": 10, "mems": "1", "cpus": "", "idle": 1, "realtimePeriod": 4}
    assert bounded(cpu=asked)["cpu"] == {"shares": 5, "period": 10, "idle": 1}
    for bad in ("x", "1-", "-1", "3-1", "1,,2", "0-99999999", "9999", "٣", ["1"], 5):
        with pytest.raises(RequestFailed):
            bounded(cpu={"cpus": bad})


def test_a_bound_on_time_that_is_taken_away() -> None:
    assert resources.unbound({"cpu": {"quota": -1}})
    others: list[dict[str, Any]] = [{}, {"cpu": None}, {"cpu": {}}, {"cpu": {"quota": 5}}, {"cpu": {"quota": None}}]
    for other in others:
        assert not resources.unbound(other)


def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, serial, number in (("vda", "casemate-root", "254:0"), ("vdb", "cm-8-17", "254:16"), ("vdc", "", "x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "serial").write_text(serial)
        (tmp_path / name / "dev").write_text(number + "\n")
    (tmp_path / "loop0").mkdir()
    find = devices._find
    monkeypatch.setattr(devices, "_find", lambda serial, directory: find(serial, str(tmp_path)))


def test_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disks(tmp_path, monkeypatch)
    assert devices.disk(8, 17) == (254, 16)
    monkeypatch.setattr(devices, "PATIENCE", 0.1)
    with pytest.raises(RequestFailed, match="8:18"):
        devices.disk(8, 18)
    rules = [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "b", "major": 8, "minor": 17, "access": "r"},
        {"allow": True, "type": "b", "major": 8, "access": "m"},
        {"allow": True, "type": "c", "major": 8, "minor": 17, "access": "r"},
        {"allow": True, "type": "b", "major": 7, "minor": 0, "access": "r"},
    ]
    given = bounded(devices=rules)["devices"]
    assert given[1] == {"allow": True, "type": "b", "major": 254, "minor": 16, "access": "r"}
    assert [given[i] for i in (0, 2, 3, 4)] == [rules[i] for i in (0, 2, 3, 4)]
    asked = {
        "weight": 300, "leafWeight": 5, "throttleReadBpsDevice": [{"major": 8, "minor": 17, "rate": 5}],
        "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 5}],
    }  # fmt: skip
    assert bounded(blockIO=asked)["blockIO"] == {
        "weight": 300, "throttleReadBpsDevice": [{"major": 254, "minor": 16, "rate": 5}]
    }  # fmt: skip
    assert bounded(blockIO={"weight": 0}) == {}


def test_huge_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "PAGES", str(tmp_path))
    for name in ("hugepages-2048kB", "hugepages-1048576kB", "hugepages-64kB", "odd"):
        (tmp_path / name).mkdir()
    limits = [{"pageSize": size, "limit": 0} for size in ("64KB", "2MB", "32MB", "1GB")]
    given = bounded(hugepageLimits=limits)["hugepageLimits"]
    assert [limit["pageSize"] for limit in given] == ["64KB", "2MB", "1GB"]


def test_what_is_not_known_is_left_out() -> None:
    assert bounded(network={"classID": 1}, rdma={"x": {}}, unified={"memory.high": "5"}) == {
        "unified": {"memory.high": "5"}
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
SECTION = st.dictionaries(
    st.sampled_from(["limit", "reservation", "cpus", "quota", "weight", "weightDevice", "shares"]), JSON, max_size=4
)


@given(st.dictionaries(
    st.sampled_from(["memory", "cpu", "pids", "blockIO", "devices", "hugepageLimits", "unified"]), JSON | SECTION
))  # fmt: skip
def test_anything_is_bounded_or_refused(asked: dict[str, Any]) -> None:
    try:
        given = resources.bounded(asked, MOST, PIDS)
    except RequestFailed as error:
        assert error.code == "bad-spec"
        return
    assert given.get("memory", {}).get("limit", 0) <= MOST
    assert 0 < given.get("pids", {"limit": 1})["limit"] <= PIDS

"""Signals, durations, sizes and times in the forms that callers of runc use; statistics in runc's shape."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import UsageError
from casemate.runtime_cli import events, making, state, update
from casemate.runtime_cli.kill import signal_number
from casemate.runtime_cli.options import parse


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("9", 9), ("KILL", 9), ("SIGKILL", 9), ("sigkill", 9), ("term", 15), ("WINCH", 28), ("0", 0), ("37", 37),
        ("SIGRTMIN+3", int(signal.SIGRTMIN) + 3), ("RTMAX-2", int(signal.SIGRTMAX) - 2), ("99", 99),
    ],
)  # fmt: skip
def test_signals_by_name_and_number(text: str, number: int) -> None:
    assert signal_number(text) == number


@pytest.mark.parametrize("text", ["FOO", "", "SIG", "KILL+1x", "9.5"])
def test_an_unknown_signal_is_refused_in_runcs_words(text: str) -> None:
    with pytest.raises(UsageError, match="unknown signal"):
        signal_number(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("5s", 5.0), ("1m30s", 90.0), ("250ms", 0.25), ("1.5h", 5400.0), ("0", 0.0), ("0s", 0.0)]
)
def test_durations_as_go_writes_them(text: str, seconds: float) -> None:
    assert events.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["5", "s", "5x", "", "5s junk", "-5s"])
def test_bad_durations_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        events.duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1048576", 1 << 20), ("512m", 512 << 20), ("1.5GiB", 3 << 29), ("2G", 2 << 30), ("10kb", 10 << 10), ("-1", -1)],
)
def test_sizes_of_update(text: str, size: int) -> None:
    options, _ = parse(update.OPTIONS, ["--memory", text], anywhere=True)
    assert update._from_options(options) == {"memory": {"limit": size}}


@pytest.mark.parametrize("text", ["x", "12q", "-5m", "1e400", "m"])
def test_bad_sizes_are_refused(text: str) -> None:
    options, _ = parse(update.OPTIONS, [f"--memory={text}"], anywhere=True)
    with pytest.raises(UsageError):
        update._from_options(options)


def test_every_option_of_update_finds_its_place() -> None:
    words = (
        "--cpu-quota 50000 --cpu-period 100000 --cpu-share 512 --cpuset-cpus 0-1 --cpuset-mems 0 --memory 1g"
        " --memory-reservation 512m --memory-swap -1 --pids-limit 99 --blkio-weight 300"
    )
    options, _ = parse(update.OPTIONS, words.split(), anywhere=True)
    assert update._from_options(options) == {
        "cpu": {"quota": 50000, "period": 100000, "shares": 512, "cpus": "0-1", "mems": "0"},
        "memory": {"limit": 1 << 30, "reservation": 512 << 20, "swap": -1},
        "pids": {"limit": 99},
        "blockIO": {"weight": 300},
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00Z"),
        (1700000000.5, "2023-11-14T22:13:20.5Z"),
        (1700000000.123456, "2023-11-14T22:13:20.123456Z"),
    ],
)
def test_times_have_as_many_digits_as_they_need(seconds: float, text: str) -> None:
    assert state.timestamp(seconds) == text


def test_a_time_just_below_a_second_does_not_round_up_into_nonsense() -> None:
    assert state.timestamp(1700000000.9999999) in ("2023-11-14T22:13:20.999999Z", "2023-11-14T22:13:21Z")


def test_ids_are_mapped_to_the_hosts() -> None:
    mappings = [{"containerID": 0, "hostID": 100000, "size": 10}, {"containerID": 10, "hostID": 5, "size": 1}]
    assert [making.host_id(mappings, number) for number in (0, 9, 10, 11)] == [100000, 100009, 5, 65534]
    assert making.host_id(None, 33) == 33


def test_statistics_have_runcs_shape() -> None:
    found = {
        "memory": {"current": 1000, "max": None, "peak": 2000, "oom_kills": 1, "stat": {"anon": 5, "file": 7}},
        "cpu": {"usage_us": 10, "user_us": 6, "system_us": 4, "nr_periods": 3, "nr_throttled": 2, "throttled_us": 1},
        "pids": {"current": 2, "max": 100},
        "io": [{"major": 254, "minor": 0, "rbytes": 10, "wbytes": 20, "rios": 1, "wios": 2}],
        "net": [{"name": "eth0", "rx_bytes": 1, "tx_packets": 2}],
    }
    made = events.statistics(found)
    assert made["cpu"]["usage"] == {"total": 10_000, "kernel": 4_000, "user": 6_000}
    assert made["cpu"]["throttling"] == {"periods": 3, "throttledPeriods": 2, "throttledTime": 1_000}
    assert made["memory"]["usage"] == {"limit": (1 << 64) - 1, "usage": 1000, "max": 2000, "failcnt": 1}
    assert (made["memory"]["cache"], made["memory"]["raw"]) == (7, {"anon": 5, "file": 7})
    assert made["pids"] == {"current": 2, "limit": 100}
    assert made["blkio"]["ioServiceBytesRecursive"] == [
        {"major": 254, "value": 10, "op": "Read"}, {"major": 254, "value": 20, "op": "Write"},
    ]  # fmt: skip
    interface = made["network_interfaces"][0]
    assert (interface["Name"], interface["RxBytes"], interface["TxPackets"], interface["TxErrors"]) == ("eth0", 1, 2, 0)


def test_statistics_of_a_guest_that_counts_nothing_are_still_whole() -> None:
    made = events.statistics({})
    assert set(made) == {
        "cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt", "network_interfaces",
    }  # fmt: skip
    assert made["network_interfaces"] is None


_rubbish = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["stat", "current", "max", "peak", "file", "usage_us", "name", "major", "rbytes", "rx_bytes"])
        | st.text(max_size=100), inner, max_size=5,
    ),
    max_leaves=20,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["memory", "cpu", "pids", "io", "net"]), _rubbish))
def test_statistics_of_a_guest_that_lies_are_counts(found: dict[str, Any]) -> None:
    def judge(value: Any) -> None:
        if isinstance(value, dict | list):
            for one in value.values() if isinstance(value, dict) else value:
                judge(one)
        elif isinstance(value, str):
            assert len(value) <= 64
        else:
            assert value is None or (type(value) is int and 0 <= value < 1 << 64)

    judge(events.statistics(found))


def test_a_text_in_place_of_a_time_is_not_multiplied() -> None:
    made = events.statistics({"cpu": {"user_us": "x" * 1000, "usage_us": 1 << 63}})
    assert made["cpu"]["usage"] == {"total": (1 << 64) - 1, "kernel": 0, "user": 0}

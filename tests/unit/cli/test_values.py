"""Values of options, good and bad."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.cli import values
from casemate.errors import UsageError
from casemate.host.ports import PortMap
from casemate.oci.spec import RLIM_INFINITY, Tmpfs, Ulimit, Volume


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512", 512), ("1b", 1), ("64k", 65536), ("256m", 256 << 20), ("1g", 1 << 30), ("1G", 1 << 30),
        ("1.5g", 3 << 29), ("2t", 2 << 40), ("1gb", 1 << 30), ("1GiB", 1 << 30), ("10 MiB", 10 << 20), ("5kB", 5120),
    ],
)  # fmt: skip
def test_sizes(text: str, expected: int) -> None:
    assert values.size(text, "--memory") == expected


@pytest.mark.parametrize(
    "text", ["", "0", "m", "-1m", "1x", "1mm", "0x10", "1e9", "100t", "9" * 30, "1.m", "\u0663m", "1 g g"]
)
def test_bad_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="bad size") as caught:
        values.size(text, "--memory")
    assert caught.value.hint


def test_memory_is_rounded_up_and_has_a_minimum() -> None:
    assert values.memory("128m", 128) == 128
    assert values.memory(str((256 << 20) + 1), 128) == 257
    with pytest.raises(UsageError) as caught:
        values.memory("127m", 128)
    assert "128m" in caught.value.hint


def test_cpus() -> None:
    assert values.cpus("0.5") == 0.5
    assert values.cpus("2") == 2.0
    for bad in ("0", "-1", "nan", "inf", "many", "", "257"):
        with pytest.raises(UsageError, match="--cpus"):
            values.cpus(bad)


def test_pids() -> None:
    assert values.pids("100") == 100
    assert values.pids("-1") is None
    assert values.pids("0") is None
    for bad in ("-2", "x", "", "1.5", "99999999999"):
        with pytest.raises(UsageError, match="--pids-limit"):
            values.pids(bad)


@pytest.mark.parametrize("name", ["a", "web-1", "a.b.c", "A" * 63])
def test_hostnames(name: str) -> None:
    assert values.hostname(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", ".a", "a b", "a_b", "a" * 64, "a\n", "é"])
def test_bad_hostnames(name: str) -> None:
    with pytest.raises(UsageError, match="host name"):
        values.hostname(name)


def test_users() -> None:
    for good in ("root", "1000", "1000:1000", "www-data:adm", "0:0"):
        assert values.user(good) == good
    for bad in ("", ":", "a:", ":b", "a:b:c", "a b", "a\n", "\udcff"):
        with pytest.raises(UsageError):
            values.user(bad)


def test_networks() -> None:
    assert values.network("nat") == values.network("bridge") == values.network("default") == "nat"
    assert values.network("none") == "none"
    with pytest.raises(UsageError, match="host"):
        values.network("host")
    with pytest.raises(UsageError, match="unknown network"):
        values.network("mine")


def port(inside: int, outside: int, ip: str = "0.0.0.0", protocol: str = "tcp") -> PortMap:
    return PortMap(host_ip=ip, host_port=outside, container_port=inside, protocol=protocol)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080:80", [port(80, 8080)]),
        ("80", [port(80, 0)]),
        (":80", [port(80, 0)]),
        ("127.0.0.1:8080:80", [port(80, 8080, "127.0.0.1")]),
        ("127.0.0.1::80", [port(80, 0, "127.0.0.1")]),
        ("53:53/udp", [port(53, 53, protocol="udp")]),
        ("53:53/UDP", [port(53, 53, protocol="udp")]),
        ("8000-8001:80-81", [port(80, 8000), port(81, 8001)]),
        ("80-81", [port(80, 0), port(81, 0)]),
    ],
)
def test_ports(text: str, expected: list[PortMap]) -> None:
    assert values.ports([text]) == tuple(expected)


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "a", "0:80", "80:0", "80:65536", "1:2:3:4", "localhost:80:80", "80:80/sctp", "80:80/", "2-1:80-81",
        "8000-8002:80-81", "-1:80", "[::1]:80:80", "80-:80", "300.0.0.1:80:80", "8\u0660:80",
    ],
)  # fmt: skip
def test_bad_ports(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        values.ports([text])
    assert caught.value.hint


def test_ports_that_clash() -> None:
    with pytest.raises(UsageError, match="twice"):
        values.ports(["80:80", "127.0.0.1:80:81"])
    assert len(values.ports(["80:80", "80:80/udp", "80", "81", "127.0.0.1:90:1", "127.0.0.2:90:2"])) == 6
    with pytest.raises(UsageError, match="more than"):
        values.ports(["1-60000:1-60000"])


def test_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert values.volume("/src:/dst") == Volume("/src", "/dst")
    assert values.volume("/src:/dst:ro") == Volume("/src", "/dst", True)
    assert values.volume("/src:/dst/:rw,z") == Volume("/src", "/dst")
    assert values.volume("./a:/dst") == Volume(str(tmp_path / "a"), "/dst")
    assert values.volume(".:/dst") == Volume(str(tmp_path), "/dst")
    (tmp_path / "link").symlink_to("/etc")
    assert values.volume("./link:/dst").source == "/etc"


@pytest.mark.parametrize(
    "text",
    ["", "/data", "name:/dst", "/src:dst", "/src:/", ":/dst", "/src:", "/a:/b:ro:x", "/a:/b:slave", "/a:/b/../c",
     "/a\udcff:/b"],
)  # fmt: skip
def test_bad_volumes(text: str) -> None:
    with pytest.raises(UsageError):
        values.volume(text)


def test_a_named_volume_is_told_to_be_a_path() -> None:
    with pytest.raises(UsageError) as caught:
        values.volume("data:/var/lib/data")
    assert caught.value.hint == "use a path: ./data:/var/lib/data"


def test_tmpfs() -> None:
    assert values.tmpfs("/t") == Tmpfs("/t")
    assert values.tmpfs("/t:size=64m,mode=1777,exec") == Tmpfs("/t", ("size=64m", "mode=1777", "exec"))
    for bad in ("t", "/", "/t:context=x", "/t:size=", "/t:size=1;rm", "/t:size", "/t:exec=1"):
        with pytest.raises(UsageError):
            values.tmpfs(bad)


def test_environment() -> None:
    assert values.environment(["A=1", "B=", "C=x=y", "HOME", "UNSET"], {"HOME": "/h"}) == [
        "A=1", "B=", "C=x=y", "HOME=/h", "UNSET",
    ]  # fmt: skip
    for bad in ("", "=x", "A=\udcff", "A=\0"):
        with pytest.raises(UsageError):
            values.environment([bad], {})


def test_environment_files(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_bytes(b"\xef\xbb\xbf# comment\n\n  A=1\r\nB='quoted' # kept\nHOME\nUNSET\nC=")
    assert values.env_file(str(file), {"HOME": "/h"}) == ["A=1", "B='quoted' # kept", "HOME=/h", "UNSET", "C="]
    for content, what in ((b"A B=1", "line 1"), (b"\n=1", "line 2"), (b"\xff=1", "UTF-8"), (b"A=1\0", "zero")):
        file.write_bytes(content)
        with pytest.raises(UsageError, match=what):
            values.env_file(str(file), {})
    file.write_bytes(b"#" * (2 << 20))
    with pytest.raises(UsageError, match="larger"):
        values.env_file(str(file), {})
    with pytest.raises(UsageError, match="No such file"):
        values.env_file(str(tmp_path / "missing"), {})
    with pytest.raises(UsageError, match="directory"):
        values.env_file(str(tmp_path), {})


def test_labels() -> None:
    assert values.labels(["a=1", "b", "a=2", "c=x=y"]) == {"a": "2", "b": "", "c": "x=y"}
    with pytest.raises(UsageError, match="bad label"):
        values.labels(["=x"])


def test_ulimits() -> None:
    assert values.ulimit("nofile=1024:4096") == Ulimit("nofile", 1024, 4096)
    assert values.ulimit("core=0") == Ulimit("core", 0, 0)
    assert values.ulimit("stack=-1") == Ulimit("stack", RLIM_INFINITY, RLIM_INFINITY)
    assert values.ulimit("nproc=5:unlimited").hard == RLIM_INFINITY
    for bad in ("", "nofile", "nofile=", "files=1", "nofile=a", "nofile=2:1", "nofile=1:", "nofile=-2", "nofile=-1:1"):
        with pytest.raises(UsageError):
            values.ulimit(bad)


def test_sysctls() -> None:
    assert values.sysctl("kernel.msgmax=1") == ("kernel.msgmax", "1")
    assert values.sysctl("fs.mqueue.msg_max=5") == ("fs.mqueue.msg_max", "5")
    for bad in ("kernel.panic=1", "net.ipv4.ip_forward=1", "kernel.msgmax", "fs.mqueue./../../x=1", "", "=1"):
        with pytest.raises(UsageError):
            values.sysctl(bad)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("TERM", 15), ("SIGTERM", 15), ("sigkill", 9), ("9", 9), ("USR1", 10), ("SIGRTMIN", 34), ("RTMIN+3", 37),
     ("SIGRTMAX-1", 63), ("64", 64), ("WINCH", 28)],
)  # fmt: skip
def test_signals(text: str, expected: int) -> None:
    assert values.signal(text) == expected


@pytest.mark.parametrize("text", ["", "0", "65", "SIG", "NOPE", "RTMIN-1", "RTMAX+1", "_IGN", "SIG_DFL", "\u0661"])
def test_unknown_signals(text: str) -> None:
    with pytest.raises(UsageError, match="unknown signal"):
        values.signal(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10", 10), ("1.5", 1.5), ("90s", 90), ("1h30m", 5400), ("2m", 120), ("500ms", 0.5), ("0", 0)],
)
def test_lengths_of_time(text: str, expected: float) -> None:
    assert values.seconds(text, "-t") == expected


@pytest.mark.parametrize("text", ["", "s", "-1", "1x", "1h 30m", "x1h", "1hh", "1e5"])
def test_bad_lengths_of_time(text: str) -> None:
    with pytest.raises(UsageError, match="bad time"):
        values.seconds(text, "-t")


def test_moments() -> None:
    assert values.since("10m", 1000.0) == 400.0
    assert values.since("1700000000", 0.0) == 1_700_000_000
    assert values.since("2023-11-14T22:13:20Z", 0.0) == 1_700_000_000
    assert values.since("2023-11-14T22:13:20.123456789Z", 0.0) == pytest.approx(1_700_000_000.123456)
    assert values.since("2023-11-15T00:13:20+02:00", 0.0) == 1_700_000_000
    for bad in ("2023-99-01", "yesterday", "2023-11-14Tx"):
        with pytest.raises(UsageError):
            values.since(bad, 0.0)


def test_words_for_the_guest_are_utf8() -> None:
    assert values.words(["ä", ""], "the command") == ("ä", "")
    with pytest.raises(UsageError, match="UTF-8"):
        values.words([os.fsdecode(b"\xff")], "the command")


ANYTHING = st.text(alphabet=st.characters(codec="utf-8"), max_size=40) | st.text("0123456789.:-/=,kmg[]rw", max_size=30)


@given(ANYTHING)
def test_whatever_is_written_is_read_or_refused(text: str) -> None:
    for parse in (
        lambda: values.size(text, "-m"), lambda: values.cpus(text), lambda: values.pids(text),
        lambda: values.hostname(text), lambda: values.user(text), lambda: values.network(text),
        lambda: values.ports([text]), lambda: values.volume(text), lambda: values.tmpfs(text),
        lambda: values.environment([text], {}), lambda: values.labels([text]), lambda: values.ulimit(text),
        lambda: values.sysctl(text), lambda: values.signal(text), lambda: values.seconds(text, "-t"),
        lambda: values.since(text, 0.0), lambda: values.address(text, "--dns"),
    ):  # fmt: skip
        try:
            parse()
        except UsageError as error:
            assert "\n" not in error.message or "\n" in text


@given(st.integers(1, 65535), st.integers(1, 65535), st.sampled_from(["tcp", "udp"]), st.ip_addresses(v=4))
def test_every_port_mapping_is_read_back(outside: int, inside: int, protocol: str, ip: object) -> None:
    assert values.ports([f"{ip}:{outside}:{inside}/{protocol}"]) == (port(inside, outside, str(ip), protocol),)

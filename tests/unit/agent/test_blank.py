"""Which containers a blank can become (``casemate.agent.blank``), and what it is told of mounts and devices."""

from __future__ import annotations

import copy
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from casemate.agent import blank, blank_init, blank_mounts, filters
from casemate.oci import imageconfig
from casemate.oci import spec as oci
from casemate.protocol import wire
from casemate.protocol.wire import RequestFailed


def usual() -> dict[str, Any]:
    """A specification as the agent has completed it."""
    made = oci.build(imageconfig.ImageConfig(), oci.Wishes(command=("/bin/true",), hostname="name"))
    made["root"] = {"path": "/run/casemate/share/rootfs"}
    made["linux"] |= {"cgroupsPath": "/casemate/one", "personality": {"domain": "LINUX"}}
    made["linux"]["resources"] |= {"memory": {"limit": 1 << 26}, "pids": {"limit": 100}}
    return copy.deepcopy(made)


def test_the_usual_container_fits() -> None:
    assert blank.fits(usual())


def put(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set what a path of keys leads to."""

    def change(spec: dict[str, Any]) -> None:
        for key in keys[:-1]:
            spec = spec[key]
        spec[keys[-1]] = value

    return change


def more(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Append to the list that a path of keys leads to."""

    def change(spec: dict[str, Any]) -> None:
        for key in keys:
            spec = spec[key]
        spec.append(value)  # type: ignore[attr-defined]

    return change


@pytest.mark.parametrize(
    "change",
    [
        put("hooks", value={"startContainer": [{"path": "/bin/true"}]}),
        put("annotations", value={"a": "b"}),
        put("domainname", value="example"),
        put("process", "commandLine", value="x"),
        put("process", "user", "username", value="x"),
        put("process", "args", value=["true"]),  # and no PATH, see below
        put("process", "env", value=["WITHOUT"]),
        put("process", "rlimits", value=[{"type": "RLIMIT_NEW", "soft": 1, "hard": 1}]),
        put("process", "capabilities", value={"bounding": ["CAP_NEW"]}),
        put("process", "capabilities", value=None),
        put("root", "other", value=1),
        put("linux", "devices", value=[{"path": "/dev/x", "type": "c", "major": 1, "minor": 3}]),
        put("linux", "sysctl", value={"kernel.msgmax": "1"}),
        put("linux", "rootfsPropagation", value="shared"),
        put("linux", "uidMappings", value=[]),
        put("linux", "personality", value={"domain": "LINUX32"}),
        put("linux", "resources", "cpu", value={"shares": 100}),
        put("linux", "resources", "memory", value={"limit": 1, "reservation": 1}),
        put("linux", "resources", "memory", value={"limit": 6 << 20}),
        put("linux", "namespaces", 0, value={"type": "pid", "path": "/proc/1/ns/pid"}),
        put("linux", "namespaces", value=[{"type": "pid"}]),
        more("linux", "namespaces", value={"type": "network"}),
        more("linux", "namespaces", value={"type": "user"}),
        more("mounts", value={"destination": "/x", "type": "overlay", "source": "x", "options": ["lowerdir=/"]}),
        more("mounts", value={"destination": "/x", "type": "bind", "source": "/y", "options": ["bind", "idmap"]}),
        more("mounts", value={"destination": "/x", "type": "bind", "source": "/y", "options": ["bind", "rro"]}),
        more("mounts", value={"destination": "/x", "type": "bind", "options": ["bind"]}),
        more("mounts", value={"destination": "/x", "type": "tmpfs", "source": "x", "options": ["tmpcopyup"]}),
        more("mounts", value={"destination": "/x", "type": "tmpfs", "source": "/y", "options": ["bind"]}),
        more("mounts", value={"destination": "x", "type": "tmpfs", "source": "x", "options": []}),
        more("mounts", value={"destination": "/x", "type": "tmpfs", "source": "x", "options": [], "uidMappings": []}),
        put("mounts", value=[]),
    ],
)
def test_what_is_left_to_the_runtime(change: Callable[[dict[str, Any]], None]) -> None:
    spec = usual()
    spec["process"]["env"] = ["A=b"]
    assert blank.fits(spec)
    change(spec)
    assert not blank.fits(spec)


def test_the_options_of_a_mount() -> None:
    flags, data = blank_mounts.options(["nosuid", "suid", "ro", "noexec", "rprivate", "size=1m", "mode=755", "rbind"])
    assert flags == (
        blank_mounts.MS_RDONLY | 8 | blank_mounts.MS_PRIVATE | blank_mounts.MS_REC | blank_mounts.MS_BIND
    ) and data == "size=1m,mode=755"  # fmt: skip


def entry(destination: str, kind: str = "tmpfs", **more: Any) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": kind, **more}


PROC, DEV, PTS, SYS = entry("/proc", "proc"), entry("/dev"), entry("/dev/pts", "devpts"), entry("/sys/", "sysfs")


@pytest.mark.parametrize(
    "mounts, expected",
    [
        ([PROC, DEV, PTS, SYS], {"proc", "dev", "sys"}),
        ([PROC, DEV, SYS, PTS, entry("/data"), entry("/etc/hosts", "bind")], {"proc", "dev", "sys"}),
        ([PROC, DEV, SYS, entry("/data"), PTS], {"proc", "sys"}),  # /data may be a link into /dev
        ([PROC, entry("/data"), DEV, PTS, SYS], {"proc"}),
        ([PROC, DEV, PTS, SYS, entry("/dev/mine", "bind")], {"proc", "sys"}),
        ([PROC, entry("/proc/bus", "bind"), DEV], {"dev"}),
        ([PTS, DEV, PROC], {"proc"}),
        ([PROC, DEV, entry("/dev/../proc/bus")], {"proc", "dev"}),
        ([entry("/dev/../proc/bus"), PROC, DEV], set()),
        ([entry("/"), PROC], set()),
        ([], set()),
    ],
)
def test_what_can_be_mounted_ahead(mounts: list[dict[str, Any]], expected: set[str]) -> None:
    masked, fixed = ["/proc/keys", "/sys/firmware", "/etc/shadow", "/dev/../proc/kcore"], ["/proc/sys", "/usr"]
    made = blank_mounts.parts(mounts, masked, fixed)
    assert set(made) == expected
    if "proc" in made:
        assert made["proc"] == ([PROC], ["/proc/keys"], ["/proc/sys"])
    if "sys" in made:
        assert made["sys"] == ([SYS], ["/sys/firmware"], [])


WISHES = ([PROC, DEV, PTS, SYS], ["/proc/keys", "/sys/firmware"], ["/proc/sys"])
HOSTS, DATA = entry("/etc/hosts", "bind"), entry("/data")


OTHER: Any = ([entry("/proc", "proc", options=["nosuid"]), DEV, PTS, SYS], ["/proc/keys", "/sys/firmware"], [])


@pytest.mark.parametrize(
    "wanted, ready, rest",
    [
        (WISHES, {"proc": 0, "dev": 0, "sys": 0}, ([], [], [])),
        (([*WISHES[0], HOSTS], *WISHES[1:]), {"proc": 0, "dev": 0, "sys": 0}, ([HOSTS], [], [])),
        (OTHER, {"proc": 1, "dev": 0, "sys": 0}, ([], [], [])),
        (([*OTHER[0], HOSTS], *OTHER[1:]), {"proc": 1, "dev": 0, "sys": 0}, ([HOSTS], [], [])),
        (([*WISHES[0], entry("/dev/x", "bind")], *WISHES[1:]), {"proc": 0, "sys": 0},
         ([DEV, PTS, entry("/dev/x", "bind")], [], [])),
        (([*WISHES[0][:3], DATA, SYS], *WISHES[1:]), {"proc": 0, "dev": 0}, ([DATA, SYS], ["/sys/firmware"], [])),
        ((WISHES[0], ["/sys/firmware"], WISHES[2]), {"dev": 0, "sys": 0}, ([PROC], [], ["/proc/sys"])),
        ((WISHES[0], [*WISHES[1], "/etc/shadow"], ["/proc/sys", "/usr"]), {"proc": 0, "dev": 0, "sys": 0},
         ([], ["/etc/shadow"], ["/usr"])),
        (([PROC, entry("/dev", options=["ro"]), PTS, SYS], *WISHES[1:]), {"proc": 0, "sys": 0},
         ([entry("/dev", options=["ro"]), PTS], [], [])),
        (([], [], []), {}, ([], [], [])),
    ],
)  # fmt: skip
def test_what_a_container_takes_of_it(wanted: Any, ready: dict[str, int], rest: Any) -> None:
    made: list[str] = []

    def make(top: str, part: Any) -> int:
        made.append(top)
        return len(made)

    trees = blank_mounts.Trees(0)
    for whole in (WISHES, OTHER, WISHES, ([DATA], [], [])):
        trees.add(whole, make)
    assert made == ["proc", "dev", "sys", "proc"], "what two want alike is made once"
    assert sorted(trees.fds()) == [1, 2, 3, 4]
    assert trees.choose(wanted) == (ready, rest)


def test_what_most_containers_have_is_all_mounted_ahead() -> None:
    spec = usual()
    linux = spec["linux"]
    made = blank_mounts.parts(spec["mounts"], linux["maskedPaths"], linux["readonlyPaths"])
    assert set(made) == set(blank_mounts.TOPS)
    assert sum(len(part[0]) for part in made.values()) == len(spec["mounts"])
    assert sum(len(part[1]) for part in made.values()) == len(linux["maskedPaths"])


def decide(code: bytes, kind: int, access: int, major: int, minor: int) -> int:
    """Run a program on devices, as the kernel would."""
    context = struct.pack("=III", kind | access << 16, major, minor)
    registers = [0] * 11
    at = 0
    while True:
        operation, pair, offset, number = struct.unpack_from("=BBhi", code, at * 8)
        to, of = pair & 15, pair >> 4
        at += 1
        match operation:
            case 0x61:
                registers[to] = struct.unpack_from("=I", context, offset)[0]
            case 0xB7:
                registers[to] = number
            case 0xBF:
                registers[to] = registers[of]
            case 0x57:
                registers[to] &= number
            case 0x77:
                registers[to] >>= number
            case 0x55:
                at += offset if registers[to] != number else 0
            case 0x5D:
                at += offset if registers[to] != registers[of] else 0
            case 0x95:
                return registers[0]
            case _:
                raise AssertionError(operation)


BLOCK, CHARACTER = 1, 2
MAKE, READ, WRITE = 1, 2, 4


def test_the_last_rule_that_has_it_all_decides() -> None:
    code = filters.devices(
        [
            {"allow": True, "type": "b", "major": 7, "access": "r"},
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 10, "access": "rm"},
            {"allow": False, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
            {"allow": True, "type": "b", "major": 8, "minor": -1},
        ]
    )
    asked = {
        (CHARACTER, READ, 10, 200): 1,
        (CHARACTER, READ | MAKE, 10, 200): 1,
        (CHARACTER, READ | WRITE, 10, 200): 0,
        (CHARACTER, READ, 10, 229): 0,
        (BLOCK, READ, 10, 200): 0,
        (BLOCK, READ, 7, 0): 0,
        (BLOCK, READ | WRITE, 8, 3): 1,
        (CHARACTER, READ | WRITE, 1, 3): 1,
        (CHARACTER, MAKE, 99, 99): 1,
        (BLOCK, MAKE, 99, 99): 1,
        (CHARACTER, READ, 1, 1): 0,
        (CHARACTER, WRITE, 136, 7): 1,
    }
    assert {key: decide(code, *key) for key in asked} == asked


def test_without_rules_only_what_every_container_has() -> None:
    code = filters.devices([])
    assert decide(code, CHARACTER, READ, 1, 9) == 1
    assert decide(code, CHARACTER, READ, 10, 200) == 0


@pytest.mark.parametrize("rule", [{}, {"allow": True, "access": "x"}, {"allow": True, "type": "z"}])
def test_bad_rules(rule: dict[str, Any]) -> None:
    with pytest.raises(filters.Unfit):
        filters.devices([rule])


@pytest.mark.parametrize(
    "profile",
    [
        {},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [], "listenerPath": "/x"},
        {"defaultAction": "SCMP_ACT_TRACE", "syscalls": []},
        {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["execve"], "action": "SCMP_ACT_ALLOW"}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mmap"], "action": "SCMP_ACT_ERRNO"}]},
    ],
)
def test_profiles_that_are_left_to_the_runtime(profile: dict[str, Any]) -> None:
    with pytest.raises(filters.Unfit):
        filters.seccomp(profile)


def test_the_profile_that_was_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = usual()
    profile = whole["linux"]["seccomp"]
    assert profile
    spec = {**whole, "linux": {**whole["linux"], "seccomp": wire.SAME_PROFILE}}
    monkeypatch.setattr(blank, "_profile", None)
    with pytest.raises(RequestFailed, match="no profile"):
        blank.complete(spec)
    monkeypatch.setattr(blank, "_profile", profile)
    blank.complete(spec)
    assert spec["linux"]["seccomp"] is profile and blank.fits(spec)
    other = usual()
    other["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
    blank.complete(other)
    assert other["linux"]["seccomp"] == {"defaultAction": "SCMP_ACT_ALLOW"}
    odds: tuple[dict[str, Any], ...] = ({}, {"linux": None}, {"linux": {}})
    for odd in odds:
        blank.complete(odd)


def test_where_the_program_is(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "program").write_text("")
    path = f"{tmp_path}/first:{tmp_path}/second"
    first, second = (str(tmp_path / name / "program") for name in ("first", "second"))
    os.chmod(second, 0o755)
    assert blank_init._find("program", path, None) == second
    os.chmod(first, 0o755)
    assert blank_init._find("program", path, None) == first
    assert blank_init._find("program", path, second) == second, "nothing before it was looked at"
    assert blank_init._find("program", path, str(tmp_path)) == first, "what cannot be executed is not taken"
    assert blank_init._find("program", path, f"{tmp_path}/none") == first

"""The nursery with real processes: who gets a forked keeper, what it has, and when the nursery ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from casemate.host import cgroups
from casemate.keeper import nursery

PROGRAM = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import casemate.of_test
from casemate.keeper import nursery

birth = nursery.tend("test", Path(sys.argv[1]), ())
if birth is None:
    print("ready", flush=True)
    sys.stdin.read()
else:
    first, second = birth.fds
    open_files = {int(name) for name in os.listdir("/proc/self/fd")}
    with open("/proc/self/cmdline") as file:
        words = file.read().rstrip("\\0").split("\\0")
    said = {
        "arguments": birth.arguments, "environment": dict(os.environ), "words": words, "pid": os.getpid(),
        "parent": os.getppid(), "session": os.getsid(0), "open": len(open_files),
        "groups": Path("/proc/self/cgroup").read_text(),
    }
    os.write(1, b"to its output\\n")
    os.write(2, b"to its log\\n")
    os.write(first, json.dumps(said).encode())
    os.close(first)
    os.read(second, 1)
"""
"""Something that is made as a keeper is: the one that is started says that it is there, those that are forked what they
have, and all live until their second descriptor ends."""


@dataclass
class First:
    """The process that leaves the nursery behind."""

    process: subprocess.Popen[bytes]
    run: Path
    module: Path

    @property
    def nurseries(self) -> list[int]:
        """The pids of those that serve its run directory, by the lock that they hold."""
        found = []
        for path in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # it has ended meanwhile, or is no process
                if path.name.isdigit() and int(path.name) != self.process.pid:
                    links = {os.readlink(fd) for fd in (path / "fd").iterdir()}
                    if any(link.startswith(f"{self.run}/nursery/") for link in links):
                        found.append(int(path.name))
        return found

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(20) == 0


@pytest.fixture
def first(tmp_path: Path) -> Iterator[First]:
    run = tmp_path / "run"
    run.mkdir()
    # A module of the package that a test may change: it is found beside the others.
    source = tmp_path / "source"
    source.mkdir()
    module = source / "of_test.py"
    module.write_text("")
    program = PROGRAM.replace("import casemate.of_test", "import casemate; casemate.__path__.append(sys.argv[3])\n"
                              "import casemate.of_test")  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(run), "x" * 40, str(source)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    made = First(process, run, module)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    made.until(lambda: any((run / "nursery").glob("????????")))
    try:
        yield made
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        made.until(lambda: not made.nurseries)


class Keeper:
    """One that was asked for."""

    def __init__(self, run: Path, tmp_path: Path, words: list[str], environment: dict[str, str]) -> None:
        self.told, theirs = socket.socketpair()
        self.told.settimeout(20)
        ends, self.life = os.pipe()
        with open(tmp_path / "out", "ab") as out, open(tmp_path / "log", "ab") as log:
            fds = (out.fileno(), log.fileno(), theirs.fileno(), ends)
            self.born = nursery.deliver(run, "test", words, fds, environment)
        theirs.close()
        os.close(ends)

    def say(self) -> dict[str, Any]:
        data = b""
        while part := self.told.recv(65536):
            data += part
        value = json.loads(data)
        assert isinstance(value, dict)
        return value

    def close(self) -> None:
        self.told.close()
        os.close(self.life)


def ask(first: First, words: list[str], environment: dict[str, str]) -> Keeper:
    return Keeper(first.run, first.run.parent, words, environment)


def test_a_keeper_is_forked_and_has_what_is_its_own(first: First) -> None:
    (mother,) = first.nurseries
    words = Path(f"/proc/{mother}/cmdline").read_text().rstrip("\0").split("\0")
    assert words[-1] == "nursery" and "x" * 40 not in words, "nobody takes it for the first keeper"
    keeper = ask(first, ["one", "2", "3"], {"A": "b", "PATH": "/bin"})
    assert keeper.born
    said = keeper.say()
    assert said["arguments"] == ["one", "2", "3"] and said["environment"] == {"A": "b", "PATH": "/bin"}
    assert said["words"][-3:] == ["one", "2", "3"], "its command line is not the first one's"
    assert said["session"] == said["pid"] and said["parent"] != mother, "it is nobody's child"
    # Standard streams, its two, the pipe of the living, and the directory of the list itself.
    assert said["open"] == 7
    assert (first.run.parent / "out").read_bytes() == b"to its output\n"
    assert (first.run.parent / "log").read_bytes() == b"to its log\n"
    keeper.close()


def test_it_ends_with_the_last_keeper(first: First) -> None:
    keepers = [ask(first, [str(number)], {}) for number in range(3)]
    assert [keeper.say()["arguments"] for keeper in keepers] == [["0"], ["1"], ["2"]]
    (mother,) = first.nurseries
    first.end()
    for keeper in keepers[:2]:
        keeper.close()
    later = ask(first, ["later"], {})
    assert later.born and later.say()["arguments"] == ["later"] and first.nurseries == [mother]
    keepers[2].close()
    later.close()
    first.until(lambda: not first.nurseries)
    assert not list((first.run / "nursery").glob("????????")), "and takes its name away"


def test_there_is_one_for_many(first: First) -> None:
    before = first.nurseries
    with subprocess.Popen(first.process.args, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as second:
        assert second.stdout is not None and second.stdout.readline() == b"ready\n"
        assert len(before) == 1 and first.nurseries == before
        second.communicate()


@pytest.mark.parametrize("how", ["killed", "stopped", "program", "refused", "no room"])
def test_where_it_is_of_no_use_no_keeper_is_born(first: First, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (mother,) = first.nurseries
    if how == "killed":
        os.kill(mother, signal.SIGKILL)
        first.until(lambda: not first.nurseries)
    elif how == "program":
        first.module.write_text("changed = True\n")
    elif how == "refused":  # the same name by chance, other circumstances
        place = nursery._address(first.run, nursery.circumstances("test"))
        monkeypatch.setattr(nursery, "_address", lambda run, around: place)
        monkeypatch.setattr(nursery, "circumstances", lambda program: "others")
    elif how == "stopped":
        os.kill(mother, signal.SIGSTOP)
        monkeypatch.setattr(nursery, "ANSWER_SECONDS", 0.1)
    keeper = ask(first, ["none", "x" * 9000 if how == "no room" else ""], {})
    try:
        assert not keeper.born
        if how == "stopped":
            os.kill(mother, signal.SIGCONT)
        # Whoever would have been born has ended without a word.
        assert keeper.told.recv(1) == b""
        assert not (first.run.parent / "out").read_bytes()
    finally:
        keeper.close()
    if how == "program":
        first.until(lambda: not first.nurseries)


def test_other_limits_are_other_circumstances(first: First) -> None:
    """What a keeper would take over from its starter has to be what the nursery has."""
    script = (
        "import os, resource, sys; from pathlib import Path; from casemate.keeper import nursery\n"
        "if sys.argv[2] == 'limit': resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "if sys.argv[2] == 'nice': os.nice(1)\n"
        "if sys.argv[2] == 'mounts': os.unshare(os.CLONE_NEWNS) if hasattr(os, 'unshare') else __import__(\n"
        "    'casemate.host.syscalls').host.syscalls.unshare(0x20000)\n"
        "null = os.open('/dev/null', os.O_RDWR)\n"
        "print(nursery.deliver(Path(sys.argv[1]), 'test', ['x'], [null] * 4, {}))"
    )
    kinds = ["same", "limit", "nice"] + ["mounts"] * (os.geteuid() == 0)
    for kind in kinds:
        done = subprocess.run(
            [sys.executable, "-c", script, str(first.run), kind], capture_output=True, text=True, timeout=30
        )
        assert done.stdout == f"{kind == 'same'}\n", kind + done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_it_is_in_the_control_groups_of_who_asks(first: First) -> None:
    """And the nursery in none that somebody may want to remove."""
    (mother,) = first.nurseries
    topmost = {line.rpartition(":")[2] for line in Path(f"/proc/{mother}/cgroup").read_text().splitlines()}
    assert topmost == {"/"}
    trees = [tree for tree in cgroups.hierarchies() if tree.unified or {"pids", "memory"} & tree.controllers]
    groups = [tree.mount / f"casemate-nursery-{os.getpid()}" for tree in trees]
    before = Path("/proc/self/cgroup").read_text()
    assert groups
    try:
        for group in groups:
            group.mkdir()
            (group / "cgroup.procs").write_text("0")
        mine = Path("/proc/self/cgroup").read_text()
        assert mine != before
        keeper = ask(first, ["there"], {})
        assert keeper.born and keeper.say()["groups"] == mine
        keeper.close()
    finally:
        nursery._join(before)
        for group in groups:
            first.until(lambda group=group: not (group / "cgroup.procs").read_text())  # type: ignore[misc]
            group.rmdir()


@pytest.mark.parametrize("hurry", [False, True])
def test_one_that_was_asked_for_ahead_is_taken(first: First, hurry: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    nursery.reserve("test", str(first.run))
    if hurry:
        nursery.hurry()
    assert nursery._reserved is not None
    around = nursery._reserved[1]
    monkeypatch.setattr(nursery, "circumstances", lambda program: around)  # others mount things meanwhile
    monkeypatch.setattr(nursery, "_ask", lambda *_: pytest.fail("there is one already"))
    keeper = ask(first, ["one"], {"A": "b"})
    assert keeper.born
    said = keeper.say()
    assert said["arguments"] == ["one"] and said["environment"] == {"A": "b"}
    keeper.close()


def test_none_is_asked_for_ahead_where_a_standard_descriptor_is_closed(first: First) -> None:
    """Its connection would be taken for that one, and given to the container."""
    script = (
        "import os, sys; from casemate.keeper import nursery\n"
        "for fd in map(int, sys.argv[2:]): os.close(fd)\n"
        "nursery.reserve('test', sys.argv[1]); kept = nursery._reserved\n"
        "os._exit(10 + (kept is not None))"
    )
    for closed, status in (((), 11), ((0,), 10), ((1,), 10), ((0, 1, 2), 10)):
        words = [sys.executable, "-c", script, str(first.run), *map(str, closed)]
        assert subprocess.run(words, timeout=30).returncode == status, closed


@pytest.mark.parametrize("how", ["unused", "elsewhere", "changed", "not there"])
def test_one_that_was_asked_for_ahead_in_vain_ends(first: First, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nursery, which waits for all that came from it, would stay else."""
    nursery.reserve("test", str(first.run if how != "not there" else first.run / "none"))
    assert (nursery._reserved is None) == (how == "not there")
    if how == "unused":
        nursery.release()
    elif how == "elsewhere":
        null = os.open(os.devnull, os.O_RDWR)
        assert not nursery.deliver(first.run / "other", "test", ["x"], [null] * 4, {})
        os.close(null)
    elif how == "changed":  # since it was asked for: it is not what the starter would make itself
        place = nursery._address(first.run, nursery.circumstances("test"))
        monkeypatch.setattr(nursery, "_address", lambda run, around: place)
        monkeypatch.setattr(nursery, "circumstances", lambda program: "others")
        keeper = ask(first, ["x"], {})
        assert not keeper.born
        keeper.close()
    assert nursery._reserved is None
    first.end()
    first.until(lambda: not first.nurseries)

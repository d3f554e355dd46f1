"""What the sentry may do, what its applications are on the host, and what becomes of whom when one is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.gofer import confine
from casemate.sentry import isolation
from casemate.sentry.syscalls.numbers import NUMBERS
from tests.vm.support import Casemate, Environment

SECONDS = 30.0


class Running:
    """A container, and the host's processes that it is made of."""

    def __init__(self, cm: Casemate, name: str) -> None:
        self.cm, self.name = cm, name
        self.keeper: int = cm.inspect(name)["State"]["Pid"]
        children = _children(self.keeper)
        self.sentry = next(pid for pid in children if "casemate.sentry" in _command(pid))
        self.gofer = next(pid for pid in children if "casemate.gofer" in _command(pid))
        self.stubs = [pid for pid in _children(self.sentry)]

    def status(self, pid: int) -> dict[str, str]:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    def gone(self, *pids: int) -> bool:
        """Whether all of these end in time."""
        deadline = time.monotonic() + SECONDS
        while any(_alive(pid) for pid in pids):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)  # processes of others: nobody tells
        return True


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@pytest.fixture
def running(cm: Casemate) -> Iterator[Running]:
    cm.out("run", "-d", "--name", "held", "busybox", "sh", "-c", "echo up; while :; do sleep 1; done")
    yield Running(cm, "held")
    cm.out("rm", "-f", "held")


def test_the_sentry_is_nobody_with_nothing(running: Running, env: Environment) -> None:
    status = running.status(running.sentry)
    uid = int(status["Uid"].split()[0])
    assert uid in env.user_ids and status["Uid"].split() == [str(uid)] * 4 and status["Groups"] == ""
    assert {status[key] for key in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
    assert os.listdir(f"/proc/{running.sentry}/root") == []
    for kind in ("mnt", "ipc", "uts", "net"):
        assert os.readlink(f"/proc/{running.sentry}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")


def test_the_list_of_its_calls_is_short() -> None:
    calls = [*isolation.ALLOWED, *isolation.SOCKETS]
    assert len(calls) == len(set(calls)) <= 70
    assert not {"execve", "execveat", "open", "fork", "vfork", "mount", "setuid", "unshare", "bpf"} & set(calls)


def test_applications_are_nobody_too_and_make_no_call_of_the_hosts(running: Running) -> None:
    assert running.stubs
    for pid in running.stubs:
        status = running.status(pid)
        assert status["CapEff"] == "0" * 16 and status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
        assert status["TracerPid"] == str(running.sentry)
        assert status["Uid"] == running.status(running.sentry)["Uid"]


def test_the_gofer_sees_the_containers_trees_alone(running: Running) -> None:
    status = running.status(running.gofer)
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
    # The keeper's socket is there, and no call with which to connect.
    assert sorted(os.listdir(f"/proc/{running.gofer}/root")) == ["control.sock", "share", "volumes"]
    assert not {NUMBERS["socket"], NUMBERS["connect"]} & set(confine.ALLOWED_WRITING)
    allowed = 0b1011111 | 1 << 31 | 1 << 27  # CHOWN DAC_* FOWNER FSETID SETGID SETFCAP MKNOD, at most
    assert int(status["CapEff"], 16) & ~allowed == 0


def test_what_has_run_leaves_no_descriptor_with_the_sentry(running: Running) -> None:
    def held() -> int:
        return len(os.listdir(f"/proc/{running.sentry}/fd"))

    running.cm.out("exec", running.name, "true")  # what is opened once for all
    before = held()
    for _ in range(5):
        running.cm.out("exec", running.name, "sh", "-c", "echo out; echo err >&2; cat /etc/passwd | wc -l")
        running.cm("exec", running.name, "no-such-program")
    deadline = time.monotonic() + SECONDS
    while held() > before + 2:
        assert time.monotonic() < deadline, (before, held())
        time.sleep(0.05)  # nobody tells


@pytest.mark.parametrize("victim", ["sentry", "gofer"])
def test_with_either_the_container_ends_and_says_why(running: Running, victim: str) -> None:
    os.kill(getattr(running, victim), signal.SIGKILL)
    assert running.gone(running.sentry, running.gofer, running.keeper, *running.stubs)
    state = running.cm.inspect(running.name)["State"]
    assert state["Status"] == "exited" and state["ExitCode"] != 0
    assert ("file server" if victim == "gofer" else "sentry") in state["Error"]


def test_with_the_keeper_all_end(running: Running) -> None:
    os.kill(running.keeper, signal.SIGKILL)
    assert running.gone(running.sentry, running.gofer, *running.stubs)


def test_a_stub_that_is_killed_is_a_program_that_was(cm: Casemate) -> None:
    cm.out("run", "-d", "--name", "shot", "busybox", "sh", "-c", "echo up; sleep 1000; echo $? >/said; sleep 1000")
    try:
        running = Running(cm, "shot")
        deadline = time.monotonic() + SECONDS
        while not (sleeping := [pid for pid in _children(running.sentry) if pid not in running.stubs[:2]]):
            assert time.monotonic() < deadline
            time.sleep(0.02)  # nobody tells
        os.kill(sleeping[-1], signal.SIGKILL)
        while cm("exec", "shot", "cat", "/said").stdout != b"137\n":
            assert time.monotonic() < deadline
            time.sleep(0.1)  # nobody tells
    finally:
        cm.out("rm", "-f", "shot")

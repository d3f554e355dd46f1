"""The smaller parts of the agent: reaper, command check, control group files, entropy, start-up imports."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.agent import bundle, cgroup, command, devices, machine
from casemate.agent.cgroup import Cgroup
from casemate.agent.pumps import Output
from casemate.agent.system import get_id, open_in_root, open_regular, read_text, write_text
from casemate.agent.terminal import ConsoleSocket
from casemate.protocol import threads
from casemate.protocol.wire import RequestFailed, StreamClosed

SOURCE = Path(__file__).parents[3] / "src"

REAPER = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
import ctypes
ctypes.CDLL(None).prctl(36, 1)  # adopt orphans
from casemate.agent.processes import Reaper
from casemate.protocol import threads
reaper = Reaper()
threads.start(reaper.run)
null = os.open("/dev/null", os.O_RDWR)
run = lambda *words, timeout=20.0: reaper.run_program(list(words), (null, null, null), timeout)
end = run("sh", "-c", "exit 5")
assert (end.status, end.signal) == (5, None)
end = run("sh", "-c", "kill -9 $$")
assert (end.status, end.signal) == (None, 9)
began = time.monotonic()
assert run("sleep", "30", timeout=0.1) is None
assert time.monotonic() - began < 5
try:
    run("/no/such/program")
    sys.exit("started a program that is not there")
except OSError:
    pass
# One with addresses that are the same each time, which holds for that one alone.
with open(sys.argv[2] + ".steady", "w+b") as out:
    words = ["cat", "/proc/self/personality"]
    for steady in (True, False):
        reaper.run_program(words, (null, out.fileno(), null), 20.0, steady=steady)
    assert os.pread(out.fileno(), 100, 0).split() == [b"00040000", b"00000000"], os.pread(out.fileno(), 100, 0)
# An orphan that ends before anybody knows its number keeps its status while a start is under way.
reader, writer = os.pipe()
with reaper:
    out = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
    reaper.run_program(["sh", "-c", "sh -c 'sleep 0.3; exit 6' & echo $!"], (null, out, null), 20.0)
    pid = int(os.pread(out, 100, 0))
    while os.path.exists(f"/proc/{pid}"):
        time.sleep(0.001)
    ends, done = [], threads.Event()
    reaper.watch(pid, lambda end: (ends.append(end), done.set()))
    assert done.wait(20)
    assert ends[0].status == 6
assert reaper.signal(pid, 15) is False
assert reaper._unclaimed == {} and reaper._watched == {}
# An end that could not be handled for want of a thread is handled again.
tries, done = [], threads.Event()
def scarce(end):
    tries.append(end.status)
    if len(tries) < 3:
        raise RuntimeError("can't start new thread")
    done.set()
with reaper:
    reaper.watch(os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], {}), scarce)
assert done.wait(20)
assert tries == [7, 7, 7]
# SIGPIPE has its usual meaning for children, although Python ignores it.
assert run("sh", "-c", "kill -PIPE $$; exit 1").signal == signal.SIGPIPE
"""


def test_reaper(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", REAPER, str(SOURCE), str(tmp_path / "out")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_flood_of_news_does_not_make_waiting_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flood:
        """A socket that always has news, as where a container makes and removes interfaces without end."""

        def __init__(self, *_: int) -> None:
            self.fds = os.pipe()
            os.write(self.fds[1], b"add@/devices")

        def bind(self, address: object) -> None:
            pass

        def fileno(self) -> int:
            return self.fds[0]

        def recv(self, size: int) -> bytes:
            return b"add@/devices"

        def close(self) -> None:
            for fd in self.fds:
                os.close(fd)

    monkeypatch.setattr(devices, "socket", Flood)
    assert devices.wait_for(lambda: None, 0.05) is None


def test_a_socket_for_terminals_may_go_with_its_container(tmp_path: Path) -> None:
    console = ConsoleSocket(f"{tmp_path}/s")
    os.unlink(console.path)
    console.close()


def test_whoever_keeps_a_pipe_full_holds_up_no_exit() -> None:
    reader, writer = os.pipe()

    class Full:
        """A stream whose every byte is followed by one that another process has written meanwhile."""

        on_unwanted = None
        unwanted = False
        over = threads.Event()

        def send(self, data: bytes) -> None:
            if self.over.is_set():
                raise StreamClosed("the peer reads no more of the stream")
            os.write(writer, data)

        def close(self) -> None:
            os.close(writer)

    stream = Full()
    output = Output(reader, stream)  # type: ignore[arg-type]
    os.write(writer, b"x" * 1000)
    output.start()
    output.process_ended()
    assert output.drained.wait(20)
    stream.over.set()


def test_the_agent_imports_little() -> None:
    """Each of these would cost the guest's start more than all of the agent's own code."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import casemate.agent.main, casemate.agent.guest;"
        "print(*sys.modules)"
    )
    arguments = [sys.executable, "-I", "-S", "-c", code, str(SOURCE)]
    modules = set(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split())
    heavy = {"threading", "functools", "collections", "enum", "re", "json", "socket", "signal", "ctypes", "subprocess",
             "typing", "dataclasses", "logging", "argparse", "pathlib", "contextlib", "tempfile", "site"}  # fmt: skip
    assert modules & heavy == set()
    assert {name for name in modules if name.startswith("casemate.")} <= {
        f"casemate.{name}" for name in ("agent", "protocol")
    } | {name for name in modules if name.startswith(("casemate.agent.", "casemate.protocol."))}


def test_cgroup_files(tmp_path: Path) -> None:
    group = Cgroup("one", str(tmp_path))
    assert group.oom_kills() == 0
    nothing = dict.fromkeys(("anon", "file", "kernel", "shmem", "pgfault", "pgmajfault", "inactive_file"))
    empty = group.stats()
    assert empty["memory"] == {"current": None, "max": None, "peak": None, "oom_kills": 0, "stat": nothing}
    assert empty["io"] == []
    assert group.pids() == []
    path = tmp_path / "casemate/one"
    (path / "below").mkdir(parents=True)
    (path / "memory.events").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    (path / "memory.current").write_text("4096\n")
    (path / "memory.max").write_text("max\n")
    (path / "memory.stat").write_text("anon 100\nfile 200\nother 5\nshmem 7\n")
    (path / "cpu.stat").write_text(
        "usage_usec 30\nuser_usec 10\nsystem_usec 20\nodd\nnr_periods 5\nnr_throttled 4\nthrottled_usec 3\n"
    )
    (path / "io.stat").write_text("254:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n254:0 \nodd line\n")
    (path / "cgroup.procs").write_text("12\n9\n")
    (path / "below/cgroup.procs").write_text("10\n")
    stats = group.stats()
    assert stats["memory"]["stat"] == {**nothing, "anon": 100, "file": 200, "shmem": 7}
    assert {key: value for key, value in stats["memory"].items() if key != "stat"} == {
        "current": 4096, "max": None, "peak": None, "oom_kills": 2
    }  # fmt: skip
    assert stats["cpu"] == {
        "usage_us": 30, "user_us": 10, "system_us": 20, "nr_periods": 5, "nr_throttled": 4, "throttled_us": 3
    }  # fmt: skip
    assert stats["io"] == [
        {"major": 254, "minor": 16, "rbytes": 1, "wbytes": 2, "rios": 3, "wios": 4},
        {"major": 254, "minor": 0, "rbytes": 0, "wbytes": 0, "rios": 0, "wios": 0},
    ]
    assert stats["processes"] == [9, 10, 12]


def test_many_processes_of_a_group_are_all_seen(tmp_path: Path) -> None:
    """The kernel gives a page of them with each read."""
    path = tmp_path / "casemate/one"
    path.mkdir(parents=True)
    (path / "cgroup.procs").write_text("".join(f"{number}\n" for number in range(1, 9000)))
    assert Cgroup("one", str(tmp_path)).pids() == list(range(1, 8193))


def test_capacity_counts_what_containers_have_already(tmp_path: Path) -> None:
    path = tmp_path / "casemate"
    path.mkdir()
    alone = cgroup.capacity(str(tmp_path), 77)
    assert alone == pytest.approx(machine.memory()["mem_available"] - cgroup.RESERVE, abs=256 << 20)
    (path / "memory.current").write_text(str(10 << 30))
    (path / "memory.stat").write_text(f"file {5 << 30}\nshmem {1 << 30}\nslab_reclaimable {2 << 30}\n")
    for name in ("memory.max", "pids.max"):
        (path / name).write_text("max\n")
    assert cgroup.capacity(str(tmp_path), 77) == pytest.approx(alone + (4 << 30), abs=256 << 20)
    bound = int((path / "memory.max").read_text())
    assert bound >= 10 << 30, "a bound below what they have would end them"
    assert (path / "pids.max").read_text().startswith("77")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_text(str(path), "ä" * 10, 0o640, create=True)
    assert path.stat().st_mode & 0o777 == 0o640
    assert read_text(str(path)) == "ä" * 10
    assert read_text(str(tmp_path / "missing")) == ""
    assert read_text(str(tmp_path)) == ""
    with pytest.raises(FileNotFoundError):
        write_text(str(tmp_path / "missing"), "x")


def test_open_in_root(tmp_path: Path) -> None:
    (tmp_path / "root/d").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "root/d/up").symlink_to("../../../secret")
    root = os.open(tmp_path / "root", os.O_PATH)
    for path in ("d/up", "../secret", "/d/../../secret", "/proc/self/root"):
        with pytest.raises(OSError):
            open_in_root(root, path, os.O_RDONLY)
    os.mkfifo(tmp_path / "root/pipe")
    with pytest.raises(OSError, match="regular"):
        open_regular(root, "pipe")
    os.close(root)


@pytest.mark.parametrize("bad", ["", ".", "..", "-x", "a/b", "a b", "ä", "x" * 129, "a\n", 5, None])
def test_bad_identifiers(bad: object) -> None:
    with pytest.raises(RequestFailed):
        get_id({"id": bad}, "id")


def test_entropy_that_is_refused() -> None:
    for bad in ("*", "a", "ä", "A" * 800):
        with pytest.raises(RequestFailed):
            machine.reseed(bad)


def test_figures() -> None:
    figures = machine.memory()
    assert figures["mem_total"] >= figures["mem_available"] > 0
    assert all(
        entry["name"] != "lo" and entry["rx_bytes"] >= 0 and "tx_packets" in entry for entry in machine.counters()
    )


# ---- commands


def judge(root: Path, name: str, covered: tuple[str, ...] = (), path: str = "/bin", cwd: str = "/") -> str:
    fd = os.open(root, os.O_PATH)
    try:
        command.check(fd, name, path, cwd, covered)
    except RequestFailed as error:
        return error.code
    finally:
        os.close(fd)
    return "good"


def put(root: Path, name: str, content: bytes, mode: int = 0o755) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)
    (root / name).chmod(mode)


def test_commands(tmp_path: Path) -> None:
    own = Path(sys.executable).resolve().read_bytes()[:4096]
    put(tmp_path, "bin/sh", b"\x7fELF" + bytes(12) + own[16:20] + bytes(60))
    put(tmp_path, "bin/script", b"#! /bin/sh -e\necho\n")
    put(tmp_path, "bin/orphan", b"#!/bin/none\n")
    put(tmp_path, "bin/text", b"hello")
    put(tmp_path, "bin/empty", b"")
    put(tmp_path, "bin/plain", b"hello", 0o644)
    put(tmp_path, "bin/dynamic", own)
    put(tmp_path, "work/run", b"text")
    (tmp_path / "bin/out").symlink_to("../../../../bin/sh")
    assert judge(tmp_path, "sh") == judge(tmp_path, "script") == judge(tmp_path, "/bin/out") == "good"
    assert judge(tmp_path, "orphan") == "not-found"
    assert judge(tmp_path, "orphan", ("/bin/none",)) == "good"
    assert judge(tmp_path, "text") == judge(tmp_path, "empty") == "not-executable"
    assert judge(tmp_path, "text", ("/bin",)) == judge(tmp_path, "text", ("/",)) == "good"
    assert judge(tmp_path, "plain") == judge(tmp_path, "missing") == judge(tmp_path, "/bin") == "good"
    assert judge(tmp_path, "./run", cwd="/work") == "not-executable"
    assert judge(tmp_path, "run", path=":/bin", cwd="/work") == "good"
    if own[4:5] == b"\x02":
        wanted = "not-found" if b"/ld-" in own else "good"
        assert judge(tmp_path, "dynamic") == wanted
    foreign = bytearray(own)
    struct.pack_into("<H", foreign, 18, 0xFFFE)
    put(tmp_path, "bin/foreign", bytes(foreign))
    assert judge(tmp_path, "foreign") == "not-executable"


def test_what_the_host_has_looked_up(tmp_path: Path) -> None:
    """Is taken for what is there, which need not be looked at."""
    root = os.open(tmp_path, os.O_PATH)
    try:
        users = bundle._users({"passwd": "one:x:7:8::/home/one:\n", "group": "two:x:9:one\n"})
        assert users is not None
        process: dict[str, Any] = {"args": ["none"], "env": ["PATH=/bin"]}
        bundle.complete_process(process, "one", root, (), users, "/bin/none")
        assert process["user"] == {"uid": 7, "gid": 8, "additionalGids": [9]}
        assert "HOME=/home/one" in process["env"]
        with pytest.raises(RequestFailed, match="no user"):
            bundle.complete_process({"args": ["none"]}, "other", root, (), users, "/bin/none")
    finally:
        os.close(root)
    assert bundle._users({}) is None and bundle._users({"passwd": ""}) is None
    for bad in ({"passwd": 1, "group": ""}, {"passwd": "", "group": "x" * (bundle.MAX_LOOKED + 1)}):
        with pytest.raises(RequestFailed):
            bundle._users(bad)


@given(st.binary(max_size=300), st.sampled_from([b"", b"#!", b"\x7fELF\x02\x01", b"\x7fELF\x01\x02"]))
def test_any_file_is_judged(tmp_path_factory: pytest.TempPathFactory, content: bytes, head: bytes) -> None:
    root = tmp_path_factory.mktemp("root")
    put(root, "bin/x", head + content)
    assert judge(root, "x") in ("good", "not-found", "not-executable")


# ---- conditions and events


def test_event_and_condition() -> None:
    event = threads.Event()
    began = time.monotonic()
    assert not event.wait(0.05)
    assert time.monotonic() - began >= 0.05
    threads.start(event.set)
    assert event.wait(10) and event.is_set() and event.wait(0)
    lock = threads.Lock()
    condition = threads.Condition(lock)
    woken: list[int] = []
    gone = threads.Event()

    def wait(number: int) -> None:
        with lock:
            condition.wait()
            woken.append(number)
            if len(woken) == 3:
                gone.set()

    with lock:
        assert condition.wait(0.01) is False
        for number in range(3):
            threads.start(wait, number)
    while True:
        with lock:
            if len(condition._waiters) == 3:
                condition.notify()
                condition.notify_all()
                break
    assert gone.wait(10)
    assert sorted(woken) == [0, 1, 2]
    assert not condition._waiters

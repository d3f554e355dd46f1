"""The agent's requests, with a stand-in for the container runtime."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from casemate.protocol.wire import RequestFailed
from tests.unit.agent.box import Box, read_all


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    one = Box(tmp_path)
    yield one
    console = one.close()
    assert "Traceback" not in console


def refused(box: Box, method: str, params: dict[str, Any]) -> str:
    with pytest.raises(RequestFailed) as caught:
        box.link.call(method, params, 20)
    return caught.value.code


def test_output_status_and_cleaning(box: Box) -> None:
    started = box.start("one", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert started.pid > 1
    assert started.output() == b"out\n"
    assert started.stderr is not None
    assert read_all(started.stderr) == b"err\n"
    assert box.ended.wait("one") == {"id": "one", "exec_id": None, "status": 7, "signal": None, "oom": False}
    box.link.call("container.delete", {"id": "one"}, 20)
    assert (box.cgroups / "deleted").read_text() == "one\n"
    assert os.listdir(box.path / "run/containers") == []
    assert box.link.call("container.delete", {"id": "one"}, 20) == {}


def test_the_exit_comes_after_the_output(box: Box) -> None:
    seen: list[int] = []
    for n in range(10):
        started = box.start(f"c{n}", "sh", "-c", "head -c 300000 /dev/zero")
        total = 0
        while chunk := started.stdout.recv(1000):
            total += len(chunk)
            if any(event["id"] == f"c{n}" for event in box.ended.events):
                seen.append(total)
        assert total == 300_000
        box.ended.wait(f"c{n}")
        # What was sent before the event may still have been in our own window of 256 KiB, and no more.
        assert all(300_000 - at <= 256 * 1024 for at in seen)


def test_stdin_reaches_and_ends(box: Box) -> None:
    started = box.start("cat", "cat", stdin=True)
    data = os.urandom(700_000)
    assert started.stdin is not None
    import threading

    def pour() -> None:
        assert started.stdin is not None
        started.stdin.send(data)
        started.stdin.send_eof()

    thread = threading.Thread(target=pour)
    thread.start()
    assert started.output() == data
    thread.join()
    assert box.ended.wait("cat")["status"] == 0


def test_stdin_that_nobody_reads(box: Box) -> None:
    started = box.start("deaf", "sh", "-c", "exec 0<&-; echo ready; exec sleep 30", stdin=True)
    assert started.stdout.recv() == b"ready\n"
    assert started.stdin is not None
    from casemate.protocol.wire import StreamClosed

    with pytest.raises(StreamClosed):
        for _ in range(1000):
            started.stdin.send(b"x" * 65536)
    box.link.call("process.signal", {"id": "deaf", "exec_id": None, "signal": 9, "all": False}, 20)
    assert box.ended.wait("deaf")["signal"] == 9


def test_signals(box: Box) -> None:
    started = box.start("s", "sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done")
    assert started.stdout.recv() == b"ready\n"
    box.link.call("process.signal", {"id": "s", "exec_id": None, "signal": int(signal.SIGTERM), "all": False}, 20)
    assert box.ended.wait("s")["status"] == 3
    params = {"id": "s", "exec_id": None, "signal": 15, "all": False}
    assert refused(box, "process.signal", params) in ("no-such-process", "no-such-container")
    assert refused(box, "process.signal", {**params, "signal": 65}) == "bad-spec"
    assert refused(box, "process.signal", {**params, "id": "other"}) == "no-such-container"


def test_exec(box: Box) -> None:
    box.start("c", "sleep", "30")
    for n in range(5):
        started = box.exec("c", f"e{n}", "sh", "-c", f"cat; exit {n}", stdin=True)
        assert started.stdin is not None
        started.stdin.send(b"hello")
        started.stdin.send_eof()
        assert started.output() == b"hello"
        assert box.ended.wait("c", f"e{n}")["status"] == n
    box.exec("c", "killed", "sleep", "30")
    box.link.call("process.signal", {"id": "c", "exec_id": "killed", "signal": 9, "all": False}, 20)
    assert box.ended.wait("c", "killed")["signal"] == 9
    box.exec("c", "busy", "sleep", "30")
    with pytest.raises(RequestFailed, match="already"):
        box.exec("c", "busy", "true")
    with pytest.raises(RequestFailed) as caught:
        box.exec("c", "e", "nosuch")
    assert caught.value.code == "not-found"
    assert "nosuch" in caught.value.message
    with pytest.raises(RequestFailed) as caught:
        box.exec("other", "e", "true")
    assert caught.value.code == "no-such-container"


def test_failures_to_start_leave_nothing(box: Box) -> None:
    for args, code in ((("nosuch",), "not-found"), (("forbidden",), "not-executable")):
        with pytest.raises(RequestFailed) as caught:
            box.start("c", *args)
        assert caught.value.code == code
        assert os.listdir(box.path / "run/containers") == []
    assert box.start("c", "echo", "now").output() == b"now\n"
    assert [event["id"] for event in [box.ended.wait("c")]] == ["c"]
    assert len(box.ended.events) == 1


def test_oom_is_told(box: Box) -> None:
    box.start("c", "oom")
    assert box.ended.wait("c") == {"id": "c", "exec_id": None, "status": None, "signal": 9, "oom": True}


def test_terminal(box: Box) -> None:
    started = box.start(
        "t", "sh", "-c", "stty size; read line; echo got $line; exit 4", stdin=True, terminal=True, size=[33, 77]
    )
    assert started.stdin is not None
    got = b""
    while b"33 77" not in got:
        chunk = started.stdout.recv()
        assert chunk, got
        got += chunk
    box.link.call("process.resize", {"id": "t", "exec_id": None, "rows": 50, "cols": 100}, 20)
    started.stdin.send(b"word\n")
    assert b"got word" in started.output()
    assert box.ended.wait("t")["status"] == 4


def test_a_grandchild_that_keeps_the_pipe(box: Box) -> None:
    gate = box.path / "gate"
    os.mkfifo(gate)
    started = box.start("g", "sh", "-c", f"(read go <{gate}; echo late) & echo early; exit 5")
    assert box.ended.wait("g")["status"] == 5
    gate.write_text("go\n")
    assert started.output() == b"early\nlate\n"


def kept(box: Box) -> tuple[int, int]:
    """Descriptors and threads of the agent."""
    return tuple(len(os.listdir(f"/proc/{box.process.pid}/{name}")) for name in ("fd", "task"))  # type: ignore[return-value]


def test_who_keeps_the_pipes_of_others_hoards_nothing_of_the_agents(box: Box) -> None:
    """A container could else use up the streams and threads that all of its sandbox's containers need."""
    box.start("c", "sleep", "60")

    def leave(name: str) -> None:
        started = box.exec("c", name, "sh", "-c", "sleep 60 & exit 3")
        assert box.ended.wait("c", name)["status"] == 3
        assert started.stderr is not None
        started.stdout.close()
        started.stderr.close()

    leave("first")
    before = kept(box)
    for number in range(8):
        leave(f"e{number}")
    deadline = time.monotonic() + 20
    while any(now > then for now, then in zip(kept(box), before, strict=True)) and time.monotonic() < deadline:
        time.sleep(0.01)  # threads have no event for their end
    assert all(now <= then for now, then in zip(kept(box), before, strict=True))


def test_output_that_the_host_does_not_want(box: Box) -> None:
    started = box.start("c", "sh", "-c", "head -c 5000000 /dev/zero; exit 6")
    started.stdout.close()
    assert box.ended.wait("c")["status"] == 6


def test_what_the_runtime_is_told(box: Box) -> None:
    (box.root / "etc").mkdir()
    (box.root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n")
    (box.root / "etc/group").write_text("a:x:34:\nb:x:40:web,x\nc:x:41:x\n")
    files = [
        {"path": "/etc/hosts", "mode": 0o644, "content": "127.0.0.1 ä\n"},
        {"path": "/proc", "mode": 0o600, "content": ""},
    ]
    box.start("c", "sleep", "30", user="web", files=files, memory=64 << 20)
    config = json.loads((box.cgroups / "casemate/c/config.json").read_text())
    assert config["process"]["user"] == {"uid": 33, "gid": 34, "additionalGids": [40]}
    assert "HOME=/srv" in config["process"]["env"]
    assert config["linux"]["cgroupsPath"] == "/casemate/c"
    assert config["linux"]["resources"]["memory"] == {"limit": 64 << 20}
    assert 0 < config["linux"]["resources"]["pids"]["limit"] < int(Path("/proc/sys/kernel/threads-max").read_text())
    mount = config["mounts"][-1]
    assert mount["destination"] == "/etc/hosts"
    assert Path(mount["source"]).read_text() == "127.0.0.1 ä\n"
    assert os.stat(mount["source"]).st_mode & 0o777 == 0o644
    assert [m["destination"] for m in config["mounts"]] == ["/proc", "/etc/hosts"]  # a mount of the person's own wins


@pytest.mark.parametrize(("asked", "given"), [(50, 50), (1 << 40, 0), (0, 0), (-1, 0)])
def test_a_container_leaves_processes_to_the_agent(box: Box, asked: int, given: int) -> None:
    spec = box.spec("sleep", "30")
    spec["linux"]["resources"] = {"pids": {"limit": asked}}
    box.start("c", spec=spec)
    limit = json.loads((box.cgroups / "casemate/c/config.json").read_text())["linux"]["resources"]["pids"]["limit"]
    assert limit == given or (not given and 50 < limit < int(Path("/proc/sys/kernel/pid_max").read_text()))


def test_bad_specs(box: Box) -> None:
    good = box.spec("true")
    changes: list[dict[str, Any]] = [
        {"process": None}, {"process": {"args": []}}, {"process": {"args": ["a\0b"]}}, {"process": {"args": "true"}},
        {"process": {"args": ["true"], "env": [1]}}, {"root": {"path": "/"}}, {"root": {"path": f"{box.share}/../x"}},
        {"root": {"path": f"{box.share}/missing"}}, {"root": {}}, {"mounts": {}}, {"linux": []},
        {"linux": {"resources": 3}}, {"linux": {"resources": {"pids": 3}}},
        {"linux": {"resources": {"pids": {"limit": "many"}}}}, {"process": {"args": ["true"], "user": {"uid": -1}}},
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(RequestFailed) as caught:
            box.start("c", spec={**good, **change})
        assert caught.value.code == "bad-spec", change
    mores: list[dict[str, Any]] = [
        {"files": [1]}, {"files": [{"path": "x", "mode": 0, "content": ""}]}, {"files": [{}] * 65}, {"memory": "much"},
        {"files": [{"path": "/../x", "mode": 0, "content": ""}]}, {"size": [1]}, {"size": [1, 70000]},
        {"user": 1}, {"user": "x" * 300}, {"sandbox": 1}, {"sandbox": {"time_ns": -1}},
    ]  # fmt: skip
    for more in mores:
        with pytest.raises(RequestFailed) as caught:
            box.start("c", "true", **more)
        assert caught.value.code in ("bad-spec", "failed"), more
    for identifier in ("", "../x", "a/b", ".hidden", "x" * 129, "ä", "-rf"):
        with pytest.raises(RequestFailed) as caught:
            box.start(identifier, "true")
        assert caught.value.code == "bad-spec"
    with pytest.raises(RequestFailed) as caught:
        box.start("c", "true", user="nobody-here")
    assert caught.value.code == "bad-user"
    assert box.start("c", "echo", "well").output() == b"well\n"


@pytest.mark.parametrize("value", [None, 1, "x", [], {"a": 1}, True, 1.5, -1, "\0", 2**70])
def test_any_parameters_leave_the_agent_alive(box: Box, value: Any) -> None:
    keys = ("id", "exec_id", "spec", "process", "user", "size", "signal", "rows", "cols", "memory", "resources",
            "interfaces", "addresses", "port")
    for method in ("run", "create", "start", "exec", "stats", "pause", "resume", "update", "delete"):
        for params in ({}, dict.fromkeys(keys, value), {"id": "x", "spec": value}):
            try:
                box.link.call(f"container.{method}", params, 20)
            except RequestFailed as error:
                assert error.code in ("bad-spec", "no-such-container", "failed"), (method, params, error)
    for method in ("process.signal", "process.resize", "sandbox.dns", "sandbox.connect", "sandbox.nothing"):
        with pytest.raises(RequestFailed):
            box.link.call(method, dict.fromkeys(keys, value), 20)
    assert box.link.call("sandbox.ping", {}, 20) == {}


def test_many_short_processes(box: Box) -> None:
    """Each exit is told once, with its own status, however close to its start it comes."""
    import threading

    box.start("c", "sleep", "60")
    problems: list[str] = []

    def run(worker: int) -> None:
        for n in range(8):
            name = f"w{worker}n{n}"
            started = box.exec("c", name, "sh", "-c", f"echo {name}; exit {n}")
            if started.output() != f"{name}\n".encode() or box.ended.wait("c", name)["status"] != n:
                problems.append(name)

    threads = [threading.Thread(target=run, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(box.ended.events) == 32


def test_info_and_stats(box: Box) -> None:
    info = box.link.call("sandbox.info", {}, 20)
    assert info["kernel"] == os.uname().release
    assert info["uptime_ms"] > 0 and info["mem_total"] > 1 << 20 and len(info["boot_id"]) == 36
    box.start("c", "sleep", "30")
    stats = box.link.call("container.stats", {"id": "c"}, 20)
    assert stats["memory"]["oom_kills"] == 0
    assert stats["guest"]["mem_total"] >= stats["guest"]["mem_available"] > 0
    assert stats["cpu"]["usage_us"] == 0 and stats["io"] == [] and stats["net"] is not None


def test_no_descriptor_stays(box: Box) -> None:
    def count() -> int:
        return len(os.listdir(f"/proc/{box.process.pid}/fd"))

    def round_trip(n: int) -> None:
        box.start(f"c{n}", "cat", stdin=True).stdin.close()  # type: ignore[union-attr]
        box.ended.wait(f"c{n}")
        started = box.start(f"t{n}", "tty", terminal=True, stdin=True)
        started.output()
        box.ended.wait(f"t{n}")
        with pytest.raises(RequestFailed):
            box.start(f"f{n}", "nosuch", stdin=True)
        for name in ("c", "t"):
            box.link.call("container.delete", {"id": f"{name}{n}"}, 20)

    round_trip(0)
    before = count()
    for n in range(1, 6):
        round_trip(n)
    deadline = time.monotonic() + 20
    while count() > before and time.monotonic() < deadline:  # threads of the last one may not be over
        time.sleep(0.01)
    assert count() <= before


def test_shutdown_and_a_host_that_goes(tmp_path: Path) -> None:
    box = Box(tmp_path)
    assert box.link.call("sandbox.shutdown", {}, 20) == {}
    assert box.process.wait(20) == 0
    assert box.process.stderr is not None
    assert b"asked" in box.process.stderr.read()
    box.process.stderr.close()

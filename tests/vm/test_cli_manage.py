"""The commands that look after containers, with real virtual machines."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest

from tests.vm.support import CONSOLE_SCRIPT, Casemate, Container, as_nobody, await_log, detached


def test_exec(container: Container) -> None:
    assert container.exec("sh", "-c", "exit 5").returncode == 5
    assert container.exec("sh", "-c", "kill -TERM $$").returncode == 143
    assert container.exec("nope").returncode == 127
    assert container.exec("/etc").returncode == 126
    data = os.urandom(1 << 20)
    assert container.exec("cat", input=data).stdout == data
    out = container.cm.out(
        "exec", "-e", "X=1", "-w", "/tmp", "-u", "12:34", container.name, "sh", "-c", "echo $X $(pwd) $(id -u):$(id -g)"
    )
    assert out == "1 /tmp 12:34"
    assert container.sh("cat /proc/1/comm") == "sleep"


def test_exec_detached_and_in_what_does_not_run(cm: Casemate, container: Container) -> None:
    cm("exec", "-d", container.name, "sh", "-c", "echo x > /made", check=True)
    container.sh("until test -e /made; do :; done")
    done = cm("exec", "no-such", "true")
    assert done.returncode == 1 and b"no such container" in done.stderr


def test_ps_inspect_and_stats(cm: Casemate, container: Container) -> None:
    assert container.name in cm.out("ps")
    value = cm.inspect(container.name)
    assert value["State"]["Status"] == "running" and value["State"]["Pid"] > 0
    assert value["Guest"]["kernel"] == container.sh("uname -r")
    assert re.fullmatch(r"10\.\d+\.\d+\.\d+", value["NetworkSettings"]["IPAddress"])
    assert cm.out("inspect", "-f", "{{.State.OOMKilled}}", container.name) == "false"
    assert cm.out("inspect", "-f", "{{.Id}}", value["Id"][:10]) == value["Id"]
    row = json.loads(cm.out("stats", "--no-stream", "--format", "json", container.name))
    assert row["Name"] == container.name and int(row["PIDs"]) >= 1
    assert not row["MemUsage"].startswith("0B") and not row["HostMem"].startswith("0B")


def test_logs(cm: Casemate) -> None:
    script = "echo one; echo two >&2; printf '\\377\\n'; echo last; sleep 1000"
    with detached(cm, "talker", command=("sh", "-c", script)):
        with cm.popen("logs", "-f", "talker") as follower:
            assert follower.stdout is not None
            lines = [follower.stdout.readline() for _ in range(3)]
            assert lines == [b"one\n", b"\xff\n", b"last\n"]
            cm("stop", "-t", "0", "talker", check=True)
            out, err = follower.communicate(timeout=60)
        assert (out, err, follower.returncode) == (b"", b"two\n", 0)
        done = cm("logs", "--tail", "1", "talker")
        # The two streams are two pipes: which of them was read last nobody can say.
        assert (done.stdout, done.stderr) in ((b"last\n", b""), (b"", b"two\n"))
        stamped = cm("logs", "-t", "talker").stdout.splitlines()[0]
        assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z one", stamped)
        assert cm("logs", "--since", "2100-01-01", "talker").stdout == b""


def test_stop_kill_wait_and_rm(cm: Casemate) -> None:
    script = "trap 'exit 4' TERM; echo ready; while :; do sleep 0.1; done"
    with detached(cm, "polite", command=("sh", "-c", script)) as polite:
        await_log(cm, polite.name, "ready")
        with cm.popen("wait", "polite") as waiter:
            assert cm.out("stop", "polite") == "polite"
            assert waiter.communicate(timeout=60)[0] == b"4\n"
        assert cm.inspect("polite")["State"]["ExitCode"] == 4
        assert cm.out("wait", "polite") == "4"
        assert cm.out("stop", "polite") == "polite", "stopping twice is fine"
        assert cm("kill", "polite").returncode == 1
        assert "polite" not in cm.out("ps") and "Exited (4)" in cm.out("ps", "-a")
        assert cm.out("rm", "polite") == "polite"
        assert cm("rm", "polite").returncode == 1
    with detached(cm, "stubborn", command=("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done")):
        await_log(cm, "stubborn", "ready")
        assert cm("rm", "stubborn").returncode == 1, "it runs"
        begun = time.monotonic()
        cm("stop", "-t", "1", "stubborn", check=True)
        assert time.monotonic() - begun >= 1
        assert cm.inspect("stubborn")["State"]["ExitCode"] == 137


def test_pause_and_unpause(cm: Casemate) -> None:
    with detached(cm, "frozen", command=("sh", "-c", "while :; do date +%s%N > /now; done")) as frozen:
        cm("pause", "frozen", check=True)
        assert cm.inspect("frozen")["State"]["Status"] == "paused"
        assert "(Paused)" in cm.out("ps")
        assert cm("exec", "frozen", "true").returncode != 0
        cm("unpause", "frozen", check=True)
        assert frozen.sh("echo back") == "back"
        assert cm.inspect("frozen")["State"]["Status"] == "running"


def test_several_at_once_each_error_told(cm: Casemate) -> None:
    done = cm("rm", "nope-1", "nope-2")
    assert done.returncode == 1
    assert [b"nope-1" in line or b"nope-2" in line for line in done.stderr.splitlines()] == [True, True]


# ---- cp


@pytest.mark.parametrize("running", [True, False])
def test_cp_both_ways(cm: Casemate, tmp_path: Path, running: bool) -> None:
    source = tmp_path / "src"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "data").write_bytes(os.urandom(100_000))
    (source / "link").symlink_to("sub/data")
    volume = tmp_path / "volume"
    volume.mkdir()
    command = ("sh", "-c", "ln -s /etc/passwd /evil; ln -s / /out; sleep 1000" if running else "ln -s / /out; exit 0")
    with detached(cm, "box", "-v", f"{volume}:/vol", command=command) as box:
        if running:
            box.sh("until test -e /out; do :; done")
        else:
            cm("wait", "box", check=True)
        assert cm("cp", source, "box:/tmp", check=True).stderr == b""
        cm("cp", f"{source}/.", "box:/vol", check=True)
        assert (volume / "sub" / "data").read_bytes() == (source / "sub" / "data").read_bytes(), "volumes are there"
        # A link of the container's leads to the container's root, never to ours.
        marker = tmp_path / "marker"
        marker.write_text("x")
        cm("cp", marker, "box:/out/marker-of-cp", check=True)
        assert not Path("/marker-of-cp").exists()
        if running:
            assert box.sh("cat /marker-of-cp; ls /tmp/src; stat -c %u /tmp/src/sub/data") == "xlink\nsub\n0"
        back = tmp_path / "back"
        cm("cp", "box:/tmp/src", back, check=True)
        assert (back / "sub" / "data").read_bytes() == (source / "sub" / "data").read_bytes()
        assert os.readlink(back / "link") == "sub/data"
        stream = cm("cp", "box:/tmp/src/sub", "-", check=True).stdout
        cm("cp", "-", "box:/vol/sub", input=stream, check=True)
        assert (volume / "sub" / "sub" / "data").stat().st_size == 100_000
        missing = cm("cp", "box:/no/such", tmp_path)
        assert missing.returncode == 1 and b"/no/such" in missing.stderr and missing.stderr.count(b"\n") == 1


# ---- images and the machine


def test_images(cm: Casemate, container: Container) -> None:
    assert "busybox" in cm.out("images")
    used = cm("rmi", "busybox")
    assert used.returncode == 1 and container.name in used.stderr.decode()
    assert cm.json("inspect", "--type", "image", "busybox")[0]["Os"] == "linux"


def test_check_env_and_version(cm: Casemate) -> None:
    done = cm("check")
    assert done.returncode == 0, done.stdout
    assert b"accelerator" in done.stdout
    found = {each["name"]: each["status"] for each in cm.json("check", "--json")}
    assert found["guest bundle"] == "ok"
    assert cm.json("env", "--format", "json")["root"] == {"value": str(cm.env.root), "source": "CASEMATE_ROOT"}
    assert "cloud" in cm.json("version", "--format", "json")["guest kernel"]


def test_without_root_it_is_one_line(cm: Casemate) -> None:
    done = as_nobody([CONSOLE_SCRIPT, "run", "busybox"], cm.env.variables)
    assert done.returncode == 125
    assert done.stderr.startswith(b"casemate: casemate run needs root") and done.stderr.count(b"\n") == 1

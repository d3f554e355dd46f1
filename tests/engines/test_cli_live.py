"""What one does to a container that runs: exec, attach, logs, top, stats, pause, update, cp, commit, kill, restart."""

from __future__ import annotations

import io
import json
import re
import signal
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.engines import Client, on
from tests.engines.images import BOX
from tests.engines.signals import TELLING, WORDS
from tests.engines.terminal import eventually, terminal

pytestmark = on("docker", "podman")

@pytest.fixture(scope="module")
def box(cli: Client) -> Iterator[str]:
    """A container that runs :data:`TELLING`."""
    with cli.container("--name", "live", "-e", "ONE=1", BOX, "sh", "-c", TELLING) as id:
        eventually(lambda: "ready" in cli.out("logs", "live"), "the program has begun")
        yield id


@pytest.mark.feature("exec")
def test_exec_status_and_streams(cli: Client, box: str) -> None:
    done = cli("exec", box, "sh", "-c", "echo out; echo err >&2; exit 9")
    assert (done.returncode, done.stdout, done.stderr) == (9, b"out\n", b"err\n")


@pytest.mark.feature("exec")
def test_exec_options(cli: Client, box: str) -> None:
    script = 'echo "$ONE $TWO"; pwd; id -u; id -g'
    said = cli.out("exec", "-e", "TWO=2", "-w", "/tmp", "-u", "33:44", box, "sh", "-c", script)
    assert said.split() == ["1", "2", "/tmp", "33", "44"]


@pytest.mark.feature("exec")
def test_exec_input(cli: Client, box: str) -> None:
    data = bytes(range(256)) * 8192
    assert cli("exec", "-i", box, "cat", input=data, check=True).stdout == data


@pytest.mark.feature("exec")
def test_exec_missing_program(cli: Client, box: str) -> None:
    done = cli("exec", box, "no-such-program")
    assert done.returncode in (126, 127)  # Docker 20 has 126, Podman 127
    assert 'exec: "no-such-program": executable file not found in $PATH' in (done.stdout + done.stderr).decode()


@pytest.mark.feature("exec")
def test_exec_not_executable(cli: Client, box: str) -> None:
    done = cli("exec", box, "/etc/passwd")
    assert done.returncode == 126
    assert "permission denied" in (done.stdout + done.stderr).decode()


@pytest.mark.feature("exec")
def test_exec_in_background(cli: Client, box: str) -> None:
    cli.out("exec", "-d", box, "sh", "-c", "sleep 0.1; echo done >/tmp/background")
    eventually(lambda: cli("exec", box, "cat", "/tmp/background").stdout == b"done\n", "the background has worked")


@pytest.mark.feature("exec -it")
def test_exec_terminal(cli: Client, box: str) -> None:
    with terminal(cli.command("exec", "-it", box, "sh"), cli.variables, rows=33, columns=99) as screen:
        assert re.fullmatch(r"/dev/pts/\d+", screen.ask("tty"))
        assert screen.ask("until stty size 2>/dev/null | grep 99; do sleep 0.1; done") == "33 99"
        assert screen.resized(20, 70) == "20 70"
        screen.type("exit 4\n")
        assert screen.end() == 4


@pytest.mark.feature("kill")
def test_every_signal(cli: Client, box: str) -> None:
    """Each comes once: those that a program can catch, and those that stop it and let it go on."""
    before = Counter(cli.out("logs", box).splitlines())
    for name in WORDS:
        cli.out("kill", "--signal", name, box)
    wanted = before + Counter(WORDS.values())
    eventually(lambda: Counter(cli.out("logs", box).splitlines()) >= wanted, "all have come")
    cli.out("kill", "--signal", "STOP", box)
    eventually(lambda: cli.sh(box, "cut -d ' ' -f 3 /proc/1/stat") == "T", "it is stopped")
    cli.out("kill", "--signal", "CONT", box)
    wanted["got CONT"] += 1
    eventually(lambda: Counter(cli.out("logs", box).splitlines()) == wanted, "it goes on")
    assert cli.state(box)["Running"]


@pytest.mark.feature("attach")
def test_attach_passes_signals(cli: Client, box: str) -> None:
    with cli.popen("attach", "--sig-proxy=true", box) as process:
        assert process.stdout is not None
        with cli.popen("exec", box, "sh", "-c", "until test -e /tmp/attached; do kill -USR2 1; sleep 0.3; done"):
            assert any(b"got USR2" in line for line in iter(process.stdout.readline, b""))  # it is attached
            cli.sh(box, "touch /tmp/attached")
        process.send_signal(signal.SIGHUP) if cli.engine == "docker" else _inner(process.pid)
        assert any(b"got HUP" in line for line in iter(process.stdout.readline, b""))


@pytest.mark.feature("logs")
def test_logs(cli: Client, box: str) -> None:
    lines = cli.out("logs", box).splitlines()
    assert lines[0] == "ready"
    assert cli.out("logs", "--tail", "1", box).splitlines() == lines[-1:]
    stamped = cli.out("logs", "--timestamps", "--tail", "1", box)
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", stamped) and stamped.endswith(lines[-1])
    with cli.popen("logs", "--follow", "--tail", "0", box) as process:
        assert process.stdout is not None
        # Nothing tells that a follower has begun to look, so it is given something until it says so.
        cli.out("kill", "--signal", "USR1", box)
        reader = iter(process.stdout.readline, b"")
        with cli.popen("exec", box, "sh", "-c", "until test -e /tmp/followed; do kill -USR2 1; sleep 0.3; done"):
            assert next(line for line in reader if b"got USR2" in line)
            cli.sh(box, "touch /tmp/followed")


@pytest.mark.feature("top")
def test_top(cli: Client, box: str) -> None:
    lines = cli.out("top", box).splitlines()
    assert "PID" in lines[0] and len(lines) >= 2
    assert any("sh -c trap" in line for line in lines[1:]), lines


@pytest.mark.feature("stats")
def test_stats(cli: Client, box: str) -> None:
    cli.sh(box, "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done")
    if cli.engine == "podman":
        value = json.loads(cli.out("stats", "--no-stream", "--format", "json", box))[0]
        memory, tasks = value["mem_usage"], value["pids"]
    else:
        value = json.loads(cli.out("stats", "--no-stream", "--format", "{{json .}}", box))
        memory, tasks = value["MemUsage"], value["PIDs"]
    assert re.match(r"[\d.]+ ?[kKM]i?B / ", memory) and not memory.startswith("0"), value
    assert int(tasks) >= 1


@pytest.mark.feature("pause")
def test_pause(cli: Client, box: str) -> None:
    cli.out("exec", "-d", box, "sh", "-c", "while ! test -e /tmp/enough && sleep 0.05; do echo >>/tmp/ticks; done")
    count = "wc -l </tmp/ticks"
    eventually(lambda: cli("exec", box, "sh", "-c", f"test $({count}) -gt 2").returncode == 0, "it ticks")
    before = int(cli.sh(box, count))
    cli.out("pause", box)
    try:
        assert cli.state(box)["Paused"] or cli.state(box)["Status"] == "paused"
        cli.fails("exec", box, "true")
        # One that is not paused would tick while these commands run.
        first = len(_file(cli, f"{box}:/tmp/ticks"))
        cli.out("ps")
        second = len(_file(cli, f"{box}:/tmp/ticks"))
        assert first == second >= before
    finally:
        cli.out("unpause", box)
    assert cli.state(box)["Running"]
    eventually(lambda: int(cli.sh(box, count)) > second, "it ticks again")
    cli.sh(box, "touch /tmp/enough")


@pytest.mark.feature("update")
def test_update(cli: Client, box: str) -> None:
    bounds = ["--memory", "200m", "--memory-swap", "200m", "--cpus", "0.5", "--cpuset-cpus", "0", "--cpu-shares", "512"]
    cli.out("update", *bounds, *(["--pids-limit", "70"] if cli.engine == "docker" else []), box)
    old = "cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu/cpu.shares pids/pids.max"
    new = "cat memory.max cpu.max cpu.weight pids.max"
    found = cli.sh(box, f"cd /sys/fs/cgroup; {new} 2>/dev/null || {old}").split()
    assert found[:3] == [str(200 << 20), "50000", "100000"]
    assert found[3] in ("512", "20")  # shares, or what all runtimes make of them for version 2
    assert cli.engine != "docker" or found[4] == "70"
    assert cli.sh(box, "grep Cpus_allowed_list /proc/1/status").split()[1] == "0"
    # More than it was made with; Docker wants to be told of swap, too.
    cli.out("update", "--memory", "1300m", "--memory-swap", "1300m", box)
    memory = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes"
    assert int(cli.sh(box, memory)) == 1300 << 20
    # Who wants more than it may have waits.
    cli.out("update", "--cpus", "0.2", box)
    burn = "timeout 1 sh -c 'while :; do :; done'; cd /sys/fs/cgroup; cat cpu.stat 2>/dev/null || cat cpu/cpu.stat"
    assert int(cli.sh(box, burn).partition("nr_throttled ")[2].split()[0]) > 0
    cli.out("update", "--cpus", "0.5", box)


@pytest.mark.feature("cp")
def test_copy_while_it_runs(cli: Client, box: str, tmp_path: Path) -> None:
    (tmp_path / "tree" / "below").mkdir(parents=True)
    (tmp_path / "tree" / "below" / "file").write_bytes(b"\0\1\2" * 100000)
    (tmp_path / "tree" / "link").symlink_to("below/file")
    cli.out("cp", tmp_path / "tree", f"{box}:/tmp")
    assert cli.sh(box, "wc -c </tmp/tree/below/file; readlink /tmp/tree/link").split() == ["300000", "below/file"]
    cli.sh(box, "mkdir /tmp/made; echo from inside >/tmp/made/file; ln -s file /tmp/made/link")
    cli.out("cp", f"{box}:/tmp/made", tmp_path / "out")
    assert (tmp_path / "out" / "file").read_text() == "from inside\n"
    assert (tmp_path / "out" / "link").readlink() == Path("file")
    assert "not-there" in cli.fails("cp", f"{box}:/tmp/not-there", tmp_path)


@pytest.mark.feature("diff, commit")
def test_diff_and_commit(cli: Client, box: str) -> None:
    cli.sh(box, "echo words >/var/written; rm /etc/os-release; sync")
    changes = cli.out("diff", box).splitlines()
    assert {"A /var/written", "D /etc/os-release", "C /var", "C /etc"} <= set(changes)
    image = cli.out("commit", box, "localhost/committed:1")
    try:
        said = cli.out("run", "--rm", "localhost/committed:1", "sh", "-c", "cat /var/written; test -e /etc/os-release")
    except AssertionError as error:
        assert "exit status 1\nwords" in str(error)  # the file that was removed is not there
    else:
        raise AssertionError(said)
    finally:
        cli.out("rmi", "-f", image.splitlines()[-1])


@pytest.mark.feature("restart")
def test_restart(cli: Client, box: str) -> None:
    begun = cli.state(box)["StartedAt"]
    cli.sh(box, "echo kept >/var/kept; exec sleep 2000 >/dev/null & sync")
    cli.out("restart", "-t", "1", box)
    assert cli.state(box)["Running"] and cli.state(box)["StartedAt"] != begun
    assert cli.sh(box, "cat /var/kept; ps -o args | grep -c '[s]leep 2000' || true") == "kept\n0"


@pytest.mark.feature("stop")
def test_stop_and_start(cli: Client, box: str, tmp_path: Path) -> None:
    # It does not end by SIGTERM.
    cli.out("stop", "-t", "1", box)
    state = cli.state(box)
    assert (state["Status"], state["ExitCode"], state["Running"]) == ("exited", 137, False)
    cli.fails("exec", box, "true")
    (tmp_path / "in").write_text("copied in\n")
    cli.out("cp", tmp_path / "in", f"{box}:/var/copied")
    assert _file(cli, f"{box}:/var/kept") == b"kept\n"
    cli.out("start", box)
    assert cli.sh(box, "cat /var/copied") == "copied in"


@pytest.mark.feature("kill")
def test_kill_and_wait(cli: Client, box: str) -> None:
    with cli.popen("wait", box) as waiting:
        cli.out("kill", "--signal", "PWR", box)
        out, _ = waiting.communicate(timeout=60)
    assert out.split() == [b"5"]
    assert cli.state(box)["ExitCode"] == 5
    said = cli.fails("kill", box)
    assert "is not running" in said or "running containers" in said or "improper" in said
    cli.out("start", box)
    cli.out("kill", box)
    assert cli.out("wait", box) == "137"


@pytest.mark.feature("rm -f")
def test_remove_running(cli: Client) -> None:
    id = cli.out("run", "-d", BOX, "sleep", "1000")
    cli.fails("rm", id)
    assert cli.state(id)["Running"]
    cli.remove(id)
    cli.fails("inspect", id)


@pytest.mark.feature("attach")
def test_attach_and_detach(cli: Client) -> None:
    with cli.container("-it", BOX, "sh") as id:
        # One key: of the usual two Podman knows only those that do not come at once.
        with terminal(cli.command("attach", "--detach-keys", "ctrl-x", id), cli.variables) as screen:
            screen.type("\n")
            assert screen.ask("A=kept; echo $A") == "kept"
            screen.type("\x18")
            assert screen.end() == (1 if cli.engine == "docker" else 0)
        assert cli.state(id)["Running"]
        with terminal(cli.command("attach", id), cli.variables) as screen:
            screen.type("\n")
            assert screen.ask("echo $A") == "kept"
            screen.type("exit 6\n")
            assert screen.end() == (6 if cli.engine == "docker" else 0)
        assert cli.state(id)["ExitCode"] == 6


def _inner(pid: int) -> None:
    """Send SIGHUP to what nsenter(1) has started: itself it does not hand it on."""
    import os

    from tests.engines.host import _children

    os.kill(_children(pid)[0], signal.SIGHUP)


def _file(cli: Client, path: str) -> bytes:
    """A file of a container's, whatever it does."""
    data = cli("cp", path, "-", check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        member = tar.next()
        assert member is not None
        file = tar.extractfile(member)
        assert file is not None
        return file.read()

"""Sandboxes from the pool: they are what was asked for and nobody else's, and nothing stays of any of them."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.pool_lab import SETTINGS, Lab, lab, pool
from tests.vm.support import await_log, detached, environment, leaks, processes


@pytest.fixture(scope="module")
def one() -> Iterator[Lab]:
    """A pool of two, for tests that leave it as it was."""
    with lab(2) as made:
        yield made
        assert made.end() == 0
        assert leaks(made.env) == []


QUESTIONS = (
    "cat /proc/sys/kernel/random/boot_id; hostname; head -c 32 /dev/urandom | sha256sum; cat /etc/hostname;"
    " ip -4 -o addr show eth0; cat /sys/class/net/eth0/address; cat /proc/sys/kernel/random/uuid"
)


def test_two_from_the_pool_are_not_each_other(one: Lab) -> None:
    members = one.ready(2)
    with detached(one.cm, "first") as first, detached(one.cm, "second") as second:
        found = [one.cm.inspect(each.name) for each in (first, second)]
        assert {each["Id"] for each in found} == set(members)
        assert all(each["Guest"]["pool"] is True for each in found)
        said = [each.sh(QUESTIONS).splitlines() for each in (first, second)]
        assert len(said[0]) == len(said[1]) == 7
        assert all(mine != theirs for mine, theirs in zip(*said, strict=True)), said
        assert said[0][1] == said[0][3] == found[0]["Id"][:12]
        # What the machine was warmed up with is gone.
        assert "warm" not in first.sh("cat /proc/mounts /proc/self/cgroup /etc/hosts; ls /run")
    assert one.status()["handed_out"] >= 2


def test_it_gets_what_it_asked_for(one: Lab, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "given").write_text("from the host\n")
    (tmp_path / "file").write_text("a file\n")
    ids = one.ready(1)
    script = (
        "cat /data/given /one; echo written > /data/made; echo no > /fixed/made; grep -c ' /fixed ' /proc/mounts;"
        " grep MemTotal /proc/meminfo; hostname; echo $WORD; id -u; cat /proc/self/limits | grep 'open files'; pwd"
    )
    done = one.cm(
        "run", "--rm", "-m", "512m", "--cpus", "0.5", "--hostname", "named", "-e", "WORD=said", "-u", "33",
        "-w", "/tmp", "--ulimit", "nofile=99:99", "--name", "asked", "-v", f"{tmp_path}:/data",
        "-v", f"{tmp_path}:/fixed:ro", "-v", f"{tmp_path / 'file'}:/one:ro", "busybox", "sh", "-c", script,
    )  # fmt: skip
    lines = done.stdout.decode().splitlines()
    assert lines[:2] == ["from the host", "a file"], done.stderr
    assert b"Read-only file system" in done.stderr and (tmp_path / "made").read_text() == "written\n"
    assert lines[2] == "1"
    assert 440_000 < int(lines[3].split()[1]) < 512 << 10
    assert lines[4:7] == ["named", "said", "33"] and "99" in lines[7] and lines[8] == "/tmp"
    assert done.returncode == 0
    assert not {one["id"] for one in one.status()["members"]} >= set(ids)


def test_a_volume_that_was_mounted_after_the_member_came_up_is_seen(one: Lab, tmp_path: Path) -> None:
    one.ready(1)
    before = one.status()["handed_out"]
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
    try:
        (tmp_path / "inside").write_text("late\n")
        assert one.cm.out("run", "--rm", "-v", f"{tmp_path}:/data", "busybox", "cat", "/data/inside") == "late"
        assert one.status()["handed_out"] == before + 1
    finally:  # and nobody holds it any more
        subprocess.run(["umount", tmp_path], check=True)


def test_its_network_is_there_or_is_not(one: Lab) -> None:
    one.ready(2)
    links = "ls /sys/class/net"
    assert one.cm.out("run", "--rm", "--network", "none", "busybox", "sh", "-c", links).split() == ["lo"]
    command = ("httpd", "-f", "-p", "80", "-h", "/etc")
    with detached(one.cm, "served", "-p", "127.0.0.1::80", command=command):
        port = int(one.cm.inspect("served")["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:  # until the server listens
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                connection.request("GET", "/hostname")
                assert connection.getresponse().read().decode().strip() == one.cm.inspect("served")["Id"][:12]
                break
            time.sleep(0.05)  # of that nobody outside is told
        else:
            raise AssertionError("nobody listens")


def test_it_is_a_container_like_any_other(one: Lab, tmp_path: Path) -> None:
    one.ready(1)
    with detached(one.cm, "usual", command=("sh", "-c", "echo begun; exec sleep 86400")) as container:
        assert "usual" in one.cm.out("ps")
        await_log(one.cm, "usual", "begun")
        (tmp_path / "file").write_text("copied\n")
        one.cm("cp", tmp_path / "file", "usual:/tmp/file", check=True)
        assert container.sh("cat /tmp/file") == "copied"
        one.cm("pause", "usual", check=True)
        one.cm("unpause", "usual", check=True)
        assert "usual" in one.cm.out("stats", "--no-stream", "usual")
        one.cm("kill", "usual", check=True)
        assert one.cm.out("wait", "usual") == "137"
        directory = one.env.root / "containers" / one.cm.inspect("usual")["Id"]
        assert {"keeper.log", "console.log", "log"} <= set(os.listdir(directory))


def test_a_command_that_is_not_there_fails_as_ever(one: Lab) -> None:
    one.ready(1)
    done = one.cm("run", "--rm", "busybox", "no-such-command")
    assert done.returncode == 127 and b"no-such-command" in done.stderr


def test_what_does_not_fit_starts_by_itself(one: Lab) -> None:
    one.ready(1)
    before = one.status()
    assert one.cm("run", "--rm", "-m", "128m", "busybox", "true", check=True).stderr == b""
    other = one.env.base / "other.toml"
    other.write_text(one.env.config.read_text() + "stop_timeout = 7\n")
    one.cm("run", "--rm", "busybox", "true", variables={"CASEMATE_CONFIG": str(other)}, check=True)
    after = one.status()
    assert after["handed_out"] == before["handed_out"] and after["refused"] == before["refused"] + 2


def test_what_cannot_be_costs_no_member(one: Lab, tmp_path: Path) -> None:
    one.ready(2)
    before = one.status()["handed_out"]
    with detached(one.cm, "taken", "--wall", "sentry"):
        for wrong, said in (
            (("--name", "taken", "busybox", "true"), b"name taken is used"),
            (("-v", f"{tmp_path}:/a", "-v", f"{tmp_path}:/a", "busybox", "true"), b"/a"),
            (("--entrypoint", "", "busybox"), b"command"),
        ):
            done = one.cm("run", "--rm", *wrong)
            assert done.returncode == 125 and said in done.stderr, done.stderr
    assert one.status()["handed_out"] == before


def test_a_door_that_dies_with_a_member_in_its_hand_leaves_nothing(one: Lab) -> None:
    one.ready(2)
    script = (
        "import os, sys; from casemate.config import load; from casemate.pool import client\n"
        "taken = client.take(load(), None, None, 0); print(taken.id, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=one.env.variables, capture_output=True, text=True, timeout=60, check=False
    )
    identifier = done.stdout.strip()
    assert done.returncode == -signal.SIGKILL and len(identifier) == 64, done.stderr
    _gone(one, identifier)


def test_a_member_that_is_killed_is_replaced_and_cleaned_up_after(one: Lab) -> None:
    victim = one.ready(2)[0]
    for pid in _keepers(one, victim):
        os.kill(pid, signal.SIGKILL)
    one.until(lambda status: victim not in {member["id"] for member in status["members"]})
    one.ready(2)
    _gone(one, victim)


def _gone(one: Lab, identifier: str) -> None:
    """Wait until nothing is named after a member any more."""

    def left() -> list[str]:
        run = [str(path) for path in one.env.run.glob(f"**/{identifier[:12]}*")]
        run += [str(path) for path in one.env.root.glob(f"*/{identifier}*")]
        run += [path for path in leaks_of_groups() if identifier in path]
        return run + [what for pid, what in processes(one.env).items() if identifier in _line(pid)]

    def leaks_of_groups() -> list[str]:
        return [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/casemate/{identifier}")]

    one.until(lambda status: not left())


def _line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


@pytest.mark.parametrize(("count", "size"), [(4, 2), pytest.param(10, 3, marks=pytest.mark.soak)])
def test_more_at_once_than_the_pool_has(count: int, size: int) -> None:
    with lab(size) as made:
        made.ready(size)
        running = [made.cm.popen("run", "--rm", "busybox", "hostname") for _ in range(count)]
        names = []
        for process in running:
            out, err = process.communicate(timeout=150)
            assert process.returncode == 0, err
            names.append(out.strip())
        assert len(set(names)) == count
        found = made.status()
        assert found["handed_out"] >= size and found["handed_out"] + found["refused"] == count
        assert made.end() == 0
        assert leaks(made.env) == []


def test_a_pool_that_is_killed_takes_its_members_along() -> None:
    with lab(1) as made:
        made.ready(1)
        with detached(made.cm, "mine") as mine:
            made.end(signal.SIGKILL)
            assert mine.sh("echo lives") == "lives"
        assert leaks(made.env) == []
        with pool(made.env, 1):  # what is left of the first does not stand in its way
            refused = made.cm("pool", "--size", "1")
            assert refused.returncode == 125 and b"runs already" in refused.stderr
        assert leaks(made.env) == []


@pytest.mark.soak
def test_whoever_is_killed_at_whatever_moment_nothing_stays() -> None:
    seed = int(os.environ.get("CASEMATE_KILL_SEED") or random.SystemRandom().randrange(1 << 31))
    choices = random.Random(seed)
    with environment(SETTINGS) as env:
        for number in range(int(os.environ.get("CASEMATE_KILL_ROUNDS") or 20)):
            whom = choices.choice(("door", "member", "machine", "pool"))
            after = choices.choice((0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6))
            what = f"CASEMATE_KILL_SEED={seed}, round {number}: {whom} after {after} s"
            with pool(env, 1) as made:
                identifier = made.ready(1)[0]
                with made.cm.popen("run", "--rm", "busybox", "true") as door:
                    time.sleep(after)  # that it is a random moment is the point
                    machine = f"casemate-{identifier[:12]}"
                    victims = {
                        "door": [door.pid],
                        "pool": [made.daemon.pid],
                        "member": _keepers(made, identifier),
                        "machine": [pid for pid, line in processes(env).items() if machine in line],
                    }[whom]
                    for pid in victims:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                    door.communicate(timeout=150)
                    assert whom != "pool" or door.returncode == 0, what
            made.cm("ps", "-a", check=True)
            made.cm.remove(*made.cm.out("ps", "-aq").split())
            assert leaks(env, patience=30) == [], what


def _keepers(one: Lab, identifier: str) -> list[int]:
    return [pid for pid, line in processes(one.env).items() if "casemate.keeper" in line and identifier in _line(pid)]

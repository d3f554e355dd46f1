"""kill -9 of everything that a sandbox is made of: ``ps`` tells the truth, ``rm -f`` works, nothing is left."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.vm.support import Casemate, Environment, control_groups, environment, leaks, links, mounts, processes, tables

PROGRAMS = {"keeper": "casemate.keeper", "vmm": "qemu-system", "files": "virtiofsd"}


@pytest.fixture(scope="module")
def own(env: Environment) -> Iterator[Casemate]:
    """An environment for this file alone, so that whatever is left is this file's doing."""
    with environment() as made:
        yield Casemate(made)


@pytest.fixture(autouse=True)
def clean(own: Casemate) -> Iterator[None]:
    """Nothing may be left after any test here."""
    yield
    for name in own.out("ps", "-aq").split():
        own("rm", "-f", name)
    assert leaks(own.env) == []


def pid_of(cm: Casemate, name: str, part: str) -> int:
    """The pid of the keeper, VMM or file server of the only container that runs."""
    pids = sorted(pid for pid, command in processes(cm.env).items() if PROGRAMS[part] in command)
    assert pids, f"{part} of {name} does not run: {processes(cm.env)}"
    return pids[0]


def kill_and_wait(pid: int) -> None:
    """SIGKILL, and wait until the kernel has taken the process down."""
    descriptor = os.pidfd_open(pid)
    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    assert select.select([descriptor], [], [], 30)[0], f"process {pid} does not end"
    os.close(descriptor)


def status(cm: Casemate, name: str) -> str:
    return str(cm.inspect(name)["State"]["Status"])


@pytest.mark.parametrize("part", ["keeper", "vmm", "files"])
def test_killed_part_of_a_running_sandbox(own: Casemate, part: str) -> None:
    own("run", "-d", "--name", "victim", "busybox", "sleep", "86400", check=True)
    assert status(own, "victim") == "running"
    with own.popen("wait", "victim") as waiter:
        try:
            kill_and_wait(pid_of(own, "victim", part))
            out, err = waiter.communicate(timeout=60)
        finally:
            waiter.kill()
        # wait(1) prints a status when the keeper could tell one, and says that it could not otherwise
        assert waiter.returncode != 0 or out.strip().isdigit(), (out, err)
    state = own.inspect("victim")["State"]
    assert state["Status"] == "exited"
    assert state["ExitCode"] != 0
    assert state["Error"], "the end has a reason"
    assert "victim" in own.out("ps", "-a")
    assert "victim" not in own.out("ps")
    assert processes(own.env) == {}
    assert (mounts(own.env), links(own.env), tables(own.env), control_groups(own.env)) == ([], [], [], [])
    again = own("exec", "victim", "true")
    assert again.returncode == 1 and b"not running" in again.stderr
    own("rm", "victim", check=True)


def test_dead_guest_kernel(own: Casemate) -> None:
    """The agent, which is the guest's first process, can end in no other way than with its kernel."""
    crash = "mkdir /fresh; mount -t proc proc /fresh; echo c > /fresh/sysrq-trigger; sleep 86400"
    options = ("--cap-add", "ALL", "--security-opt", "seccomp=unconfined")
    done = own("run", "--name", "victim", *options, "busybox", "sh", "-c", crash)
    assert done.returncode == 255
    assert b"Kernel panic" in done.stderr and len(done.stderr.splitlines()) == 1
    state = own.inspect("victim")["State"]
    assert state["Status"] == "exited" and "Kernel panic" in state["Error"]
    own("rm", "victim", check=True)


def test_killed_client_leaves_the_container(own: Casemate) -> None:
    with own.popen("run", "--name", "orphan", "busybox", "sh", "-c", "echo up; sleep 86400") as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"up\n"
        client.kill()
    assert status(own, "orphan") == "running"
    assert own.out("exec", "orphan", "echo", "still here") == "still here"
    own("rm", "-f", "orphan", check=True)


def test_keeper_killed_with_rm_takes_the_container_away(own: Casemate) -> None:
    own("run", "-d", "--rm", "--name", "brief", "busybox", "sleep", "86400", check=True)
    kill_and_wait(pid_of(own, "brief", "keeper"))
    assert own.out("ps", "-aq") == ""
    assert leaks(own.env) == []


def test_attached_client_is_told_when_the_sandbox_dies(own: Casemate) -> None:
    with own.popen("run", "--rm", "busybox", "sh", "-c", "echo up; sleep 86400") as client:
        assert client.stdout is not None and client.stderr is not None
        assert client.stdout.readline() == b"up\n"
        kill_and_wait(pid_of(own, "it", "vmm"))
        assert client.wait(60) == 137
        assert b"virtual machine" in client.stderr.read()


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_a_random_moment_of_a_start(own: Casemate, seed: int) -> None:
    """The moment is drawn, not waited for as if it were an event: any moment has to do."""
    rng = random.Random(seed)
    kill_one(own, rng, f"random-{seed}")


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_two_hundred_random_kills(own: Casemate) -> None:
    rng = random.Random(time.time_ns())
    for number in range(200):
        kill_one(own, rng, f"soak-{number}")
        assert leaks(own.env) == [], f"round {number}"


def kill_one(cm: Casemate, rng: random.Random, name: str) -> None:
    with cm.popen("run", "--name", name, "busybox", "sh", "-c", "sleep 1; echo done") as client:
        deadline = time.monotonic() + rng.uniform(0, 6)
        victim = rng.choice([*PROGRAMS.values(), "client"])
        while time.monotonic() < deadline and client.poll() is None:
            select.select([], [], [], 0.02)
        pids = [pid for pid, command in processes(cm.env).items() if victim in command]
        for pid in [client.pid] if victim == "client" else pids:
            try:
                kill_and_wait(pid)
            except ProcessLookupError:
                continue
        try:
            client.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            client.kill()
            raise AssertionError(f"the client hangs after {victim} was killed") from None
    for line in cm.out("ps", "-a", "--format", "json").splitlines():
        assert json.loads(line)["State"] != "running" or victim == "client", line
    cm("rm", "-f", name)
    assert name not in cm.out("ps", "-a")


def test_full_disk(own: Casemate, env: Environment) -> None:
    """A store without space: one line, status 125, nothing left; and rm still works."""
    with environment() as small:
        small.root.joinpath("guest").unlink()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600m,mode=711", "tmpfs", str(small.root)], check=True)
        try:
            (small.root / "guest").symlink_to((env.root / "guest").resolve())
            cm = Casemate(small)
            assert cm("run", "--rm", "busybox", "true", check=True).returncode == 0
            filler = small.root / "filler"
            with open(filler, "wb") as file:
                try:
                    while True:
                        file.write(bytes(1 << 16))
                        file.flush()
                except OSError:
                    pass
            done = cm("run", "--name", "nospace", "busybox", "true")
            assert done.returncode == 125, done
            assert len(done.stderr.splitlines()) == 1 and b"space" in done.stderr
            filler.unlink()
            assert cm.out("ps", "-aq") == ""
            assert cm("run", "--rm", "--name", "nospace", "busybox", "true").returncode == 0
        finally:
            subprocess.run(["umount", "-l", str(small.root)], check=True)


@pytest.mark.slow
def test_twenty_at_once(own: Casemate) -> None:
    own("run", "--rm", "busybox", "true", check=True)
    clients = [own.popen("run", "--rm", "busybox", "sh", "-c", f"echo {number}; exit {number}") for number in range(20)]
    problems = []
    for number, client in enumerate(clients):
        out, err = client.communicate(timeout=280)
        if (client.returncode, out) != (number, b"%d\n" % number):
            problems.append((number, client.returncode, out, err))
    assert problems == []
    assert own.out("ps", "-aq") == ""

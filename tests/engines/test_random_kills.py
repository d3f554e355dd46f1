"""kill -9 of anybody at any moment behind containerd and Docker: the engine removes the container, nothing is left."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests import kills
from tests.engines import engines
from tests.engines.engines import RUNC, Docker
from tests.engines.host import TOOLS, Host, Service, run
from tests.engines.images import BOX
from tests.kills import Arena, Kills, Process

NAMESPACE = "kills"
OURS = [runtime for runtime in engines.RUNTIMES if runtime != "runc"]
HELD = ("stand-in", "keeper", "machine", "file server", "runtime", "shim")
WHERE = (
    *((victim, step) for victim in HELD for step in ("create", "start", "exec", "delete")),
    ("exec stand-in", "exec"),
    *(("agent", step) for step in ("start", "exec", "delete")),
)
BEHIND_THE_SENTRY = (
    *(pair for pair in WHERE if pair[0] != "agent"),
    *(("program", step) for step in ("create", "start", "exec", "delete")),
)
NEW = (
    r"run/(containerd|docker)|.*\.(log|lock|pid)"
    r"|run/casemate/(runtime(/\.pods)?|(nursery|twins|boots)(/.*)?|uids(/owners)?|probe-.*)"
    r"|docker-exec/netns/\w+|docker-exec/libnetwork/\w+\.sock|run/containerd/fifo(/.*)?"
    r"|docker-exec/containerd/\w+(/[\w-]+-std(in|out|err))?"
)
"""What the first container leaves for the next ones (an original may be ready any time later), or comes and goes with
daemons. dockerd unmounts a namespace at once, and takes away the empty file that it was mounted on after a minute; each
one has a socket of its own. The FIFOs are ctr's and dockerd's, which make and remove them; dockerd forgets some, with
any runtime, where containerd was killed at the wrong moment."""


class Engine(Arena):
    """An engine on a host, with casemate or, as the control, with runc.

    Arguments:
        host: the host.
        services: its daemons in the order in which they have to be started.
        runtime: ``casemate``, ``sentry`` or ``runc``.
    """

    wait_status = "created"

    def __init__(self, host: Host, services: tuple[Service, ...], runtime: str, variables: dict[str, str]) -> None:
        super().__init__(host.base / f"said-{runtime}", variables)
        self.host = host
        self.services = services
        self._step = ""
        self._depth = len(kills.numbers(host.pid)) - 1
        self.ours = runtime != "runc"
        self.sentry = runtime == "sentry"
        self.script = kills.crash_script() if runtime == "casemate" else kills.PLAIN
        names = tuple(service.name for service in services)
        where = BEHIND_THE_SENTRY if self.sentry else WHERE
        self.pairs = where + tuple((one, step) for one in (*names, "client") for step in ("create", "exec", "delete"))
        if not self.ours:  # nothing on record tells how far it is
            self.wait_status = ""
            self.pairs = tuple(pair for pair in self.pairs if pair[1] != "start")

    @property
    def roots(self) -> tuple[Path, ...]:
        """Where the runtime keeps its state: paths of this process's."""
        raise NotImplementedError

    def scene(self) -> list[Process]:
        """Everybody in the host's control groups."""
        return kills.processes(self.host.base.name)

    def records(self) -> list[dict[str, Any]]:
        """What is in all roots: no other container is there."""
        return [record for root in self.roots for record in kills.records(root)]

    def number(self, process: Process) -> int:
        """Its number on the host."""
        found = kills.numbers(process.pid)
        return found[self._depth] if len(found) > self._depth else 0

    def daemon(self, victim: str) -> list[int]:
        """A daemon's process."""
        return [service.pid() for service in self.services if service.name == victim and service.alive()]

    def find(self, victim: str, name: str, command: subprocess.Popen[bytes] | None) -> list[int]:
        """With runc there is the container's own process in place of all that holds a machine."""
        if self.ours or victim in ("client", "containerd", "dockerd", "shim"):
            return super().find(victim, name, command)
        scene = self.scene()
        runc = [one.pid for one in scene if f"{RUNC} " in one.words or "runc --root" in one.words]
        if victim == "runtime":
            # Of a start that is done together with create the second command is meant.
            return [one.pid for one in scene if one.pid in runc and (self._step != "start" or " start " in one.words)]
        inner = [one.pid for one in scene if len(kills.numbers(one.pid)) > self._depth + 1]
        return inner or [one.pid for one in scene if one.parent in runc]

    def recover(self, victim: str) -> None:
        """Start again what has ended; dockerd may end by itself without containerd."""
        for service in self.services:
            if service.name == victim and service.process is not None:
                service.process.wait(30)
            service.revive()

    def clear(self, left: set[str]) -> None:
        """End processes that have stayed: containerd clears up after shims that it does not find when it starts."""
        daemons = {one for service in self.services for one in self.daemon(service.name)}
        for one in self.scene():
            if one.pid not in daemons and f"process {one.words}" in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGKILL)
        for service in reversed(self.services):
            service.end()
        self.recover("")

    def snapshot(self) -> set[str]:
        """Processes, mounts, links, control groups, sockets, records, leases, and what daemons have of containers."""
        base, pid = self.host.base, self.host.pid
        daemons = {one for service in self.services for one in self.daemon(service.name)}
        scene = self.scene()
        passing = _waiting(scene) | daemons
        found = {f"process {one.words}" for one in scene if one.pid not in passing and not _hosts(one, pid)}
        found |= kills.mounts(pid) | kills.groups(*self.host.groups)
        found |= {f"link {link}" for link in self.host.inside(_links)}
        outside = Path(f"/proc/{pid}/root/run")
        tops = (outside, base / "c", base / "docker-exec", base / "docker/containers", base / "cni-state")
        return found | kills.files(*tops, keep=NEW)


class Containerd(Engine):
    """``ctr``, containerd, our shim; containerd's own is the control."""

    def __init__(self, host: Host, containerd: Service, runtime: str) -> None:
        super().__init__(host, (containerd,), runtime, host.variables)
        self.name = f"containerd with {runtime}"
        self.options = ["--runtime", "io.containerd.casemate.v2", "--privileged"]
        if self.sentry:
            self.options += ["--runtime-config-path", str(engines.sentry_options(host))]
        if not self.ours:
            self.options = ["--runtime", "io.containerd.runc.v2", "--runc-binary", str(RUNC)]

    @property
    def roots(self) -> tuple[Path, ...]:
        """The shim's."""
        return (Path(f"/proc/{self.host.pid}/root/run/containerd/casemate/{NAMESPACE}"),)

    def ctr(self, *words: str) -> list[str]:
        """A command line."""
        program = str(TOOLS / "bin" / "ctr")
        return self.host.command(program, "-a", str(self.host.base / "c.sock"), "-n", NAMESPACE, *words)

    def call(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """Run one to its end."""
        return run(self.ctr(*words), None, self.limit, False, self.host.variables)

    def prepare(self, victim: str, step: str, name: str) -> None:
        """Up to a container that runs."""
        if step in ("exec", "delete"):
            done = self.call("run", "-d", *self.options, BOX, name, "sh", "-c", self.script)
            assert done.returncode == 0, done.stderr

    def begin(self, step: str, name: str) -> subprocess.Popen[bytes]:
        """One command; ``run`` is containerd's create and start."""
        self._step = step
        words = {
            "create": ["run", "-d", *self.options, BOX, name, "sh", "-c", self.script],
            "start": ["run", "-d", *self.options, BOX, name, "sh", "-c", self.script],
            "exec": ["task", "exec", "--exec-id", f"x{time.monotonic_ns()}", name, "sh", "-c", "sleep 0.3"],
            "delete": ["task", "delete", "--force", name],
        }
        return self.command(self.ctr(*words[step]))

    def remove(self, name: str) -> list[str]:
        """``task delete --force`` and ``container delete``, as far as containerd knows them."""
        problems = []
        for kind in ("task", "container"):
            if name in self._known(kind):
                done = self.call(kind, "delete", *(["--force"] if kind == "task" else []), name)
                # It may clear up after a shim that has died while it is told to remove the task.
                if done.returncode != 0 and name in self._known(kind):
                    problems.append(f"ctr {kind} delete: {done.stderr.decode()[-600:]}")
                    self.call(kind, "delete", *(["--force"] if kind == "task" else []), name)
                if name in self._known(kind):
                    problems.append(f"ctr {kind} delete leaves it")
        return problems

    def _known(self, kind: str) -> list[str]:
        done = self.call(kind, "ls", "-q")
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().split()


class Dockerd(Engine):
    """``docker``, dockerd, containerd, its shim for runc, and ``casemate-runtime`` or runc.

    When the runtime's ``start`` fails, dockerd deletes containerd's container but not its task, which makes that fail;
    shim and ``runc init`` are left with runc. So it is when the start fails because what it asks dies. When containerd
    dies while it creates a task and dockerd hears of that, dockerd forgets the container, and the containerd that comes
    next finds it in good order.
    """

    forgets = (
        ("runtime", "start"), ("machine", "start"), ("file server", "start"), ("keeper", "start"), ("program", "start"),
        ("containerd", "create"),
    )  # fmt: skip
    holder = re.compile(r"process \S*containerd-shim-runc-v2 .*")
    parts = re.compile(
        r"process \S*containerd-shim-runc-v2 .*|file run/containerd/s/\w+|file c/io\.containerd\.runtime\.v2\.task/.*"
    )

    def __init__(self, host: Host, services: tuple[Service, ...], runtime: str) -> None:
        self.cli = Docker(host, runtime)
        super().__init__(host, services, runtime, self.cli.variables)
        self.name = f"Docker with {runtime}"

    @property
    def roots(self) -> tuple[Path, ...]:
        """What dockerd tells the runtime as its ``--root``."""
        return tuple((self.host.base / "docker-exec").glob("runtime-*/moby"))

    def prepare(self, victim: str, step: str, name: str) -> None:
        """Up to a container that runs."""
        if step in ("exec", "delete"):
            self.cli.out(*self._words("create", name), timeout=self.limit)

    def begin(self, step: str, name: str) -> subprocess.Popen[bytes]:
        """One command; ``run`` is dockerd's create and start, and the runtime's."""
        self._step = step
        return self.command(self.cli.command(*self._words(step, name)))

    def remove(self, name: str) -> list[str]:
        """``docker rm -f``, if dockerd knows it."""
        problems = []
        if name in self._known():
            done = self.cli("rm", "-f", name, timeout=self.limit)
            said = done.stderr.decode()[-600:]
            if done.returncode != 0 and "is already in progress" not in said:
                problems.append(f"docker rm -f: {said}")
                self.cli("rm", "-f", name, timeout=self.limit)
            try:
                kills.wait(lambda: name not in self._known())
            except TimeoutError:
                problems.append("docker rm -f leaves it")
        return problems

    def snapshot(self) -> set[str]:
        """Its networks' endpoints too."""
        text = self.cli.out("network", "inspect", "bridge", "--format", "{{json .Containers}}")
        return super().snapshot() | ({f"endpoints {text}"} if text != "{}" else set())

    def _known(self) -> list[str]:
        return self.cli.out("ps", "-a", "--format", "{{.Names}}").split()

    def _words(self, step: str, name: str) -> list[str]:
        options = ["--security-opt", "systempaths=unconfined"] if self.ours else []
        made = ["run", "-d", "--name", name, *options, BOX, "sh", "-c", self.script]
        words = {"exec": ["exec", name, "sh", "-c", "sleep 0.3"], "delete": ["rm", "-f", name]}
        return words.get(step, made)


def _links() -> list[str]:
    """Network links of the calling thread's namespace, but for what each has from its start."""
    done = subprocess.run(["ip", "-o", "link", "show"], capture_output=True, text=True, check=True)
    return [line.split()[1].rstrip(":") for line in done.stdout.splitlines()]


def _hosts(process: Process, first: int) -> bool:
    """Whether a process belongs to the host itself or to a test's own command."""
    return process.pid == first or process.parent == first and process.words == "cat"


def _waiting(scene: list[Process]) -> set[int]:
    """Those that wait for the next start: who has an original, that one and copies that are nobody's yet, and where
    keepers come from, which stays for as long as that."""
    found = [one.pid for one in scene if re.search(r" -P -m casemate\.(twins .*|(pod|keeper) nursery)$", one.words)]
    for pid in found:
        found += [one.pid for one in scene if one.parent == pid]
    return set(found)


def _containerd(host: Host, containerd: Service, runtime: str) -> Kills:
    arena = Containerd(host, containerd, runtime)
    if not arena.call("images", "ls", "-q").stdout:
        done = arena.call("images", "import", str(engines.images(host)))
        assert done.returncode == 0, done.stderr
    return Kills(arena, lambda: Containerd(host, containerd, "runc"))


def _docker(host: Host, containerd: Service, dockerd: Service, runtime: str) -> Kills:
    services = (containerd, dockerd)
    return Kills(Dockerd(host, services, runtime), lambda: Dockerd(host, services, "runc"))


@pytest.mark.parametrize("runtime", OURS)
def test_anybody_at_any_moment_behind_containerd(engine_host: Host, containerd: Service, runtime: str) -> None:
    _containerd(engine_host, containerd, runtime).run(5, seed=1)


@pytest.mark.parametrize("runtime", OURS)
def test_anybody_at_any_moment_behind_docker(
    engine_host: Host, containerd: Service, dockerd: Service, runtime: str
) -> None:
    _docker(engine_host, containerd, dockerd, runtime).run(5, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("runtime", OURS)
def test_anybody_at_70_moments_behind_containerd(engine_host: Host, containerd: Service, runtime: str) -> None:
    _containerd(engine_host, containerd, runtime).run(70)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("runtime", OURS)
def test_anybody_at_70_moments_behind_docker(
    engine_host: Host, containerd: Service, dockerd: Service, runtime: str
) -> None:
    _docker(engine_host, containerd, dockerd, runtime).run(70)

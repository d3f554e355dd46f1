"""A host of its own for container engines: nothing that they do there is to be seen on the machine.

It has its own namespaces (network, mounts, processes, control groups, names), layers over ``/etc``, ``/opt``,
``/usr/local`` and ``/var/lib``, and an empty ``/run``. When this process ends, however it does, all of that ends;
what stays then are empty control groups. Directories of the engines are below ``base``, which is the same inside and
outside, so that their sockets can be used from outside too.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from casemate.host import namespaces
from tests.vm.support import CACHE, CONSOLE_SCRIPT, Environment, environment
from tests.vm.world import World, world

T = TypeVar("T")
TOOLS = CACHE / "tools"
SCRIPT = Path(__file__).parent / "host.sh"
PROGRAMS = ("casemate", "casemate-runtime", "containerd-shim-casemate-v2")
"""Ours, as an engine finds them on its PATH."""


@dataclass
class Host:
    """One host. ``pid`` is its first process, as this process sees it."""

    env: Environment
    pid: int = 0
    groups: tuple[Path, ...] = ()
    """Its control groups, one for each hierarchy, by their paths outside."""
    services: list[Service] = field(default_factory=list)

    @property
    def base(self) -> Path:
        """The directory for everything."""
        return self.env.base

    @property
    def bin(self) -> Path:
        """Links to our programs."""
        return self.base / "bin"

    @property
    def variables(self) -> dict[str, str]:
        """The environment of processes there. Nothing says where casemate keeps things: its configuration file does."""
        path = f"{self.bin}:{TOOLS / 'bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        home = self.base / "home"
        return {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", "TERM": "xterm", "CASEMATE_CACHE": str(CACHE)}

    def command(self, *words: str | os.PathLike[str]) -> list[str]:
        """A command line that runs ``words`` there, in its namespaces and control groups."""
        join = "for group in {}; do echo $$ >$group/cgroup.procs; done; exec nsenter -t {} -m -n -p -C -u -i -- \"$@\""
        script = join.format(" ".join(str(group) for group in self.groups), self.pid)
        return ["sh", "-ec", script, "sh", *(os.fspath(word) for word in words)]

    def __call__(
        self,
        *words: str | os.PathLike[str],
        input: bytes | None = None,
        timeout: float = 120,
        check: bool = False,
        variables: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command there to its end; as :meth:`tests.vm.support.Casemate.__call__`."""
        return run(self.command(*words), input, timeout, check, self.variables | (variables or {}))

    def out(self, *words: str | os.PathLike[str], timeout: float = 120, input: bytes | None = None) -> str:
        """Run a command that must succeed; its standard output without the last line's end."""
        return self(*words, timeout=timeout, input=input, check=True).stdout.decode().rstrip("\n")

    def popen(self, *words: str | os.PathLike[str], **rest: Any) -> subprocess.Popen[bytes]:
        """Start a command there, in a process group of its own; see :func:`tests.engines.host.stop`."""
        return subprocess.Popen(self.command(*words), env=self.variables, start_new_session=True, **rest)

    def inside(self, function: Callable[[], T]) -> T:
        """Call a function of this process's in the host's network."""
        netns = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return namespaces.in_netns(netns, function)
        finally:
            os.close(netns)

    @contextlib.contextmanager
    def world(self) -> Iterator[World]:
        """A world beyond this host, with the name server that the host's configuration names."""
        made = world(0)
        try:
            yield self.inside(made.__enter__)
        finally:
            self.inside(lambda: made.__exit__(None, None, None))

    def serve(self, name: str, *words: str | os.PathLike[str], ready: Path, patience: float = 60) -> Service:
        """Start a service there and wait until its socket answers; its log is ``BASE/NAME.log``."""
        service = Service(self, name, tuple(os.fspath(word) for word in words), ready)
        service.start(patience)
        self.services.append(service)
        return service

    def processes(self) -> dict[int, str]:
        """Processes there but for its first two, by their pids inside; services are among them."""
        script = (
            'for p in /proc/[0-9]*; do read -r line <"$p/cmdline"; '
            'echo "${p#/proc/} $(tr "\\0" " " <"$p/cmdline" | cut -c1-150)"; done 2>/dev/null'
        )
        found = {}
        for line in self.out("bash", "-c", script).splitlines():
            pid, _, words = line.partition(" ")
            if not (pid == "1" or words.strip() in ("cat", "") or "bash -c for p in" in words):
                found[int(pid)] = words.strip()
        return found

    def leaks(self, patience: float = 15) -> list[str]:
        """What is still there when all engines have ended and nothing should be, one line each.

        Arguments:
            patience: seconds for what is about to end anyway to do so.
        """
        self.end_twins()
        deadline = time.monotonic() + patience
        while True:
            found = [f"process {pid}: {words}" for pid, words in self.processes().items()]
            found += [f"mount {line}" for line in self.mounts()]
            found += [f"in /run/casemate: {path}" for path in self.left()]
            if not found or time.monotonic() > deadline:
                return found
            # There is no one event for "all of it is gone"; this only looks again.
            time.sleep(0.2)

    def end_twins(self) -> None:
        """Have the machines that others are copied from end: they are no sandbox's and wait for the next start."""
        for pid in self.originals():
            self("kill", str(pid))

    def originals(self) -> list[int]:
        """Processes there that have one, or make it."""
        return [pid for pid, words in self.processes().items() if "-m casemate.twins " in words]

    def mounts(self) -> list[str]:
        """Mounts there that are below ``base``, but for those of the host itself."""
        lines = self.out("cat", "/proc/self/mountinfo").splitlines()
        # dockerd holds the host's own network namespace so, from the first --network host on.
        kept = (f"{self.env.root}/guest", f"{self.base}/docker-exec/netns/default")
        return [line for line in lines if line.split()[4].startswith(str(self.base)) and line.split()[4] not in kept]

    def left(self) -> list[str]:
        """What casemate has left of sandboxes and containers below its run directory."""
        script = (
            "cd /run/casemate && find . -mindepth 1 -maxdepth 2 -printf '%P\\n' &&"
            " if [ -d ipam ]; then find ipam -mindepth 2 ! -name owners ! -name '.*'; fi"
        )
        found = self("sh", "-c", script).stdout.decode()
        kept = re.compile(
            r"runtime|runtime/\.pods|nursery|twins|ipam(/[^/]*)?|uids|uids/owners|boots(/.*)?|.*\.lock|probe-.*\.json"
        )
        return [path for path in found.splitlines() if not kept.fullmatch(path)]


@dataclass
class Service:
    """A daemon in a host."""

    host: Host
    name: str
    words: tuple[str, ...]
    ready: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What it has said."""
        return self.host.base / f"{self.name}.log"

    def start(self, patience: float = 60) -> None:
        """Start it, and wait until one can connect to its socket."""
        assert self.process is None
        with contextlib.suppress(FileNotFoundError):
            self.ready.unlink()
        with open(self.log, "ab") as log:
            self.process = self.host.popen(*self.words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + patience
        while not _answers(self.ready):
            assert self.process.poll() is None, f"{self.name} has ended:\n{self.tail()}"
            assert time.monotonic() < deadline, f"{self.name} does not answer:\n{self.tail()}"
            time.sleep(0.05)  # a socket that comes to be has no event

    def tail(self, size: int = 4000) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-size:]

    def pid(self) -> int:
        """The daemon's process as this process sees it: the one that nsenter(1) started."""
        assert self.process is not None
        children = _children(self.process.pid)
        assert len(children) == 1, children
        return children[0]

    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None and bool(_children(self.process.pid))

    def send(self, number: int) -> None:
        """Send the daemon a signal."""
        os.kill(self.pid(), number)

    def end(self, number: int = signal.SIGTERM, timeout: float = 60) -> None:
        """End it by a signal and wait until it has."""
        if self.process is None:
            return
        if self.process.poll() is None:
            with contextlib.suppress(AssertionError, ProcessLookupError):
                self.send(number)
        self.process.wait(timeout)
        self.process = None

    def revive(self) -> None:
        """Start it unless it runs; for ends of tests that may have failed."""
        if self.process is None or self.process.poll() is not None:
            self.process = None
            self.start()

    def restart(self, number: int = signal.SIGTERM) -> None:
        """End it and start it again."""
        self.end(number)
        self.start()


def _answers(path: Path) -> bool:
    import socket

    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _children(pid: int) -> list[int]:
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):
                if int((directory / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(directory.name))
    return found


def run(
    command: Sequence[str], input: bytes | None, timeout: float, check: bool, variables: dict[str, str]
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end; over ``timeout`` seconds it is killed with all its children and the test fails."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=variables,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(b"" if input is None else input, timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        said = (out[-1500:] + err[-1500:]).decode(errors="replace")
        raise AssertionError(f"{_short(command)}: not done after {timeout} s\n{said}") from None
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    if check and process.returncode != 0:
        said = (out[-1500:] + err[-1500:]).decode(errors="replace")
        raise AssertionError(f"{_short(command)}: exit status {process.returncode}\n{said}")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _short(command: Sequence[str]) -> str:
    words = list(command)
    if "sh" in words[3:4]:
        words = words[4:]
    return " ".join(words)[:500]


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill what :meth:`Host.popen` started, with all its children that stayed in its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


@contextlib.contextmanager
def host(settings: str = "", *, copies: bool = False) -> Iterator[Host]:
    """Make a host, and take it away again; says nothing about leaks, see :meth:`Host.leaks`.

    Arguments:
        settings: more lines for casemate's configuration file there.
        copies: machines may be copies of one that stands still.
    """
    with environment(settings, copies=copies) as env:
        made = Host(env)
        (env.root / "guest").unlink()  # the real one is mounted there
        for name in ("bin", "home"):
            (env.base / name).mkdir()
        for name in PROGRAMS:
            (env.base / "bin" / name).symlink_to(CONSOLE_SCRIPT.parent / name)
        process = None
        try:
            made.groups = tuple(_groups(env.base.name))
            process = _begin(made)
            made.pid = _children(process.pid)[0]
            _configure(made)
            yield made
        finally:
            for service in reversed(made.services):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    service.end(signal.SIGKILL, 20)
            if process is not None:
                _end(process)
            left = [group for group in made.groups if not _remove(group)]
            shutil.rmtree(env.base / "layers", ignore_errors=True)
            assert not left, f"control groups still hold processes: {left}"


def _begin(made: Host) -> subprocess.Popen[bytes]:
    guest = Path(os.environ.get("CASEMATE_ROOT") or "/var/lib/casemate") / "guest"
    join = "for group in {}; do echo $$ >$group/cgroup.procs; done; exec unshare {} -- \"$@\""
    options = "--mount --net --pid --cgroup --uts --ipc --fork --kill-child"
    script = join.format(" ".join(str(group) for group in made.groups), options)
    process = subprocess.Popen(
        ["sh", "-ec", script, "sh", "bash", SCRIPT, made.base, guest, TOOLS / "bin" / "tini"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=made.variables,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = b""
    while not said.endswith(b"ready\n"):
        ready, _, _ = select.select([process.stdout], [], [], 60)
        piece = os.read(process.stdout.fileno(), 65536) if ready else b""
        if not piece:
            _end(process)
            raise AssertionError(f"no host for engines: {said.decode(errors='replace')}")
        said += piece
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    for child in _children(process.pid):  # the first process: all others go with it
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()
    process.wait(60)


def _configure(made: Host) -> None:
    """The configuration of casemate there: in its default place, as on a host where it is installed."""
    text = made.env.config.read_text() + f'root = "{made.env.root}"\n'
    script = "mkdir -p /etc/casemate && cat >/etc/casemate/config.toml"
    made("sh", "-c", script, input=text.encode(), check=True)


def _groups(name: str) -> Iterator[Path]:
    """Make a control group in every hierarchy."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split()[:3]
        if kind not in ("cgroup", "cgroup2"):
            continue
        top = Path(left.split()[4])
        group = top / name
        group.mkdir()
        if "cpuset" in options.split(","):  # a new group of version 1 has none, and takes no process then
            for key in ("cpuset.cpus", "cpuset.mems"):
                (group / key).write_text((top / key).read_text())
        yield group


def _remove(group: Path) -> bool:
    """Remove a control group and those below it, as soon as the kernel has forgotten their last processes."""
    deadline = time.monotonic() + 20
    while group.exists():
        for top, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(top)
        if group.exists():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)  # an ended process leaves its group without an event
    return True

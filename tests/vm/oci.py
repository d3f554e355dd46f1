"""Bundles and the OCI command line, ours or runc's, as an engine uses it.

``Runtime`` runs either program; with runc it is the control: what a test finds there is what engines are used to.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tests.vm.support import CACHE, Environment

PROGRAM = Path(sys.executable).parent / "casemate-runtime"
BUSYBOX = Path("/bin/busybox")
PATIENCE = 120.0
"""Seconds that anything may take which has to happen."""
_numbers = itertools.count(1)


class Bundle:
    """A bundle with busybox in its root filesystem.

    Arguments:
        path: its directory, to be made.
        words: the command.
    """

    def __init__(self, path: Path, *words: str) -> None:
        self.path = path
        self.rootfs = path / "rootfs"
        for name in ("bin", "dev", "etc", "proc", "root", "sys", "tmp", "var"):
            (self.rootfs / name).mkdir(parents=True)
        (self.rootfs / "tmp").chmod(0o1777)
        shutil.copy(BUSYBOX, self.rootfs / "bin/busybox")
        for applet in subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split():
            if applet != "busybox":
                (self.rootfs / "bin" / applet).symlink_to("busybox")
        (self.rootfs / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n")
        (self.rootfs / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
        self.spec = template()
        self.spec["process"]["args"] = list(words) or ["sleep", "86400"]

    def write(self) -> Path:
        """Write ``config.json``; the bundle's path."""
        (self.path / "config.json").write_text(json.dumps(self.spec))
        return self.path

    def mount(self, destination: str, source: str | os.PathLike[str], *options: str) -> None:
        """Add a bind mount."""
        entry = {"destination": destination, "type": "bind", "source": os.fspath(source), "options": list(options)}
        self.spec["mounts"].append(entry)


def template() -> dict[str, Any]:
    """A specification that both runtimes take, without a terminal and with a root that can be written to."""
    from casemate.runtime_cli.spec import template

    made = copy.deepcopy(template())
    made["process"]["terminal"] = False
    made["process"]["noNewPrivileges"] = False
    made["root"]["readonly"] = False
    made["mounts"] = [mount for mount in made["mounts"] if mount["destination"] != "/sys/fs/cgroup"]
    return made


class Container:
    """One that was created, with its monitor (:mod:`tests.vm.reaper`)."""

    def __init__(self, runtime: Runtime, id: str, monitor: subprocess.Popen[bytes], directory: Path) -> None:
        self.runtime = runtime
        self.id = id
        self._monitor = monitor
        self._directory = directory
        self.pid = int((directory / "pid").read_text())

    def __call__(self, command: str, *words: str, check: bool = True, **rest: Any) -> str:
        """Run a command on the container, ``container("kill", "--all", "KILL")``; what it printed. Options that come
        first go before its id, where runc takes them always; their values stand behind an equals sign."""
        options = list(itertools.takewhile(lambda word: word.startswith("-"), words))
        done = self.runtime(command, *options, self.id, *words[len(options) :], check=check, **rest)
        return done.stdout.decode()

    def start(self) -> Container:
        """Start it."""
        self("start")
        return self

    def state(self) -> dict[str, Any]:
        """What ``state`` tells."""
        value: dict[str, Any] = json.loads(self("state"))
        return value

    def sh(self, script: str, **rest: Any) -> str:
        """Run a shell script in it that must succeed; its output without the last line's end."""
        return self("exec", "sh", "-c", script, **rest).rstrip("\n")

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit status of its process on the host, once that has ended."""
        return self._monitor.wait(timeout)

    @property
    def ended(self) -> bool:
        """Whether that has ended."""
        return self._monitor.poll() is not None

    def output(self) -> str:
        """What it has written so far, errors too."""
        return (self._directory / "output").read_text(errors="replace")

    def wait_for(self, text: str) -> str:
        """Wait for its output to hold a text; all output until then."""
        found = until(lambda: text in self.output() and self.output(), f"{text!r} in {self.output()!r}")
        assert isinstance(found, str)
        return found

    def remove(self) -> None:
        """Take it away, whatever it does."""
        self.runtime("delete", "--force", self.id, timeout=PATIENCE)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._monitor.wait(30)
        if self._monitor.poll() is None:
            self._monitor.kill()
            self._monitor.wait()


class Failed(Exception):
    """A command that was to create a container did not; ``said`` is what it complained with, ``log`` its log's last."""

    def __init__(self, status: int, said: str, log: str) -> None:
        super().__init__(f"status {status}: {said}")
        self.status = status
        self.said = said
        self.log = log


class Runtime:
    """Runs an OCI runtime with a root of its own.

    Arguments:
        kind: ``casemate`` or ``runc``.
        env: where casemate keeps everything.
        directory: for logs, bundles and whatever else.
    """

    def __init__(self, kind: str, env: Environment, directory: Path) -> None:
        self.kind = kind
        self.env = env
        self.directory = directory
        self.mark = f"{env.base.name}-{kind}-{next(_numbers)}"
        self.root = env.run / self.mark
        self.log = directory / "log.json"
        self.containers: list[Container] = []

    @property
    def name(self) -> str:
        """What it calls itself in its messages."""
        return "casemate-runtime" if self.kind == "casemate" else "runc"

    def words(self, *words: str | os.PathLike[str], globals: tuple[str, ...] = ()) -> list[str]:
        """A whole command line."""
        program = PROGRAM if self.kind == "casemate" else CACHE / "tools/bin/runc"
        own = ("--root", str(self.root), "--log", str(self.log), "--log-format", "json", *globals)
        return [str(program), *own, *(os.fspath(word) for word in words)]

    def __call__(
        self,
        *words: str | os.PathLike[str],
        input: bytes | None = None,
        check: bool = False,
        timeout: float = PATIENCE,
        globals: tuple[str, ...] = (),
        **rest: Any,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end; with ``check`` it must succeed."""
        done = subprocess.run(
            self.words(*words, globals=globals),
            input=b"" if input is None else input,
            capture_output=True,
            timeout=timeout,
            env=self.env.variables,
            **rest,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{self.name} {words}: status {done.returncode}, {done.stderr.decode()}")
        return done

    def fails(self, *words: str | os.PathLike[str], status: int = 1, **rest: Any) -> str:
        """Run a command that must fail; the message in its log."""
        done = self(*words, **rest)
        assert done.returncode == status, (words, done)
        message = self.last_error()
        assert message in done.stderr.decode()
        return message

    def last_error(self) -> str:
        """The message of the log's last line, which must be an error."""
        entry = json.loads(self.log.read_text().splitlines()[-1])
        assert entry["level"] == "error" and set(entry) == {"level", "msg", "time"}, entry
        return str(entry["msg"])

    def bundle(self, *words: str) -> Bundle:
        """A new bundle."""
        return Bundle(self.directory / f"b{next(_numbers)}", *words)

    def new_id(self) -> str:
        """An id that no other container on this machine has: it names a control group."""
        return f"{self.mark}-{next(_numbers)}"

    def create(
        self,
        bundle: Bundle,
        *options: str,
        id: str = "",
        command: str = "create",
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        globals: tuple[str, ...] = (),
    ) -> Container:
        """Create a container under a monitor.

        Raises:
            Failed: it was not created.
        """
        id = id or self.new_id()
        bundle.spec["linux"].setdefault("cgroupsPath", f"/{id}")
        words = [command, "--bundle", str(bundle.write())]
        return self.monitored(id, [*words, *options], [id], stdin, globals)

    def monitored(
        self,
        id: str,
        before: list[str],
        after: list[str],
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        globals: tuple[str, ...] = (),
    ) -> Container:
        """Run a command that leaves a process behind, under a monitor: ``before``, ``--pid-file``, ``after``."""
        directory = self.directory / f"m{next(_numbers)}"
        directory.mkdir()
        pid_file = str(directory / "pid")
        reader, writer = os.pipe()
        with open(directory / "output", "wb") as output:
            command = self.words(*before, "--pid-file", pid_file, *after, globals=globals)
            monitor = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("reaper.py")), str(writer), pid_file, *command],
                stdin=stdin,
                stdout=output,
                stderr=output,
                pass_fds=(writer,),
                env=self.env.variables,
            )
        os.close(writer)
        with open(reader) as file:
            status = int(file.read() or "255")
        if status != 0:
            monitor.wait()
            raise Failed(status, (directory / "output").read_text(), self.last_error())
        made = Container(self, id, monitor, directory)
        if before[0] != "exec":
            self.containers.append(made)
        return made

    def clear(self) -> None:
        """Take all containers away."""
        for container in self.containers:
            container.remove()
        self.containers.clear()


def until(found: Any, what: str, patience: float = PATIENCE) -> Any:
    """Look until ``found()`` is true; its value. For what has no event that a test could wait for."""
    deadline = time.monotonic() + patience
    while not (value := found()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience:g} s: {what}")
        time.sleep(0.02)
    return value


def left(runtime: Runtime) -> list[str]:
    """What is on record or in control groups although every container was deleted."""
    found = []
    if runtime.root.is_dir():
        for path in runtime.root.iterdir():
            found += [f"{path}/{name}" for name in os.listdir(path)] if path.name == ".pods" else [str(path)]
    for top, names, _ in os.walk("/sys/fs/cgroup"):
        found += [os.path.join(top, name) for name in names if f"{runtime.mark}-" in name]
    return found


@contextlib.contextmanager
def runtime(kind: str, env: Environment, directory: Path) -> Iterator[Runtime]:
    """A runtime for a while; nothing may be left of it then."""
    made = Runtime(kind, env, directory)
    try:
        yield made
    finally:
        made.clear()
    # The keeper tells who waits for a container before it has given back the last of what it had.
    until(lambda: not left(made), f"left behind: {left(made)}", 30)

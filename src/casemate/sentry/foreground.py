"""``casemate do``: one program behind a sentry in the foreground, with the caller's own standard files."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from casemate.gofer import launch
from casemate.gofer.launch import Tree
from casemate.late import Logger
from casemate.protocol.wire import RequestFailed
from casemate.sentry import isolation, world
from casemate.sentry.container import Container
from casemate.sentry.kernel import Kernel
from casemate.sentry.platform import choose
from casemate.sentry.signals.info import SI_USER, SigInfo
from casemate.sentry.signals.send import send
from casemate.sentry.vfs.console import Console, HostTerminal
from casemate.sentry.vfs.devpts import open_pair
from casemate.sentry.vfs.hostfile import HostFile
from casemate.sentry.vfs.inode import FileSystem
from casemate.sentry.vfs.overlay import OverlayFs
from casemate.sentry.vfs.standard import standard_files, take_standard

NOT_FOUND, NOT_EXECUTABLE, FAILED = 127, 126, 125
RELAYED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
MOUNTS: list[dict[str, Any]] = [
    {"destination": "/proc", "type": "proc", "options": ["nosuid", "noexec", "nodev"]},
    {"destination": "/sys", "type": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
    {"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["nosuid", "noexec", "nodev", "ro"]},
    {"destination": "/dev", "type": "tmpfs", "options": ["nosuid", "strictatime", "mode=755"]},
    {"destination": "/dev/pts", "type": "devpts", "options": ["nosuid", "noexec"]},
    {"destination": "/dev/shm", "type": "tmpfs", "options": ["nosuid", "nodev", "noexec", "mode=1777"]},
    {"destination": "/dev/mqueue", "type": "mqueue", "options": ["nosuid", "nodev", "noexec"]},
]


class Wanted:
    """What is to be run.

    Arguments:
        argv, env, cwd: of the program.
        writable: what it writes goes to the host's files; else to memory, and is gone at the end.
        host_network: sockets are the host's.
        uid: whom the sentry itself runs as.
        strace: calls to be traced: None for none, empty for all.
        summary: calls are counted, and the table of them goes to standard error at the end.
        debug: the kernel's log goes to standard error.
        platform: by name; empty for the best that there is.
    """

    def __init__(
        self, argv: list[str], env: dict[str, str], cwd: str, uid: int, writable: bool = False,
        host_network: bool = False, strace: list[str] | None = None, summary: bool = False, debug: bool = False,
        platform: str = "",
    ) -> None:  # fmt: skip
        self.argv = argv
        self.env = env
        self.cwd = cwd
        self.uid = uid
        self.writable = writable
        self.host_network = host_network
        self.strace = strace
        self.summary = summary
        self.debug = debug
        self.platform = platform


class _Door:
    """Told of the program's end."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.code = 0

    def ended(self, code: int) -> None:
        """``code`` as of wait(2)."""
        self.code = code
        self.kernel.running = False


class _Signals:
    """Signals to the sentry go to the program: a descriptor that the kernel's loop watches."""

    vital = True

    def __init__(self, kernel: Kernel, task: Any, screen: HostTerminal | None) -> None:
        self.kernel = kernel
        self.task = task
        self.screen = screen
        self.reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in (*RELAYED, signal.SIGWINCH):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        kernel.platform.watch(self.reader, 1, self)

    def ready(self, mask: int) -> None:
        """Signals have come."""
        for number in os.read(self.reader, 64):
            if number == signal.SIGWINCH and self.screen is not None:
                self.screen.resized()
            elif number in RELAYED and not self.task.group.zombie:
                send(self.task.group, SigInfo.user(number, SI_USER, 0, 0), force=True)


def run(wanted: Wanted) -> int:
    """Become the sentry and run the program to its end. To be called in a process of its own, as root.

    Returns its exit status, 128 + n after signal n; 125, 126, 127 as a shell has them where it did not run.
    """
    if wanted.debug:
        import logging

        logging.basicConfig(stream=sys.stderr, level=logging.DEBUG, format="casemate: %(message)s")
    else:
        Logger.muted = True
    taken = take_standard()
    screen = HostTerminal(os.dup(0)) if os.isatty(0) and os.isatty(1) else None
    tree = Tree("/", read_only=not wanted.writable, exclusive=not wanted.writable)
    hostname = os.uname().nodename
    kernels: list[Kernel] = []
    gofer = launch.start_gofer([tree], meanwhile=lambda: kernels.append(_shut_in(wanted, hostname)))
    (kernel,) = kernels
    try:
        return _serve(kernel, gofer, wanted, taken, screen)
    finally:
        if screen is not None:
            screen.restore()
        kernel.platform.close()


def _shut_in(wanted: Wanted, hostname: str) -> Kernel:
    """Give up what a sentry has no use for, and make the kernel."""
    isolation.load_all()
    proc = isolation.enter(wanted.uid, wanted.uid, host_network=wanted.host_network)
    return Kernel(choose(proc, wanted.platform), hostname)


def _serve(
    kernel: Kernel, gofer: Any, wanted: Wanted, taken: list[tuple[int, int]], screen: HostTerminal | None
) -> int:
    kernel.platform.watch(gofer.fileno(), 1, gofer)
    gofer.on_gone = lambda reason: _gofer_gone(kernel, reason)
    kernel.platform.others[gofer.pid] = None
    gofer.ended = kernel.platform.others.get
    world.prepare(kernel)

    def trees(path: str, read_only: bool) -> FileSystem:
        lower: FileSystem = gofer.filesystem(0, kernel.mounts.device())
        if wanted.writable:
            return lower
        return OverlayFs(kernel.mounts.device(), lower, settled=True)

    isolation.confine(wanted.host_network)
    kernel.subsystems["network"] = "host" if wanted.host_network else "none"
    if wanted.strace is not None or wanted.summary:
        from casemate.sentry.strace import Strace, Tally

        shown = None if wanted.strace is None else Strace(wanted.strace)
        kernel.strace = Tally(shown) if wanted.summary else shown
    container = Container(kernel, "do", trees)
    door = _Door(kernel)
    process = {
        "args": wanted.argv, "env": [f"{key}={value}" for key, value in wanted.env.items()], "cwd": wanted.cwd,
        "user": {"uid": 0, "gid": 0}, "rlimits": [],
    }  # fmt: skip
    try:
        container.make({"root": {"path": "/"}, "mounts": MOUNTS}, [])
        files, terminal = _files(kernel, taken, screen)
        task = container.process(process, "", files, terminal, door, False)
    except RequestFailed as error:
        print(f"casemate: {error.message}", file=sys.stderr)
        return {"not-found": NOT_FOUND, "not-executable": NOT_EXECUTABLE}.get(error.code, FAILED)
    _Signals(kernel, task, screen)
    null = os.open("/dev/null", os.O_RDWR) if os.path.exists("/dev/null") else -1
    if null >= 0:
        for fd in (0, 1):
            os.dup2(null, fd)
    kernel.resume(task)
    kernel.run()
    if screen is not None and screen.console is not None:
        screen.console.flush()
    if wanted.summary:
        if screen is not None:
            screen.restore()
        print(kernel.strace.table(), file=sys.stderr)
    if gofer.gone is not None:
        return FAILED
    code = door.code
    return 128 + (code & 0x7F) if code & 0x7F else code >> 8 & 0xFF


def _files(kernel: Kernel, taken: list[tuple[int, int]], screen: HostTerminal | None) -> tuple[list[Any], Any]:
    """The program's descriptors, and its controlling terminal: one of its own in the place of the host's."""
    if screen is None:
        return list(standard_files(kernel, taken)), None
    terminal, slave = open_pair(kernel)
    screen.raw()
    screen.console = Console(kernel, taken[0][0], taken[1][0], terminal)
    screen.resized()
    if os.isatty(taken[2][0]):
        os.close(taken[2][0])
        return [slave, slave.incref(), slave.incref()], terminal
    return [slave, slave.incref(), HostFile(*taken[2], kernel)], terminal


def _gofer_gone(kernel: Kernel, reason: str) -> None:
    print(f"casemate: {reason}: the sandbox ends", file=sys.stderr)
    kernel.running = False

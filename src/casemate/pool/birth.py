"""Where members come from: the daemon forks (fork(2)) instead of having each be a Python of its own.

It has imported what a keeper needs by then, so that a member begins a fifth of a second of a processor earlier, and has
in memory what it changes only. The daemon is one thread, which makes that simple; what a member must not have of it
(descriptors, handlers of signals) it gives up first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import NoReturn, Protocol

from casemate import ids
from casemate.config import Config
from casemate.host import syscalls
from casemate.keeper import nursery

PROGRAM = (sys.executable, "-m", "casemate.keeper")
_ROOM = "casemate-room"
"""An option of the interpreter (``-X``) that says nothing, and takes room."""


class Child(Protocol):
    """A process that this one has started; as :class:`subprocess.Popen`."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None:
        """Its exit status once it has ended."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""


class Forked:
    """A child that was forked.

    Arguments:
        pid: its number.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, or the number of what killed it, negative; None while it lives."""
        return self._reap(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it has not ended within ``timeout`` seconds.
        """
        import select

        if timeout is not None and self.poll() is None:
            descriptor = os.pidfd_open(self.pid)
            try:
                poll = select.poll()
                poll.register(descriptor, select.POLLIN)
                if not poll.poll(timeout * 1000):
                    raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            finally:
                os.close(descriptor)
        status = self._reap(0)
        assert status is not None
        return status

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def terminate(self) -> None:
        """Send SIGTERM, unless it was seen to have ended."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, unless it was seen to have ended."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.poll() is None:  # until it is reaped the number is nobody else's
            os.kill(self.pid, number)


def make_room(config: Config) -> None:
    """Execute this program anew with a longer command line: a keeper is known by its words, and those of a forked one
    have to go where this process's are (:func:`casemate.keeper.nursery.show`). Returns in the new program only, or
    where there can be none.
    """
    words = list(sys.orig_argv)
    options = getattr(sys, "_xoptions", {})
    if _ROOM in options:
        place = words.index(f"{_ROOM}={options[_ROOM]}")
        del words[place - 1 : place + 1]
        with contextlib.suppress(OSError):  # it only looks odd
            nursery.show(words)
        return
    longest = [*PROGRAM, str(config.root / "containers" / ids.new_id()), "65536", "65536"]
    size = 2 * sum(len(os.fsencode(word)) + 1 for word in longest)
    with contextlib.suppress(OSError):
        os.execv(sys.executable, [words[0], "-X", f"{_ROOM}={'.' * size}", *words[1:]])


def can_fork(words: Sequence[str]) -> bool:
    """Whether there is room for a keeper's words."""
    return nursery.has_room([*PROGRAM, *words])


def prepare() -> None:
    """Import what members need, once, so that all have it in common."""
    import gc

    import casemate.host.dns
    import casemate.host.ports
    import casemate.keeper.__main__
    import casemate.keeper.service
    import casemate.pool.member
    import casemate.vm.pooled
    import casemate.vm.template.making
    import casemate.vm.template.use  # noqa: F401

    syscalls.prepare()
    gc.collect()
    gc.freeze()  # a collection in a member would write to every object's header


def fork(words: Sequence[str], fds: Sequence[int], log: int, environment: dict[str, str]) -> Forked:
    """Start a keeper's program, as ``python -m casemate.keeper``.

    Arguments:
        words: its words.
        fds: those of its descriptors that the words name; it has no others.
        log: what it complains to, which is its standard output and error.
        environment: its whole environment.

    Raises:
        OSError: there can be no more processes.
    """
    # A signal that comes before the child has let go of the handlers would be told to this process.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _live(words, fds, log, environment, before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return Forked(pid)


def _live(
    words: Sequence[str], fds: Sequence[int], log: int, environment: dict[str, str], mask: set[int | signal.Signals]
) -> NoReturn:
    """Be the child: never returns, whatever happens."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            with contextlib.suppress(OSError, ValueError):
                if callable(signal.getsignal(number)):
                    signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for name in os.listdir("/proc/self/fd"):
            if (fd := int(name)) > 2 and fd not in fds:
                with contextlib.suppress(OSError):  # that of the directory
                    os.close(fd)
        os.chdir("/")
        os.environ.clear()
        os.environ.update(environment)
        nursery.show([*PROGRAM, *words])
        from casemate.keeper.__main__ import serve

        status = serve(words)
        for thread in threading.enumerate():
            if not thread.daemon and thread is not threading.main_thread():
                thread.join()
    except BaseException:
        with contextlib.suppress(OSError):
            os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)

"""Child processes: starting them, and the exit statuses of all that are ours to reap.

A shim is a child subreaper (prctl(2)): the stand-in that a runtime leaves behind becomes our child when the runtime
ends, so its status comes to us. It may end before we know its number; such statuses are kept while a runtime runs.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal

from casemate.host import syscalls
from casemate.shim.loop import Future, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from casemate.shim.loop import Steps

MAX_UNCLAIMED = 4096
"""Most statuses of processes that nobody has asked for yet."""


def exit_status(raw: int) -> int:
    """A wait(2) status as shells and containerd count it: 128 + n after signal n."""
    code = os.waitstatus_to_exitcode(raw)
    return code if code >= 0 else 128 - code


class Children:
    """The children of this process. One for each process, on the loop of the main thread.

    Arguments:
        loop: woken by SIGCHLD.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: dict[int, Future] = {}
        self._unclaimed: dict[int, int] = {}
        self._commands = 0
        self._file_limit: tuple[int, int] | None = None
        signal.set_wakeup_fd(loop.wake_fd, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        loop.on_wake.append(self.reap)

    def raise_file_limit(self) -> None:
        """Allow this process all the files it may have; its children get the limits that it was started with."""
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limits[0] != limits[1]:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
            self._file_limit = limits

    def reap(self) -> None:
        """Take the status of every child that has ended, and tell who waits."""
        while True:
            try:
                pid, raw = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            future = self._waiting.pop(pid, None)
            if future is not None:
                future.set(exit_status(raw))
            elif self._commands:
                self._unclaimed[pid] = exit_status(raw)
                if len(self._unclaimed) > MAX_UNCLAIMED:
                    del self._unclaimed[next(iter(self._unclaimed))]

    def wait(self, pid: int) -> Future:
        """The exit status of a child, or of a process that will become one. Only one may ask for each."""
        future = Future()
        if pid in self._unclaimed:
            future.set(self._unclaimed.pop(pid))
        else:
            self._waiting[pid] = future
        return future

    def forget(self, pid: int) -> None:
        """Ask for its status no more; it is reaped all the same."""
        self._waiting.pop(pid, None)

    def begin(self) -> None:
        """From now on keep the statuses of unknown processes: one of them may be the stand-in a runtime leaves."""
        self._commands += 1

    def end(self) -> None:
        """End what :meth:`begin` began."""
        self._commands -= 1
        if not self._commands:
            self._unclaimed.clear()

    def compute(self, function: Callable[[], bytes]) -> Steps[bytes]:
        """Call a function in a copy of this process, which may load what we do without, and return what it returns.

        Raises:
            OSError: it raised something; the error's text says what.
        """
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        pid = os.fork()
        if pid == 0:
            try:
                os.write(writer, b"+" + function())
            except BaseException as error:
                os.write(writer, f"-{error}"[:4000].encode(errors="replace"))
            finally:
                os._exit(0)
        os.close(writer)
        try:
            yield self.wait(pid)
            answer = os.read(reader, 65536)
        finally:
            os.close(reader)
        if answer[:1] != b"+":
            raise OSError(5, answer[1:].decode(errors="replace") or "no answer")
        return answer[1:]

    def spawn(
        self, argv: Sequence[str], *, stdin: int | None = None, stdout: int | None = None, stderr: int | None = None,
        extra: Sequence[int] = (), env: Mapping[str, str] | None = None, die_with_us: bool = True,
    ) -> int:
        """Start a program.

        Arguments:
            argv: its path or name (looked up on the PATH) and arguments.
            stdin, stdout, stderr: descriptors, which stay open here; None is /dev/null.
            extra: descriptors that it gets as 3, 4, ….
            env: its environment; ours when None.
            die_with_us: it gets SIGKILL when this process dies.

        Returns:
            its process id.

        Raises:
            OSError: it cannot be executed, with the program's name.
        """
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        wanted = [null if fd is None else fd for fd in (stdin, stdout, stderr)] + list(extra)
        environment = dict(os.environ if env is None else env)
        if die_with_us:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 0)  # loads here what the child must not have to load
        parent = os.getpid() if die_with_us else 0
        try:
            # fork(2) and not posix_spawn(3), for the signal at our death. We hold no lock here that the child needs.
            pid = os.fork()
            if pid == 0:
                _child(list(argv), wanted, environment, writer, parent, self._file_limit)
            os.close(writer)
            writer = -1
            failed = os.read(reader, 16)  # ends with the child's exec
        finally:
            for fd in (null, reader, writer):
                if fd >= 0:
                    os.close(fd)
        if failed:
            number = int(failed)
            os.waitpid(pid, 0)
            raise OSError(number, os.strerror(number), argv[0])
        return pid


def _child(
    argv: list[str], fds: list[int], env: dict[str, str], report: int, parent: int, file_limit: tuple[int, int] | None
) -> None:
    """The child between fork and exec; it never returns."""
    try:
        if parent:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        # All to numbers above those wanted first, so that none is overwritten before its turn.
        base = max([*fds, report, len(fds)]) + 1
        fds = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, base) for fd in fds]
        report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, base)
        for target, fd in enumerate(fds):
            os.dup2(fd, target)  # which is not close-on-exec
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, file_limit)
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        os.write(report, str(error.errno or 1).encode())
    except BaseException:
        os.write(report, b"1")
    finally:
        os._exit(127)

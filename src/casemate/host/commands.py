"""Running a host's program once, with text for its standard input, without the weight of ``subprocess``.

Input and output are memory files, so nobody has to read and write at the same time, and the child is made by
``posix_spawn``, which does not copy the caller's page tables and is safe beside threads.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from casemate.errors import HostError

OUTPUT_LIMIT = 16 << 20
SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for: administrators' tools, also for a caller whose PATH is short or missing."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a program ended: exit status (negative: the signal), and what it wrote."""

    status: int
    output: str
    errors: str

    @property
    def reason(self) -> str:
        """Why it failed, in one line: the first that it complained with."""
        said = next((line.strip() for line in self.errors.splitlines() if line.strip()), "")
        how = f"signal {-self.status}" if self.status < 0 else f"status {self.status}"
        return said or f"{how}, and no reason given"


def which(program: str) -> str | None:
    """The path of ``program`` on :data:`SEARCH`, or None."""
    # shutil.which would do, and brings three compression libraries along.
    if "/" in program:
        return program if os.access(program, os.X_OK) else None
    paths = (f"{directory}/{program}" for directory in SEARCH.split(":"))
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def run(argv: Sequence[str], *, package: str, text: str = "", timeout: float = 30.0) -> Result:
    """Run ``argv`` to its end and return how that was. It inherits the calling thread's namespaces.

    Nothing else in the process may wait for children that are not its own.

    Arguments:
        package: the Debian package that holds the program, for the error when it is missing.
        text: its standard input.
        timeout: seconds after which it is killed.

    Raises:
        HostError: the program is missing, or took too long.
    """
    path = which(argv[0])
    if path is None:
        raise HostError(f"the program {argv[0]} is missing", f"apt install {package}")
    files = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("input", "output", "errors")]
    try:
        os.write(files[0], text.encode())
        os.lseek(files[0], 0, os.SEEK_SET)
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(files)]
        environment = {"PATH": SEARCH, "LC_ALL": "C"}
        pid = os.posix_spawn(path, list(argv), environment, file_actions=actions, setsigmask=[])
        status = _wait(pid, timeout)
        if status is None:
            raise HostError(f"{argv[0]} did not end within {timeout:g} s", "see dmesg; the host may be overloaded")
        output, errors = (os.pread(fd, OUTPUT_LIMIT, 0).decode(errors="replace") for fd in files[1:])
        return Result(status, output, errors)
    finally:
        for fd in files:
            os.close(fd)


def _wait(pid: int, timeout: float) -> int | None:
    try:
        handle = os.pidfd_open(pid)
    except OSError:  # out of descriptors: what cannot be watched must not run
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    try:
        waiting = select.poll()
        waiting.register(handle, select.POLLIN)
        in_time = bool(waiting.poll(timeout * 1000))
        if not in_time:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status) if in_time else None
    finally:
        os.close(handle)

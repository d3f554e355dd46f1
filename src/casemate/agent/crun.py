"""The container runtime in the guest, crun(1), as a program: its arguments and what its failures mean."""

from __future__ import annotations

import os

from casemate.agent.processes import Reaper
from casemate.agent.system import read_text
from casemate.protocol import wire
from casemate.protocol.wire import ProtocolError, RequestFailed

TIMEOUT = 120.0
"""Seconds that one run of the program may take, far above what it needs on an emulated processor."""
MAX_MESSAGE = 500
STEADY = "nokaslr" in read_text("/proc/cmdline").split()
"""Whether the runtime has the same addresses each time: where the guest is emulated, whose kernel has them too.

An emulator keeps what it has translated by address: with others each time it translates the whole runtime and its
libraries anew for each container and each exec. Containers' own processes have random ones, see
:func:`casemate.agent.bundle.complete`."""


class Crun:
    """Arguments: ``command`` is the program with its global options, ``reaper`` waits for it."""

    def __init__(self, command: list[str], reaper: Reaper) -> None:
        self._command = command
        self._reaper = reaper
        self.state = next((word[7:] for word in command if word.startswith("--root=")), "")
        """The directory where it keeps what it knows of containers."""

    def run(self, arguments: list[str], log: str, *stdio: int) -> None:
        """Run one command to its end.

        Arguments:
            arguments: the command, its options and the container.
            log: a path that its messages go to.
            stdio: descriptors for what it starts: standard input, output and error, and those that follow.

        Raises:
            RequestFailed: it failed; the code tells a missing command from one that cannot be executed.
        """
        command = [*self._command, f"--log={log}", "--log-format=json", *arguments]
        try:
            end = self._reaper.run_program(command, stdio, TIMEOUT, steady=STEADY)
        except OSError as error:
            raise RequestFailed("failed", f"{command[0]} cannot be started: {error.strerror}") from None
        if end is None:
            raise RequestFailed("failed", f"{command[0]} {arguments[0]} took more than {TIMEOUT:g} s")
        if end.status != 0:
            raise explain(read_text(log), end.status if end.status is not None else -(end.signal or 0))

    def start(self, identifier: str, log: str) -> None:
        """Let the first process of a created container run. Raises RequestFailed."""
        # What "crun start" does, without the tenth of a second that a program takes to do it on an emulated processor.
        fifo = f"{self.state}/{identifier}/exec.fifo"
        try:
            fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # there is no such file, or nobody waits: the program knows what to say
            self.command(["start", identifier], log)
            return
        try:
            os.unlink(fifo)
            os.write(fd, b"\0")
        except OSError as error:
            raise RequestFailed("failed", f"the container cannot be started: {error.strerror}") from None
        finally:
            os.close(fd)

    def command(self, arguments: list[str], log: str) -> None:
        """Run one command that starts nothing. Raises RequestFailed."""
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            self.run(arguments, log, null, null, null)
        finally:
            os.close(null)


def explain(log: str, status: int) -> RequestFailed:
    """What a failure means.

    Arguments:
        log: the program's messages, a JSON object in each line.
        status: its exit status, or the negative number of the signal that ended it.
    """
    message = ""
    for line in log.splitlines():
        try:
            entry = wire.unpack(wire.EVENT, line.encode("utf-8", "replace"))
        except ProtocolError:
            continue
        if entry.get("level") == "error" and isinstance(entry.get("msg"), str):
            message = entry["msg"].strip()[:MAX_MESSAGE]
    if not message:
        return RequestFailed("failed", f"the container runtime failed with status {status} and said nothing")
    return explain_message(message)


def explain_message(message: str) -> RequestFailed:
    """What the runtime's words mean."""
    if message.startswith("executable file") and "not found" in message:
        name = message.split("`")[1] if message.count("`") >= 2 else "the command"
        return RequestFailed("not-found", f"{name}: not found in the container")
    if message.startswith("open executable"):
        reason = message.rpartition(": ")[2]
        return RequestFailed("not-executable", f"the command cannot be executed: {reason}")
    return RequestFailed("failed", message)

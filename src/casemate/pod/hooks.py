"""The hooks of a container (runtime-spec 1.0.2, config.md "POSIX-platform Hooks"), run on the host.

Those of ``startContainer`` are not here: they run inside the container, which is in the guest.
"""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Iterable
from typing import Any

from casemate.errors import ContainerError

ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
OUTPUT_LIMIT = 64 << 10
"""How much of what a hook wrote is shown when it failed."""


class HookFailed(ContainerError):
    """A hook ended with an error, could not be started or took too long."""

    code = "hook-failed"
    exit_status = 1


def state(spec: dict[str, Any], id: str, status: str, pid: int, bundle: str) -> dict[str, Any]:
    """The state object (runtime.md "State") of a container, as hooks read it from their standard input.

    Arguments:
        spec: the container's configuration.
        status: ``creating``, ``created``, ``running`` or ``stopped``.
        pid: of the stand-in; 0 leaves it out.
    """
    value: dict[str, Any] = {"ociVersion": spec.get("ociVersion", "1.0.2"), "id": id, "status": status}
    if pid:
        value["pid"] = pid
    value["bundle"] = bundle
    if spec.get("annotations"):
        value["annotations"] = spec["annotations"]
    return value


def wanted(spec: dict[str, Any], *points: str) -> bool:
    """Whether there is a hook at any of these points."""
    return any((spec.get("hooks") or {}).get(point) for point in points)


def run(spec: dict[str, Any], point: str, state: dict[str, Any]) -> None:
    """Run the hooks of one point in their order, in the namespaces and the directory of the calling process.

    Raises:
        HookFailed: as soon as one fails.
    """
    for number, hook in enumerate((spec.get("hooks") or {}).get(point) or ()):
        try:
            _run(hook, state)
        except HookFailed as error:
            raise HookFailed(f"error running {point} hook #{number}: {error.message}") from None


def run_all(spec: dict[str, Any], point: str, state: dict[str, Any]) -> list[str]:
    """Run all hooks of a point whatever becomes of each, as the specification wants it for poststart and poststop.

    Returns:
        what went wrong, one line for each that failed.
    """
    problems = []
    for number, hook in enumerate((spec.get("hooks") or {}).get(point) or ()):
        try:
            _run(hook, state)
        except HookFailed as error:
            problems.append(f"error running {point} hook #{number}: {error.message}")
    return problems


def _run(hook: dict[str, Any], state: dict[str, Any]) -> None:
    path = hook["path"]
    files = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("input", "output", "errors")]
    try:
        os.write(files[0], json.dumps(state).encode())
        os.lseek(files[0], 0, os.SEEK_SET)
        # Without an "env" hooks get the runtime's own, as with runc; an empty one is empty.
        listed = hook.get("env")
        environment = os.environ if listed is None else dict(entry.partition("=")[::2] for entry in listed)
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(files)]
        defaults = [number for number in range(1, signal.NSIG) if number not in (signal.SIGKILL, signal.SIGSTOP)]
        # Held back until somebody waits for the hook: one that comes in between would leave it running.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            pid = os.posix_spawn(
                path, list(hook.get("args") or [path]), environment, file_actions=actions, setsigmask=[],
                setsigdef=[number for number in defaults if not 32 <= number < signal.SIGRTMIN],
            )
        except (OSError, ValueError) as error:  # ValueError: a variable without a name
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            reason = error.strerror or "" if isinstance(error, OSError) else str(error)
            raise HookFailed(f"fork/exec {path}: {reason.lower()}") from None
        status = _wait(pid, hook.get("timeout"), mask)
        if status is None:
            raise HookFailed(f"hook ran past specified timeout of {float(hook['timeout']):.1f}s")
        if status != 0:
            how = f"exit status {status}" if status > 0 else f"signal: {_signal_name(-status)}"
            said = [os.pread(fd, OUTPUT_LIMIT, 0).decode(errors="replace") for fd in files[1:]]
            raise HookFailed(f"error running hook: {how}, stdout: {said[0]}, stderr: {said[1]}")
    finally:
        for fd in files:
            os.close(fd)


def _signal_name(number: int) -> str:
    return (signal.strsignal(number) or str(number)).lower()


def _wait(pid: int, timeout: float | None, mask: Iterable[int]) -> int | None:
    """The exit status of a child, negative for a signal; None when the time was up, and it was killed. ``mask`` is
    that of signals while we wait.

    A signal that ends us ends the child too: what undoes its work must not find it at work.
    """
    in_time = False
    handle = -1
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        handle = os.pidfd_open(pid)
        waiting = select.poll()
        waiting.register(handle, select.POLLIN)
        in_time = bool(waiting.poll(None if timeout is None else timeout * 1000))
    finally:
        if handle >= 0:
            os.close(handle)
        if not in_time:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) if in_time else None

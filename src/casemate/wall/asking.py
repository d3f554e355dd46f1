"""What sandboxes behind either wall have in common: a container's affairs are requests to an agent (docs/protocol.md),
that of a virtual machine or the sentry, which speaks like one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from casemate.errors import CasemateError, NetworkError, NotRunning
from casemate.sandbox import PodSandbox, ProcessExit, ProcessStreams, Sandbox
from casemate.wall import trees
from casemate.wall.calls import ERRORS, Calls

REFRESH_SECONDS = 5.0
LAST_ENDS_SECONDS = 5.0
"""How long the ends of a deleted container's processes may take to be told."""
POD_ERRORS: Mapping[str, type[CasemateError]] = {**ERRORS, "no-such-process": NotRunning, "refused": NetworkError}


class AskingSandbox(Sandbox):
    """A sandbox for one container, whose processes are an agent's affair.

    Subclasses set ``_calls`` and ``_id``, the container's name for the agent.
    """

    _calls: Calls
    _id: str

    def exec(
        self, exec_id: str, process: dict[str, Any], user: str, stdin: bool, size: tuple[int, int] | None
    ) -> ProcessStreams:
        """Start another process in the container. See :class:`casemate.sandbox.Sandbox`."""
        request = {"id": self._id, "exec_id": exec_id, "process": process, "user": user}
        return self._calls.begin(
            (self._id, exec_id), "container.exec", request,
            terminal=bool(process.get("terminal")), stdin=stdin, size=size,
        )  # fmt: skip

    def signal(self, exec_id: str | None, signum: int) -> None:
        """Send a signal to one process. See :class:`casemate.sandbox.Sandbox`."""
        self._calls.call("process.signal", {"id": self._id, "exec_id": exec_id, "signal": signum, "all": False})

    def resize(self, exec_id: str | None, rows: int, columns: int) -> None:
        """Tell a process's terminal its size. See :class:`casemate.sandbox.Sandbox`."""
        self._calls.call("process.resize", {"id": self._id, "exec_id": exec_id, "rows": rows, "cols": columns})

    def refresh(self) -> None:
        """Have files looked at again. See :class:`casemate.sandbox.Sandbox`."""
        self._calls.call("sandbox.refresh", {})


class AskingPod(PodSandbox):
    """A sandbox for several containers, whose processes are an agent's affair.

    Subclasses set ``_calls`` and ``_run_path``, the sandbox's run directory.
    """

    _calls: Calls
    _run_path: Path

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._containers: set[str] = set()
        self._attached: set[str] = set()

    def attach(self, id: str, root_fd: int, volumes_fd: int | None) -> None:
        """Show a container's trees to the agent. See :class:`casemate.sandbox.PodSandbox`."""
        trees.attach(self._run_path, id, root_fd, volumes_fd)
        with self._lock:
            again = id in self._attached
            self._attached.add(id)
        if again:  # the agent may remember its predecessor's for a moment
            try:
                self._calls.call("sandbox.refresh", {})
            except CasemateError:
                trees.detach(self._run_path, id)
                raise

    def detach(self, id: str) -> None:
        """Take the trees of a container away. See :class:`casemate.sandbox.PodSandbox`."""
        trees.detach(self._run_path, id)
        with contextlib.suppress(CasemateError):
            # What the agent knows by name stays open on the host, and with it file systems.
            self._calls.call("sandbox.refresh", {}, REFRESH_SECONDS)

    def _create(
        self, id: str, request: dict[str, Any], stdin: bool, size: tuple[int, int] | None, kept: Sequence[str],
        told: dict[str, Any] | None = None,
    ) -> ProcessStreams:  # fmt: skip
        """Ask for a container; ``told`` gets the answer."""
        process = request["spec"].get("process")
        terminal = bool(process.get("terminal")) if isinstance(process, dict) else False
        with self._lock:
            self._containers.add(id)
        try:
            return self._calls.begin(
                (id, None), "container.create", request, terminal=terminal, stdin=stdin, size=size, kept=kept,
                told=told,
            )  # fmt: skip
        except BaseException:
            with self._lock:
                self._containers.discard(id)
            raise

    def start(self, id: str) -> None:
        """Let the container's first process run. See :class:`casemate.sandbox.PodSandbox`."""
        self._calls.call("container.start", {"id": id})

    def exec(
        self, id: str, exec_id: str, process: dict[str, Any], stdin: bool, size: tuple[int, int] | None,
        kept: Sequence[str] = (),
    ) -> ProcessStreams:
        """Start another process in a container. See :class:`casemate.sandbox.PodSandbox`."""
        request = {"id": id, "exec_id": exec_id, "process": process, "user": ""}
        return self._calls.begin(
            (id, exec_id), "container.exec", request, terminal=bool(process.get("terminal")), stdin=stdin, size=size,
            kept=kept,
        )  # fmt: skip

    def signal(self, id: str, exec_id: str | None, signum: int, everyone: bool = False) -> None:
        """Send a signal. See :class:`casemate.sandbox.PodSandbox`."""
        self._calls.call("process.signal", {"id": id, "exec_id": exec_id, "signal": signum, "all": everyone})

    def resize(self, id: str, exec_id: str | None, rows: int, columns: int) -> None:
        """Tell a terminal its size. See :class:`casemate.sandbox.PodSandbox`."""
        self._calls.call("process.resize", {"id": id, "exec_id": exec_id, "rows": rows, "cols": columns})

    def pause(self, id: str) -> None:
        """Stop a container's processes. See :class:`casemate.sandbox.PodSandbox`."""
        self._calls.call("container.pause", {"id": id})

    def resume(self, id: str) -> None:
        """Let them go on. See :class:`casemate.sandbox.PodSandbox`."""
        self._calls.call("container.resume", {"id": id})

    def update(self, id: str, resources: dict[str, Any]) -> None:
        """Change a container's bounds. See :class:`casemate.sandbox.PodSandbox`."""
        self._calls.call("container.update", {"id": id, "resources": resources})

    def delete(self, id: str) -> None:
        """Remove a container. See :class:`casemate.sandbox.PodSandbox`."""
        with contextlib.suppress(NotRunning):  # the whole sandbox has ended
            self._calls.call("container.delete", {"id": id})
        self._calls.forget(id, ProcessExit(137, error="the container was deleted", signal=9), LAST_ENDS_SECONDS)
        with self._lock:
            self._containers.discard(id)

    def _out_of_memory(self, id: str) -> None:
        with self._lock:
            known = id in self._containers
        if known:
            self.on_oom(id)

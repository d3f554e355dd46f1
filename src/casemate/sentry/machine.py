"""One sentry with its gofer, from the keeper's side: started, connected, watched over and ended.

What :class:`casemate.vm.machine.Machine` is to a virtual machine: :class:`casemate.sentry.sandbox.SentrySandbox` puts
one container into it, :class:`casemate.sentry.pod.SentryPod` many.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from casemate.config import Config
from casemate.errors import CasemateError, HypervisorError
from casemate.host import uids
from casemate.host.cgroups import Cgroup
from casemate.protocol.wire import LinkError
from casemate.sandbox import ProcessExit
from casemate.wall import facts
from casemate.wall.calls import ERRORS, Calls, line
from casemate.wall.confinement import Confinement
from casemate.wall.console import Console
from casemate.wall.launch import Process, exit_text, spawn

FLUSH_SECONDS = 10.0
END_SECONDS = 10.0
LAST_WORDS_SECONDS = 2.0
MAX_FILES = 1 << 20
"""Descriptors of a sentry, where the host allows as many: each open file of the sandbox is one."""
MAX_NODES = 262_144
"""Descriptors of a gofer, likewise: it keeps one for every file that the sentry knows."""
SEND_BUFFER = 1 << 20
KEEPER_OOM_SCORE = -998
"""The keeper's, whose share of the memory is small: whatever else the host's kernel takes, it tells of the end."""
CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_KILL = 0, 1, 3, 4, 5
CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_SYS_CHROOT = 6, 7, 8, 18
CAP_SYS_ADMIN, CAP_SYS_RESOURCE, CAP_MKNOD, CAP_SETFCAP = 21, 24, 27, 31
SENTRY_CAPABILITIES = frozenset((CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN))
"""To shut itself in; it gives them up before it serves (:mod:`casemate.sentry.isolation`)."""
GOFER_CAPABILITIES = frozenset(
    (
        CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_SYS_CHROOT,
        CAP_SYS_ADMIN, CAP_MKNOD, CAP_SETFCAP,
    )
)  # fmt: skip
"""To act as any user of the container, and to shut itself in, after which it drops the rest."""
_FACTS: Mapping[str, type] = {
    "kernel": str, "uptime_ms": int, "boot_id": str, "agent_version": str, "python": str, "platform": str,
}  # fmt: skip


class Machine:
    """A sentry and its gofer. Methods may be called from any thread once :meth:`boot` has returned.

    Arguments:
        config: the configuration in force.
        identifier: the sandbox's id.
        directory: where its logs are kept.
        run_path: its run directory, in which ``share/`` and ``volumes/`` are what the gofer serves.
        on_exit, on_oom, errors: see :class:`casemate.wall.calls.Calls`.
        on_end: called once when a sentry that was up ended by itself, after all calls of ``on_exit``.
        progress: told what is being done.
        oom_score_adj: of the processes.
    """

    def __init__(
        self,
        config: Config,
        identifier: str,
        directory: Path,
        run_path: Path,
        *,
        on_exit: Callable[[str, str | None, ProcessExit], None],
        on_oom: Callable[[str], None] = lambda id: None,
        on_end: Callable[[ProcessExit], None] = lambda end: None,
        progress: Callable[[str], None] = lambda what: None,
        errors: Mapping[str, type[CasemateError]] = ERRORS,
        oom_score_adj: int = 0,
    ) -> None:
        self.config = config
        self.identifier = identifier
        self.directory = directory
        self.run_path = run_path
        self._on_exit, self._on_oom = on_exit, on_oom
        self.calls = Calls(config.call_timeout, self._exited, on_oom, self.why, errors, "end it with 'casemate rm -f'")
        self.cgroup: Cgroup | None = None
        """The control group whose figures are the sandbox's."""
        self.procs: tuple[Path, ...] = ()
        """The ``cgroup.procs`` files that its processes join; to be set before there are any, like the group."""
        self.closed = False
        self._on_end = on_end
        self._oom_score_adj = oom_score_adj
        self._progress = progress
        self._lock = threading.Lock()
        self._closing = threading.Lock()
        self._booted = False
        self._over = False
        self._flushed = False
        self._reason = ""
        self._kills = 0
        self._starved = False
        self._sentry: Process | None = None
        self._gofer: Process | None = None
        self._log: Console | None = None
        self._facts: dict[str, Any] = {"wall": "sentry"}

    # ---- birth

    def step(self, what: str) -> None:
        """Tell what comes next. Raises HypervisorError: somebody has closed the sandbox meanwhile."""
        if self.closed:
            raise HypervisorError("the sandbox was closed while it came up")
        self._progress(what)

    def boot(self, netns: int, host_network: bool = False) -> None:
        """Start gofer and sentry, and greet the sentry.

        Arguments:
            netns: the network namespace for both, not closed; the sentry leaves it unless it serves the host's sockets.
            host_network: sockets of its applications are sockets of that namespace.

        Raises:
            CasemateError: what stood in the way; :meth:`close` then gives back what was already there.
        """
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(KEEPER_OOM_SCORE))
        self.run_path.mkdir(parents=True, exist_ok=True, mode=0o700)
        uid = uids.lease(self.identifier, self.config)
        asked, answered = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        with asked, answered, ours, theirs:
            for one in (asked, answered, ours, theirs):
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            reader, writer = os.pipe2(os.O_CLOEXEC)
            try:
                self._log = Console(reader, self.directory / "sentry.log")
                self._gofer = self._spawn(
                    "gofer", [str(answered.fileno()), str(self.run_path), "rw:share", "rw:volumes"],
                    answered.fileno(), (), writer, netns, GOFER_CAPABILITIES, MAX_NODES,
                )  # fmt: skip
                self._kills = self._oom_kills()
                self._sentry = self._spawn(
                    "sentry",
                    [
                        str(theirs.fileno()), str(asked.fileno()), str(uid), "host" if host_network else "none",
                        self.config.sentry_platform,
                    ],
                    theirs.fileno(), (asked.fileno(),), writer, netns, SENTRY_CAPABILITIES, MAX_FILES,
                )  # fmt: skip
            finally:
                os.close(writer)
            link = os.dup(ours.fileno())
        threading.Thread(target=self._watch, args=(self._sentry,), name="sentry", daemon=True).start()
        threading.Thread(target=self._watch_gofer, args=(self._gofer,), name="gofer", daemon=True).start()
        try:
            hello = self.calls.connect(link, self.config.boot_timeout, self._link_closed)
        except LinkError as error:
            raise HypervisorError(f"the sentry did not come up: {self.why(str(error))}") from None
        self._facts["agent"] = line(str(hello.get("version")), 64)
        with self._lock:
            self._booted = not self._over
        if not self._booted:
            raise HypervisorError(f"the sentry did not come up: {self.why('it is gone')}")

    def _spawn(
        self, name: str, words: list[str], fd: int, more: tuple[int, ...], log: int, netns: int,
        capabilities: frozenset[int], files: int,
    ) -> Process:  # fmt: skip
        jail = Confinement(
            uid=0, gid=0, cgroup_procs=self.procs, netns_fd=netns, capabilities=capabilities, max_files=files,
            environment=(("PYTHONPATH", os.pathsep.join(_package_paths())),) if _package_paths() else (),
            oom_score_adj=self._oom_score_adj,
        )  # fmt: skip
        argv = [sys.executable, "-P", "-m", f"casemate.{name}", *words]
        return spawn(argv, jail, pass_fds=(fd, *more), stderr=log)

    def why(self, said: str) -> str:
        """The best reason known for a sentry's silence.

        Arguments:
            said: what the link says of it.
        """
        if self._sentry is not None and (code := self._sentry.wait(1.0)) is not None:
            reason = self._reason or f"the sentry ended with {exit_text(code)}"
            last = self._last_line()
            return f"{reason}: {last}" if last else reason
        return said

    def _last_line(self) -> str:
        if self._log is None:
            return ""
        self._log.join(1.0)
        return self._log.last_line()

    # ---- life

    def learn(self) -> None:
        """Ask the sentry what it is, for :meth:`info`."""
        with contextlib.suppress(CasemateError):
            self._facts.update(facts.believed(self.calls.call("sandbox.info", {}), _FACTS))

    def info(self) -> dict[str, Any]:
        """What was learnt, and the ids of the processes."""
        processes = {"keeper": os.getpid()}
        for name, process in (("sentry", self._sentry), ("gofer", self._gofer)):
            if process is not None:
                processes[name] = process.pid
        return {**self._facts, "processes": processes}

    def usage(self) -> dict[str, Any]:
        """What the host gives for the sandbox; nothing where it does not count."""
        return facts.usage(self.cgroup)

    # ---- ends

    def _oom_kills(self) -> int:
        return self.cgroup.oom_kills() if self.cgroup is not None else 0

    def _exited(self, identifier: str, exec_id: str | None, end: ProcessExit) -> None:
        """Memory is the control group's affair: that somebody was killed for want of it is told by the host's kernel
        alone. It is told of whoever was killed, and of the container, whose first process may outlive that one."""
        if end.signal == signal.SIGKILL or exec_id is None:
            with self._lock:
                kills = self._oom_kills()
                starved, self._kills = kills > self._kills, kills
                self._starved = self._starved or starved
            if starved or (self._starved and exec_id is None):
                end = replace(end, oom=True)
                self._on_oom(identifier)
        self._on_exit(identifier, exec_id, end)

    def _link_closed(self, reason: str) -> None:
        sentry = self._sentry
        if sentry is not None and not self.closed and sentry.wait(0.5) is not None:
            return  # how it ended says better why
        with self._lock:
            self._reason = self._reason or reason
        if sentry is not None and not self.closed:
            sentry.kill()

    def _watch(self, sentry: Process) -> None:
        """Whatever still ran in the sandbox has ended with its kernel."""
        code = sentry.wait()
        with self._lock:
            self._over = True
        oom = self._oom_kills() > self._kills
        if oom:
            reason = "out of memory: the sandbox reached its limit"
        else:
            reason = self._reason or f"the sentry ended with {exit_text(code) if code is not None else 'no status'}"
            last = self._last_line()
            reason += f": {last}" if last and last not in reason else ""
        number = signal.SIGKILL if oom else -code if code is not None and code < 0 else None
        final = ProcessExit(128 + number if number else 255, oom=oom, error=reason, signal=number)
        self.calls.close(reason)
        self.calls.end_all(final, LAST_WORDS_SECONDS)
        if self._booted and not self._flushed and not self.closed:
            self._on_end(final)

    def _watch_gofer(self, gofer: Process) -> None:
        """A sentry without its files is of no use."""
        code = gofer.wait()
        sentry = self._sentry
        if code == 0 and sentry is not None and sentry.wait(0.5) is not None:
            return  # it ended because its sentry had, and how that ended says better why
        if not self.closed:
            how = "" if code is None else f" with {exit_text(code)}"
            with self._lock:
                self._reason = self._reason or f"the file server died{how}"
            if sentry is not None:
                sentry.kill()

    def flush(self) -> None:
        """End what runs. What was written is on the host already."""
        if self.calls.connected:
            self._flushed = True
            with contextlib.suppress(CasemateError):
                self.calls.call("sandbox.shutdown", {}, FLUSH_SECONDS)

    def close(self) -> bool:
        """End everything, in whatever state it is; may be called more than once.

        Returns:
            whether all processes have ended, so that nobody runs as the sandbox's user id.
        """
        self.closed = True
        with self._closing:
            over = True
            for process in (self._sentry, self._gofer):
                if process is not None:
                    process.kill()
                    over = process.wait(END_SECONDS) is not None and over
            self.calls.close("the sandbox is closed")
            return over


def _package_paths() -> list[str]:
    """Where casemate is found, if not where Python looks by itself: the programs start with an empty environment."""
    import casemate

    where = os.path.dirname(os.path.dirname(os.path.abspath(casemate.__file__)))
    return [where]

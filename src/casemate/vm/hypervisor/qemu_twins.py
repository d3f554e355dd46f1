"""Machines as copies of one that runs: the QEMU driver's part of :mod:`casemate.vm.hypervisor.twin`."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import replace
from pathlib import Path

from casemate.config import machine
from casemate.errors import HypervisorError
from casemate.vm.hypervisor import qemu_args, twin
from casemate.vm.hypervisor.base import AgentPort, Confinement, SerialConsole, VmSpec
from casemate.vm.hypervisor.counter import Counter
from casemate.vm.hypervisor.qemu import QemuHypervisor, QemuVm
from casemate.vm.hypervisor.qmp import QmpClient
from casemate.wall import launch

FIRST_PAUSE, LAST_PAUSE = 6.0, 192.0
"""Seconds after which it is looked whether a twin is idle: at first, and at last."""
IDLE_SHARE = 0.1
"""Of a processor: who uses less is idle. Its start is less, too."""


class Original(QemuVm):
    """A machine that others are copied from. It runs nobody's program: only what the host asks its agent for."""

    control: socket.socket | None = None
    numbers: twin.Numbers | None = None

    def _spawn(self, qmp_fd: int, messages: int) -> launch.Process:
        if self._spec.image is None:
            raise HypervisorError("only a machine from a template can be copied")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            fd = theirs.fileno()
            jail = replace(
                self._jail, uid=0, gid=0, groups=(), capabilities=twin.CAPABILITIES,
                environment=(("LD_PRELOAD", str(twin.LIBRARY)), (twin.VARIABLE, str(fd))),
            )  # fmt: skip
            argv = self.command_line(qmp_fd, sandbox=False)
            fds = [*self._owned, qmp_fd, fd]
            process = launch.spawn(argv, jail, pass_fds=fds, stdout=messages, stderr=messages)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.control = ours
        self.numbers = _numbers(self._spec, qmp_fd)
        return process

    def fork(self) -> twin.Unborn:
        """A copy of the machine, which stands still since :meth:`pause`; it never runs again itself.

        Raises:
            HypervisorError: there is none.
        """
        if self.control is None:
            raise HypervisorError("the virtual machine was not started")
        return twin.fork(self.control)


def _numbers(spec: VmSpec, qmp_fd: int) -> twin.Numbers:
    image = spec.image
    console = next(device.fd for device in spec.devices if isinstance(device, SerialConsole))
    port = next(device.fd for device in spec.devices if isinstance(device, AgentPort))
    assert image is not None  # only what comes from a template is copied
    return twin.Numbers(qmp_fd, console, port, image.window_fd)


class Originals(QemuHypervisor):
    """Makes machines that can be copied."""

    copies = False

    def _kind(self) -> type[QemuVm]:
        return Original


class Twin(QemuVm):
    """A machine that is a copy of an :class:`Original`.

    Arguments:
        unborn: its process; owned.
        numbers: the original's descriptors.
        spec: as the original's, with this machine's connections and window; their descriptors are owned.
        jail: whose it is to be.
    """

    def __init__(self, unborn: twin.Unborn, numbers: twin.Numbers, spec: VmSpec, jail: Confinement) -> None:
        image = spec.image
        assert image is not None  # or it was no template's
        mine = _numbers(spec, -1)
        owned = [mine.console, mine.port, image.window_fd]
        super().__init__("", spec, qemu_args.ARCHES[machine()], jail, -1, None, owned, Counter())
        self._unborn = unborn
        self._numbers = numbers
        self._mine = mine
        self._stands = True
        self._pause = FIRST_PAUSE
        self._due = time.monotonic() + FIRST_PAUSE
        self._used = self._settled = 0.0

    def _look(self) -> float | None:
        """Have it give memory back when it has been idle for a while, and has not been all the time since the last."""
        process, now = self._process, time.monotonic()
        if not isinstance(process, twin.TwinProcess) or self._pause > LAST_PAUSE:
            return None
        left = self._due - now
        if left > 0:
            return left * 1000
        try:
            used = process.seconds()
            idle = used - self._used < IDLE_SHARE * self._pause
            if idle and self._settled != used:
                process.settle()
                used = self._settled = process.seconds()
        except (OSError, HypervisorError):
            self._pause = LAST_PAUSE * 2  # it ends, or cannot; it is a machine like another all the same
            return None
        self._used = used
        self._pause = min(self._pause * 2, LAST_PAUSE)
        self._due = now + self._pause
        return self._pause * 1000

    def _spawn(self, qmp_fd: int, messages: int) -> launch.Process:
        theirs, mine, jail = self._numbers, self._mine, self._jail
        assert jail.netns_fd is not None  # every sandbox has one
        process = twin.TwinProcess(self._unborn)
        try:
            self._place(process.pid)
            twin.become(
                self._unborn, jail.uid, jail.gid, jail.netns_fd,
                (
                    (theirs.qmp, qmp_fd), (theirs.console, mine.console), (theirs.port, mine.port),
                    (theirs.window, mine.window), (theirs.messages, messages),
                ),
            )  # fmt: skip
        except OSError as error:
            process.close()
            raise HypervisorError(f"a copy of QEMU cannot be confined: {error.strerror}") from None
        except BaseException:
            process.close()
            raise
        return process

    def _place(self, pid: int) -> None:
        """What a process does with itself where it is executed; it has one thread yet."""
        for path in self._jail.cgroup_procs:
            path.write_text(str(pid))
        with contextlib.suppress(PermissionError):  # less than what it is needs CAP_SYS_RESOURCE
            Path(f"/proc/{pid}/oom_score_adj").write_text(str(self._jail.oom_score_adj))
        os.setpriority(os.PRIO_PROCESS, pid, max(0, os.getpriority(os.PRIO_PROCESS, 0)))
        with contextlib.suppress(OSError):
            _rename(pid, self._spec.name)

    def _greet(self, qmp: QmpClient, timeout: float) -> None:
        qmp.resume()


def _rename(pid: int, name: str) -> None:
    """Show the machine's own name among a process's arguments in place of its original's (proc_pid_cmdline(5)); where
    one is longer than the other, nothing. Raises OSError."""
    key = b"guest="
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read().split(b"\0")
    with open(f"/proc/{pid}/stat") as file:
        begin = int(file.read().rpartition(")")[2].split()[45])  # arg_start, number 48 of proc_pid_stat(5)
    for word in words:
        if word.startswith(key) and len(word.partition(b",")[0]) == len(key) + len(name):
            memory = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
            try:
                os.pwrite(memory, name.encode(), begin + len(key))
            finally:
                os.close(memory)
            return
        begin += len(word) + 1

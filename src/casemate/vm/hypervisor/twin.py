"""QEMU copied while it has a machine in it: the host's side of ``native/twin.c``, whose messages are described there.

An emulator translates each piece of a guest's code when it is executed for the first time, and one that has just begun
has nothing translated. A copy by fork(2) has all that its *original* has translated, and shares it, the guest's memory
and QEMU's own with it until it writes to them. The library that makes that possible is loaded into the original by
``LD_PRELOAD``; without it there are no twins.

With KVM a machine belongs to the process that has made it and cannot be copied; there nothing is translated either.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from casemate.config import machine
from casemate.errors import HypervisorError
from casemate.wall.launch import Process

LIBRARY = Path(__file__).with_name("_twin.so")
"""What ``scripts/native`` makes of ``native/twin.c``."""
ARCHITECTURE = "x86_64"
"""Its registers are what the library knows."""
VARIABLE = "CASEMATE_TWIN"
"""The library's environment variable: the number of its socket."""
CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN = 6, 7, 21
CAPABILITIES = frozenset((CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN))
"""What an original needs so that a twin can become another user in another network namespace."""
MAX_TARGETS = 16
SECONDS = 30.0
"""How long an original or a twin may take for a step: it may have to wait for a processor."""
SETTLE_SECONDS = 20.0
"""How long one may take to give memory back: longer than the library waits for its threads."""
_MAGIC = 0x6E697774
_HEAD = struct.Struct(f"=5I{MAX_TARGETS}i")
_BORN = struct.Struct("=i")
_FAILED = struct.Struct("=ii")
_SETTLED = struct.Struct("=q")
_TICKS = os.sysconf("SC_CLK_TCK")
_PIDFD_GET_INFO = 0xC040FF0B
"""_IOWR(0xFF, 11, struct pidfd_info) of linux/pidfd.h with the structure's first 64 bytes."""
_PIDFD_INFO_EXIT = 1 << 3


def available() -> bool:
    """Whether there can be twins: the library is there, for this architecture."""
    return machine() == ARCHITECTURE and LIBRARY.exists()


@dataclass(frozen=True, slots=True)
class Numbers:
    """Descriptors of an original that a twin has others for: the control socket, the console, the agent's port, the
    window; what QEMU says goes to number 1."""

    qmp: int
    console: int
    port: int
    window: int
    messages: int = 1


@dataclass(slots=True)
class Unborn:
    """A twin that waits to be told what it is to be.

    Arguments:
        life: its life line: it ends when that is closed.
        pidfd: its process.
    """

    life: socket.socket
    pidfd: int

    def alive(self) -> bool:
        """Whether it still waits."""
        poll = select.poll()
        poll.register(self.life, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Give it up."""
        self.life.close()
        os.close(self.pidfd)


def fork(control: socket.socket) -> Unborn:
    """Have an original copied. Its guest must stand still; the original never runs again.

    Arguments:
        control: the library's socket.

    Raises:
        HypervisorError: it could not be.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    fds: list[int] = []
    try:
        control.settimeout(SECONDS)
        socket.send_fds(control, [b"f"], [theirs.fileno()])
        answer, fds, _, _ = socket.recv_fds(control, 64, 1, socket.MSG_CMSG_CLOEXEC)
        if len(answer) != _BORN.size:
            raise HypervisorError("QEMU has ended instead of being copied")
        (pid,) = _BORN.unpack(answer)
        if pid <= 0 or not fds:
            raise HypervisorError(f"QEMU cannot be copied: {os.strerror(-pid)}")
        return Unborn(ours, fds.pop())
    except OSError as error:
        ours.close()
        raise HypervisorError(f"QEMU cannot be copied: {error.strerror or 'no answer'}") from None
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        for fd in fds:
            os.close(fd)


def become(twin: Unborn, uid: int, gid: int, netns: int, instead: Sequence[tuple[int, int]]) -> None:
    """Tell a twin what it is to be, and wait until it runs.

    Arguments:
        uid, gid: whose it will be; not root's.
        netns: the network namespace; not closed.
        instead: descriptors of the original, and for each what takes its place and that of all others of the same
            file; not closed.

    Raises:
        HypervisorError: it does not come up; it has ended then.
    """
    code = filter_code()
    if not uid or not gid or len(instead) > MAX_TARGETS:
        raise HypervisorError("a twin is never root's, and has a bounded number of descriptors replaced")
    targets = [target for target, _ in instead]
    head = _HEAD.pack(_MAGIC, uid, gid, len(targets), len(code) // 8, *targets, *[0] * (MAX_TARGETS - len(targets)))
    try:
        twin.life.settimeout(SECONDS)
        socket.send_fds(twin.life, [head, code], [netns, *(fd for _, fd in instead)])
        answer = twin.life.recv(64)
    except OSError as error:
        raise HypervisorError(f"a copy of QEMU does not come up: {error.strerror or 'no answer'}") from None
    if answer[:1] == b"x" and len(answer) == 1 + _FAILED.size:
        number, line = _FAILED.unpack(answer[1:])
        raise HypervisorError(f"a copy of QEMU does not come up: {os.strerror(number)} (twin.c, line {line})")
    if answer != b"u":
        raise HypervisorError("a copy of QEMU does not come up: it has ended")


# ---- the filter of system calls

_ARCH_X86_64 = 0xC000003E
_X32 = 0x40000000
_CLONE_THREAD = 0x10000
_RET_ALLOW, _RET_KILL, _RET_ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_LD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_AT_NR, _AT_ARCH, _AT_ARG0 = 0, 4, 16
_CLONE, _CLONE3 = 56, 435
FORBIDDEN = frozenset((
    57, 58, 59, 322,  # fork vfork execve execveat
    105, 106, 109, 112, 113, 114, 116, 117, 119, 122, 123,  # set…id setgroups
    155, 161, 165, 166, 272, 308, 428, 429, 430, 431, 432, 433, 442,  # mounts, roots, namespaces
    101, 310, 311, 312, 438,  # ptrace process_vm_… kcmp pidfd_getfd
    41, 42, 43, 49, 50, 288,  # socket connect accept bind listen accept4 (a socketpair is for vhost-user)
    248, 249, 250, 298, 321, 323,  # add_key request_key keyctl perf_event_open bpf userfaultfd
    103, 134, 135, 136, 139, 153, 154, 156, 159, 163, 164, 167, 168, 169, 170, 171, 172, 173, 174, 175, 176, 177, 178,
    179, 180, 227, 246, 303, 304, 305, 313, 320,  # the host's affairs: modules, kexec, swap, clocks, names, quotas …
    181, 182, 183, 184, 185, 236,  # calls that no kernel has any more
))  # fmt: skip
"""What a running QEMU never asks for, by number (arch/x86/entry/syscalls/syscall_64.tbl): what its own ``-sandbox``
forbids, and new sockets, other processes' memory and the kernel's larger interfaces beside it."""
REFUSED = frozenset((
    140, 141, 142, 143, 144, 145, 146, 147, 148, 203, 204, 314, 315,  # getpriority setpriority sched_…
    425, 426, 427,  # io_uring_…
))  # fmt: skip
"""What a library may try: it is told that it may not."""


def filter_code() -> bytes:
    """The filter that a twin installs before it has its threads (:manpage:`seccomp(2)`): a forbidden call ends it. New
    threads are allowed, new processes are not; ``clone3``, whose flags a filter cannot see, is not there, so that
    glibc takes ``clone``."""
    steps: list[tuple[int, int, int, int]] = [
        (_LD, 0, 0, _AT_ARCH), (_JEQ, 1, 0, _ARCH_X86_64), (_RET, 0, 0, _RET_KILL),
        (_LD, 0, 0, _AT_NR), (_JGE, 0, 1, _X32), (_RET, 0, 0, _RET_KILL),
        (_JEQ, 0, 1, _CLONE3), (_RET, 0, 0, _RET_ERRNO | _ENOSYS),
        (_JEQ, 0, 4, _CLONE), (_LD, 0, 0, _AT_ARG0), (_JSET, 1, 0, _CLONE_THREAD), (_RET, 0, 0, _RET_ERRNO | _EPERM),
        (_RET, 0, 0, _RET_ALLOW),
    ]  # fmt: skip
    for numbers, verdict in ((FORBIDDEN, _RET_KILL), (REFUSED, _RET_ERRNO | _EPERM)):
        for number in sorted(numbers):
            steps += [(_JEQ, 0, 1, number), (_RET, 0, 0, verdict)]
    steps.append((_RET, 0, 0, _RET_ALLOW))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


# ---- its process


class TwinProcess(Process):
    """A twin's process, which is nobody's child here: how it ended is told by its descriptor, where the kernel can.

    Arguments:
        twin: owned from here on.

    Raises:
        HypervisorError: it has ended, or is in no pid namespace that can be seen from here.
    """

    def __init__(self, twin: Unborn) -> None:
        try:
            pid = _pid_of(twin.pidfd)
        except BaseException:
            twin.close()
            raise
        super().__init__(pid, twin.pidfd, "qemu")
        self.life = twin.life

    def settle(self) -> int:
        """Have it give back the guest's memory that is again as the original's is; it stands still meanwhile, for some
        milliseconds.

        Returns:
            how many bytes that were.

        Raises:
            HypervisorError: it cannot. It is not to be asked again.
        """
        try:
            self.life.settimeout(SETTLE_SECONDS)
            self.life.send(b"s")
            answer = self.life.recv(64)
        except OSError as error:
            raise HypervisorError(f"a copy of QEMU gives no memory back: {error.strerror or 'no answer'}") from None
        if answer[:1] != b"s" or len(answer) != 1 + _SETTLED.size:
            raise HypervisorError("a copy of QEMU gives no memory back: it has ended")
        (given,) = _SETTLED.unpack(answer[1:])
        if given < 0:
            raise HypervisorError(f"a copy of QEMU gives no memory back: {os.strerror(-given)}")
        return int(given)

    def seconds(self) -> float:
        """How much processor time it has used. Raises OSError."""
        with open(f"/proc/{self.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS  # utime and stime, 14 and 15 of proc_pid_stat(5)

    def _reap(self) -> int | None:
        with self._lock:
            if self._returncode is None and not self._closed:
                self._returncode = _exit_status(self.pidfd)
            return self._returncode

    def close(self) -> None:
        """See :meth:`casemate.wall.launch.Process.close`."""
        super().close()
        self.life.close()


def _pid_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        pid = next((int(line.split()[1]) for line in file if line.startswith("Pid:")), -1)
    if pid <= 0:
        raise HypervisorError("a copy of QEMU has ended, or lives in another pid namespace")
    return pid


def _exit_status(pidfd: int) -> int:
    """As ``waitid`` gives it: minus the signal where one ended it. Known from Linux 6.15 on; else as if it was killed,
    which is how nearly all end."""
    deadline = time.monotonic() + 1.0  # the kernel knows it a moment after the descriptor is readable
    while True:
        info = bytearray(struct.pack("=Q", _PIDFD_INFO_EXIT).ljust(64, b"\0"))
        with contextlib.suppress(OSError):
            fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info, True)
            mask, code = struct.unpack_from("=Q", info)[0], struct.unpack_from("=i", info, 60)[0]
            if mask & _PIDFD_INFO_EXIT:
                return int(-(code & 0x7F) if code & 0x7F else code >> 8)
            if time.monotonic() < deadline:
                select.select([], [], [], 0.001)
                continue
        return -9

"""poll(2), ppoll(2), select(2), pselect6(2)."""

from __future__ import annotations

import resource
import struct
from errno import EINVAL
from typing import TYPE_CHECKING

from casemate.sentry.abi import s32
from casemate.sentry.errno import SysError
from casemate.sentry.signals.state import TemporaryMask
from casemate.sentry.syscalls.table import syscall
from casemate.sentry.vfs.file import (
    POLLERR,
    POLLHUP,
    POLLIN,
    POLLNVAL,
    POLLOUT,
    POLLPRI,
    POLLRDBAND,
    POLLRDNORM,
    POLLWRBAND,
    POLLWRNORM,
)
from casemate.sentry.wait import Block, Restart, WaitQueue

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

SECOND = 1_000_000_000
SIGSET_SIZE = 8
FAR = 1 << 62
"""A deadline that no clock reaches: longer waits end here, as Linux caps them too."""
ALWAYS = POLLERR | POLLHUP
IN_SET = POLLIN | POLLRDNORM | POLLRDBAND | POLLHUP | POLLERR
OUT_SET = POLLOUT | POLLWRNORM | POLLWRBAND | POLLERR
EXCEPT_SET = POLLPRI
_ONE = struct.Struct("<iHH")
"""``struct pollfd``."""


def deadline_after(task: Task, timeout: int | None) -> int | None:
    """The moment at which a wait ends that began when the call did.

    Arguments:
        timeout: nanoseconds, None for ever. At a repeated call it is not looked at: the first one's moment counts.
    """
    blocked = task.blocked
    if "deadline" in blocked:
        deadline: int | None = blocked["deadline"]
        return deadline
    return None if timeout is None else min(task.kernel.clock.monotonic() + timeout, FAR)


def temporary_mask(task: Task, address: int, size: int) -> TemporaryMask:
    """The mask that ppoll(2) and its like have while they wait.

    Arguments:
        address, size: of the signal set; no mask where the address is 0.
    """
    if not address:
        return TemporaryMask(task, None)
    if size != SIGSET_SIZE:
        raise SysError(EINVAL)
    return TemporaryMask(task, task.mem.u64(address))


# poll


@syscall("poll")
def poll(task: Task, fds: int, count: int, timeout: int) -> int:
    """poll(2): ``timeout`` in milliseconds, negative for ever."""
    milliseconds = s32(timeout)
    return _poll(task, fds, count, None if milliseconds < 0 else milliseconds * 1_000_000)


@syscall("ppoll")
def ppoll(task: Task, fds: int, count: int, timeout: int, mask: int, size: int) -> int:
    """ppoll(2). Linux writes the remaining time back; the C library hides that."""
    span = task.mem.timespec(timeout) if timeout and "deadline" not in task.blocked else None
    deadline = deadline_after(task, span)
    with temporary_mask(task, mask, size):
        result = _poll(task, fds, count, span)
    if timeout:
        _write_rest(task, timeout, deadline, timeval=False)
    return result


def _write_rest(task: Task, address: int, deadline: int | None, timeval: bool) -> None:
    """Write back how much time is left. What cannot be written is not: the call has been made."""
    if deadline is None:
        return
    rest = max(deadline - task.kernel.clock.monotonic(), 0)
    seconds, part = divmod(rest, SECOND)
    try:
        task.mem.write(address, struct.pack("<qq", seconds, part // 1000 if timeval else part))
    except SysError:
        return


def _poll(task: Task, address: int, count: int, timeout: int | None) -> int:
    count &= 0xFFFF_FFFF
    if count > task.group.limits.soft(resource.RLIMIT_NOFILE):
        raise SysError(EINVAL)
    mem = task.mem
    if count == 1:
        entries = _ONE.unpack(mem.read(address, 8))
    else:
        entries = struct.unpack("<" + "iHH" * count, mem.read(address, 8 * count))
    peek = task.files.peek
    queues: list[WaitQueue] = []
    answers: list[int] = []
    ready = 0
    for at in range(0, 3 * count, 3):
        fd = entries[at]
        got = 0
        if fd >= 0:
            file = peek(fd)
            if file is None:
                got = POLLNVAL
            else:
                got = file.poll(task) & (entries[at + 1] | ALWAYS)
                queues.append(file.queue)
            if got:
                ready += 1
        answers.append(got)
    if not ready and timeout != 0 and not task.timed_out:
        deadline = deadline_after(task, timeout)
        task.blocked["deadline"] = deadline
        raise Block(*queues, deadline=deadline, restart=Restart.NOHAND)
    if count == 1:
        mem.write(address + 6, answers[0].to_bytes(2, "little"))
    elif count:
        # Only the answers are ours to write, but the rest has just been read, and may not change while a call uses it.
        values = list(entries)
        values[2::3] = answers
        mem.write(address, struct.pack("<" + "iHH" * count, *values))
    return ready


# select


@syscall("select")
def select(task: Task, count: int, reads: int, writes: int, excepts: int, timeout: int) -> int:
    """select(2), which writes the remaining time back."""
    span = None
    if timeout and "deadline" not in task.blocked:
        seconds, micros = struct.unpack("<qq", task.mem.read(timeout, 16))
        # Linux takes more than a million microseconds as seconds.
        if seconds < 0 or micros < 0:
            raise SysError(EINVAL)
        span = min(seconds, FAR // SECOND) * SECOND + min(micros, FAR // 1000) * 1000
    deadline = deadline_after(task, span)
    result = _select(task, count, (reads, writes, excepts), span)
    if timeout:
        _write_rest(task, timeout, deadline, timeval=True)
    return result


@syscall("pselect6")
def pselect6(task: Task, count: int, reads: int, writes: int, excepts: int, timeout: int, sig: int) -> int:
    """pselect(2); ``sig`` is the address of the mask's address and size."""
    span = task.mem.timespec(timeout) if timeout and "deadline" not in task.blocked else None
    deadline = deadline_after(task, span)
    mask, size = struct.unpack("<QQ", task.mem.read(sig, 16)) if sig else (0, 0)
    with temporary_mask(task, mask, size):
        result = _select(task, count, (reads, writes, excepts), span)
    if timeout:
        _write_rest(task, timeout, deadline, timeval=False)
    return result


def _select(task: Task, count: int, addresses: tuple[int, int, int], timeout: int | None) -> int:
    count = s32(count)
    if count < 0:
        raise SysError(EINVAL)
    files = task.files
    # Linux cuts the number to the size that the table of descriptors has grown to: beyond it nothing can be open.
    count = min(count, task.group.limits.soft(resource.RLIMIT_NOFILE), 1 << 20)
    size = (count + 63) // 64 * 8
    mem = task.mem
    cut = (1 << count) - 1
    asked = [int.from_bytes(mem.read(address, size), "little") & cut if address else 0 for address in addresses]
    got = [0, 0, 0]
    queues: list[WaitQueue] = []
    ready = 0
    rest = asked[0] | asked[1] | asked[2]
    while rest:
        bit = rest & -rest
        rest ^= bit
        file = files.get(bit.bit_length() - 1)
        mask = file.poll(task)
        queues.append(file.queue)
        if mask & IN_SET and asked[0] & bit:
            got[0] |= bit
            ready += 1
        if mask & OUT_SET and asked[1] & bit:
            got[1] |= bit
            ready += 1
        if mask & EXCEPT_SET and asked[2] & bit:
            got[2] |= bit
            ready += 1
    if not ready and timeout != 0 and not task.timed_out:
        deadline = deadline_after(task, timeout)
        task.blocked["deadline"] = deadline
        raise Block(*queues, deadline=deadline, restart=Restart.NOHAND)
    for address, bits in zip(addresses, got, strict=True):
        if address:
            mem.write(address, bits.to_bytes(size, "little"))
    return ready



"""The faster platform: most system calls come as notifications, seccomp_unotify(2); ptrace(2) does the rest.

A notification is answered without a stop of the thread: half the price. It can only give a result. Calls that the
kernel serves by changing registers or by making calls in the thread stop it, as on the plain platform, and so does any
thread whose registers are asked for while it waits for an answer.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import select
import signal
import struct
import time
from collections.abc import Callable
from errno import ENOENT
from typing import Any

from casemate.sentry.abi import U64
from casemate.sentry.errno import SysError
from casemate.sentry.platform import filter as seccomp
from casemate.sentry.platform.base import PASSED, Events, Expected, Gone, Regs
from casemate.sentry.platform.permits import Permits
from casemate.sentry.platform.ptrace import PtracePlatform, PtraceThread
from casemate.sentry.platform.tracing import PTRACE_EVENT_STOP, PTRACE_INTERRUPT, ptrace
from casemate.sentry.syscalls.numbers import NUMBERS

NATIVE: Callable[[int, int, int, int, int, Any], Any] | None
"""The loop's turn in C; None where native/notify.c was not built."""
try:
    from casemate.sentry.platform._notify import step as NATIVE
except ImportError:
    NATIVE = None

SECCOMP_IOCTL_NOTIF_RECV = 0xC0502100
SECCOMP_IOCTL_NOTIF_SEND = 0xC0182101
SECCOMP_IOCTL_NOTIF_SET_FLAGS = 0x40082104
SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP = 1
SECCOMP_USER_NOTIF_FLAG_CONTINUE = 1
_NOTIFICATION = struct.Struct("<QI4xI4x8x6Q")
"""``struct seccomp_notif``: id, pid, and of ``struct seccomp_data`` in it number and arguments."""
_ANSWER = struct.Struct("<QQ8x")
"""``struct seccomp_notif_resp``: id, value. An error is a negative value, as in ``rax``."""
_PASS = struct.Struct("<Q12xI")
"""The same with flags alone."""
_EMPTY = bytes(_NOTIFICATION.size)
EVENTS = 32
"""How many are asked for at once: Python makes room for them each time."""

_STOPPING = (
    # They change registers, memory or threads.
    "execve execveat exit exit_group rt_sigreturn arch_prctl clone clone3 fork vfork "
    "pkey_mprotect mremap remap_file_pages process_madvise shmat shmdt "
    # The kernel makes them in threads.
    "msync mincore mlock mlock2 munlock mlockall munlockall rseq prctl membarrier"
)
STOPPING = frozenset(NUMBERS[name] for name in _STOPPING.split())
"""Calls that stop the thread."""


PASSED_ON = frozenset(NUMBERS[name] for name in ("munmap", "mprotect", "madvise", "brk"))
"""Calls that the host may make as they are, once the kernel has checked them: plain values in registers."""
MMAP = NUMBERS["mmap"]
"""Such a one, too, where it is for plain memory without a place (:func:`casemate.sentry.platform.filter.program`); else
it stops the thread."""
PASSING = 2
"""What :attr:`NotifyThread.running` is from :meth:`NotifyThread.pass_on` to the thread's next call: nobody knows
whether the host has made the one that was passed on."""


class NotifyThread(PtraceThread):
    """A thread that stands still in one of two ways: stopped, or waiting for the answer to a notification."""

    platform: NotifyPlatform

    def __init__(self, platform: NotifyPlatform, tid: int, pid: int) -> None:
        super().__init__(platform, tid, pid)
        self.notice = 0
        """The notification that it waits for; 0 for none."""
        self.value: int | None = None
        """The answer that was decided on."""
        self.lost: int | None = None
        """An answer that did not arrive, because a signal of the host's had the thread make its call again."""
        self.passed: tuple[int, tuple[int, ...]] | None = None
        """The call that was passed on, where it is that which did not arrive."""
        self.passing: set[NotifyThread] = set()
        """Threads of the same memory that may still be in a call that was passed on, or have yet to make it; shared by
        all of them."""
        self.listener = platform.listener
        self._permit = -1
        """The place of its permit, :attr:`NotifyPlatform.permits`; -1 for none."""

    @property
    def regs(self) -> Regs:
        if self.notice:
            self._stop()
        return self._regs

    def _stop(self) -> None:
        """Stop a thread that waits for an answer. Raises Gone."""
        try:
            ptrace(PTRACE_INTERRUPT, self.tid)
            status = self.platform.await_stop(self)
        except (OSError, ChildProcessError):
            raise Gone from None
        if not os.WIFSTOPPED(status):
            self.platform.put_off(self.tid, status)
            raise Gone
        self.notice = 0
        self.load()
        self.entered = False
        if status >> 8 != signal.SIGTRAP | PTRACE_EVENT_STOP << 8:
            # A signal of the host's: the stop that was asked for comes later, and means nothing then.
            pass
        if self.value is not None:
            super().finish(self.value)
            self.value = None

    def finish(self, value: int) -> None:
        if self.notice:
            self.value = value
        else:
            super().finish(value)

    def resume(self) -> None:
        notice = self.notice
        if not notice:
            super().resume()
            return
        value = self.value
        assert value is not None, "a call without an answer"
        self.value = None
        self.answer(value)

    def answer(self, value: int) -> None:
        notice = self.notice
        if not notice:
            super().answer(value)
            return
        self.notice = 0
        try:
            fcntl.ioctl(self.listener, SECCOMP_IOCTL_NOTIF_SEND, _ANSWER.pack(notice, value & U64))
        except OSError as error:
            if error.errno != ENOENT:
                raise
            self.lose(value)
        self.running = True

    def lose(self, value: int) -> None:
        """An answer did not arrive: it makes its call again, or was killed, and nobody asks again."""
        self.lost = value
        if self._permit >= 0:  # that call is to be told, whatever it is
            self.platform.permits.stop(self._permit)

    @property
    def passes(self) -> bool:  # type: ignore[override]
        return self.notice != 0 and self.platform.passes

    def pass_on(self, number: int, args: tuple[int, ...], expected: Expected | None = None) -> None:
        notice = self.notice
        if not notice or (number not in PASSED_ON and (number != MMAP or expected is None)):
            raise AssertionError(f"call {number} is not to be passed on")
        if self.passing:
            self._settle()
        self.expected = expected
        self.notice = 0
        packed = _PASS.pack(notice, SECCOMP_USER_NOTIF_FLAG_CONTINUE)
        try:
            fcntl.ioctl(self.listener, SECCOMP_IOCTL_NOTIF_SEND, packed)
        except OSError as error:
            if error.errno != ENOENT:
                raise
            self.running = True  # it makes its call again, or was killed
            self.lose(0)
            self.passed = number, args
        else:
            self.running = PASSING
        self.passing.add(self)

    def confirm(self) -> None:
        if self.passed is None:
            super().confirm()

    def permit_brk(self, low: int, high: int, settle: Callable[[], None]) -> bool:
        if not self.passes or not self.platform.native or self._permit >= 0:
            return False
        if self.expected is not None or self.lost is not None:
            return False
        self._permit = self.platform.permits.give(self.tid, low, high, settle)
        return True

    def take_back(self) -> tuple[int, int]:
        place, self._permit = self._permit, -1
        return self.platform.permits.take_back(place) if place >= 0 else (0, 0)

    def unseen(self, expected: Expected | None) -> None:
        if not self.running:
            super().unseen(expected)
            return
        self.expected = expected
        self.running = PASSING
        self.passing.add(self)

    def _settle(self) -> None:
        """Be sure that the host has made all calls of this memory that were passed on: the next one, of another thread,
        must not be made before them."""
        threads = list(self.passing)
        self.passing.clear()
        for thread in threads:
            # What is stopped now has come back from its call, or it did not get there: interrupt() makes that up for.
            if thread is not self and (thread.running == PASSING or thread.passed) and thread.interrupt():
                thread.resume()
            if thread.expected is not None:
                thread.confirm()

    def interrupt(self) -> bool:
        if super().interrupt():
            return True
        if not self.passed or self.running:
            return False
        # What has it make its call again is a signal of the host's. That it stopped for it means nothing else.
        missed = self.platform.missed
        stop = next((one for one in missed if one[0] == self.tid and os.WIFSTOPPED(one[1])), None)
        if stop is None:
            return False  # it was killed
        missed.remove(stop)
        try:
            self.load()
        except Gone:
            return False
        self.entered = False
        self._restarted()
        return True

    def xstate(self) -> bytes:
        if self.notice:
            self._stop()
        return super().xstate()

    def set_xstate(self, state: bytes) -> None:
        if self.notice:
            self._stop()
        super().set_xstate(state)

    def syscall(self, number: int, *args: int) -> int:
        if self.notice:
            self._stop()
        if self.passing:
            self._settle()
        return super().syscall(number, *args)

    def mappings(self) -> list[tuple[int, int]]:
        if self.passing:
            self._settle()
        return super().mappings()

    def clone(self, share_memory: bool, same_group: bool) -> PtraceThread:
        if self.notice:
            self._stop()
        if self.passing:
            self._settle()
        child = super().clone(share_memory, same_group)
        if share_memory and isinstance(child, NotifyThread):
            child.passing = self.passing
        return child

    def end(self) -> None:
        if self.notice:
            self._stop()
        super().end()

    def _restarted(self) -> None:
        if self.passed is not None:
            # What comes next need not be that call: a signal's handler may.
            number, args = self.passed
            self.passed = None
            try:
                self.lost = self._make(number, args)
            except Gone:
                return  # wait() will tell
        if self.lost is not None:
            super().finish(self.lost)
            self.lost = None
        else:
            super()._restarted()

    def _make(self, number: int, args: tuple[int, ...]) -> int:
        """Make the call that was not passed on after all. Raises Gone."""
        expected, self.expected = self.expected, None
        try:
            return super().syscall(number, *(args[:3] if expected is None else expected.instead()))
        except SysError as error:
            return -error.errno
        finally:
            if expected is not None:
                expected.confirm()


class NotifyPlatform(PtracePlatform):
    """As :class:`PtracePlatform`, with the listener of the stubs' filter beside.

    Arguments:
        native: have the loop's turn made in C (``native/notify.c``) where that is built.
    """

    name = "notify"

    def __init__(self, proc: int, native: bool = True) -> None:
        self.listener = -1
        self._native = NATIVE if native else None
        self.permits = Permits()
        self.passes = _version() >= (5, 5)  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
        self._buffer = bytearray(_NOTIFICATION.size)
        super().__init__(proc)
        self._epoll.register(self.listener, select.EPOLLIN)

    @property
    def native(self) -> bool:
        """Whether the loop's turn is made in C."""
        return self._native is not None

    def make_thread(self, tid: int, pid: int) -> PtraceThread:
        self.permits.forget(tid)
        return NotifyThread(self, tid, pid)

    def _confine(self, results: int) -> None:
        # write(2) is not to be served any more when the filter is there, so the descriptor's number is foretold: both
        # have one table, in which nobody else opens anything now.
        probe = os.dup(results)
        os.close(probe)
        os.write(results, struct.pack("<i", probe))
        program = seccomp.program(STOPPING if self.passes else {*STOPPING, MMAP}, PASSED_ON, plain=self.passes)
        seccomp.install(program, seccomp.SECCOMP_FILTER_FLAG_NEW_LISTENER)

    def _confined(self, results: int) -> None:
        self.listener = struct.unpack("<i", os.read(results, 4))[0]
        with contextlib.suppress(OSError):  # before Linux 6.6: slower
            fcntl.ioctl(self.listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)

    def wait(self, events: Events, timeout_ns: int | None) -> None:
        if self.missed:
            self._collect(events)
            timeout_ns = 0
        self._wait(events, timeout_ns)

    def _wait(self, events: Events, timeout_ns: int | None) -> None:
        """Serve calls as long as they are all there is to do."""
        deadline = None if timeout_ns is None else time.monotonic_ns() + timeout_ns
        timeout = -1 if timeout_ns is None else -(-timeout_ns // 1_000_000)
        step, native, threads = self._step, self._native, self.threads
        epoll, listener, permits = self._epoll.fileno(), self.listener, self.permits.table
        thread: Any = None
        notice = value = 0
        answer: int | None
        while True:
            if native is not None:
                found: Any = native(epoll, listener, timeout, notice, value, permits)
            else:
                found = step(timeout, notice, value)
            if found is None:
                thread.lose(value)
                notice = 0
                continue
            alone = type(found) is tuple
            if not alone:
                found = self._others(events, found)
                if found is None:
                    return
            notice, tid, number, args = found
            thread = threads.get(tid)
            if thread is None:
                return
            if thread.notice:
                thread.notice = notice  # its call was made again by the host; it is being served
                return
            thread.notice = notice
            thread.running = False
            if thread.expected is not None:
                thread.confirm()
            if thread.lost is None or not self._lost(thread, number, args):
                answer = events.on_syscall(thread, number, args)
                if answer is None:
                    return
                if answer == PASSED:
                    if not alone or self.missed or (deadline is not None and time.monotonic_ns() >= deadline):
                        return
                    notice = 0
                    if deadline is not None:
                        timeout = -(-(deadline - time.monotonic_ns()) // 1_000_000)
                    continue
                value = answer
            else:
                if not thread.notice:
                    return
                value, thread.lost = thread.lost, None
            if deadline is not None:
                left = deadline - time.monotonic_ns()
                timeout = -(-left // 1_000_000)
            if not alone or not thread.notice or self.missed or (deadline is not None and left <= 0):
                thread.answer(value)
                return
            # It is answered by the next step, which mostly finds its next call.
            thread.notice = 0
            thread.running = True

    def _lost(self, thread: NotifyThread, number: int, args: tuple[int, ...]) -> bool:
        """A thread that an answer has not reached makes a call. Gives whether that is the call, which was served."""
        if thread.passed is None:
            return True
        passed, thread.passed, thread.lost = thread.passed, None, None
        if passed != (number, args):
            if thread.expected is not None:
                thread.confirm()
            return False
        if thread.expected is None:
            thread.pass_on(number, args)
            return True
        # What it depended on may have changed meanwhile.
        with contextlib.suppress(Gone):  # wait() will tell
            thread._stop()
            thread.answer(thread._make(number, args))
        return True

    def _others(self, events: Events, found: list[tuple[int, int]]) -> tuple[int, int, int, tuple[int, ...]] | None:
        """Tell those that watch descriptors; gives a notification that is there, too."""
        notified = False
        for fd, mask in found:
            if fd == self.listener:
                notified = True
            elif fd == self._signals:
                self._stops(events)
            else:
                self._tell(events, fd, mask)
        return self._receive() if notified else None

    def _step(
        self, timeout: int, notice: int, value: int
    ) -> tuple[int, int, int, tuple[int, ...]] | list[tuple[int, int]] | None:
        """Answer one notification and wait for what comes next: what ``native/notify.c`` does in one call.

        Arguments:
            timeout: milliseconds; -1 for as long as it takes.
            notice: which notification; 0 for none.
            value: the answer.

        Returns a notification (its number, the thread's, the call's, six arguments) where that is all there is; a list
        of what is ready (descriptor, events) where it is not, or nothing is; None, without having waited, where the
        answer did not arrive because the thread makes its call anew, or is dead.
        """
        if notice:
            try:
                fcntl.ioctl(self.listener, SECCOMP_IOCTL_NOTIF_SEND, _ANSWER.pack(notice, value & U64))
            except OSError as error:
                if error.errno != ENOENT:
                    raise
                return None
        found = self._epoll.poll(None if timeout < 0 else timeout / 1000, EVENTS)
        if len(found) == 1 and found[0][0] == self.listener:
            return self._receive() or []
        return found

    def _receive(self) -> tuple[int, int, int, tuple[int, ...]] | None:
        """The notification that is there; None where its thread was interrupted or killed in the meantime."""
        buffer = self._buffer
        buffer[:] = _EMPTY
        try:
            fcntl.ioctl(self.listener, SECCOMP_IOCTL_NOTIF_RECV, buffer)
        except OSError as error:
            if error.errno != ENOENT:
                raise
            return None
        words = _NOTIFICATION.unpack(buffer)
        return words[0], words[1], words[2], words[3:]


def _version() -> tuple[int, ...]:
    """The host kernel's."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return tuple(map(int, found.groups())) if found else (0,)


@functools.cache
def available() -> bool:
    """Whether this host has what the platform needs: user notifications, since Linux 5.0."""
    try:
        with open("/proc/sys/kernel/seccomp/actions_avail", encoding="ascii") as file:
            return "user_notif" in file.read().split()
    except OSError:
        return False


def before_isolation() -> None:
    """Look while ``/proc`` is there."""
    available()

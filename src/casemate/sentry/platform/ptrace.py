"""The platform that needs least: every system call stops the thread for its tracer, ptrace(2) with seccomp(2).

The *mold* is a process that has been emptied: in its memory there is the *gate*, one page with a ``syscall``
instruction, and the host's vdso. New spaces are copies of it. All of them share the sentry's descriptor table, so that
its descriptors can be mapped in them; they cannot use these by themselves, as their every call ends here.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import struct
from collections import deque
from errno import EAGAIN, EIO, ENOSYS, ESRCH

from casemate.late import Logger
from casemate.sentry.abi import PAGE_SIZE, U64
from casemate.sentry.errno import SysError
from casemate.sentry.mm.memory import TASK_SIZE
from casemate.sentry.platform import filter as seccomp
from casemate.sentry.platform import tracing
from casemate.sentry.platform.base import Events, Expected, Gone, HostThread, Platform, Regs, Watcher
from casemate.sentry.platform.tracing import (
    PTRACE_CONT,
    PTRACE_EVENT_CLONE,
    PTRACE_EVENT_FORK,
    PTRACE_EVENT_SECCOMP,
    PTRACE_EVENT_STOP,
    PTRACE_EVENT_VFORK,
    PTRACE_GETREGS,
    PTRACE_INTERRUPT,
    PTRACE_SEIZE,
    PTRACE_SETREGS,
    PTRACE_SYSCALL,
    SYSCALL_STOP,
    WALL,
    ptrace,
)
from casemate.sentry.syscalls.numbers import NUMBERS

log = Logger("casemate.sentry")

CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_SIGHAND = 0x100, 0x200, 0x400, 0x800
CLONE_PARENT, CLONE_THREAD = 0x8000, 0x10000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
RSEQ_FLAG_UNREGISTER = 1
MAP_PRIVATE_ANONYMOUS = 0x2 | 0x20
MAP_PRIVATE_ANONYMOUS_FIXED = MAP_PRIVATE_ANONYMOUS | 0x100000  # with MAP_FIXED_NOREPLACE
MAP_POPULATE = 0x8000

MAX_FILL = 64 << 20

SYSCALL = b"\x0f\x05"
GATE_CODE = SYSCALL + b"\xcc"  # then int3
FAULTS = frozenset((signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP))
SPINS = 40
"""How often the kernel asks whether a thread stopped before it sleeps. A program mostly makes its next call at once."""
BATCH = 64
"""Events between looks at the timers."""

# Whole statuses of waitpid(2). The first two stand at a call's begin and at its end.
AT_CALL = (signal.SIGTRAP.value | PTRACE_EVENT_SECCOMP << 8) << 8 | 0x7F
AT_END = SYSCALL_STOP << 8 | 0x7F
INTERRUPTED = (signal.SIGTRAP.value | PTRACE_EVENT_STOP << 8) << 8 | 0x7F

MAX_NUMBER = 0xFFFF
RESTARTS = frozenset(U64 + 1 - code for code in (512, 513, 514, 516))
"""``ERESTARTSYS``, ``ERESTARTNOINTR``, ``ERESTARTNOHAND``, ``ERESTART_RESTARTBLOCK``: the kernel's own, which only
tracers see."""

_FURTHER = (0, 0, 0, 0, 0, seccomp.MARK)
"""Arguments that a call does not have."""

# Words of Regs.
R10, R9, R8, RAX, RDX, RSI, RDI, ORIG_RAX, RIP = 7, 8, 9, 10, 12, 13, 14, 15, 16
FS_BASE, GS_BASE = 21, 22


class PtraceThread(HostThread):
    """A traced thread.

    Arguments:
        gate: where the ``syscall`` instruction of the platform is in its memory.
    """

    def __init__(self, platform: PtracePlatform, tid: int, pid: int) -> None:
        self.platform = platform
        self.tid = tid
        self.pid = pid
        self.owner = None
        self._regs = Regs()
        self._address = ctypes.addressof(self._regs)
        self.image = memoryview(self._regs).cast("B")
        self.words = self.image.cast("Q")
        self.entered = False
        """It stands at a system call that the host has not made yet."""
        self.ending = False
        self.dead = False
        self.expected: Expected | None = None
        """What is to come of the call that was passed on last, until that was confirmed."""

    @property
    def regs(self) -> Regs:
        return self._regs

    def load(self) -> None:
        """Read the registers of a thread that has just stopped. Raises Gone."""
        try:
            ptrace(PTRACE_GETREGS, self.tid, 0, self._address)
        except OSError:
            raise Gone from None

    def finish(self, value: int) -> None:
        words = self.words
        words[RAX] = value & U64
        words[ORIG_RAX] = U64

    def xstate(self) -> bytes:
        return tracing.get_xstate(self.tid)

    def set_xstate(self, state: bytes) -> None:
        tracing.set_xstate(self.tid, state)

    def _store(self) -> None:
        """Load the registers into the thread. Raises OSError (ESRCH: it was killed)."""
        try:
            ptrace(PTRACE_SETREGS, self.tid, 0, self._address)
        except OSError as error:
            if error.errno != EIO:
                raise
            # A program can point its segments into the kernel's half by itself (wrfsbase), a tracer cannot.
            words = self.words
            for base in (FS_BASE, GS_BASE):
                if words[base] >= TASK_SIZE:
                    words[base] = 0
            ptrace(PTRACE_SETREGS, self.tid, 0, self._address)

    def resume(self) -> None:
        if self.entered and self.words[ORIG_RAX] != U64 and not self.ending:
            # A defect of ours. The host would make the application's call now.
            log.error("thread %d stands at call %d without an answer", self.tid, self.words[ORIG_RAX])
            self.finish(-ENOSYS)
        try:
            self._store()
            ptrace(PTRACE_CONT, self.tid)
        except OSError as error:
            if error.errno != ESRCH:
                log.error("thread %d cannot run on: %s", self.tid, error)
                self.platform.kill(self.pid)
            return  # it was killed: wait() will tell
        self.entered = False
        self.running = True
        self.platform.running += 1

    def confirm(self) -> None:
        """It stands still, so the call that was passed on has been made."""
        expected, self.expected = self.expected, None
        if expected is not None:
            expected.confirm()

    def interrupt(self) -> bool:
        if not self.running:
            return False
        try:
            ptrace(PTRACE_INTERRUPT, self.tid)
        except OSError:
            return False
        status = self.platform.await_stop(self)
        self.platform.running -= 1
        if status == INTERRUPTED:
            self.running = False
            try:
                self.load()
            except Gone:
                return False  # wait() will tell
            self.entered = False
            self._restarted()
            return True
        # Something of its own came first. The stop that was asked for comes when it runs on, and means nothing then.
        # It stands still meanwhile: to wait for another stop before that is reported would be to wait for ever.
        self.running = False
        self.platform.missed.append((self.tid, status))
        return False

    def _restarted(self) -> None:
        """Where the stop came while the host had the thread wait at a system call that was not reported yet, let it
        make that call again, as the host would."""
        words = self.words
        if words[ORIG_RAX] <= MAX_NUMBER and words[RAX] in RESTARTS:
            words[RIP] -= len(SYSCALL)
            words[RAX] = words[ORIG_RAX]
            words[ORIG_RAX] = U64

    def end(self) -> None:
        self.ending = True
        self.owner = None
        words = self.words
        words[RDI] = 0
        if self.entered:
            words[ORIG_RAX] = NUMBERS["exit"]
        else:
            words[RIP] = self.platform.gate
            words[RAX] = NUMBERS["exit"]
            words[ORIG_RAX] = U64
        self.resume()

    def kill(self) -> None:
        self.owner = None
        self.platform.kill(self.pid)

    # Calls that the kernel makes in it.

    def syscall(self, number: int, *args: int) -> int:
        saved = bytes(self.image)
        try:
            self._enter(number, args)
            self._go(PTRACE_SYSCALL, AT_END)
            self.load()
            result = self.words[RAX]
        finally:
            self.image[:] = saved
        self.entered = False
        if result > U64 - 4095:
            raise SysError((1 << 64) - result)
        return result

    def _enter(self, number: int, args: tuple[int, ...]) -> None:
        """Have the thread stand at the call. Raises Gone."""
        words = self.words
        a, b, c, d, e, f = (*args, *_FURTHER[len(args) :])
        words[RDI], words[RSI], words[RDX] = a & U64, b & U64, c & U64
        words[R10], words[R8], words[R9] = d & U64, e & U64, f & U64
        if self.entered:
            # It is at a call already, whose number can still be changed. The filter looks again, at a call that the
            # tracer has seen.
            words[ORIG_RAX] = number
        else:
            words[RIP] = self.platform.gate
            words[RAX] = number
            words[ORIG_RAX] = U64
        try:
            self._store()
        except OSError:
            raise Gone from None
        if not self.entered:
            self._go(PTRACE_CONT, AT_CALL)

    def _go(self, request: int, expected: int) -> None:
        """Run to the stop that must come; other stops on the way are of signals that the kernel did not send."""
        for _ in range(1000):
            try:  # noqa: SIM105 – this is the hot one
                ptrace(request, self.tid)
            except OSError:
                pass  # killed: the next line tells
            status = self.platform.await_stop(self)
            if status == expected:
                return
            if not os.WIFSTOPPED(status):
                self.platform.put_off(self.tid, status)
                raise Gone
        log.error("thread %d does not come to its call", self.tid)
        self.platform.kill(self.pid)
        raise Gone

    def mappings(self) -> list[tuple[int, int]]:
        # Its own file: that of a process whose first thread has ended is empty.
        name = f"{self.pid}/task/{self.tid}/maps"
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.platform.proc)
        parts = []
        try:
            while data := os.read(fd, 1 << 16):
                parts.append(data)
        finally:
            os.close(fd)
        ranges = (line.partition(b" ")[0].partition(b"-") for line in b"".join(parts).splitlines())
        return [(int(start, 16), int(end, 16)) for start, _, end in ranges]

    def clone(self, share_memory: bool, same_group: bool) -> PtraceThread:
        saved = bytes(self.image)
        flags = CLONE_FILES
        if same_group:
            flags |= CLONE_VM | CLONE_FS | CLONE_SIGHAND | CLONE_THREAD
        else:
            # Children of the sentry, whoever asked for them: it waits for all.
            flags |= CLONE_PARENT | (CLONE_VM if share_memory else 0)
        child: PtraceThread | None = None
        try:
            status = self._clone_stop(flags)
            while status >> 8 == SYSCALL_STOP:
                self.load()
                self.entered = False
                if self.words[RAX] not in RESTARTS:
                    break
                # The host forks nobody who has a stop before him that was asked for: it comes now, on the way to the
                # gate.
                status = self._clone_stop(flags)
            if status >> 16 in (PTRACE_EVENT_CLONE, PTRACE_EVENT_FORK, PTRACE_EVENT_VFORK):
                try:
                    tid = tracing.event_message(self.tid)
                except OSError:
                    raise Gone from None
                child = self.platform.make_thread(tid, self.pid if same_group else tid)
                self.platform.threads[tid] = child
                status = self.platform.await_stop(child)  # it starts with one
                if not os.WIFSTOPPED(status):
                    self.platform.put_off(tid, status)
                self._go(PTRACE_SYSCALL, AT_END)
            self.load()
            result = self.words[RAX]
        except Gone:
            if child is not None and not same_group:
                child.kill()
            raise
        finally:
            self.image[:] = saved
        self.entered = False
        if child is None:
            raise SysError((1 << 64) - result if result > U64 - 4095 else EAGAIN)
        child.image[:] = saved
        child.words[ORIG_RAX] = U64
        return child

    def _clone_stop(self, flags: int) -> int:
        self._enter(NUMBERS["clone"], (flags, 0, 0, 0, 0))
        while True:
            with contextlib.suppress(OSError):  # killed: the next line tells
                ptrace(PTRACE_SYSCALL, self.tid)
            status = self.platform.await_stop(self)
            if not os.WIFSTOPPED(status):
                self.platform.put_off(self.tid, status)
                raise Gone
            if status >> 8 == SYSCALL_STOP or status >> 16 in (
                PTRACE_EVENT_CLONE,
                PTRACE_EVENT_FORK,
                PTRACE_EVENT_VFORK,
            ):
                return status


class PtracePlatform(Platform):
    """To be made, used and closed by one thread, the tracer.

    Arguments:
        proc: descriptor of a ``/proc`` that shows this process's PID namespace; taken over.
    """

    name = "ptrace"

    def __init__(self, proc: int) -> None:
        self.proc = proc
        self.threads: dict[int, PtraceThread] = {}
        self.others = {}
        self.missed: deque[tuple[int, int]] = deque()
        """Stops that were seen while another one was waited for."""
        self.running = 0
        """How many threads run application code."""
        self.gate = 0
        self._reserved: list[tuple[int, int, str]] = []
        self._watchers: dict[int, Watcher] = {}
        self._epoll = select.epoll()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        self._signals = _signalfd(signal.SIGCHLD)
        self._epoll.register(self._signals, select.EPOLLIN)
        self._mold = self._make_mold()

    def make_thread(self, tid: int, pid: int) -> PtraceThread:
        """The object for a new thread of the host."""
        return PtraceThread(self, tid, pid)

    # Spaces.

    @property
    def reserved(self) -> list[tuple[int, int, str]]:
        return self._reserved

    def _confine(self, results: int) -> None:
        """In the mold: enter the filter; tell the sentry through the pipe ``results`` what it has to know."""
        seccomp.install(seccomp.program())

    def _confined(self, results: int) -> None:
        """In the sentry: the mold is in its filter."""

    def _make_mold(self) -> PtraceThread:
        libc = ctypes.CDLL(None, use_errno=True)
        go_read, go_write = os.pipe()
        told, tell = os.pipe()
        # A fork that shares descriptors; the child runs nothing but the next lines.
        pid: int = libc.syscall(NUMBERS["clone"], CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0)
        if pid < 0:
            raise OSError(ctypes.get_errno(), "clone")
        if pid == 0:
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, [])
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
                libc.prctl(seccomp.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
                os.write(tell, b"\n")  # it can be traced from now on
                os.read(go_read, 1)
                self._confine(tell)
                libc.syscall(NUMBERS["exit_group"], 0)  # stops here, for good
            finally:
                os._exit(1)
        os.read(told, 1)
        ptrace(PTRACE_SEIZE, pid, 0, tracing.OPTIONS)
        os.write(go_write, b"\n")
        os.waitpid(pid, WALL)
        self._confined(told)
        for fd in (go_read, go_write, told, tell):
            os.close(fd)
        mold = self.make_thread(pid, pid)
        self.threads[pid] = mold
        mold.load()
        mold.entered = True
        self._empty(mold)
        return mold

    def _empty(self, mold: PtraceThread) -> None:
        """Leave nothing in the mold's memory but the gate and the host's vdso."""
        self.gate = mold.words[RIP] - len(SYSCALL)  # libc's own, for now
        area, size, signature = tracing.rseq_area(mold.tid)
        if area:
            mold.syscall(NUMBERS["rseq"], area, size, RSEQ_FLAG_UNREGISTER, signature)
        keep = []
        with open(os.open(f"{mold.pid}/maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc), encoding="utf-8") as maps:
            for line in maps:
                fields = line.split()
                start, end = (int(word, 16) for word in fields[0].split("-"))
                name = fields[5] if len(fields) > 5 else ""
                if name == "[vdso]" or name.startswith("[vvar"):
                    keep.append((start, end, "[vdso]" if name == "[vdso]" else "[vvar]"))
        gate = TASK_SIZE - 2 * PAGE_SIZE
        while True:
            try:
                read_execute = 0x1 | 0x4
                mold.syscall(NUMBERS["mmap"], gate, PAGE_SIZE, read_execute, MAP_PRIVATE_ANONYMOUS_FIXED, U64, 0)
                break
            except SysError:
                gate -= PAGE_SIZE
        memory = self.open_memory(mold)
        os.pwrite(memory, GATE_CODE, gate)
        os.close(memory)
        self.gate = gate
        self._reserved = sorted([*keep, (gate, gate + PAGE_SIZE, "")])
        at = 0
        for start, end, _ in [*self._reserved, (TASK_SIZE, TASK_SIZE, "")]:
            if start > at:
                mold.syscall(NUMBERS["munmap"], at, start - at)
            at = end
        self._find_ceiling(mold)

    def _find_ceiling(self, mold: PtraceThread) -> None:
        """Where the host begins to put what asks for no place, in the mold and in all copies of it."""
        pages = []
        for _ in range(3):
            # Populated, which it cannot be: so the filter does not take it for a call of an application's.
            pages.append(mold.syscall(NUMBERS["mmap"], 0, PAGE_SIZE, 0, MAP_PRIVATE_ANONYMOUS | MAP_POPULATE, U64, 0))
        for page in pages:
            mold.syscall(NUMBERS["munmap"], page, PAGE_SIZE)
        first = pages[0]
        ceiling = first + PAGE_SIZE
        if pages != [first, first - PAGE_SIZE, first - 2 * PAGE_SIZE]:
            return  # it does not go down from there
        # The vdso may lie a little below: nothing is to be put in between.
        filled = []
        for start, end, _ in reversed(self._reserved):
            if end <= ceiling:
                if ceiling - end > MAX_FILL:
                    return
                if end < ceiling:
                    mold.syscall(NUMBERS["mmap"], end, ceiling - end, 0, MAP_PRIVATE_ANONYMOUS_FIXED, U64, 0)
                    filled.append((end, ceiling, ""))
                ceiling = start
        self._reserved = sorted([*self._reserved, *filled])
        self.ceiling = ceiling

    def spawn(self) -> PtraceThread:
        thread = self._mold.clone(share_memory=False, same_group=False)
        regs = thread.regs
        code, stack = regs.cs, regs.ss
        thread.image[:] = bytes(tracing.REGS_SIZE)
        regs.cs, regs.ss = code, stack
        regs.eflags = 0x202
        regs.orig_rax = U64
        return thread

    def await_stop(self, thread: PtraceThread) -> int:
        """Wait until a thread stops or ends, and give its status.

        What others come to meanwhile is put off until it is reported. A process's first thread is not told to have
        ended before its others have been waited for, so it cannot be waited for alone: whoever kills the process (the
        host, for want of memory) would have us wait for ever.
        """
        tid = thread.tid
        if self.missed:
            for index, (other, status) in enumerate(self.missed):
                if other == tid:  # it was seen while another one was waited for
                    del self.missed[index]
                    return status
        if tid != thread.pid:
            return os.waitpid(tid, WALL)[1]
        while True:
            other, status = os.waitpid(-1, WALL)
            if other == tid:
                return status
            self.put_off(other, status)

    def put_off(self, tid: int, status: int) -> None:
        """Have what a thread came to reported later."""
        if self._is_other(tid, status):
            return
        thread = self.threads.get(tid)
        if thread is not None and thread.running:
            thread.running = False
            self.running -= 1
        self.missed.append((tid, status))

    def open_memory(self, thread: HostThread) -> int:
        return os.open(f"{thread.pid}/mem", os.O_RDWR | os.O_CLOEXEC, dir_fd=self.proc)

    def kill(self, pid: int) -> None:
        """Kill a host process of ours."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    # Events.

    def wait(self, events: Events, timeout_ns: int | None) -> None:
        if self._collect(events):
            return
        self._wait(events, timeout_ns)

    def _wait(self, events: Events, timeout_ns: int | None) -> None:
        spins = SPINS if self.running else 0
        while spins:
            spins -= 1
            if self._collect(events):
                return
        for fd, mask in self._epoll.poll(-1 if timeout_ns is None else timeout_ns / 1e9):
            if fd == self._signals:
                self._stops(events)
            else:
                self._tell(events, fd, mask)

    def _tell(self, events: Events, fd: int, mask: int) -> None:
        """A watched descriptor is ready."""
        watcher = self._watchers.get(fd)
        if watcher is not None:
            try:
                watcher.ready(mask)
            except Exception:
                self.watch(fd, 0, None)
                events.on_failure(watcher)

    def _stops(self, events: Events) -> None:
        """There are stops to collect."""
        try:  # noqa: SIM105 – likewise
            os.read(self._signals, 256)
        except BlockingIOError:
            pass
        self._collect(events)

    def _collect(self, events: Events) -> bool:
        """Report what threads have come to; whether there was anything."""
        count = 0
        while count < BATCH:
            if self.missed:
                tid, status = self.missed.popleft()
            else:
                try:
                    tid, status = os.waitpid(-1, WALL | os.WNOHANG)
                except ChildProcessError:
                    break
                if tid == 0:
                    break
            count += 1
            self._report(events, tid, status)
        return count > 0

    def _is_other(self, tid: int, status: int) -> bool:
        """Whether it is a child that is no thread; how it ended is kept."""
        if tid not in self.others:
            return False
        self.others[tid] = status
        return True

    def _report(self, events: Events, tid: int, status: int) -> None:
        if self._is_other(tid, status):
            return
        thread = self.threads.get(tid)
        if thread is None:
            if os.WIFSTOPPED(status):
                self.kill(tid)  # whoever was making it has been killed at that
            return
        if thread.running:
            thread.running = False
            self.running -= 1
        if status != AT_CALL and not os.WIFSTOPPED(status):
            del self.threads[tid]
            thread.dead = True
            if thread.owner is not None:
                events.on_gone(thread, status)
            return
        if thread.expected is not None:
            thread.confirm()
        try:
            if status == AT_CALL:
                if thread.ending:
                    thread.load()
                    thread.words[ORIG_RAX] = NUMBERS["exit"]
                    thread._store()
                    self._continue(thread)
                    return
                ptrace(PTRACE_GETREGS, tid, 0, thread._address)
                thread.entered = True
                w = thread.words
                value = events.on_syscall(thread, w[ORIG_RAX], (w[RDI], w[RSI], w[RDX], w[R10], w[R8], w[R9]))
                if value is not None:
                    thread.answer(value)
                return
            event = status >> 8
            if event < 0x80 and event in FAULTS:
                info = tracing.siginfo(tid)
                code = struct.unpack_from("<i", info, 8)[0]
                if code > 0 and not thread.ending:
                    thread.load()
                    thread.entered = False
                    events.on_fault(thread, event, info)
                    return
            # A signal from outside, or a stop that was asked for and is no longer of interest.
            self._continue(thread)
        except OSError as error:
            if error.errno != ESRCH:
                raise
            # Killed in the meantime: its end is reported next.
        except Gone:
            return  # likewise

    def _continue(self, thread: PtraceThread) -> None:
        try:
            ptrace(PTRACE_CONT, thread.tid)
            self.running += 1
            thread.running = True
        except OSError as error:
            if error.errno != ESRCH:
                raise

    def watch(self, fd: int, mask: int, watcher: Watcher | None) -> None:
        if not mask or watcher is None:
            if self._watchers.pop(fd, None) is not None:
                with contextlib.suppress(OSError):  # it is closed already
                    self._epoll.unregister(fd)
        elif fd in self._watchers:
            self._watchers[fd] = watcher
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)
            self._watchers[fd] = watcher

    def close(self) -> None:
        for thread in list(self.threads.values()):
            self.kill(thread.pid)
        # A process's first thread cannot be waited for before its others.
        for tid in sorted(self.threads, key=lambda tid: self.threads[tid].pid == tid):
            with contextlib.suppress(ChildProcessError):
                while os.WIFSTOPPED(os.waitpid(tid, WALL)[1]):
                    pass
        self.threads.clear()
        self._epoll.close()
        os.close(self._signals)
        os.close(self.proc)


def _signalfd(signum: int) -> int:
    """A descriptor that is readable while the (blocked) signal is pending, signalfd(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    mask = ctypes.c_uint64(1 << (signum - 1))
    fd: int = libc.syscall(NUMBERS["signalfd4"], -1, ctypes.byref(mask), 8, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "signalfd")
    return fd

"""What the kernel asks of a platform: host threads that run application code until they need the kernel.

A platform makes *spaces* (host processes, each with a memory of its own) and *threads* in them. Application code runs
natively in a thread until it makes a system call or a fault: then the thread stands still, the platform reports an
event, and the thread stays so until :meth:`HostThread.resume`. No system call of an application is made by the host
but those that the kernel itself makes in the thread by :meth:`HostThread.syscall`, and the few that it has checked and
hands on by :meth:`HostThread.pass_on`.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

from casemate.sentry.errno import SysError

_REGISTERS = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
    "fs_base gs_base ds es fs gs"
)


class Regs(ctypes.Structure):
    """The general registers of x86-64, ``struct user_regs_struct`` of ``<sys/user.h>``."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in _REGISTERS.split()]


class Expected(ABC):
    """What is to come of a call that was passed on, which nobody has seen."""

    __slots__ = ()

    @abstractmethod
    def confirm(self) -> None:
        """The call was made: see what came of it. To be called before anything else becomes of the memory; must not
        raise."""

    @abstractmethod
    def instead(self) -> tuple[int, ...]:
        """The arguments with which :meth:`HostThread.syscall` makes what was expected, since the call was not passed on
        after all."""


class HostThread(ABC):
    """One thread of the host that runs one task's code.

    Everything but :attr:`tid`, :meth:`interrupt` and :meth:`kill` is for threads that stand still.
    """

    tid: int
    """The host's number for it. The application never sees it."""
    pid: int
    """The host's number of its process."""
    owner: Any = None
    """The task; set by the kernel."""
    running: int = False
    """It runs application code, or is about to tell of an event."""
    passes = False
    """It stands at a system call that :meth:`pass_on` can have the host make."""

    @property
    @abstractmethod
    def regs(self) -> Any:
        """Its registers (:class:`Regs`), to be read and changed in place; :meth:`resume` loads them.

        At a system call ``orig_rax`` is the call's number and ``rip`` is behind the instruction."""

    @abstractmethod
    def finish(self, value: int) -> None:
        """Answer the system call that it stands at: ``rax`` becomes ``value``, and the host makes no call."""

    @abstractmethod
    def xstate(self) -> bytes:
        """The extended state in the processor's XSAVE format (``NT_X86_XSTATE``, ptrace(2))."""

    @abstractmethod
    def set_xstate(self, state: bytes) -> None:
        """Load extended state. The bytes come from the application: raises SysError(EINVAL) when they are no such."""

    @abstractmethod
    def syscall(self, number: int, *args: int) -> int:
        """Make a system call in the thread, on the host, with the kernel's own, checked arguments.

        Descriptors in ``args`` are the sentry's: both have one table. Registers are unchanged afterwards.

        Returns the result. Raises :class:`casemate.sentry.errno.SysError`, and :class:`Gone` when the thread died.
        """

    @abstractmethod
    def mappings(self) -> list[tuple[int, int]]:
        """What the host has mapped in its memory: starts and ends. Raises OSError: that cannot be told now."""

    @abstractmethod
    def clone(self, share_memory: bool, same_group: bool) -> HostThread:
        """Make another thread that stands where this one stands, with the same registers.

        Arguments:
            share_memory: it runs in the same memory (threads, vfork(2)); else in a copy of it, copied on write.
            same_group: a thread of the same host process; needs ``share_memory``.

        Raises:
            SysError: the host has no room for it.
        """

    @abstractmethod
    def resume(self) -> None:
        """Run on, with the registers as they are now."""

    def answer(self, value: int) -> None:
        """:meth:`finish` and :meth:`resume` in one: what happens after most calls."""
        self.finish(value)
        self.resume()

    def pass_on(self, number: int, args: tuple[int, ...], expected: Expected | None = None) -> None:
        """Run on, and have the host make the call that it stands at, whose result nobody here is told.

        The arguments are those in its registers, which nobody can change any more: for calls that take plain values,
        which the kernel has checked, at most three of them, and nothing that is in memory. Where :attr:`passes` is
        never true it is made as those that the kernel asks for.

        Arguments:
            number, args: which call it is, one of those that the platform knows to be such, and what was checked.
            expected: what is to come of it, where that is not certain.
        """
        try:
            value = self.syscall(number, *(args[:3] if expected is None else expected.instead()))
        except SysError as error:
            value = -error.errno
        if expected is not None:
            expected.confirm()
        self.answer(value)

    def permit_brk(self, low: int, high: int, settle: Callable[[], None]) -> bool:
        """Have the host make this thread's brk(2) calls from now on, without telling the kernel, as long as they make
        the heap's end something from ``low`` to ``high``.

        All that the kernel would look at must stay as it is until :meth:`take_back`: limits, what is mapped, filters of
        the application's own. No result is expected, nor has been (:meth:`pass_on`).

        Arguments:
            settle: may be called at any time; is to call :meth:`take_back`.

        Returns whether it is so: not every platform can.
        """
        return False

    def take_back(self) -> tuple[int, int]:
        """The end of :meth:`permit_brk`. Returns what the host was last left to make the heap's end, and before that; 0
        for nothing."""
        return 0, 0

    def unseen(self, expected: Expected | None) -> None:
        """What it made by a permit has come to light: where it still runs it may have yet to make it.

        Arguments:
            expected: as for :meth:`pass_on`.
        """
        if expected is not None:
            expected.confirm()

    @abstractmethod
    def interrupt(self) -> bool:
        """Make a running thread stand still, at once; its registers can be used afterwards.

        Returns false when the thread stands still at an event of its own by now (which will be reported), or died."""

    @abstractmethod
    def end(self) -> None:
        """End this thread alone; the others of its process run on."""

    @abstractmethod
    def kill(self) -> None:
        """Kill the whole host process of this thread, whatever it does."""


PASSED = 1 << 64
"""Of :meth:`Events.on_syscall`: the call was passed on, and its thread runs."""


class Gone(Exception):
    """The host thread died while the kernel did something in it (killed from outside, or for want of memory)."""


class Events(ABC):
    """Whom a platform reports to: the kernel."""

    @abstractmethod
    def on_syscall(self, thread: HostThread, number: int, args: tuple[int, ...]) -> int | None:
        """The thread stands at a system call; six arguments, unsigned 64-bit.

        Returns what the platform is to :meth:`~HostThread.answer` and may then wait on at once, without coming back to
        the kernel's loop; :data:`PASSED` where the thread goes on already, likewise; None where the kernel has seen to
        the thread itself, or will.
        """

    @abstractmethod
    def on_fault(self, thread: HostThread, signum: int, info: bytes) -> None:
        """The processor raised an exception: SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, with its ``siginfo_t`` (128
        bytes)."""

    @abstractmethod
    def on_gone(self, thread: HostThread, status: int) -> None:
        """The thread died without the kernel's doing; ``status`` as of waitpid(2)."""

    @abstractmethod
    def on_failure(self, watcher: Watcher) -> None:
        """A watcher raised the exception that is being handled; its descriptor is not watched any more."""


class Watcher(Protocol):
    """Who is told that a descriptor of the host is ready."""

    def ready(self, mask: int, /) -> None:
        """It has these events, poll(2)."""


class Platform(ABC):
    """Makes threads and waits for what they do."""

    name: str
    proc: int
    """Descriptor of a ``/proc`` of the host that shows its processes."""
    ceiling = 0
    """The host puts what asks for no place below this one, the highest free place first; 0 where nobody can say."""
    others: dict[int, int | None]
    """Children of this process that are no threads, entered by who wants to know how they end: the platform waits for
    all children there are, and puts the status of waitpid(2) here."""

    @abstractmethod
    def spawn(self) -> HostThread:
        """A new host process with one thread that stands still, and nothing in its memory but what the platform needs
        (see :attr:`reserved`). Its registers are zero."""

    @property
    @abstractmethod
    def reserved(self) -> list[tuple[int, int, str]]:
        """Ranges of every new space that applications cannot have or unmap: start, end, and a name for
        ``/proc/PID/maps`` (``[vdso]``, ``[vvar]``, or empty to hide it)."""

    @abstractmethod
    def open_memory(self, thread: HostThread) -> int:
        """A descriptor of the memory of the thread's space (``/proc/PID/mem``), for reading and writing."""

    @abstractmethod
    def wait(self, events: Events, timeout_ns: int | None) -> None:
        """Wait for something to happen and report all that did; also return when a watched descriptor is ready."""

    @abstractmethod
    def watch(self, fd: int, mask: int, watcher: Watcher | None) -> None:
        """Call ``watcher.ready(mask)`` from :meth:`wait` while the host's descriptor has any of the poll(2) events
        (level-triggered); a mask of 0 ends it."""

    @abstractmethod
    def close(self) -> None:
        """Kill everything."""

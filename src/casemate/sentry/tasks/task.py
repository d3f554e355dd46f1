"""Tasks and thread groups: what Linux calls threads and processes."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from casemate.sentry.clock import Timer
from casemate.sentry.wait import Block, WaitQueue

if TYPE_CHECKING:
    from casemate.sentry.creds import Credentials
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.limits import Limits
    from casemate.sentry.mm.space import AddressSpace
    from casemate.sentry.platform.base import HostThread
    from casemate.sentry.signals.state import GroupSignals, TaskSignals
    from casemate.sentry.tasks.session import ProcessGroup
    from casemate.sentry.vfs.context import FsContext
    from casemate.sentry.vfs.fdtable import FdTable


class State(Enum):
    """What a task does, with the letter that ``/proc/PID/stat`` shows."""

    RUNNING = "R"
    """Its host thread runs, or the kernel is about to let it."""
    BLOCKED = "S"
    """It stands at a system call that waits."""
    STOPPED = "T"
    """Stopped by a signal (job control)."""
    ZOMBIE = "Z"
    """A leader that has ended and whose group has not been waited for."""
    DEAD = "X"


class Task:
    """One thread of an application. All belongs to the kernel's one thread, so nothing is locked.

    Arguments:
        tid: its number in its PID namespace.
        thread: the host's thread; None once it is dead.
    """

    def __init__(
        self,
        kernel: Kernel,
        tid: int,
        group: ThreadGroup,
        thread: HostThread,
        mm: AddressSpace,
        fs: FsContext,
        files: FdTable,
        creds: Credentials,
        signals: TaskSignals,
        name: bytes,
    ) -> None:
        self.kernel = kernel
        self.tid = tid
        self.group = group
        self.thread: HostThread | None = thread
        self.mm = mm
        self.fs = fs
        self.files = files
        self.creds = creds
        self.signals = signals
        self.name = name
        """At most 15 bytes, PR_SET_NAME(2const)."""
        self.state = State.RUNNING
        self.started = kernel.clock.monotonic()
        self.clear_child_tid = 0
        """Where a zero is written, and a futex woken, when it ends; set_tid_address(2)."""
        self.robust_list = 0
        self.robust_size = 0
        self.exit_code = 0
        """What wait(2) tells of it: status << 8, or the signal."""
        self.vfork_done: WaitQueue | None = None
        """Notified when it gives its borrowed memory back: the parent of vfork(2) waits."""
        self.no_new_privs = False
        self.prctl: dict[int, int] = {}
        """Small attributes that programs set and read back, prctl(2)."""
        self.seccomp: list[Any] = []
        """The application's own filters, seccomp(2), newest last."""

        # The system call that it is in.
        self.number = -1
        """Its number; -1 when it is in none."""
        self.args: tuple[int, ...] = ()
        self.block: Block | None = None
        """Why it waits."""
        self.blocked: dict[str, Any] = {}
        """What a waiting call keeps between being called, see :mod:`casemate.sentry.wait`."""
        self.timed_out = False
        """The call runs again because its deadline passed."""
        self.timer = Timer(self)

    @property
    def mem(self) -> AddressSpace:
        """The memory that system calls read and write."""
        return self.mm

    @property
    def pid(self) -> int:
        """The number of its thread group, getpid(2)."""
        return self.group.pid

    @property
    def leader(self) -> bool:
        """Whether it is the first thread of its process."""
        return self.tid == self.group.pid

    def wake(self, mask: int) -> None:
        """One of the queues that it waits for was notified."""
        self.kernel.wake(self)

    def expire(self, timer: Timer) -> None:
        """The deadline of its call passed."""
        self.timed_out = True
        self.kernel.wake(self)

    def __repr__(self) -> str:
        return f"<task {self.tid} of {self.group.pid} {self.name.decode('utf-8', 'replace')} {self.state.name}>"


class ThreadGroup:
    """A process: tasks that share a number, signal actions and an end."""

    def __init__(
        self,
        kernel: Kernel,
        pid: int,
        parent: ThreadGroup | None,
        process_group: ProcessGroup,
        signals: GroupSignals,
        limits: Limits,
    ) -> None:
        self.kernel = kernel
        self.pid = pid
        self.parent = parent
        """None for the first of a container and for those that ``exec`` of a door brought in."""
        self.children: dict[int, ThreadGroup] = {}
        self.tasks: dict[int, Task] = {}
        """Living threads by number, oldest first."""
        self.process_group = process_group
        """Which knows its session."""
        self.signals = signals
        self.limits = limits
        self.exit_signal = 0
        """What the parent gets when it ends; 0 for nothing, clone(2)."""
        self.exit_code: int | None = None
        """What all of it ends with, once that is decided (exit_group(2), a fatal signal)."""
        self.exit_queue = WaitQueue()
        """Notified when a thread ends, and at the end of all: pidfd_open(2)."""
        self.zombie = False
        """All tasks have ended, nobody waited for it yet."""
        self.child_wait = WaitQueue()
        """Notified when a child changes state, wait(2)."""
        self.executable: Any = None
        """The open :class:`casemate.sentry.vfs.file.File` of the program, for ``/proc/PID/exe``."""
        self.exec_path = b""
        self.did_exec = False
        self.subreaper = False
        self.dumpable = 1
        self.oom_score_adj = 0
        self.usage: dict[str, int] = {}
        """Processor time of ended tasks and waited-for children, nanoseconds; getrusage(2)."""
        self.cpu_limit: Any = None
        """Watches ``RLIMIT_CPU`` (:class:`casemate.sentry.tasks.usage.CpuLimit`), once that was set."""
        self.door: Any = None
        """Told when it ends, for processes that a door started: has ``ended(status)``."""
        self.container = ""
        self.ns = kernel.ns
        """Its container's namespaces."""

    @property
    def leader(self) -> Task | None:
        """Its first thread, while that lives."""
        return self.tasks.get(self.pid)

    @property
    def any_task(self) -> Task | None:
        """Some living thread, the leader if possible."""
        task = self.tasks.get(self.pid)
        if task is None:
            task = next(iter(self.tasks.values()), None)
        return task

    def __repr__(self) -> str:
        return f"<process {self.pid} of {len(self.tasks)} tasks>"

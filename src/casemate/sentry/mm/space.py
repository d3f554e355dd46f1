"""Address spaces: the memory of a process, with its heap and its stack."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from casemate.sentry.abi import PAGE_SIZE, page_down, page_up
from casemate.sentry.errno import SysError
from casemate.sentry.mm.layout import Layout
from casemate.sentry.mm.mapping import (
    MAP_ANONYMOUS,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_STACK,
    MAX_MAP_COUNT,
    MMAP_MIN_ADDR,
    STACK_GUARD_GAP,
    MappedMemory,
)
from casemate.sentry.mm.memory import TASK_SIZE
from casemate.sentry.mm.passed import ExpectedHeap
from casemate.sentry.mm.room import Room
from casemate.sentry.mm.vma import (
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    VM_GROWSDOWN,
    VM_MAYALL,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_SEALED,
    Vma,
)
from casemate.sentry.syscalls.numbers import NUMBERS
from casemate.sentry.wait import Passed

if TYPE_CHECKING:
    from casemate.sentry.platform.base import HostThread

SYS_BRK = NUMBERS["brk"]


class AddressSpace(MappedMemory):
    """The memory of a process: of all tasks that share it (``CLONE_VM``).

    Arguments:
        fd: of ``/proc/PID/mem``, taken over.
        reserved: ranges of the platform, see :attr:`casemate.sentry.platform.base.Platform.reserved`.
        layout: where things go by themselves; another random one if None.
    """

    __slots__ = (
        "_brk",
        "arg_end",
        "arg_start",
        "auxv",
        "end_code",
        "end_data",
        "env_end",
        "env_start",
        "heap_told",
        "layout",
        "refs",
        "stack_start",
        "start_brk",
        "start_code",
        "start_data",
    )

    def __init__(
        self, fd: int, reserved: Iterable[tuple[int, int, str]] = (), layout: Layout | None = None
    ) -> None:
        self.layout = layout if layout is not None else Layout()
        super().__init__(fd, self.layout.mmap_base)
        self.refs = 1
        self.start_brk = self._brk = 0
        """Where the heap starts, and where it ends now, brk(2). The loader sets both by :meth:`set_heap`."""
        self.heap_told = False
        """The host has the same heap, and can serve brk(2) by itself (``passed.py``)."""
        # Told by the loader, shown by proc_pid_stat(5), proc_pid_cmdline(5), proc_pid_environ(5), proc_pid_auxv(5).
        self.arg_start = self.arg_end = self.env_start = self.env_end = 0
        self.start_code = self.end_code = self.start_data = self.end_data = 0
        self.stack_start = 0
        """The stack pointer that the program started with."""
        self.auxv = b""
        for start, end, name in reserved:
            prot = PROT_READ | (PROT_EXEC if name != "[vvar]" else 0)
            self.regions.add(Vma(start, end, prot, VM_SEALED | VM_MAYREAD | VM_MAYEXEC, name=name.encode()))

    def fork(self, fd: int) -> AddressSpace:
        """The copy that a forked process has, fork(2).

        Arguments:
            fd: of the memory of the host process that is a copy already (:meth:`HostThread.clone` without shared
                memory), taken over.
        """
        new = AddressSpace(fd, (), self.layout)
        new._regions = self.regions.copy()
        new.room = Room(self.room)
        for name in _COPIED:
            setattr(new, name, getattr(self, name))
        return new

    def incref(self) -> AddressSpace:
        """One more task shares it."""
        self.refs += 1
        return self

    def decref(self) -> None:
        """One task less; after the last one files and the descriptor are given back. The memory goes with the host's
        process."""
        self.refs -= 1
        if self.refs == 0:
            self.regions.clear()
            self.close()

    # The heap.

    @property
    def brk(self) -> int:
        """Where the heap ends now."""
        if self.permitted is not None:
            self.settle_heap()
        return self._brk

    @brk.setter
    def brk(self, end: int) -> None:
        self._brk = end

    def set_heap(self, start: int) -> None:
        """Where the heap starts: the loader, behind the program's data."""
        self.start_brk = self.brk = start

    def set_brk(self, thread: HostThread, wanted: int, passing: bool = False) -> int:
        """brk(2) without its limits: the heap's end, which is the old one where the new one cannot be.

        Arguments:
            passing: the host could make the call by itself, as it was made.

        Raises:
            Passed: it is to do so.
        """
        if wanted < self.start_brk or wanted > TASK_SIZE:
            return self.brk
        old_end, new_end = page_up(self.brk), page_up(wanted)
        # No closer to what follows than a page, and not below a stack that may need the room.
        if new_end > old_end and not self.roomy(old_end, new_end + PAGE_SIZE):
            return self.brk
        if self.heap_told and new_end != old_end:
            if self._plain_heap(new_end, old_end):
                return self._set_told(thread, old_end, new_end, wanted, passing)
            self.heap_told = False  # from now on it will not be the host's
        try:
            if new_end > old_end:
                flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
                self.map(thread, old_end, new_end - old_end, PROT_READ | PROT_WRITE, flags)
            elif new_end < old_end:
                self.unmap(thread, new_end, old_end - new_end)
        except SysError:
            return self.brk
        self.brk = wanted
        return wanted

    def _plain_heap(self, new_end: int, old_end: int) -> bool:
        """Whether the host's brk(2) does the same as a mapping, or as unmapping what is there."""
        if new_end > old_end:
            return not self.locked_future and len(self.regions) < MAX_MAP_COUNT
        vma = self.regions.find(new_end)
        return vma is not None and vma.end >= old_end and vma.file is None and vma.shared is None

    def _set_told(self, thread: HostThread, old_end: int, new_end: int, wanted: int, passing: bool) -> int:
        old = self.brk
        if not passing and thread.syscall(SYS_BRK, wanted) != wanted:
            return old
        self.brk = wanted
        if new_end < old_end:
            self.regions.remove(new_end, old_end)
        else:
            self.regions.add(Vma(old_end, new_end, PROT_READ | PROT_WRITE, VM_MAYALL))
        if passing:
            raise Passed(ExpectedHeap(self, wanted, old) if new_end > old_end else None)
        return wanted

    def permit_heap(self, thread: HostThread, most: int) -> None:
        """Have the host serve this thread's brk(2), within the memory that is the heap's alone, until somebody looks at
        the heap or at the list of mappings: a program that computes grows and shrinks it for each piece of work.

        Arguments:
            thread: stands at brk(2), which is passed on and has no result to expect.
            most: how far the heap may grow, as far as limits go.
        """
        regions, end = self.regions, page_up(self._brk)
        if not self.heap_told or self.locked_future or len(regions) >= MAX_MAP_COUNT:
            return
        low, high = max(self.start_brk, MMAP_MIN_ADDR), min(most, TASK_SIZE)
        if end > low:
            vma = regions.find(end - 1)
            if vma is None or vma.file is not None or vma.shared is not None or vma.prot != PROT_READ | PROT_WRITE:
                return
            low = max(low, vma.start)
        if self._brk <= high and self.roomy(end, page_up(high) + PAGE_SIZE):
            self.permitted = thread if thread.permit_brk(low, high, self.settle_heap) else None

    def settle_heap(self) -> None:
        thread, self.permitted = self.permitted, None
        if thread is None:
            return
        last, before = thread.take_back()
        if not last:
            return
        old, self._brk = self._brk, last
        old_end, new_end = page_up(old), page_up(last)
        if new_end < old_end:
            self._regions.remove(new_end, old_end)
        elif new_end > old_end:
            self._regions.add(Vma(old_end, new_end, PROT_READ | PROT_WRITE, VM_MAYALL))
        # A smaller one the host cannot have refused, where it had made what came before that.
        grown = new_end > min(old_end, page_up(before or old))
        thread.unseen(ExpectedHeap(self, last, *((before, old) if before else (old,))) if grown else None)

    # The stack.

    def map_stack(self, thread: HostThread, limit: int, prot: int = PROT_READ | PROT_WRITE) -> int:
        """The program's first stack, with all the room that it may grow to (which costs nothing until it is touched).

        Arguments:
            limit: the soft RLIMIT_STACK, bytes.
            prot: with ``PROT_EXEC`` where the program asks for an executable stack.

        Returns the address of its end.
        """
        size = self.layout.stack_size(limit)
        top = self.layout.stack_top
        while not self.regions.free(top - size, top):
            # The platform's pages are where the host put them.
            top = self.regions.within(top - size, top)[0].start - PAGE_SIZE
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK | MAP_FIXED_NOREPLACE
        self.map(thread, top - size, size, prot, flags | MAP_GROWSDOWN, name=b"[stack]")
        return top

    def grow(self, thread: HostThread, address: int, limit: int) -> bool:
        """Let what grows down reach an address that was touched below it; false when nothing may.

        Arguments:
            address: where the fault was.
            limit: the soft RLIMIT_STACK, bytes.
        """
        if not MMAP_MIN_ADDR <= address < TASK_SIZE:
            return False
        regions = self.regions
        index = regions.index(address)
        if index >= len(regions.vmas):
            return False
        vma = regions.vmas[index]
        start = page_down(address)
        if vma.start <= address or not vma.flags & VM_GROWSDOWN or vma.end - start > limit:
            return False
        if index and regions.vmas[index - 1].prot and start - regions.vmas[index - 1].end < STACK_GUARD_GAP:
            return False
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE
        try:
            self.map(thread, start, vma.start - start, vma.prot, flags, name=vma.name)
        except SysError:
            return False
        return True

    def heap_at(self, vma: Vma) -> bool:
        """Whether ``/proc/PID/maps`` calls this mapping ``[heap]``."""
        return vma.start < self.brk and vma.end > self.start_brk and vma.file is None and not vma.name


_COPIED = (
    "fence",
    "foretold",
    "heap_told",
    "start_brk",
    "brk",
    "arg_start",
    "arg_end",
    "env_start",
    "env_end",
    "start_code",
    "end_code",
    "start_data",
    "end_data",
    "stack_start",
    "auxv",
)

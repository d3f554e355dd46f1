"""Where things are put in a new address space."""

from __future__ import annotations

import os

from casemate.sentry.abi import PAGE_SIZE, page_up
from casemate.sentry.mm.memory import TASK_SIZE

MIN_STACK = 128 * 1024
MAX_STACK = 1 << 30
"""The room that an unlimited stack gets at the start; it grows on, should that be too little."""
GAP = 1 << 20


class Layout:
    """The addresses that one program starts with, random as with ``/proc/sys/kernel/randomize_va_space`` at 2.

    Arguments:
        randomize: false for programs that asked for fixed addresses, ``ADDR_NO_RANDOMIZE`` of personality(2).
        stack_limit: the soft RLIMIT_STACK, bytes: mappings go below the room that the stack may need.
        ceiling: of the platform.
    """

    __slots__ = ("ceiling", "exec_base", "heap_gap", "mmap_base", "randomize", "stack_top")

    def __init__(self, randomize: bool = True, stack_limit: int = 8 << 20, ceiling: int = 0) -> None:
        self.randomize = randomize
        self.ceiling = ceiling
        """See :attr:`casemate.sentry.platform.base.Platform.ceiling`."""
        self.stack_top = TASK_SIZE - PAGE_SIZE - self._pages(22)
        """The end of the first stack."""
        room = max(min(stack_limit, TASK_SIZE // 6 * 5), 128 << 20) + GAP
        self.mmap_base = TASK_SIZE - (16 << 30) - (room + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE
        if randomize:
            self.mmap_base = min(self.mmap_base, ceiling or TASK_SIZE) - self._pages(28)
        """Mappings that ask for no address go below this one, the highest first."""
        self.exec_base = (TASK_SIZE // 3 * 2 & -PAGE_SIZE) + self._pages(26)
        """Where a position-independent program goes (``ET_DYN`` with an interpreter)."""
        self.heap_gap = self._pages(13)
        """Between a program's data and its heap."""

    def _pages(self, bits: int) -> int:
        """A random number of whole pages, in bytes."""
        return int.from_bytes(os.urandom(8), "little") % (1 << bits) * PAGE_SIZE if self.randomize else 0

    @staticmethod
    def stack_size(limit: int) -> int:
        """How large the first stack is made for this RLIMIT_STACK."""
        return page_up(min(max(limit, MIN_STACK), MAX_STACK))

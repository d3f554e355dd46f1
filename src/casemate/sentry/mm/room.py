"""Whether the host is sure to do what it is asked.

Of calls that are passed on (:meth:`casemate.sentry.platform.base.HostThread.pass_on`) the sentry does not see the
result. So that its list and the host's mappings stay the same only those are which the host has no reason to refuse:

* It has room for further mappings. How many it has is more than the list shows, for it splits and joins them by rules
  of its own. What it can have at most is kept here, and is counted when that comes near the bound.
* It does not bound memory by what could be written (``vm.overcommit_memory`` of 2, RLIMIT_AS, RLIMIT_DATA), or only
  what no machine has.
* It has let memory without a file be made executable before, which security modules may forbid. Files lie on file
  systems that may be mounted ``noexec`` on the host: those are not asked for by such calls.

What is left is a host that has no memory for a mapping's description; it kills first.
"""

from __future__ import annotations

import functools
import resource
from typing import TYPE_CHECKING

from casemate.sentry.mm.vma import PROT_EXEC, PROT_WRITE, VM_SHARED, Vma

if TYPE_CHECKING:
    from casemate.sentry.platform.base import HostThread

DEFAULT_MAPPINGS = 65530
"""``vm.max_map_count`` where nobody has set another one."""
WRITABLE = 64 << 20
"""Up to so many bytes no host refuses to make writable by its usual rule (``vm.overcommit_memory`` of 0): it does when
they are more than all of its memory."""


class Room:
    """What is known of the host's side of one memory."""

    __slots__ = ("_count_at", "_enough", "executable", "most")

    def __init__(self, other: Room | None = None) -> None:
        self.most: int = other.most if other is not None else 16
        """More mappings than these the host does not have. Whoever has it make a call adds what that can add."""
        self.executable: bool = other is not None and other.executable
        """Memory without a file was made executable, and the host agreed."""
        self._count_at = 0
        self._enough = True

    def for_more(self, thread: HostThread) -> bool:
        """Whether the host is sure to have room for two further mappings; takes them to be made.

        Arguments:
            thread: any thread of the memory that stands still.
        """
        self.most += 2
        if self.most > self._count_at:
            self._look(thread)
        return self._enough

    def _look(self, thread: HostThread) -> None:
        bound = host_bounds()[0]
        if self.most <= bound // 4:
            self._count_at = bound // 4
            return
        try:
            self.most = len(thread.mappings()) + 2
            self._enough = self.most < bound // 2
        except OSError:  # no descriptor is left, or it was killed
            self._enough = False
        self._count_at = self.most + bound // 4

    def grants(self, vma: Vma, prot: int, size: int) -> bool:
        """Whether the host is sure to give a part of a mapping other rights, as far as those go.

        Arguments:
            prot: all that it is to have.
            size: of the part, bytes.
        """
        more = prot & ~vma.prot
        if more & PROT_WRITE and size > host_bounds()[1]:
            return False
        return not more & PROT_EXEC or (self.executable and of_nobody(vma))

    def granted(self, vma: Vma, prot: int) -> None:
        """The host has given it those."""
        if prot & PROT_EXEC and of_nobody(vma):
            self.executable = True


def of_nobody(vma: Vma) -> bool:
    """Whether it is memory without a file that is not shared."""
    return vma.file is None and not vma.flags & VM_SHARED


@functools.cache
def host_bounds() -> tuple[int, int]:
    """How many mappings the host lets a process have; and up to how many bytes at once it is sure to make writable."""
    bound = _setting("max_map_count", DEFAULT_MAPPINGS)
    strict = _setting("overcommit_memory", 0) == 2
    for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        strict = strict or resource.getrlimit(limit)[0] != resource.RLIM_INFINITY
    return bound, 0 if strict else WRITABLE


def _setting(name: str, otherwise: int) -> int:
    try:
        with open(f"/proc/sys/vm/{name}", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return otherwise


def before_isolation() -> None:
    """Look while ``/proc`` is there."""
    host_bounds()

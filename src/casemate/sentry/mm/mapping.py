"""Mapping memory: every change is made on the host first, then in the list of mappings, so that both stay in step.

But for what is passed on to the host: that is in the list first, and looked at afterwards (``passed.py``).
"""

from __future__ import annotations

import os
from bisect import bisect_right
from errno import EACCES, EEXIST, EFAULT, EINVAL, EMFILE, ENFILE, ENODEV, ENOMEM, EOVERFLOW, EPERM
from typing import TYPE_CHECKING

from casemate.sentry.abi import PAGE_SIZE, U64, page_up
from casemate.sentry.errno import SysError
from casemate.sentry.mm.memory import TASK_SIZE, Memory
from casemate.sentry.mm.room import Room
from casemate.sentry.mm.vma import (
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_MAYALL,
    VM_MAYEXEC,
    VM_MAYWRITE,
    VM_NORESERVE,
    VM_SEALED,
    VM_SHARED,
    Regions,
    SharedMemory,
    Vma,
)
from casemate.sentry.syscalls.numbers import NUMBERS

if TYPE_CHECKING:
    from casemate.sentry.platform.base import HostThread
    from casemate.sentry.vfs.file import File

MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE = 0x1, 0x2, 0x3
MAP_TYPE = 0xF
MAP_FIXED, MAP_ANONYMOUS, MAP_32BIT = 0x10, 0x20, 0x40
MAP_GROWSDOWN, MAP_LOCKED, MAP_NORESERVE = 0x100, 0x2000, 0x4000
MAP_POPULATE, MAP_NONBLOCK, MAP_STACK = 0x8000, 0x10000, 0x20000
MAP_HUGETLB, MAP_SYNC, MAP_FIXED_NOREPLACE = 0x40000, 0x80000, 0x100000

MS_NOEXEC = 8
"""Of a mount, mount(2)."""
MMAP_MIN_ADDR = 0x10000
"""``/proc/sys/vm/mmap_min_addr``."""
MAX_MAP_COUNT = 65530
"""``/proc/sys/vm/max_map_count``."""
SHORT_PATH = 256
"""How much is read at first where a path is."""
STACK_GUARD_GAP = 256 * PAGE_SIZE
"""Never mapped by chance below what grows down."""

SYS_MMAP, SYS_MPROTECT, SYS_MUNMAP = NUMBERS["mmap"], NUMBERS["mprotect"], NUMBERS["munmap"]

# What of the application's flags the host is given; the place is always ours.
_HOST_FLAGS = MAP_ANONYMOUS | MAP_NORESERVE | MAP_POPULATE | MAP_NONBLOCK | MAP_STACK


class MappedMemory(Memory):
    """Memory that knows what is mapped in it, and maps more.

    The address is chosen here, and the host makes the call in one of the space's threads. Methods with a ``thread``
    want any thread of this space that stands still.

    Arguments:
        fd: of ``/proc/PID/mem``, taken over.
        mmap_base: mappings that ask for no address go below this one, the highest first.
    """

    __slots__ = ("_regions", "fence", "foretold", "locked_future", "mmap_base", "permitted", "room")

    def __init__(self, fd: int, mmap_base: int) -> None:
        super().__init__(fd)
        self.mmap_base = mmap_base
        self._regions = Regions()
        self.permitted: HostThread | None = None
        """The thread whose brk(2) the host serves at present, without telling (:meth:`HostThread.permit_brk`)."""
        self.room = Room()
        self.locked_future = 0
        """``MCL_FUTURE`` as flags for new mappings, mlockall(2): ``VM_LOCKED`` or 0."""
        self.fence: tuple[int, int] | None = None
        """What is mapped on the host alone, so that this puts what asks for no place where :meth:`place` does
        (``passed.py``)."""
        self.foretold = True
        """It has always done so."""

    @property
    def regions(self) -> Regions:
        """What is mapped."""
        if self.permitted is not None:
            self.settle_heap()
        return self._regions

    def settle_heap(self) -> None:
        """Have brk(2) told again, and make up for what was not."""

    # What applications may touch.

    def readable(self, address: int, size: int) -> bool:
        regions = self.regions
        index = bisect_right(regions.starts, address) - 1
        if index < 0:
            return False
        vma = regions.vmas[index]
        end = address + size
        if end <= vma.end:
            return bool(vma.prot) and end > address
        return self._all(address, end, PROT_READ | PROT_WRITE | PROT_EXEC)

    def writable(self, address: int, size: int) -> bool:
        regions = self.regions
        index = bisect_right(regions.starts, address) - 1
        if index < 0:
            return False
        vma = regions.vmas[index]
        end = address + size
        if end <= vma.end:
            return bool(vma.prot & PROT_WRITE)
        return self._all(address, end, PROT_WRITE)

    # Nearly every access is within one mapping: what Memory does by readable() and writable(), in one step. What the
    # heap has lost without being told is EFAULT from the host; what it has got is found on the longer way.

    def read(self, address: int, size: int) -> bytes:
        regions = self._regions
        index = bisect_right(regions.starts, address) - 1
        if index >= 0 and size:
            vma = regions.vmas[index]
            if address + size <= vma.end and vma.prot:
                try:
                    data = os.pread(self.fd, size, address)
                except OSError:
                    raise SysError(EFAULT) from None
                if len(data) == size:
                    return data
        return super().read(address, size)

    def write(self, address: int, data: bytes) -> None:
        size = len(data)
        regions = self._regions
        index = bisect_right(regions.starts, address) - 1
        if index >= 0 and size:
            vma = regions.vmas[index]
            if address + size <= vma.end and vma.prot & PROT_WRITE:
                try:
                    if os.pwrite(self.fd, data, address) == size:
                        return
                except OSError:
                    raise SysError(EFAULT) from None
        super().write(address, data)

    def path(self, address: int) -> bytes:
        regions = self._regions
        index = bisect_right(regions.starts, address) - 1
        if index >= 0:
            vma = regions.vmas[index]
            size = vma.end - address
            if size > 0 and vma.prot:
                try:
                    # Fewer bytes come where there is no page behind those.
                    data = os.pread(self.fd, size if size < SHORT_PATH else SHORT_PATH, address)
                except OSError:
                    raise SysError(EFAULT) from None
                end = data.find(0)
                if end >= 0:
                    return data[:end]
        return super().path(address)

    def _all(self, start: int, end: int, prot: int) -> bool:
        at = start
        for vma in self.regions.within(start, end):
            if vma.start > at or not vma.prot & prot:
                return False
            at = vma.end
        return at >= end

    def readable_size(self, address: int, size: int, prot: int = PROT_READ | PROT_WRITE | PROT_EXEC) -> int:
        """How many bytes from ``address`` on, at most ``size``, the application has with any of these rights: for
        calls that do as much as they can, e.g. process_vm_readv(2)."""
        at, end = address, min(address + size, TASK_SIZE)
        for vma in self.regions.within(at, end):
            if vma.start > at or not vma.prot & prot:
                break
            at = vma.end
        return max(0, min(at, end) - address)

    # Where.

    def place(self, address: int, length: int, flags: int) -> int:
        """Where a mapping goes, mmap(2). Raises SysError."""
        if length > TASK_SIZE:
            raise SysError(ENOMEM)
        if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
            if address % PAGE_SIZE:
                raise SysError(EINVAL)
            if address > TASK_SIZE - length:
                raise SysError(ENOMEM)
            if address < MMAP_MIN_ADDR:
                raise SysError(EPERM)
            if flags & MAP_FIXED_NOREPLACE:
                if not self.regions.free(address, address + length):
                    raise SysError(EEXIST)
            else:
                self._unsealed(address, address + length)
            return address
        if address:
            address = max(page_up(address) & U64, MMAP_MIN_ADDR)
            if address <= TASK_SIZE - length and self.roomy(address, address + length):
                return address
        place: int | None
        if flags & MAP_32BIT:
            place = self.regions.room_above(length, 0x4000_0000, 0x8000_0000)
            if place is None:
                raise SysError(ENOMEM)
            return place
        place = self.regions.room_below(length, MMAP_MIN_ADDR, self.mmap_base)
        if place is None:
            place = self.regions.room_above(length, self.mmap_base, TASK_SIZE)
        if place is None:
            raise SysError(ENOMEM)
        return place

    def roomy(self, start: int, end: int) -> bool:
        """Free, and not right below a stack that may grow."""
        if not self.regions.free(start, end):
            return False
        above = self.regions.index(end)
        if above < len(self.regions.vmas):
            vma = self.regions.vmas[above]
            return not (vma.flags & VM_GROWSDOWN and vma.start - end < STACK_GUARD_GAP)
        return True

    def _unsealed(self, start: int, end: int) -> None:
        """Raises SysError(EPERM), as for mseal(2), where the range has pages of the platform."""
        for vma in self.regions.within(start, end):
            if vma.flags & VM_SEALED:
                raise SysError(EPERM)

    # Change.

    def map(
        self,
        thread: HostThread,
        address: int,
        length: int,
        prot: int,
        flags: int,
        file: File | None = None,
        offset: int = 0,
        name: bytes = b"",
        shared: object | None = None,
    ) -> int:
        """mmap(2). Limits are the caller's to check.

        Arguments:
            file: an open file; this takes a reference of its own.
            offset: bytes, of whole pages.
            name: what ``/proc/PID/maps`` is to show.
            shared: the memory's identity where that is not the file's inode (System V segments).

        Returns the address.

        Raises:
            SysError: as mmap(2) says.
        """
        if length == 0 or offset % PAGE_SIZE:
            raise SysError(EINVAL)
        length = page_up(length)
        if length > TASK_SIZE:
            raise SysError(ENOMEM)
        if offset + length > 1 << 63:
            raise SysError(EOVERFLOW)
        sharing = flags & MAP_TYPE
        if sharing not in (MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE):
            raise SysError(EINVAL)
        prot &= PROT_READ | PROT_WRITE | PROT_EXEC
        start = self.place(address, length, flags)
        vm = VM_MAYALL | self.locked_future
        host = flags & _HOST_FLAGS | (MAP_PRIVATE if sharing == MAP_PRIVATE else MAP_SHARED)
        fd = -1
        if sharing != MAP_PRIVATE:
            vm |= VM_SHARED
        if file is None:
            host |= MAP_ANONYMOUS
            offset = 0
            if sharing != MAP_PRIVATE and shared is None:
                shared = SharedMemory()
        else:
            host &= ~MAP_ANONYMOUS
            fd, vm = self._of_file(file, prot, vm)
            if sharing != MAP_PRIVATE and shared is None:
                shared = file.inode if file.inode is not None else file
        if flags & MAP_GROWSDOWN:
            if file is not None or sharing != MAP_PRIVATE:
                raise SysError(EINVAL)
            vm |= VM_GROWSDOWN
        if flags & MAP_NORESERVE:
            vm |= VM_NORESERVE
        if flags & MAP_LOCKED:
            vm |= VM_LOCKED
        if vm & VM_LOCKED and prot:
            host |= MAP_POPULATE
        end = start + length
        self.unfence(thread, start, end)
        taken = not self.regions.free(start, end)
        self.room.most += 2
        if len(self.regions) >= MAX_MAP_COUNT:
            raise SysError(ENOMEM)
        try:
            thread.syscall(
                SYS_MMAP, start, length, prot, host | (MAP_FIXED if taken else MAP_FIXED_NOREPLACE), fd & U64, offset
            )
        except SysError:
            if taken:
                # The host may have removed what was there before it failed; both sides must agree.
                thread.syscall(SYS_MUNMAP, start, length)
                self.regions.remove(start, end)
            raise
        if taken:
            self.regions.remove(start, end)
        self.regions.add(Vma(start, end, prot, vm, file, offset, shared, name))
        return start

    @staticmethod
    def _of_file(file: File, prot: int, vm: int) -> tuple[int, int]:
        """The host's descriptor for a mapping of a file, and what may become of the mapping. Raises SysError."""
        if not file.can_read:
            raise SysError(EACCES)
        if file.place is not None and file.place.mount.flags & MS_NOEXEC:
            if prot & PROT_EXEC:
                raise SysError(EPERM)
            vm &= ~VM_MAYEXEC
        shared = bool(vm & VM_SHARED)
        if shared and not file.can_write:
            if prot & PROT_WRITE:
                raise SysError(EACCES)
            vm &= ~VM_MAYWRITE
        try:
            return file.host_fd(shared, shared and file.can_write), vm
        except OSError as error:
            # The host has no descriptor left, which is no limit of the application's.
            raise SysError(ENFILE if error.errno == EMFILE else error.errno or ENODEV) from None

    def unmap(self, thread: HostThread, address: int, length: int, passing: bool = False) -> bool:
        """munmap(2).

        Arguments:
            passing: the host could make the call by itself, as it was made.

        Returns whether it is to do so.
        """
        if address % PAGE_SIZE or length == 0 or length > TASK_SIZE or address > TASK_SIZE - length:
            raise SysError(EINVAL)
        end = address + page_up(length)
        regions = self.regions
        within = regions.within(address, end)
        if not within:
            return False
        for vma in within:
            if vma.flags & VM_SEALED:
                raise SysError(EPERM)
        if self.unfence(thread, address, end):
            passing = False
        if within[0].start < address and within[0].end > end and len(regions) >= MAX_MAP_COUNT:
            raise SysError(ENOMEM)
        passing = self.room.for_more(thread) and passing
        if not passing:
            thread.syscall(SYS_MUNMAP, address, end - address)
        regions.remove(address, end)
        return passing

    def protect(self, thread: HostThread, address: int, length: int, prot: int, passing: bool = False) -> bool:
        """mprotect(2). What comes before a page that is not there, or may not be so, is changed, as in Linux.

        Arguments:
            passing: the host could make the call by itself, as it was made.

        Returns whether it is to do so.
        """
        if address % PAGE_SIZE:
            raise SysError(EINVAL)
        if length == 0:
            return False
        if address + page_up(length) > U64:
            raise SysError(ENOMEM)
        end = address + page_up(length)
        at = address
        new: list[tuple[int, int, Vma]] = []
        error = 0
        for vma in self.regions.within(address, end):
            if vma.start > at:
                break
            if vma.flags & VM_SEALED:
                error = EPERM
                break
            if prot << 4 & ~vma.flags & VM_MAYALL:
                error = EACCES
                break
            last = min(vma.end, end)
            new.append((at, last, vma))
            at = last
        if not error and at < end:
            error = ENOMEM
        if len(self.regions.vmas) + 2 >= MAX_MAP_COUNT:
            raise SysError(ENOMEM)
        room = self.room
        enough = room.for_more(thread)
        if passing and enough and not error and len(new) == 1 and room.grants(new[0][2], prot, end - address):
            self.regions.change(address, end, prot, new[0][2].flags)
            return True
        # Mapping by mapping: where the host refuses one (for want of memory), those before it have changed.
        for start, last, vma in new:
            thread.syscall(SYS_MPROTECT, start, last - start, prot)
            self.regions.change(start, last, prot, vma.flags)
            room.granted(vma, prot)
        if error:
            raise SysError(error)
        return False

    def unfence(self, thread: HostThread, start: int, end: int) -> bool:
        """Take the fence away where something else is to become of its place. Gives whether it was in the way."""
        fence = self.fence
        if fence is None or end <= fence[0] or start >= fence[1]:
            return False
        if fence[0] < fence[1]:
            thread.syscall(SYS_MUNMAP, fence[0], fence[1] - fence[0])
        self.fence = None
        return True

    # Identity of memory.

    def identity(self, address: int) -> tuple[object, int]:
        """What a futex at this address is known by, futex(2): the same for all who share the memory.

        Raises:
            SysError: EFAULT where nothing is mapped.
        """
        vma = self.regions.find(address)
        if vma is None or not vma.prot:
            raise SysError(EFAULT)
        if vma.shared is None:
            return self, address
        return vma.shared, address - vma.start + vma.offset

"""Reading and writing an application's memory, with every address and size untrusted."""

from __future__ import annotations

import os
import struct
from errno import EFAULT, EINVAL, ENAMETOOLONG

from casemate.sentry.abi import PAGE_SIZE
from casemate.sentry.errno import SysError

TASK_SIZE = 0x7FFF_FFFF_F000
"""The first address that no application can have, x86-64 with four levels of page tables."""
ANY = 7
"""The rights to read, to write and to execute, mmap(2)."""
IOV_MAX = 1024
MAX_RW_COUNT = 0x7FFF_F000
"""How much one read or write moves at most, read(2)."""


class Memory:
    """The bytes of one address space, by ``/proc/PID/mem`` (proc_pid_mem(5)): half the price of process_vm_readv(2).

    That file ignores page protections, so :meth:`writable` and :meth:`readable` say where the application itself could
    write and read; :class:`casemate.sentry.mm.space.AddressSpace` knows.

    Arguments:
        fd: of ``/proc/PID/mem``, taken over.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def writable(self, address: int, size: int) -> bool:
        """Whether the application could write all of this range."""
        return True

    def readable(self, address: int, size: int) -> bool:
        """Whether the application could read all of this range."""
        return True

    def readable_size(self, address: int, size: int, prot: int = ANY) -> int:
        """How many bytes from ``address`` on, at most ``size``, the application has with any of these rights: for
        calls that do as much as they can, e.g. process_vm_readv(2)."""
        return size

    def read(self, address: int, size: int) -> bytes:
        """All of the range. The caller bounds ``size``. Raises SysError(EFAULT) when any of it is not there."""
        if size == 0:
            return b""
        if address + size > TASK_SIZE or not self.readable(address, size):
            raise SysError(EFAULT)
        try:
            data = os.pread(self.fd, size, address)
        except OSError:
            raise SysError(EFAULT) from None
        if len(data) != size:
            data += self._rest(address + len(data), size - len(data))
        return data

    def _rest(self, address: int, size: int) -> bytes:
        parts = []
        while size:
            try:
                part = os.pread(self.fd, size, address)
            except OSError:
                raise SysError(EFAULT) from None
            if not part:
                raise SysError(EFAULT)
            parts.append(part)
            address += len(part)
            size -= len(part)
        return b"".join(parts)

    def write(self, address: int, data: bytes) -> None:
        """Write all of it. Raises SysError(EFAULT); what comes before a bad page may have been written, as in Linux."""
        size = len(data)
        if size == 0:
            return
        if address + size > TASK_SIZE or not self.writable(address, size):
            raise SysError(EFAULT)
        try:
            done = os.pwrite(self.fd, data, address)
            while done < size:
                step = os.pwrite(self.fd, memoryview(data)[done:], address + done)
                if step == 0:
                    raise SysError(EFAULT)
                done += step
        except OSError:
            raise SysError(EFAULT) from None

    def cstring(self, address: int, limit: int = 4096) -> bytes:
        """A string that ends with a zero byte, without it; ENAMETOOLONG when it is ``limit`` bytes or longer."""
        parts: list[bytes] = []
        left = limit
        # Never beyond the page's end at once: the next page need not be there.
        size = min(256, PAGE_SIZE - address % PAGE_SIZE)
        while left > 0:
            size = min(size, left)
            data = self.read(address, size)
            end = data.find(0)
            if end >= 0:
                parts.append(data[:end])
                return b"".join(parts)
            parts.append(data)
            left -= size
            address += size
            size = PAGE_SIZE - address % PAGE_SIZE
        raise SysError(ENAMETOOLONG)

    def path(self, address: int) -> bytes:
        """A path, at most ``PATH_MAX`` bytes with its end. An empty one is for the call to judge."""
        return self.cstring(address, 4096)

    def u32(self, address: int) -> int:
        """An unsigned 32-bit word."""
        return int.from_bytes(self.read(address, 4), "little")

    def s32(self, address: int) -> int:
        """A signed 32-bit word."""
        return int.from_bytes(self.read(address, 4), "little", signed=True)

    def u64(self, address: int) -> int:
        """An unsigned 64-bit word."""
        return int.from_bytes(self.read(address, 8), "little")

    def put_u32(self, address: int, value: int) -> None:
        """Store 32 bits."""
        self.write(address, (value & 0xFFFF_FFFF).to_bytes(4, "little"))

    def put_u64(self, address: int, value: int) -> None:
        """Store 64 bits."""
        self.write(address, (value & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little"))

    def timespec(self, address: int) -> int:
        """A ``struct timespec`` as nanoseconds. Raises SysError(EINVAL) for one out of range."""
        seconds, nanoseconds = struct.unpack("<qq", self.read(address, 16))
        if seconds < 0 or not 0 <= nanoseconds < 1_000_000_000:
            raise SysError(EINVAL)
        return int(seconds) * 1_000_000_000 + int(nanoseconds)

    def put_timespec(self, address: int, nanoseconds: int) -> None:
        """Store a ``struct timespec``."""
        self.write(address, struct.pack("<qq", *divmod(nanoseconds, 1_000_000_000)))

    def iovecs(self, address: int, count: int) -> list[tuple[int, int]]:
        """A vector of buffers, readv(2): address and size of each, cut to ``MAX_RW_COUNT`` in all.

        Raises SysError: EINVAL for a count or size that no vector has, EFAULT for what is no application's memory.
        """
        count &= 0xFFFF_FFFF
        if count > IOV_MAX:
            raise SysError(EINVAL)
        words = struct.unpack(f"<{2 * count}Q", self.read(address, 16 * count))
        vectors: list[tuple[int, int]] = []
        total = 0
        for base, size in zip(words[::2], words[1::2], strict=True):
            if size > 0x7FFF_FFFF_FFFF_FFFF:
                raise SysError(EINVAL)
            if base + size > TASK_SIZE:
                raise SysError(EFAULT)
            size = min(size, MAX_RW_COUNT - total)
            total += size
            vectors.append((base, size))
        return vectors

    def gather(self, vectors: list[tuple[int, int]]) -> bytes:
        """What the buffers hold, one after the other."""
        return b"".join([self.read(base, size) for base, size in vectors if size])

    def scatter(self, vectors: list[tuple[int, int]], data: bytes) -> None:
        """Fill the buffers, one after the other."""
        at = 0
        for base, size in vectors:
            if at >= len(data):
                return
            if not size:
                continue
            part = data[at : at + size]
            self.write(base, part)
            at += len(part)

    def close(self) -> None:
        """Drop the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

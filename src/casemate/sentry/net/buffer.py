"""Bytes that wait to be received, and how many of them a sandbox may have."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel

SMALL = 4096
"""Writes are joined to chunks of this size, so that many small ones cost no more than one large one."""


SCARCE = 8192
"""How much of one direction a socket holds while there is too much in all of them, and at least one datagram."""


class Budget:
    """What all sockets of a sandbox hold together, as ``net.ipv4.tcp_mem`` bounds it: beyond :attr:`limit` each gets
    little, so that many sockets that nobody reads cannot take the sentry's memory."""

    __slots__ = ("limit", "used")

    def __init__(self) -> None:
        self.used = 0
        self.limit = 256 << 20

    @property
    def scarce(self) -> bool:
        """There is too much in all."""
        return self.used > self.limit


def budget(kernel: Kernel) -> Budget:
    """The sandbox's."""
    found = kernel.subsystems.get("net.buffers")
    if found is None:
        found = kernel.subsystems["net.buffers"] = Budget()
    assert isinstance(found, Budget)
    return found


class ByteQueue:
    """A queue of bytes. Chunks stay as they were put: a reader that takes what one writer put costs no copy."""

    __slots__ = ("_chunks", "_skip", "size")

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._skip = 0
        """How much of the first chunk was taken."""
        self.size = 0

    def put(self, data: bytes) -> None:
        """Append."""
        chunks = self._chunks
        if chunks and len(chunks[-1]) + len(data) <= SMALL:
            chunks[-1] += data
        else:
            chunks.append(data)
        self.size += len(data)

    def peek(self, size: int) -> bytes:
        """The next bytes, at most ``size``, which stay."""
        parts = []
        skip = self._skip
        for chunk in self._chunks:
            part = chunk[skip : skip + size]
            parts.append(part)
            size -= len(part)
            skip = 0
            if not size:
                break
        return b"".join(parts)

    def take(self, size: int) -> bytes:
        """The next bytes, at most ``size``; the queue must not be empty."""
        chunks = self._chunks
        first = chunks[0]
        skip = self._skip
        if len(first) - skip > size:
            self._skip = skip + size
            data = first[skip : skip + size]
        else:
            chunks.popleft()
            self._skip = 0
            data = first[skip:] if skip else first
            if chunks and len(data) < size:
                data = self._more(data, size - len(data))
        self.size -= len(data)
        return data

    def _more(self, first: bytes, size: int) -> bytes:
        parts = [first]
        chunks = self._chunks
        while size and chunks:
            chunk = chunks[0]
            if len(chunk) <= size:
                chunks.popleft()
            else:
                chunk = chunk[:size]
                self._skip = size
            parts.append(chunk)
            size -= len(chunk)
        return b"".join(parts)

    def clear(self) -> None:
        """Drop all."""
        self._chunks.clear()
        self._skip = self.size = 0

"""A stream of bytes inside a link: both directions, each with a window of its own."""

from __future__ import annotations

from casemate.protocol import threads, wire
from casemate.protocol.threads import deque
from casemate.protocol.wire import LinkError, ProtocolError, StreamClosed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.protocol.link import Link

RETURN_AT = wire.WINDOW // 4
"""Credit goes back in portions of at least this size; the peer still has three quarters of its window then."""
SMALL = 4096
"""Payloads below this size are gathered: a peer that sends single bytes must not cost us an object each."""


class Stream:
    """Made by :meth:`Link.stream`. One thread may send while another receives; two senders would mix their bytes."""

    __slots__ = (
        "channel", "_link", "_lock", "_readable", "_writable", "_chunks", "_window", "_owed", "_credit",
        "_eof_in", "_eof_out", "_stopped", "_closed", "_over", "on_unwanted",
    )  # fmt: skip

    def __init__(self, link: Link, channel: int) -> None:
        self.channel = channel
        self._link = link
        self._lock = threads.Lock()
        self._readable = threads.Condition(self._lock)
        self._writable = threads.Condition(self._lock)
        self._chunks: deque[bytes | bytearray | memoryview] = deque()
        self._window = wire.WINDOW  # what the peer may still send
        self._owed = 0  # what was read and is not credited yet
        self._credit = wire.WINDOW  # what we may still send
        self._eof_in = self._eof_out = False
        self._stopped = False  # the peer reads no more
        self._closed = False  # by this side
        self._over = False  # the link has ended
        self.on_unwanted: Callable[[], None] | None = None
        """Called when the peer stops reading; on the link's reader, so it must not wait for anything."""

    @property
    def unwanted(self) -> bool:
        """Whether nothing that would be sent could arrive."""
        return bool(self._deaf())

    def send(self, data: bytes | memoryview) -> None:
        """Send bytes; waits for the peer to read.

        Raises:
            StreamClosed: the link ended, the stream was closed or ended by this side, or the peer stopped reading.
        """
        view = memoryview(data).cast("B")
        while view:
            with self._lock:
                while self._credit == 0 and not self._deaf():
                    self._writable.wait()
                why = self._deaf()
                if why:
                    raise StreamClosed(why)
                size = min(len(view), self._credit, wire.MAX_DATA)
                self._credit -= size
            try:
                self._link._frame(wire.DATA, self.channel, view[:size])
            except LinkError as error:
                raise StreamClosed(str(error)) from None
            view = view[size:]

    def _deaf(self) -> str:
        """Why nothing can be sent, or an empty string."""
        if self._over:
            return "the link has ended"
        if self._closed or self._eof_out:
            return "the stream was ended by this side"
        if self._stopped:
            return "the peer reads no more of the stream"
        return ""

    def send_eof(self) -> None:
        """Say that no more is sent; the other direction stays open. Not an error when there is nobody to hear it."""
        with self._lock:
            if self._eof_out or self._over:
                return
            self._eof_out = True
            self._writable.notify_all()
        self._tell(wire.EOF)

    def recv(self, limit: int = 65536) -> bytes:
        """Wait for bytes and take them; what is taken may be sent anew by the peer.

        Arguments:
            limit: at most so many bytes, at least 1.

        Returns:
            bytes, or nothing when the peer said EOF, the link ended or this side closed the stream.
        """
        with self._lock:
            while not self._chunks:
                if self._eof_in or self._closed or self._over:
                    return b""
                self._readable.wait()
            chunk = self._chunks.popleft()
            if len(chunk) > limit:
                rest = memoryview(chunk)
                self._chunks.appendleft(rest[limit:])
                chunk = rest[:limit]
            self._owed += len(chunk)
            give = 0
            if self._owed >= RETURN_AT and not self._eof_in and not self._over:
                give, self._owed = self._owed, 0
                self._window += give
        if give:
            self._tell(wire.CREDIT, wire.CREDIT_SIZE.pack(give))
        return chunk if isinstance(chunk, bytes) else bytes(chunk)

    def close(self) -> None:
        """Free the stream: says EOF and tells the peer to stop; what still arrives is dropped. May be called again."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._chunks.clear()
            eof, stop = not self._eof_out and not self._stopped, not self._eof_in
            self._readable.notify_all()
            self._writable.notify_all()
        if eof:
            self._tell(wire.EOF)
        if stop:
            self._tell(wire.CREDIT, flags=wire.STOP)
        self._link.forget(self.channel)

    def _tell(self, kind: int, payload: bytes = b"", flags: int = 0) -> None:
        """A frame about the stream; when the link has ended there is nobody to tell, and that is no error."""
        try:
            self._link._frame(kind, self.channel, payload, flags=flags)
        except LinkError:
            return

    # ---- called by the link's reader, which must not wait

    def arrived(self, payload: memoryview) -> None:
        """DATA, or EOF when empty."""
        with self._lock:
            if self._eof_in:
                raise ProtocolError(f"channel {self.channel}: more after its EOF")
            if not payload:
                self._eof_in = True
                self._readable.notify_all()
                return
            size = len(payload)
            if size > self._window:
                raise ProtocolError(f"channel {self.channel}: {size} bytes sent, {self._window} were allowed")
            self._window -= size
            if self._closed:
                return
            last = self._chunks[-1] if self._chunks else None
            if size >= SMALL:
                self._chunks.append(bytes(payload))
            elif type(last) is bytearray and len(last) < wire.MAX_DATA:
                last += payload
            else:
                self._chunks.append(bytearray(payload))
            self._readable.notify()

    def credited(self, size: int) -> None:
        """The peer has read ``size`` bytes."""
        with self._lock:
            if size == 0 or self._credit + size > wire.WINDOW:
                raise ProtocolError(f"channel {self.channel}: credit of {size} bytes that were never sent")
            self._credit += size
            self._writable.notify_all()

    def stopped(self) -> None:
        """The peer reads no more."""
        with self._lock:
            self._stopped = True
            self._writable.notify_all()
        if self.on_unwanted is not None:
            self.on_unwanted()

    def link_over(self) -> None:
        """The link has ended: senders fail, readers get what has arrived and then the end."""
        with self._lock:
            self._over = True
            self._readable.notify_all()
            self._writable.notify_all()

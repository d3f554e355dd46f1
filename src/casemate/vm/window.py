"""Between a VMM and a file server: what of the guest's memory the server is shown.

Both speak vhost-user (the specification in QEMU's documentation, "Vhost-user Protocol"): the VMM sends the server
descriptors of the guest's memory, in which the server then finds its queues. A guest whose memory is a private view of
a file that many guests share must not have that file shown to anybody who could write to it, and what is private
cannot be seen by another process anyway. So everything passes through here, some dozen messages when the guest takes
the device into use, and

* of the table of memory only the window is passed on;
* the server is said to be reached through the kernel's bounce buffers (``VIRTIO_F_ACCESS_PLATFORM``), which are in the
  window;
* of the protocol's extensions only those that need nothing else are agreed on.

Neither side is trusted: sizes and numbers are bounded, and whatever is not understood ends the connection, and with it
the guest's files.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

HEADER = struct.Struct("<III")
"""Request, flags, size of what follows."""
GET_FEATURES, SET_FEATURES, SET_MEM_TABLE = 1, 2, 5
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES = 15, 16
VERSION, REPLY = 0x1, 0x4
VIRTIO_F_ACCESS_PLATFORM = 1 << 33
PROTOCOL_FEATURES = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9
"""MQ, REPLY_ACK, BACKEND_REQ, CONFIG. QEMU insists on the second and third where buffers are bounced."""
REGION = struct.Struct("<QQQQ")
"""Guest address, size, the VMM's address, offset in the file."""
MAX_BODY = 4096
MAX_FDS = 8
"""As many as the specification lets a message have."""


class Broken(Exception):
    """A peer sent what the protocol does not allow."""


@dataclass(slots=True)
class Message:
    """One message with its descriptors, which whoever takes it has to close."""

    request: int
    flags: int
    body: bytes
    fds: list[int] = field(default_factory=list)

    def close(self) -> None:
        """Close its descriptors."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []


def to_server(message: Message, base: int, size: int) -> Message:
    """A VMM's message as the server is to get it.

    Arguments:
        base, size: where the window is in the guest, in bytes.

    Raises:
        Broken: it is not as it should be.
    """
    if message.request == SET_FEATURES:
        message.body = struct.pack("<Q", _number(message.body) & ~VIRTIO_F_ACCESS_PLATFORM)
    elif message.request == SET_PROTOCOL_FEATURES:
        message.body = struct.pack("<Q", _number(message.body) & PROTOCOL_FEATURES)
    elif message.request == SET_MEM_TABLE:
        _show_window(message, base, size)
    return message


def to_vmm(message: Message) -> Message:
    """A server's message as the VMM is to get it. Raises Broken."""
    if message.request == GET_FEATURES:
        message.body = struct.pack("<Q", _number(message.body) | VIRTIO_F_ACCESS_PLATFORM)
    elif message.request == GET_PROTOCOL_FEATURES:
        message.body = struct.pack("<Q", _number(message.body) & PROTOCOL_FEATURES)
    return message


def _number(body: bytes) -> int:
    if len(body) != 8:
        raise Broken(f"a number of {len(body)} bytes")
    return int.from_bytes(body, "little")


def _show_window(message: Message, base: int, size: int) -> None:
    if len(message.body) < 8:
        raise Broken("a table of memory without a head")
    count = int.from_bytes(message.body[:4], "little")
    if count > MAX_FDS or len(message.body) != 8 + count * REGION.size or len(message.fds) != count:
        raise Broken(f"a table of {count} regions with {len(message.fds)} descriptors")
    shown: list[tuple[bytes, int]] = []
    for index, fd in enumerate(message.fds):
        where = 8 + index * REGION.size
        row = message.body[where : where + REGION.size]
        address, length, _, offset = REGION.unpack(row)
        if address == base and length == size and offset == 0 and not shown:
            shown.append((row, fd))
        else:
            os.close(fd)
    message.fds = [fd for _, fd in shown]
    if not shown:
        raise Broken("a table of memory without the window")
    message.body = struct.pack("<II", 1, 0) + shown[0][0]


def receive(sock: socket.socket) -> Message | None:
    """The next message; None at the end.

    Raises:
        Broken: it is too large, or the peer ended in its midst.
        OSError: the connection broke.
    """
    head, fds = _receive(sock, HEADER.size)
    message = Message(0, 0, b"", fds)
    try:
        if not head:
            message.close()
            return None
        head += _rest(sock, HEADER.size - len(head), message.fds)
        message.request, message.flags, size = HEADER.unpack(head)
        if size > MAX_BODY or message.flags & 0x3 != VERSION:
            raise Broken(f"a message of {size} bytes with flags {message.flags:#x}")
        message.body = _rest(sock, size, message.fds)
        if len(message.fds) > MAX_FDS:
            raise Broken(f"a message with {len(message.fds)} descriptors")
    except BaseException:
        message.close()
        raise
    return message


def _receive(sock: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """Bytes and descriptors, which programs that are started meanwhile do not get: ``socket.recv_fds`` cannot do so."""
    data, ancillary, _, _ = sock.recvmsg(size, socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds += struct.unpack(f"={len(payload) // 4}i", payload[: len(payload) // 4 * 4])
    return data, fds


def _rest(sock: socket.socket, left: int, fds: list[int]) -> bytes:
    parts = b""
    while len(parts) < left:
        part, more = _receive(sock, left - len(parts))
        fds += more
        if not part:
            raise Broken("the end in the midst of a message")
        parts += part
    return parts


def send(sock: socket.socket, message: Message) -> None:
    """Send a message, and close its descriptors. Raises OSError."""
    data = HEADER.pack(message.request, message.flags, len(message.body)) + message.body
    try:
        sent = socket.send_fds(sock, [data], message.fds)
        sock.sendall(data[sent:])
    finally:
        message.close()


def guard(server_fd: int, base: int, size: int, complain: Callable[[str], None]) -> int:
    """Stand between a server and its VMM, on a thread, until one of them ends.

    Arguments:
        server_fd: the connection to the server; owned from here on.
        base, size: where the window is in the guest, in bytes.
        complain: told once what a peer did wrong.

    Returns:
        a descriptor for the VMM.
    """
    server = socket.socket(fileno=server_fd)
    vmm, theirs = socket.socketpair()
    threading.Thread(target=_serve, args=(server, vmm, base, size, complain), name="window", daemon=True).start()
    return theirs.detach()


def _serve(
    server: socket.socket, vmm: socket.socket, base: int, size: int, complain: Callable[[str], None]
) -> None:
    try:
        with selectors.DefaultSelector() as selector:
            for sock in (server, vmm):
                sock.setblocking(True)
                selector.register(sock, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    message = receive(key.fileobj)  # type: ignore[arg-type]  # those registered above
                    if message is None:
                        return
                    try:
                        if key.fileobj is vmm:
                            send(server, to_server(message, base, size))
                        else:
                            send(vmm, to_vmm(message))
                    except BaseException:
                        message.close()
                        raise
    except Broken as error:
        complain(f"a file server's connection was broken off: {error}")
    except OSError:
        pass  # one of them has ended, which is noticed elsewhere
    finally:
        for sock in (server, vmm):
            with contextlib.suppress(OSError):
                sock.close()

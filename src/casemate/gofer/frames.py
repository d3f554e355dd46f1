"""The frames between the sentry and its gofer: one module, which both sides use.

They are sent over a ``SOCK_SEQPACKET`` socket (unix(7)), so one packet is one frame and none can be taken for the rest
of another. The names are those of 9P2000.L where an operation is the same: a ``T`` message asks, an ``R`` message
answers it with the same tag, ``Rlerror`` tells an errno instead. Unlike there

* descriptors go along with answers (``SCM_RIGHTS``): data is read and written without the gofer;
* ``Twalk`` gives each of its components a number (fid) and answers with the attributes of all;
* ``Tclunk`` names many fids and is not answered.

A frame is ``type u8, tag u16``, then the numbers of that type, then its strings, each with its length in front as u32.
A frame that is not exactly that is refused (:class:`FrameError`), whichever side sent it.
"""

from __future__ import annotations

import struct

VERSION = 1
MAX_FRAME = 128 * 1024
"""Bytes. An extended attribute (at most 64 KiB) fits in, and it fits into a socket's default buffer."""
MAX_NAMES = 32
"""How many components one ``Twalk`` has at most."""
MAX_CLUNKS = 4096
NAME_MAX = 255
XATTR_SIZE_MAX = 65536

TSTATFS, TLOPEN, TLCREATE, TSYMLINK, TMKNOD, TREADLINK, TGETATTR, TSETATTR = 8, 12, 14, 16, 18, 22, 24, 26
TREADDIR, TFSYNC, TLINK, TMKDIR, TRENAMEAT, TUNLINKAT, TATTACH, TWALK, TCLUNK = 40, 50, 70, 72, 74, 76, 104, 110, 120
# 9P2000.L has no such messages, or has them in a shape that only suits reading through the server.
TGETXATTR, TSETXATTR, TLISTXATTR, TREMOVEXATTR, TTMPFILE, TLOOKUP = 130, 132, 134, 136, 138, 140
RLERROR = 7

SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME = 1, 2, 4, 8, 16, 32
"""Which of the values of ``Tsetattr`` count."""
WANT_FD = 1
"""Flag of ``Twalk``, ``Tlookup`` and ``Tattach``: hand out a descriptor (``O_PATH``) of all that was reached."""

REQUESTS: dict[int, tuple[str, int]] = {
    # type: its numbers as of struct(3py), how many strings follow (-1: as many as there are)
    TATTACH: ("III", 0),  # tree, new fid, flags
    TWALK: ("III", -1),  # fid, first new fid, flags; components
    TLOOKUP: ("III", -1),  # the same for names that are all in one directory
    TCLUNK: ("", 1),  # fids, u32 each
    TGETATTR: ("I", 0),  # fid
    TSETATTR: ("IIIIIQqq", 0),  # fid, SET_*, mode, uid, gid, size, atime, mtime (nanoseconds)
    TREADLINK: ("I", 0),  # fid
    TLOPEN: ("II", 0),  # fid, flags of open(2)
    TLCREATE: ("IIIII", 1),  # directory, new fid, mode, uid, gid; name
    TTMPFILE: ("IIIII", 0),  # directory, new fid, mode, uid, gid
    TMKDIR: ("IIIII", 1),  # directory, new fid, mode, uid, gid; name
    TMKNOD: ("IIIIIQ", 1),  # directory, new fid, mode with its kind, uid, gid, device; name
    TSYMLINK: ("IIII", 2),  # directory, new fid, uid, gid; name, target
    TLINK: ("II", 1),  # directory, fid; name
    TRENAMEAT: ("III", 2),  # directory, new directory, flags of renameat2(2); name, new name
    TUNLINKAT: ("II", 1),  # directory, 1 for rmdir(2); name
    TREADDIR: ("II", 0),  # fid, 1 to begin anew
    TSTATFS: ("I", 0),  # fid
    TFSYNC: ("I", 0),  # fid: all of its file system, syncfs(2)
    TGETXATTR: ("I", 1),  # fid; name
    TSETXATTR: ("II", 2),  # fid, flags; name, value
    TLISTXATTR: ("I", 0),  # fid
    TREMOVEXATTR: ("I", 1),  # fid; name
}
NAMES = {number: name for name, number in tuple(globals().items()) if name[0] in "TR" and isinstance(number, int)}

ATTRIBUTES = struct.Struct("<IIIIIQQQQQqqq")
"""mode, uid, gid, nlink, blksize, device, inode, rdev, size, blocks, atime, mtime, ctime (nanoseconds)."""
STATFS = struct.Struct("<QQQQQQQQQQ")
"""type, bsize, blocks, bfree, bavail, files, ffree, namelen, frsize, flags."""
DIRENT = struct.Struct("<QqHB")
"""``struct linux_dirent64`` of getdents64(2) without its name: inode, offset, length, type."""

HEADER = struct.Struct("<BH")
LENGTH = struct.Struct("<I")
ERROR = struct.Struct("<BHI")
STRUCTS = {kind: struct.Struct("<BH" + numbers) for kind, (numbers, _) in REQUESTS.items()}


class FrameError(Exception):
    """A frame that no honest peer sends."""


def request(kind: int, tag: int, numbers: tuple[int, ...], strings: tuple[bytes, ...] = ()) -> bytes:
    """A ``T`` frame. Raises FrameError when it would be too long, struct.error for numbers out of range."""
    frame = STRUCTS[kind].pack(kind, tag, *numbers)
    for string in strings:
        frame += LENGTH.pack(len(string)) + string
    if len(frame) > MAX_FRAME:
        raise FrameError("the frame is too long")
    return frame


def parse_request(frame: bytes) -> tuple[int, int, tuple[int, ...], list[bytes]]:
    """A ``T`` frame's type, tag, numbers and strings. Raises FrameError."""
    if not frame or frame[0] not in STRUCTS:
        raise FrameError("not a request")
    kind = frame[0]
    layout = STRUCTS[kind]
    at, size = layout.size, len(frame)
    if size < at or size > MAX_FRAME:
        raise FrameError(f"{NAMES[kind]} of {size} bytes")
    _, tag, *numbers = layout.unpack_from(frame)
    strings: list[bytes] = []
    while at < size:
        if size - at < 4:
            raise FrameError(f"{NAMES[kind]}: a length is cut short")
        (length,) = LENGTH.unpack_from(frame, at)
        at += 4
        if length > size - at:
            raise FrameError(f"{NAMES[kind]}: a string is cut short")
        strings.append(frame[at : at + length])
        at += length
    expected = REQUESTS[kind][1]
    if len(strings) != expected and not (expected < 0 and 0 < len(strings) <= MAX_NAMES):
        raise FrameError(f"{NAMES[kind]} with {len(strings)} strings")
    return kind, tag, tuple(numbers), strings


def error(tag: int, number: int) -> bytes:
    """``Rlerror``."""
    return ERROR.pack(RLERROR, tag, number)


def reply(kind: int, tag: int, body: bytes = b"") -> bytes:
    """The answer to a ``T`` frame of this type."""
    return HEADER.pack(kind + 1, tag) + body


def parse_reply(frame: bytes, kind: int, tag: int) -> bytes | int:
    """The body of an answer, or the errno of ``Rlerror``.

    Arguments:
        kind, tag: of the request. Raises FrameError when the frame does not answer that.
    """
    if len(frame) < 3:
        raise FrameError("a frame is cut short")
    if frame[0] == kind + 1 and frame[1] == tag & 0xFF and frame[2] == tag >> 8:
        return frame[3:]
    if frame[0] == RLERROR and len(frame) == ERROR.size:
        _, answered, number = ERROR.unpack(frame)
        if answered == tag and 0 < number < 4096:
            return int(number)
    raise FrameError(f"this is no answer to {NAMES[kind]}: {frame[:8].hex()}")


def parse_walk(body: bytes, names: int) -> tuple[int, list[tuple[int, ...]]]:
    """What ``Rwalk`` says: an errno (0: all were reached), and attributes of those that were. That not even the first
    was reached is an ``Rlerror``.

    Arguments:
        names: how many were asked for.
    """
    if len(body) < 4 or (len(body) - 4) % ATTRIBUTES.size:
        raise FrameError("Rwalk is cut short")
    (number,) = LENGTH.unpack_from(body)
    reached = [tuple(ATTRIBUTES.unpack_from(body, at)) for at in range(4, len(body), ATTRIBUTES.size)]
    if number >= 4096 or not reached or len(reached) > names or (number == 0 and len(reached) < names):
        raise FrameError("Rwalk tells of what was not asked for")
    return number, reached


def parse_lookup(body: bytes, names: int) -> list[tuple[int, ...]]:
    """What ``Rlookup`` says of each name: its attributes, or its errno alone."""
    found: list[tuple[int, ...]] = []
    at = 0
    while at + 4 <= len(body) and len(found) < names:
        (number,) = LENGTH.unpack_from(body, at)
        at += 4
        if number:
            found.append((number,))
        elif at + ATTRIBUTES.size <= len(body):
            found.append(ATTRIBUTES.unpack_from(body, at))
            at += ATTRIBUTES.size
        else:
            break
    if at != len(body) or len(found) != names:
        raise FrameError("Rlookup does not tell of each name")
    return found


def parse_entries(body: bytes) -> tuple[bool, list[tuple[bytes, int, int]]]:
    """What ``Rreaddir`` says: whether these are the last entries; and name, inode and type of each, as getdents64(2)
    has them, without ``.`` and ``..``. Raises FrameError."""
    entries = []
    at, size = 4, len(body)
    if size < 4:
        raise FrameError("Rreaddir is cut short")
    (last,) = LENGTH.unpack_from(body)
    if size == 4 and not last:
        raise FrameError("Rreaddir without entries is not the end")
    while at < size:
        if size - at < DIRENT.size:
            raise FrameError("Rreaddir is cut short")
        inode, _, length, kind = DIRENT.unpack_from(body, at)
        if length <= DIRENT.size or length > size - at:
            raise FrameError("Rreaddir has an entry that is cut short")
        end = body.find(0, at + DIRENT.size, at + length)
        if end < 0:
            raise FrameError("Rreaddir has a name without an end")
        name = body[at + DIRENT.size : end]
        if name not in (b".", b".."):
            entries.append((name, inode, kind))
        at += length
    return last != 0, entries


def good_name(name: bytes) -> bool:
    """Whether this can be the name of one directory entry; ``.`` and ``..`` are not."""
    return 0 < len(name) <= NAME_MAX and b"/" not in name and b"\0" not in name and name not in (b".", b"..")

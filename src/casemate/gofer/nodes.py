"""What the numbers (fids) of a gofer's frames stand for."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct

from casemate.gofer import frames
from casemate.gofer.frames import FrameError

Answer = tuple[bytes, list[int]]
"""The body, and descriptors that go along with it and are closed afterwards."""


class Root:
    """One tree that is served.

    Arguments:
        fd: its top directory (``O_PATH``).
        read_only: no change is made to it, whatever its mount allows.
        devices: devices may be made in it.
    """

    __slots__ = ("devices", "fd", "read_only")

    def __init__(self, fd: int, read_only: bool, devices: bool = False) -> None:
        self.fd = fd
        self.read_only = read_only
        self.devices = devices


class Node:
    """What a fid refers to: an ``O_PATH`` descriptor."""

    __slots__ = ("fd", "hidden", "kind", "listing", "root")

    def __init__(self, fd: int, kind: int, root: Root, hidden: bool) -> None:
        self.fd = fd
        self.kind = kind
        self.root = root
        self.hidden = hidden
        """A directory that is to look empty."""
        self.listing = -1
        """The directory opened for reading, while it is listed."""

class Nodes:
    """The fids of one sentry.

    Arguments:
        roots: what ``Tattach`` gives, by number.
        max_nodes: how many fids there may be.
        hidden: devices whose file systems look like empty directories.

    The working directory has to be that of this process' descriptors, ``/proc/self/fd``: their numbers are used as
    paths.
    """

    def __init__(self, roots: list[Root], max_nodes: int, hidden: frozenset[int] = frozenset()) -> None:
        self.roots = roots
        self.max_nodes = max_nodes
        self.hidden = hidden
        self.nodes: dict[int, Node] = {}
        self.listings: list[Node] = []
        """Directories that are being listed, the longest first."""
        self._libc = ctypes.CDLL(None, use_errno=True)

    def node(self, fid: int) -> Node:
        """What the fid refers to; EBADF."""
        node = self.nodes.get(fid)
        if node is None:
            raise OSError(errno.EBADF, "no such fid")
        return node

    def directory(self, fid: int, write: bool = False) -> Node:
        """The same where it has to be a directory (ENOTDIR) in which something is to be changed (EROFS)."""
        node = self.node(fid)
        if node.kind != stat.S_IFDIR:
            raise OSError(errno.ENOTDIR, "not a directory")
        if write and (node.root.read_only or node.hidden):
            raise OSError(errno.EROFS, "read-only tree")
        return node

    def writable(self, fid: int) -> Node:
        """The same for anything that is to be changed."""
        node = self.node(fid)
        if node.root.read_only or node.hidden:
            raise OSError(errno.EROFS, "read-only tree")
        return node

    def add(self, fid: int, fd: int, root: Root) -> bytes:
        """Give a descriptor, which is taken over, a number. Returns its attributes as a frame has them."""
        try:
            if len(self.nodes) >= self.max_nodes:
                raise OSError(errno.ENFILE, "too many fids")
            if fid in self.nodes:
                raise OSError(errno.EBADF, "the fid is in use")
            status = os.stat(fd)
        except OSError:
            os.close(fd)
            raise
        self.nodes[fid] = Node(fd, stat.S_IFMT(status.st_mode), root, status.st_dev in self.hidden)
        return pack(status)

    def clunk(self, fids: bytes) -> None:
        """Forget fids; those that are not there too."""
        if len(fids) % 4 or len(fids) > 4 * frames.MAX_CLUNKS:
            raise FrameError("Tclunk with half a fid")
        for (fid,) in struct.iter_unpack("<I", fids):
            node = self.nodes.pop(fid, None)
            if node is not None:
                self.end_listing(node)
                os.close(node.fd)

    def path(self, node: Node) -> bytes:
        """A path that leads to the node itself, for calls that want one; nothing of it comes from the sentry."""
        return b"%d" % node.fd

    def child(self, node: Node, name: bytes) -> int:
        """An ``O_PATH`` descriptor of the entry; of a symbolic link itself."""
        if not frames.good_name(name):
            raise OSError(errno.EINVAL, "not a name")
        if node.hidden:
            raise OSError(errno.ENOENT, "hidden")
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=node.fd)

    def end_listing(self, node: Node) -> None:
        """The directory is listed no more."""
        if node.listing >= 0:
            os.close(node.listing)
            node.listing = -1
            self.listings.remove(node)

    def call(self, name: str, *arguments: object) -> None:
        """Make a call of the C library's that Python has not."""
        if getattr(self._libc, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), name)


def pack(status: os.stat_result) -> bytes:
    """The attributes as a frame has them."""
    return frames.ATTRIBUTES.pack(
        status.st_mode, status.st_uid, status.st_gid, status.st_nlink & 0xFFFFFFFF, status.st_blksize & 0xFFFFFFFF,
        status.st_dev, status.st_ino, status.st_rdev, status.st_size, status.st_blocks,
        status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns,
    )  # fmt: skip

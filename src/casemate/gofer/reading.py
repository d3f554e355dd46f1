"""What a gofer does that changes nothing."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct

from casemate.gofer import frames
from casemate.gofer.nodes import Answer, Nodes, Root, pack

XATTRS = (b"user.", b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default")
"""Which extended attributes applications get at; ``security.`` and ``trusted.`` ones else are the host's affair."""
OPEN_FLAGS = os.O_ACCMODE | os.O_TRUNC
DIRECTORY_CHUNK = 60 * 1024
LARGEST_ENTRY = 280
"""Bytes of a directory entry with the longest name."""
MAX_LISTINGS = 64
"""How many directories are listed at a time, each of which holds a descriptor."""
_STATFS = struct.Struct("<qqQQQQQ8xqqq32x")  # struct statfs of x86-64, statfs(2)


class Reading(Nodes):
    """Finding files, and reading what there is to know of them. See :class:`casemate.gofer.nodes.Nodes`.

    Each method takes the numbers and strings of a request (:data:`casemate.gofer.frames.REQUESTS`) and gives what the
    answer holds. All raise OSError, which is told as ``Rlerror``.
    """

    def __init__(self, roots: list[Root], max_nodes: int, hidden: frozenset[int] = frozenset()) -> None:
        super().__init__(roots, max_nodes, hidden)
        self._buffer = ctypes.create_string_buffer(DIRECTORY_CHUNK)

    def attach(self, numbers: tuple[int, ...], _: list[bytes]) -> Answer:
        tree, fid, flags = numbers
        if tree >= len(self.roots):
            raise OSError(errno.ENOENT, "no such tree")
        root = self.roots[tree]
        body = frames.LENGTH.pack(0) + self.add(fid, os.dup(root.fd), root)
        return body, [os.dup(root.fd)] if flags & frames.WANT_FD else []

    def walk(self, numbers: tuple[int, ...], names: list[bytes]) -> Answer:
        fid, new_fid, flags = numbers
        node = self.node(fid)
        reached: list[bytes] = []
        fds: list[int] = []
        number = 0
        for name in names:
            try:
                if node.kind != stat.S_IFDIR:
                    raise OSError(errno.ENOTDIR, "not a directory")
                attributes = self.add(new_fid, self.child(node, name), node.root)
                node = self.nodes[new_fid]
                reached.append(attributes)
                if flags & frames.WANT_FD:
                    fds.append(os.dup(node.fd))
            except OSError as error:
                if not reached:
                    raise
                number = error.errno or errno.EIO
                break
            new_fid += 1
        return frames.LENGTH.pack(number) + b"".join(reached), fds

    def lookup(self, numbers: tuple[int, ...], names: list[bytes]) -> Answer:
        fid, new_fid, flags = numbers
        node = self.directory(fid)
        told: list[bytes] = []
        fds: list[int] = []
        for number, name in enumerate(names, new_fid):
            try:
                attributes = self.add(number, self.child(node, name), node.root)
                if flags & frames.WANT_FD:
                    fds.append(os.dup(self.nodes[number].fd))
                told.append(frames.LENGTH.pack(0) + attributes)
            except OSError as error:
                told.append(frames.LENGTH.pack(error.errno or errno.EIO))
        return b"".join(told), fds

    def getattr(self, numbers: tuple[int, ...], _: list[bytes]) -> Answer:
        return pack(os.stat(self.node(numbers[0]).fd)), []

    def readlink(self, numbers: tuple[int, ...], _: list[bytes]) -> Answer:
        node = self.node(numbers[0])
        if node.kind != stat.S_IFLNK:
            raise OSError(errno.EINVAL, "not a link")
        return os.readlink(b"", dir_fd=node.fd), []

    def readdir(self, numbers: tuple[int, ...], _: list[bytes]) -> Answer:
        fid, anew = numbers
        node = self.directory(fid)
        if node.hidden:
            return frames.LENGTH.pack(1), []
        if anew:
            self.end_listing(node)
        if node.listing < 0:
            if len(self.listings) >= MAX_LISTINGS:
                self.end_listing(self.listings[0])
            node.listing = os.open(self.path(node), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self.listings.append(node)
        size = 0
        while DIRECTORY_CHUNK - size >= LARGEST_ENTRY:
            at = ctypes.byref(self._buffer, size)
            more = self._libc.getdents64(node.listing, at, DIRECTORY_CHUNK - size)
            if more < 0:
                raise OSError(ctypes.get_errno(), "getdents64")
            if more == 0:
                self.end_listing(node)
                break
            size += more
        return frames.LENGTH.pack(node.listing < 0) + ctypes.string_at(self._buffer, size), []

    def statfs(self, numbers: tuple[int, ...], _: list[bytes]) -> Answer:
        buffer = ctypes.create_string_buffer(_STATFS.size)
        self.call("fstatfs", self.node(numbers[0]).fd, buffer)
        kind, bsize, blocks, bfree, bavail, files, ffree, namelen, frsize, flags = _STATFS.unpack(buffer.raw)
        return frames.STATFS.pack(
            kind & 0xFFFFFFFF, bsize, blocks, bfree, bavail, files, ffree, namelen, frsize, flags
        ), []

    # Data.

    def lopen(self, numbers: tuple[int, ...], _: list[bytes]) -> Answer:
        fid, flags = numbers
        node = self.node(fid)
        if node.kind != stat.S_IFREG:
            # Opening a FIFO or a device would wait, or do something.
            raise OSError(errno.EISDIR if node.kind == stat.S_IFDIR else errno.EINVAL, "not a regular file")
        if flags & ~OPEN_FLAGS:
            raise OSError(errno.EINVAL, "flags")
        if flags & (os.O_ACCMODE | os.O_TRUNC) and node.root.read_only:
            raise OSError(errno.EROFS, "read-only tree")
        # O_NONBLOCK: somebody's lease (fcntl(2)) must not make all of the sandbox wait.
        return b"", [os.open(self.path(node), flags | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)]

    def getxattr(self, numbers: tuple[int, ...], strings: list[bytes]) -> Answer:
        return os.getxattr(self.path(self.node(numbers[0])), self.xattr(strings[0])), []

    def listxattr(self, numbers: tuple[int, ...], _: list[bytes]) -> Answer:
        names = [os.fsencode(name) for name in os.listxattr(self.path(self.node(numbers[0])))]
        return b"".join(name + b"\0" for name in names if name.startswith(XATTRS)), []

    def xattr(self, name: bytes) -> bytes:
        """The attribute's name, where applications get at it."""
        if not name.startswith(XATTRS) or b"\0" in name:
            raise OSError(errno.EOPNOTSUPP, "not an attribute of applications")
        return name

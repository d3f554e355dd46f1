"""The gofer's side: what it does for the sentry, one frame after the other.

It trusts nothing that it is told. A path is never taken as a whole: every component is opened by itself, in the
directory that was reached, with ``O_NOFOLLOW`` and ``O_PATH`` (openat(2)), so no symbolic link and no ``..`` leads
anywhere; nodes are held by descriptor, so what somebody renames or replaces meanwhile changes nothing. Data files are
opened only where they are regular, and FIFOs, sockets and devices never. A frame that no honest sentry sends ends the
gofer, and that the sandbox.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable

from casemate.gofer import frames
from casemate.gofer.nodes import Answer, Node, Root, pack
from casemate.gofer.reading import Reading

_SET_OWNER, _SET_TIMES = frames.SET_UID | frames.SET_GID, frames.SET_ATIME | frames.SET_MTIME


class Server(Reading):
    """Serves one sentry.

    Arguments:
        sock: the ``SOCK_SEQPACKET`` socket to it.
        roots, max_nodes, hidden: see :class:`casemate.gofer.nodes.Nodes`.
    """

    def __init__(
        self, sock: socket.socket, roots: list[Root], max_nodes: int, hidden: frozenset[int] = frozenset()
    ) -> None:
        super().__init__(roots, max_nodes, hidden)
        self.sock = sock
        self._handlers: dict[int, Callable[[tuple[int, ...], list[bytes]], Answer]] = {
            frames.TATTACH: self.attach, frames.TWALK: self.walk, frames.TLOOKUP: self.lookup,
            frames.TGETATTR: self.getattr,
            frames.TSETATTR: self.setattr, frames.TREADLINK: self.readlink, frames.TLOPEN: self.lopen,
            frames.TLCREATE: self.lcreate, frames.TTMPFILE: self.tmpfile, frames.TMKDIR: self.mkdir,
            frames.TMKNOD: self.mknod, frames.TSYMLINK: self.symlink, frames.TLINK: self.link,
            frames.TRENAMEAT: self.renameat, frames.TUNLINKAT: self.unlinkat, frames.TREADDIR: self.readdir,
            frames.TSTATFS: self.statfs, frames.TFSYNC: self.fsync, frames.TGETXATTR: self.getxattr,
            frames.TSETXATTR: self.setxattr, frames.TLISTXATTR: self.listxattr, frames.TREMOVEXATTR: self.removexattr,
        }  # fmt: skip

    def run(self) -> None:
        """Serve until the sentry is gone. Raises FrameError for a frame that no honest one sends."""
        room = bytearray(frames.MAX_FRAME + 1)
        view = memoryview(room)
        while size := self.sock.recv_into(room):
            self.serve(bytes(view[:size]))

    def serve(self, frame: bytes) -> None:
        """Do what one frame asks for, and answer it."""
        kind, tag, numbers, strings = frames.parse_request(frame)
        if kind == frames.TCLUNK:
            self.clunk(strings[0])
            return
        fds: list[int] = []
        try:
            body, fds = self._handlers[kind](numbers, strings)
            answer = frames.reply(kind, tag, body)
        except OSError as error:
            number = error.errno or errno.EIO
            answer = frames.error(tag, errno.ENFILE if number == errno.EMFILE else number)
        except (OverflowError, ValueError):
            answer = frames.error(tag, errno.EINVAL)
        try:
            if fds:
                socket.send_fds(self.sock, [answer], fds)
            else:
                self.sock.send(answer)
        finally:
            for fd in fds:
                os.close(fd)

    # Making and removing.

    def own(self, fd: int, path: bytes, uid: int, gid: int, mode: int) -> None:
        """Give what was just made its owner, which takes privileges where that is another than who runs this; then the
        set-id bits, which a change of owner drops."""
        status = os.stat(fd)
        if (status.st_uid, status.st_gid) != (uid, gid):
            os.chown(path, uid, gid)
            if mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISLNK(status.st_mode):
                os.chmod(path, mode & 0o7777)

    def made(self, node: Node, name: bytes, fid: int, uid: int, gid: int, mode: int) -> bytes:
        """What has just been made under this name gets its owner and a fid. It is removed again when that fails."""
        fd = self.child(node, name)
        try:
            self.own(fd, b"%d" % fd, uid, gid, mode)
        except OSError:
            os.close(fd)
            remove = os.rmdir if stat.S_ISDIR(mode) else os.unlink
            remove(name, dir_fd=node.fd)
            raise
        return self.add(fid, fd, node.root)

    def lcreate(self, numbers: tuple[int, ...], strings: list[bytes]) -> Answer:
        directory, fid, mode, uid, gid = numbers
        node, name = self.directory(directory, write=True), self.new_name(strings[0])
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, mode & 0o7777, dir_fd=node.fd)
        try:
            path = b"%d" % fd
            self.own(fd, path, uid, gid, mode)
            return self.add(fid, os.open(path, os.O_PATH | os.O_CLOEXEC), node.root), [fd]
        except OSError:
            os.close(fd)
            os.unlink(name, dir_fd=node.fd)
            raise

    def tmpfile(self, numbers: tuple[int, ...], _: list[bytes]) -> Answer:
        directory, fid, mode, uid, gid = numbers
        node = self.directory(directory, write=True)
        fd = os.open(self.path(node), os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, mode & 0o7777)
        try:
            path = b"%d" % fd
            self.own(fd, path, uid, gid, mode)
            return self.add(fid, os.open(path, os.O_PATH | os.O_CLOEXEC), node.root), [fd]
        except OSError:
            os.close(fd)
            raise

    def new_name(self, name: bytes) -> bytes:
        """The name, where it is one."""
        if not frames.good_name(name):
            raise OSError(errno.EINVAL, "not a name")
        return name

    def mkdir(self, numbers: tuple[int, ...], strings: list[bytes]) -> Answer:
        directory, fid, mode, uid, gid = numbers
        node, name = self.directory(directory, write=True), self.new_name(strings[0])
        os.mkdir(name, mode & 0o7777, dir_fd=node.fd)
        return self.made(node, name, fid, uid, gid, stat.S_IFDIR | mode), []

    def mknod(self, numbers: tuple[int, ...], strings: list[bytes]) -> Answer:
        directory, fid, mode, uid, gid, device = numbers
        node, name = self.directory(directory, write=True), self.new_name(strings[0])
        kind = stat.S_IFMT(mode)
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            if not node.root.devices:
                raise OSError(errno.EPERM, "no devices in this tree")
        elif kind in (stat.S_IFIFO, stat.S_IFSOCK):
            device = 0
        else:
            raise OSError(errno.EPERM, "not a kind to be made so")
        os.mknod(name, mode, device, dir_fd=node.fd)
        return self.made(node, name, fid, uid, gid, mode), []

    def symlink(self, numbers: tuple[int, ...], strings: list[bytes]) -> Answer:
        directory, fid, uid, gid = numbers
        node, name = self.directory(directory, write=True), self.new_name(strings[0])
        os.symlink(strings[1], name, dir_fd=node.fd)
        return self.made(node, name, fid, uid, gid, stat.S_IFLNK), []

    def link(self, numbers: tuple[int, ...], strings: list[bytes]) -> Answer:
        directory, fid = numbers
        node, name = self.directory(directory, write=True), self.new_name(strings[0])
        # The links of proc(5) lead to the very file, also to one without a name (O_TMPFILE), and to a link itself.
        os.link(self.path(self.writable(fid)), name, dst_dir_fd=node.fd, follow_symlinks=True)
        return pack(os.stat(self.node(fid).fd)), []

    def renameat(self, numbers: tuple[int, ...], strings: list[bytes]) -> Answer:
        old, new, flags = numbers
        from_node, to_node = self.directory(old, write=True), self.directory(new, write=True)
        name, new_name = self.new_name(strings[0]), self.new_name(strings[1])
        if flags & ~3:  # RENAME_NOREPLACE, RENAME_EXCHANGE
            raise OSError(errno.EINVAL, "flags")
        if flags:
            self.call("renameat2", from_node.fd, name, to_node.fd, new_name, flags)
        else:
            os.rename(name, new_name, src_dir_fd=from_node.fd, dst_dir_fd=to_node.fd)
        return b"", []

    def unlinkat(self, numbers: tuple[int, ...], strings: list[bytes]) -> Answer:
        directory, is_directory = numbers
        node, name = self.directory(directory, write=True), self.new_name(strings[0])
        (os.rmdir if is_directory else os.unlink)(name, dir_fd=node.fd)
        return b"", []

    # Attributes.

    def setattr(self, numbers: tuple[int, ...], _: list[bytes]) -> Answer:
        fid, which, mode, uid, gid, size, atime, mtime = numbers
        node = self.writable(fid)
        path = self.path(node)
        if which & frames.SET_SIZE:
            if node.kind != stat.S_IFREG:
                raise OSError(errno.EINVAL, "not a regular file")
            os.truncate(path, size)
        if which & _SET_OWNER:
            os.chown(path, uid if which & frames.SET_UID else -1, gid if which & frames.SET_GID else -1)
        if which & frames.SET_MODE:
            if node.kind == stat.S_IFLNK:
                raise OSError(errno.EOPNOTSUPP, "a link has no mode")
            os.chmod(path, mode & 0o7777)
        status = os.stat(node.fd)
        if which & _SET_TIMES:
            times = (
                atime if which & frames.SET_ATIME else status.st_atime_ns,
                mtime if which & frames.SET_MTIME else status.st_mtime_ns,
            )
            os.utime(path, ns=times)
            status = os.stat(node.fd)
        return pack(status), []

    def setxattr(self, numbers: tuple[int, ...], strings: list[bytes]) -> Answer:
        fid, flags = numbers
        name, value = strings
        os.setxattr(self.path(self.writable(fid)), self.xattr(name), value, flags)
        return b"", []

    def removexattr(self, numbers: tuple[int, ...], strings: list[bytes]) -> Answer:
        os.removexattr(self.path(self.writable(numbers[0])), self.xattr(strings[0]))
        return b"", []

    def fsync(self, numbers: tuple[int, ...], _: list[bytes]) -> Answer:
        node = self.directory(numbers[0])
        fd = os.open(self.path(node), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.call("syncfs", fd)
        finally:
            os.close(fd)
        return b"", []

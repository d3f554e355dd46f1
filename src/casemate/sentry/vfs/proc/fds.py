"""The "magic" links of /proc: cwd, exe, root, open files and namespaces; proc_pid_fd(5), proc_pid_exe(5)."""

from __future__ import annotations

import os
import stat
from errno import EACCES, EINVAL, ENOENT, ENOTTY, EPERM
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from casemate.sentry.errno import SysError
from casemate.sentry.vfs.file import File
from casemate.sentry.vfs.mount import Mount
from casemate.sentry.vfs.place import Dentry, Place
from casemate.sentry.vfs.proc.view import View, file_path
from casemate.sentry.vfs.synthetic import Directory, Entry, Node, SyntheticFs, Text

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.inode import Inode

_S_IFANON = 0
"""Anonymous files (eventfd, epoll, …) have no kind in their mode."""


def anonymous_place(inode: Inode, name: bytes) -> Place:
    """A place for what is in no directory, mounted nowhere."""
    dentry = Dentry(inode, None, name)
    return Place(Mount(inode.fs, dentry), dentry)


class AnonymousInode(Node):
    """What ``/proc/PID/fd/N`` leads to when there is no inode behind the file: an object that can be looked at and not
    be opened again."""

    def __init__(self, fs: SyntheticFs, kind: int) -> None:
        super().__init__(fs, kind | 0o600)


def place_of(fs: SyntheticFs, file: File) -> Place:
    """Where a link to an open file leads."""
    place = file.place
    if place is not None:
        assert isinstance(place, Place)
        return place
    name = file.describe()
    inode = file.inode
    if inode is None:
        kinds = {b"pipe": stat.S_IFIFO, b"socket": stat.S_IFSOCK}
        inode = AnonymousInode(fs, kinds.get(name.split(b":", 1)[0], _S_IFANON))
    return anonymous_place(inode, name)


class ProcessLink(Node):
    """``/proc/PID/cwd``, ``exe`` and ``root``."""

    def __init__(self, fs: SyntheticFs, view: View, name: bytes) -> None:
        super().__init__(fs, stat.S_IFLNK | 0o777)
        self._view = view
        self._name = name

    def owner(self) -> tuple[int, int]:
        return self._view.owner()

    def _place(self, task: Task) -> Place:
        self._view.check(task)
        target = self._view.task
        if target is None or target.thread is None:
            raise SysError(ENOENT)
        if self._name == b"cwd":
            return target.fs.cwd
        if self._name == b"root":
            return target.fs.root
        executable = self._view.group.executable
        if executable is None:
            raise SysError(ENOENT)
        fs = self.fs
        assert isinstance(fs, SyntheticFs)
        return place_of(fs, executable)

    def readlink(self, task: Task) -> bytes:
        return self._place(task).path(task.fs.root)

    def follow(self, task: Task) -> object | None:
        return self._place(task)


class FdLink(Node):
    """``/proc/PID/fd/N``."""

    def __init__(self, fs: SyntheticFs, view: View, fd: int, mode: int) -> None:
        super().__init__(fs, stat.S_IFLNK | mode)
        self._view = view
        self._fd = fd

    def owner(self) -> tuple[int, int]:
        return self._view.owner()

    def size(self) -> int:
        return 64

    def _file(self, task: Task) -> File:
        self._view.check(task)
        target = self._view.task
        file = target.files.peek(self._fd) if target is not None and target.thread is not None else None
        if file is None:
            raise SysError(ENOENT)
        return file

    def readlink(self, task: Task) -> bytes:
        return file_path(task, self._file(task))

    def follow(self, task: Task) -> object | None:
        fs = self.fs
        assert isinstance(fs, SyntheticFs)
        return place_of(fs, self._file(task))


def _parse(name: bytes) -> int:
    if not name.isdigit() or len(name) > 10 or (name[0] == 48 and len(name) > 1):
        raise SysError(ENOENT)
    return int(name)


class FdDirectory(Directory):
    """``/proc/PID/fd``, proc_pid_fd(5)."""

    mode_bits = 0o500

    def __init__(self, fs: SyntheticFs, view: View) -> None:
        super().__init__(fs, self.mode_bits)
        self._fs = fs
        self._view = view
        self._made: WeakValueDictionary[tuple[int, int], Node] = WeakValueDictionary()

    def owner(self) -> tuple[int, int]:
        return self._view.owner()

    def access(self) -> tuple[int, int, int]:
        # Every process reaches its own, whoever its files belong to: readdir and lookup check.
        return self.mode | 0o555, 0, 0

    def open(self, task: Task, flags: int) -> File:
        self._view.check(task)
        return super().open(task, flags)

    def size(self) -> int:
        task = self._view.task
        return len(task.files) if task is not None and task.thread is not None else 0

    def lookup(self, task: Task, name: bytes) -> Inode:
        fd = _parse(name)
        self._view.check(task)
        target = self._view.task
        file = target.files.peek(fd) if target is not None and target.thread is not None else None
        if file is None:
            raise SysError(ENOENT)
        mode = self._mode(file)
        node = self._made.get((fd, mode))
        if node is None:
            node = self._made[fd, mode] = self._make(fd, mode)
        return node

    def _mode(self, file: File) -> int:
        if file.flags & os.O_PATH:
            return 0
        return (0o500 if file.can_read else 0) | (0o300 if file.can_write else 0)

    def _make(self, fd: int, mode: int) -> Node:
        return FdLink(self._fs, self._view, fd, mode)

    def readdir(self, task: Task) -> list[Entry]:
        self._view.check(task)
        target = self._view.task
        if target is None or target.thread is None:
            return []
        kind = stat.S_IFLNK if type(self) is FdDirectory else stat.S_IFREG
        return [(b"%d" % fd, self.ino << 20 | fd, kind) for fd in target.files]


class FdInfo(Text):
    """``/proc/PID/fdinfo/N``, proc_pid_fdinfo(5)."""

    def __init__(self, fs: SyntheticFs, view: View, fd: int) -> None:
        super().__init__(fs, 0o400, self._text)
        self._view = view
        self._fd = fd

    def owner(self) -> tuple[int, int]:
        return self._view.owner()

    def _text(self, task: Task) -> bytes:
        self._view.check(task)
        target = self._view.living()
        file = target.files.peek(self._fd)
        if file is None:
            raise SysError(ENOENT)
        flags = file.flags | (os.O_CLOEXEC if target.files.cloexec(self._fd) else 0) | _O_LARGEFILE
        mount = file.place.mount.id if file.place is not None else 0
        number = file.inode.stat().ino if file.inode is not None else 0
        head = f"pos:\t{file.offset}\nflags:\t0{flags:o}\nmnt_id:\t{mount}\nino:\t{number}\n"
        return head.encode() + file.fdinfo()


_O_LARGEFILE = 0o100000


class FdInfoDirectory(FdDirectory):
    """``/proc/PID/fdinfo``."""

    mode_bits = 0o555

    def _mode(self, file: File) -> int:
        return 0

    def _make(self, fd: int, mode: int) -> Node:
        return FdInfo(self._fs, self._view, fd)


_NAMESPACES = {
    b"cgroup": 4026531835, b"ipc": 4026531839, b"mnt": 4026531841, b"net": 4026531840, b"pid": 4026531836,
    b"pid_for_children": 4026531836, b"time": 4026531834, b"time_for_children": 4026531834, b"user": 4026531837,
    b"uts": 4026531838,
}  # fmt: skip


_CLONE_FLAGS = {
    b"cgroup": 0x02000000, b"ipc": 0x08000000, b"mnt": 0x00020000, b"net": 0x40000000, b"pid": 0x20000000,
    b"time": 0x00000080, b"user": 0x10000000, b"uts": 0x04000000,
}  # fmt: skip
"""``CLONE_NEW*`` of each kind."""
_NS_GET_USERNS, _NS_GET_PARENT, _NS_GET_NSTYPE, _NS_GET_OWNER_UID = 0xB701, 0xB702, 0xB703, 0xB704


class NsFile(File):
    """An open namespace, ioctl_ns(2). What it belongs to, or is below of, is outside of the sandbox."""

    def __init__(self, flags: int, node: NsNode) -> None:
        super().__init__(flags, node)
        self.kind = node.name

    def ioctl(self, task: Task, command: int, argument: int) -> int:
        if command == _NS_GET_USERNS or (command == _NS_GET_PARENT and self.kind in (b"pid", b"user")):
            raise SysError(EPERM)
        if command == _NS_GET_NSTYPE:
            return _CLONE_FLAGS[self.kind]
        if command == _NS_GET_OWNER_UID and self.kind == b"user":
            task.mem.put_u32(argument, 0)
            return 0
        raise SysError(EINVAL if command in (_NS_GET_PARENT, _NS_GET_OWNER_UID) else ENOTTY)


class NsNode(Node):
    """A namespace. It can be opened and compared."""

    def __init__(self, fs: SyntheticFs, name: bytes, number: int) -> None:
        super().__init__(fs, stat.S_IFREG | 0o444)
        self.name = name
        self.ino = number

    def open(self, task: Task, flags: int) -> File:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise SysError(EACCES)
        return NsFile(flags, self)


class NsLink(Node):
    """``/proc/PID/ns/NAME``, namespaces(7)."""

    def __init__(self, fs: SyntheticFs, view: View, name: bytes) -> None:
        super().__init__(fs, stat.S_IFLNK | 0o777)
        self._view = view
        kind = name.split(b"_", 1)[0]
        # Those that containers may share have numbers of their own; of the others there is one in a sandbox.
        own = getattr(view.group.ns, kind.decode(), None)
        number = _NAMESPACES[name] if own is None else own.inode
        self._text = b"%s:[%d]" % (kind, number)
        self._target = NsNode(fs, kind, number)

    def owner(self) -> tuple[int, int]:
        return self._view.owner()

    def readlink(self, task: Task) -> bytes:
        self._view.check(task)
        return self._text

    def follow(self, task: Task) -> object | None:
        self._view.check(task)
        return anonymous_place(self._target, self._text)


class NsDirectory(Directory):
    """``/proc/PID/ns``."""

    def __init__(self, fs: SyntheticFs, view: View) -> None:
        super().__init__(fs, 0o511)
        for name in _NAMESPACES:
            self.add(name, NsLink(fs, view, name))

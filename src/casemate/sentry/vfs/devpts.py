"""devpts, pts(4): the file system of pseudo-terminals, and how they are made."""

from __future__ import annotations

import os
import stat
from errno import EIO, ENOENT, ENOSPC, ENXIO
from typing import TYPE_CHECKING

from casemate.sentry.abi import u32
from casemate.sentry.errno import SysError
from casemate.sentry.vfs.file import File
from casemate.sentry.vfs.inode import Attributes, FsStat, Inode, Stat
from casemate.sentry.vfs.proc.fds import anonymous_place
from casemate.sentry.vfs.synthetic import Directory, Entry, Node, SyntheticFs
from casemate.sentry.vfs.tty import PTS_MAJOR, Terminal
from casemate.sentry.vfs.ttyfile import MasterFile, SlaveFile

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.place import Place

DEVPTS_SUPER_MAGIC = 0x1CD1
TTY_GID = 5
"""Whom slaves belong to, by grantpt(3)."""
MAX_TERMINALS = 4096


class PtsNode(Node):
    """A slave's node, ``/dev/pts/N``."""

    def __init__(self, fs: DevPts, terminal: Terminal, uid: int) -> None:
        super().__init__(fs, stat.S_IFCHR | 0o620)
        self.terminal = terminal
        self.uid = uid
        self.gid = TTY_GID
        self.ino = 3 + terminal.index
        self._times = [fs.kernel.clock.realtime()] * 2

    def stat(self) -> Stat:
        found = super().stat()
        found.rdev = self.terminal.device
        found.atime, found.mtime = self._times
        return found

    def setattr(self, task: Task, attributes: Attributes) -> None:
        if attributes.mode is not None:
            self.mode = stat.S_IFCHR | attributes.mode
        if attributes.uid is not None:
            self.uid = attributes.uid
        if attributes.gid is not None:
            self.gid = attributes.gid
        if attributes.atime is not None:
            self._times[0] = attributes.atime
        if attributes.mtime is not None:
            self._times[1] = attributes.mtime


class PtmxNode(Node):
    """``/dev/pts/ptmx``: opening it makes a terminal."""

    def __init__(self, fs: DevPts) -> None:
        super().__init__(fs, stat.S_IFCHR | 0o666)

    def stat(self) -> Stat:
        found = super().stat()
        found.rdev = os.makedev(5, 2)
        return found


class PtsDirectory(Directory):
    """The only directory."""

    def __init__(self, fs: DevPts) -> None:
        super().__init__(fs, 0o755)
        self._pts = fs

    def lookup(self, task: Task, name: bytes) -> Inode:
        if name == b"ptmx":
            return self.fixed[name]
        node = self._pts.nodes.get(int(name)) if name.isdigit() and len(name) < 8 else None
        if node is None or (len(name) > 1 and name[0] == 48):
            raise SysError(ENOENT)
        return node

    def readdir(self, task: Task) -> list[Entry]:
        entries = super().readdir(task)
        return entries + [(b"%d" % index, node.ino, stat.S_IFCHR) for index, node in sorted(self._pts.nodes.items())]


class DevPts(SyntheticFs):
    """An instance. The first of a sandbox is the one that ``/dev/ptmx`` belongs to.

    Arguments:
        device: st_dev.
        kernel: whose terminals they are.
    """

    name = "devpts"
    magic = DEVPTS_SUPER_MAGIC

    def __init__(self, device: int, kernel: Kernel) -> None:
        super().__init__(device, kernel)
        self.nodes: dict[int, PtsNode] = {}
        self._root = PtsDirectory(self)
        self._root.add(b"ptmx", PtmxNode(self))
        kernel.subsystems.setdefault("devpts", self)

    @property
    def root(self) -> Inode:
        return self._root

    def statfs(self, task: Task | None) -> FsStat:
        return FsStat(self.magic)

    def new(self, uid: int) -> Terminal:
        """A new terminal, locked.

        Arguments:
            uid: whom its slave belongs to.

        Raises:
            SysError(ENOSPC): there are too many, as Linux says.
        """
        index = 0
        while index in self.nodes:
            index += 1
        if index >= MAX_TERMINALS:
            raise SysError(ENOSPC)
        terminal = Terminal(index, os.makedev(PTS_MAJOR, index))
        terminal.fs = self
        self.nodes[index] = PtsNode(self, terminal, uid)
        return terminal

    def remove(self, terminal: Terminal) -> None:
        """Its master is closed: the name goes."""
        self.nodes.pop(terminal.index, None)
        terminal.fs = None


def _default(kernel: Kernel, root: Place | None = None) -> DevPts:
    """The instance that is mounted somewhere below ``root``; without one the sandbox's first."""
    for mount in root.mount.below() if root is not None else ():
        if isinstance(mount.fs, DevPts):
            return mount.fs
    found = kernel.subsystems.get("devpts")
    if not isinstance(found, DevPts):
        raise SysError(ENXIO)
    return found


def open_ptmx(task: Task, inode: Inode, flags: int) -> File:
    """Open ``/dev/ptmx``, ptmx(4): a new terminal's master.

    Arguments:
        inode: the node that was opened; one of a devpts makes the terminal there.
    """
    fs = inode.fs if isinstance(inode.fs, DevPts) else _default(task.kernel, task.fs.root)
    return MasterFile(flags, inode, fs.new(task.creds.fsuid))


def open_slave(task: Task, inode: Inode, index: int, flags: int) -> File:
    """Open a slave by its node: one of devpts, or one that was made elsewhere with the same number."""
    if isinstance(inode, PtsNode):
        terminal = inode.terminal
    else:
        node = _default(task.kernel, task.fs.root).nodes.get(index)
        if node is None:
            raise SysError(EIO)
        terminal = node.terminal
    return SlaveFile.open(task, terminal, inode, flags)


def open_peer(task: Task, terminal: Terminal, flags: int) -> int:
    """TIOCGPTPEER, ioctl_tty(2): a descriptor of the slave, whatever is mounted where.

    Arguments:
        flags: of open(2).
    """
    flags = u32(flags)
    fs = terminal.fs
    node = fs.nodes.get(terminal.index) if isinstance(fs, DevPts) else None
    if node is None:
        raise SysError(EIO)
    file = SlaveFile.open(task, terminal, node, flags & ~os.O_CLOEXEC)
    file.place = slave_place(terminal)
    try:
        return task.files.install(file, bool(flags & os.O_CLOEXEC))
    except SysError:
        file.decref()
        raise


def slave_place(terminal: Terminal) -> Place | None:
    """Where the slave's node is seen: in the mount of its devpts, or in none."""
    fs = terminal.fs
    if not isinstance(fs, DevPts):
        return None
    from casemate.sentry.vfs.place import Place

    node = fs.nodes[terminal.index]
    name = b"%d" % terminal.index
    for mount in fs.kernel.mounts.all() if fs.kernel.mounts is not None else ():
        if mount.fs is fs and mount.root.parent is None:
            return Place(mount, mount.root.child(name, node))
    return anonymous_place(node, b"/dev/pts/" + name)


def open_pair(kernel: Kernel, root: Place | None = None) -> tuple[Terminal, SlaveFile]:
    """A terminal for a program that comes in by a door: the pair, unlocked, and an open file of its slave for the
    program's descriptors. The master's side is for a :class:`casemate.sentry.vfs.console.Console`.

    Arguments:
        root: of the container that it is for.

    Raises:
        SysError: ENXIO without a devpts, ENOSPC.
    """
    fs = _default(kernel, root)
    terminal = fs.new(0)
    terminal.locked = False
    file = SlaveFile(os.O_RDWR, fs.nodes[terminal.index], terminal)
    file.place = slave_place(terminal)
    return terminal, file

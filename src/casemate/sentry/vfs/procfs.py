"""/proc, proc(5): processes and the machine as files. What they say is made in :mod:`casemate.sentry.vfs.proc`."""

from __future__ import annotations

import stat
from collections.abc import Callable
from errno import EACCES, ENOENT, ESRCH
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

from casemate.sentry.errno import SysError
from casemate.sentry.vfs.inode import FsStat, Inode
from casemate.sentry.vfs.proc import machine, memory, net, process, sysctl
from casemate.sentry.vfs.proc.fds import FdDirectory, FdInfoDirectory, NsDirectory, ProcessLink
from casemate.sentry.vfs.proc.view import View
from casemate.sentry.vfs.synthetic import Directory, Entry, Link, Node, SyntheticFs, Text, Tree, build

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.file import File

PROC_SUPER_MAGIC = 0x9FA0

Make = Callable[[View, "Task"], bytes]
Store = Callable[[View, "Task", bytes], None]

_FILES: dict[bytes, tuple[int, Make, Store | None]] = {
    b"auxv": (0o400, process.auxv, None),
    b"cgroup": (0o444, process.fixed(b"0::/\n"), None),
    b"clear_refs": (0o200, process.fixed(b""), process.ignore),
    b"cmdline": (0o444, process.cmdline, None),
    b"comm": (0o644, process.comm, process.set_comm),
    b"coredump_filter": (0o644, process.fixed(b"00000033\n"), process.ignore),
    b"cpuset": (0o444, process.fixed(b"/\n"), None),
    b"environ": (0o400, process.environ, None),
    b"gid_map": (0o644, process.fixed(b"         0          0 4294967295\n"), process.refuse),
    b"io": (0o400, process.io, None),
    b"limits": (0o444, process.limits, None),
    b"loginuid": (0o644, process.loginuid, process.set_loginuid),
    b"maps": (0o444, memory.maps, None),
    b"mountinfo": (0o444, process.mountinfo, None),
    b"mounts": (0o444, process.mounts, None),
    b"mountstats": (0o400, process.mountstats, None),
    b"oom_adj": (0o644, process.fixed(b"0\n"), process.ignore),
    b"oom_score": (0o444, process.fixed(b"0\n"), None),
    b"oom_score_adj": (0o644, process.oom_score_adj, process.set_oom_score_adj),
    b"personality": (0o400, process.personality, None),
    b"projid_map": (0o644, process.fixed(b""), process.refuse),
    b"sched": (0o644, process.sched, process.ignore),
    b"schedstat": (0o444, process.schedstat, None),
    b"sessionid": (0o444, process.fixed(b"4294967295"), None),
    b"setgroups": (0o644, process.fixed(b"allow\n"), process.refuse),
    b"smaps": (0o444, memory.smaps, None),
    b"smaps_rollup": (0o444, memory.smaps_rollup, None),
    b"stack": (0o400, process.fixed(b""), None),
    b"stat": (0o444, process.stat, None),
    b"statm": (0o444, memory.statm, None),
    b"status": (0o444, process.status, None),
    b"syscall": (0o400, process.syscall, None),
    b"timerslack_ns": (0o666, process.fixed(b"50000\n"), process.ignore),
    b"uid_map": (0o644, process.fixed(b"         0          0 4294967295\n"), process.refuse),
    b"wchan": (0o444, process.fixed(b"0"), None),
}
"""Of processes and threads: permissions, content, and what becomes of writes."""
_THREAD_ONLY: dict[bytes, tuple[int, Make, Store | None]] = {b"children": (0o444, process.children, None)}
_DIRECTORIES = {b"fd": 0o500, b"fdinfo": 0o555, b"ns": 0o511, b"net": 0o555, b"task": 0o555}
_LINKS = (b"cwd", b"exe", b"root")


class ProcessText(Text):
    """A small file about a process."""

    def __init__(self, fs: ProcFs, mode: int, view: View, make: Make, store: Store | None) -> None:
        super().__init__(fs, mode, cast(Any, None), cast(Any, store and self._put))
        self._view = view
        self._content = make
        self._take = store

    def make(self, task: Task) -> bytes:
        if not self._view.alive:
            raise SysError(ESRCH)
        return self._content(self._view, task)

    def _put(self, task: Task, data: bytes) -> None:
        assert self._take is not None
        self._take(self._view, task, data)

    def owner(self) -> tuple[int, int]:
        return self._view.owner()


class MemNode(Node):
    """``/proc/PID/mem``."""

    def __init__(self, fs: ProcFs, view: View) -> None:
        super().__init__(fs, stat.S_IFREG | 0o600)
        self._view = view

    def owner(self) -> tuple[int, int]:
        return self._view.owner()

    def open(self, task: Task, flags: int) -> File:
        self._view.living()
        self._view.check(task)
        return memory.MemFile(flags, self, self._view)


class ProcessDirectory(Directory):
    """``/proc/PID`` or ``/proc/PID/task/TID``. What it has is made when it is asked for."""

    def __init__(self, fs: ProcFs, view: View) -> None:
        super().__init__(fs)
        self._proc = fs
        self._view = view
        self._made: WeakValueDictionary[bytes, Node] = WeakValueDictionary()
        self._files = _FILES if view.tid is None else {**_FILES, **_THREAD_ONLY}
        if view.tid is None:
            self.extra["process"] = view.group  # pidfd_send_signal(2) takes these directories too

    def owner(self) -> tuple[int, int]:
        creds = self._view.creds
        return (0, 0) if creds is None else (creds.euid, creds.egid)

    def lookup(self, task: Task, name: bytes) -> Inode:
        if not self._view.alive:
            raise SysError(ENOENT)
        node = self._made.get(name)
        if node is None:
            node = self._make(name)
            self._made[name] = node
        return node

    def _make(self, name: bytes) -> Node:
        fs, view = self._proc, self._view
        found = self._files.get(name)
        if found is not None:
            return ProcessText(fs, found[0], view, found[1], found[2])
        if name in _LINKS:
            return ProcessLink(fs, view, name)
        if name == b"fd":
            return FdDirectory(fs, view)
        if name == b"fdinfo":
            return FdInfoDirectory(fs, view)
        if name == b"ns":
            return NsDirectory(fs, view)
        if name == b"mem":
            return MemNode(fs, view)
        if name == b"net":
            return fs.net
        if name == b"task" and view.tid is None:
            return TaskDirectory(fs, view)
        raise SysError(ENOENT)

    def links(self) -> int:
        return 2 + len(_DIRECTORIES) - (self._view.tid is not None)

    def readdir(self, task: Task) -> list[Entry]:
        base = self.ino << 16
        entries = [(name, base + index, stat.S_IFREG) for index, name in enumerate((*self._files, b"mem"))]
        names = [name for name in _DIRECTORIES if name != b"task" or self._view.tid is None]
        entries += [(name, base + 512 + index, stat.S_IFDIR) for index, name in enumerate(names)]
        entries += [(name, base + 768 + index, stat.S_IFLNK) for index, name in enumerate(_LINKS)]
        return entries


class TaskDirectory(Directory):
    """``/proc/PID/task``, proc_pid_task(5)."""

    def __init__(self, fs: ProcFs, view: View) -> None:
        super().__init__(fs)
        self._proc = fs
        self._view = view
        self._made: WeakValueDictionary[int, ProcessDirectory] = WeakValueDictionary()

    def owner(self) -> tuple[int, int]:
        return self._view.owner()

    def links(self) -> int:
        return 2 + len(self._numbers())

    def _numbers(self) -> list[int]:
        group = self._view.group
        return sorted({group.pid, *group.tasks} if self._view.alive else ())

    def lookup(self, task: Task, name: bytes) -> Inode:
        tid = _number(name)
        if tid not in self._numbers():
            raise SysError(ENOENT)
        assert tid is not None
        node = self._made.get(tid)
        if node is None or not node._view.alive:
            node = self._made[tid] = ProcessDirectory(self._proc, View(self._view.group, tid))
        return node

    def readdir(self, task: Task) -> list[Entry]:
        return [(b"%d" % tid, self.ino << 16 | tid, stat.S_IFDIR) for tid in self._numbers()]


def _number(name: bytes) -> int | None:
    """A process's number as a name has it, or None."""
    if not name.isdigit() or len(name) > 10 or (name[0] == 48 and len(name) > 1):
        return None
    return int(name)


class RootDirectory(Directory):
    """``/proc`` itself: the fixed files and a directory for each process."""

    def links(self) -> int:
        return super().links() + len(self._proc.kernel.groups)

    def __init__(self, fs: ProcFs) -> None:
        super().__init__(fs)
        self._proc = fs
        self._made: WeakValueDictionary[int, ProcessDirectory] = WeakValueDictionary()

    def lookup(self, task: Task, name: bytes) -> Inode:
        node = self.fixed.get(name)
        if node is not None:
            return node
        number = _number(name)
        if number is None:
            raise SysError(ENOENT)
        own = getattr(task, "group", None)
        if own is None:
            raise SysError(ENOENT)  # the kernel itself, that mounts things
        group = own.ns.pid.group(number)
        if group is None:
            # Threads are not listed, but can be asked for.
            thread = own.ns.pid.task(number)
            if thread is None or thread.thread is None:
                raise SysError(ENOENT)
            group = thread.group
        made = self._made.get(number)
        if made is None or made._view.group is not group:
            made = self._made[number] = ProcessDirectory(self._proc, View(group))
        return made

    def readdir(self, task: Task) -> list[Entry]:
        entries = super().readdir(task)
        own = getattr(task, "group", None)
        pids = sorted(group.pid for group in own.ns.pid.groups()) if own is not None else []
        entries += [(b"%d" % pid, 1 << 40 | pid, stat.S_IFDIR) for pid in pids]
        return entries


def _self(task: Task) -> bytes:
    return b"%d" % task.group.pid


def _thread_self(task: Task) -> bytes:
    return b"%d/task/%d" % (task.group.pid, task.tid)


def _version(task: Task) -> bytes:
    osrelease, version = sysctl.release()
    return b"Linux version %s (casemate) %s\n" % (osrelease, version)


def _sysvipc(name: str) -> Callable[[Task], bytes]:
    return _SysvTable(name)


class _SysvTable:
    """``/proc/sysvipc/*``: the rows come from the IPC namespace's tables' method ``proc(name)``, if it has one."""

    HEADS = {
        "shm": "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime"
        "      dtime      ctime                   rss                  swap\n",
        "msg": "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      stime"
        "      rtime      ctime\n",
        "sem": "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n",
    }

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, task: Task) -> bytes:
        for subsystem in ("sysv", f"sysv{self._name}", self._name):
            rows = getattr(task.group.ns.ipc.subsystems.get(subsystem), "proc", None)
            if rows is not None:
                text: bytes = self.HEADS[self._name].encode() + rows(self._name)
                return text
        return self.HEADS[self._name].encode()


def _refuse(task: Task, data: bytes) -> None:
    raise SysError(EACCES)


class ProcFs(SyntheticFs):
    """The file system of /proc.

    Arguments:
        device: st_dev.
        kernel: whose processes are shown.
    """

    name = "proc"
    magic = PROC_SUPER_MAGIC
    refusal = ENOENT

    def __init__(self, device: int, kernel: Kernel) -> None:
        super().__init__(device, kernel)
        self._root = RootDirectory(self)
        self.net = Directory(self)
        build(self, self.net, net.tree())
        build(self, self._root, self._tree())

    def _tree(self) -> Tree:
        return {
            "self": Link(self, _self),
            "thread-self": Link(self, _thread_self),
            "mounts": Link(self, b"self/mounts"),
            "net": Link(self, b"self/net"),
            "cmdline": b"console=ttyS0",
            "consoles": b"",
            "cgroups": machine.CGROUPS,
            "cpuinfo": machine.cpuinfo,
            "devices": lambda task: machine.DEVICES,
            "diskstats": lambda task: b"",
            "filesystems": lambda task: machine.FILESYSTEMS,
            "interrupts": "".join(f"{f'CPU{number}':>11}" for number in machine.cpus()),
            "kmsg": lambda task: b"",
            "loadavg": machine.loadavg,
            "locks": _locks,
            "meminfo": machine.meminfo,
            "misc": lambda task: b"",
            "modules": lambda task: b"",
            "partitions": b"major minor  #blocks  name\n",
            "softirqs": b"",
            "stat": machine.stat,
            "swaps": b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority",
            "sysrq-trigger": (lambda task: b"", _refuse),
            "uptime": machine.uptime,
            "version": _version,
            "vmstat": machine.vmstat,
            "zoneinfo": lambda task: b"",
            "sys": sysctl.tree(self.kernel),
            "sysvipc": {name: _sysvipc(name) for name in ("shm", "msg", "sem")},
            "tty": {"drivers": b"/dev/tty             /dev/tty        5       0 system:/dev/tty\n"
                    b"pty_slave            /dev/pts      136 0-1048575 pty:slave"},
            "fs": {},
            "bus": {},
            "driver": {},
            "irq": {},
        }  # fmt: skip

    @property
    def root(self) -> Inode:
        return self._root

    def statfs(self, task: Task | None) -> FsStat:
        return FsStat(self.magic)


def _locks(task: Task) -> bytes:
    """proc_locks(5): made by whoever keeps the locks, ``kernel.subsystems["locks"]``'s method ``proc()``."""
    rows = getattr(task.kernel.subsystems.get("locks"), "proc", None)
    text: bytes = rows() if rows is not None else b""
    return text

"""Making the first process of a sandbox, and those that come in by a door."""

from __future__ import annotations

from errno import ENOMEM
from typing import TYPE_CHECKING, Any

from casemate.sentry.errno import SysError
from casemate.sentry.loader.load import fresh, load
from casemate.sentry.loader.program import Program
from casemate.sentry.signals.state import GroupSignals, TaskSignals
from casemate.sentry.tasks import exec as execs
from casemate.sentry.tasks import exit as exits
from casemate.sentry.tasks import usage
from casemate.sentry.tasks.session import ProcessGroup, Session
from casemate.sentry.tasks.task import Task, ThreadGroup
from casemate.sentry.vfs.context import FsContext
from casemate.sentry.vfs.path import open_path, walk

if TYPE_CHECKING:
    from casemate.sentry.creds import Credentials
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.limits import Limits
    from casemate.sentry.tasks.namespaces import Namespaces
    from casemate.sentry.vfs.fdtable import FdTable
    from casemate.sentry.vfs.place import Place

AT_FDCWD = -100


def start(
    kernel: Kernel,
    argv: list[bytes],
    env: list[bytes],
    cwd: bytes,
    creds: Credentials,
    files: FdTable,
    path: bytes,
    *,
    root: Place,
    umask: int = 0o022,
    limits: Limits | None = None,
    door: Any = None,
    terminal: Any = None,
    no_new_privs: bool = False,
    unkillable: bool = False,
    container: str = "",
    ns: Namespaces | None = None,
    oom_score_adj: int = 0,
    seccomp: list[Any] | None = None,
) -> Task:
    """Make a process from nothing and have it run a program: pid 1, or a further one without a parent.

    It is the leader of a session and process group of its own. The first one of a PID namespace gets all orphans there.

    Arguments:
        cwd: an absolute path, below ``root``.
        files: its descriptors, taken over.
        path: of the program, absolute or relative to ``cwd``; it is not searched for.
        root: what is ``/`` for it.
        limits: None for those that ``files`` has.
        door: told when it ends, see :attr:`ThreadGroup.door`.
        terminal: what is to be its controlling terminal.
        unkillable: signals from inside do nothing unless it has handlers, as for the first of a PID namespace; for any
            other one it makes no difference.
        ns: its container's namespaces; None for the kernel's own.

    Returns its task, which stands still: for ``kernel.resume``.

    Raises:
        SysError: the program cannot be run, execve(2); the process is gone again then.
    """
    ns = ns or kernel.ns
    pids = ns.pid
    if pids.ended:
        raise SysError(ENOMEM)  # as fork(2) says where a PID namespace has lost its first process
    pid = pids.next()
    limits = limits if limits is not None else files.limits
    thread, mm = fresh(kernel, limits)
    signals = GroupSignals()
    first = pids.init is None
    signals.unkillable = unkillable and first
    process_group = ProcessGroup(pid, Session(pid))
    group = ThreadGroup(kernel, pid, None, process_group, signals, limits)
    usage.watch_limit(group)
    group.container = container
    group.ns = ns
    group.oom_score_adj = oom_score_adj
    fs = FsContext(root, root, umask)
    task = Task(kernel, pid, group, thread, mm, fs, files, creds, TaskSignals(signals), b"")
    task.no_new_privs = no_new_privs
    task.seccomp = seccomp or []
    thread.owner = task
    group.tasks[pid] = task
    kernel.tasks[pids.key(pid)] = task
    kernel.groups[pids.key(pid)] = group
    process_group.members[pid] = group
    try:
        fs.cwd = walk(task, AT_FDCWD, cwd)
        program = Program(task, open_path(task, path), path, argv or [b""])
        try:
            new, secure = execs.credentials(task, program.file)
            load(thread, mm, program, env, new, secure, limits)
            execs.changed(task, program, new, secure)
        finally:
            program.close()
    except SysError:
        exits.exit_group(group, 127 << 8)
        pids.last = pid - 1  # nobody has seen it: the next try takes the same number
        raise
    if first:
        pids.init = group
    if terminal is not None:
        terminal.control(process_group.session, process_group)
    group.door = door
    return task

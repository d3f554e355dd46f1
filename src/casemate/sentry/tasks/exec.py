"""Running another program, execve(2): what becomes of the task, its process and what they share."""

from __future__ import annotations

import contextlib
import stat
import struct
from errno import E2BIG, ENAMETOOLONG, EPERM
from resource import RLIMIT_STACK
from typing import TYPE_CHECKING

from casemate.sentry import creds as cr
from casemate.sentry.abi import PAGE_SIZE
from casemate.sentry.errno import SysError
from casemate.sentry.loader.load import fresh, load
from casemate.sentry.loader.program import Program
from casemate.sentry.tasks import exit as exits
from casemate.sentry.tasks import usage
from casemate.sentry.tasks.attributes import PERSONALITY, PR_SET_PDEATHSIG, apply_affinity
from casemate.sentry.vfs.mount import MS_NOSUID

if TYPE_CHECKING:
    from casemate.sentry.creds import Credentials
    from casemate.sentry.mm.memory import Memory
    from casemate.sentry.mm.space import AddressSpace
    from casemate.sentry.platform.base import HostThread
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.file import File

MAX_ARG_STRLEN = 32 * PAGE_SIZE
MAX_ARG_STRINGS = 0x7FFF_FFFF
ARG_MAX = 128 * 1024
"""The room for arguments and environment that there always is, execve(2) "Limits on size"."""
MAX_ARGS = 6 << 20
"""The most room for them, whatever the stack's limit."""
COMM = 15
ADDR_NO_RANDOMIZE = 0x0040000
PER_CLEAR_ON_SETID = 0x0040000 | 0x0400000 | 0x0200000 | 0x0100000
SUID_DUMP_DISABLE, SUID_DUMP_USER = 0, 1


def read_strings(mem: Memory, address: int, room: int) -> tuple[list[bytes], int]:
    """A vector of strings that a null pointer ends, ``argv`` or ``envp``.

    Arguments:
        address: of the vector; 0 for an empty one, which Linux takes for it.
        room: how many bytes strings and pointers may take.

    Returns the strings, and how much of the room is left.

    Raises:
        SysError: EFAULT, E2BIG.
    """
    strings: list[bytes] = []
    if not address:
        return strings, room
    # Strings mostly lie behind each other: a page once read serves many.
    window, window_start = b"", 0
    while True:
        count = min(64, (PAGE_SIZE - address % PAGE_SIZE) // 8 or 1)
        for (pointer,) in struct.iter_unpack("<Q", mem.read(address, count * 8)):
            if not pointer:
                return strings, room
            at = pointer - window_start
            end = window.find(0, at) if 0 <= at < len(window) else -1
            if end < 0:
                size = PAGE_SIZE - pointer % PAGE_SIZE
                window, window_start, at = mem.read(pointer, size), pointer, 0
                end = window.find(0)
            string = window[at:end] if end >= 0 else _long(mem, pointer)
            room -= len(string) + 9
            if room < 0:
                raise SysError(E2BIG)
            strings.append(string)
        address += count * 8


def _long(mem: Memory, address: int) -> bytes:
    """A string that does not end in its first page."""
    try:
        return mem.cstring(address, MAX_ARG_STRLEN)
    except SysError as error:
        raise SysError(E2BIG if error.errno == ENAMETOOLONG else error.errno) from None


def room_for_arguments(stack_limit: int) -> int:
    """How many bytes arguments and environment may take with this soft RLIMIT_STACK."""
    return max(min(stack_limit // 4, MAX_ARGS), ARG_MAX)


def execute(
    task: Task, file: File, filename: bytes, argv: list[bytes], env: list[bytes], inaccessible: bool = False
) -> None:
    """Have the task run another program; its registers are the new program's afterwards.

    Arguments:
        file: the open program, taken over.
        filename: how it was named.
        inaccessible: it was named by a descriptor that is going to be closed.

    Raises:
        SysError: the task goes on with its old program then.
    """
    program = Program(task, file, filename, argv or [b""], inaccessible)
    try:
        creds, secure = credentials(task, program.file)
        limits = task.group.limits
        persona = task.prctl.get(PERSONALITY, 0)
        randomize = not persona & ADDR_NO_RANDOMIZE or secure
        thread, mm = fresh(task.kernel, limits, randomize)
        try:
            load(thread, mm, program, env, creds, secure, limits)
        except BaseException:
            mm.decref()
            thread.kill()
            raise
        _replace(task, thread, mm)
        changed(task, program, creds, secure)
    finally:
        program.close()


def _replace(task: Task, thread: HostThread, mm: AddressSpace) -> None:
    """Give the task its new memory and host thread, and end what was in the old ones."""
    group = task.group
    kernel = task.kernel
    old = task.thread
    assert old is not None
    usage.program_replaced(task, old)
    exits.end_siblings(task)
    exits.release_memory(task)
    old.owner = None
    old.kill()
    task.thread = thread
    task.mm = mm
    thread.owner = task
    with contextlib.suppress(OSError):
        apply_affinity(task)  # a fresh thread of the host knows nothing of it
    if task.tid != group.pid:
        # The process keeps its number: the one that is left becomes its first thread.
        del kernel.tasks[group.ns.pid.key(task.tid)]
        task.tid = group.pid
        kernel.tasks[group.ns.pid.key(task.tid)] = task
        group.tasks = {task.tid: task}


def changed(task: Task, program: Program, creds: Credentials, secure: bool) -> None:
    """What else execve(2) changes of a task and its process, "Effect on process attributes"."""
    group = task.group
    if task.files.refs > 1:
        shared, task.files = task.files, task.files.fork(group.limits)
        shared.decref(task)
    task.files.close_on_exec(task)
    if group.executable is not None:
        group.executable.decref()
    group.executable = program.file.incref()
    group.exec_path = program.filename
    group.did_exec = True
    group.signals.exec()
    task.signals.exec()
    task.name = program.filename.rpartition(b"/")[2][:COMM]
    group.dumpable = SUID_DUMP_USER
    if secure:
        group.dumpable = SUID_DUMP_DISABLE
        task.prctl.pop(PR_SET_PDEATHSIG, None)
        if PERSONALITY in task.prctl:
            task.prctl[PERSONALITY] &= ~PER_CLEAR_ON_SETID
    task.creds = creds
    task.robust_list = task.robust_size = 0


def credentials(task: Task, file: File) -> tuple[Credentials, bool]:
    """The credentials that a program runs with, capabilities(7) "Transformation of capabilities during execve()".

    Returns them, and whether the program must not trust its environment (``AT_SECURE``).

    Raises:
        SysError: EPERM where the file asks for capabilities that cannot be given.
    """
    old = task.creds
    new = old.copy()
    permitted, inheritable, effective, has_caps = 0, 0, False, False
    nosuid = file.place is not None and bool(file.place.mount.flags & MS_NOSUID)
    inode = file.inode
    if inode is not None and not nosuid:
        if not task.no_new_privs:
            status = inode.stat()
            if status.mode & stat.S_ISUID:
                new.euid = status.uid
            if status.mode & stat.S_ISGID and status.mode & stat.S_IXGRP:
                new.egid = status.gid
        permitted, inheritable, effective, has_caps = _file_caps(task, file)
    setid = new.euid != old.uid or new.egid != old.gid
    granted = old.bounding & permitted | old.inheritable & inheritable
    if has_caps and effective and permitted & ~granted:
        raise SysError(EPERM)
    if not old.securebits & cr.SECBIT_NOROOT and not (has_caps and new.uid != 0 and new.euid == 0):
        if 0 in (new.euid, new.uid):
            granted = old.bounding | old.inheritable
        if new.euid == 0:
            effective = True
    if task.no_new_privs and (setid or granted & ~old.permitted):
        new.euid, new.egid = new.uid, new.gid
        granted &= old.permitted
    new.suid = new.fsuid = new.euid
    new.sgid = new.fsgid = new.egid
    if has_caps or setid:
        new.ambient = 0
    granted |= new.ambient
    new.permitted = granted
    new.effective = granted if effective else new.ambient
    new.securebits &= ~cr.SECBIT_KEEP_CAPS
    secure = setid or (new.uid != 0 and (effective or bool(granted & ~new.ambient)))
    return new, secure


def _file_caps(task: Task, file: File) -> tuple[int, int, bool, bool]:
    """``security.capability`` of a file: permitted, inheritable, effective, and whether there is any."""
    assert file.inode is not None
    try:
        value = file.inode.getxattr(task, b"security.capability")
    except SysError:
        return 0, 0, False, False
    revision = int.from_bytes(value[:4], "little")
    version = revision >> 24
    if (version, len(value)) not in ((1, 12), (2, 20), (3, 24)):
        return 0, 0, False, False
    words = struct.unpack(f"<{(len(value) - 4) // 4}I", value[4:])
    if version == 1:
        permitted, inheritable = words
    else:
        permitted, inheritable = words[0] | words[2] << 32, words[1] | words[3] << 32
    return permitted & cr.ALL_CAPS, inheritable & cr.ALL_CAPS, bool(revision & 1), True


def arguments(task: Task, argv: int, envp: int) -> tuple[list[bytes], list[bytes]]:
    """Both vectors of execve(2). Raises SysError: EFAULT, E2BIG."""
    if not argv and not envp:
        return [], []
    room = room_for_arguments(task.group.limits.soft(RLIMIT_STACK))
    arguments, room = read_strings(task.mem, argv, room)
    environment, _ = read_strings(task.mem, envp, room)
    return arguments, environment

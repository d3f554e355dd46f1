"""Running programs: execve(2), execveat(2)."""

from __future__ import annotations

from errno import EACCES, EINVAL, ENOENT
from typing import TYPE_CHECKING

from casemate.sentry.abi import AT_FDCWD, s32, u32
from casemate.sentry.errno import SysError
from casemate.sentry.syscalls.table import syscall
from casemate.sentry.tasks import exec as execs
from casemate.sentry.vfs.path import open_path, open_place

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.file import File

AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH = 0x100, 0x1000


def _strings(task: Task, file: File, argv: int, envp: int) -> tuple[list[bytes], list[bytes]]:
    """Arguments and environment: read once the program is open, whose errors come first."""
    try:
        return execs.arguments(task, argv, envp)
    except SysError:
        file.decref()
        raise


@syscall("execve")
def execve(task: Task, path: int, argv: int, envp: int) -> int:
    """execve(2)."""
    filename = task.mem.path(path)
    file = open_path(task, filename)
    arguments, environment = _strings(task, file, argv, envp)
    execs.execute(task, file, filename, arguments, environment)
    task.kernel.leave(task)
    return 0


@syscall("execveat")
def execveat(task: Task, dirfd: int, path: int, argv: int, envp: int, flags: int) -> int:
    """execveat(2)."""
    flags, fd = u32(flags), s32(dirfd)
    if flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
        raise SysError(EINVAL)
    filename = task.mem.path(path)
    inaccessible = False
    if not filename:
        if not flags & AT_EMPTY_PATH:
            raise SysError(ENOENT)
        if fd == AT_FDCWD:
            raise SysError(EACCES)
        place = task.files.get(fd).place
        if place is None:
            raise SysError(EACCES)
        file = open_place(task, place)
        filename = b"/dev/fd/%d" % fd
        inaccessible = task.files.cloexec(fd)
    else:
        file = open_path(task, filename, dirfd=fd, follow=not flags & AT_SYMLINK_NOFOLLOW)
        if fd != AT_FDCWD and filename[:1] != b"/":
            filename = b"/dev/fd/%d/%s" % (fd, filename)
            inaccessible = task.files.cloexec(fd)
    arguments, environment = _strings(task, file, argv, envp)
    execs.execute(task, file, filename, arguments, environment, inaccessible)
    task.kernel.leave(task)
    return 0

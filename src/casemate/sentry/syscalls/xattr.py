"""Extended attributes, xattr(7)."""

from __future__ import annotations

import stat
from errno import E2BIG, EINVAL, ENODATA, EOPNOTSUPP, EPERM, ERANGE
from typing import TYPE_CHECKING

from casemate.sentry.abi import u32
from casemate.sentry.creds import CAP_SYS_ADMIN
from casemate.sentry.errno import SysError
from casemate.sentry.syscalls.table import syscall
from casemate.sentry.vfs import notify, target
from casemate.sentry.vfs.path import MAY_READ, MAY_WRITE, may, owns
from casemate.sentry.vfs.target import Target

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

XATTR_NAME_MAX, XATTR_SIZE_MAX, XATTR_LIST_MAX = 255, 65536, 65536
XATTR_CREATE, XATTR_REPLACE = 1, 2
CAP_SETFCAP = 31


def _name(task: Task, address: int) -> bytes:
    from errno import ENAMETOOLONG

    try:
        name = task.mem.cstring(address, XATTR_NAME_MAX + 1)
    except SysError as error:
        raise SysError(ERANGE if error.errno == ENAMETOOLONG else error.errno) from None
    if not name:
        raise SysError(ERANGE)
    return name


def _permitted(task: Task, found: Target, name: bytes, write: bool) -> None:
    """Whether the task may read or change this attribute. Raises SysError as xattr(7) says."""
    inode = found.inode
    space = name.split(b".", 1)[0]
    if write:
        found.changeable()
    if space == b"user":
        kind = inode.kind
        if kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise SysError(EPERM if write else ENODATA)
        if write and kind == stat.S_IFDIR and inode.access()[0] & stat.S_ISVTX and not owns(task, inode):
            raise SysError(EPERM)
        may(task, inode, MAY_WRITE if write else MAY_READ)
    elif space == b"trusted":
        if not task.creds.capable(CAP_SYS_ADMIN):
            raise SysError(EPERM if write else ENODATA)
    elif space == b"security":
        needed = CAP_SETFCAP if name == b"security.capability" else CAP_SYS_ADMIN
        if write and not task.creds.capable(needed):
            raise SysError(EPERM)
    else:
        # "system.posix_acl_*" too: there are no access control lists.
        raise SysError(EOPNOTSUPP)
    if len(name) == len(space) + 1:
        raise SysError(EINVAL)


def _set(task: Task, found: Target, name: int, value: int, size: int, flags: int) -> int:
    flags = u32(flags)
    if flags & ~(XATTR_CREATE | XATTR_REPLACE):
        raise SysError(EINVAL)
    text = _name(task, name)
    if size > XATTR_SIZE_MAX:
        raise SysError(E2BIG)
    data = task.mem.read(value, size)
    _permitted(task, found, text, True)
    found.inode.setxattr(task, text, data, flags)
    return _told(found)


def _told(found: Target) -> int:
    if notify.watching and found.dentry is not None:
        notify.happened(found.dentry, notify.IN_ATTRIB)
    return 0


def _get(task: Task, found: Target, name: int, address: int, size: int) -> int:
    text = _name(task, name)
    _permitted(task, found, text, False)
    value = found.inode.getxattr(task, text)
    if size:
        if len(value) > size:
            raise SysError(ERANGE)
        task.mem.write(address, value)
    return len(value)


def _list(task: Task, found: Target, address: int, size: int) -> int:
    names = found.inode.listxattr(task)
    if not task.creds.capable(CAP_SYS_ADMIN):
        names = [name for name in names if not name.startswith(b"trusted.")]
    text = b"".join(name + b"\0" for name in names)
    if len(text) > XATTR_LIST_MAX:
        raise SysError(E2BIG)
    if size:
        if len(text) > size:
            raise SysError(ERANGE)
        task.mem.write(address, text)
    return len(text)


def _remove(task: Task, found: Target, name: int) -> int:
    text = _name(task, name)
    _permitted(task, found, text, True)
    found.inode.removexattr(task, text)
    return _told(found)


@syscall("setxattr")
def setxattr(task: Task, path: int, name: int, value: int, size: int, flags: int) -> int:
    """setxattr(2)."""
    return _set(task, target.of_path(task, path), name, value, size, flags)


@syscall("lsetxattr")
def lsetxattr(task: Task, path: int, name: int, value: int, size: int, flags: int) -> int:
    """lsetxattr(2)."""
    return _set(task, target.of_path(task, path, False), name, value, size, flags)


@syscall("fsetxattr")
def fsetxattr(task: Task, fd: int, name: int, value: int, size: int, flags: int) -> int:
    """fsetxattr(2)."""
    return _set(task, target.of_fd(task, fd, False), name, value, size, flags)


@syscall("getxattr")
def getxattr(task: Task, path: int, name: int, address: int, size: int) -> int:
    """getxattr(2)."""
    return _get(task, target.of_path(task, path), name, address, size)


@syscall("lgetxattr")
def lgetxattr(task: Task, path: int, name: int, address: int, size: int) -> int:
    """lgetxattr(2)."""
    return _get(task, target.of_path(task, path, False), name, address, size)


@syscall("fgetxattr")
def fgetxattr(task: Task, fd: int, name: int, address: int, size: int) -> int:
    """fgetxattr(2)."""
    return _get(task, target.of_fd(task, fd, False), name, address, size)


@syscall("listxattr")
def listxattr(task: Task, path: int, address: int, size: int) -> int:
    """listxattr(2)."""
    return _list(task, target.of_path(task, path), address, size)


@syscall("llistxattr")
def llistxattr(task: Task, path: int, address: int, size: int) -> int:
    """llistxattr(2)."""
    return _list(task, target.of_path(task, path, False), address, size)


@syscall("flistxattr")
def flistxattr(task: Task, fd: int, address: int, size: int) -> int:
    """flistxattr(2)."""
    return _list(task, target.of_fd(task, fd, False), address, size)


@syscall("removexattr")
def removexattr(task: Task, path: int, name: int) -> int:
    """removexattr(2)."""
    return _remove(task, target.of_path(task, path), name)


@syscall("lremovexattr")
def lremovexattr(task: Task, path: int, name: int) -> int:
    """lremovexattr(2)."""
    return _remove(task, target.of_path(task, path, False), name)


@syscall("fremovexattr")
def fremovexattr(task: Task, fd: int, name: int) -> int:
    """fremovexattr(2)."""
    return _remove(task, target.of_fd(task, fd, False), name)

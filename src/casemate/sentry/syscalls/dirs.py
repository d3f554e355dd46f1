"""Directories: making, removing, reading and standing in them."""

from __future__ import annotations

import os
import stat
import struct
from errno import EBADF, EBUSY, EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EPERM, ERANGE, EROFS
from typing import TYPE_CHECKING

from casemate.sentry.abi import AT_FDCWD, u32
from casemate.sentry.creds import CAP_MKNOD, CAP_SYS_CHROOT
from casemate.sentry.errno import SysError
from casemate.sentry.syscalls.table import syscall
from casemate.sentry.vfs import notify
from casemate.sentry.vfs.opening import new_owner
from casemate.sentry.vfs.path import MAY_EXEC, Found, deletable, directory_of, may, walk, walk_parent, writable
from casemate.sentry.vfs.target import AT_REMOVEDIR

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.inode import Inode
    from casemate.sentry.vfs.place import Dentry, Place

GETDENTS_MAX = 1 << 20


# Making and removing.


def vacancy(task: Task, dirfd: int, path: bytes) -> tuple[Found, Dentry]:
    """Where a new name is to be: the directory can be written and has no such entry. Raises SysError."""
    found = walk_parent(task, dirfd, path)
    if found.dentry is not None or found.parent is None:
        raise SysError(EEXIST)
    writable(task, found.mount, found.parent.inode)
    return found, found.parent


def _made(found: Found, directory: Dentry, inode: Inode) -> int:
    directory.remove(found.name)
    if notify.watching:
        notify.entry(directory.inode, notify.IN_CREATE, found.name, inode)
    return 0


def _mkdir(task: Task, dirfd: int, path: int, mode: int) -> int:
    found, directory = vacancy(task, dirfd, task.mem.path(path))
    bits, uid, gid = new_owner(task, directory.inode, stat.S_IFDIR | mode & 0o1777)
    return _made(found, directory, directory.inode.mkdir(task, found.name, bits & 0o7777, uid, gid))


@syscall("mkdir")
def mkdir(task: Task, path: int, mode: int) -> int:
    """mkdir(2)."""
    return _mkdir(task, AT_FDCWD, path, mode)


@syscall("mkdirat")
def mkdirat(task: Task, dirfd: int, path: int, mode: int) -> int:
    """mkdirat(2)."""
    return _mkdir(task, dirfd, path, mode)


def mknod_at(task: Task, dirfd: int, path: bytes, mode: int, device: int) -> Place:
    """mknod(2) for a path that was read already; what it made (bind(2) of UNIX sockets makes one too)."""
    from casemate.sentry.vfs.place import Place

    kind = stat.S_IFMT(mode)
    if kind not in (0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
        raise SysError(EPERM if kind == stat.S_IFDIR else EINVAL)
    found, directory = vacancy(task, dirfd, path)
    if found.slash:
        raise SysError(ENOENT)
    # A character device of number 0 is what overlays mark removed files with, and open to all.
    if (kind == stat.S_IFBLK or (kind == stat.S_IFCHR and device)) and not task.creds.capable(CAP_MKNOD):
        raise SysError(EPERM)
    bits, uid, gid = new_owner(task, directory.inode, (kind or stat.S_IFREG) | mode & 0o7777)
    if kind in (0, stat.S_IFREG):
        inode = directory.inode.create(task, found.name, bits & 0o7777, uid, gid)
    else:
        inode = directory.inode.mknod(task, found.name, bits, device, uid, gid)
    _made(found, directory, inode)
    return Place(found.mount, directory.child(found.name, inode))


@syscall("mknod")
def mknod(task: Task, path: int, mode: int, device: int) -> int:
    """mknod(2)."""
    mknod_at(task, AT_FDCWD, task.mem.path(path), u32(mode) & 0o177777, u32(device))
    return 0


@syscall("mknodat")
def mknodat(task: Task, dirfd: int, path: int, mode: int, device: int) -> int:
    """mknodat(2)."""
    mknod_at(task, dirfd, task.mem.path(path), u32(mode) & 0o177777, u32(device))
    return 0


def _removable(task: Task, found: Found) -> tuple[Dentry, Inode]:
    """The directory and the file of a name that may be removed. Raises SysError."""
    directory, dentry = found.parent, found.dentry
    if dentry is None:
        if found.parent_mount.read_only:
            raise SysError(EROFS)
        raise SysError(ENOENT)
    assert directory is not None
    if found.mount is not found.parent_mount or dentry in found.mount.children:
        raise SysError(EBUSY)
    deletable(task, found.mount, directory.inode, dentry.inode)
    return directory, dentry.inode


def _rmdir(task: Task, dirfd: int, path: bytes) -> int:
    found = walk_parent(task, dirfd, path)
    if found.dentry is not None and found.parent is None:
        raise SysError({b".": EINVAL, b"..": ENOTEMPTY}.get(found.name, EBUSY))
    directory, inode = _removable(task, found)
    if inode.kind != stat.S_IFDIR:
        raise SysError(ENOTDIR)
    directory.inode.rmdir(task, found.name)
    return _removed(directory, found, inode)


def _unlink(task: Task, dirfd: int, path: bytes) -> int:
    found = walk_parent(task, dirfd, path)
    if found.dentry is not None and found.parent is None:
        raise SysError(EISDIR)
    if found.slash and found.dentry is not None:
        raise SysError(EISDIR if found.dentry.inode.kind == stat.S_IFDIR else ENOTDIR)
    directory, inode = _removable(task, found)
    if inode.kind == stat.S_IFDIR:
        raise SysError(EISDIR)
    directory.inode.unlink(task, found.name)
    return _removed(directory, found, inode)


def _removed(directory: Dentry, found: Found, inode: Inode) -> int:
    directory.remove(found.name)
    if notify.watching:
        notify.gone(inode)
        notify.entry(directory.inode, notify.IN_DELETE, found.name, inode)
    return 0


@syscall("rmdir")
def rmdir(task: Task, path: int) -> int:
    """rmdir(2)."""
    return _rmdir(task, AT_FDCWD, task.mem.path(path))


@syscall("unlink")
def unlink(task: Task, path: int) -> int:
    """unlink(2)."""
    return _unlink(task, AT_FDCWD, task.mem.path(path))


@syscall("unlinkat")
def unlinkat(task: Task, dirfd: int, path: int, flags: int) -> int:
    """unlinkat(2)."""
    flags = u32(flags)
    if flags & ~AT_REMOVEDIR:
        raise SysError(EINVAL)
    remove = _rmdir if flags else _unlink
    return remove(task, dirfd, task.mem.path(path))


# Reading.


@syscall("getdents64")
def getdents64(task: Task, fd: int, address: int, size: int) -> int:
    """getdents64(2)."""
    file = task.files.get(fd)
    if file.flags & os.O_PATH:
        raise SysError(EBADF)
    before = file.offset
    data = file.getdents(task, min(u32(size), GETDENTS_MAX))
    try:
        task.mem.write(address, data)
    except SysError:
        file.offset = before
        raise
    if notify.watching:
        notify.on_file(file, notify.IN_ACCESS)
    return len(data)


@syscall("getdents")
def getdents(task: Task, fd: int, address: int, size: int) -> int:
    """getdents(2): the same entries with the kind at their end."""
    file = task.files.get(fd)
    if file.flags & os.O_PATH:
        raise SysError(EBADF)
    before = file.offset
    data = bytearray(file.getdents(task, min(u32(size), GETDENTS_MAX)))
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<H", data, at + 16)
        kind = data[at + 18]
        data[at + 18 : at + length - 1] = data[at + 19 : at + length]
        data[at + length - 1] = kind
        at += length
    try:
        task.mem.write(address, bytes(data))
    except SysError:
        file.offset = before
        raise
    return len(data)


# Standing in one.


def _enterable(task: Task, place: Place) -> Place:
    if place.inode.kind != stat.S_IFDIR:
        raise SysError(ENOTDIR)
    may(task, place.inode, MAY_EXEC)
    return place


@syscall("chdir")
def chdir(task: Task, path: int) -> int:
    """chdir(2)."""
    task.fs.cwd = _enterable(task, walk(task, AT_FDCWD, task.mem.path(path)))
    return 0


@syscall("fchdir")
def fchdir(task: Task, fd: int) -> int:
    """fchdir(2)."""
    task.fs.cwd = _enterable(task, directory_of(task, fd))
    return 0


@syscall("getcwd")
def getcwd(task: Task, address: int, size: int) -> int:
    """getcwd(2), as the kernel has it: the length with the zero byte."""
    cwd = task.fs.cwd
    if cwd.dentry.deleted:
        raise SysError(ENOENT)
    text = cwd.path(task.fs.root) + b"\0"
    if len(text) > size:
        raise SysError(ERANGE)
    task.mem.write(address, text)
    return len(text)


@syscall("chroot")
def chroot(task: Task, path: int) -> int:
    """chroot(2)."""
    place = _enterable(task, walk(task, AT_FDCWD, task.mem.path(path)))
    if not task.creds.capable(CAP_SYS_CHROOT):
        raise SysError(EPERM)
    task.fs.root = place
    return 0


@syscall("umask")
def umask(task: Task, mask: int) -> int:
    """umask(2)."""
    before = task.fs.umask
    task.fs.umask = mask & 0o777
    return before

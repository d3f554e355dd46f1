"""What files are: stat(2) and its family, access(2), statfs(2)."""

from __future__ import annotations

import os
import struct
from errno import EACCES, EBADF, EINVAL, ENOSYS, EOPNOTSUPP, EROFS
from typing import TYPE_CHECKING

from casemate.sentry.abi import AT_FDCWD
from casemate.sentry.errno import SysError
from casemate.sentry.syscalls.table import Support, syscall
from casemate.sentry.vfs import target
from casemate.sentry.vfs.mount import MS_NOATIME, MS_NODEV, MS_NODIRATIME, MS_NOEXEC, MS_NOSUID, MS_RELATIME
from casemate.sentry.vfs.path import MAY_EXEC, MAY_WRITE, permit, resolve, walk
from casemate.sentry.vfs.target import AT_EACCESS, AT_EMPTY_PATH, AT_NO_AUTOMOUNT, AT_SYMLINK_NOFOLLOW, Target

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.inode import Inode, Stat
    from casemate.sentry.vfs.mount import Mount

_STAT = struct.Struct("<QQQIIIIQqqqqqqqqq24x")
_STATX = struct.Struct("<IIQIIIHxxQQQQqIxxxxqIxxxxqIxxxxqIxxxxIIIIQII96x")
_STATFS = struct.Struct("<qqqqqqqiiqqq32x")
AT_STATX_SYNC_TYPE = 0x6000
STATX_BASIC_STATS, STATX_BTIME, STATX_MNT_ID = 0x7FF, 0x800, 0x1000
STATX_RESERVED = 0x8000_0000
STATX_ATTR_MOUNT_ROOT = 0x2000
_SECOND = 1_000_000_000

# statfs(2)
ST_RDONLY, ST_NOSUID, ST_NODEV, ST_NOEXEC, ST_VALID = 1, 2, 4, 8, 0x20
ST_NOATIME, ST_NODIRATIME, ST_RELATIME = 0x400, 0x800, 0x1000


def _put(task: Task, address: int, found: Stat) -> int:
    task.mm.write(
        address,
        _STAT.pack(
            found.dev, found.ino, found.nlink, found.mode, found.uid, found.gid, 0, found.rdev, found.size,
            found.blksize, found.blocks, *divmod(found.atime, _SECOND), *divmod(found.mtime, _SECOND),
            *divmod(found.ctime, _SECOND),
        ),
    )
    return 0


@syscall("stat")
def stat_(task: Task, path: int, address: int) -> int:
    """stat(2)."""
    return _put(task, address, walk(task, AT_FDCWD, task.mm.path(path)).dentry.inode.stat())


@syscall("lstat")
def lstat(task: Task, path: int, address: int) -> int:
    """lstat(2)."""
    return _put(task, address, target.of_path(task, path, False).inode.stat())


@syscall("fstat")
def fstat(task: Task, fd: int, address: int) -> int:
    """fstat(2)."""
    return _put(task, address, task.files.get(fd).stat())


@syscall("newfstatat")
def newfstatat(task: Task, dirfd: int, path: int, address: int, flags: int) -> int:
    """fstatat(2)."""
    if not flags & ~AT_SYMLINK_NOFOLLOW:
        # The usual case, without the object that stands for all others.
        dentry = resolve(task, dirfd, task.mm.path(path), not flags).dentry
        assert dentry is not None
        return _put(task, address, dentry.inode.stat())
    allowed = AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | AT_NO_AUTOMOUNT | AT_STATX_SYNC_TYPE
    found = target.at(task, dirfd, path, flags, allowed)
    return _put(task, address, found.inode.stat())


@syscall("statx")
def statx(task: Task, dirfd: int, path: int, flags: int, mask: int, address: int) -> int:
    """statx(2)."""
    if mask & STATX_RESERVED or flags & AT_STATX_SYNC_TYPE == AT_STATX_SYNC_TYPE:
        raise SysError(EINVAL)
    flags &= ~AT_STATX_SYNC_TYPE
    found = target.at(task, dirfd, path, flags, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | AT_NO_AUTOMOUNT)
    one = found.inode.stat()
    have = STATX_BASIC_STATS | (STATX_BTIME if one.btime else 0)
    attributes = 0
    number = 0
    if found.mount is not None:
        have |= STATX_MNT_ID
        number = found.mount.id
        if found.dentry is found.mount.root:
            attributes |= STATX_ATTR_MOUNT_ROOT
    times: list[int] = []
    for moment in (one.atime, one.btime, one.ctime, one.mtime):
        times += divmod(moment, _SECOND)
    task.mem.write(
        address,
        _STATX.pack(
            have, one.blksize, attributes, one.nlink, one.uid, one.gid, one.mode, one.ino, one.size, one.blocks,
            STATX_ATTR_MOUNT_ROOT, *times, os.major(one.rdev), os.minor(one.rdev), os.major(one.dev),
            os.minor(one.dev), number, 0, 0,
        ),
    )
    return 0


# Access.


def _access(task: Task, dirfd: int, path: int, mode: int, flags: int) -> int:
    mode &= 0xFFFF_FFFF
    if mode & ~7 or flags & 0xFFFF_FFFF & ~(AT_EACCESS | AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
        raise SysError(EINVAL)
    own = task.creds
    if not flags & AT_EACCESS and (own.uid != own.fsuid or own.gid != own.fsgid or own.uid):
        # What the real ids could do, with the capabilities that they would have.
        real = own.copy()
        real.fsuid, real.fsgid = own.uid, own.gid
        real.effective = 0 if own.uid else own.permitted
        task.creds = real
    try:
        found = target.at(task, dirfd, path, flags & ~AT_EACCESS, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)
        _check(task, found, mode)
    finally:
        task.creds = own
    return 0


def _check(task: Task, found: Target, mode: int) -> None:
    from stat import S_ISREG

    if mode & MAY_EXEC and found.mount is not None and found.mount.flags & MS_NOEXEC and S_ISREG(found.inode.kind):
        raise SysError(EACCES)
    if mode and not permit(task.creds, found.inode, mode):
        raise SysError(EACCES)
    if mode & MAY_WRITE and found.mount is not None and found.mount.read_only:
        from stat import S_ISDIR, S_ISLNK

        kind = found.inode.kind
        if S_ISREG(kind) or S_ISDIR(kind) or S_ISLNK(kind):
            raise SysError(EROFS)


@syscall("access")
def access(task: Task, path: int, mode: int) -> int:
    """access(2)."""
    return _access(task, AT_FDCWD, path, mode, 0)


@syscall("faccessat")
def faccessat(task: Task, dirfd: int, path: int, mode: int) -> int:
    """faccessat(2), as the kernel has it: without flags."""
    return _access(task, dirfd, path, mode, 0)


@syscall("faccessat2")
def faccessat2(task: Task, dirfd: int, path: int, mode: int, flags: int) -> int:
    """faccessat2(2)."""
    return _access(task, dirfd, path, mode, flags)


# File systems.


def _put_fs(task: Task, address: int, inode: Inode, mount: Mount | None) -> int:
    found = inode.fs.statfs(task)
    flags = ST_VALID | found.flags
    if mount is not None:
        if mount.read_only:
            flags |= ST_RDONLY
        for mine, theirs in (
            (MS_NOSUID, ST_NOSUID), (MS_NODEV, ST_NODEV), (MS_NOEXEC, ST_NOEXEC), (MS_NOATIME, ST_NOATIME),
            (MS_NODIRATIME, ST_NODIRATIME), (MS_RELATIME, ST_RELATIME),
        ):
            if mount.flags & mine:
                flags |= theirs
    device = inode.fs.device & 0x7FFF_FFFF
    task.mem.write(
        address,
        _STATFS.pack(
            found.type, found.bsize, found.blocks, found.bfree, found.bavail, found.files, found.ffree, device, 0,
            found.namelen, found.frsize, flags,
        ),
    )
    return 0


@syscall("statfs")
def statfs(task: Task, path: int, address: int) -> int:
    """statfs(2)."""
    found = target.of_path(task, path)
    return _put_fs(task, address, found.inode, found.mount)


@syscall("fstatfs")
def fstatfs(task: Task, fd: int, address: int) -> int:
    """fstatfs(2)."""
    file = task.files.get(fd)
    if file.inode is None:
        raise SysError(ENOSYS)
    return _put_fs(task, address, file.inode, file.place.mount if file.place is not None else None)


@syscall("ustat", Support.NONE, "ENOSYS: obsolete, ustat(2)")
def ustat(task: Task, device: int, address: int) -> int:
    """ustat(2)."""
    raise SysError(ENOSYS)


@syscall("name_to_handle_at", Support.NONE, "EOPNOTSUPP: no file system has handles")
def name_to_handle_at(task: Task, dirfd: int, path: int, handle: int, mount: int, flags: int) -> int:
    """name_to_handle_at(2)."""
    raise SysError(EOPNOTSUPP)


@syscall("open_by_handle_at", Support.NONE, "EBADF: there are no handles")
def open_by_handle_at(task: Task, mount: int, handle: int, flags: int) -> int:
    """open_by_handle_at(2)."""
    raise SysError(EBADF)

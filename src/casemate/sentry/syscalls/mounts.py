"""Mounting: mount(2), umount2(2), pivot_root(2). One sandbox has one mount namespace."""

from __future__ import annotations

import stat
from errno import EBUSY, EINVAL, ENAMETOOLONG, ENODEV, ENOSYS, ENOTDIR, EPERM
from typing import TYPE_CHECKING

from casemate.sentry.abi import AT_FDCWD, PAGE_SIZE
from casemate.sentry.creds import CAP_SYS_ADMIN
from casemate.sentry.errno import SysError
from casemate.sentry.syscalls.table import Support, syscall
from casemate.sentry.vfs import notify
from casemate.sentry.vfs.mount import (
    MS_BIND,
    MS_MOVE,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    MS_SHARED,
    MS_SLAVE,
    MS_UNBINDABLE,
    PER_MOUNT,
    Mount,
)
from casemate.sentry.vfs.path import walk
from casemate.sentry.vfs.place import forget

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.inode import FileSystem
    from casemate.sentry.vfs.place import Place

PROPAGATION = MS_SHARED | MS_PRIVATE | MS_SLAVE | MS_UNBINDABLE
MNT_FORCE, MNT_DETACH, MNT_EXPIRE, UMOUNT_NOFOLLOW = 1, 2, 4, 8
MS_NOUSER = 1 << 31
"""The kernel's own flag."""
MAX_MOUNTS = 10_000
"""Fewer than ``/proc/sys/fs/mount-max``: each costs the sentry memory."""


def _text(task: Task, address: int) -> bytes:
    """A text that may be left out. Raises SysError(EINVAL) for one that is too long, EFAULT."""
    try:
        return task.mem.cstring(address, PAGE_SIZE) if address else b""
    except SysError as error:
        raise SysError(EINVAL if error.errno == ENAMETOOLONG else error.errno) from None


@syscall("mount", Support.PARTIAL, "tmpfs, proc, sysfs, devpts, bind, move and remount; propagation is accepted only")
def mount(task: Task, source: int, goal: int, kind: int, flags: int, data: int) -> int:
    """mount(2)."""
    flags &= 0xFFFF_FFFF
    if flags & 0xFFFF_0000 == 0xC0ED_0000:
        flags &= 0xFFFF  # what programs put there long ago
    name, from_text = _text(task, kind), _text(task, source)
    place = walk(task, AT_FDCWD, task.mem.path(goal))
    if flags & MS_NOUSER:
        raise SysError(EINVAL)
    if not task.creds.capable(CAP_SYS_ADMIN):
        raise SysError(EPERM)
    if flags & MS_REMOUNT:
        return _remount(place, flags)
    if flags & MS_BIND:
        return _bind(task, from_text, place, flags)
    if flags & PROPAGATION:
        if place.dentry is not place.mount.root:
            raise SysError(EINVAL)
        return 0
    if flags & MS_MOVE:
        moved = walk(task, AT_FDCWD, from_text)
        if moved.dentry is not moved.mount.root:
            raise SysError(EINVAL)
        _same_kind(moved, place)
        task.kernel.mounts.move(moved.mount, place)
        return 0
    if not kind:
        raise SysError(EINVAL)
    _room(task)
    fs = _make(task, name, _text(task, data))
    if place.inode.kind != stat.S_IFDIR:
        fs.close()
        raise SysError(ENOTDIR)
    task.kernel.mounts.mount(fs, place, from_text or b"none", flags & PER_MOUNT)
    return 0


def _room(task: Task) -> None:
    from errno import ENOSPC

    if len(task.kernel.mounts.all()) >= MAX_MOUNTS:
        raise SysError(ENOSPC)


def _same_kind(one: Place, other: Place) -> None:
    """A directory is seen at a directory only, a file at a file. Raises SysError(ENOTDIR)."""
    if (one.inode.kind == stat.S_IFDIR) != (other.inode.kind == stat.S_IFDIR):
        raise SysError(ENOTDIR)


def _remount(place: Place, flags: int) -> int:
    if place.dentry is not place.mount.root:
        raise SysError(EINVAL)
    if not flags & MS_RDONLY and place.mount.fs.read_only:
        raise SysError(EPERM)
    place.mount.flags = place.mount.flags & ~PER_MOUNT | flags & PER_MOUNT
    return 0


def _bind(task: Task, source: bytes, place: Place, flags: int) -> int:
    if not source:
        raise SysError(EINVAL)
    origin = walk(task, AT_FDCWD, source)
    _same_kind(origin, place)
    _room(task)
    task.kernel.mounts.bind(origin, place, bool(flags & MS_REC))
    return 0


def _make(task: Task, kind: bytes, data: bytes) -> FileSystem:
    """A file system of a type. Raises SysError: ENODEV, EINVAL."""
    from casemate.sentry.world import make

    options = [option for option in data.decode("utf-8", "surrogateescape").split(",") if option]
    try:
        return make(task.kernel, kind.decode("utf-8", "surrogateescape"), options, task.group.ns.ipc)
    except ValueError as error:
        raise SysError(ENODEV if "file system" in str(error) else EINVAL) from None


@syscall("umount2")
def umount2(task: Task, path: int, flags: int) -> int:
    """umount2(2)."""
    flags &= 0xFFFF_FFFF
    if flags & ~(MNT_FORCE | MNT_DETACH | MNT_EXPIRE | UMOUNT_NOFOLLOW):
        raise SysError(EINVAL)
    place = walk(task, AT_FDCWD, task.mem.path(path), not flags & UMOUNT_NOFOLLOW)
    if not task.creds.capable(CAP_SYS_ADMIN):
        raise SysError(EPERM)
    gone = place.mount
    if place.dentry is not gone.root or gone.parent is None:
        raise SysError(EINVAL)
    if gone is task.fs.root.mount and not flags & MNT_DETACH:
        raise SysError(EBUSY)
    if not flags & MNT_DETACH and (gone.children or _used(task, gone)):
        raise SysError(EBUSY)
    mounts = task.kernel.mounts
    mounts.detach(gone)
    if not mounts.used(gone.fs):
        forget(gone.fs)
        notify.unmounted(task.kernel, gone.fs)
        if not flags & MNT_DETACH:
            gone.fs.close()
    return 0


def _used(task: Task, gone: Mount) -> bool:
    """Whether anybody stands in a mount or has a file of it open."""
    for one in task.kernel.tasks.values():
        if one.thread is None:
            continue
        if one.fs.root.mount is gone or one.fs.cwd.mount is gone:
            return True
        if any(file.place is not None and file.place.mount is gone for _, file in one.files.items()):
            return True
        executable = one.group.executable
        if executable is not None and executable.place is not None and executable.place.mount is gone:
            return True
    return False


@syscall("pivot_root")
def pivot_root(task: Task, new: int, old: int) -> int:
    """pivot_root(2): all who stand in the old root stand in the new one then."""
    if not task.creds.capable(CAP_SYS_ADMIN):
        raise SysError(EPERM)
    new_place = walk(task, AT_FDCWD, task.mem.path(new))
    old_place = walk(task, AT_FDCWD, task.mem.path(old))
    for place in (new_place, old_place):
        if place.inode.kind != stat.S_IFDIR:
            raise SysError(ENOTDIR)
    kernel = task.kernel
    before = task.fs.root
    if new_place.mount is before.mount or old_place.mount is before.mount:
        raise SysError(EBUSY)
    if before.dentry is not before.mount.root or before.mount.detached:
        raise SysError(EINVAL)
    kernel.mounts.pivot(before.mount, new_place, old_place)
    for one in kernel.tasks.values():
        if one.fs.root == before:
            one.fs.root = new_place
        if one.fs.cwd == before:
            one.fs.cwd = new_place
    return 0


def _missing(task: Task) -> int:
    raise SysError(ENOSYS)


@syscall("open_tree", Support.NONE, "ENOSYS: programs use mount(2)")
def open_tree(task: Task, dirfd: int, path: int, flags: int) -> int:
    """open_tree(2)."""
    return _missing(task)


@syscall("move_mount", Support.NONE, "ENOSYS: programs use mount(2)")
def move_mount(task: Task, from_fd: int, from_path: int, to_fd: int, to_path: int, flags: int) -> int:
    """move_mount(2)."""
    return _missing(task)


@syscall("fsopen", Support.NONE, "ENOSYS: programs use mount(2)")
def fsopen(task: Task, name: int, flags: int) -> int:
    """fsopen(2)."""
    return _missing(task)


@syscall("mount_setattr", Support.NONE, "ENOSYS: programs use mount(2)")
def mount_setattr(task: Task, dirfd: int, path: int, flags: int, attributes: int, size: int) -> int:
    """mount_setattr(2)."""
    return _missing(task)

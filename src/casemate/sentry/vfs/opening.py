"""Opening files, open(2): shared by the calls that do, and by what opens files for others."""

from __future__ import annotations

import os
import stat
from errno import EACCES, EEXIST, EINVAL, EISDIR, ELOOP, ENOTDIR, ENXIO, EPERM, EROFS, ETXTBSY
from typing import TYPE_CHECKING

from casemate.sentry.creds import CAP_FSETID
from casemate.sentry.errno import SysError
from casemate.sentry.vfs import notify
from casemate.sentry.vfs.file import File, PathFile
from casemate.sentry.vfs.inode import Attributes, Inode
from casemate.sentry.vfs.mount import MS_NODEV
from casemate.sentry.vfs.path import MAY_READ, MAY_WRITE, Found, owns, permit, resolve, walk_parent, writable
from casemate.sentry.vfs.place import Dentry, Place

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

O_TMPFILE = 0o20000000
"""The bit that is not ``O_DIRECTORY``, without which it is EINVAL."""
O_PATH_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
KEPT = ~(os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_TRUNC | os.O_CLOEXEC)
"""Flags that an open file keeps, F_GETFL of fcntl(2)."""
VALID = 0o37777703
"""All flags of open(2); it ignores others, openat2(2) does not."""
O_LARGEFILE = 0o100000
"""What the kernel adds to what 64-bit programs open, and F_GETFL shows."""
_WANTED = (MAY_READ, MAY_WRITE, MAY_READ | MAY_WRITE, MAY_READ | MAY_WRITE)


def new_owner(task: Task, directory: Inode, mode: int) -> tuple[int, int, int]:
    """Mode, uid and gid of a new file: the umask, and the directory's set-group-ID bit, inode(7).

    Arguments:
        mode: the kind (0 for a regular file) and permission bits that were asked for.
    """
    creds = task.creds
    mode &= ~task.fs.umask
    gid = creds.fsgid
    above, _, above_gid = directory.access()
    if above & stat.S_ISGID:
        gid = above_gid
        if stat.S_ISDIR(mode):
            mode |= stat.S_ISGID
        elif mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID | stat.S_IXGRP and not (
            creds.in_group(gid) or creds.capable(CAP_FSETID)
        ):
            mode &= ~stat.S_ISGID
    return mode, creds.fsuid, gid


def open_at(task: Task, dirfd: int, path: bytes, flags: int, mode: int = 0, restrict: int = 0) -> File:
    """Open a file, open(2).

    Arguments:
        flags: ``O_*``, known to be valid.
        mode: permission bits of a file that is made, before the umask.
        restrict: ``RESOLVE_*`` of openat2(2).

    Raises SysError as open(2) says; Block where opening a FIFO or device waits.
    """
    if task.blocked:
        # Opening a FIFO has waited: it goes on with what the path led to then.
        waited: Place | None = task.blocked.get("opening")
        if waited is not None:
            return open_found(task, waited, flags)
    if flags & os.O_PATH:
        flags &= O_PATH_FLAGS
    follow = not flags & os.O_NOFOLLOW
    if flags & O_TMPFILE:
        return _tmpfile(task, dirfd, path, flags, mode, restrict)
    create = flags & os.O_CREAT
    if create and flags & os.O_EXCL:
        follow = False
    if create and path[-1:] == b"/" and walk_parent(task, dirfd, path, restrict).parent is not None:
        raise SysError(EISDIR)
    found = resolve(task, dirfd, path, follow, bool(create), restrict)
    made = False
    if found.dentry is None:
        place = _create(task, found, mode)
        made = True
    else:
        place = Place(found.mount, found.dentry)
        if create:
            if flags & os.O_EXCL:
                raise SysError(EEXIST)
            if place.inode.kind == stat.S_IFDIR:
                raise SysError(EISDIR)
    return open_found(task, place, flags, made)


def _create(task: Task, found: Found, mode: int) -> Place:
    """Make the regular file that was looked for in vain."""
    directory = found.parent
    assert directory is not None
    if found.slash:
        raise SysError(EISDIR)  # by a link whose text ends so
    writable(task, found.mount, directory.inode)
    bits, uid, gid = new_owner(task, directory.inode, mode & 0o7777)
    inode = directory.inode.create(task, found.name, bits, uid, gid)
    dentry = directory.child(found.name, inode)
    if notify.watching:
        notify.entry(directory.inode, notify.IN_CREATE, found.name, inode)
    return Place(found.mount, dentry)


def _tmpfile(task: Task, dirfd: int, path: bytes, flags: int, mode: int, restrict: int) -> File:
    """O_TMPFILE, open(2)."""
    if not flags & os.O_DIRECTORY or flags & os.O_ACCMODE == os.O_RDONLY or flags & os.O_CREAT:
        raise SysError(EINVAL)
    place = resolve(task, dirfd, path, True, False, restrict).place
    if place.inode.kind != stat.S_IFDIR:
        raise SysError(ENOTDIR)
    writable(task, place.mount, place.inode)
    bits, uid, gid = new_owner(task, place.inode, mode & 0o7777)
    inode = place.inode.tmpfile(task, bits, uid, gid)
    dentry = Dentry(inode, place.dentry, b"#%d" % inode.stat().ino)
    dentry.deleted = True
    if not flags & os.O_EXCL:
        # Only such a one can be given a name later, linkat(2).
        inode.extra["linkable"] = True
    return _opened(task, Place(place.mount, dentry), inode.open(task, flags & KEPT | O_LARGEFILE), flags)


def open_found(task: Task, place: Place, flags: int, made: bool = False) -> File:
    """Open what a path led to.

    Arguments:
        made: it was made by this call, so that its own permissions do not count.
    """
    inode = place.inode
    kind = inode.kind
    if flags & os.O_DIRECTORY and kind != stat.S_IFDIR:
        raise SysError(ENOTDIR)
    if flags & os.O_PATH:
        file: File = PathFile(flags & KEPT, inode)
        file.place = place
        return file
    if kind == stat.S_IFLNK:
        raise SysError(ELOOP)
    wanted = _WANTED[flags & os.O_ACCMODE]
    if flags & os.O_TRUNC:
        wanted |= MAY_WRITE
    if wanted & MAY_WRITE and not made:
        if kind == stat.S_IFDIR:
            raise SysError(EISDIR)
        if place.mount.read_only and kind in (stat.S_IFREG, 0):
            raise SysError(EROFS)
    if not made and not permit(task.creds, inode, wanted):
        raise SysError(EACCES)
    if flags & os.O_NOATIME and not owns(task, inode):
        raise SysError(EPERM)
    if wanted & MAY_WRITE and not made and kind == stat.S_IFREG:
        not_running(task, inode)
    kept = flags & KEPT | O_LARGEFILE
    if kind == stat.S_IFREG or kind == stat.S_IFDIR:
        if flags & os.O_TRUNC and not made and kind == stat.S_IFREG:
            inode.setattr(task, Attributes(size=0))
            if notify.watching:
                notify.happened(place.dentry, notify.IN_MODIFY)
        file = inode.open(task, kept)
    elif inode.opens_itself:
        file = inode.open(task, kept)
    elif kind == stat.S_IFIFO:
        from casemate.sentry.ipc.fifo import open_fifo

        task.blocked["opening"] = place
        file = open_fifo(task, inode, kept)
    elif kind == stat.S_IFCHR or kind == stat.S_IFBLK:
        from casemate.sentry.vfs.devices import open_device

        if place.mount.flags & MS_NODEV:
            raise SysError(EACCES)
        # Whether a terminal becomes the controlling one is decided at open.
        file = open_device(task, inode, kept | flags & os.O_NOCTTY)
        file.flags &= ~os.O_NOCTTY
    elif kind == stat.S_IFSOCK:
        raise SysError(ENXIO)
    else:
        file = inode.open(task, kept)
    return _opened(task, place, file, flags)


def not_running(task: Task, inode: Inode) -> None:
    """Raise SysError(ETXTBSY) for a file whose program a process of the sandbox runs: it is not to be written to."""
    if not inode.access()[0] & 0o111:
        return
    for group in task.kernel.groups.values():
        if group.executable is not None and group.executable.inode is inode:
            raise SysError(ETXTBSY)


def _opened(task: Task, place: Place, file: File, flags: int) -> File:
    if file.place is None:
        file.place = place
    if notify.watching:
        notify.on_file(file, notify.IN_OPEN)
    return file

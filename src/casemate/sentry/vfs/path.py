"""Walking paths, path_resolution(7), and who may do what to a file."""

from __future__ import annotations

import stat
from errno import EACCES, EAGAIN, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EPERM, EROFS, EXDEV
from typing import TYPE_CHECKING

from casemate.sentry.abi import AT_FDCWD, s32
from casemate.sentry.creds import CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
from casemate.sentry.errno import SysError
from casemate.sentry.vfs.mount import MS_NOEXEC
from casemate.sentry.vfs.place import Dentry, Place

if TYPE_CHECKING:
    from casemate.sentry.creds import Credentials
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.file import File
    from casemate.sentry.vfs.inode import Inode
    from casemate.sentry.vfs.mount import Mount

__all__ = ["Dentry", "Found", "Place", "may", "open_path", "permit", "resolve", "walk", "walk_parent"]

MAY_EXEC, MAY_WRITE, MAY_READ = 1, 2, 4
MAX_LINKS = 40
NAME_MAX = 255
_LINK = stat.S_IFLNK
_SEARCH = 1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH

# openat2(2)
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS = 0x01, 0x02, 0x04
RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_CACHED = 0x08, 0x10, 0x20


class Found:
    """Where a path leads.

    Attributes:
        mount, dentry: what is there; ``dentry`` is None when the last component does not exist.
        parent_mount, parent: the directory that the last component is in; None where the path has no last name (``/``,
            ``.``, ``..``, or a "magic" link).
        name: the last component; ``.``, ``..`` or empty where it is no name.
        slash: a slash was behind it.
    """

    __slots__ = ("dentry", "mount", "name", "parent", "parent_mount", "slash")

    def __init__(
        self, mount: Mount, dentry: Dentry | None, parent_mount: Mount, parent: Dentry | None, name: bytes, slash: bool
    ) -> None:
        self.mount = mount
        self.dentry = dentry
        self.parent_mount = parent_mount
        self.parent = parent
        self.name = name
        self.slash = slash

    @property
    def place(self) -> Place:
        """What is there, which the caller knows to exist."""
        assert self.dentry is not None
        return Place(self.mount, self.dentry)


# Permissions.


def permit(creds: Credentials, inode: Inode, mask: int) -> bool:
    """Whether these credentials may read, write and execute (search) as ``mask`` of MAY_* asks, path_resolution(7)."""
    mode, uid, gid = inode.access()
    if uid == creds.fsuid:
        bits = mode >> 6
    elif gid == creds.fsgid or gid in creds.groups:
        bits = mode >> 3
    else:
        bits = mode
    if bits & mask == mask:
        return True
    if stat.S_ISDIR(mode):
        if creds.capable(CAP_DAC_OVERRIDE):
            return True
        return not mask & MAY_WRITE and creds.capable(CAP_DAC_READ_SEARCH)
    if (not mask & MAY_EXEC or mode & 0o111) and creds.capable(CAP_DAC_OVERRIDE):
        return True
    return mask == MAY_READ and creds.capable(CAP_DAC_READ_SEARCH)


def may(task: Task, inode: Inode, mask: int) -> None:
    """Raise SysError(EACCES) unless the task may do this."""
    if not permit(task.creds, inode, mask):
        raise SysError(EACCES)


def writable(task: Task, mount: Mount, inode: Inode) -> None:
    """Raise SysError unless entries of a directory may be added and removed: EROFS, EACCES."""
    if mount.read_only:
        raise SysError(EROFS)
    if not permit(task.creds, inode, MAY_WRITE | MAY_EXEC):
        raise SysError(EACCES)


def owns(task: Task, inode: Inode) -> bool:
    """Whether the task may do what only the owner may."""
    return inode.access()[1] == task.creds.fsuid or task.creds.capable(CAP_FOWNER)


def deletable(task: Task, mount: Mount, directory: Inode, inode: Inode) -> None:
    """Raise SysError unless the entry may be taken out of its directory: EROFS, EACCES, EPERM (the sticky bit)."""
    writable(task, mount, directory)
    mode, uid, _ = directory.access()
    if mode & stat.S_ISVTX and uid != task.creds.fsuid and not owns(task, inode):
        raise SysError(EPERM)


# Walking.


def start(task: Task, dirfd: int, path: bytes) -> Place:
    """Where a walk begins. Raises SysError: EBADF, ENOTDIR."""
    if path[:1] == b"/":
        return task.fs.root
    dirfd = s32(dirfd)
    if dirfd == AT_FDCWD:
        return task.fs.cwd
    return directory_of(task, dirfd)


def directory_of(task: Task, fd: int) -> Place:
    """The directory that is open as ``fd``. Raises SysError: EBADF, ENOTDIR."""
    place: Place | None = task.files.get(fd).place
    if place is None or place.inode.kind != stat.S_IFDIR:
        raise SysError(ENOTDIR)
    return place


def resolve(
    task: Task, dirfd: int, path: bytes, follow: bool = True, missing: bool = False, restrict: int = 0
) -> Found:
    """Walk a path.

    Arguments:
        dirfd: where relative paths begin: AT_FDCWD or a descriptor, as an int of any width.
        path: at most PATH_MAX bytes; an empty one is ENOENT.
        follow: a link at the end is followed (one with a slash behind it always is).
        missing: the last component need not exist.
        restrict: RESOLVE_* of openat2(2).

    Raises SysError: ENOENT, ENOTDIR, EACCES, ELOOP, ENAMETOOLONG, EBADF; EXDEV and EAGAIN with ``restrict``.
    """
    if not path:
        raise SysError(ENOENT)
    if restrict:
        at, root = _restricted_start(task, dirfd, path, restrict)
    else:
        at, root = start(task, dirfd, path), task.fs.root
    mount, dentry = at.mount, at.dentry
    creds = task.creds
    free = creds.effective & _SEARCH != 0
    links = 0
    slash = path[-1] == 47
    rest = path.split(b"/")
    rest.reverse()
    while slash and rest and not rest[0]:
        del rest[0]
    parent_mount, parent, name = mount, None, b""
    while rest:
        name = rest.pop()
        if not name:
            continue
        inode = dentry.inode
        if name[0] == 46 and (name == b"." or name == b".."):
            if inode.kind != stat.S_IFDIR:
                raise SysError(ENOTDIR)
            if not free and not permit(creds, inode, MAY_EXEC):
                raise SysError(EACCES)
            parent = None
            if name == b"..":
                if restrict & RESOLVE_BENEATH and dentry is at.dentry and mount is at.mount:
                    raise SysError(EXDEV)
                up = Place(mount, dentry).up(root)
                if restrict & RESOLVE_NO_XDEV and up.mount is not mount:
                    raise SysError(EXDEV)
                mount, dentry = up.mount, up.dentry
                if mount.children:
                    top = task.kernel.mounts.top(up)
                    mount, dentry = top.mount, top.dentry
            continue
        if not free and inode.kind == stat.S_IFDIR and not permit(creds, inode, MAY_EXEC):
            raise SysError(EACCES)
        parent_mount, parent = mount, dentry
        # As Dentry.lookup() begins: what is known of a file system whose names only we change.
        known = dentry.children.get(name) if inode.fs.stable and dentry.children is not None else None
        found = None if known is None else known()
        if found is None:
            if len(name) > NAME_MAX:
                raise SysError(ENAMETOOLONG)
            try:
                found = dentry.lookup(task, name)
            except SysError as error:
                if missing and not rest and error.errno == ENOENT:
                    return Found(mount, None, mount, dentry, name, slash)
                raise
        dentry = found
        inode = dentry.inode
        if mount.children and dentry in mount.children:
            if restrict & RESOLVE_NO_XDEV:
                raise SysError(EXDEV)
            while (over := mount.children.get(dentry)) is not None:
                mount, dentry = over, over.root
            inode = dentry.inode
        if inode.kind != _LINK or not (rest or follow or slash):
            continue
        links += 1
        if links > MAX_LINKS or restrict & RESOLVE_NO_SYMLINKS:
            raise SysError(ELOOP)
        target = inode.follow(task)
        if target is not None:
            if restrict & RESOLVE_NO_MAGICLINKS:
                raise SysError(ELOOP)
            if restrict & (RESOLVE_BENEATH | RESOLVE_IN_ROOT | RESOLVE_NO_XDEV):
                raise SysError(EXDEV)
            assert isinstance(target, Place)
            mount, dentry = target.mount, target.dentry
            parent = None
            continue
        text = inode.readlink(task)
        if not text:
            raise SysError(ENOENT)
        if text[0] == 47:
            if restrict & RESOLVE_BENEATH:
                raise SysError(EXDEV)
            if restrict & RESOLVE_NO_XDEV and root.mount is not mount:
                raise SysError(EXDEV)
            mount, dentry = root.mount, root.dentry
        else:
            mount, dentry = parent_mount, parent
        parent = None
        name = b""
        more = text.split(b"/")
        more.reverse()
        if not rest:
            slash = slash or text[-1] == 47
            while more and not more[0]:
                del more[0]
        rest += more
    if slash and dentry.inode.kind != stat.S_IFDIR:
        raise SysError(ENOTDIR)
    return Found(mount, dentry, parent_mount, parent, name, slash)


def _restricted_start(task: Task, dirfd: int, path: bytes, restrict: int) -> tuple[Place, Place]:
    """Where a walk of openat2(2) begins, and what is ``/`` for it."""
    if restrict & RESOLVE_CACHED:
        raise SysError(EAGAIN)
    absolute = path[:1] == b"/"
    if restrict & RESOLVE_IN_ROOT:
        at = start(task, dirfd, b"")
        return at, at
    if restrict & RESOLVE_BENEATH and absolute:
        raise SysError(EXDEV)
    return start(task, dirfd, path), task.fs.root


def walk(task: Task, dirfd: int, path: bytes, follow: bool = True) -> Place:
    """What a path leads to; see :func:`resolve`."""
    found = resolve(task, dirfd, path, follow)
    assert found.dentry is not None
    return Place(found.mount, found.dentry)


def walk_parent(task: Task, dirfd: int, path: bytes, restrict: int = 0) -> Found:
    """What a path names, for calls that add or remove that name: the last component is not followed and need not
    exist."""
    if not path:
        raise SysError(ENOENT)
    if path[-1] == 47 and path.strip(b"/"):
        # A slash behind the name of a link does not make such calls follow it.
        found = resolve(task, dirfd, path.rstrip(b"/"), False, True, restrict)
        found.slash = True
        return found
    return resolve(task, dirfd, path, False, True, restrict)


def open_path(task: Task, path: bytes, flags: int = 0, dirfd: int = AT_FDCWD, follow: bool = True) -> File:
    """Open a program's file for execve(2), execveat(2): for reading, where it may be executed.

    Raises SysError: EACCES also for what is no regular file, is on a mount without execution, or has no execute bit.
    """
    found = resolve(task, dirfd, path, follow)
    assert found.dentry is not None
    return open_place(task, Place(found.mount, found.dentry), flags)


def open_place(task: Task, place: Place, flags: int = 0) -> File:
    """The same for a place that was walked to already (a descriptor of execveat(2) with AT_EMPTY_PATH)."""
    inode = place.inode
    if inode.kind == stat.S_IFLNK:
        raise SysError(ELOOP)
    if inode.kind != stat.S_IFREG or place.mount.flags & MS_NOEXEC:
        raise SysError(EACCES)
    may(task, inode, MAY_EXEC)
    file = inode.open(task, flags)
    file.place = place
    return file


def check_name(name: bytes) -> None:
    """Raise SysError for what is no name to create: ENAMETOOLONG, EINVAL."""
    if len(name) > NAME_MAX:
        raise SysError(ENAMETOOLONG)
    if not name or b"/" in name:
        raise SysError(EINVAL)

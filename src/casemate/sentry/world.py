"""The file systems of containers: a mount tree from what an OCI specification asks for.

One sandbox has one mount tree, whose root is an empty file system. The containers' roots are mounted below it, and each
container's processes have theirs as their root directory.
"""

from __future__ import annotations

import os
import stat
from errno import EEXIST, ENOENT, ENOTDIR
from typing import TYPE_CHECKING, Any

from casemate.sentry.abi import AT_FDCWD
from casemate.sentry.creds import Credentials
from casemate.sentry.errno import SysError
from casemate.sentry.limits import Limits
from casemate.sentry.vfs import devices
from casemate.sentry.vfs.context import FsContext
from casemate.sentry.vfs.fdtable import FdTable
from casemate.sentry.vfs.inode import FileSystem
from casemate.sentry.vfs.mount import (
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_RELATIME,
    Mounts,
)
from casemate.sentry.vfs.path import resolve
from casemate.sentry.vfs.place import Place
from casemate.sentry.vfs.procfs import ProcFs
from casemate.sentry.vfs.tmpfs import TmpFs

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.namespaces import IpcNamespace

FLAGS = {
    "ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC, "noatime": MS_NOATIME,
    "nodiratime": MS_NODIRATIME, "relatime": MS_RELATIME,
}  # fmt: skip
CLEARING = {"rw": MS_RDONLY, "suid": MS_NOSUID, "dev": MS_NODEV, "exec": MS_NOEXEC, "atime": MS_NOATIME}
MAX_SIZE = 1 << 46


class Nobody:
    """Who works in the file systems when no task does: the kernel itself, as root.

    Arguments:
        root: what absolute paths begin at.
    """

    def __init__(self, kernel: Kernel, root: Place) -> None:
        self.kernel = kernel
        self.creds = Credentials()
        self.fs = FsContext(root, root, 0)
        self.files = FdTable(Limits())
        self.tid = self.pid = 0
        self.blocked: dict[str, Any] = {}
        self.timed_out = False


def prepare(kernel: Kernel) -> None:
    """Give a kernel its mount tree, which is empty."""
    kernel.mounts = Mounts(TmpFs(os.makedev(0, 1), mode=0o755), b"rootfs")


def mount_root(kernel: Kernel, name: bytes, fs: FileSystem, read_only: bool = False) -> Place:
    """Mount a container's root filesystem; gives the place of its topmost directory."""
    mounts: Mounts = kernel.mounts
    top = mounts.root.place
    nobody: Any = Nobody(kernel, top)
    top.dentry.inode.mkdir(nobody, name, 0o755, 0, 0)
    point = resolve(nobody, AT_FDCWD, b"/" + name)
    assert point.dentry is not None
    mount = mounts.mount(fs, Place(point.mount, point.dentry), b"overlay", MS_RDONLY if read_only else 0)
    return mount.place


def unmount_root(kernel: Kernel, root: Place) -> None:
    """Take down what :func:`mount_root` has mounted, and all on it."""
    mounts: Mounts = kernel.mounts
    name = root.mount.point
    for one in list(root.mount.below()):
        one.fs.close()
    mounts.detach(root.mount)
    if name is not None:
        nobody: Any = Nobody(kernel, mounts.root.place)
        mounts.root.place.dentry.inode.rmdir(nobody, name.name)


def mount_all(
    kernel: Kernel, root: Place, wanted: list[dict[str, Any]], bind: Any, ipc: IpcNamespace, memory: Any
) -> None:
    """Mount what a specification's ``mounts`` asks for.

    Arguments:
        root: the container's root.
        wanted: the list, checked to be one of objects.
        bind: gives for a bind mount's source its file system.
        ipc: the container's, for message queues.
        memory: gives the memory file system of a name, which containers share; from its size and mode.

    Raises:
        SysError: a mount point cannot be made.
        ValueError: an option cannot be understood.
    """
    for entry in wanted:
        destination = os.fsencode(entry["destination"])
        options = [str(option) for option in entry.get("options") or ()]
        kind = str(entry.get("type") or "bind")
        if "bind" in options or "rbind" in options or kind in ("bind", "rbind"):
            fs: FileSystem = bind(entry)
            directory = fs.root.kind == stat.S_IFDIR
            source = b"bind"
        elif kind == "shared-memory":
            fs = memory(str(entry.get("source")), lambda options=options: make(kernel, "tmpfs", options, ipc))
            directory, source = True, b"shm"
        else:
            fs = make(kernel, kind, options, ipc)
            directory = True
            source = os.fsencode(str(entry.get("source") or kind))
        flags = 0
        for option in options:
            flags |= FLAGS.get(option, 0)
            flags &= ~CLEARING.get(option, 0)
        kernel.mounts.mount(fs, mount_point(kernel, root, destination, directory), source, flags)


def make(kernel: Kernel, kind: str, options: list[str], ipc: IpcNamespace) -> FileSystem:
    """A file system of a type that a specification names, for who has this IPC namespace. Raises ValueError for one
    that there is not."""
    device = kernel.mounts.device()
    if kind == "proc":
        return ProcFs(device, kernel)
    if kind == "sysfs":
        from casemate.sentry.vfs.sysfs import SysFs

        return SysFs(device, kernel)
    if kind == "devpts":
        from casemate.sentry.vfs.devpts import DevPts

        return DevPts(device, kernel)
    if kind == "mqueue":
        from casemate.sentry.ipc.mqueue import queues

        return queues(ipc)
    if kind in ("cgroup", "cgroup2"):
        from casemate.sentry.vfs.cgroupfs import CgroupFs

        return CgroupFs(device, kernel)
    if kind in ("tmpfs", "ramfs"):
        size, mode, uid, gid = None, 0o1777, 0, 0
        for option in options:
            key, _, value = option.partition("=")
            if key == "size" and value:
                size = parse_size(value)
            elif key == "mode" and value:
                mode = int(value, 8) & 0o7777
            elif key == "uid" and value.isdigit():
                uid = int(value)
            elif key == "gid" and value.isdigit():
                gid = int(value)
        fs = TmpFs(device, size=size, mode=mode, uid=uid, gid=gid)
        if "mode=755" in options and "strictatime" in options and kind == "tmpfs":
            # As runtimes ask for /dev; what belongs there is filled in.
            devices.populate(kernel, fs.root)
        return fs
    raise ValueError(f"there is no file system of the type {kind!r}")


def parse_size(text: str) -> int:
    """``64m``, ``1g``, ``65536k``, tmpfs(5). Raises ValueError."""
    scale = {"k": 10, "m": 20, "g": 30}.get(text[-1:].lower())
    number = int(text[:-1] if scale else text)
    if not 0 <= number << (scale or 0) <= MAX_SIZE:
        raise ValueError(f"the size {text} is out of bounds")
    return number << (scale or 0)


def mount_point(kernel: Kernel, root: Place, path: bytes, directory: bool) -> Place:
    """The place to mount on, made where it is missing; never outside the root, whatever links there are.

    Raises SysError.
    """
    nobody: Any = Nobody(kernel, root)
    at = root
    parts = [part for part in path.split(b"/") if part and part != b"."]
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        step: Any = Nobody(kernel, root)
        step.fs.cwd = at
        try:
            found = resolve(step, AT_FDCWD, part, True, True)
        except SysError as error:
            if error.errno == ENOENT:  # a link that leads nowhere
                raise SysError(ENOTDIR) from None
            raise
        if found.dentry is None:
            parent = found.parent.inode if found.parent is not None else at.dentry.inode
            try:
                if last and not directory:
                    parent.create(nobody, found.name, stat.S_IFREG | 0o644, 0, 0)
                else:
                    parent.mkdir(nobody, found.name, 0o755, 0, 0)
            except SysError as error:
                if error.errno != EEXIST:
                    raise
            found = resolve(step, AT_FDCWD, part, True)
        assert found.dentry is not None
        at = Place(found.mount, found.dentry)
    return at


def mask(kernel: Kernel, root: Place, paths: list[str]) -> None:
    """``linux.maskedPaths``: what is there is hidden, by an empty read-only directory or ``/dev/null``."""
    for path in paths:
        place = _existing(kernel, root, path)
        if place is None:
            continue
        if place.dentry.inode.kind == stat.S_IFDIR:
            fs = TmpFs(kernel.mounts.device(), mode=0o755)
            kernel.mounts.mount(fs, place, b"tmpfs", MS_RDONLY)
        else:
            null = _existing(kernel, root, "/dev/null")
            if null is not None:
                kernel.mounts.bind(null, place)


def protect(kernel: Kernel, root: Place, paths: list[str]) -> None:
    """``linux.readonlyPaths``: what is there can only be read."""
    for path in paths:
        place = _existing(kernel, root, path)
        if place is not None:
            kernel.mounts.bind(place, place, recursive=True, flags=place.mount.flags | MS_RDONLY)


def _existing(kernel: Kernel, root: Place, path: str) -> Place | None:
    nobody: Any = Nobody(kernel, root)
    try:
        found = resolve(nobody, AT_FDCWD, os.fsencode(path))
    except SysError:
        return None
    assert found.dentry is not None
    return Place(found.mount, found.dentry)


def read_file(kernel: Kernel, root: Place, path: bytes, limit: int) -> bytes:
    """What a regular file of a container holds, cut to ``limit`` bytes; empty where there is none."""
    from casemate.sentry.vfs.path import open_path

    nobody: Any = Nobody(kernel, root)
    try:
        file = open_path(nobody, path, os.O_RDONLY | os.O_NONBLOCK)
    except SysError:
        return b""
    try:
        if file.inode is None or file.inode.kind != stat.S_IFREG:
            return b""
        parts = []
        while limit > 0 and (part := file.read(nobody, min(limit, 65536))):
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)
    except SysError:
        return b""
    finally:
        file.decref()



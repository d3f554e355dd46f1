"""The mounts of a container on the host: what its namespace shows, and the two trees that the guest gets.

``root`` is the root filesystem with the mounts that the engine has made below it. ``volumes`` is an empty directory
tree with the entries ``0``, ``1``, …: the bind mounts of the specification in their order. Both are detached copies
(open_tree(2)) that the keeper attaches where the guest sees them; mounts that hooks have made below the root filesystem
are added to them. Nothing else is: what is not in the specification's root, its bind mounts or made by a hook does not
get to the guest.

The container's mount namespace on the host shows the root filesystem with the bind mounts in place, for ``nsenter`` and
for engines that copy files through it. Where the guest mounts something of its own (``tmpfs``, ``sysfs``) an empty
file system stands here, which takes no files, as those would not get to the guest. ``/proc`` is that of the container's
pid namespace, so that engines find the stand-ins in it.
"""

from __future__ import annotations

import os
import stat

from casemate.errors import HostError
from casemate.host import mounts, syscalls
from casemate.standin.launch import Blueprint, Volume

KERNEL_TYPES = frozenset(
    ("proc", "sysfs", "devtmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "securityfs", "debugfs", "tracefs")
)
"""File systems of the host's kernel: never passed on to a guest, not even when a hook mounts them."""
MAX_LINKS = 40
GUESTS, NOWHERE = -1, -2
"""In place of a volume's number: a file system that the guest has of its own; a volume that it does not get."""
FROM_EMPTY = syscalls.MOVE_MOUNT_F_EMPTY_PATH
REFUSED = {
    stat.S_IFSOCK: ("a UNIX socket", "whoever listens on it is on another kernel; use a TCP port"),
    stat.S_IFIFO: ("a named pipe", "its other end is on another kernel; use a TCP port"),
    stat.S_IFCHR: ("a character device", "name it with --device, for those devices that a guest has"),
    stat.S_IFBLK: ("a block device", "pass it with --device and mount it inside"),
}


class Trees:
    """The mounts of one container; to be used in the child that stands in its namespaces."""

    def __init__(self, blueprint: Blueprint) -> None:
        self._blueprint = blueprint
        self._rootfs = blueprint.rootfs
        self._place = -1
        self._root_tree = -1
        self._inside: list[tuple[str, int]] = []  # what was mounted in place: path; number of the volume, or other
        self._known: set[str] = set()

    def prepare(self) -> None:
        """Mount everything in place.

        Raises:
            HostError: a source is missing or of a kind that a guest cannot have, or a mount fails.
        """
        spread = syscalls.MS_PRIVATE if self._blueprint.private else syscalls.MS_SLAVE
        syscalls.mount(None, "/", None, syscalls.MS_REC | spread, None)
        self._root_tree = _copy(syscalls.AT_FDCWD, self._rootfs, recursive=True)
        self._place = _copy(syscalls.AT_FDCWD, self._rootfs, recursive=True)
        flags = FROM_EMPTY | syscalls.MOVE_MOUNT_T_SYMLINKS
        syscalls.move_mount(self._place, "", syscalls.AT_FDCWD, self._rootfs, flags)
        volumes = [volume for volume in self._blueprint.volumes if volume.source is not None]
        size = 4096 * (len(volumes) + 64)
        mounts.tmpfs(self._blueprint.scratch, size=size, inodes=len(volumes) + 64)
        number = 0
        for volume in self._blueprint.volumes:
            if volume.source is None:
                self._mount_own(volume)
            else:
                self._bind(volume, number)
                number += 1
        if self._blueprint.hooked:
            self._known = {line[0] for line in _mountinfo()}

    def _mount_own(self, volume: Volume) -> None:
        target, path = self._target(volume.destination, directory=True)
        try:
            if volume.kind == "proc":
                flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
                syscalls.mount("proc", f"/proc/self/fd/{target}", "proc", flags, None)
            else:
                mounts.tmpfs(target, size=1 << 20, inodes=1024)
        finally:
            os.close(target)
        self._inside.append((path, GUESTS))

    def _bind(self, volume: Volume, number: int) -> None:
        source = volume.source or ""
        try:
            mode = os.stat(source).st_mode
        except OSError as error:
            # In runc's words: engines know them.
            raise HostError(
                f"error mounting {source!r} to rootfs at {volume.destination!r}: stat {source}:"
                f" {(error.strerror or '').lower()}"
            ) from None
        if stat.S_IFMT(mode) in REFUSED:
            what, hint = REFUSED[stat.S_IFMT(mode)]
            raise HostError(f"cannot mount {source} at {volume.destination}: it is {what}", hint)
        directory = stat.S_ISDIR(mode)
        tree = _copy(syscalls.AT_FDCWD, source, recursive=volume.recursive)
        try:
            _shape(tree, volume)
            target, path = self._target(volume.destination, directory=directory)
            try:
                syscalls.move_mount(tree, "", target, "", FROM_EMPTY | syscalls.MOVE_MOUNT_T_EMPTY_PATH)
            finally:
                os.close(target)
            entry = os.path.join(self._blueprint.scratch, str(number))
            if directory:
                os.mkdir(entry, 0o755)
            else:
                os.close(os.open(entry, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
            if volume.passed:
                again = _copy(tree, "", recursive=True)  # only now: kernels before 6.15 copy none that hangs nowhere
                try:
                    syscalls.move_mount(again, "", syscalls.AT_FDCWD, entry, FROM_EMPTY)
                finally:
                    os.close(again)
        except OSError as error:
            raise HostError(f"cannot mount {source} at {volume.destination}: {error.strerror}") from None
        finally:
            os.close(tree)
        self._inside.append((path, number if volume.passed else NOWHERE))

    def _target(self, destination: str, *, directory: bool) -> tuple[int, str]:
        """The place of a mount inside the root filesystem, made when it is missing: a descriptor, and the path that it
        has there once links are followed."""
        clean = resolve(self._place, destination)
        if clean == "/":
            raise HostError(f"cannot mount at {destination}: that is the container's root", "choose another place")
        return mounts.mount_point(self._place, clean, directory=directory), clean

    def finish(self) -> tuple[int, int | None]:
        """Add what hooks have mounted, and make the root filesystem the root.

        Returns:
            the trees ``root`` and ``volumes``, the latter None when there are no volumes.

        Raises:
            HostError: a mount fails.
        """
        blueprint = self._blueprint
        root, volumes = self._root_tree, None
        try:
            made = [line for line in _mountinfo() if line[0] not in self._known] if blueprint.hooked else []
            root = self._with_hooks_mounts(root, made)
            if any(volume.source is not None for volume in blueprint.volumes):
                volumes = _copy(syscalls.AT_FDCWD, blueprint.scratch, recursive=True)
            if blueprint.read_only:
                syscalls.mount_setattr(self._place, "", syscalls.AT_EMPTY_PATH, set_=syscalls.MOUNT_ATTR_RDONLY)
            for path, number in self._inside:
                if number == GUESTS:
                    self._close_off(path)
            self._change_root()
        except OSError as error:
            raise HostError(f"cannot set up the container's root: {error.strerror}") from None
        finally:
            os.close(self._place)
        return root, volumes

    def _close_off(self, path: str) -> None:
        """Have an empty file system that stands for one of the guest's take no files any more."""
        target = mounts.open_in_root(self._place, path)
        try:
            syscalls.mount_setattr(target, "", syscalls.AT_EMPTY_PATH, set_=syscalls.MOUNT_ATTR_RDONLY)
        except OSError:
            pass  # something else was mounted over it, or it was taken away: it is a hook's now
        finally:
            os.close(target)

    def _with_hooks_mounts(self, root: int, made: list[tuple[str, str, str]]) -> int:
        """The root tree with the mounts that hooks have made inside the container's root."""
        rootfs = self._rootfs.rstrip("/")
        ours = sorted(((path, number) for path, number in self._inside), key=lambda pair: -len(pair[0]))
        attached = False
        stage = os.path.join(self._blueprint.scratch, "root")
        for _, point, kind in made:
            if not point.startswith(rootfs + "/") or kind in KERNEL_TYPES:
                continue
            inside = point[len(rootfs) :]
            over = next((pair for pair in ours if inside == pair[0] or inside.startswith(pair[0] + "/")), None)
            if over is not None and over[1] < 0:
                continue  # in something that the guest does not get
            copy = _copy(syscalls.AT_FDCWD, point, recursive=False)
            try:
                if over is not None:
                    base, rest = os.path.join(self._blueprint.scratch, str(over[1])), inside[len(over[0]) :]
                else:
                    if not attached:
                        os.mkdir(stage, 0o700)
                        syscalls.move_mount(root, "", syscalls.AT_FDCWD, stage, FROM_EMPTY)
                        attached = True
                    base, rest = stage, inside
                target = mounts.open_in_root(base, rest or ".")
                try:
                    syscalls.move_mount(copy, "", target, "", FROM_EMPTY | syscalls.MOVE_MOUNT_T_EMPTY_PATH)
                finally:
                    os.close(target)
            finally:
                os.close(copy)
        if not attached:
            return root
        whole = _copy(syscalls.AT_FDCWD, stage, recursive=True)
        os.close(root)
        mounts.umount(stage)
        os.rmdir(stage)  # or the volumes' tree would bring it along
        return whole

    def _change_root(self) -> None:
        os.chdir(self._rootfs)
        if not self._blueprint.pivot:
            syscalls.mount(self._rootfs, "/", None, syscalls.MS_MOVE, None)
            os.chroot(".")
            os.chdir("/")
            return
        # The new root and the old one at the same place, as runc does it: no directory for the old one is needed.
        old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.pivot_root(".", ".")
            os.fchdir(old)
        finally:
            os.close(old)
        # Taking the old root away must not reach the host through mounts that follow each other.
        syscalls.mount(None, ".", None, syscalls.MS_REC | syscalls.MS_SLAVE, None)
        syscalls.umount2(".", syscalls.MNT_DETACH)
        os.chdir("/")


def resolve(root: int, path: str) -> str:
    """The path that ``path`` is inside a root once its links are followed, whether or not anything is there yet.

    A link to something missing is followed too, as runc does it: ``/etc/resolv.conf`` of many an image is one. This
    only finds a name; whoever uses it opens it with openat2(2) all the same.

    Raises:
        HostError: there are too many links.
    """
    todo = [part for part in path.split("/") if part not in ("", ".")][::-1]
    done: list[str] = []
    links = 0
    while todo:
        part = todo.pop()
        if part == "..":
            done = done[:-1]
            continue
        try:
            directory = mounts.open_in_root(root, "/".join(done) or ".")
        except OSError:
            done.append(part)  # nothing there, so no links either
            continue
        try:
            target = os.readlink(part, dir_fd=directory)
        except OSError:
            done.append(part)
            continue
        finally:
            os.close(directory)
        links += 1
        if links > MAX_LINKS:
            raise HostError(f"cannot mount at {path}: too many symbolic links")
        if target.startswith("/"):
            done = []
        todo += [part for part in target.split("/") if part not in ("", ".")][::-1]
    return "/" + "/".join(done)


def _copy(directory: int, path: str, *, recursive: bool) -> int:
    """A detached copy of the mount at a path, or of the one that ``directory`` is when the path is empty."""
    flags = syscalls.OPEN_TREE_CLONE | (syscalls.AT_RECURSIVE if recursive else 0)
    if not path:
        flags |= syscalls.AT_EMPTY_PATH
    try:
        return syscalls.open_tree(directory, path, flags)
    except OSError as error:
        raise HostError(f"cannot mount {path or 'a copy'}: {os.strerror(error.errno or 0)}") from None


def _shape(tree: int, volume: Volume) -> None:
    if volume.read_only:
        deep = syscalls.AT_RECURSIVE if volume.deep else 0
        syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH | deep, set_=syscalls.MOUNT_ATTR_RDONLY)
    spread = syscalls.MS_SLAVE if volume.follows else syscalls.MS_PRIVATE
    syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE, propagation=spread)


def _mountinfo() -> list[tuple[str, str, str]]:
    """Every mount of this namespace: its number, mount point and file system's type (proc(5))."""
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields = line.split(b" ")
            kind = fields[fields.index(b"-", 6) + 1].decode()
            found.append((fields[0].decode(), mounts.unescape(fields[4]), kind))
    return found

"""Mounts: bind, overlay, tmpfs, and mount points inside trees that we do not trust.

A mount point inside a container's root is reached with ``openat2(2)`` and RESOLVE_IN_ROOT and handed on as a
descriptor, so a symbolic link in an image cannot lead a mount out of it. Binds use the calls of Linux 5.2 and 5.12
(``open_tree``, ``mount_setattr``, ``move_mount``): the copy of the tree gets its flags, on every mount below it too,
before anyone can see it. Overlay directories are named to the kernel by descriptor: names of any length and with any
character then fit into mount(2)'s one page of options.
"""

from __future__ import annotations

import errno
import os
import stat

from casemate.errors import HostError
from casemate.host import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:  # pathlib weighs as much as all else here, and short-lived programs and shims do without
    from collections.abc import Sequence
    from pathlib import Path

    Place = Path | str | int
    """A path, or a descriptor opened with O_PATH (which stays the caller's)."""

OPTION_LIMIT = 4095  # mount(2) copies one page, the last byte of which is the terminator
MAX_COMPONENTS = 256  # of a path in an untrusted tree; PATH_MAX alone would allow 2048 directories to be made

_OLD_KERNEL = "casemate needs Linux 5.12 or newer"


def bind(
    source: Place, target: Place, *, read_only: bool = False, recursive: bool = True,
    nosuid: bool = False, nodev: bool = False, noexec: bool = False,
) -> None:
    """Show ``source`` (a directory or a file) at ``target`` too.

    Arguments:
        source, target: paths are followed; both must be directories or neither.
        read_only, nosuid, nodev, noexec: apply to the copy, and with ``recursive`` to every mount below it.
        recursive: bring the mounts below ``source`` along.

    Raises:
        HostError: missing source or target, a directory onto a file, not root, an old kernel.
    """
    deep = syscalls.AT_RECURSIVE if recursive else 0
    attributes = (
        (syscalls.MOUNT_ATTR_RDONLY if read_only else 0) | (syscalls.MOUNT_ATTR_NOSUID if nosuid else 0)
        | (syscalls.MOUNT_ATTR_NODEV if nodev else 0) | (syscalls.MOUNT_ATTR_NOEXEC if noexec else 0)
    )
    try:
        at, name = (source, "") if isinstance(source, int) else (syscalls.AT_FDCWD, str(source))
        empty = syscalls.AT_EMPTY_PATH if isinstance(source, int) else 0
        tree = syscalls.open_tree(at, name, syscalls.OPEN_TREE_CLONE | deep | empty)
    except OSError as error:
        raise _error(f"cannot bind {_name(source)}", error) from None
    try:
        if attributes:
            syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH | deep, set_=attributes)
        flags = syscalls.MOVE_MOUNT_F_EMPTY_PATH
        if isinstance(target, int):
            syscalls.move_mount(tree, "", target, "", flags | syscalls.MOVE_MOUNT_T_EMPTY_PATH)
        else:
            syscalls.move_mount(tree, "", syscalls.AT_FDCWD, str(target), flags | syscalls.MOVE_MOUNT_T_SYMLINKS)
    except OSError as error:
        raise _error(f"cannot bind {_name(source)} on {_name(target)}", error) from None
    finally:
        os.close(tree)


def attach(tree: int, target: Place, *, read_only: bool = False) -> None:
    """Put a detached tree (``open_tree(2)`` with OPEN_TREE_CLONE) in its place, on every mount of it.

    Arguments:
        tree: stays the caller's.
        target: a path, of the same kind, directory or not.

    Raises:
        HostError: the kernel refuses.
    """
    try:
        # A mount of the host's that is shared must not hear of what is done here: taking the tree down would take down
        # what is mounted in the original too. Mounts that the host makes there still appear, where they did before.
        syscalls.mount_setattr(
            tree, "", syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE,
            set_=syscalls.MOUNT_ATTR_RDONLY if read_only else 0, propagation=syscalls.MS_SLAVE,
        )  # fmt: skip
        syscalls.move_mount(tree, "", syscalls.AT_FDCWD, _path(target), syscalls.MOVE_MOUNT_F_EMPTY_PATH)
    except OSError as error:
        raise _error(f"cannot attach a tree at {_name(target)}", error) from None


def overlay(lower: Sequence[Path], upper: Path | None, work: Path | None, target: Place) -> None:
    """Mount the union of ``lower`` (bottom first, as image layers are listed) and ``upper`` on ``target``.

    Arguments:
        lower: at least one directory.
        upper, work: where changes go, and a scratch directory on the same file system; both None: read-only.

    Raises:
        HostError: a directory is missing, there are too many layers (about 200), not root.
    """
    if not lower or (upper is None) != (work is None):
        raise ValueError("overlay needs a lower directory, and upper and work together")
    held: list[int] = []
    try:
        def opened(path: Path) -> str:
            try:
                held.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            except OSError as error:
                raise _error(f"cannot use {path} as a layer", error) from None
            return f"/proc/self/fd/{held[-1]}"

        below = [opened(path) for path in reversed(lower)]
        if upper is None or work is None:
            if len(below) == 1:  # overlayfs wants two directories when there is no upper one
                bind(held[0], target, read_only=True, recursive=False)
                return
            options = f"lowerdir={':'.join(below)}"
        else:
            options = f"lowerdir={':'.join(below)},upperdir={opened(upper)},workdir={opened(work)}"
            # Directories can be renamed (redirect_dir); no half-copied files (metacopy) and no hard-link index, which
            # would tie the upper directory to these very layers' inode numbers.
            options += ",redirect_dir=on,metacopy=off,index=off"
        if len(options) > OPTION_LIMIT:
            raise HostError(f"an image of {len(lower)} layers cannot be mounted", "squash some of its layers")
        try:
            syscalls.mount("overlay", _path(target), "overlay", 0, options)
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise HostError("the kernel has no overlay file system", "modprobe overlay") from None
            if error.errno == errno.EINVAL:
                raise HostError(
                    f"{upper or lower[0]} cannot be part of an overlay",
                    "keep it on ext4, xfs, btrfs or tmpfs, upper and work on the same one, and not on an overlay",
                ) from None
            raise _error(f"cannot mount an overlay on {_name(target)}", error) from None
    finally:
        for fd in held:
            os.close(fd)


def tmpfs(target: Place, *, size: int, mode: int = 0o755, inodes: int | None = None) -> None:
    """Mount an empty tmpfs, nosuid and nodev, of at most ``size`` bytes and ``inodes`` files."""
    options = f"size={size},mode={mode:o}" + ("" if inodes is None else f",nr_inodes={inodes}")
    try:
        syscalls.mount("tmpfs", _path(target), "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, options)
    except OSError as error:
        raise _error(f"cannot mount a tmpfs on {_name(target)}", error) from None


def make_shared(target: Place) -> None:
    """Let mounts made below the mount ``target`` later appear in namespaces copied from this one, too."""
    try:
        syscalls.mount(None, _path(target), None, syscalls.MS_SHARED | syscalls.MS_REC, None)
    except OSError as error:
        raise _error(f"cannot share {_name(target)}", error) from None


def umount(target: Path | str, *, lazy: bool = True) -> bool:
    """Take the topmost mount off ``target``; a last symbolic link is not followed.

    Arguments:
        lazy: detach at once, and let the kernel finish when the last user is gone.

    Returns:
        False when nothing was mounted there.
    """
    try:
        syscalls.umount2(str(target), syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0))
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return False
        raise _error(f"cannot unmount {target}", error) from None
    return True


def mounts_below(directory: Path | str) -> list[str]:
    """Mount points at or below ``directory`` in the caller's mount namespace, the deepest last-made first."""
    top = os.path.realpath(directory)
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            path = unescape(line.split(b" ")[4])
            if path == top or path.startswith(top.rstrip("/") + "/"):
                found.append(path)
    return found[::-1]


def open_in_root(root: Place, path: str, flags: int = os.O_PATH) -> int:
    """Open ``path`` as a process whose root is ``root`` would: no symbolic link and no ``..`` leads out of it.

    Arguments:
        path: absolute or not, read from ``root`` either way.
        flags: as for ``open(2)``; close-on-exec is added.

    Raises:
        OSError: with the errno of openat2(2).
    """
    base = root if isinstance(root, int) else os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
        while True:
            try:
                return syscalls.openat2(base, path, flags, resolve=resolve)
            except OSError as error:
                # EAGAIN: a rename or mount somewhere raced with a "..": the kernel asks for another try
                if error.errno != errno.EAGAIN:
                    raise
    finally:
        if not isinstance(root, int):
            os.close(base)


def mount_point(root: Place, path: str, *, directory: bool = True) -> int:
    """Open ``path`` inside the untrusted tree ``root`` as something to mount on, making what is missing.

    Arguments:
        root: the tree's top; nothing outside of it is touched, whatever links it holds.
        directory: whether a directory or an (empty) file is wanted.

    Returns:
        a descriptor with O_PATH, to be given to :func:`bind` and its like, and closed.

    Raises:
        HostError: something else is there, a link dangles, or the tree is read-only.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if len(parts) > MAX_COMPONENTS or "\0" in path:
        raise HostError(f"mount point {path[:80]!r} has too many components or a zero byte", "choose a shorter one")
    if ".." in parts:
        raise HostError(f"mount point {path!r} must not hold '..'", "give the path it stands for")
    base = root if isinstance(root, int) else os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        current = open_in_root(base, ".")
        try:
            for depth, part in enumerate(parts):
                last = depth == len(parts) - 1
                _make(current, part, directory or not last)
                following = open_in_root(base, "/".join(parts[: depth + 1]))
                os.close(current)
                current = following
            if stat.S_ISDIR(os.fstat(current).st_mode) != directory:
                wanted = "directory" if directory else "file"
                raise HostError(f"mount point {path} is there and is not a {wanted}", "choose another place")
        except BaseException:
            os.close(current)
            raise
        return current
    except OSError as error:
        raise _error(f"cannot make the mount point {path}", error) from None
    finally:
        if not isinstance(root, int):
            os.close(base)


def _make(parent: int, name: str, directory: bool) -> None:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
        return  # on a read-only tree even an attempt at an existing name may be refused
    except FileNotFoundError:
        pass
    try:
        if directory:
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=parent))
    except FileExistsError:
        pass  # made by someone else since: what it is, the caller looks at


def _path(place: Place) -> str:
    return f"/proc/self/fd/{place}" if isinstance(place, int) else str(place)


def _name(place: Place) -> str:
    if not isinstance(place, int):
        return str(place)
    try:
        return os.readlink(f"/proc/self/fd/{place}")
    except OSError:
        return f"descriptor {place}"


def unescape(field: bytes) -> str:
    """A path of mountinfo: space, tab, newline and backslash are written as three octal digits."""
    parts = field.split(b"\\")
    plain = parts[0] + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in parts[1:])
    return os.fsdecode(plain)


def _error(what: str, error: OSError) -> HostError:
    hints = {
        errno.EPERM: "run as root", errno.ENOENT: "make it first", errno.ENOSYS: _OLD_KERNEL,
        errno.ENOTDIR: "directories go on directories and files on files",
        errno.EINVAL: "directories go on directories and files on files, within one mount namespace",
        errno.EROFS: "it is on a read-only file system",
        errno.ENOSPC: "free some space, or raise fs.mount-max", errno.ELOOP: "too many symbolic links",
    }
    return HostError(f"{what}: {os.strerror(error.errno or 0)}", hints.get(error.errno or 0, ""))

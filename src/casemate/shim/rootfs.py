"""The mounts of a container's root filesystem, as containerd asks for them, and their undoing.

A mount is what containerd calls ``types.Mount``: type, source, target below the root, options in the words of fstab(5).
The words are those of containerd's ``mount`` package; what is no word of it is data for the file system.
"""

from __future__ import annotations

import errno
import os

from casemate.host import mounts, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

DIRECTORY = "rootfs"
"""Where in a bundle the root filesystem is."""
MAX_DATA = 4095
"""Most bytes of options that mount(2) takes."""

_MS = {
    "SYNCHRONOUS": 16, "MANDLOCK": 64, "DIRSYNC": 128, "NOATIME": 1024, "NODIRATIME": 2048, "RELATIME": 1 << 21,
    "STRICTATIME": 1 << 24, "UNBINDABLE": 1 << 17,
}
_SET = {
    "bind": syscalls.MS_BIND, "rbind": syscalls.MS_BIND | syscalls.MS_REC, "ro": syscalls.MS_RDONLY,
    "nosuid": syscalls.MS_NOSUID, "nodev": syscalls.MS_NODEV, "noexec": syscalls.MS_NOEXEC,
    "remount": syscalls.MS_REMOUNT, "sync": _MS["SYNCHRONOUS"], "dirsync": _MS["DIRSYNC"], "mand": _MS["MANDLOCK"],
    "noatime": _MS["NOATIME"], "nodiratime": _MS["NODIRATIME"], "relatime": _MS["RELATIME"],
    "strictatime": _MS["STRICTATIME"],
    "private": syscalls.MS_PRIVATE, "rprivate": syscalls.MS_PRIVATE | syscalls.MS_REC,
    "slave": syscalls.MS_SLAVE, "rslave": syscalls.MS_SLAVE | syscalls.MS_REC,
    "shared": syscalls.MS_SHARED, "rshared": syscalls.MS_SHARED | syscalls.MS_REC,
    "unbindable": _MS["UNBINDABLE"], "runbindable": _MS["UNBINDABLE"] | syscalls.MS_REC,
}
_CLEAR = {
    "rw": syscalls.MS_RDONLY, "suid": syscalls.MS_NOSUID, "dev": syscalls.MS_NODEV, "exec": syscalls.MS_NOEXEC,
    "async": _MS["SYNCHRONOUS"], "nomand": _MS["MANDLOCK"], "atime": _MS["NOATIME"], "diratime": _MS["NODIRATIME"],
    "norelatime": _MS["RELATIME"], "nostrictatime": _MS["STRICTATIME"],
}
_PROPAGATION = syscalls.MS_SHARED | syscalls.MS_PRIVATE | syscalls.MS_SLAVE | _MS["UNBINDABLE"]


def parse(options: Sequence[str]) -> tuple[int, list[str]]:
    """The flags for mount(2) that words stand for, and the words that are data for the file system."""
    flags, data = 0, []
    for word in options:
        if word in _SET:
            flags |= _SET[word]
        elif word in _CLEAR:
            flags &= ~_CLEAR[word]
        elif word != "defaults":
            data.append(word)
    return flags, data


def needs_helper(mount: dict[str, Any]) -> bool:
    """Whether mount(8) has to do it: a loop device is to be made, or a program of FUSE to be run."""
    return "loop" in mount["options"] or mount["type"].startswith(("fuse.", "fuse3."))


def helper_command(mount: dict[str, Any], target: str) -> list[str]:
    """The command line for a mount that needs one."""
    command = ["mount", "-t", mount["type"], "-o", ",".join(mount["options"]) or "defaults"]
    if mount["type"].startswith(("fuse.", "fuse3.")):
        program, _, kind = mount["type"].partition(".")
        command = [f"mount.{program}", mount["source"], target, "-t", kind]
        return command + [word for option in mount["options"] for word in ("-o", option)]
    return [*command, "--", mount["source"], target]


def target_of(root: str, mount: dict[str, Any]) -> str:
    """Where a mount goes: the root, or the directory below it that the mount names.

    Raises:
        OSError: it is not there, or a link leads out of the root.
    """
    if not mount["target"].strip("/"):
        return root
    fd = mounts.open_in_root(root, mount["target"])
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def mount_one(mount: dict[str, Any], target: str) -> None:
    """Make one mount that needs no helper.

    Raises:
        OSError: it cannot be made.
    """
    flags, data = parse(mount["options"])
    propagation = flags & (_PROPAGATION | syscalls.MS_REC) if flags & _PROPAGATION else 0
    flags &= ~_PROPAGATION
    held: list[int] = []
    try:
        text = ",".join(data)
        if len(os.fsencode(text)) > MAX_DATA and mount["type"] == "overlay":
            text = ",".join(_short(word, held) for word in data)
        if len(os.fsencode(text)) > MAX_DATA:
            raise OSError(errno.E2BIG, "mount options is too long")
        if not flags & syscalls.MS_REMOUNT or text:
            syscalls.mount(mount["source"], target, mount["type"] or None, flags, text or None)
    finally:
        for fd in held:
            os.close(fd)
    if propagation:
        syscalls.mount(None, target, None, propagation, None)
    read_only_bind = syscalls.MS_BIND | syscalls.MS_RDONLY
    if flags & read_only_bind == read_only_bind:
        syscalls.mount(None, target, None, flags | syscalls.MS_REMOUNT, None)


def _short(word: str, held: list[int]) -> str:
    """An overlay's option with its directories named by descriptors, which are short however deep they lie."""
    name, equals, value = word.partition("=")
    if name not in ("lowerdir", "upperdir", "workdir") or not equals:
        return word
    paths = value.replace("\\:", "\0").split(":") if name == "lowerdir" else [value]
    for path in paths:
        held.append(os.open(path.replace("\0", ":"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    return f"{name}=" + ":".join(f"/proc/self/fd/{fd}" for fd in held[len(held) - len(paths) :])


def unmount_all(root: str) -> None:
    """Take off everything mounted on ``root`` or below it. No such directory, or nothing mounted, is fine.

    Mounts that are in use are detached: whoever still uses them keeps them, nobody else sees them.

    Raises:
        OSError: it cannot be done.
    """
    if not root or not os.path.isdir(root):
        return
    for _ in range(64):  # of mounts on top of each other
        found = mounts.mounts_below(root)
        if not found:
            return
        for path in found:
            try:
                syscalls.umount2(path, syscalls.UMOUNT_NOFOLLOW)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    syscalls.umount2(path, syscalls.UMOUNT_NOFOLLOW | syscalls.MNT_DETACH)
                elif error.errno not in (errno.EINVAL, errno.ENOENT):
                    raise

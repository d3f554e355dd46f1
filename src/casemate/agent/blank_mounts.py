"""The root of a container that is made of a blank: what is mounted there, masked and read-only.

As crun(1) does it, in its order and with its results. Everything here may meet what the image's maker has put there:
names in the root file system are looked up as if that were the root (openat2(2), RESOLVE_IN_ROOT), and mounts go to
descriptors.

**Ahead.** Most containers have the same ``/proc``, ``/dev`` and ``/sys``, with all that is mounted below them, and none
of it depends on the image. So a blank makes these trees while it waits (:func:`build`). They belong to no mount
namespace (open_tree(2), OPEN_TREE_CLONE) until a container that wants just these takes them, which is one call for each
in place of some eighty (:func:`make_root`). A tree of which anything is wanted otherwise is made as ever.
"""

from __future__ import annotations

import os
import stat
import struct

from casemate.agent.system import MS_NODEV, MS_NOEXEC, MS_NOSUID, log, mount, open_in_root, syscall, unmount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Part = tuple[list[dict[str, Any]], list[str], list[str]]
    """Mounts, masked and read-only paths."""

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC = 1, 32, 4096, 16384
MS_NOATIME, MS_NODIRATIME, MS_RELATIME, MS_STRICTATIME = 1 << 10, 1 << 11, 1 << 21, 1 << 24
MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE = 1 << 18, 1 << 19, 1 << 20, 1 << 17
PROPAGATION = MS_PRIVATE | MS_SLAVE | MS_SHARED | MS_UNBINDABLE
OPTIONS = {
    "ro": (MS_RDONLY, False), "rw": (MS_RDONLY, True), "nosuid": (MS_NOSUID, False), "suid": (MS_NOSUID, True),
    "nodev": (MS_NODEV, False), "dev": (MS_NODEV, True), "noexec": (MS_NOEXEC, False), "exec": (MS_NOEXEC, True),
    "sync": (16, False), "async": (16, True), "dirsync": (128, False), "noatime": (MS_NOATIME, False),
    "atime": (MS_NOATIME, True), "nodiratime": (MS_NODIRATIME, False), "diratime": (MS_NODIRATIME, True),
    "relatime": (MS_RELATIME, False), "norelatime": (MS_RELATIME, True), "strictatime": (MS_STRICTATIME, False),
    "nostrictatime": (MS_STRICTATIME, True), "bind": (MS_BIND, False),
    "rbind": (MS_BIND | MS_REC, False), "private": (MS_PRIVATE, False), "rprivate": (MS_PRIVATE | MS_REC, False),
    "slave": (MS_SLAVE, False), "rslave": (MS_SLAVE | MS_REC, False), "shared": (MS_SHARED, False),
    "rshared": (MS_SHARED | MS_REC, False), "unbindable": (MS_UNBINDABLE, False),
    "runbindable": (MS_UNBINDABLE | MS_REC, False), "defaults": (0, False),
}  # fmt: skip
"""mount(8): the flags of an option, and whether it takes them away. Any other is for the file system."""
NODES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("tty", 5, 0), ("random", 1, 8), ("urandom", 1, 9))
LINKS = (
    ("/proc/self/fd", "fd"), ("/proc/self/fd/0", "stdin"), ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"), ("/proc/kcore", "core"), ("pts/ptmx", "ptmx"),
)  # fmt: skip
"""In /dev (runtime specification, config-linux.md, "Default Devices")."""
CLONE_NEWNS = 0x20000
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, 0x80000
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x40
MOUNT_ATTR_NOATIME, MOUNT_ATTR_STRICTATIME, MOUNT_ATTR__ATIME, MOUNT_ATTR_NODIRATIME = 0x10, 0x20, 0x70, 0x80
_SAME = MS_NOSUID | MS_NODEV | MS_NOEXEC
"""Flags of mount(2) that are the same numbers as attributes; so is MS_RDONLY."""
TOPS = ("proc", "dev", "sys")
"""Directories of the root whose trees can be made ahead."""
STAGE = "/run"
"""Where they are made, in a mount namespace of their own: any directory of the guest that is not needed for it."""


def options(wanted: list[str]) -> tuple[int, str]:
    """The flags and the data of a mount's options."""
    flags, data = 0, []
    for word in wanted:
        known = OPTIONS.get(word)
        if known is None:
            data.append(word)
        elif known[1]:
            flags &= ~known[0]
        else:
            flags |= known[0]
    return flags, ",".join(data)


def make_root(spec: dict[str, Any], linux: dict[str, Any], path: str, trees: Trees | None) -> None:
    """Mount everything below the root file system, and make it the root.

    Arguments:
        spec, linux: the specification, and its part for Linux.
        path: of the root file system.
        trees: what was made ahead, if it was.

    Raises:
        OSError: something cannot be mounted; ``filename`` is the path, where it is known.
    """
    mount(path, path, "", MS_BIND | MS_REC)
    mount("", path, "", MS_REC | MS_PRIVATE)
    sealed: list[tuple[int, int]] = []
    if spec["root"].get("readonly") is True:
        sealed.append((os.open(path, os.O_PATH | os.O_CLOEXEC), MS_RDONLY))
    root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    wanted = wishes(spec["mounts"], linux)
    ready, rest = ({}, wanted) if trees is None else trees.choose(wanted)
    for top, number in ready.items():
        assert trees is not None  # it has chosen
        target = _make(root, top, True)
        if not stat.S_ISDIR(os.fstat(target).st_mode):
            raise OSError(20, os.strerror(20), f"/{top}")
        part, fd = trees.made[top][number]
        move_mount(fd, target)
        os.close(target)
        if trees.pages != os.sysconf("SC_PHYS_PAGES"):
            _more_files(root, part[0])
    _fill(root, rest, sealed, devices="dev" not in ready)
    os.close(root)
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir(path)
    syscall("pivot_root", b".\0", b".\0")
    os.fchdir(old)
    mount("", ".", "", MS_REC | MS_PRIVATE)
    if not unmount("."):
        raise OSError(22, "the old root stays", path)
    os.close(old)
    os.chdir("/")
    mount("", "/", "", MS_REC | MS_PRIVATE)


def build(usual: list[Part]) -> Trees:
    """Mount ahead what containers want, as far as it can be.

    Arguments:
        usual: mounts, masked and read-only paths of containers as most are.

    Raises:
        OSError: there is no place to do it.
    """
    trees = Trees(os.sysconf("SC_PHYS_PAGES"))
    home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    syscall("unshare", CLONE_NEWNS)
    try:
        mount("", "/", "", MS_REC | MS_PRIVATE)
        for whole in usual:
            _add(trees, whole)
    finally:
        syscall("setns", home, CLONE_NEWNS)
        os.close(home)
    return trees


def _add(trees: Trees, whole: Part) -> None:
    """What one container wants; as much of it as can be."""
    mount("tmpfs", STAGE, "tmpfs")  # over the one before, if there was one
    root = os.open(STAGE, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def make(top: str, part: Part) -> int:
        _fill(root, part, [], devices=top == "dev")
        return open_tree(root, top, True)

    try:
        trees.add(whole, make)
    except OSError as error:
        log(f"not mounted ahead: {error.filename}: {error.strerror}")
    finally:
        os.close(root)


class Trees:
    """What was mounted ahead.

    Arguments:
        pages: of memory that there were.
    """

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.made: dict[str, list[tuple[Part, int]]] = {}
        """By each directory of what, and a descriptor."""
        self._known: list[tuple[Part, dict[str, int]]] = []
        """Of containers that want nothing else, the place of each directory's among those."""

    def add(self, whole: Part, make: Callable[[str, Part], int]) -> None:
        """Have what a container wants, too.

        Arguments:
            whole: mounts, masked and read-only paths.
            make: makes a tree that is not there yet: of a directory, of what; its descriptor.

        Raises:
            OSError: from ``make``.
        """
        places = {}
        split = parts(*whole)
        for top, part in split.items():
            made = self.made.setdefault(top, [])
            places[top] = next((number for number, (one, _) in enumerate(made) if one == part), len(made))
            if places[top] == len(made):
                made.append((part, make(top, part)))
        if all(sum(len(part[kind]) for part in split.values()) == len(whole[kind]) for kind in range(3)):
            self._known.append((whole, places))

    def fds(self) -> list[int]:
        """All descriptors."""
        return [fd for made in self.made.values() for _, fd in made]

    def choose(self, wanted: Part) -> tuple[dict[str, int], Part]:
        """Which of these a container can have, and what is left to be mounted."""
        for whole, places in self._known:  # by one look, where all of it is usual
            count = len(whole[0])
            more = wanted[0][count:]
            if (wanted[0][:count], *wanted[1:]) == whole and not any(_top(entry["destination"]) for entry in more):
                return places, (more, [], [])
        ready = {}
        for top, part in parts(*wanted).items():
            for number, (one, _) in enumerate(self.made.get(top, ())):
                if one == part:
                    ready[top] = number
        return ready, (
            [entry for entry in wanted[0] if _top(entry["destination"]) not in ready],
            [path for path in wanted[1] if _top(path) not in ready],
            [path for path in wanted[2] if _top(path) not in ready],
        )


def wishes(mounts: list[dict[str, Any]], linux: dict[str, Any]) -> Part:
    """Mounts, masked and read-only paths of a specification."""
    return mounts, linux.get("maskedPaths") or [], linux.get("readonlyPaths") or []


def parts(mounts: list[dict[str, Any]], masked: list[str], fixed: list[str]) -> dict[str, Part]:
    """What a specification wants below each of :data:`TOPS`, as far as that can be made ahead: the directory itself is
    mounted on, nothing there comes from elsewhere, and it is mounted before anything at other places, which may lead
    there by a link.

    Arguments:
        mounts, masked, fixed: mounts, masked and read-only paths.
    """
    found: dict[str, Part] = {}
    unfit = set()
    first = True
    for entry in mounts:
        top = _top(entry["destination"])
        first = first and bool(top)
        if not first or entry["type"] == "bind" or (top not in found and _plain(entry["destination"]) != [top]):
            unfit.add(top)
        found.setdefault(top, ([], [], []))[0].append(entry)
    for path in masked:
        if (top := _top(path)) in found:
            found[top][1].append(path)
    for path in fixed:
        if (top := _top(path)) in found:
            found[top][2].append(path)
    for _, *paths in found.values():
        for listed in paths:
            listed.sort()  # their order makes no difference
    return {top: part for top, part in found.items() if top and top not in unfit}


def _more_files(root: int, mounts: list[dict[str, Any]]) -> None:
    """Let as many files be in file systems in memory as the kernel gives those that it mounts now (tmpfs(5), nr_inodes:
    half of all pages): memory was added since."""
    for entry in mounts:
        wanted = entry.get("options") or []
        flags, data = options(wanted)
        if entry["type"] == "tmpfs" and "nr_inodes=" not in data and not flags & MS_RDONLY:
            fd = open_in_root(root, entry["destination"], os.O_PATH)
            number = os.sysconf("SC_PHYS_PAGES") // 2
            flags &= ~(PROPAGATION | MS_REC)
            mount("", f"/proc/self/fd/{fd}", "", MS_REMOUNT | flags, f"nr_inodes={number}")
            os.close(fd)


def _plain(path: str) -> list[str]:
    return [word for word in path.split("/") if word]


def _top(path: str) -> str:
    """Which of :data:`TOPS` a path leads to, by its words alone; empty for none."""
    words = _plain(path)
    return words[0] if words and words[0] in TOPS and not {".", ".."} & set(words) else ""


def _fill(root: int, part: Part, sealed: list[tuple[int, int]], *, devices: bool) -> None:
    """Mount what is wanted, and make read-only what is to be, ``sealed`` with it."""
    mounts, masked, fixed = part
    for entry in mounts:
        _mount(root, entry, sealed)
    if devices:
        _devices(root)
    for path in masked:
        _mask(root, path, sealed)
    for path in fixed:
        fd = _look(root, path)
        if fd is not None:
            name = f"/proc/self/fd/{fd}"
            mount(name, name, "", MS_BIND | MS_REC)
            os.close(fd)
            fd = open_in_root(root, path, os.O_PATH)
            mount("", f"/proc/self/fd/{fd}", "", MS_REC | MS_PRIVATE)
            sealed.append((fd, MS_RDONLY))
    while sealed:
        fd, flags = sealed.pop()
        mount("", f"/proc/self/fd/{fd}", "", MS_REMOUNT | MS_BIND | flags)
        os.close(fd)


def _look(root: int, path: str) -> int | None:
    try:
        return open_in_root(root, path, os.O_PATH)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None


def _make(root: int, path: str, directory: bool) -> int:
    """A descriptor of a mount point, which is made where it is missing."""
    fd = _look(root, path)
    if fd is not None:
        return fd
    parts = [part for part in path.split("/") if part]
    for count in range(1, len(parts) + 1):
        so_far = "/".join(parts[:count])
        if (fd := _look(root, so_far)) is not None:
            os.close(fd)
            continue
        parent = open_in_root(root, "/".join(parts[: count - 1]) or ".", os.O_PATH | os.O_DIRECTORY)
        try:
            if count < len(parts) or directory:
                os.mkdir(parts[count - 1], 0o1755 if directory else 0o755, dir_fd=parent)
            else:
                flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(parts[count - 1], flags, 0o700, dir_fd=parent))
        finally:
            os.close(parent)
    return open_in_root(root, path, os.O_PATH)


def _mount(root: int, entry: dict[str, Any], sealed: list[tuple[int, int]]) -> None:
    flags, data = options(entry.get("options") or [])
    kind, source = entry.get("type") or "", entry.get("source") or ""
    if kind == "bind" or flags & MS_BIND:
        _bind(root, source, entry["destination"], flags | MS_BIND, sealed)
        return
    fd = _make(root, entry["destination"], True)
    if kind in ("proc", "sysfs") and not stat.S_ISDIR(os.fstat(fd).st_mode):
        raise OSError(20, os.strerror(20), entry["destination"])
    plain = flags & ~(PROPAGATION | MS_RDONLY | MS_REC)
    target = f"/proc/self/fd/{fd}"
    kind = "cgroup2" if kind == "cgroup" else kind
    mount(kind if kind == "cgroup2" else source or kind, target, kind, plain, data)
    os.close(fd)
    fd = open_in_root(root, entry["destination"], os.O_PATH)
    if flags & PROPAGATION:
        mount("", f"/proc/self/fd/{fd}", "", flags & (PROPAGATION | MS_REC))
    if flags & MS_RDONLY:
        sealed.append((fd, plain | MS_RDONLY))
    else:
        os.close(fd)


def _bind(root: int, source: str, destination: str, flags: int, sealed: list[tuple[int, int]]) -> None:
    """Show a file or directory at another place too.

    By a copy of its mount that gets what is asked for before it is at its place: a path through ``/proc/self/fd`` is
    the dearest part of a mount.
    """
    plain = flags & ~(PROPAGATION | MS_RDONLY | MS_REC | MS_BIND)
    try:
        fd = open_tree(AT_FDCWD, source, bool(flags & MS_REC))
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), source) from None
    target = _make(root, destination, stat.S_ISDIR(os.fstat(fd).st_mode))
    try:
        if flags & PROPAGATION:
            set_attributes(fd, propagation=flags & PROPAGATION, below=bool(flags & MS_REC))
        if not flags & MS_RDONLY:
            wanted, gone = _attributes(plain)
            set_attributes(fd, wanted=wanted, gone=gone)
        move_mount(fd, target)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), destination) from None
    os.close(target)
    if flags & MS_RDONLY:
        sealed.append((fd, plain | MS_RDONLY))
    else:
        os.close(fd)


def _attributes(flags: int) -> tuple[int, int]:
    """What mount_setattr(2) is to set and to take away for a mount to have these flags of mount(2) as by a remount."""
    wanted = flags & _SAME
    gone = (_SAME | MS_RDONLY) & ~wanted
    if flags & (MS_NOATIME | MS_NODIRATIME | MS_RELATIME | MS_STRICTATIME):  # else it stays as it is
        gone |= MOUNT_ATTR__ATIME | MOUNT_ATTR_NODIRATIME
        wanted |= MOUNT_ATTR_NOATIME if flags & MS_NOATIME else MOUNT_ATTR_STRICTATIME if flags & MS_STRICTATIME else 0
        wanted |= MOUNT_ATTR_NODIRATIME if flags & MS_NODIRATIME else 0
    return wanted, gone


def open_tree(directory: int, path: str, below: bool) -> int:
    """A copy of a mount that is in no mount namespace (open_tree(2)).

    Arguments:
        below: with all that is mounted below it.

    Raises:
        OSError: it was refused.
    """
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if below else 0)
    return syscall("open_tree", directory, path.encode() + b"\0", flags)


def move_mount(fd: int, target: int) -> None:
    """Mount such a copy on what a descriptor is of (move_mount(2)). Raises OSError."""
    syscall("move_mount", fd, b"\0", target, b"\0", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)


def set_attributes(fd: int, *, wanted: int = 0, gone: int = 0, propagation: int = 0, below: bool = False) -> None:
    """Change what a mount allows (mount_setattr(2)).

    Arguments:
        wanted, gone: attributes that are set, and taken away before.
        propagation: one of the four flags of mount(2), or 0: it stays as it is.
        below: with all that is mounted below it.

    Raises:
        OSError: it was refused.
    """
    how = struct.pack("=QQQQ", wanted, gone, propagation, 0)  # struct mount_attr
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if below else 0)
    syscall("mount_setattr", fd, b"\0", flags, how, len(how))


def _devices(root: int) -> None:
    """The devices and links that every container has, in its /dev, which is a file system of its own."""
    dev = open_in_root(root, "dev", os.O_DIRECTORY)
    for name, major, minor in NODES:
        os.mknod(name, 0o666 | stat.S_IFCHR, os.makedev(major, minor), dir_fd=dev)
        os.chmod(name, 0o666, dir_fd=dev)
    for target, name in LINKS:
        os.symlink(target, name, dir_fd=dev)
    os.close(dev)


def _mask(root: int, path: str, sealed: list[tuple[int, int]]) -> None:
    fd = _look(root, path)
    if fd is None:
        return
    target = f"/proc/self/fd/{fd}"
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        mount("tmpfs", target, "tmpfs", 0, "size=0k")
    else:
        mount("/dev/null", target, "", MS_BIND)
    os.close(fd)
    sealed.append((open_in_root(root, path, os.O_PATH), MS_RDONLY))

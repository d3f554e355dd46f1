"""What a blank does to become a container's first process (see :mod:`casemate.agent.blank`).

This is the runtime's part of a start, crun(1)'s, in its order and with its results: mounts, masked paths, the change of
root, filter, capabilities, user, the program. It runs in the process itself, which is the first of its process, ipc,
uts and control group namespaces already. Everything here may meet what the image's maker has put there: names in the
root file system are looked up as if that were the root (openat2(2), RESOLVE_IN_ROOT), and mounts go to descriptors.
"""

from __future__ import annotations

import _ctypes
import _signal  # type: ignore[import-not-found]  # signal imports enum
import _socket
import errno
import fcntl
import marshal
import os
import resource
import stat
import struct

from casemate.agent.redirect import bytes_at
from casemate.agent.system import (
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    mount,
    open_in_root,
    prctl,
    read_text,
    syscall,
    unmount,
    words,
    write_text,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC = 1, 32, 4096, 16384
MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE = 1 << 18, 1 << 19, 1 << 20, 1 << 17
PROPAGATION = MS_PRIVATE | MS_SLAVE | MS_SHARED | MS_UNBINDABLE
OPTIONS = {
    "ro": (MS_RDONLY, False), "rw": (MS_RDONLY, True), "nosuid": (MS_NOSUID, False), "suid": (MS_NOSUID, True),
    "nodev": (MS_NODEV, False), "dev": (MS_NODEV, True), "noexec": (MS_NOEXEC, False), "exec": (MS_NOEXEC, True),
    "sync": (16, False), "async": (16, True), "dirsync": (128, False), "noatime": (1024, False), "atime": (1024, True),
    "nodiratime": (2048, False), "diratime": (2048, True), "relatime": (1 << 21, False), "norelatime": (1 << 21, True),
    "strictatime": (1 << 24, False), "nostrictatime": (1 << 24, True), "bind": (MS_BIND, False),
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
CAPABILITIES = words(
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE"
    " NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN"
    " SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE"
    " MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
"""capabilities(7), by their numbers."""
LIMITS = words(
    "CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO RTTIME"
)
"""getrlimit(2), by their numbers."""

LAST_CAPABILITY = int(read_text("/proc/sys/kernel/cap_last_cap").strip() or 40)
"""The last one that this kernel knows."""

CLONE_NEWNS = 0x20000
PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 4, 8, 24, 38, 47
PR_CAP_AMBIENT_RAISE, PR_CAP_AMBIENT_CLEAR_ALL = 2, 4
KEYCTL_JOIN_SESSION_KEYRING = 1
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW = 1, 4
CAPABILITY_VERSION_3 = 0x20080522
TIOCSCTTY, TIOCSPTLCK, TIOCGPTPEER = 0x540E, 0x40045431, 0x5441
MAX_MESSAGE = 4 << 20
MSG_CMSG_CLOEXEC = 0x40000000
READY, FAILED, GO = b"+", b"-", b"!"
SPEC, LINUX = ("process", "root", "hostname", "mounts"), ("maskedPaths", "readonlyPaths")
"""What is used here of a specification, and of its part for Linux."""


def become(channel: _socket.socket) -> NoReturn:
    """Wait for the order, and carry it out; there is no way back.

    Arguments:
        channel: to the agent, from which comes one message, and when the container is created only, :data:`GO`.
    """
    try:
        prctl(PR_SET_DUMPABLE, 0)
        order, fds = receive(channel)
        try:
            path, command, environment, late = _prepare(order, fds, channel)
        except Refused as error:
            _fail(channel, error.args[0])
        except OSError as error:
            _fail(channel, f"{error.filename or 'the container'}: {error.strerror}")
        # Not by send(2) and recv(2), which a filter may forbid that is in force by now.
        os.write(channel.fileno(), READY)
        if order["wait"] and os.read(channel.fileno(), 1) != GO:
            os._exit(1)
        if late is not None:
            _seccomp(late)
        try:
            os.execve(path, command, environment)
        except OSError as error:
            # The container has been told of as running: who looks at what it wrote finds why it ended.
            os.write(2, f"exec container process `{path}`: {error.strerror}\n".encode())
            os._exit(127 if error.errno == errno.ENOENT else 126)
    except BaseException:
        os._exit(1)


class Refused(Exception):
    """Why the container cannot be made, in the runtime's words."""


def _fail(channel: _socket.socket, message: str) -> NoReturn:
    os.write(channel.fileno(), FAILED + message.encode("utf-8", "replace")[:2000])
    os._exit(1)


def send(channel: _socket.socket, order: dict[str, Any], fds: list[int]) -> None:
    """The agent's side: one order with its descriptors. Raises OSError."""
    data = marshal.dumps(order)
    head = struct.pack("=I", len(data))
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))]
    channel.sendmsg([head], rights)
    channel.sendall(data)


def receive(channel: _socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What :func:`send` has sent. Raises OSError, EOFError."""
    head, ancillary, _, _ = channel.recvmsg(4, _socket.CMSG_SPACE(4 * 8), MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            fds += struct.unpack(f"={len(data) // 4}i", data[: len(data) // 4 * 4])
    if len(head) != 4:
        raise EOFError
    size = struct.unpack("=I", head)[0]
    parts = bytearray()
    while len(parts) < size:
        part = channel.recv(size - len(parts))
        if not part:
            raise EOFError
        parts += part
    order: dict[str, Any] = marshal.loads(bytes(parts))
    return order, fds


def _prepare(
    order: dict[str, Any], fds: list[int], channel: _socket.socket
) -> tuple[str, list[str], dict[str, str], bytes | None]:
    """Everything up to the program; what to execute, and the filter that is still to be put in force."""
    spec = order["spec"]
    process, linux = spec["process"], spec["linux"]
    terminal = process.get("terminal") is True
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    adjusted = process.get("oomScoreAdj")
    if adjusted is not None:
        write_text("/proc/self/oom_score_adj", str(adjusted))
    os.setgroups([])
    try:
        syscall("keyctl", KEYCTL_JOIN_SESSION_KEYRING, order["id"].encode() + b"\0")
    except OSError as error:
        if error.errno != errno.ENOSYS:  # a kernel without keys
            raise
    syscall("unshare", CLONE_NEWNS)
    mount("", "/", "", MS_REC | MS_PRIVATE)
    _files(spec, linux, order["root"])
    user = process["user"]
    uid, gid = user["uid"], user["gid"]
    _streams(uid, gid)
    if terminal:
        os.setsid()
        _terminal(channel, process.get("consoleSize"), uid)
    environment = dict(entry.split("=", 1) for entry in process["env"] if "=" in entry)
    try:
        os.chdir(process["cwd"])
    except FileNotFoundError:  # it is made, as by runc and crun
        os.umask(0o022)
        os.makedirs(process["cwd"], 0o755)
        os.chdir(process["cwd"])
    path = _find(process["args"][0], environment.get("PATH"), order["place"])
    if not terminal:
        os.setsid()
    if spec.get("hostname"):
        _socket.sethostname(spec["hostname"])
    mask = user.get("umask")
    os.umask(0o022 if mask is None else mask)
    # Now, for a copy of the agent is larger than some programs may be.
    for limit in process.get("rlimits") or ():
        number = LIMITS.index(limit["type"].removeprefix("RLIMIT_"))
        resource.setrlimit(number, (_bound(limit["soft"]), _bound(limit["hard"])))
    code: bytes | None = order["seccomp"]
    later = process.get("noNewPrivileges") is True
    if code is not None and not later:
        _seccomp(code)
        code = None
    _credentials(process.get("capabilities"), uid, gid, user.get("additionalGids") or [])
    if later:
        prctl(PR_SET_NO_NEW_PRIVS, 1)
    for number in _signal.valid_signals():
        if number not in (_signal.SIGKILL, _signal.SIGSTOP):
            _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    return path, process["args"], environment, code


def _bound(value: int) -> int:
    return resource.RLIM_INFINITY if value >= (1 << 64) - 1 else value


# ---- files


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


def _files(spec: dict[str, Any], linux: dict[str, Any], path: str) -> None:
    """Mount everything below the root file system, and make it the root."""
    mount(path, path, "", MS_BIND | MS_REC)
    mount("", path, "", MS_REC | MS_PRIVATE)
    sealed: list[tuple[int, int]] = []
    if spec["root"].get("readonly") is True:
        sealed.append((os.open(path, os.O_PATH | os.O_CLOEXEC), MS_RDONLY))
    root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for entry in spec["mounts"]:
        _mount(root, entry, sealed)
    _devices(root)
    for masked in linux.get("maskedPaths") or ():
        _mask(root, masked, sealed)
    for fixed in linux.get("readonlyPaths") or ():
        fd = _look(root, fixed)
        if fd is not None:
            name = f"/proc/self/fd/{fd}"
            mount(name, name, "", MS_BIND | MS_REC)
            os.close(fd)
            fd = open_in_root(root, fixed, os.O_PATH)
            mount("", f"/proc/self/fd/{fd}", "", MS_REC | MS_PRIVATE)
            sealed.append((fd, MS_RDONLY))
    while sealed:
        fd, flags = sealed.pop()
        mount("", f"/proc/self/fd/{fd}", "", MS_REMOUNT | MS_BIND | flags)
        os.close(fd)
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
    if kind == "bind":
        flags |= MS_BIND
    bind = bool(flags & MS_BIND)
    directory = not bind or stat.S_ISDIR(os.stat(source).st_mode)
    fd = _make(root, entry["destination"], directory)
    if kind in ("proc", "sysfs") and not stat.S_ISDIR(os.fstat(fd).st_mode):
        raise OSError(20, os.strerror(20), entry["destination"])
    plain = flags & ~(PROPAGATION | MS_RDONLY) & (~0 if bind else ~MS_REC)
    target = f"/proc/self/fd/{fd}"
    if bind:
        mount(source, target, "", (MS_BIND | plain & MS_REC))
    else:
        kind = "cgroup2" if kind == "cgroup" else kind
        mount(kind if kind == "cgroup2" else source or kind, target, kind, plain, data)
    os.close(fd)
    fd = open_in_root(root, entry["destination"], os.O_PATH)
    target = f"/proc/self/fd/{fd}"
    if flags & PROPAGATION:
        mount("", target, "", flags & (PROPAGATION | MS_REC))
    if flags & MS_RDONLY:
        sealed.append((fd, plain & ~(MS_BIND | MS_REC) | MS_RDONLY))
        return
    if bind:
        mount("", target, "", MS_REMOUNT | MS_BIND | plain & ~MS_REC)
    os.close(fd)


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


# ---- process


def _streams(uid: int, gid: int) -> None:
    """Streams that lead nowhere lead to the container's own nowhere; the others belong to its user."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    device = os.fstat(null).st_rdev
    for number in range(3):
        state = os.fstat(number)
        if stat.S_ISCHR(state.st_mode) and state.st_rdev == device:
            os.dup2(null, number)
    os.close(null)
    for number in range(3):
        try:
            os.fchown(number, uid, gid)
        except OSError:  # it is somebody's who shows it to the container, and stays his
            continue


def _terminal(channel: _socket.socket, size: dict[str, int] | None, uid: int) -> None:
    """A terminal of the container's own; the agent gets the controlling end."""
    ours = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(ours, TIOCSPTLCK, struct.pack("=i", 0))
    theirs = fcntl.ioctl(ours, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    if size:
        fcntl.ioctl(theirs, 0x5414, struct.pack("=HHHH", size["height"], size["width"], 0, 0))
    os.fchown(theirs, uid, -1)
    name = os.readlink(f"/proc/self/fd/{theirs}")
    console = os.open("/dev/console", os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o620)
    os.close(console)
    mount(name, "/dev/console", "", MS_BIND)
    mount("", "/dev/console", "", MS_REMOUNT | MS_BIND)
    for number in range(3):
        os.dup2(theirs, number)
    os.close(theirs)
    fcntl.ioctl(0, TIOCSCTTY, 0)
    channel.sendmsg([b"t"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("=i", ours))])
    os.close(ours)


def _find(command: str, path: str | None, known: str | None) -> str:
    """The program of a command, in the working directory or the PATH of the container; looked for in one place first,
    where it is known that all before that have none. Raises Refused."""
    if known is not None and _executable(known):
        return known
    if "/" in command:
        places = [command]
    else:
        places = [os.path.join(directory or ".", command) for directory in (path or "").split(":")]
    reason = 0
    for place in places:
        try:
            state = os.stat(place)
        except OSError:
            continue
        if not stat.S_ISREG(state.st_mode):
            reason = errno.EPERM
        elif os.access(place, os.X_OK):
            return place
        else:
            reason = errno.EACCES
    if reason:
        raise Refused(f"open executable: {os.strerror(reason)}")
    raise Refused(f"executable file `{command}` not found in $PATH: No such file or directory")


def _executable(place: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(place).st_mode) and os.access(place, os.X_OK)
    except OSError:
        return False


def _seccomp(code: bytes) -> None:
    """Put a filter in force (seccomp(2))."""
    there = bytes_at(code)
    program = struct.pack("=H6xQ", len(code) // 8, _ctypes.addressof(there))  # struct sock_fprog
    syscall("seccomp", SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, program)


def _credentials(sets: dict[str, list[str]] | None, uid: int, gid: int, groups: list[int]) -> None:
    masks = {
        name: sum(1 << CAPABILITIES.index(word.removeprefix("CAP_")) for word in set(listed or ()))
        for name, listed in (sets or {}).items()
    }
    bounding = masks.get("bounding", 0)
    for number in range(LAST_CAPABILITY + 1):
        if not bounding >> number & 1:
            prctl(PR_CAPBSET_DROP, number)
    prctl(PR_SET_KEEPCAPS, 1)
    if groups:
        os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    chosen = [masks.get(name, 0) for name in ("effective", "permitted", "inheritable")]
    low, high = [mask & 0xFFFFFFFF for mask in chosen], [mask >> 32 for mask in chosen]
    syscall("capset", struct.pack("=Ii", CAPABILITY_VERSION_3, 0), struct.pack("=6I", *low, *high))
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(LAST_CAPABILITY + 1):
        if masks.get("ambient", 0) >> number & 1:
            # Only what is inheritable can be ambient. Builders of images ask for more, and crun leaves that out, too.
            try:  # noqa: SIM105 - contextlib is not imported here
                prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)
            except OSError:
                pass

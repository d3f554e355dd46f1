"""What a blank does to become a container's first process (see :mod:`casemate.agent.blank`).

This is the runtime's part of a start, crun(1)'s, in its order and with its results: the root
(:mod:`casemate.agent.blank_mounts`), filter, capabilities, user, the program. It runs in the process itself, which is
the first of its process, ipc, uts and control group namespaces already.
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

from casemate.agent.blank_mounts import CLONE_NEWNS, MS_BIND, MS_PRIVATE, MS_REC, MS_REMOUNT, build, make_root, wishes
from casemate.agent.redirect import bytes_at
from casemate.agent.system import log, mount, prctl, read_text, syscall, words, write_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from casemate.agent.blank_mounts import Trees

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


def become(channel: _socket.socket, usual: list[dict[str, Any]]) -> NoReturn:
    """Wait for the order, and carry it out; there is no way back.

    Arguments:
        channel: to the agent, from which comes one message, and when the container is created only, :data:`GO`.
        usual: specifications as most containers have them, or parts of such: what can be mounted ahead, is.
    """
    try:
        prctl(PR_SET_DUMPABLE, 0)
        for number in _signal.valid_signals():
            if number not in (_signal.SIGKILL, _signal.SIGSTOP):
                _signal.signal(number, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        trees = _ahead(usual)
        # The agent holds them, too: those that are of no use would else be taken apart when the program begins.
        fds = [] if trees is None else trees.fds()
        channel.sendmsg([READY], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))])
        order, fds = receive(channel)
        try:
            path, command, environment, late = _prepare(order, fds, channel, trees)
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


def _ahead(usual: list[dict[str, Any]]) -> Trees | None:
    try:
        return build([wishes(spec.get("mounts") or [], spec.get("linux") or {}) for spec in usual])
    except OSError as error:
        log(f"nothing is mounted ahead: {error.filename}: {error.strerror}")
        return None


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
    order: dict[str, Any], fds: list[int], channel: _socket.socket, trees: Trees | None
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
    make_root(spec, linux, order["root"], trees)
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
    return path, process["args"], environment, code


def _bound(value: int) -> int:
    return resource.RLIM_INFINITY if value >= (1 << 64) - 1 else value


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

"""What a stand-in's forked child does before it becomes :mod:`casemate.standin.main`.

It is the first process of the container's namespaces on the host. It works as root with the runtime's code, opens
nothing by a path inside the container's root but with openat2(2) (:mod:`casemate.host.mounts`), and starts no program
but the createContainer hooks.

The program it becomes needs the host's Python, while the root of the mount namespace is the container's by then. So it
keeps the host's root open, goes there for execve(2), and the program goes back with chroot(2). Nothing of the host's
stays mounted in the namespace.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys

from casemate.errors import CasemateError, HostError
from casemate.host import syscalls
from casemate.standin import main, trees
from casemate.standin.launch import NAMESPACES, WORDS_LIMIT, Blueprint, hear, tell

KEPT_CAPABILITIES = (6, 7, 18)
"""CAP_SETGID, CAP_SETUID and CAP_SYS_CHROOT (capabilities(7)): what the program needs before it has given them up."""
LAST_CAPABILITY = 63
PR_CAPBSET_DROP = 24
TIOCSCTTY = 0x540E


def stand(blueprint: Blueprint, sock: socket.socket, told: socket.socket) -> None:
    """Become a container's stand-in: does not return."""
    sock, told = _out_of_the_way(sock), _out_of_the_way(told)
    try:
        _begin(blueprint)
        host_root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        _make_namespaces(blueprint)
        mounts = trees.Trees(blueprint)
        mounts.prepare()
        tell(told, {})
        hear(told)
        if blueprint.hooks is not None:
            from casemate.pod import hooks

            spec, state = blueprint.hooks
            os.chdir(blueprint.rootfs)
            hooks.run(spec, "createContainer", {**state, "pid": os.getpid()})
        root, volumes = mounts.finish()
        fds = (root,) if volumes is None else (root, volumes)
        tell(told, {"fds": ["root", "volumes"][: len(fds)]}, fds)
        for descriptor in fds:
            os.close(descriptor)
        _become(blueprint, host_root, sock)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is who tells it
        _fail(told, error)


def join(blueprint: Blueprint, handles: dict[str, int], sock: socket.socket, told: socket.socket) -> None:
    """Become the stand-in of an exec: does not return.

    Arguments:
        handles: descriptors of the namespaces to join; that of the pid namespace has been joined by the fork.
    """
    sock, told = _out_of_the_way(sock), _out_of_the_way(told)
    try:
        _begin(blueprint)
        host_root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for kind in ("network", "ipc", "uts", "mount"):
            syscalls.setns(handles[kind], NAMESPACES[kind][1])
        _become(blueprint, host_root, sock)
    except BaseException as error:  # noqa: BLE001 - as above
        _fail(told, error)


def _fail(told: socket.socket, error: BaseException) -> None:
    if isinstance(error, OSError) and error.strerror:
        error = HostError(error.strerror if error.filename is None else f"{error.filename}: {error.strerror}")
    if not isinstance(error, CasemateError):
        error = HostError(f"{type(error).__name__}: {error}")
    try:
        tell(told, {"code": error.code, "message": error.message, "hint": error.hint})
    finally:
        os._exit(255)


def _out_of_the_way(sock: socket.socket) -> socket.socket:
    """The socket under a number that is not one of those that the program gets."""
    return socket.socket(fileno=_above(sock.detach()))


def _begin(blueprint: Blueprint) -> None:
    os.setsid()
    # Python's handlers are the runtime's, not ours; what the program has no handler for yet must not end it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(0o022)
    if blueprint.terminal is not None:
        import fcntl

        fcntl.ioctl(blueprint.terminal, TIOCSCTTY, 0)
    if blueprint.oom_score_adj is not None:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(blueprint.oom_score_adj))


def _make_namespaces(blueprint: Blueprint) -> None:
    new = syscalls.CLONE_NEWNS
    joined: list[tuple[int, int]] = []
    for kind, path in blueprint.namespaces.items():
        if kind in ("pid", "mount"):
            continue
        flag = NAMESPACES[kind][1]
        if path is None:
            new |= flag
        else:
            try:
                joined.append((os.open(path, os.O_RDONLY | os.O_CLOEXEC), flag))
            except OSError as error:
                raise HostError(f"lstat {path}: {(error.strerror or '').lower()}") from None
    for handle, flag in joined:
        try:
            syscalls.setns(handle, flag)
        except OSError as error:
            raise HostError(f"cannot join a namespace of the container: {error.strerror}") from None
        os.close(handle)
    try:
        syscalls.unshare(new)
    except OSError as error:
        hint = "raise the limits in /proc/sys/user" if error.errno == 28 else "run as root"
        raise HostError(f"cannot make the container's namespaces: {error.strerror}", hint) from None
    if new & syscalls.CLONE_NEWNET:
        _loopback_up()
    if blueprint.hostname:
        socket.sethostname(blueprint.hostname)
    if blueprint.domainname:
        syscalls.setdomainname(blueprint.domainname)


def _loopback_up() -> None:
    """As runc does; engines and hooks find the loopback of a new namespace in use."""
    import fcntl
    import struct

    SIOCSIFFLAGS, IFF_UP = 0x8914, 1  # noqa: N806 - the kernel's names, netdevice(7)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))


def _become(blueprint: Blueprint, host_root: int, sock: socket.socket) -> None:
    """Execute the program."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fchdir(host_root)
    os.chroot(".")
    os.chdir("/")
    standard = os.open(os.devnull, os.O_RDWR) if blueprint.terminal is None else os.dup(blueprint.terminal)
    root, standard = _above(root), _above(standard)
    for number, descriptor in ((main.SOCKET, sock.fileno()), (main.ROOT, root), *((n, standard) for n in range(3))):
        os.dup2(descriptor, number, inheritable=True)
    # What is close-on-exec goes by itself; this is for what the engine has left open by mistake.
    _leave_nothing_above(main.ROOT)
    for capability in range(LAST_CAPABILITY + 1):
        if capability not in KEPT_CAPABILITIES:
            try:
                syscalls.prctl(PR_CAPBSET_DROP, capability)
            except OSError:
                break  # the kernel has no more of them
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    python = getattr(sys, "_base_executable", None) or sys.executable
    program = [python, "-I", "-S", main.__file__]
    identity = [str(blueprint.uid), str(blueprint.gid), str(int(blueprint.terminal is not None))]
    os.execve(python, [*program, *identity, *_shortened(blueprint.words)], {})


def _above(descriptor: int) -> int:
    import fcntl

    again = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64)
    os.close(descriptor)
    return again


def _leave_nothing_above(last: int) -> None:
    """Have execve(2) close every descriptor above ``last``."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > last:
            with contextlib.suppress(OSError):  # the one that listed them is closed
                os.set_inheritable(int(name), False)


def _shortened(words: tuple[str, ...]) -> list[str]:
    """As many words as fit into what ``ps`` is to show."""
    kept: list[str] = []
    room = WORDS_LIMIT
    for word in words:
        room -= len(os.fsencode(word)) + 1
        if room < 0:
            break
        kept.append(word)
    return kept or ["(long)"][: len(words)]



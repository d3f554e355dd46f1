"""The nursery: where a keeper comes from that need not be a new Python, because another one runs already.

A new Python that imports what a keeper needs takes a tenth of a second and ten megabytes, the same for every one. So
the first keeper leaves a copy of itself behind, made by fork(2) before it has imported much. Who starts another one
asks that copy to fork. The first time it imports what keepers need; what they then read and do not change they have in
memory once.

The nursery serves ``<run>/nursery/<circumstances>``. It ends with the last keeper that came from it, or from which it
came: all of them hold the writing end of a pipe. Who has machines to be copied (:mod:`casemate.twins`) holds it, too,
for as long as those wait for the next start. So nothing is left when no container runs, and nobody has to start,
stop or configure it. Whatever is wrong with it (it was killed, the program was changed meanwhile, the starter's
circumstances are others), the starter executes a keeper as ever.

A keeper takes over much from who executes it: namespaces, capabilities, limits. One that is forked has them of the
nursery instead, so the nursery serves only those for whom all of that is the same (:func:`circumstances`). Control
groups are another matter: engines have one for each container, which could not be removed while a nursery is in it. So
the nursery leaves its own for the topmost ones, and a keeper joins those of who has asked for it.

::

    starter to nursery     circumstances, control groups
    keeper to starter      born
    starter to keeper      soon (perhaps)
    starter to keeper      {"arguments", "environment"}, with the descriptors
    keeper to starter      ready
    starter to keeper      go

A starter may ask before it knows what for (:func:`reserve`): the keeper is born while it reads its command line, and
waits for its words until they come or the starter ends. The last step is there because a starter that has waited for
too long executes a keeper itself; the forked one, which may come to life after that, then finds nobody to tell it to
go, and ends.
"""

from __future__ import annotations

import _socket  # the rest of socket takes a starter longer than all of this
import contextlib
import os
import struct
import sys
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from pathlib import Path

ANSWER_SECONDS = 5.0
"""How long a starter waits for a keeper to be born and to be ready, and that for the word to go."""
MAX_REQUEST = 192 << 10
"""Bytes of a request; an environment that is larger (the kernel has buffers of 208 KiB) goes to a new Python."""
_BORN, _SOON, _READY, _GO = b"born", b"soon", b"ready", b"go"
_reserved: tuple[str, str, str, _socket.socket] | None = None
"""Of a keeper that was asked for ahead: where, for which circumstances, in which groups, and the connection to it."""
held = -1
"""This keeper's end of the pipe that keeps its nursery alive, or -1: whoever gets a copy keeps it alive, too."""
_STATUS = (
    "Umask", "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp",
    "Cpus_allowed", "Mems_allowed",
)  # fmt: skip
"""Lines of ``/proc/self/status`` (:manpage:`proc_pid_status(5)`) that a process passes on to what it executes."""


def circumstances(program: str) -> str:
    """What a process passes on to the programs that it executes, and what program that is, as one text."""
    words = [program, sys.executable, __file__, *(os.readlink(f"/proc/self/{name}") for name in ("root", "exe"))]
    words += [os.readlink(f"/proc/self/ns/{name}") for name in sorted(os.listdir("/proc/self/ns"))]
    for name in ("limits", "oom_score_adj", "attr/current", "personality"):
        try:
            with open(f"/proc/self/{name}") as file:
                words.append(file.read())
        except OSError as error:
            words.append(f"{name}: {error.errno}")
    with open("/proc/self/status") as file:
        words += [line for line in file if line.partition(":")[0] in _STATUS]
    words.append(f"{os.getpriority(os.PRIO_PROCESS, 0)} {os.sched_getscheduler(0)}")
    return "\n".join(words)


def _groups() -> str:
    """This process's control groups, in the kernel's words."""
    with open("/proc/self/cgroup") as file:
        return file.read()


def _join(groups: str) -> None:
    """Move this process into control groups. Raises OSError where it then is in others than these."""
    from casemate.host import cgroups

    now = _groups()
    if groups == now:
        return
    trees = cgroups.hierarchies(every=True)
    for line in set(groups.splitlines()) - set(now.splitlines()):
        _, controllers, path = line.split(":", 2)
        for tree in trees:
            if tree.unified != bool(controllers) and (tree.unified or tree.controllers & set(controllers.split(","))):
                with open(f"{tree.mount}{path}/cgroup.procs", "w") as file:
                    file.write("0")
    if _groups() != groups:
        raise OSError("the control groups are others than asked for")


def _topmost() -> str:
    """The control groups above all others."""
    return "".join(f"{line.rpartition(':')[0]}:/\n" for line in _groups().splitlines())


def _address(run: Path | str, around: str) -> str:
    """Where the nursery for such circumstances is. A digest that others hit too does no harm: the text is compared."""
    return f"{run}/nursery/{zlib.crc32(around.encode()):08x}"


def reserve(program: str, run: str) -> None:
    """Have a keeper forked that :func:`deliver` can have, while the caller finds out what for; nothing where there is
    no nursery. Where it is not used it ends with this process.

    Arguments:
        program: as for :func:`deliver`.
        run: the run directory.
    """
    global _reserved
    with contextlib.suppress(OSError, ValueError):
        around, groups = circumstances(program), _groups()
        place = _address(run, around)
        sock = _ask(place, around, groups)
        if sock.fileno() < 3:  # somebody has closed a standard descriptor: nothing of ours may take its place
            sock.close()
            return
        _reserved = place, around, groups, sock


def hurry() -> None:
    """The one that was reserved, if it was, will be wanted in about ten milliseconds. To be called once."""
    if _reserved is not None:
        with contextlib.suppress(OSError):  # it is gone, which deliver() finds out
            _reserved[3].send(_SOON)


def release() -> None:
    """The one that was reserved is of no use."""
    global _reserved
    if _reserved is not None:
        _reserved[3].close()
        _reserved = None


def _ask(place: str, around: str, groups: str) -> _socket.socket:
    """Ask for a keeper; the connection on which it will be there. Raises OSError."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(ANSWER_SECONDS)
        sock.connect(place)
        sock.send(f"{around}\0{groups}".encode())
    except BaseException:
        sock.close()
        raise
    return sock


def deliver(
    run: Path, program: str, arguments: Sequence[str], fds: Sequence[int], environment: dict[str, str]
) -> bool:
    """Have a keeper forked, or take the one that was.

    Arguments:
        run: the run directory.
        program: which one: ``casemate.keeper`` or ``casemate.pod``.
        arguments: its words.
        fds: copies of these are its own: for standard output and error, and two more.
        environment: its whole environment.

    Returns:
        whether it lives; else it never will, and one has to be executed.
    """
    global _reserved
    import json

    ahead, _reserved = _reserved, None
    sock = None if ahead is None else ahead[3]
    try:
        around, groups = circumstances(program), _groups()
        place = _address(run, around)
        if ahead is not None and ahead[:3] != (place, around, groups):
            ahead[3].close()
            sock = None
        if sock is None:
            sock = _ask(place, around, groups)
        if sock.recv(16) != _BORN:
            return False
        request = json.dumps({"arguments": list(arguments), "environment": environment}).encode()
        rights = struct.pack(f"={len(fds)}i", *fds)
        sock.sendmsg([request], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        if sock.recv(16) != _READY:
            return False
        sock.send(_GO)
        return True
    except (OSError, ValueError):
        return False
    finally:
        if sock is not None:
            sock.close()


class Birth:
    """What a keeper that was forked is to do: its words, its two descriptors."""

    def __init__(self, arguments: list[str], fds: tuple[int, int]) -> None:
        self.arguments = arguments
        self.fds = fds


def tend(program: str, run: Path, mine: Sequence[int]) -> Birth | None:
    """Leave a nursery behind, where there is none for such circumstances. To be called by a keeper before it does
    anything else: before it has a thread or a mount namespace, or has imported what the nursery, of which there may be
    no use, would then have in memory too.

    Arguments:
        program: which one it is, see :func:`deliver`.
        run: the run directory.
        mine: the keeper's own descriptors, which the nursery closes.

    Returns:
        None in the keeper that has called it, and what is to be done in each keeper that is forked later.
    """
    import fcntl

    global held
    try:
        around = circumstances(program)
        place = _address(run, around)
        os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
        lock = os.open(place + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of whoever has the descriptor: the nursery, then
        except BlockingIOError:
            os.close(lock)
            return None
        living, kept = os.pipe2(os.O_CLOEXEC)
        child = os.fork()
    except OSError as error:  # the keeper is as good without one
        print(f"no nursery: {error}", file=sys.stderr)
        return None
    if child:
        held = kept  # for as long as this process lives
        os.close(lock)
        os.close(living)
        return None
    try:
        for fd in (kept, *mine):
            os.close(fd)
        _quiet()
        _call_it(["nursery"])
        _join(_topmost())
        return _serve(program, place, around, living, lock)
    except BaseException:
        # With one line or with a hundred: nobody reads it, and those who ask find that nobody answers.
        os._exit(1)


def _quiet() -> None:
    """Let go what belongs to the keeper that this was: its log, its session."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _serve(program: str, place: str, around: str, living: int, lock: int) -> Birth:
    """The nursery's life: returns in keepers only."""
    import gc
    import select
    import socket

    program_files = _Program()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place)
    listener.bind(place)
    listener.listen(64)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(living, 0)  # its hang-up is told in any case
    warm = False
    while True:
        ready = dict(poll.poll())
        if living in ready or program_files.changed():
            os.unlink(place)
            os._exit(0)
        sock, _ = listener.accept()
        with sock:
            if not warm:
                # Not before somebody asks: where containers run one after the other, nobody does.
                _warm(program)
                program_files = _Program()
                gc.collect()
                gc.freeze()  # a collection in a keeper would write to every object's header
                warm = True
            if _birth(sock, around, living):
                listener.close()  # now: it may be long until it is told what for
                os.close(lock)
                os.close(living)
                return _be_told(sock)


def _warm(program: str) -> None:
    """Import what a keeper needs later on its way, so that all have it in common."""
    import subprocess  # noqa: F401

    if program == "casemate.pod":
        import casemate.pod.network
        import casemate.pod.service
        import casemate.sentry.pod
        import casemate.vm.pod
    else:
        import casemate.host.ports
        import casemate.keeper.service
        import casemate.sentry.sandbox
        import casemate.vm.sandbox
    import casemate.vm.hypervisor.qemu_twins
    import casemate.vm.template.making
    import casemate.vm.template.use  # noqa: F401
    from casemate import config
    from casemate.errors import CasemateError
    from casemate.host import syscalls
    from casemate.vm.template import store

    syscalls.prepare()
    store.blank_spec()
    with contextlib.suppress(CasemateError):
        config.load()  # each keeper reads it again; what that needs is there then


class _Program:
    """The files that the program in memory was read from, and how they were then.

    Their names are one text, not the modules': each look at those would write to their counts of references, all over
    the memory, and what the nursery writes to each keeper from then on has another copy of.
    """

    def __init__(self) -> None:
        names = [name for name in sys.modules if name.partition(".")[0] == "casemate"]
        self._paths = "\0".join(path for name in names if (path := getattr(sys.modules[name], "__file__", None)))
        self._known = self._look()

    def _look(self) -> str:
        found = []
        for path in self._paths.split("\0"):
            try:
                state = os.stat(path)
                found.append(f"{state.st_mtime_ns} {state.st_size}")
            except OSError:
                found.append("")
        return "\n".join(found)

    def changed(self) -> bool:
        """Whether a file is no longer what it was."""
        return self._look() != self._known


def _birth(sock: socket.socket, around: str, living: int) -> bool:
    """Serve a starter. Returns whether this is the keeper that was forked."""
    global held
    try:
        sock.settimeout(ANSWER_SECONDS)
        asked, _, groups = sock.recv(MAX_REQUEST).decode().partition("\0")
        if asked != around:
            return False
        between = os.fork()  # which ends at once, so that the keeper is nobody's child
        if between:
            os.waitpid(between, 0)
            return False
        try:
            if os.fork():
                os._exit(0)
        except OSError:
            os._exit(1)  # never a second nursery: the starter sees that nobody was born
    except (OSError, ValueError):
        return False
    # A pipe has as many ends as it is opened by; this one stays open for the keeper's life.
    held = os.open(f"/proc/self/fd/{living}", os.O_WRONLY | os.O_CLOEXEC)
    os.setsid()
    _join(groups)
    sock.send(_BORN)
    return True


def _be_told(sock: socket.socket) -> Birth:
    """In the keeper: learn what it is for, however long that takes. Does not return where it is of no use."""
    import json
    import socket

    from casemate.host import cgroups

    sock.settimeout(None)
    body, fds, flags, _ = socket.recv_fds(sock, MAX_REQUEST, 8)
    if body == _SOON:
        cgroups.move_nobody()  # it will be moved to the sandbox's, and then nobody is to wait for it
        body, fds, flags, _ = socket.recv_fds(sock, MAX_REQUEST, 8)
    for fd in fds:
        os.set_inheritable(fd, False)
    if not body or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(fds) != 4:
        os._exit(0)
    request = json.loads(body)
    os.dup2(fds[0], 1)
    os.dup2(fds[1], 2)
    for fd in fds[:2]:
        os.close(fd)
    arguments = [str(word) for word in request["arguments"]]
    os.environ.clear()
    os.environ.update(request["environment"])
    _call_it(arguments)
    sock.settimeout(ANSWER_SECONDS)
    sock.send(_READY)
    if sock.recv(16) != _GO:
        os._exit(0)
    return Birth(arguments, (fds[2], fds[3]))


def _call_it(arguments: Sequence[str]) -> None:
    """As :func:`show`, of this program with other arguments: by them a keeper is known."""
    show([*sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1], *arguments])


def show(words: Sequence[str]) -> None:
    """Show these words in ``/proc/self/cmdline`` in place of those that this process was started with.

    Raises:
        OSError: there is no room for them.
    """
    begin, end = _place()
    if not has_room(words):
        raise OSError("the words are longer than the first keeper's")
    memory = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(memory, _text(words).ljust(end - begin, b"\0"), begin)
    finally:
        os.close(memory)


def has_room(words: Sequence[str]) -> bool:
    """Whether these words can be shown."""
    begin, end = _place()
    return len(_text(words)) < end - begin


def _text(words: Sequence[str]) -> bytes:
    return b"\0".join(os.fsencode(word) for word in words)


def _place() -> tuple[int, int]:
    """Where the kernel has this process's words: arg_start and arg_end, numbers 48 and 49 of proc_pid_stat(5)."""
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[45]), int(fields[46])

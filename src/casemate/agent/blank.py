"""A blank: a process that waits, in namespaces and a control group of its own, to become a container's first process.

It is made before the guest is saved (:mod:`casemate.agent.late`), so every sandbox finds one. Becoming a container is
then what :mod:`casemate.agent.blank_init` does, in a copy of the agent: there is no program to be loaded, and where the
guest is emulated, most of the code has been translated already for the agent itself. The runtime, crun(1), costs twice
the time there.

There is one blank at a time, for the first container, and it does only what is written down here (:func:`fits`). For
any other container, and for each part of a specification that is not known here, there is the runtime. What has to be
done to a container later (exec, update) is always the runtime's: :meth:`Blank.hand_over_to` tells it of the container.
"""

from __future__ import annotations

import _socket
import gc
import os
import select
import struct
from time import monotonic

from casemate.agent import blank_init, filters, system
from casemate.agent.blank_init import CAPABILITIES, LIMITS, READY
from casemate.agent.blank_mounts import OPTIONS
from casemate.agent.cgroup import Cgroup
from casemate.agent.crun import explain_message
from casemate.agent.processes import Exit, Reaper
from casemate.protocol import threads, wire
from casemate.protocol.wire import SAME_PROFILE, RequestFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

NAME = ".blank"
"""How the name of its control group begins; no container can be called so."""
CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID = 0x02000000, 0x04000000, 0x08000000, 0x20000000
PATIENCE = 120.0
"""Seconds that it may take to become a container, far above what it needs."""
LEAST = 16 << 20
"""Bytes of memory that a container has to have: until it is the program the process is a copy of the agent."""
MAX_USUAL = 16
"""Kinds of containers for which something is mounted ahead."""
MAX_HELD = 3 * (MAX_USUAL + 1)
END_PATIENCE = 10.0
"""Seconds that the ends of a container's processes may take."""

_NAMESPACES = ["cgroup", "ipc", "mount", "pid", "uts"]
_SPEC = frozenset(("ociVersion", "process", "root", "hostname", "mounts", "linux"))
_PROCESS = frozenset(
    system.words("terminal consoleSize user args env cwd capabilities rlimits noNewPrivileges oomScoreAdj")
)
_USER = frozenset(("uid", "gid", "additionalGids", "umask"))
_LINUX = frozenset(
    system.words("namespaces resources maskedPaths readonlyPaths seccomp cgroupsPath personality devices sysctl")
)
_MOUNT = frozenset(("destination", "type", "source", "options"))
_DATA = {
    "tmpfs": ("mode=", "size=", "uid=", "gid=", "nr_inodes=", "nr_blocks="),
    "devpts": ("newinstance", "ptmxmode=", "mode=", "gid=", "uid="),
    "proc": (), "sysfs": (), "mqueue": (), "cgroup": (), "bind": (),
}  # fmt: skip
"""The file systems that are known here, and how options begin that are for them."""


class Blank:
    """The process, and what is known of it.

    Arguments:
        pid: in the guest.
        channel: to it.
        cgroup: it is in that.
        rules: on devices, that are in force for that group, and ``guard``: the program of these.
        profile: a profile of system calls whose filter is ready, and ``code``: that filter; None for none.
        held: descriptors that are held as long as there is the container.
    """

    def __init__(
        self, pid: int, channel: _socket.socket, cgroup: Cgroup, rules: list[dict[str, Any]], guard: int,
        profile: dict[str, Any] | None, code: bytes | None, held: list[int],
    ) -> None:  # fmt: skip
        self.pid = pid
        self.cgroup = cgroup
        self._channel = channel
        self._rules = rules
        self._guard = guard
        self._profile = profile
        self._code = code
        self._held = held
        self._used: bytes | None = None
        self._known = False
        self._lock = threads.Lock()
        self._end: Exit | None = None
        self._ended: Callable[[Exit], None] | None = None

    def ended(self, end: Exit) -> None:
        """The process has ended; on the reaper's thread."""
        with self._lock:
            self._end, callback = end, self._ended
        if callback is not None:
            callback(end)

    def watch(self, callback: Callable[[Exit], None]) -> None:
        """Have ``callback`` called once when it ends, or now when it has."""
        with self._lock:
            self._ended, end = callback, self._end
        if end is not None:
            callback(end)

    @property
    def alive(self) -> bool:
        """Whether it can still be used."""
        return self._end is None

    # ---- becoming a container

    def prepare(self, spec: dict[str, Any]) -> bool:
        """Put the bounds of a container in force, and have its filter ready.

        Returns:
            False where the runtime has to do it; nothing has been used then.

        Raises:
            OSError: a bound was refused.
        """
        linux = spec["linux"]
        asked = linux["resources"]
        try:
            profile = linux.get("seccomp")
            self._used = None if not profile else self._code if profile == self._profile else filters.seccomp(profile)
            rules = asked.get("devices") or []
            if rules != self._rules:
                code = filters.devices(rules)
                guard, self._guard = self._guard, -1
                filters.release(self.cgroup.path, guard)
                self._guard = filters.guard(self.cgroup.path, code)
                self._rules = rules
        except (filters.Unfit, OSError) as error:
            system.log(f"the blank is not used: {error}")
            return False
        for name, key in (("memory", "memory.max"), ("pids", "pids.max")):
            limit = (asked.get(name) or {}).get("limit")
            if limit:
                self.cgroup.write(key, str(limit) if limit > 0 else "max")
        return True

    def begin(
        self, identifier: str, spec: dict[str, Any], stdio: list[int], wait: bool, terminal: Callable[[int], None],
        place: str | None = None,
    ) -> None:  # fmt: skip
        """Have it become the container.

        Arguments:
            stdio: its standard streams; where it has a terminal, nobody's.
            wait: the program is started by :meth:`start`, else at once.
            terminal: gets the controlling end of its terminal.
            place: where the command is, if that is known.

        Raises:
            RequestFailed: it did not; it is gone then. OSError: it is gone.
        """
        linux = {key: spec["linux"].get(key) for key in blank_init.LINUX}
        wanted = {**{key: spec[key] for key in blank_init.SPEC if key in spec}, "linux": linux}
        order = {
            "id": identifier, "spec": wanted, "root": spec["root"]["path"], "seccomp": self._used, "wait": wait,
            "place": place,
        }  # fmt: skip
        try:
            blank_init.send(self._channel, order, stdio)
            while True:
                said = self._hear(terminal)
                if said == READY:
                    break
                if said:
                    raise explain_message(said[1:].decode("utf-8", "replace"))
        except BaseException:
            self.discard()
            raise
        if not wait:
            self._channel.close()

    def _hear(self, terminal: Callable[[int], None]) -> bytes:
        """The next word: empty where it was a terminal."""
        poller = select.poll()
        poller.register(self._channel.fileno(), select.POLLIN)
        if not poller.poll(PATIENCE * 1000):
            raise RequestFailed("failed", f"the container took more than {PATIENCE:g} s to be made")
        space = _socket.CMSG_SPACE(4)
        data, ancillary, _, _ = self._channel.recvmsg(4096, space, blank_init.MSG_CMSG_CLOEXEC)
        if not data:
            raise RequestFailed("failed", "the container's process ended before it was ready")
        for level, kind, numbers in ancillary:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                terminal(int.from_bytes(numbers[:4], "little"))
                return data[1:]
        return data

    def start(self) -> None:
        """Let the program begin. Raises OSError: the process has ended."""
        try:
            self._channel.send(blank_init.GO)
        finally:
            self._channel.close()

    # ---- later

    def hand_over_to(self, state: str, identifier: str, bundle: str, spec: dict[str, Any]) -> None:
        """Tell the runtime of the container, as if it had made it.

        Arguments:
            state: the runtime's directory.
            bundle: the container's directory.

        Raises:
            OSError: it cannot be written. RequestFailed: the specification is too large.
        """
        with self._lock:
            if self._known:
                return
            directory = f"{state}/{identifier}"
            os.makedirs(directory, mode=0o700, exist_ok=True)
            fields = system.read_text(f"/proc/{self.pid}/stat").rpartition(")")[2].split()
            if len(fields) < 20:
                raise RequestFailed("no-such-container", "the container has ended")
            status = {
                "pid": self.pid, "process-start-time": int(fields[19]), "cgroup-path": self.cgroup.relative,
                "scope": "", "rootfs": spec["root"]["path"], "systemd-cgroup": False, "bundle": bundle,
                "created": "1970-01-01T00:00:00.000000Z", "owner": "root", "detached": True,
                "external_descriptors": '["/dev/null","/dev/null","/dev/null"]',
            }  # fmt: skip
            if self._used is not None:
                fd = os.open(f"{directory}/seccomp.bpf", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o700)
                try:
                    os.write(fd, self._used)
                finally:
                    os.close(fd)
            for name, message in (("config.json", spec), ("status", status)):
                text = wire.pack(wire.REQUEST, message).decode("ascii")
                system.write_text(f"{directory}/{name}", text, create=True)
            self._known = True

    @property
    def known(self) -> bool:
        """Whether the runtime knows the container."""
        return self._known

    def end(self) -> None:
        """End it, and whatever became of it. Raises OSError."""
        self._channel.close()
        with self._lock:
            guard, self._guard = self._guard, -1
            held, self._held = self._held, []
        for fd in (*held, *([guard] if guard >= 0 else [])):
            os.close(fd)
        try:
            self.cgroup.kill()
        except FileNotFoundError:
            return
        remove_group(self.cgroup.path)

    def discard(self) -> None:
        """As :meth:`end`; what goes wrong is only told, for something else is already wrong."""
        try:
            self.end()
        except OSError as error:
            system.log(f"a blank cannot be ended: {error}")


def remove_group(path: str) -> None:
    """Remove a control group whose processes have been killed, and those below it, when the last has ended.

    Raises:
        OSError: it cannot be removed in time.
    """
    deadline = monotonic() + END_PATIENCE
    try:
        events = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        poller = select.poll()
        poller.register(events, select.POLLPRI)
        while b"populated 0" not in os.pread(events, 4096, 0):
            left = deadline - monotonic()
            if left <= 0:
                raise TimeoutError(110, os.strerror(110), path)
            poller.poll(left * 1000)
    finally:
        os.close(events)
    _remove(path, 0)


def _remove(path: str, depth: int) -> None:
    if depth < 64:
        for entry in os.scandir(path):
            if entry.is_dir(follow_symlinks=False):
                _remove(entry.path, depth + 1)
    os.rmdir(path)


# ---- what it can do


def fits(spec: dict[str, Any]) -> bool:
    """Whether all of a specification is known here; it has been completed by :mod:`casemate.agent.bundle`."""
    try:
        return _fits(spec)
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def _fits(spec: dict[str, Any]) -> bool:
    process, linux, root = spec["process"], spec["linux"], spec["root"]
    if not (
        _SPEC.issuperset(spec) and _PROCESS.issuperset(process) and _LINUX.issuperset(linux)
        and _USER.issuperset(process["user"]) and {"path", "readonly"}.issuperset(root)
    ):  # fmt: skip
        return False
    if linux.get("devices") or linux.get("sysctl") or linux.get("personality") != {"domain": "LINUX"}:
        return False
    if sorted(entry["type"] for entry in linux["namespaces"] if len(entry) == 1) != _NAMESPACES:
        return False
    if len(linux["namespaces"]) != len(_NAMESPACES):
        return False
    asked = linux["resources"]
    if not {"memory", "pids", "devices"}.issuperset(asked):
        return False
    if not all({"limit"}.issuperset(asked.get(name) or ()) for name in ("memory", "pids")):
        return False
    if not (asked.get("memory") or {}).get("limit", LEAST) >= LEAST:
        return False
    command, env = process["args"][0], process["env"]
    if not command or ("/" not in command and not any(entry.startswith("PATH=") for entry in env)):
        return False
    if not all("=" in entry for entry in env):
        return False
    names = [name for words in process["capabilities"].values() for name in words or ()]
    if not all(name.startswith("CAP_") and name[4:] in CAPABILITIES for name in names):
        return False
    if not all(limit["type"].removeprefix("RLIMIT_") in LIMITS for limit in process.get("rlimits") or ()):
        return False
    kinds: dict[str, str] = {}
    for entry in spec["mounts"]:
        if not _known_mount(entry):
            return False
        kinds.setdefault(entry["destination"].rstrip("/"), entry["type"])
    return kinds.get("/proc") == "proc" and kinds.get("/dev") == "tmpfs"


def _known_mount(entry: dict[str, Any]) -> bool:
    data = _DATA.get(entry["type"])
    if data is None or not _MOUNT.issuperset(entry) or not entry["destination"].startswith("/"):
        return False
    bind = entry["type"] == "bind"
    for word in entry.get("options") or ():
        if word in ("bind", "rbind") and not bind:
            return False
        if word not in OPTIONS and not (data and word.startswith(data)):
            return False
    return not bind or bool(entry["source"])


# ---- making it

_waiting: list[Blank] = []
_made = 0
_profile: dict[str, Any] | None = None
"""Of system calls, that the last one was made with."""
_lock = threads.Lock()


def make(reaper: Reaper, root: str, spec: dict[str, Any], usual: list[dict[str, Any]]) -> None:
    """Make the blank, where there is none.

    Arguments:
        reaper: waits for it.
        root: of the control groups.
        spec: a specification as most containers have it: what it asks for is made ready.
        usual: ``mounts`` and ``linux`` of others that many have, for what can be mounted ahead.

    Raises:
        OSError: the kernel refused something. RequestFailed: it did not come.
    """
    global _made, _profile
    with _lock:
        if any(blank.alive for blank in _waiting):
            return
        _made += 1
        number = _made
    linux = spec.get("linux") or {}
    rules = (linux.get("resources") or {}).get("devices") or []
    profile = _profile = linux.get("seccomp") or None
    try:
        code = filters.seccomp(profile) if profile else None
        program = filters.devices(rules)
    except filters.Unfit as error:
        raise RequestFailed("bad-spec", f"there can be no blank for that: {error}") from None
    cgroup = Cgroup(f"{NAME}{number}", root)
    os.mkdir(cgroup.path, 0o755)
    guard = filters.guard(cgroup.path, program)
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    with reaper:
        maker = os.fork()
        if maker == 0:
            _leave(cgroup, theirs, [spec, *usual])
        theirs.close()
        pid, held = _number(ours)
        blank = Blank(pid, ours, cgroup, rules, guard, profile, code, held)
        reaper.watch(pid, blank.ended)
    with _lock:
        _waiting.append(blank)


def _number(channel: _socket.socket) -> tuple[int, list[int]]:
    """The process's number in the guest, from the one that has made it, and what it holds itself, when it is ready."""
    poller = select.poll()
    poller.register(channel.fileno(), select.POLLIN)
    said = b""
    held: list[int] = []
    while READY not in said or said == READY:
        if not poller.poll(PATIENCE * 1000):
            break
        part, ancillary, _, _ = channel.recvmsg(64, _socket.CMSG_SPACE(4 * MAX_HELD), blank_init.MSG_CMSG_CLOEXEC)
        for level, kind, data in ancillary:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                held += struct.unpack(f"={len(data) // 4}i", data[: len(data) // 4 * 4])
        if not part:
            break
        said += part
    number = said.replace(READY, b"")
    if READY not in said or not number.isdigit():
        raise RequestFailed("failed", f"the blank was not made: {number.decode('utf-8', 'replace') or 'no word of it'}")
    return int(number), held


def _leave(cgroup: Cgroup, channel: _socket.socket, usual: list[dict[str, Any]]) -> None:
    """In the copy of the agent: go into the namespaces, and leave a process there."""
    try:
        gc.disable()
        kept = channel.fileno()
        os.closerange(3, kept)
        os.closerange(kept + 1, 1 << 20)
        cgroup.write("cgroup.procs", str(os.getpid()))
        system.syscall("unshare", CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID)
        number = os.fork()
        if number == 0:
            blank_init.become(channel, usual)
        channel.send(str(number).encode())
        os._exit(0)
    except BaseException as error:
        channel.send(f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:30])
        os._exit(1)


def complete(spec: dict[str, Any]) -> None:
    """Put the profile that the last blank was made with where the host says that it is that one.

    Raises:
        RequestFailed: there was none.
    """
    linux = spec.get("linux")
    if isinstance(linux, dict) and linux.get("seccomp") == SAME_PROFILE:
        if _profile is None:
            raise RequestFailed("bad-spec", "the guest has no profile of system calls of its own")
        linux["seccomp"] = _profile


def take(spec: dict[str, Any]) -> Blank | None:
    """The blank, ready for a completed specification; it is the caller's then. None where the runtime has to do it.

    Raises:
        OSError: a bound of the specification's was refused.
    """
    if not fits(spec):
        return None
    with _lock:
        blank = _waiting.pop() if _waiting else None
    if blank is None:
        return None
    try:
        if blank.alive and blank.prepare(spec):
            return blank
    except BaseException:
        blank.discard()
        raise
    blank.discard()
    return None

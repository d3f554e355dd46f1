"""``start``: one socket and one serving process for each pod, and the address that is printed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time

from casemate.shim import messages, options, ttrpc, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from casemate.shim.shim import Shim

SOCKET_DIRECTORY = "/run/containerd/s"
"""Where containerd's shims have their sockets. It does not look there: the address is told."""
LOCK = ".casemate.lock"
SOCKETS_VARIABLE = "CASEMATE_SHIM_SOCKETS"
"""Names another directory for them in the environment."""
GROUPS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID")
"""Annotations whose value is shared by the containers of one shim; the first that is there counts."""
NEWEST_VERSION = 3
"""Of the task service, which a containerd of version 2 asks for; 1.7 and older ones ask for 2."""
MAX_SPEC = 16 << 20
NAME = "containerd-shim-casemate-v2"
SANDBOX = "containerd.runtime.sandbox.v1.Sandbox"
_NULL = "/dev/null"


def grouping(container_id: str, bundle: str = ".") -> str:
    """What the containers of one shim have in common: a pod's id, or the container's own.

    Raises:
        OSError, ValueError: its specification is damaged.
    """
    try:
        with open(os.path.join(bundle, "config.json"), "rb") as file:
            spec = json.loads(file.read(MAX_SPEC))
    except FileNotFoundError:  # of a sandbox: the shim itself is to write it
        return container_id
    annotations = spec.get("annotations") if isinstance(spec, dict) else None
    for name in GROUPS:
        value = annotations.get(name) if isinstance(annotations, dict) else None
        if isinstance(value, str) and value:
            return value
    return container_id


def socket_path(address: str, namespace: str, group: str, directory: str = SOCKET_DIRECTORY) -> str:
    """Where the shim of a group listens, as containerd's own shims compute it.

    Arguments:
        address: of containerd itself, so that two of them do not meet.
        namespace: containerd's.
        group: see :func:`grouping`.
    """
    try:  # hashlib would load a megabyte of OpenSSL into the process that stays
        from _sha256 import sha256  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        from hashlib import sha256
    text = os.path.normpath("/".join(part for part in (address, namespace, group) if part))
    return f"{directory}/{sha256(text.encode()).hexdigest()}"


def bind(path: str) -> socket.socket | None:
    """The listening socket of a new shim; None when a shim listens there already.

    Raises:
        OSError: it cannot be made.
    """
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    # One at a time: between its name and its first listening a socket seems to be a dead shim's, which is removed.
    # The lock is a file that nobody else can open, as a directory could be, and so could be kept locked.
    lock = os.open(os.path.join(os.path.dirname(path), LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for attempt in (1, 2):
            try:
                return ttrpc.listen(path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or attempt == 2:
                    raise
            if ttrpc.answers(path):
                return None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # of a shim that died
        return None
    finally:
        os.close(lock)


def answer(address: str, environ: dict[str, str]) -> str:
    """What ``start`` prints: the bare address, or JSON for a containerd that says which versions it knows (1.7)."""
    newest = environ.get("MAX_SHIM_VERSION", "")
    if not newest.isdecimal():
        return address
    version = max(2, min(NEWEST_VERSION, int(newest)))
    return json.dumps({"version": version, "address": address, "protocol": "ttrpc"})


def write_address(address: str, bundle: str = ".") -> None:
    """Keep the address where a containerd that was started anew finds it."""
    temporary = os.path.join(bundle, f".address.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(address)
    os.rename(temporary, os.path.join(bundle, "address"))


def start(flags: dict[str, Any], stdin: bytes) -> int:
    """The ``start`` action, in the bundle's directory.

    Arguments:
        flags: of the command line.
        stdin: the runtime's options, an Any.
    """
    directory = os.environ.get(SOCKETS_VARIABLE) or SOCKET_DIRECTORY
    path = socket_path(flags["address"], flags["namespace"], grouping(flags["id"]), directory)
    address = f"unix://{path}"
    listener = bind(path)
    if listener is not None:
        try:
            chosen = _options(stdin)
            pid = os.fork()
            if pid == 0:
                _serve_and_exit(listener, path, flags, chosen)
            listener.close()
            _settle(pid, chosen["shim_cgroup"])
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
    write_address(address)
    sys.stdout.write(answer(address, dict(os.environ)))
    sys.stdout.flush()
    return 0


def _options(stdin: bytes) -> dict[str, Any]:
    """The runtime's options; the defaults where they are none that we know (containerd 2.3 sends something else)."""
    with contextlib.suppress(wire.WireError):
        any_message = wire.decode(messages.ANY, stdin)
        if messages.type_name(any_message) in (messages.RUNC_OPTIONS.name, messages.RUNTIME_OPTIONS.name):
            return options.read(any_message)
    return options.defaults()


def _settle(pid: int, shim_cgroup: str) -> None:
    """Put the serving process where it belongs: its control group, and killed for memory before containerd is."""
    try:
        if shim_cgroup:
            from casemate.shim.cgroups import trees

            for mount, _ in trees():
                directory = os.path.join(mount, shim_cgroup.lstrip("/"))
                if os.path.isdir(directory):
                    with open(os.path.join(directory, "cgroup.procs"), "w") as file:
                        file.write(str(pid))
        maker = os.getppid() or os.getpid()  # 0: it is in another PID namespace
        with open(f"/proc/{maker}/oom_score_adj") as file:
            score = int(file.read())
        with open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write(str(min(1000, score + 1)))
    except BaseException:
        os.kill(pid, 9)
        raise


def serve_here(flags: dict[str, Any], stdin: bytes) -> int:
    """Serve in this process, on ``-socket`` or the socket inherited as descriptor 3."""
    if flags["socket"]:
        listener = ttrpc.listen(flags["socket"])
        path = flags["socket"]
    else:
        listener = socket.socket(fileno=3)
        name = listener.getsockname()
        path = name if isinstance(name, str) else ""
    _serve(listener, path, flags, _options(stdin))
    return 0


def _serve_and_exit(listener: socket.socket, path: str, flags: dict[str, Any], chosen: dict[str, Any]) -> None:
    code = 1
    try:
        os.setsid()
        _rename(f"{NAME} -namespace {flags['namespace']} -id {flags['id']} -address {flags['address']}")
        for number in (0, 1):
            null = os.open(_NULL, os.O_RDWR)
            os.dup2(null, number)
            os.close(null)
        log = _open_log()
        os.dup2(log, 2)
        keep = listener.fileno()
        os.closerange(3, keep)  # ours, and what containerd's maker has left open
        os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
        _serve(listener, path, flags, chosen)
        code = 0
    except BaseException as error:
        _log("error", f"the shim ends: {type(error).__name__}: {error}")
    finally:
        os._exit(code)


def _rename(words: str) -> None:
    """Show other words in ps(1): those of containerd's own shims, by which people and scripts know a shim's container.

    They go where the kernel has put our arguments (proc(5), ``arg_start``), which are longer: an interpreter runs us.
    """
    import ctypes

    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        start_at, end_at = int(fields[45]), int(fields[46])
        size = end_at - start_at
        if start_at and 0 < size < 1 << 20:
            text = words.encode().replace(b" ", b"\0")[: size - 1]
            ctypes.memmove(start_at, text.ljust(size, b"\0"), size)


def _open_log() -> int:
    """containerd's log: a FIFO in the bundle. Both its ends, so that no write fails while containerd is away."""
    try:
        return os.open("log", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return os.open(_NULL, os.O_RDWR | os.O_CLOEXEC)


def _log(level: str, message: str) -> None:
    """One line in the form of containerd's own log. What the FIFO cannot take is lost."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = f'time="{stamp}" level={level} msg={json.dumps(message)} runtime=casemate\n'
    with contextlib.suppress(OSError):
        os.write(2, line.encode())


def _serve(listener: socket.socket, path: str, flags: dict[str, Any], chosen: dict[str, Any]) -> None:
    """Serve until the shim is told to end."""
    import gc

    from casemate.host import syscalls
    from casemate.programs import settle
    from casemate.shim.children import Children
    from casemate.shim.events import Publisher
    from casemate.shim.loop import Loop
    from casemate.shim.shim import Shim, take_exit_signals
    from casemate.shim.task import NAMES, Task

    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    loop = Loop(lambda line: _log("warning", line))
    children = Children(loop)
    children.raise_file_limit()
    publisher = Publisher(
        loop, children, flags["namespace"], os.environ.get("TTRPC_ADDRESS", ""), binary=flags["publish-binary"],
        grpc_address=flags["address"],
    )
    directory = os.path.dirname(path) or SOCKET_DIRECTORY
    shim = Shim(loop, children, publisher, flags["namespace"], socket_directory=directory, debug=flags["debug"])
    take_exit_signals(loop, shim)
    task = Task(shim).service()
    services = Services({name: task for name in NAMES}, shim, chosen)
    shim.server = ttrpc.Server(loop, listener, services)
    shim.on_end.append(lambda: _remove(path))
    os.chdir("/")  # the bundle goes before we do
    gc.collect()
    settle()
    shim.expect_a_container()
    loop.run_until(shim.ended)
    shim.server.close()


class Services(dict[str, "ttrpc.Service"]):
    """The services by name. The one for sandboxes is loaded when it is asked for, by few clients."""

    def __init__(self, services: dict[str, ttrpc.Service], shim: Shim, chosen: dict[str, Any]) -> None:
        super().__init__(services)
        self._shim = shim
        self._chosen = chosen

    def get(self, name: str, default: Any = None) -> Any:
        """The service of that name."""
        if name == SANDBOX and name not in self:
            from casemate.shim.sandbox import Sandbox

            self[name] = Sandbox(self._shim, self._chosen).service()
        return super().get(name, default)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)

"""Make a stand-in, from the side of the command that makes it.

A container's stand-in gets its namespaces, the mounts in them and the trees for the guest in one forked child
(:mod:`casemate.standin.child`), which in the end becomes the tiny :mod:`casemate.standin.main`. In between the child
waits, so that the hooks of the runtime's side run when the namespaces are there and the root has not changed yet::

    with launch.spawn(blueprint) as starting:
        run_hooks(starting.pid)
        standin = starting.finish()

An exec's stand-in joins everything of its container's: :func:`join`.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
from types import TracebackType
from typing import Any

from casemate.errors import ContainerError, HostError, by_code
from casemate.host import processes, syscalls

NAMESPACES = {
    # runtime-spec, config-linux.md "Namespaces": name of the kind in /proc/PID/ns, flag of setns(2)
    "pid": ("pid", syscalls.CLONE_NEWPID),
    "network": ("net", syscalls.CLONE_NEWNET),
    "ipc": ("ipc", syscalls.CLONE_NEWIPC),
    "uts": ("uts", syscalls.CLONE_NEWUTS),
    "mount": ("mnt", syscalls.CLONE_NEWNS),
}
READY = b"ready\n"
WORDS_LIMIT = 4096
"""How many bytes of a command ``ps`` may show on the host."""


class Volume:
    """A bind mount of a container's, or a place where the guest mounts something of its own.

    Arguments:
        destination: the absolute path in the container.
        source: what is bound there; None where the guest has a file system of its own at this place, of which the
            host's side shows an empty one, so that what is mounted further down stands where it does in the guest.
        kind: the file system's type where there is no source.
        recursive: whether the mounts below ``source`` come along.
        read_only: whether the host's copy takes no writes.
        deep: whether that holds for the mounts below it too; without it they are as the host has them, as with runc.
        follows: whether mounts that the host makes below ``source`` later appear.
        passed: whether the guest gets it. What it has no use for it must not see: its kernel reads all that it is
            shown, whatever the container does. An empty entry keeps the place in the tree.
    """

    __slots__ = ("deep", "destination", "follows", "kind", "passed", "read_only", "recursive", "source")

    def __init__(
        self, destination: str, source: str | None, *, kind: str = "bind", recursive: bool = True,
        read_only: bool = False, follows: bool = False, passed: bool = True, deep: bool = False,
    ) -> None:
        self.destination = destination
        self.source = source
        self.kind = kind
        self.recursive = recursive
        self.read_only = read_only
        self.follows = follows
        self.passed = passed
        self.deep = deep


class Blueprint:
    """What a container's stand-in is to be.

    Arguments:
        rootfs: absolute path of the root filesystem.
        scratch: an absolute path of a directory that is nobody else's; the child mounts over it.
        namespaces: kind (of :data:`NAMESPACES`) to the path of the one to join, or None for a new one.
        volumes: in the order of the specification's mounts.
        words: the command that runs in the guest.
        uid, gid: whom the stand-in runs as in the end: host ids of whoever the process is in the container.
        hostname, domainname: of a UTS namespace; empty: as they are.
        terminal: descriptor of a terminal (its slave end) to be the controlling one, or None.
        oom_score_adj: see proc(5); None leaves it.
        read_only: whether the root filesystem takes no writes.
        private: mounts that the host makes later are not to appear.
        pivot: whether to use pivot_root(2), which a root that is the initial ramdisk does not allow.
        hooks: ``(command, ...)`` of createContainer, for :func:`casemate.pod.hooks.run`; None without any.
        hooked: whether hooks run while the child waits, so that mounts that they have made have to be looked for.
    """

    def __init__(
        self, rootfs: str, scratch: str, *, namespaces: dict[str, str | None], volumes: tuple[Volume, ...] = (),
        words: tuple[str, ...] = (), uid: int = 0, gid: int = 0, hostname: str = "", domainname: str = "",
        terminal: int | None = None, oom_score_adj: int | None = None, read_only: bool = False, private: bool = False,
        pivot: bool = True, hooks: tuple[dict[str, Any], dict[str, Any]] | None = None, hooked: bool = False,
    ) -> None:
        self.rootfs = rootfs
        self.scratch = scratch
        self.namespaces = namespaces
        self.volumes = volumes
        self.words = words
        self.uid = uid
        self.gid = gid
        self.hostname = hostname
        self.domainname = domainname
        self.terminal = terminal
        self.oom_score_adj = oom_score_adj
        self.read_only = read_only
        self.private = private
        self.pivot = pivot
        self.hooks = hooks
        self.hooked = hooked


class StandIn:
    """A stand-in that waits for its process to end.

    ``socket`` is the keeper's end; ``root`` and ``volumes`` are the trees for the guest (open_tree(2)), ``netns`` holds
    its network namespace. Whoever has one gives the descriptors away or calls :meth:`close`.
    """

    __slots__ = ("netns", "pid", "pid_start", "root", "socket", "volumes")

    def __init__(
        self, pid: int, pid_start: int, sock: socket.socket, netns: int | None = None, root: int | None = None,
        volumes: int | None = None,
    ) -> None:
        self.pid = pid
        self.pid_start = pid_start
        self.socket = sock
        self.netns = netns
        self.root = root
        self.volumes = volumes

    def close(self) -> None:
        """Let go of everything; a stand-in whose keeper's end is closed everywhere ends."""
        self.socket.close()
        for descriptor in (self.netns, self.root, self.volumes):
            if descriptor is not None:
                os.close(descriptor)
        self.netns = self.root = self.volumes = None

    def kill(self) -> None:
        """End it, and wait until it has ended; only for who has made it."""
        self.close()
        _end(self.pid)


class Starting:
    """A stand-in's child that has its namespaces and mounts and waits for :meth:`finish`; a context manager that ends
    it when it was not finished."""

    def __init__(self, pid: int, keeper_end: socket.socket, child: socket.socket) -> None:
        self.pid = pid
        self.pid_start = processes.start_time(pid) or 0
        self._socket = keeper_end
        self._child = child
        self._done = False

    def __enter__(self) -> Starting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.close()
        if not self._done:
            self._socket.close()
            _end(self.pid)

    def finish(self) -> StandIn:
        """Let the child run its hooks, change its root and become the stand-in.

        Raises:
            CasemateError: as the child met it.
        """
        self._child.send(b"{}")
        message, fds = hear(self._child)
        named = dict(zip(message.get("fds", ()), fds, strict=True))
        try:
            _wait_ready(self._socket, self._child)
            netns = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            for descriptor in fds:
                os.close(descriptor)
            raise
        self._done = True
        return StandIn(self.pid, self.pid_start, self._socket, netns, named.get("root"), named.get("volumes"))


def spawn(blueprint: Blueprint) -> Starting:
    """Make the child of a container's stand-in. The caller must have no other thread.

    Returns:
        when its namespaces and mounts are there.

    Raises:
        CasemateError: a namespace or mount cannot be made.
    """
    from casemate.standin import child

    pid, ours, sync = _fork(blueprint.namespaces.get("pid", ""), lambda mine, told: child.stand(blueprint, mine, told))
    starting = Starting(pid, ours, sync)
    try:
        hear(sync)
    except BaseException as error:
        starting.__exit__(type(error), error, None)
        raise
    return starting


def join(
    pid: int, pid_start: int, *, words: tuple[str, ...] = (), uid: int = 0, gid: int = 0, terminal: int | None = None,
    oom_score_adj: int | None = None,
) -> StandIn:
    """Make the stand-in of an exec, in all namespaces of the container's stand-in.

    Arguments:
        pid, pid_start: that stand-in.
        words, uid, gid, terminal, oom_score_adj: as in :class:`Blueprint`.

    Raises:
        ContainerError: the container's stand-in has ended.
        HostError: the host is out of something.
    """
    from casemate.standin import child

    handles: dict[str, int] = {}
    try:
        try:
            for kind, (name, _) in NAMESPACES.items():
                handles[kind] = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise ContainerError("cannot exec in a stopped container") from None
        if processes.start_time(pid) != pid_start:  # asked last: what was opened is then known to be the right one's
            raise ContainerError("cannot exec in a stopped container")
        blueprint = Blueprint(
            "/", "/", namespaces={}, words=words, uid=uid, gid=gid, terminal=terminal, oom_score_adj=oom_score_adj
        )
        member, ours, sync = _fork(
            f"/proc/self/fd/{handles['pid']}", lambda mine, told: child.join(blueprint, handles, mine, told)
        )
    finally:
        for descriptor in handles.values():
            os.close(descriptor)
    starting = Starting(member, ours, sync)
    with sync:
        try:
            _wait_ready(ours, sync)
        except BaseException:
            ours.close()
            _end(member)
            raise
    return StandIn(member, starting.pid_start, ours)


def _fork(pid_namespace: str | None, body: Any) -> tuple[int, socket.socket, socket.socket]:
    """Fork a child into a pid namespace: None for a new one, an empty string for our own, else a path.

    Arguments:
        body: called in the child with its end of the keeper's socket, and of the one to us; does not return.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sync, told = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC) if pid_namespace != "" else -1
    syscalls.prepare()  # not in the child as well
    try:
        try:
            if pid_namespace is None:
                syscalls.unshare(syscalls.CLONE_NEWPID)
            elif pid_namespace:
                _enter(pid_namespace, syscalls.CLONE_NEWPID)
            pid = os.fork()
        except OSError as error:
            # ENOMEM is what the kernel says of a pid namespace whose first process has ended.
            hint = "the process whose pid namespace it is to join has ended" if pid_namespace else ""
            raise HostError(f"cannot make a process for the container: {error.strerror}", hint) from None
        if pid == 0:
            try:
                ours.close()
                sync.close()
                body(theirs, told)
            finally:
                os._exit(255)
        return pid, ours, sync
    except BaseException:
        ours.close()
        sync.close()
        raise
    finally:
        theirs.close()
        told.close()
        if own >= 0:
            # What we start later, a keeper for one, belongs where we are.
            syscalls.setns(own, syscalls.CLONE_NEWPID)
            os.close(own)


def _enter(path: str, flag: int) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(handle, flag)
    finally:
        os.close(handle)


def tell(sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Send one message of the set-up, with descriptors."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([json.dumps(message).encode()], ancillary)


def hear(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message of the set-up.

    Raises:
        CasemateError: the one that the child tells of, or that it ended without a word.
    """
    data, ancillary, _, _ = sock.recvmsg(65536, socket.CMSG_SPACE(4 * 4), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if not data:
        raise HostError("the container's process on the host ended while it was being made")
    message = json.loads(data)
    if "code" in message:
        raise by_code(str(message["code"]), str(message["message"]), str(message["hint"]))
    return message, list(fds)


def _wait_ready(sock: socket.socket, sync: socket.socket) -> None:
    """Wait for the stand-in's first word."""
    heard = b""
    while len(heard) < len(READY):
        part = sock.recv(len(READY) - len(heard))
        if not part:
            hear(sync)  # raises what the child tells
            raise HostError("the container's process on the host ended while it was being made")
        heard += part


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)

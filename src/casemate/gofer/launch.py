"""Start a gofer: as a child that is forked from the sentry before that gives up its privileges, or as a program.

::

    client = start_gofer([Tree("/", read_only=True, exclusive=True)])
    root = client.filesystem(0, device)
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from collections.abc import Callable

from casemate.errors import HostError
from casemate.gofer.client import GoferClient
from casemate.gofer.confine import Place, confine, last_words
from casemate.gofer.frames import FrameError
from casemate.gofer.nodes import Root
from casemate.gofer.reading import MAX_LISTINGS
from casemate.gofer.server import Server
from casemate.host import syscalls
from casemate.programs import settle

MAX_NODES = 60_000
"""How many files the sentry may know at a time, where the limit of open files allows it."""
SEND_BUFFER = 1 << 20


class Tree:
    """A directory of the host that is served.

    Arguments:
        path: where it is.
        read_only: nothing in it is changed.
        exclusive: nobody else changes it while the sandbox runs, so the sentry may keep what it knows of it.
    """

    __slots__ = ("exclusive", "path", "read_only")

    def __init__(self, path: str, read_only: bool = True, exclusive: bool = False) -> None:
        self.path = path
        self.read_only = read_only
        self.exclusive = exclusive


def start_gofer(
    trees: list[Tree], *, isolate: bool = True, meanwhile: Callable[[], None] = lambda: None
) -> GoferClient:
    """Fork a gofer for these trees. To be called while there is one thread.

    Arguments:
        trees: what it serves; mounts below them are served too.
        isolate: shut it into namespaces of its own, without a network; not, where mounts that are made later are to be
            seen.
        meanwhile: what is to be done here while it shuts itself in.

    Raises:
        HostError: a tree cannot be opened, or the kernel refuses to shut it in.
    """
    syscalls.prepare()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    words, told = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            # Not what comes with the caller: its handlers, its collections of garbage.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
            settle()
            status = serve(theirs, told, trees, None if isolate else "/")
        finally:
            os._exit(status)
    theirs.close()
    os.close(told)
    meanwhile()
    with open(words, "rb") as pipe:
        problem = pipe.read(4096).decode(errors="replace").strip()
    client = GoferClient(ours, trees, pid)
    if problem:
        client.close()
        raise HostError(f"the file server cannot start: {problem}", "run as root, or allow user namespaces")
    return client


def serve(sock: socket.socket, told: int, trees: list[Tree], root: str | None) -> int:
    """Be a gofer until the sentry ends. Returns the exit status.

    Arguments:
        told: a descriptor that gets a line when it cannot start, and is closed when it serves.
        root: see :func:`casemate.gofer.confine.confine`.
    """
    try:
        places = [Place(tree.path, tree.read_only) for tree in trees]
        # Each node has a descriptor, and a few more are used on the way.
        nodes = min(MAX_NODES, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - MAX_LISTINGS - 32)
        roots, hidden = confine([sock.fileno(), told], places, root)
        # Containers may have devices made in their trees, as behind the other wall; no command of "casemate do".
        devices = root not in (None, "/")
        served = [Root(fd, tree.read_only, devices) for fd, tree in zip(roots, trees, strict=True)]
        server = Server(sock, served, nodes, hidden)
    except BaseException as error:  # noqa: BLE001 - nothing may return into the caller's program
        last_words(told, error)
        return 1
    os.close(told)
    try:
        server.run()
    except (FrameError, OSError):
        return 2
    return 0


def main() -> None:
    """``python -P -m casemate.gofer SOCKET ROOT TREE...``: serve trees on the ``SOCK_SEQPACKET`` socket that is
    descriptor SOCKET, with ROOT as root directory, and end with the peer.

    Mounts that are made later below shared ones in ROOT are seen. A tree is its path below ROOT with ``ro:`` or ``rw:``
    in front.
    """
    number, root, *trees = sys.argv[1:]
    sock = socket.socket(fileno=int(number))
    sock.set_inheritable(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    told = os.dup(2)
    settle()
    status = serve(sock, told, [Tree(tree[3:], tree[:3] == "ro:") for tree in trees], root)
    os._exit(status)  # what Python does at its end is not on the list of calls

"""Namespaces of the host: a private mount namespace for a process, network namespaces held by descriptors only.

A network namespace here has no name and no file: the descriptors that hold it and the processes in it are all that
keeps it, so when they are gone so are its links (``network_namespaces(7)``), whatever ended them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from casemate.errors import HostError
from casemate.host import syscalls

T = TypeVar("T")


def unshare_mounts(*, follow_host: bool = True) -> None:
    """Move the process into a mount namespace of its own, whose mounts nobody else sees and which end with it.

    To be called before the process has a second thread: a mount namespace is a thread's, and a thread that was left
    behind would see other mounts than the rest.

    Arguments:
        follow_host: mounts that the host makes later appear here too (propagation "slave"); else none do ("private").

    Raises:
        HostError: not root.
        RuntimeError: there are other threads.
    """
    if threading.active_count() != 1:  # not /proc/self/task: a thread that was joined may linger there for a moment
        raise RuntimeError("unshare_mounts() must be called before any thread is started")
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        kind = syscalls.MS_SLAVE if follow_host else syscalls.MS_PRIVATE
        syscalls.mount(None, "/", None, syscalls.MS_REC | kind, None)
    except OSError as error:
        raise HostError(f"cannot make a mount namespace: {error.strerror}", "run as root") from None


def new_netns() -> int:
    """Make an anonymous network namespace and return a close-on-exec descriptor that holds it.

    The caller's own namespace is not changed: a short-lived thread makes it. The new namespace has IPv6 off and its
    loopback down.

    Raises:
        HostError: not root, or the kernel's limit of namespaces is reached.
    """

    def make() -> int:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        for which in ("all", "default"):
            try:
                with open(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6", "w") as file:
                    file.write("1")
            except FileNotFoundError:
                pass  # a kernel without IPv6 has nothing to turn off
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    try:
        return _in_thread(make)
    except OSError as error:
        hint = "raise user.max_net_namespaces" if error.errno == 28 else "run as root"
        raise HostError(f"cannot make a network namespace: {error.strerror}", hint) from None


def in_netns(netns: int, function: Callable[[], T]) -> T:
    """Call ``function`` in the network namespace held by descriptor ``netns`` and return what it returns.

    It runs on a thread of its own, so the caller's namespace stays; processes that it starts and sockets that it opens
    belong to that namespace. What it raises is raised here.
    """

    def enter() -> T:
        syscalls.setns(netns, syscalls.CLONE_NEWNET)
        return function()

    return _in_thread(enter)


def _in_thread(function: Callable[[], T]) -> T:
    box: list[Any] = [None, None]

    def body() -> None:
        try:
            box[0] = function()
        except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread, whatever it is
            box[1] = error

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if box[1] is not None:
        raise box[1]
    result: T = box[0]
    return result

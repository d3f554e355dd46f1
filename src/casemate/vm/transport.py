"""How the agent in the guest is reached: a virtio-serial port, or a vsock where the host has it.

Both carry the same protocol. The port works on every host and is the default; ``transport`` in the configuration asks
for ``vsock``, or ``auto`` for a vsock where ``/dev/vhost-vsock`` is there and the port elsewhere.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from abc import ABC, abstractmethod

from casemate.config import Config
from casemate.errors import HostError, HypervisorError
from casemate.vm.hypervisor import base

AGENT_PORT = "casemate.agent.0"
VSOCK_PORT = 1024
VHOST_VSOCK = "/dev/vhost-vsock"
RETRY_SECONDS = 0.05
_NOT_YET = (errno.ECONNRESET, errno.ECONNREFUSED, errno.ETIMEDOUT, errno.ENODEV, errno.EHOSTUNREACH)


class Transport(ABC):
    """One way to the agent: a device of the machine, and a connection when it runs."""

    device: base.Device
    cmdline: tuple[str, ...] = ()
    """What the guest's kernel is told, for the agent to read."""

    @abstractmethod
    def connect(self, timeout: float, gone: threading.Event) -> int:
        """A connected descriptor, once the machine runs.

        Arguments:
            timeout: seconds.
            gone: set when the machine has ended or is not wanted any more.

        Raises:
            HypervisorError: the agent cannot be reached.
        """


class Serial(Transport):
    """A virtio-serial port on a socket pair: connected from the start, its other end is the VMM's."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        self.device = base.AgentPort(AGENT_PORT, theirs.detach())

    def connect(self, timeout: float, gone: threading.Event) -> int:
        """See :class:`Transport`."""
        return self._ours.detach()


class Vsock(Transport):
    """An AF_VSOCK connection to the agent's port (vsock(7)), through the host's vhost-vsock.

    Raises:
        HostError: the host has no vhost-vsock.
    """

    cmdline = ("casemate.transport=vsock",)

    def __init__(self) -> None:
        try:
            fd = os.open(VHOST_VSOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            hint = "load the module vhost_vsock, or set transport to serial"
            raise HostError(f"{VHOST_VSOCK} cannot be opened: {error.strerror}", hint) from None
        # Any number from 3 on that no other machine has. The kernel refuses one in use, which two random ones are not.
        self.cid = 3 + int.from_bytes(os.urandom(4), "big") % (0xFFFFFFFE - 3)
        self.device = base.Vsock(self.cid, fd)

    def connect(self, timeout: float, gone: threading.Event) -> int:
        """See :class:`Transport`. Asks again until the agent listens: the host is not told when it begins to."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                return _dial(self.cid)
            except OSError as error:
                if error.errno not in _NOT_YET:
                    raise HypervisorError(f"the guest's vsock cannot be reached: {error.strerror}") from None
            if gone.wait(RETRY_SECONDS) or time.monotonic() > deadline:
                raise HypervisorError("the guest did not come up: its agent does not listen")


def _dial(cid: int) -> int:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect((cid, VSOCK_PORT))
        return sock.detach()


def choose(config: Config) -> Transport:
    """The transport that the configuration and the host come to.

    Raises:
        HostError: the configuration insists on a vsock that the host does not have.
    """
    if config.transport == "vsock" or (config.transport == "auto" and os.access(VHOST_VSOCK, os.R_OK | os.W_OK)):
        return Vsock()
    return Serial()

"""What process 1 does once: the guest's file systems, its limits, its end of the connection to the host."""

from __future__ import annotations

import os
import resource
import select
from _socket import SOCK_CLOEXEC, SOCK_STREAM, socket

from casemate.agent import cgroup, late
from casemate.agent.container import BASE
from casemate.agent.devices import wait_for
from casemate.agent.system import MS_NODEV, MS_NOEXEC, MS_NOSUID, log, mount, read_text, unmount, write_text
from casemate.agent.terminal import accept

PORT_NAME = "casemate.agent.0"
PORTS = "/sys/class/virtio-ports"
SHARE_TAG = "casemate"
VOLUMES_TAG = "casemate-volumes"
"""A second file server, for what the host may change at any time; only there when the sandbox has volumes."""
SHARES = {SHARE_TAG: "share", VOLUMES_TAG: "volumes"}
"""Where they are mounted."""
VSOCK_PORT = 1024
AF_VSOCK, VMADDR_CID_ANY, VMADDR_CID_HOST = 40, 0xFFFFFFFF, 2
DEVICE_PATIENCE = 30.0
NOFILE = 524288
"""Open files of the agent, and at most of a container's process: a new one begins with the usual bound."""
MODPROBE = "/usr/lib/casemate/modprobe"
"""What the kernel starts when somebody asks for what a module brings."""

_STRICT = MS_NOSUID | MS_NOEXEC | MS_NODEV
MOUNTS = (
    ("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755"),
    ("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"),
    ("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"),
    ("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"),
    ("mqueue", "/dev/mqueue", "mqueue", _STRICT, ""),
    # Containers write into these files (/etc/hosts and the like): they must not fill what the agent needs.
    ("files", f"{BASE}/files", "tmpfs", MS_NOSUID | MS_NODEV, "mode=700,size=8m,nr_inodes=8192"),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", _STRICT, "nsdelegate,memory_recursiveprot"),
)
"""source, target, type, flags, data; /proc, /sys and /dev are there already, and the root is read-only."""
FIRST_MOUNTS = (("proc", "/proc", "proc", _STRICT, ""), ("sysfs", "/sys", "sysfs", _STRICT, ""))
"""What is not there when the kernel itself has started the agent; an initial root has made it otherwise."""


def begin() -> None:
    """Mount what everything else needs, where nobody has done so.

    Raises:
        OSError: it was refused.
    """
    if not os.path.exists("/proc/self"):
        for mounted in FIRST_MOUNTS:
            mount(*mounted)


def setup() -> None:
    """Mount the guest's file systems, enable control groups, raise limits.

    Raises:
        OSError: something that containers need was refused.
    """
    for source, target, kind, flags, data in MOUNTS:
        if target.startswith(("/dev/", BASE)):
            os.makedirs(target, exist_ok=True)
        mount(source, target, kind, flags, data)
    cgroup.enable()
    if os.path.exists(MODPROBE):
        write_text("/proc/sys/kernel/modprobe", MODPROBE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (NOFILE, NOFILE))
    for name in SHARES.values():
        os.makedirs(f"{BASE}/{name}")
    if late.wanted():  # its files come with its sandbox
        return
    for tag in SHARES:
        try:
            mount_share(tag)
        except OSError as error:  # a guest without shared files can still say so when a container is asked for
            if tag == SHARE_TAG:
                log(f"the shared files cannot be mounted: {error.strerror}")


def mount_share(tag: str) -> None:
    """Mount a shared file system where containers' files are looked for.

    Raises:
        OSError: there is none with that tag, or it cannot be mounted.
    """
    mount(tag, f"{BASE}/{SHARES[tag]}", "virtiofs")


def read_ahead(tag: str, kib: int) -> None:
    """How much of a shared file is read at once where a part of it is asked for. Raises OSError."""
    device = os.stat(f"{BASE}/{SHARES[tag]}").st_dev
    write_text(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb", str(kib))


def unmount_share(tag: str) -> None:
    """Undo :func:`mount_share`. Raises OSError: a container uses it."""
    unmount(f"{BASE}/{SHARES[tag]}")


def connect() -> int:
    """The descriptor of the connection to the host.

    Raises:
        OSError: the device is missing or cannot be opened.
    """
    if "casemate.transport=vsock" in read_text("/proc/cmdline").split():
        return _accept_vsock()
    return _open_port()


def _open_port() -> int:
    name = wait_for(_find_port, DEVICE_PATIENCE)
    if name is None:
        raise FileNotFoundError(2, "no virtio port has the name", PORT_NAME)
    fd = os.open(f"/dev/{name}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    _wait_for_host(fd)
    return fd


def _find_port() -> str | None:
    try:
        names = os.listdir(PORTS)
    except FileNotFoundError:
        return None
    return next((name for name in names if read_text(f"{PORTS}/{name}/name").strip() == PORT_NAME), None)


def _wait_for_host(fd: int) -> None:
    """Until the host has opened its end a read gives the end of file, and poll(2) returns at once with POLLHUP. An
    edge-triggered epoll(7) sleeps until that changes."""
    poller = select.epoll(flags=select.EPOLL_CLOEXEC)
    try:
        poller.register(fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        while True:
            ready = poller.poll(DEVICE_PATIENCE)
            if not ready:
                raise TimeoutError(110, "the host does not open its end of the port", PORT_NAME)
            if not ready[0][1] & select.EPOLLHUP:
                return
    finally:
        poller.close()


def _accept_vsock() -> int:
    listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0)
    try:
        listener.bind((VMADDR_CID_ANY, VSOCK_PORT))
        listener.listen(1)
        while True:
            fd, peer = accept(listener)
            if peer[0] == VMADDR_CID_HOST:
                return fd
            os.close(fd)
    finally:
        listener.close()

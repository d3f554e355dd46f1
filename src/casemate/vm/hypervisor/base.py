"""The interface to a virtual machine monitor (VMM), and the typed values that describe a machine.

Life of a machine::

    hypervisor.create(spec, jail) -> Vm     nothing runs yet; the machine owns the descriptors in the spec
    vm.on_exit(callback)                    before start, so that no end is missed
    vm.start()                              the VMM runs, answers and has let the guest go
    vm.pause() / vm.resume() / vm.add_device(device) / vm.remove_device(id)
    vm.stop(timeout) / vm.kill()            or the guest powers itself off
    vm.wait(timeout) -> VmExit

**Descriptors.** Every descriptor in a device or a spec passes into the ownership of the machine with ``create`` (or
``add_device``), whatever the outcome; the machine closes its copies as soon as the VMM has them, so that the other end
of a socket pair sees end of file when the VMM is gone. The caller keeps only the other ends. The descriptors of a
:class:`Confinement` stay the caller's.
"""

from __future__ import annotations

import enum
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from casemate.errors import HypervisorError
from casemate.wall.confinement import Confinement as Confinement

MAX_SLOTS = 30
"""A bus has places 0 to 31; the first is left free, the second has a device that is always there."""
_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,30}\Z")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")
_PORT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")


class Accelerator(enum.Enum):
    """How guest code is executed."""

    KVM = "kvm"
    """By the processor, through /dev/kvm."""
    TCG = "tcg"
    """By translation in the VMM: needs nothing from the host, and is slower."""


def check_id(value: str) -> str:
    """A device id: a letter, then up to 30 letters, digits, ``.``, ``_``, ``-``.

    Raises:
        HypervisorError: it is not.
    """
    if not _ID.match(value):
        raise HypervisorError(
            f"bad device id {value!r}", "use a letter, then at most 30 letters, digits, '.', '_' or '-'"
        )
    return value


def _check_fd(owner: str, fd: int) -> None:
    if fd < 3:
        raise HypervisorError(
            f"device {owner} has descriptor {fd}", "give it an open descriptor above the standard three"
        )


@dataclass(frozen=True, slots=True)
class Block:
    """A disk. The guest finds it by its serial number, which is ``id`` (at most 20 characters reach the guest).

    Arguments:
        source: an image file's path (opened by the driver before privileges are dropped) or an open descriptor.
        read_only: whether writes are refused. A read-only file shares the host's page cache among machines.
        host_device: the source is a block device of the host, not a file.
    """

    id: str
    source: Path | int
    read_only: bool = True
    host_device: bool = False

    def __post_init__(self) -> None:
        if len(check_id(self.id)) > 20:
            raise HypervisorError(f"block device id {self.id!r} is longer than the 20 characters of a serial number")
        if isinstance(self.source, int):
            _check_fd(self.id, self.source)


@dataclass(frozen=True, slots=True)
class SerialConsole:
    """The guest's console: a stream socket that receives what the guest prints (``console=`` of the architecture).

    The other end has to be read: a full socket slows the guest's kernel messages.
    """

    fd: int
    id: str = "console"

    def __post_init__(self) -> None:
        _check_fd(check_id(self.id), self.fd)


@dataclass(frozen=True, slots=True)
class AgentPort:
    """A named byte stream between host and guest (a virtio-serial port), on a stream socket.

    Arguments:
        name: the port's name in the guest, as in ``/sys/class/virtio-ports/*/name``.
    """

    name: str
    fd: int
    id: str = "agent"

    def __post_init__(self) -> None:
        _check_fd(check_id(self.id), self.fd)
        if not _PORT.match(self.name):
            raise HypervisorError(f"bad port name {self.name!r}", "use at most 63 letters, digits, '.', '_' or '-'")


@dataclass(frozen=True, slots=True)
class SharedFs:
    """A shared file tree served by another process over vhost-user. The spec must have ``shared_memory``.

    Arguments:
        tag: what the guest mounts (``mount -t virtiofs TAG``), at most 35 characters.
        fd: a stream socket connected to the file server.
    """

    tag: str
    fd: int
    id: str = "share"

    def __post_init__(self) -> None:
        _check_fd(check_id(self.id), self.fd)
        if not _PORT.match(self.tag) or len(self.tag) > 35:
            raise HypervisorError(
                f"bad shared file system tag {self.tag!r}", "use at most 35 letters, digits, '.', '_' or '-'"
            )


@dataclass(frozen=True, slots=True)
class Net:
    """A network interface on an open tap.

    Arguments:
        mac: six lower-case hexadecimal bytes with colons, unicast.
        tap_fd: an open ``/dev/net/tun`` descriptor bound to a tap (``IFF_TAP | IFF_NO_PI | IFF_VNET_HDR``).
        mtu: largest packet in bytes, told to the guest.
    """

    id: str
    mac: str
    tap_fd: int
    mtu: int = 1500

    def __post_init__(self) -> None:
        _check_fd(check_id(self.id), self.tap_fd)
        if not _MAC.match(self.mac) or int(self.mac[:2], 16) & 1:
            raise HypervisorError(f"bad hardware address {self.mac!r}", "give six lower-case bytes, the first one even")
        if not 68 <= self.mtu <= 65535:
            raise HypervisorError(f"bad packet size {self.mtu}", "give 68 to 65535 bytes")


@dataclass(frozen=True, slots=True)
class Vsock:
    """Socket address family AF_VSOCK between host and guest.

    Arguments:
        cid: the guest's context id, 3 or more, unique on the host.
        fd: an open ``/dev/vhost-vsock``.
    """

    cid: int
    fd: int
    id: str = "vsock"

    def __post_init__(self) -> None:
        _check_fd(check_id(self.id), self.fd)
        if not 3 <= self.cid <= 0xFFFFFFFE:
            raise HypervisorError(f"bad vsock context id {self.cid}", "give 3 or more")


@dataclass(frozen=True, slots=True)
class Rng:
    """A source of randomness for the guest."""

    id: str = "rng"

    def __post_init__(self) -> None:
        check_id(self.id)


@dataclass(frozen=True, slots=True)
class Balloon:
    """Memory that the guest gives back.

    Arguments:
        free_page_reporting: the guest's driver tells free pages by itself and the host gets them back.
    """

    free_page_reporting: bool = True
    id: str = "balloon"

    def __post_init__(self) -> None:
        check_id(self.id)


@dataclass(frozen=True, slots=True)
class Image:
    """Guest memory that lives in files, for machines that are saved and made again from what was saved.

    The guest's memory is in two parts. Its last ``window_mib`` are a *window* that the file servers of a
    :class:`SharedFs` share; all else belongs to the VMM alone, which is why it can be a private view of a file that
    many machines have in common.

    Arguments:
        memory_fd: the file of all memory but the window; None for a copy of a machine, which has it already.
        window_fd: the file of the window, this machine's own.
        window_mib: the window's size.
        state_fd: what :meth:`Vm.save` wrote, or None for a machine that boots in order to be saved: it writes to
            ``memory_fd``, others keep their writes for themselves.
    """

    memory_fd: int | None
    window_fd: int
    window_mib: int
    state_fd: int | None = None

    def __post_init__(self) -> None:
        for fd in self.descriptors():
            _check_fd("memory", fd)

    def descriptors(self) -> tuple[int, ...]:
        """All that it holds."""
        return tuple(fd for fd in (self.memory_fd, self.window_fd, self.state_fd) if fd is not None)


GROW_STEP_MIB = 2
"""Memory is added in steps of this size, the least of virtio-mem."""
MAX_IMAGE_MIB = 2560
"""Most memory of a machine with an :class:`Image`: from 2816 MiB on a PC's memory has a hole, and the window would not
be below it."""

Device: TypeAlias = Block | SerialConsole | AgentPort | SharedFs | Net | Vsock | Rng | Balloon


def device_fd(device: Device) -> int | None:
    """The descriptor that a device holds, or None."""
    match device:
        case Block(source=int(fd)) | SerialConsole(fd=fd) | AgentPort(fd=fd) | SharedFs(fd=fd) | Vsock(fd=fd):
            return fd
        case Net(tap_fd=fd):
            return fd
    return None


@dataclass(frozen=True, slots=True)
class VmSpec:
    """What a machine is made of.

    Arguments:
        name: shows in the process list; letters, digits, ``.``, ``_``, ``-``.
        kernel, initrd: files that the driver opens while privileged; they must be readable by everyone.
            A kernel that finds its root by itself has no initial root: None.
        cmdline: the guest's kernel arguments, one per item, without white space. The driver puts those that its
            machine needs (console, restart) before them.
        memory_mib: guest memory.
        vcpus: virtual processors.
        shared_memory: guest memory is shareable with other processes (needed by :class:`SharedFs`).
        mergeable: the host's kernel may merge equal pages of this machine and others (KSM). It does so with private
            memory only; of a machine with ``shared_memory`` that leaves what the VMM has beside the guest's memory.
        accelerator: as chosen by :func:`casemate.vm.hypervisor.probe.choose`.
        devices: all devices present from the start; ids are unique.
        log: the file that gets the VMM's own messages (bounded), or None to keep only their end in memory.
        hotplug_slots: how many devices :meth:`Vm.add_device` may add later.
        slotted: ids of devices that are in such slots from the start, so that :meth:`Vm.remove_device` can remove them.
        image: where the memory is; None for anonymous memory.
        growth_mib: how much memory :meth:`Vm.grow` may add, beside ``memory_mib``.
    """

    name: str
    kernel: Path
    initrd: Path | None
    cmdline: tuple[str, ...]
    memory_mib: int
    vcpus: int
    shared_memory: bool
    accelerator: Accelerator
    devices: tuple[Device, ...] = ()
    log: Path | None = None
    hotplug_slots: int = 0
    slotted: tuple[str, ...] = ()
    image: Image | None = None
    mergeable: bool = True
    growth_mib: int = 0

    def __post_init__(self) -> None:
        if not _PORT.match(self.name):
            raise HypervisorError(f"bad machine name {self.name!r}", "use at most 63 letters, digits, '.', '_' or '-'")
        for word in self.cmdline:
            if not word.isascii() or not word.isprintable() or not word or " " in word:
                raise HypervisorError(
                    f"bad kernel argument {word!r}", "arguments are printable ASCII without white space"
                )
        if sum(len(word) + 1 for word in self.cmdline) > 2047:
            raise HypervisorError("the kernel arguments are longer than the kernel's 2047 bytes")
        if not 32 <= self.memory_mib <= 1 << 22:
            raise HypervisorError(f"guest memory of {self.memory_mib} MiB is out of bounds", "give 32 MiB to 4 TiB")
        if not 0 <= self.growth_mib <= 1 << 22 or self.growth_mib % GROW_STEP_MIB:
            raise HypervisorError(f"memory cannot grow by {self.growth_mib} MiB", "give an even number, at most 4 TiB")
        if not 1 <= self.vcpus <= 256:
            raise HypervisorError(f"{self.vcpus} virtual processors are out of bounds", "give 1 to 256")
        if not 0 <= self.hotplug_slots <= MAX_SLOTS:
            raise HypervisorError(f"{self.hotplug_slots} hot-plug slots are out of bounds", f"give 0 to {MAX_SLOTS}")
        ids = [device.id for device in self.devices]
        if len(set(ids)) != len(ids):
            raise HypervisorError("two devices of the machine have the same id")
        if not set(self.slotted) <= set(ids) or len(self.slotted) > self.hotplug_slots:
            raise HypervisorError(f"{len(self.slotted)} devices do not fit into {self.hotplug_slots} hot-plug slots")
        if self.image is not None:
            if self.shared_memory or any(isinstance(device, SharedFs) for device in self.devices):
                raise HypervisorError("a machine that is saved shares its window only", "plug shared files in later")
            if not self.image.window_mib < self.memory_mib <= MAX_IMAGE_MIB:
                raise HypervisorError(f"a machine that is saved has at most {MAX_IMAGE_MIB} MiB of memory")
        if not self.shared_memory and any(isinstance(device, SharedFs) for device in self.devices):
            raise HypervisorError("a shared file system needs shared guest memory", "set shared_memory")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a driver can do here.

    Arguments:
        available: whether machines can be made at all; if not, ``problem`` says why in one line.
        version: the VMM's version, such as ``7.2.22``.
        hotplug, pause, shared_fs, vsock: whether the operation or device works.
        max_vcpus: most virtual processors.
    """

    available: bool
    problem: str
    version: str
    hotplug: bool
    pause: bool
    shared_fs: bool
    vsock: bool
    max_vcpus: int


class VmStatus(enum.Enum):
    """Where a machine is in its life."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"


class ExitCause(enum.Enum):
    """Why a machine ended."""

    GUEST_SHUTDOWN = "guest-shutdown"
    """The guest powered itself off."""
    GUEST_RESET = "guest-reset"
    """The guest restarted, which ends a machine: its kernel panicked, or somebody rebooted it."""
    GUEST_PANIC = "guest-panic"
    """The guest told of a panic or of an unrecoverable processor state."""
    STOPPED = "stopped"
    """:meth:`Vm.stop` or :meth:`Vm.kill` was called."""
    FAILED = "failed"
    """The VMM was killed by somebody else, crashed or refused."""


@dataclass(frozen=True, slots=True)
class VmExit:
    """How a machine ended.

    Arguments:
        cause: why.
        status: the VMM's exit status, or None where a signal ended it.
        signal: that signal, or None.
        reason: one line for people.
    """

    cause: ExitCause
    status: int | None
    signal: int | None
    reason: str


class Vm(ABC):
    """One machine. Methods may be called from any thread.

    Every method but :meth:`kill`, :meth:`wait`, :meth:`on_exit` and :meth:`status` raises
    :class:`~casemate.errors.HypervisorError` when the machine has ended, with the reason of the end.
    """

    @property
    @abstractmethod
    def pid(self) -> int:
        """The VMM's process id, or 0 before :meth:`start`."""

    @abstractmethod
    def start(self, timeout: float = 30.0) -> None:
        """Start the VMM and the guest; returns when the VMM answers, long before the guest has booted.

        Raises:
            HypervisorError: it did not come up within ``timeout`` seconds or ended; nothing is left running.
        """

    @abstractmethod
    def save(self, state_fd: int, timeout: float = 30.0) -> None:
        """Stop a machine that has an :class:`Image`, and write down all but its memory, which is in the image's files.

        Arguments:
            state_fd: a file to write to; not closed.

        Raises:
            HypervisorError: it was refused or took longer than ``timeout`` seconds. The machine is of no more use.
        """

    @abstractmethod
    def grow(self, mib: int) -> None:
        """Offer the guest memory beside what it began with; its kernel takes it over bit by bit.

        Arguments:
            mib: how much in all, at most the spec's ``growth_mib``; rounded up to :data:`GROW_STEP_MIB`.

        Raises:
            HypervisorError: it is more than that, or was refused.
        """

    @abstractmethod
    def pause(self) -> None:
        """Stop the guest's processors."""

    @abstractmethod
    def resume(self) -> None:
        """Let the guest's processors go on."""

    @abstractmethod
    def add_device(self, device: Device) -> None:
        """Plug in a device; takes one of the spec's hot-plug slots. Owns the device's descriptor, whatever happens."""

    @abstractmethod
    def remove_device(self, id: str, timeout: float = 10.0) -> None:
        """Unplug a device that is in a hot-plug slot, and wait until the guest has let it go.

        Raises:
            HypervisorError: it did not within ``timeout`` seconds. A network interface is cut off all the same, and
                its descriptor closed; the slot stays taken.
        """

    @abstractmethod
    def stop(self, timeout: float = 5.0) -> VmExit:
        """End the machine: ask the VMM to quit, and kill it after ``timeout`` seconds. Does not ask the guest."""

    @abstractmethod
    def kill(self) -> None:
        """Kill the VMM at once. Does nothing when it has ended."""

    @abstractmethod
    def wait(self, timeout: float | None = None) -> VmExit | None:
        """Wait for the end; None when ``timeout`` seconds pass first."""

    @abstractmethod
    def on_exit(self, callback: Callable[[VmExit], None]) -> None:
        """Call ``callback`` once when the machine ends, on a thread of the machine's; at once if it has ended."""

    @abstractmethod
    def status(self) -> VmStatus:
        """Where the machine is in its life."""


class Hypervisor(ABC):
    """One kind of VMM."""

    name: str
    saves = False
    """Whether its machines can be saved and made again: :class:`Image`, :meth:`Vm.save`."""
    copies = False
    """Whether its machines may be copies of one that stands still (:mod:`casemate.vm.twins`)."""

    @abstractmethod
    def probe(self) -> Capabilities:
        """What this driver can do on this host. Starts no machine."""

    @abstractmethod
    def create(self, spec: VmSpec, jail: Confinement) -> Vm:
        """Prepare a machine; nothing runs until :meth:`Vm.start`.

        Raises:
            HypervisorError: the spec asks for what the driver cannot do, or a file cannot be opened; the spec's
                descriptors are closed all the same.
        """

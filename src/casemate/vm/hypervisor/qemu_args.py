"""From typed values to QEMU's command line and to the arguments of its control commands.

A device is worked out once, as :class:`Parts`: plain tables in QEMU's own words. :func:`command_line` writes them as
options, :mod:`.qemu` sends the same tables over QMP when a device is plugged in later.

QEMU splits an option at commas; a comma in a value is written twice (:manpage:`qemu(1)`, "Notes" of the option syntax).
:func:`option` is the one place where an option is put together, and no other text reaches the command line but the
kernel's arguments, which are an argument of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from casemate.errors import HypervisorError
from casemate.vm.hypervisor.base import (
    GROW_STEP_MIB,
    Accelerator,
    AgentPort,
    Balloon,
    Block,
    Device,
    Net,
    Rng,
    SerialConsole,
    SharedFs,
    VmSpec,
    Vsock,
)

Value: TypeAlias = str | int | bool
_KEY = re.compile(r"[a-z][a-z0-9._-]*\Z")

TB_CACHE_MIB = 64
"""Size of the translation cache under TCG; see docs/hypervisor.md for what was measured."""
TCG_CPU: Mapping[str, bool] = {"la57": False, "erms": False, "fsrm": False}
"""What ``-cpu max`` leaves out under TCG. With erms or fsrm the guest's kernel copies by ``rep movsb``, which TCG does
byte by byte: three times slower than the eight bytes of ``rep movsq``. la57 adds a level to every page walk."""
_BRIDGE = "slots"
GROWTH = "growth"
"""The device by which memory is added; what it has does not depend on how much that is."""
WINDOW_NODE = 1
"""The number of the window's memory node in the guest."""
SHARE_QUEUE = 1024
"""Length of a shared file system's request queue, the most that QEMU and virtiofsd take."""


@dataclass(frozen=True, slots=True)
class Arch:
    """What differs between guest architectures.

    Arguments:
        machine: the machine type, with what is switched off.
        console: the kernel's console.
        tcg_arguments: kernel arguments under TCG, where the frequency of the host's counter (``{khz}``) is known.
        firmware: what starts the kernel: the fast one (used where QEMU's data directory has it), else QEMU's default.
        hotplug_bridge: the bridge that hot-plugged devices sit behind, or an empty string.
    """

    machine: tuple[str, Mapping[str, Value]]
    console: str
    tcg_arguments: tuple[str, ...]
    firmware: str
    hotplug_bridge: str


ARCHES: Mapping[str, Arch] = {
    "x86_64": Arch(
        machine=(
            "q35",
            {
                "sata": False,
                "smbus": False,
                "i8042": False,
                "vmport": False,
                "hpet": False,
                "usb": False,
                "graphics": False,
            },
        ),
        console="ttyS0",
        # All virtual processors' counters are the host's one. Without the first the kernel's watchdog distrusts them
        # when the host is busy, and every look at the clock becomes a system call and a device access. Without the
        # second the kernel measures the frequency, which a busy host falsifies (see counter.py); so never the first
        # without the second.
        tcg_arguments=("tsc=reliable", "tsc_early_khz={khz}"),
        firmware="qboot.rom",
        # One for all: each root port would cost the guest a tenth of a second at its start.
        hotplug_bridge="pcie-pci-bridge",
    ),
}
"""The one table of architectures. Another one comes with a guest bundle for it."""


def text(value: Value) -> str:
    """A value as QEMU reads it, its commas doubled.

    Raises:
        HypervisorError: it holds a character that is not printable.
    """
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return str(value)
    if not value.isprintable():
        raise HypervisorError(f"a value for QEMU holds an unprintable character: {value!r}")
    return value.replace(",", ",,")


def option(first: str, values: Mapping[str, Value]) -> str:
    """One option's text: ``first,key=value,...``.

    Arguments:
        first: the leading word without a key, or an empty string where all have keys.
        values: keys in QEMU's spelling.
    """
    words = [text(first)] if first else []
    for key, value in values.items():
        if not _KEY.match(key):
            raise HypervisorError(f"bad option key for QEMU: {key!r}")
        words.append(f"{key}={text(value)}")
    return ",".join(words)


@dataclass(slots=True)
class Parts:
    """A device in QEMU's words.

    Arguments:
        device: arguments of ``-device`` and ``device_add``.
        chardev: (id, descriptor) of a socket character device, if any.
        fdset: (number of the set, descriptor) for a file opened by descriptor, if any.
        blockdev, netdev, object: the back end's arguments, if any. ``netdev`` has no descriptor in it yet.
        fd_key: ("netdev" or "device", key) that takes the descriptor's number or name.
        fd: the descriptor for ``fd_key``.
    """

    device: dict[str, Value]
    chardev: tuple[str, int] | None = None
    fdset: tuple[int, int] | None = None
    blockdev: dict[str, Value] = field(default_factory=dict)
    netdev: dict[str, Value] = field(default_factory=dict)
    object: dict[str, Value] = field(default_factory=dict)
    fd_key: tuple[str, str] | None = None
    fd: int = -1


def parts(device: Device, fdset: int = 0, *, window: bool = False) -> Parts:
    """Work out a device.

    Arguments:
        device: what to plug in. A :class:`Block` must already hold a descriptor.
        fdset: the number of QEMU's descriptor set to use, for a block device.
        window: the file servers see a part of the guest's memory, so that the guest's kernel has to go through that.
    """
    pci: dict[str, Value] = {"disable-legacy": "on"}
    match device:
        case Block(id=id, source=int(fd), read_only=read_only, host_device=host_device):
            back = id + ".file"
            return Parts(
                {
                    "driver": "virtio-blk-pci",
                    "id": id,
                    "drive": back,
                    "serial": id,
                    "write-cache": "off" if read_only else "on",
                    **pci,
                },
                fdset=(fdset, fd),
                blockdev={
                    "driver": "host_device" if host_device else "file",
                    "node-name": back,
                    "filename": f"/dev/fdset/{fdset}",
                    "read-only": read_only,
                    "auto-read-only": False,
                    "locking": "off",  # many machines read one image; a writable one is the caller's own
                    "aio": "threads",
                },
            )
        case SerialConsole(id=id, fd=fd):
            return Parts({"driver": "isa-serial", "id": id, "chardev": id + ".chr"}, chardev=(id + ".chr", fd))
        case AgentPort(id=id, fd=fd, name=name):
            return Parts(
                {"driver": "virtserialport", "id": id, "chardev": id + ".chr", "name": name},
                chardev=(id + ".chr", fd),
            )
        case SharedFs(id=id, fd=fd, tag=tag):
            return Parts(
                {
                    "driver": "vhost-user-fs-pci",
                    "id": id,
                    "chardev": id + ".chr",
                    "tag": tag,
                    "queue-size": SHARE_QUEUE,
                    **({"iommu_platform": True} if window else {}),
                },
                chardev=(id + ".chr", fd),
            )
        case Net(id=id, mac=mac, tap_fd=fd, mtu=mtu):
            return Parts(
                {
                    "driver": "virtio-net-pci",
                    "id": id,
                    "netdev": id + ".net",
                    "mac": mac,
                    "host_mtu": mtu,
                    "romfile": "",
                    **pci,
                },
                netdev={"type": "tap", "id": id + ".net", "vhost": False},
                fd_key=("netdev", "fd"),
                fd=fd,
            )
        case Vsock(id=id, cid=cid, fd=fd):
            return Parts(
                {"driver": "vhost-vsock-pci", "id": id, "guest-cid": cid, **pci}, fd_key=("device", "vhostfd"), fd=fd
            )
        case Rng(id=id):
            return Parts(
                {"driver": "virtio-rng-pci", "id": id, "rng": id + ".src", **pci},
                object={"qom-type": "rng-builtin", "id": id + ".src"},
            )
        case Balloon(id=id, free_page_reporting=reporting):
            return Parts(
                {"driver": "virtio-balloon-pci", "id": id, "free-page-reporting": reporting, **pci},
            )
    raise HypervisorError(f"the QEMU driver cannot make {device!r}")


def kernel_arguments(arch: Arch, spec: VmSpec, counter_khz: int | None) -> str:
    """The kernel's command line: what the machine needs, then the spec's own arguments, which win."""
    own = [f"console={arch.console}", "panic=-1", "reboot=t"]
    if spec.accelerator is Accelerator.TCG and counter_khz is not None:
        own += [word.format(khz=counter_khz) for word in arch.tcg_arguments]
    line = " ".join((*own, *spec.cmdline))
    if len(line) > 2047:
        raise HypervisorError("the kernel arguments are longer than the kernel's 2047 bytes")
    return line


def command_line(
    program: str,
    spec: VmSpec,
    arch: Arch,
    *,
    kernel_fd: int,
    initrd_fd: int | None,
    qmp_fd: int,
    firmware: bool,
    counter_khz: int | None = None,
    sandbox: bool = True,
) -> list[str]:
    """The whole command line. Every file and socket in it is a descriptor.

    Arguments:
        program: QEMU's path.
        spec: the machine, its block devices with descriptors.
        arch: the entry of :data:`ARCHES`.
        kernel_fd, initrd_fd: open files; the second None where there is no initial root.
        qmp_fd: the control socket.
        firmware: whether ``arch.firmware`` is there.
        counter_khz: the frequency of the host's time-stamp counter, None where it is not known.
        sandbox: QEMU is to forbid itself what it does not need.
    """
    kvm = spec.accelerator is Accelerator.KVM
    machine, switches = arch.machine
    argv = [program, "-name", option("", {"guest": spec.name, "debug-threads": False})]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-msg", "timestamp=off"]
    if sandbox:
        # The filter is installed after start-up: from then on QEMU can neither start programs nor change user.
        denied: dict[str, Value] = dict.fromkeys(("obsolete", "elevateprivileges", "spawn", "resourcecontrol"), "deny")
        argv += ["-sandbox", option("on", denied)]
    argv += [
        "-machine",
        option(
            machine,
            {
                **switches,
                "dump-guest-core": False,
                "mem-merge": spec.mergeable,
                **({} if spec.image is not None else {"memory-backend": "ram"}),
            },
        ),
    ]
    argv += ["-action", "reboot=shutdown,shutdown=poweroff,panic=exit-failure,watchdog=poweroff"]
    if kvm:
        argv += ["-accel", "kvm", "-cpu", "host"]
    else:
        argv += ["-accel", option("tcg", {"thread": "multi", "tb-size": TB_CACHE_MIB}), "-cpu", option("max", TCG_CPU)]
    most = f",maxmem={spec.memory_mib + spec.growth_mib}M" if spec.growth_mib else ""
    argv += ["-m", f"{spec.memory_mib}M{most}", "-smp", str(spec.vcpus), *_memory(spec)]
    if firmware:
        argv += ["-bios", arch.firmware]
    # Through /proc because QEMU opens these two itself, as a user who need not be able to reach the files' directory.
    argv += ["-kernel", f"/proc/self/fd/{kernel_fd}"]
    if initrd_fd is not None:
        argv += ["-initrd", f"/proc/self/fd/{initrd_fd}"]
    argv += ["-append", kernel_arguments(arch, spec, counter_khz)]
    argv += _chardev("qmp", qmp_fd) + ["-mon", "chardev=qmp,mode=control"]
    if any(isinstance(device, AgentPort) for device in spec.devices):
        argv += ["-device", option("virtio-serial-pci", {"id": "ports", "max_ports": 4, "disable-legacy": "on"})]
    places: dict[str, dict[str, Value]] = {}
    if spec.hotplug_slots:
        if not arch.hotplug_bridge:
            raise HypervisorError("devices cannot be plugged into this machine later", "ask for no hot-plug slots")
        argv += ["-device", option(arch.hotplug_bridge, {"id": _BRIDGE})]
        places = {id: slot_address(slot) for slot, id in enumerate(spec.slotted)}
        places[_anchor(spec)] = {"bus": _BRIDGE, "addr": "1"}
    for number, device in enumerate(spec.devices, 1):
        part = parts(device, number)
        part.device.update(places.get(device.id, {}))
        argv += _device_options(part)
    if spec.growth_mib:
        argv += _growth(spec)
    if spec.image is not None and spec.image.state_fd is not None:
        argv += ["-incoming", "defer"]
    return argv


def _memory(spec: VmSpec) -> list[str]:
    """The options for the guest's memory."""
    if spec.image is None:
        backend = "memory-backend-memfd" if spec.shared_memory else "memory-backend-ram"
        memory: dict[str, Value] = {
            "id": "ram", "size": f"{spec.memory_mib}M", "share": spec.shared_memory, "prealloc": False,
            # Linux takes MADV_MERGEABLE for a shared mapping and does nothing (vma_ksm_compatible in mm/ksm.c).
            "merge": spec.mergeable and not spec.shared_memory,
        }  # fmt: skip
        return ["-object", option(backend, memory)]
    image = spec.image
    if image.memory_fd is None:
        raise HypervisorError("the memory of this machine is in no file", "give its image one")
    kept = image.state_fd is None
    argv: list[str] = []
    # Two nodes, so that the window is the end of memory, where the guest's kernel puts its bounce buffers, and has a
    # number by which a device can be told to have its queues there.
    for node, (name, size, fd, share) in enumerate(
        (
            ("ram", spec.memory_mib - image.window_mib, image.memory_fd, kept),
            ("window", image.window_mib, image.window_fd, True),
        )
    ):
        table: dict[str, Value] = {
            "id": name, "size": f"{size}M", "mem-path": f"/proc/self/fd/{fd}", "share": share, "prealloc": False,
            "merge": spec.mergeable and not share,
        }  # fmt: skip
        argv += ["-object", option("memory-backend-file", table)]
        cpus: dict[str, Value] = {"cpus": f"0-{spec.vcpus - 1}"} if node == WINDOW_NODE - 1 else {}
        argv += ["-numa", option("node", {"nodeid": node, **cpus, "memdev": name})]
    return argv


def _growth(spec: VmSpec) -> list[str]:
    """The options for memory that is added later: anonymous, and none of it reserved before."""
    memory: dict[str, Value] = {
        "id": GROWTH + ".ram", "size": f"{spec.growth_mib}M", "reserve": False, "prealloc": False,
        "share": spec.shared_memory, "merge": spec.mergeable and not spec.shared_memory,
    }  # fmt: skip
    device: dict[str, Value] = {
        "id": GROWTH, "memdev": GROWTH + ".ram", "node": 0, "requested-size": 0, "disable-legacy": "on",
        "block-size": f"{GROW_STEP_MIB}M",
    }  # fmt: skip
    return [
        "-object", option("memory-backend-ram", memory), "-device", option("virtio-mem-pci", device),
    ]  # fmt: skip


def _anchor(spec: VmSpec) -> str:
    """The device that is behind the bridge from the start.

    A kernel gives a bridge no room for addresses when nothing is behind it. For one device it has to give the least
    that a bridge can have, a mebibyte of either kind, and a device takes 4 and 16 KiB of it.
    """
    for kind in (Rng, Balloon, Block, Net):
        for device in spec.devices:
            if isinstance(device, kind) and device.id not in spec.slotted:
                return device.id
    raise HypervisorError("no device can be plugged into a machine without any", "give it a source of randomness")


def slot_address(slot: int) -> dict[str, Value]:
    """Where a hot-plug slot is, as arguments of a device."""
    return {"bus": _BRIDGE, "addr": f"{slot + 2:x}"}


def fdset_number(device_count: int, plugged: int) -> int:
    """The number of the descriptor set of the n-th device plugged in later."""
    return device_count + 1 + plugged


def _chardev(id: str, fd: int) -> list[str]:
    return ["-chardev", option("socket", {"id": id, "fd": fd})]


def _device_options(part: Parts) -> list[str]:
    argv: list[str] = []
    device, netdev = dict(part.device), dict(part.netdev)
    if part.chardev:
        argv += _chardev(*part.chardev)
    if part.fdset:
        number, fd = part.fdset
        argv += ["-add-fd", option("", {"fd": fd, "set": number})]
    if part.fd_key:
        where, key = part.fd_key
        (netdev if where == "netdev" else device)[key] = part.fd
    if part.blockdev:
        argv += ["-blockdev", option("", part.blockdev)]
    if netdev:
        argv += ["-netdev", option(str(netdev.pop("type")), netdev)]
    if part.object:
        table = dict(part.object)
        argv += ["-object", option(str(table.pop("qom-type")), table)]
    return [*argv, "-device", option(str(device.pop("driver")), device)]

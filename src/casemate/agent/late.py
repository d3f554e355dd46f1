"""A guest that is saved when it is ready, and becomes one sandbox or another when it is made again from what was saved.

Until then it has no files, no network and no name. What can be done once for all is done before (:func:`prepare`); what
comes with the sandbox arrives as devices that are plugged in, and :func:`attach` takes them into use.

**The window.** The host's file servers see the last part of the guest's memory only: all else belongs to the VMM. The
kernel is told so by ``swiotlb=…,force``: what goes to a device that asks for it is copied through buffers that the
kernel has put at the end of memory. The device's queues are not; the kernel takes them from the memory node that the
device is said to be near to, so that is set before a driver gets hold of the device.

**How devices are found.** The machine tells of a device by an ACPI event, on which the kernel interprets a good deal of
the firmware's code before it looks at the bus. Where the guest is emulated that costs more than the device's driver. So
until a while after the first container the event is masked, and the agent has the kernel look at the bus.
"""

from __future__ import annotations

import gc
import os
from time import monotonic, sleep

from casemate.agent.devices import PATIENCE, wait_for
from casemate.agent.system import bad, get_int, get_list, log, read_text, read_whole, write_text
from casemate.protocol import threads
from casemate.protocol.wire import RequestFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

WORD = "casemate.template"
"""Among the kernel's arguments: this guest is going to be saved."""
BUS = "/sys/bus/virtio"
VIRTIO_ID_FS = "0x001a"
DRIVERS = ("virtio_net", "virtio_blk", "virtiofs")
"""Modules of what may be plugged in."""
MAX_SHARES = 8
MAX_GROWN_MIB = 1 << 22
MEMORY_PATIENCE = 30.0
"""Seconds that the kernel may need to take over memory: much of it, perhaps, on an emulated processor that is busy."""
AUTO_ONLINE = "/sys/devices/system/memory/auto_online_blocks"
EVENT = "/sys/firmware/acpi/interrupts/gpe01"
"""The event by which a machine tells of devices that were plugged in or are to go (acpi_pci_hotplug of QEMU)."""
REPORTING = "/sys/module/page_reporting/parameters/page_reporting_order"
REPORTED = "1"
"""How much memory that is free in one piece the host is told of: a power of two of pages. The kernel's own number is 2
MiB, and in a small guest as much again is free in smaller pieces. It tells of what has been free for two seconds, and
of a sixteenth at a time, so a guest that has much to do hardly notices."""
BUSES = "/sys/class/pci_bus"
THREADS = 8
"""That wait for something to do: a container's streams, its watch, its end."""
QUIET = 2.0
"""Seconds after the first container's devices have come, for which the event stays masked."""
FIRST_KIB, MORE_KIB = 32, 128
"""How much of a shared file is read at once until then, and later. A program that begins needs a page here and a page
there; where the guest is emulated, each of those that were read for nothing takes a tenth of a millisecond. The second
is the kernel's own number."""
_masked = False
_round = 0
"""How often devices were attached, so that nobody unmasks the event for those of an earlier round."""
_lock = threads.Lock()
_mounted: set[str] = set()
_base_kib = 0
"""All memory of the guest when it was saved."""


def wanted() -> bool:
    """Whether this guest is going to be saved."""
    return WORD in read_text("/proc/cmdline").split()


def prepare(crun: str, run: Callable[[list[str], tuple[int, int, int], float], object]) -> None:
    """Do what every sandbox would do first, and have devices wait for :func:`attach`.

    Arguments:
        crun: the program that makes containers; once it has run it is in memory.
        run: runs a program, as :meth:`casemate.agent.processes.Reaper.run_program`.

    Raises:
        OSError: the kernel refused something.
    """
    from casemate.agent import modules  # here, because most guests are not saved

    global _base_kib
    for name in DRIVERS:
        modules.load(name)
    # Not "movable": the kernel keeps its books on memory, too, in what it has got already, 16 MiB for each gibibyte.
    write_text(AUTO_ONLINE, "online_kernel")
    _base_kib = _total_kib()
    write_text(f"{BUS}/drivers_autoprobe", "0")
    _mask()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        run([crun, "--version"], (null, null, null), PATIENCE)
    finally:
        os.close(null)


def settle() -> None:
    """Have threads ready for the first container, and all of the agent's program in memory, and stay there as it is."""
    threads.park(THREADS)
    for path in {line.partition("/")[2] for line in read_whole("/proc/self/maps", 1 << 20).splitlines()}:
        if path and os.path.isfile(f"/{path}"):
            _read(f"/{path}")
    gc.collect()
    gc.freeze()


def _read(path: str) -> None:
    """What the first steps would otherwise have to wait for the disk for."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while os.read(fd, 1 << 20):
            pass
    finally:
        os.close(fd)


def attach(
    params: dict[str, Any], mount: Callable[[str], None], read_ahead: Callable[[str, int], None]
) -> None:
    """Take into use what was plugged in.

    Arguments:
        params: ``tags`` of the shared file systems, ``node``: the memory node of the window, ``grown``: how many MiB
            of memory the host adds to those that there were. The host says all of it again with the next container
            where the first could not be made; what is done is left out then.
        mount: is given each tag when its device works.
        read_ahead: is given a tag and a number of KiB, see :data:`FIRST_KIB`.

    Raises:
        RequestFailed: ``bad-spec``, or a device did not come. OSError: the kernel refused something.
    """
    if os.path.exists(REPORTING):
        write_text(REPORTING, REPORTED)
    tags = [str(tag) for tag in get_list(params, "tags", MAX_SHARES) if str(tag) not in _mounted]
    node = get_int(params, "node", 0, 1023)
    found = _look_at_buses(len(tags)) or wait_for(lambda: _shares(len(tags)), PATIENCE)
    if found is None:
        raise bad(f"{len(tags)} shared file systems were to be plugged in, and have not all come")
    for name in found:
        write_text(f"{BUS}/devices/{name}/../numa_node", str(node))  # of what the name leads to: the bus's device
        write_text(f"{BUS}/drivers_probe", name)
    for tag in tags:
        mount(tag)
        _mounted.add(tag)
        read_ahead(tag, FIRST_KIB)
    # From here on devices find their drivers by themselves; those that came between are told.
    write_text(f"{BUS}/drivers_autoprobe", "1")
    for name in _unbound():
        write_text(f"{BUS}/drivers_probe", name)
    wait_for_memory(get_int(params, "grown", 0, MAX_GROWN_MIB))
    round = _round
    threads.start(lambda: _be_quiet(round, read_ahead))


def detach(unmount: Callable[[str], None]) -> None:
    """Give back what was plugged in, so that the host can take it away.

    Arguments:
        unmount: is given each tag.

    Raises:
        OSError: something is in use.
    """
    for tag in sorted(_mounted):
        unmount(tag)
        _mounted.remove(tag)
    listen()


def rest() -> None:
    """Be as after :func:`prepare`: devices that are plugged in from now on wait for :func:`attach`. Raises OSError."""
    global _round
    write_text(f"{BUS}/drivers_autoprobe", "0")
    with _lock:
        _round += 1
        _mask()


def _mask() -> None:
    global _masked
    if os.path.exists(EVENT):
        write_text(EVENT, "mask\n")
        _masked = True


def listen() -> None:
    """Hear of devices from the machine from now on, and of those that have come or are to go meanwhile."""
    global _masked
    with _lock:
        masked, _masked = _masked, False
        if masked:
            write_text(EVENT, "unmask\n")


def _be_quiet(round: int, read_ahead: Callable[[str, int], None]) -> None:
    sleep(QUIET)
    if round != _round:
        return
    listen()
    for tag in sorted(_mounted):
        try:
            read_ahead(tag, MORE_KIB)
        except OSError as error:  # it is slower then, no more
            log(f"{tag}: more cannot be read at once: {error.strerror}")


def _look_at_buses(count: int) -> list[str] | None:
    """Have the kernel look for devices itself, while the machine does not tell of them; the file systems among them,
    or None while there are fewer than ``count``."""
    if not _masked:
        return None
    for name in os.listdir(BUSES):
        if not name.endswith(":00"):  # nothing is plugged into the root bus
            write_text(f"{BUSES}/{name}/rescan", "1")
    found = _shares(count)
    if found is None:
        listen()
    return found


def wait_for_memory(grown_mib: int) -> None:
    """Wait until the kernel has taken over the memory that the host adds: the container is to find all of it.

    Raises:
        RequestFailed: ``failed``: it did not come.
    """
    wanted, deadline = _base_kib + (grown_mib << 10), monotonic() + MEMORY_PATIENCE
    while _total_kib() < wanted:
        if monotonic() > deadline:
            raise RequestFailed("failed", f"{grown_mib} MiB of memory were to be added, and have not all come")
        sleep(0.01)  # of memory that becomes part of a block that is there the kernel tells nobody


def _total_kib() -> int:
    """``MemTotal`` of proc_meminfo(5), in KiB."""
    return int(read_text("/proc/meminfo").split(None, 2)[1])


def _shares(count: int) -> list[str] | None:
    """The devices of shared file systems that no driver has yet, or None while there are fewer."""
    names = [name for name in _unbound() if _id(name) == VIRTIO_ID_FS]
    return names if len(names) >= count else None


def _unbound() -> list[str]:
    found = sorted(os.listdir(f"{BUS}/devices"))
    return [name for name in found if not os.path.exists(f"{BUS}/devices/{name}/driver")]


def _id(name: str) -> str:
    return read_text(f"{BUS}/devices/{name}/device", 16).strip()

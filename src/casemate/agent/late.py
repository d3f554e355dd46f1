"""A guest that is saved when it is ready, and becomes one sandbox or another when it is made again from what was saved.

Until then it has no files, no network and no name. What can be done once for all is done before (:func:`prepare`); what
comes with the sandbox arrives as devices that are plugged in, and :func:`attach` takes them into use.

**The window.** The host's file servers see the last part of the guest's memory only: all else belongs to the VMM. The
kernel is told so by ``swiotlb=…,force``: what goes to a device that asks for it is copied through buffers that the
kernel has put at the end of memory. The device's queues are not; the kernel takes them from the memory node that the
device is said to be near to, so that is set before a driver gets hold of the device.
"""

from __future__ import annotations

import gc
import os
from time import monotonic, sleep

from casemate.agent.devices import PATIENCE, wait_for
from casemate.agent.system import bad, get_int, get_list, read_text, write_text
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
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        run([crun, "--version"], (null, null, null), PATIENCE)
    finally:
        os.close(null)
    gc.collect()
    gc.freeze()


def attach(params: dict[str, Any], mount: Callable[[str], None]) -> None:
    """Take into use what was plugged in.

    Arguments:
        params: ``tags`` of the shared file systems, ``node``: the memory node of the window, ``grown``: how many MiB
            of memory the host adds to those that there were. The host says all of it again with the next container
            where the first could not be made; what is done is left out then.
        mount: is given each tag when its device works.

    Raises:
        RequestFailed: ``bad-spec``, or a device did not come. OSError: the kernel refused something.
    """
    tags = [str(tag) for tag in get_list(params, "tags", MAX_SHARES) if str(tag) not in _mounted]
    node = get_int(params, "node", 0, 1023)
    found = wait_for(lambda: _shares(len(tags)), PATIENCE)
    if found is None:
        raise bad(f"{len(tags)} shared file systems were to be plugged in, and have not all come")
    for name in found:
        write_text(f"{os.path.realpath(f'{BUS}/devices/{name}')}/../numa_node", str(node))
        write_text(f"{BUS}/drivers_probe", name)
    for tag in tags:
        mount(tag)
        _mounted.add(tag)
    # From here on devices find their drivers by themselves; those that came between are told.
    write_text(f"{BUS}/drivers_autoprobe", "1")
    for name in _unbound():
        write_text(f"{BUS}/drivers_probe", name)
    wait_for_memory(get_int(params, "grown", 0, MAX_GROWN_MIB))


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

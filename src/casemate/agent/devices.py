"""Devices that may still be on their way, and the guest's disks by the numbers that they have on the host."""

from __future__ import annotations

import os
from _socket import AF_NETLINK, SOCK_CLOEXEC, SOCK_RAW, socket
from time import monotonic

from casemate.agent.processes import wait_readable
from casemate.agent.system import bad, read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

NETLINK_KOBJECT_UEVENT = 15
PATIENCE = 10.0
"""Seconds that a device may take to appear which the host has just plugged in."""
BLOCKS = "/sys/block"


def wait_for(find: Callable[[], T | None], timeout: float) -> T | None:
    """Look for something now, and again whenever the kernel tells that a device has come, gone or changed.

    Arguments:
        find: returns it, or None while it is not there.
        timeout: seconds.

    Returns:
        what was found, None when the time ran out.
    """
    found = find()
    if found is not None:
        return found
    deadline = monotonic() + timeout
    events = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT)
    try:
        # Listening begins before looking once more, so that what appears in between is not missed.
        events.bind((0, 1))
        while (found := find()) is None:
            left = deadline - monotonic()  # not only of silence: a container may have the kernel tell without end
            if left <= 0 or not wait_readable(events.fileno(), left):
                return None
            try:
                events.recv(65536)
            except OSError:  # ENOBUFS: so many came that some were lost
                continue
        return found
    finally:
        events.close()


def disk(major: int, minor: int, directory: str = BLOCKS) -> tuple[int, int]:
    """The guest's numbers of the disk that stands for a block device of the host.

    Arguments:
        major, minor: the host's numbers. The host gives the disk the serial number ``cm-MAJOR-MINOR``.
        directory: where the kernel shows block devices.

    Raises:
        RequestFailed: ``bad-spec``: there is none.
    """
    found = wait_for(lambda: _find(f"cm-{major}-{minor}", directory), PATIENCE)
    if found is None:
        raise bad(f"the guest has no disk for the block device {major}:{minor}")
    return found


def known_disk(major: int, minor: int, directory: str = BLOCKS) -> tuple[int, int] | None:
    """As :func:`disk`, without waiting; None when there is none."""
    return _find(f"cm-{major}-{minor}", directory)


def _find(serial: str, directory: str) -> tuple[int, int] | None:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return None
    for name in names:
        if read_text(f"{directory}/{name}/serial", 64).strip() == serial:
            major, _, minor = read_text(f"{directory}/{name}/dev", 64).strip().partition(":")
            if major.isdigit() and minor.isdigit():
                return int(major), int(minor)
    return None

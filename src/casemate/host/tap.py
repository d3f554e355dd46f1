"""Making taps, for a virtual machine monitor to serve."""

from __future__ import annotations

import fcntl
import os
import struct

from casemate.errors import NetworkError

# ioctl(2) number and flags of linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_IFREQ = 40  # bytes of struct ifreq: a name of 16 and a union


def open_tap(name: str) -> tuple[int, str]:
    """Make a tap in the calling thread's network namespace; it goes when its descriptor is closed.

    It has one queue and the virtio-net header (IFF_VNET_HDR): large segments and unfinished checksums pass as far as
    whoever serves it says that it can take them (TUNSETOFFLOAD).

    Arguments:
        name: of the interface; the kernel puts a free number for ``%d``.

    Returns:
        its descriptor (close-on-exec), and the name that it got.

    Raises:
        NetworkError: it cannot be made.
    """
    try:
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise NetworkError(f"cannot open /dev/net/tun: {error.strerror}", "modprobe tun, and run as root") from None
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        request = fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH", name.encode(), flags).ljust(_IFREQ, b"\0"))
    except OSError as error:
        os.close(tap)
        raise NetworkError(f"cannot make a tap: {error.strerror}", "run as root") from None
    return tap, request[:16].partition(b"\0")[0].decode()

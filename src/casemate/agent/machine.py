"""The guest as a whole: clock, random numbers, name, network, figures."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import time
from _socket import sethostname
from binascii import Error, a2b_base64

from casemate import __version__
from casemate.agent import network
from casemate.agent.system import bad, get_dict, get_int, get_list, get_text, log, read_text, write_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207
MAX_ENTROPY = 512

SYSCTLS = {
    # As container engines have it: a process needs no privilege for a low port or a ping in a network of its own.
    "net/ipv4/ip_unprivileged_port_start": "0",
    "net/ipv4/ping_group_range": "0 2147483647",
}
_settled = False


def setup(params: dict[str, Any]) -> None:
    """Make the guest this sandbox's.

    Arguments:
        params: ``time_ns`` (since the epoch), ``entropy`` (base64), ``hostname``, ``shares``, ``interfaces``; see the
            protocol. The clock comes first: what follows takes its time.

    Raises:
        RequestFailed: ``bad-spec``. OSError: the kernel refused something.
    """
    if params.get("time_ns") is not None:
        time.clock_settime_ns(time.CLOCK_REALTIME, get_int(params, "time_ns", 0, 1 << 63))
    if params.get("entropy") is not None:
        reseed(get_text(params, "entropy"))
    if params.get("hostname"):
        sethostname(get_text(params, "hostname", 64))
    if params.get("shares") is not None:
        from casemate.agent import guest, late  # here, because tests serve without a guest

        late.attach(get_dict(params, "shares"), guest.mount_share, guest.read_ahead)
    apply_network(params)
    settle()


def settle() -> None:
    """Make the settings that every sandbox has. Once is enough: in a guest that was saved, it was done before."""
    global _settled
    if _settled:
        return
    _settled = True
    for name, value in SYSCTLS.items():
        try:
            write_text(f"/proc/sys/{name}", value)
        except OSError as error:  # a convenience: a kernel without it still runs containers
            log(f"{name} cannot be set: {error.strerror}")


def apply_network(params: dict[str, Any]) -> None:
    """Bring the guest's interfaces to what ``interfaces`` says. Raises RequestFailed, OSError."""
    network.apply(get_list(params, "interfaces", network.MAX_INTERFACES))


def reseed(text: str) -> None:
    """Give the kernel's random number generator bytes from the host, and have it use them (random(4)).

    Arguments:
        text: up to 512 bytes in base64.

    Raises:
        RequestFailed: ``bad-spec``. OSError: the kernel refused.
    """
    try:
        data = a2b_base64(text.encode("ascii"), strict_mode=True)
    except (Error, UnicodeEncodeError):
        raise bad("entropy must be base64") from None
    if len(data) > MAX_ENTROPY:
        raise bad(f"entropy must be at most {MAX_ENTROPY} bytes")
    fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, RNDADDENTROPY, struct.pack("=ii", len(data) * 8, len(data)) + data)
        fcntl.ioctl(fd, RNDRESEEDCRNG)
    finally:
        os.close(fd)


def memory() -> dict[str, int]:
    """``mem_total`` and ``mem_available`` in bytes."""
    table = {}
    for line in read_text("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name in ("MemTotal", "MemAvailable"):
            table[name] = int(rest.split()[0]) * 1024
    return {"mem_total": table.get("MemTotal", 0), "mem_available": table.get("MemAvailable", 0)}


def counters() -> list[dict[str, Any]]:
    """The counters of each interface but the loopback one."""
    found = []
    for line in read_text("/proc/net/dev").splitlines()[2:66]:
        name, _, rest = line.partition(":")
        words = rest.split()
        if name.strip() != "lo" and len(words) >= 12:
            keys = ("bytes", "packets", "errors", "dropped")
            entry: dict[str, Any] = {"name": name.strip()}
            entry.update({f"rx_{key}": int(word) for key, word in zip(keys, words, strict=False)})
            entry.update({f"tx_{key}": int(word) for key, word in zip(keys, words[8:], strict=False)})
            found.append(entry)
    return found


def info(*, identity: bool = True) -> dict[str, Any]:
    """What the guest is.

    Arguments:
        identity: what it has of its own, too. The kernel makes its boot id when it is first asked for; one that is to
            be copied must not have any.
    """
    common = {
        "kernel": os.uname().release,
        "mem_total": memory()["mem_total"],
        "agent_version": __version__,
        "python": sys.version.split()[0],
    }
    if not identity:
        return common
    uptime = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    return {**common, "uptime_ms": uptime, "boot_id": read_text("/proc/sys/kernel/random/boot_id").strip()}

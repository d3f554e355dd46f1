"""Addresses of sandboxes out of ``config.network``: leases in ``config.run/ipam``, one directory for each network."""

from __future__ import annotations

import socket
import struct

from casemate.config import Config
from casemate.errors import NetworkError
from casemate.host.leases import Leases


def gateway(config: Config) -> str:
    """The network's first address: the host's end of every sandbox's link."""
    first, _ = _bounds(config.network)
    return _text(first + 1)


def lease(id: str, config: Config) -> str:
    """An address that no other sandbox has; the same one again for the same sandbox.

    Raises:
        NetworkError: the network is full.
    """
    first, count = _bounds(config.network)
    leases = Leases(config.run / "ipam" / config.network.replace("/", "_"))
    # Three are not for sandboxes: the network's own address, the gateway's and the broadcast address.
    address = leases.acquire(id, first + 2, count - 3, _text)
    if address is None:
        raise NetworkError(
            f"no address is left in {config.network}", "remove sandboxes, or set a larger network in the configuration"
        )
    return address


def held(id: str, config: Config) -> str | None:
    """The address that the sandbox has leased, in whichever network the configuration named at that time."""
    for leases in _all(config):
        name = leases.held(id)
        if name is not None:
            return name
    return None


def release(id: str, config: Config) -> None:
    """Give the sandbox's address back; nothing when it has none."""
    for leases in _all(config):
        leases.release(id)


def _all(config: Config) -> list[Leases]:
    try:
        return [Leases(path) for path in (config.run / "ipam").iterdir()]
    except FileNotFoundError:
        return []


def _bounds(network: str) -> tuple[int, int]:
    # config.load() has checked it; the ipaddress module costs more to import than this takes.
    address, _, prefix = network.partition("/")
    count = 1 << (32 - int(prefix))
    number: int = struct.unpack("!I", socket.inet_aton(address))[0]
    return number & ~(count - 1), count


def _text(number: int) -> str:
    return socket.inet_ntoa(struct.pack("!I", number))

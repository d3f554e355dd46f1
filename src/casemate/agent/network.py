"""The guest's network as the host describes it: interfaces by their hardware addresses, brought up to date.

What was set for an interface before and is not asked for any more is taken away again. What a container has set by
itself stays: only what came from the host is known here.
"""

from __future__ import annotations

import errno
import os
from _socket import AF_INET6
from time import monotonic

from casemate.agent import netlink
from casemate.agent.devices import PATIENCE, wait_for
from casemate.agent.netlink import NLM_F_CREATE, NLM_F_REPLACE, Netlink, parse_address
from casemate.agent.system import bad, get_int, get_list, get_optional_int, get_text, log, read_text, write_text
from casemate.protocol import threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CLASS = "/sys/class/net"
MAX_INTERFACES = 32
MAX_ADDRESSES = 64
MAX_ROUTES = 1024
MAX_NEIGHBOURS = 1024
SCOPES = {"global": 0, "site": 200, "link": 253, "host": 254}
"""rtnetlink(7); the names are those of ip-route(8)."""

_GONE = (errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENODEV)
"""What is to be taken away is not there: with the address that it needed, or by a container's doing."""

Address = tuple[int, bytes, int]
"""Family, bytes and prefix length."""
Route = tuple[int, bytes, int, bytes | None, int, int, bytes | None, bool]
"""Family, destination, prefix length, gateway, metric, scope, preferred source, onlink."""
Neighbour = tuple[int, bytes, bytes]
"""Family, address and hardware address."""


class Interface:
    """What is wanted of an interface, read from a request.

    Raises:
        RequestFailed: ``bad-spec``.
    """

    def __init__(self, entry: object) -> None:
        if not isinstance(entry, dict):
            raise bad("an interface must be an object")
        self.mac = get_text(entry, "mac", 32).lower()
        self.name = None if entry.get("name") is None else _name(get_text(entry, "name", 15))
        self.mtu = get_optional_int(entry, "mtu", 68, 65535)
        self.addresses: list[Address] = [
            parse_address(str(text)) for text in get_list(entry, "addresses", MAX_ADDRESSES)
        ]
        self.routes = [_route(route) for route in get_list(entry, "routes", MAX_ROUTES)]
        if entry.get("gateway") is not None:
            family, gateway, _ = parse_address(get_text(entry, "gateway", 64))
            self.routes.append((family, bytes(len(gateway)), 0, gateway, 0, 0, None, True))
        self.mirrored = self.name is not None
        """Whether it is as one of the host is: it has those IPv6 addresses alone, and without any no IPv6 at all."""
        self.neighbours = [_neighbour(neighbour) for neighbour in get_list(entry, "neighbours", MAX_NEIGHBOURS)]
        # What is reached on the link goes before what is reached through it.
        self.routes.sort(key=lambda route: route[3] is not None)


def _name(name: str) -> str:
    if not name.isascii() or not name.isprintable() or name in ("", ".", "..", "lo") or set(name) & set("/: %"):
        raise bad(f"{name!r} is no name for an interface")
    return name


def _route(entry: object) -> Route:
    if not isinstance(entry, dict):
        raise bad("a route must be an object")
    family, destination, prefix = parse_address(get_text(entry, "destination", 64))
    others: list[bytes | None] = []
    for key in ("gateway", "source"):
        other = None
        if entry.get(key) is not None:
            of, other, _ = parse_address(get_text(entry, key, 64))
            if of != family:
                raise bad(f"the {key} of a route to {entry['destination']} is of another family")
        others.append(other)
    scope = SCOPES.get(str(entry.get("scope", "global")))
    if scope is None:
        raise bad(f"a route's scope must be one of {', '.join(SCOPES)}")
    metric = get_int(entry, "metric", 0, 0xFFFFFFFF) if entry.get("metric") is not None else 0
    return family, destination, prefix, others[0], metric, scope, others[1], entry.get("onlink") is True


def _neighbour(entry: object) -> Neighbour:
    if not isinstance(entry, dict):
        raise bad("a neighbour must be an object")
    family, address, _ = parse_address(get_text(entry, "address", 64))
    words = get_text(entry, "mac", 32).split(":")
    try:
        mac = bytes.fromhex("".join(words))
    except ValueError:
        mac = b""
    if len(words) != 6 or len(mac) != 6:
        raise bad(f"{entry['mac'][:32]!r} is no hardware address")
    return family, address, mac


class _Applied:
    """What the host has asked for and may be there."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.addresses: set[Address] = set()
        self.routes: set[Route] = set()
        self.neighbours: set[Neighbour] = set()


_lock = threads.Lock()
_applied: dict[str, _Applied] = {}
_loopback = False
"""Whether the loopback interface is up."""


def apply(entries: list[Any]) -> None:
    """Bring the loopback interface and all interfaces that the host describes up to date.

    Arguments:
        entries: the description of all interfaces, see the protocol. One that was just plugged in is waited for.

    Raises:
        RequestFailed: ``bad-spec``: nothing was changed, or an interface is not there. OSError: the kernel refused.
    """
    global _loopback
    if not entries and not _applied and _loopback:
        return
    wanted = [Interface(entry) for entry in entries]
    macs = {interface.mac for interface in wanted}
    if len(macs) < len(wanted):
        raise bad("two interfaces have the same hardware address")
    with _lock, Netlink() as link:
        deadline = monotonic() + PATIENCE
        found = {interface.mac: _find(interface.mac, deadline) for interface in wanted}
        # The loopback interface is always the first of a namespace. This also waits until the kernel is done with an
        # interface that it has just told of: its settings are the last thing that it makes.
        link.request(netlink.RTM_NEWLINK, 0, netlink.link_body(1, True), "lo")
        _loopback = True
        for mac in [mac for mac in _applied if mac not in macs]:
            _retire(link, mac)
        _rename(link, [(*found[i.mac], i.name) for i in wanted if i.name is not None])
        plans = [(i, found[i.mac][0], i.name or found[i.mac][1]) for i in wanted]
        for interface, index, name in plans:
            _clean(link, interface, index, name)
        for interface, index, name in plans:
            _addresses(link, interface, index, name)
        for interface, index, name in plans:
            _routes(link, interface, index, name)


def _find(mac: str, deadline: float) -> tuple[int, str]:
    """The index and the name of the interface with a hardware address."""
    if not os.path.exists("/sys/bus/virtio/drivers/virtio_net"):
        from casemate.agent import modules  # here, because a machine that began with an interface has it

        modules.load("virtio_net")
    found = wait_for(lambda: _look(mac), deadline - monotonic())
    if found is None:
        raise bad(f"no interface has the hardware address {mac}")
    return found


def _look(mac: str) -> tuple[int, str] | None:
    names = [name for name in sorted(os.listdir(CLASS)) if read_text(f"{CLASS}/{name}/address").strip() == mac]
    # A bridge that a container has made has the hardware address of what it bridges.
    names.sort(key=lambda name: not os.path.exists(f"{CLASS}/{name}/device"))
    for name in names:
        index = read_text(f"{CLASS}/{name}/ifindex").strip()
        if index.isdigit():
            return int(index), name
    return None


def _retire(link: Netlink, mac: str) -> None:
    """Take away what was set for an interface that the host does not tell of any more; it may be gone."""
    known = _look(mac)
    applied = _applied.pop(mac)
    if known is None or known[0] != applied.index:
        return
    for address in applied.addresses:
        body = netlink.address_body(applied.index, *address)
        link.request(netlink.RTM_DELADDR, 0, body, known[1], _GONE)
    link.request(netlink.RTM_NEWLINK, 0, netlink.link_body(applied.index, False), known[1], _GONE)


def _rename(link: Netlink, wanted: list[tuple[int, str, str]]) -> None:
    """Give interfaces their names; two may swap theirs, and one that has a name which is needed gets another one."""
    todo = [(index, now, name) for index, now, name in wanted if now != name]
    if not todo:
        return
    taken = set(os.listdir(CLASS))
    ours = {now for _, now, _ in todo}
    for _, _, name in todo:
        if name in taken and name not in ours:
            if any(now == name for _, now, _ in wanted):
                raise bad(f"two interfaces are to have the name {name}")
            _move(link, int(read_text(f"{CLASS}/{name}/ifindex").strip() or 0), name)
    for index, now, name in todo:
        if name in taken:
            _move(link, index, now)
    for index, now, name in todo:
        down = netlink.link_body(index, False)
        link.request(netlink.RTM_NEWLINK, 0, down, now)
        link.request(netlink.RTM_NEWLINK, 0, netlink.link_body(index, False, name=name), f"{now}: rename to {name}")


def _move(link: Netlink, index: int, name: str) -> None:
    """Free an interface's name; only an interface that is down can be renamed."""
    link.request(netlink.RTM_NEWLINK, 0, netlink.link_body(index, False), name)
    link.request(netlink.RTM_NEWLINK, 0, netlink.link_body(index, False, name=f"cmlink{index}"), name)


def _clean(link: Netlink, interface: Interface, index: int, name: str) -> None:
    """Take away what is not wanted any more, and take down in memory what may be there from now on."""
    applied = _applied.get(interface.mac)
    if applied is None or applied.index != index:
        applied = _applied[interface.mac] = _Applied(index)
    for route in applied.routes - set(interface.routes):
        link.request(netlink.RTM_DELROUTE, 0, netlink.route_body(index, *route), f"{name}: route", _GONE)
    for neighbour in applied.neighbours - set(interface.neighbours):
        link.request(netlink.RTM_DELNEIGH, 0, netlink.neighbour_body(index, *neighbour), f"{name}: neighbour", _GONE)
    for address in applied.addresses - set(interface.addresses):
        link.request(netlink.RTM_DELADDR, 0, netlink.address_body(index, *address), f"{name}: address", _GONE)
    applied.routes = set(interface.routes)
    applied.neighbours = set(interface.neighbours)
    applied.addresses = set(interface.addresses)


def _addresses(link: Netlink, interface: Interface, index: int, name: str) -> None:
    """Bring an interface up with its addresses and neighbours."""
    if interface.mirrored:
        ipv6 = any(family == AF_INET6 for family, _, _ in interface.addresses)
        for key, value in (("accept_ra", "0"), ("addr_gen_mode", "1"), ("disable_ipv6", str(int(not ipv6)))):
            _ipv6_setting(name, key, value)
    link.request(netlink.RTM_NEWLINK, 0, netlink.link_body(index, True, interface.mtu), name)
    for address in interface.addresses:
        body = netlink.address_body(index, *address)
        link.request(netlink.RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body, f"{name}: address")
    for neighbour in interface.neighbours:
        body = netlink.neighbour_body(index, *neighbour)
        link.request(netlink.RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body, f"{name}: neighbour")


def _ipv6_setting(name: str, key: str, value: str) -> None:
    path = f"/proc/sys/net/ipv6/conf/{name}/{key}"
    try:
        if read_text(path).strip() != value:
            write_text(path, value)
    except OSError as error:
        log(f"{name}: {key} cannot be set: {error.strerror}")


def _routes(link: Netlink, interface: Interface, index: int, name: str) -> None:
    for route in interface.routes:
        # With IPv6 "replace" would take the route of another interface to the same destination, such as fe80::/64.
        flags, fine = (NLM_F_CREATE, (errno.EEXIST,)) if route[0] == AF_INET6 else (NLM_F_CREATE | NLM_F_REPLACE, ())
        what = f"{name}: route through a gateway" if route[3] is not None else f"{name}: route"
        link.request(netlink.RTM_NEWROUTE, flags, netlink.route_body(index, *route), what, fine)

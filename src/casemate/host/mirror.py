"""An engine's network interfaces, carried into a guest: what they are, and taps that take their place.

::

    engine's namespace
    eth0  <- addresses stay here; what arrives is redirected ->  cmtap0  --fd-->  VMM  -->  guest's interface
          <- what the guest sends leaves here                 -

The guest has the interface's hardware and IP addresses, so to everybody else it is the interface. The namespace's own
stack keeps them too, for two reasons: engines look there, and some of their programs talk from there. Docker's name
server, for one, asks the outer ones from within the container's namespace. What is for these, and what for the guest,
is told by :mod:`casemate.host.steer`. So that the two sides do not choose the same port for the same peer, programs in
the namespace get theirs from :data:`PORTS`, where a guest's programs take none by themselves.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import time
from dataclasses import dataclass

from casemate.errors import NetworkError
from casemate.host import namespaces, netlink, traffic
from casemate.host.firewall import set_sysctl
from casemate.host.netlink import Netlink
from casemate.host.tap import open_tap
from casemate.sandbox import Interface, Neighbour, Route

TAPS = "cmtap"
"""What the names of our taps begin with."""
MAX_INTERFACES = 16
MAX_ADDRESSES = 64
MAX_ROUTES = 256
MAX_NEIGHBOURS = 256
PORTS = "61000 64999"
"""Local ports of the namespace's own programs: above those that Linux gives out by itself, 32768 to 60999
(``net.ipv4.ip_local_port_range``)."""
_PORT_RANGE = "net/ipv4/ip_local_port_range"
TAKE_OVER_SECONDS = 10.0
_PRIORITY, _PRIORITY_MASK = 0x6C00, 0x3FF
_TAP_MTU = 65521  # the largest: the guest keeps to the interface's own, which may change


@dataclass(frozen=True, slots=True)
class Found:
    """An interface of a namespace: its index there, whether it is up, and what the guest is to have."""

    index: int
    up: bool
    interface: Interface


def discover(netns: int) -> list[Found]:
    """The interfaces of a network namespace that a guest can have: Ethernet ones, without our own taps.

    One that is down is not ready yet, or is being taken away: the kernel makes some of these in every namespace.

    Arguments:
        netns: descriptor of the namespace.

    Raises:
        NetworkError: the kernel would not tell, or there is too much of something.
    """
    try:
        with netlink.open_in(netns) as question:
            return read(question)
    except OSError as error:
        raise NetworkError(f"cannot read the network namespace: {error.strerror}") from None


def read(question: Netlink) -> list[Found]:
    """What :func:`discover` gives, by a socket of the namespace. Raises OSError too."""
    links = [link for link in question.links() if _usable(link)]
    links.sort(key=lambda link: not link.flags & netlink.IFF_UP)  # for the choice among those of one hardware address
    if len(links) > MAX_INTERFACES:
        raise NetworkError(f"a network namespace has {len(links)} interfaces, at most {MAX_INTERFACES} can be given")
    if not links:
        return []
    addresses, routes, neighbours = question.addresses(), question.routes(), question.neighbours()
    found: dict[str, Found] = {}
    for link in links:
        own = [one for one in addresses if one.index == link.index and not one.flags & netlink.IFA_F_DADFAILED]
        ways = [one for one in routes if one.index == link.index]
        known = [one for one in neighbours if one.index == link.index]
        for what, count, most in (
            ("addresses", len(own), MAX_ADDRESSES),
            ("routes", len(ways), MAX_ROUTES),
            ("neighbours", len(known), MAX_NEIGHBOURS),
        ):
            if count > most:
                raise NetworkError(f"{link.name} has {count} {what}, at most {most} can be given")
        interface = Interface(
            link.name,
            link.mac,
            link.mtu,
            tuple(_cidr(one) for one in own),
            tuple(_routes(ways, own)),
            tuple(sorted((Neighbour(one.address, one.mac) for one in known), key=lambda one: one.address)),
        )
        # The guest tells interfaces by their hardware addresses; those of ipvlan share one, and the first has it.
        found.setdefault(link.mac, Found(link.index, bool(link.flags & netlink.IFF_UP), interface))
    return sorted(found.values(), key=lambda one: one.index)


def _usable(link: netlink.Link) -> bool:
    return bool(
        link.hardware == netlink.ARPHRD_ETHER
        and not link.flags & netlink.IFF_LOOPBACK
        and link.mac.strip("0:")  # those that tunnel modules put into every namespace have none
        and not link.master  # a port of a bridge or bond: that one carries its frames
        and not _is_tap(link)
    )


def _is_tap(link: netlink.Link) -> bool:
    """Whether it is a tap of ours."""
    return link.kind == "tun" and link.name.startswith(TAPS)


def _cidr(address: netlink.Address) -> str:
    bits = 32 if address.family == socket.AF_INET else 128
    return f"{address.address}/{address.prefix if address.peer is None else bits}"


def _routes(ways: list[netlink.RouteEntry], own: list[netlink.Address]) -> list[Route]:
    """The routes as the guest has to set them: without those that its kernel makes for the addresses, and in such an
    order that gateways can be reached when they are named."""
    networks = {str(ipaddress.ip_interface(_cidr(one)).network) for one in own}
    scopes = {netlink.RT_SCOPE_LINK: "link", netlink.RT_SCOPE_HOST: "host"}
    routes = [
        Route(
            one.destination, one.gateway, one.metric, scopes.get(one.scope, "global"), one.source, onlink=one.onlink
        )
        for one in ways
        if one.protocol != netlink.RTPROT_KERNEL or one.gateway is not None or one.destination not in networks
    ]
    prefix = {route: int(route.destination.partition("/")[2]) for route in routes}
    return sorted(routes, key=lambda one: (one.gateway is not None, -prefix[one], one.destination, one.metric))


def mirror(netns: int, index: int) -> tuple[int, int]:
    """Give an interface a tap that takes its place. What another one left there that has died is replaced.

    Arguments:
        netns: descriptor of the namespace.
        index: the interface's, as :func:`discover` found it.

    Returns:
        the tap's descriptor (close-on-exec), with the virtio-net header, one queue, and the tap's index. The tap goes
        when all copies of the descriptor are closed; the interface is of no use then until :func:`restore` or another
        mirror.

    Raises:
        NetworkError: it cannot be done, or another sandbox has the interface and does not end. Nothing is left then.
    """
    tap, tap_name = namespaces.in_netns(netns, _open_tap)
    try:
        with netlink.open_in(netns) as ask:
            tap_index = ask.link(tap_name).index
            _take_over(ask, netns, index)
            ask.set_link(tap_index, up=True, mtu=_TAP_MTU)
            traffic.join(ask, index, tap_index, _priority(tap_index))
    except OSError as error:
        os.close(tap)
        raise NetworkError(
            f"cannot join interface {index} and {tap_name}: {error.strerror}",
            "" if error.errno == errno.ENODEV else "needs the kernel modules sch_ingress, cls_u32 and act_mirred",
        ) from None
    except BaseException:
        os.close(tap)
        raise
    return tap, tap_index


def restore(netns: int, index: int, tap_index: int) -> None:
    """Give an interface back to its namespace: nothing when it is gone, or another sandbox's by now.

    Arguments:
        tap_index: of the tap that :func:`mirror` made for it.

    Raises:
        NetworkError: the kernel refuses.
    """
    try:
        with netlink.open_in(netns) as ask:
            traffic.unjoin(ask, index, _priority(tap_index))
    except OSError as error:
        raise NetworkError(f"cannot restore interface {index}: {error.strerror}") from None


def prepare(netns: int) -> str:
    """Have the namespace's own programs use local ports that a guest's do not. Returns the range for :func:`undo`.

    Raises:
        NetworkError: it cannot be set.
    """

    def body() -> str:
        with open(f"/proc/sys/{_PORT_RANGE}") as file:
            before = " ".join(file.read().split())
        set_sysctl(_PORT_RANGE, PORTS)
        return before

    try:
        return namespaces.in_netns(netns, body)
    except OSError as error:
        raise NetworkError(f"cannot read {_PORT_RANGE}: {error.strerror}") from None


def undo(netns: int, ports: str) -> None:
    """Set the range back to what :func:`prepare` found. Raises NetworkError."""
    if ports != PORTS:
        namespaces.in_netns(netns, lambda: set_sysctl(_PORT_RANGE, ports))


def _open_tap() -> tuple[int, str]:
    tap, name = open_tap(TAPS + "%d")
    try:
        # Else it would get an address of its own and send router solicitations to the guest.
        set_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1", optional=True)
    except BaseException:
        os.close(tap)
        raise
    return tap, name


def _priority(tap_index: int) -> int:
    """A filter's priority tells that it is ours, and whose: its tap lives as long as its sandbox."""
    return _PRIORITY | tap_index & _PRIORITY_MASK


def _take_over(ask: Netlink, netns: int, index: int) -> None:
    """Remove what dead sandboxes left at an interface, and wait for one that is ending.

    Raises:
        OSError: the kernel refuses. NetworkError: the other one does not end.
    """
    with netlink.open_in(netns, netlink.RTMGRP_LINK) as news:
        deadline = time.monotonic() + TAKE_OVER_SECONDS
        while True:
            links = ask.links()
            living = {_priority(link.index) for link in links if _is_tap(link)}
            there = {priority for priority in traffic.priorities(ask, index) if priority & ~_PRIORITY_MASK == _PRIORITY}
            for priority in there - living:
                traffic.unjoin(ask, index, priority)
            if not there & living:
                return
            try:
                news.socket.settimeout(max(0.001, deadline - time.monotonic()))
                news.socket.recv(netlink.RECEIVE)
            except TimeoutError:
                name = next((link.name for link in links if link.index == index), str(index))
                raise NetworkError(f"{name} is in use by another sandbox", "end that one first") from None
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

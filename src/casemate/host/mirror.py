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
import struct
from dataclasses import dataclass

from casemate.errors import HostError, NetworkError
from casemate.host import bpf, namespaces, netlink, steer
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
PORTS = "61000 65000"
"""Local ports of the namespace's own programs: above those that Linux gives out by itself, 32768 to 60999
(``net.ipv4.ip_local_port_range``)."""
_PORT_RANGE = "net/ipv4/ip_local_port_range"
_PRIORITY = 0xCA5E
"""Of our filters among others of an interface; tells which are ours."""
_TAP_MTU = 65521  # the largest: the guest keeps to the interface's own, which may change

# linux/pkt_sched.h, pkt_cls.h, tc_act/tc_mirred.h
_RTM_NEWQDISC, _RTM_DELQDISC, _RTM_GETQDISC = 36, 37, 38
_RTM_NEWTFILTER, _RTM_DELTFILTER, _RTM_GETTFILTER = 44, 45, 46
_TCM = struct.Struct("=BxxxiIII")  # struct tcmsg: family, index, handle, parent, info
_INGRESS, _HANDLE, _ARRIVING = 0xFFFFFFF1, 0xFFFF0000, 0xFFFFFFF2
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_FD, _TCA_BPF_NAME, _TCA_BPF_FLAGS, _BPF_DIRECT = 6, 7, 8, 1
_TCA_U32_SEL, _TCA_U32_ACT, _U32_TERMINAL = 5, 7, 1
_TCA_ACT_KIND, _TCA_ACT_OPTIONS, _TCA_MIRRED_PARMS = 1, 2, 2
_STOLEN, _EGRESS_REDIRECT = 4, 1
_ETH_P_ALL = 0x0003


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
    ours = link.kind == "tun" and link.name.startswith(TAPS)
    return bool(
        link.hardware == netlink.ARPHRD_ETHER
        and not link.flags & netlink.IFF_LOOPBACK
        and link.mac.strip("0:")  # those that tunnel modules put into every namespace have none
        and not link.master  # a port of a bridge or bond: that one carries its frames
        and not ours
    )


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


def mirror(netns: int, index: int) -> int:
    """Give an interface a tap that takes its place. What another one left there that has died is replaced.

    Arguments:
        netns: descriptor of the namespace.
        index: the interface's, as :func:`discover` found it.

    Returns:
        the tap's descriptor (close-on-exec), with the virtio-net header, one queue. The tap goes when all copies of it
        are closed; the interface is of no use then until :func:`restore` or another mirror.

    Raises:
        NetworkError: it cannot be done. Nothing is left then.
    """
    tap, tap_name = namespaces.in_netns(netns, _open_tap)
    try:
        with netlink.open_in(netns) as ask:
            tap_index = ask.link(tap_name).index
            _unjoin(ask, index)
            ask.set_link(tap_index, up=True, mtu=_TAP_MTU)
            _join(ask, index, tap_index)
    except OSError as error:
        os.close(tap)
        raise NetworkError(
            f"cannot join interface {index} and {tap_name}: {error.strerror}",
            "" if error.errno == errno.ENODEV else "needs the kernel modules sch_ingress, cls_u32 and act_mirred",
        ) from None
    except BaseException:
        os.close(tap)
        raise
    return tap


def restore(netns: int, index: int) -> None:
    """Give an interface back to its namespace: nothing when it is gone, or was never mirrored. Raises NetworkError."""
    try:
        with netlink.open_in(netns) as ask:
            _unjoin(ask, index)
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


def _join(ask: Netlink, index: int, tap: int) -> None:
    """Send what one receives out of the other. Raises OSError."""
    for one in (index, tap):
        try:
            body = _TCM.pack(0, one, _HANDLE, _INGRESS, 0) + netlink.text(_TCA_KIND, "ingress")
            ask.request(_RTM_NEWQDISC, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, body)
        except OSError as error:
            if error.errno != errno.EEXIST:  # one, or a clsact, is there already: ours from before, or somebody's
                raise
    _filter(ask, tap, _redirect(index))
    try:
        program = bpf.program(bpf.SCHED_CLS, steer.to_guest(tap), "casemate_guest")
    except HostError:
        _filter(ask, index, _redirect(tap))
        return
    try:
        _filter(ask, index, _direct(program))
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise
        _filter(ask, index, _redirect(tap))  # no cls_bpf
    finally:
        os.close(program)


def _unjoin(ask: Netlink, index: int) -> None:
    """Remove our filter, and the qdisc when it holds no other. Nothing when they are not there."""
    here = _TCM.pack(0, index, 0, _ARRIVING, _PRIORITY << 16 | bpf.net16(_ETH_P_ALL))
    try:
        ask.request(_RTM_DELTFILTER, 0, here)
        others = ask.dump(_RTM_GETTFILTER, _TCM.pack(0, index, 0, _ARRIVING, 0))
        qdiscs = ask.dump(_RTM_GETQDISC, _TCM.pack(0, index, 0, 0, 0))
        if not others and any(_is_ingress(body, index) for body in qdiscs):
            ask.request(_RTM_DELQDISC, 0, _TCM.pack(0, index, _HANDLE, _INGRESS, 0))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
            raise


def _is_ingress(body: bytes, index: int) -> bool:
    if len(body) < _TCM.size:
        raise netlink.damaged("a qdisc without a head")
    _, which, _, parent, _ = _TCM.unpack_from(body)
    kind = netlink.attributes(body, _TCM.size).get(_TCA_KIND, b"")
    return which == index and parent == _INGRESS and kind == b"ingress\0"


def _filter(ask: Netlink, index: int, what: bytes) -> None:
    body = _TCM.pack(0, index, 0, _ARRIVING, _PRIORITY << 16 | bpf.net16(_ETH_P_ALL)) + what
    ask.request(_RTM_NEWTFILTER, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, body)


def _direct(program: int) -> bytes:
    """A filter that is a BPF program, whose result is what happens (tc-bpf(8), direct-action)."""
    options = (
        netlink.number(_TCA_BPF_FD, program)
        + netlink.text(_TCA_BPF_NAME, "casemate")
        + netlink.number(_TCA_BPF_FLAGS, _BPF_DIRECT)
    )
    return netlink.text(_TCA_KIND, "bpf") + netlink.attribute(_TCA_OPTIONS, options)


def _redirect(target: int) -> bytes:
    """``u32 match u32 0 0 action mirred egress redirect``: everything goes out of ``target``."""
    # struct tc_u32_sel with one struct tc_u32_key that is all zero, as is what it does not need; struct tc_mirred
    select = struct.pack("=BBB13x", _U32_TERMINAL, 0, 1) + bytes(16)
    mirred = struct.pack("=IIiiiiI", 0, 0, _STOLEN, 0, 0, _EGRESS_REDIRECT, target)
    action = netlink.text(_TCA_ACT_KIND, "mirred") + netlink.attribute(
        _TCA_ACT_OPTIONS, netlink.attribute(_TCA_MIRRED_PARMS, mirred)
    )
    options = netlink.attribute(_TCA_U32_SEL, select) + netlink.attribute(
        _TCA_U32_ACT, netlink.attribute(1, action)
    )
    return netlink.text(_TCA_KIND, "u32") + netlink.attribute(_TCA_OPTIONS, options)

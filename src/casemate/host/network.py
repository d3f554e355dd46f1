"""A sandbox's network: an anonymous namespace, a link to the host, and the tap that its VMM serves.

::

    host                                 sandbox's namespace (held by descriptors, no name)
    gateway/32 on cm0123456789  <veth>   eth0  <tc redirect, both ways>  tap0  --fd-->  VMM  -->  guest's interface
    route ADDRESS/32 -> cm0123456789

Links are routed, not bridged: each sandbox has a link of its own with the gateway's address on the host's end, so no
sandbox sees another's frames, whatever it sends. Everything but the address lease and published ports goes by itself
when the last holder of the namespace ends; :func:`teardown` gives those back from the id alone. The rules of the packet
filter are in :mod:`casemate.host.firewall`, the whole picture in docs/network.md.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from casemate.config import Config
from casemate.errors import NetworkError
from casemate.host import commands, firewall, ipam, namespaces
from casemate.host.firewall import set_sysctl
from casemate.host.ports import PortMap
from casemate.host.tap import open_tap

# ioctl(2) numbers of linux/sockios.h
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFMTU = 0x8913, 0x8914, 0x8922
_IFF_UP = 1
_IFREQ = 40  # bytes of struct ifreq: a name of 16 and a union

INSIDE, TAP = "eth0", "tap0"


@dataclass(frozen=True, slots=True)
class SandboxNet:
    """What :func:`setup` made. The two descriptors are the caller's to close; when all copies are closed it is gone."""

    netns_fd: int
    tap_fd: int
    """A tap with the virtio-net header (IFF_VNET_HDR), one queue, for the VMM to set offloads on as the guest can; -1
    where the address is the namespace's own."""
    mac: str
    """The guest interface's address."""
    address: str
    """The guest's IPv4 address, to be set with prefix /32."""
    gateway: str
    """The guest's default route, to be set "onlink"."""
    mtu: int


def host_interface(id: str) -> str:
    """The name of the host's end of the sandbox's link."""
    return "cm" + id[:10]


def mac_of(id: str) -> str:
    """The guest interface's hardware address: locally administered, from the id."""
    return "02:" + ":".join(id[start : start + 2] for start in range(10, 20, 2))


def setup(id: str, config: Config, ports: Sequence[PortMap] = (), *, carried: bool = True) -> SandboxNet:
    """Make the sandbox's network.

    Arguments:
        id: the sandbox's id.
        ports: what to publish, with every host port known and held by the caller's
            :class:`~casemate.host.ports.PortProxy` (``proxy.ports``).
        carried: to a guest, by a tap; else the namespace itself has the address, for sockets in it.

    Raises:
        NetworkError, HostError: it cannot be made; nothing is left then.
    """
    if any(port.host_port == 0 for port in ports):
        raise ValueError("host ports must be chosen before: give PortProxy.ports")
    _refuse_overlap(config)
    netns = tap = -1
    try:
        address = ipam.lease(id, config)
        publish(id, config, address, ports)
        netns = namespaces.new_netns()
        if carried:
            tap = namespaces.in_netns(netns, _open_tap)
        _make_link(id, config, address, netns)
        gateway = ipam.gateway(config)
        namespaces.in_netns(netns, lambda: _join(config.mtu) if carried else _settle(address, gateway))
    except BaseException:
        for fd in (tap, netns):
            if fd >= 0:
                os.close(fd)
        teardown(id, config)
        raise
    return SandboxNet(netns, tap, mac_of(id), address, ipam.gateway(config), config.mtu)


def publish(id: str, config: Config, address: str, ports: Sequence[PortMap]) -> None:
    """Have the packet filter know the sandbox's address, and lead to it what comes for its ports.

    Arguments:
        ports: as for :func:`setup`, which has called this before; none or all of them.

    Raises:
        NetworkError, HostError: it cannot be done; :func:`teardown` takes back what was.
    """
    if ports:
        record = _record(id, config)
        record.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        record.write_text(address)
    firewall.prepare(config.network, address, ports)


def isolated() -> int:
    """A network namespace with nothing but its loopback, for a sandbox without network. Returns its descriptor.

    Raises:
        HostError: it cannot be made.
    """
    netns = namespaces.new_netns()
    try:
        namespaces.in_netns(netns, lambda: _up("lo"))
    except BaseException:
        os.close(netns)
        raise
    return netns


def teardown(id: str, config: Config) -> None:
    """Give back what a sandbox's network holds on the host. May be called at any time, twice, and by anyone.

    Raises:
        NetworkError: something would not go; calling again may help.
    """
    name = host_interface(id)
    if _exists(name):
        result = commands.run(["ip", "link", "delete", "dev", name], package="iproute2")
        if result.status and _exists(name):
            raise NetworkError(f"cannot remove {name}: {result.reason}", f"ip link delete {name}")
    record = _record(id, config)
    try:
        address = record.read_text()
    except FileNotFoundError:
        pass
    else:
        if address:  # empty: the owner died while writing it, before it published anything
            firewall.retract(address)
        record.unlink(missing_ok=True)
    ipam.release(id, config)


def _record(id: str, config: Config) -> Path:
    """The file that says that the sandbox has published ports, and for which address."""
    return config.run / "net" / id


def _exists(name: str) -> bool:
    try:
        return socket.if_nametoindex(name) > 0
    except OSError:
        return False


def _make_link(id: str, config: Config, address: str, netns: int) -> None:
    name, gateway, mac = host_interface(id), ipam.gateway(config), mac_of(id)
    inside = f"/proc/{os.getpid()}/fd/{netns}"
    script = f"""\
link add {name} mtu {config.mtu} group {firewall.GROUP} type veth peer name {INSIDE} address {mac} mtu {config.mtu} \
netns {inside}
link set {name} addrgenmode none
addr add {gateway}/32 dev {name}
link set {name} up
neigh replace {address} lladdr {mac} dev {name} nud permanent
route add {address}/32 dev {name} src {gateway}
route replace unreachable {config.network}
"""
    result = commands.run(["ip", "-batch", "-"], package="iproute2", text=script)
    if result.status:
        raise NetworkError(f"cannot make the link {name}: {result.reason}", "needs veth; run as root")
    conf = f"net/ipv4/conf/{name}"
    set_sysctl("net/ipv4/ip_forward", "1")
    set_sysctl(f"{conf}/forwarding", "1")
    set_sysctl(f"{conf}/rp_filter", "1")
    set_sysctl(f"{conf}/route_localnet", "0")
    set_sysctl(f"{conf}/send_redirects", "0")
    set_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1", optional=True)


def _open_tap() -> int:
    return open_tap(TAP)[0]


def _join(mtu: int) -> None:
    """In the sandbox's namespace: bring the links up and send what one receives out of the other."""
    _up("lo")
    _up(INSIDE)
    _up(TAP, mtu)
    script = "".join(
        f"qdisc add dev {one} ingress\n"
        f"filter add dev {one} parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev {other}\n"
        for one, other in ((INSIDE, TAP), (TAP, INSIDE))
    )
    result = commands.run(["tc", "-batch", "-"], package="iproute2", text=script)
    if result.status:
        raise NetworkError(
            f"cannot join {INSIDE} and {TAP}: {result.reason}",
            "needs the kernel modules sch_ingress, cls_u32 and act_mirred",
        )


def _settle(address: str, gateway: str) -> None:
    """In the sandbox's namespace: give the link its address, and let sockets there do what only root may elsewhere."""
    _up("lo")
    _up(INSIDE)
    script = f"addr add {address}/32 dev {INSIDE}\nroute add default via {gateway} dev {INSIDE} onlink\n"
    result = commands.run(["ip", "-batch", "-"], package="iproute2", text=script)
    if result.status:
        raise NetworkError(f"cannot set up {INSIDE}: {result.reason}", "needs veth; run as root")
    open_to_all()


def open_to_all() -> None:
    """In a sandbox's namespace: whoever is in it may take any port and send echo requests, without privileges."""
    set_sysctl("net/ipv4/ip_unprivileged_port_start", "0")
    set_sysctl("net/ipv4/ping_group_range", "0 2147483647", optional=True)


def _up(name: str, mtu: int | None = None) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            if mtu is not None:
                fcntl.ioctl(sock, _SIOCSIFMTU, struct.pack("16si", name.encode(), mtu).ljust(_IFREQ, b"\0"))
            request = fcntl.ioctl(sock, _SIOCGIFFLAGS, name.encode().ljust(_IFREQ, b"\0"))
            (flags,) = struct.unpack_from("H", request, 16)
            fcntl.ioctl(
                sock, _SIOCSIFFLAGS, struct.pack("16sH", name.encode(), flags | _IFF_UP).ljust(_IFREQ, b"\0")
            )
        except OSError as error:
            what = "has a bad MTU" if error.errno == errno.EINVAL else "cannot be brought up"
            raise NetworkError(f"{name} {what}: {error.strerror}", "see mtu in the configuration") from None


def overlapping_route(config: Config, table: str = "/proc/net/route") -> str | None:
    """A route of the host that the sandboxes' network would hide, as ``ADDRESS/PREFIX dev NAME``; None is well.

    Only routes inside the network count: a wider one, such as a VPN's 10.0.0.0/8, goes on for the rest of its range.
    """
    base, _, prefix = config.network.partition("/")
    ours = _mask(int(prefix))
    first = struct.unpack("!I", socket.inet_aton(base))[0] & ours
    with open(table) as file:
        next(file, "")
        for line in file:
            fields = line.split()
            # The kernel prints addresses as numbers of its own byte order that hold bytes of the network's.
            target, mask = (struct.unpack("!I", struct.pack("=I", int(fields[at], 16)))[0] for at in (1, 7))
            if target & ours != first or mask & ours != ours or fields[0] == "*":
                continue
            if fields[0].startswith("cm") and mask == _mask(32):
                continue  # a sandbox's
            return f"{socket.inet_ntoa(struct.pack('!I', target))}/{mask.bit_count()} dev {fields[0]}"
    return None


def _mask(prefix: int) -> int:
    return (0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF


def _refuse_overlap(config: Config) -> None:
    route = overlapping_route(config)
    if route is not None:
        raise NetworkError(
            f"the sandboxes' network {config.network} overlaps the host's route {route}",
            "set network to a free range in the configuration",
        )

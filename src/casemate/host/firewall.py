"""The host's packet filter: one table ``inet casemate``, the same for all sandboxes, and the published ports in it.

The table's rules know sandboxes by the group number of their interfaces and look published ports up in maps, so a
packet costs the same with one sandbox and with a thousand, and a start changes rules only when somebody has removed
them. What each rule is for stands in docs/network.md.
"""

from __future__ import annotations

import os
import socket
import struct
from binascii import crc32
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from casemate.errors import NetworkError
from casemate.host import commands
from casemate.host.ports import PortMap

GROUP = 0x636D
"""Group of every sandbox's interface on the host (``ip link show group 25453``)."""

# linux/netfilter/nfnetlink.h, nf_tables.h
_NETLINK_NETFILTER, _NFTABLES, _NEWCHAIN, _GETCHAIN, _REQUEST = 12, 10, 3, 4, 1
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_POLICY, _DROP = 1, 3, 5, 0
_INET, _IPV4 = 1, 2

_TABLE = f"""\
add table inet casemate
add set inet casemate networks {{ type ipv4_addr; flags interval; auto-merge; }}
add map inet casemate ports {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
add map inet casemate ports_at {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
add chain inet casemate guard {{ type filter hook prerouting priority raw; }}
add chain inet casemate forward {{ type filter hook forward priority filter; }}
add chain inet casemate publish {{ type nat hook prerouting priority dstnat; }}
add chain inet casemate leave {{ type nat hook postrouting priority srcnat; }}
flush chain inet casemate guard
flush chain inet casemate forward
flush chain inet casemate publish
flush chain inet casemate leave
add rule inet casemate guard iifgroup {GROUP} meta nfproto ipv6 drop
add rule inet casemate guard iifgroup {GROUP} fib saddr . iif oif missing drop
add rule inet casemate forward oifgroup {GROUP} ct status dnat accept
add rule inet casemate forward oifgroup {GROUP} iifgroup != {GROUP} ct state new drop
add rule inet casemate publish fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @ports_at
add rule inet casemate publish fib daddr type local dnat ip to meta l4proto . th dport map @ports
add rule inet casemate leave ip saddr @networks oifgroup {GROUP} ct status dnat masquerade
add rule inet casemate leave ip saddr @networks oifgroup != {GROUP} masquerade
"""


def prepare(network: str, address: str, ports: Sequence[PortMap]) -> None:
    """See that the table is there and knows ``network``, and send ``ports`` of the host to ``address``.

    Arguments:
        network: addresses of sandboxes, as address/prefix.
        ports: as :class:`~casemate.host.ports.PortProxy` holds them: whoever else is found to have one is dead.

    Raises:
        NetworkError: the packet filter refuses.
        HostError: nft is missing.
    """
    table = _TABLE + f"add element inet casemate networks {{ {network} }}\n"
    # An empty chain tells which rules are there. To ask for it costs a hundredth of setting the rules again, for which
    # the kernel waits until no packet is under way.
    marker = f"rules-{crc32(table.encode()):08x}"
    script = "" if _chain(_INET, "casemate", marker) else table + f"add chain inet casemate {marker}\n"
    wanted = [element for port in ports for element in _elements(port, address)]
    added = "".join(f"add element inet casemate {name} {{ {key} : {data} }}\n" for name, key, data in wanted)
    if script or added:
        result = _nft(script + added)
        if result.status and wanted:
            # A sandbox that died and was not cleaned up yet left its ports behind; the sockets are ours, so they are.
            keys = {(name, key) for name, key, _ in wanted}
            stale = [element for element in _published() if element[:2] in keys]
            result = _nft(script + _deletions(stale) + added)
        if result.status:
            raise NetworkError(f"the packet filter refused: {result.reason}", "needs nftables and nf_nat")
    if forward_is_dropped():
        _open_forwarding(network)


def retract(address: str) -> None:
    """Take back every published port that leads to ``address``; nothing when there is none."""
    stale = [element for element in _published() if element[2].startswith(f"{address} . ")]
    if stale:
        result = _nft(_deletions(stale))
        if result.status and any(element in stale for element in _published()):
            raise NetworkError(f"the packet filter refused: {result.reason}", "see: nft list ruleset")


def forward_is_dropped() -> bool:
    """Whether iptables' FORWARD chain drops by default, as Docker and ufw set it. Such a drop no other table undoes."""
    chain = _chain(_IPV4, "filter", "FORWARD")
    return chain is not None and chain.get(_CHAIN_POLICY) == struct.pack("!I", _DROP)


def forwarding_is_opened(network: str) -> bool:
    """Whether sandboxes are let through a FORWARD chain that drops by default."""
    return commands.which("iptables") is not None and not _unopened(network)


def firewalld_is_active() -> bool:
    """Whether firewalld filters here, which rejects what it does not know to forward."""
    return _chain(_INET, "firewalld", "filter_FORWARD") is not None


def _open_forwarding(network: str) -> None:
    if commands.which("iptables") is None:
        return  # ``casemate check`` tells
    # iptables, not nft: a rule of nft's in its tables would make iptables, and so Docker, refuse to work with them.
    for rule in _unopened(network):
        result = commands.run(["iptables", "-w", "-I", *rule], package="iptables")
        if result.status:
            raise NetworkError(f"iptables refused: {result.reason}", "see iptables -S FORWARD")


def _unopened(network: str) -> list[list[str]]:
    # Docker rewrites FORWARD, and leaves DOCKER-USER to others for this very purpose.
    chain = "DOCKER-USER" if _chain(_IPV4, "filter", "DOCKER-USER") else "FORWARD"
    present = commands.run(["iptables", "-w", "-S", chain], package="iptables").output.splitlines()
    rules = [[chain, side, network, "-m", "comment", "--comment", "casemate", "-j", "ACCEPT"] for side in ("-s", "-d")]
    return [rule for rule in rules if "-A " + " ".join(rule) not in present]


def _elements(port: PortMap, address: str) -> Iterable[tuple[str, str, str]]:
    """What a published port puts into which map: (map, key, data). Nothing for the host's loopback and for IPv6."""
    if ":" in port.host_ip or port.host_ip.startswith("127."):
        return
    data = f"{address} . {port.container_port}"
    if port.host_ip == "0.0.0.0":
        yield "ports", f"{port.protocol} . {port.host_port}", data
    else:
        yield "ports_at", f"{port.host_ip} . {port.protocol} . {port.host_port}", data


def _published() -> list[tuple[str, str, str]]:
    """What the maps hold, as :func:`_elements` writes it."""
    import json  # only where ports are taken back

    found = []
    for name in ("ports", "ports_at"):
        result = commands.run(["nft", "-j", "-n", "list", "map", "inet", "casemate", name], package="nftables")
        if result.status:
            continue  # no such table: nothing is published
        for item in json.loads(result.output)["nftables"]:
            for key, data in item.get("map", {}).get("elem", []):
                found.append((name, _words(key), _words(data)))
    return found


def _words(value: Any) -> str:
    names = {6: "tcp", 17: "udp", "6": "tcp", "17": "udp"}
    parts = list(value["concat"])
    at = len(parts) - 2  # the protocol, in a key; an address, in data, which no name stands for
    parts[at] = names.get(parts[at], parts[at])
    return " . ".join(str(part) for part in parts)


def _deletions(elements: Iterable[tuple[str, str, str]]) -> str:
    return "".join(f"delete element inet casemate {name} {{ {key} : {data} }}\n" for name, key, data in elements)


def _chain(family: int, table: str, name: str) -> dict[int, bytes] | None:
    """The attributes of a chain (``linux/netfilter/nf_tables.h``), or None: one question to the kernel, no program."""
    attributes = b"".join(
        struct.pack("=HH", 4 + len(text) + 1, kind) + (text + b"\0").ljust((len(text) + 4) & ~3, b"\0")
        for kind, text in ((_CHAIN_TABLE, table.encode()), (_CHAIN_NAME, name.encode()))
    )
    body = struct.pack("=BBH", family, 0, 0) + attributes
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
        sock.settimeout(5)
        sock.send(struct.pack("=IHHII", 16 + len(body), _NFTABLES << 8 | _GETCHAIN, _REQUEST, 1, 0) + body)
        reply = sock.recv(65536)
    if struct.unpack_from("=H", reply, 4)[0] != _NFTABLES << 8 | _NEWCHAIN:
        return None
    found = {}
    at, end = 20, struct.unpack_from("=I", reply)[0]
    while at + 4 <= end:
        length, kind = struct.unpack_from("=HH", reply, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = reply[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def _nft(script: str) -> commands.Result:
    return commands.run(["nft", "-f", "-"], package="nftables", text=script)


def set_sysctl(name: str, value: str, *, optional: bool = False) -> None:
    """Write ``/proc/sys/NAME`` of the calling thread's network namespace, unless it has the value already.

    Raises:
        NetworkError: it is refused, or missing and not ``optional``.
    """
    path = Path("/proc/sys") / name
    try:
        if path.read_text().strip() != value:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
    except OSError as error:
        if not (optional and isinstance(error, FileNotFoundError)):
            raise NetworkError(f"cannot set {name.replace('/', '.')}: {error.strerror}", "run as root") from None

"""The host's packet filter: one table ``inet casemate``, the same for all sandboxes, and the published ports in it.

The table's rules know sandboxes by the group number of their interfaces and look published ports up in maps, so a
packet costs the same with one sandbox and with a thousand, and a start changes rules only when somebody has removed
them. What each rule is for stands in docs/network.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from casemate.errors import NetworkError
from casemate.host import commands
from casemate.host.ports import PortMap

GROUP = 0x636D
"""Group of every sandbox's interface on the host (``ip link show group 25453``)."""

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
    script = _TABLE + f"add element inet casemate networks {{ {network} }}\n"
    wanted = [element for port in ports for element in _elements(port, address)]
    added = "".join(f"add element inet casemate {name} {{ {key} : {data} }}\n" for name, key, data in wanted)
    result = _nft(script + added + "list chains ip\n")
    if result.status and wanted:
        # A sandbox that died and was not cleaned up yet left its ports behind; the sockets are ours, so the ports are.
        keys = {(name, key) for name, key, _ in wanted}
        stale = [element for element in _published() if element[:2] in keys]
        result = _nft(script + _deletions(stale) + added + "list chains ip\n")
    if result.status:
        raise NetworkError(f"the packet filter refused: {_first_line(result.errors)}", "needs nftables and nf_nat")
    if forward_is_dropped(result.output):
        _open_forwarding(network, result.output)


def retract(address: str) -> None:
    """Take back every published port that leads to ``address``; nothing when there is none."""
    stale = [element for element in _published() if element[2].startswith(f"{address} . ")]
    if stale:
        result = _nft(_deletions(stale))
        if result.status and any(element in stale for element in _published()):
            raise NetworkError(f"the packet filter refused: {_first_line(result.errors)}", "see: nft list ruleset")


def forward_is_dropped(chains: str) -> bool:
    """Whether iptables' FORWARD chain drops by default, as Docker and ufw set it, in the output of ``list chains``."""
    table = re.search(r"^table ip filter \{\n(.*?)^\}", chains, re.MULTILINE | re.DOTALL)
    return table is not None and re.search(r"hook forward .*policy drop;", table[1]) is not None


def list_chains() -> str:
    """The IPv4 chains of every table, as ``nft list chains ip`` prints them."""
    return _nft("list chains ip\n").output


def _open_forwarding(network: str, chains: str) -> None:
    """Let sandboxes through a FORWARD chain that drops by default: no other table can overrule it."""
    if commands.which("iptables") is None:
        return  # ``casemate check`` tells
    # Docker rewrites FORWARD, and leaves DOCKER-USER to others for this very purpose.
    chain = "DOCKER-USER" if re.search(r"chain DOCKER-USER \{", chains) else "FORWARD"
    present = commands.run(["iptables", "-w", "-S", chain], package="iptables").output.splitlines()
    for side in ("-s", "-d"):
        if f"-A {chain} {side} {network} -m comment --comment casemate -j ACCEPT" in present:
            continue
        rule = [side, network, "-m", "comment", "--comment", "casemate", "-j", "ACCEPT"]
        result = commands.run(["iptables", "-w", "-I", chain, *rule], package="iptables")
        if result.status:
            raise NetworkError(f"iptables refused: {_first_line(result.errors)}", "see iptables -S FORWARD")


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


def _nft(script: str) -> commands.Result:
    return commands.run(["nft", "-f", "-"], package="nftables", text=script)


def _first_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[0].strip() if lines else "no reason given"


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

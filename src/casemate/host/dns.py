"""What name servers a sandbox is given: the host's own, as far as a sandbox can reach them."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

SOURCES = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
"""Where to look: the second holds the real servers where the first names systemd-resolved's own on the loopback."""
READ_LIMIT = 64 * 1024
MAX_NAMESERVERS = 3  # what resolvers read, resolv.conf(5)
MAX_SEARCH = 32
MAX_OPTIONS = 16


@dataclass(frozen=True, slots=True)
class Dns:
    """The settings of a resolver."""

    nameservers: tuple[str, ...] = ()
    """IPv4 addresses; none when the host has only servers on its loopback: the user has to name some."""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def resolv_conf(self) -> str:
        """The text of a ``/etc/resolv.conf``."""
        lines = [f"nameserver {server}" for server in self.nameservers]
        if self.search:
            lines.append("search " + " ".join(self.search))
        if self.options:
            lines.append("options " + " ".join(self.options))
        return "".join(line + "\n" for line in lines)


def host_dns(sources: Sequence[str] = SOURCES) -> Dns:
    """The host's settings without what a sandbox cannot use: servers on the loopback and servers with IPv6 addresses.

    Arguments:
        sources: files in the format of ``resolv.conf(5)``; the first that names a usable server wins.
    """
    first: Dns | None = None
    for source in sources:
        try:
            with open(source, "rb") as file:
                text = file.read(READ_LIMIT).decode(errors="replace")
        except OSError:
            continue
        found = parse(text)
        if found.nameservers:
            return found
        first = first or found
    return first or Dns()


def parse(text: str) -> Dns:
    """Read the text of a ``resolv.conf(5)``; lines that cannot be understood are passed over, as resolvers do."""
    servers: list[str] = []
    search: list[str] = []
    options: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or line[0] in "#;":
            continue
        if words[0] == "nameserver" and _usable(words[1]) and words[1] not in servers:
            servers.append(words[1])
        elif words[0] in ("search", "domain"):
            search = [word for word in words[1:] if _plain(word) and word != "."]
        elif words[0] == "options":
            # trust-ad tells the resolver to believe its server: true of one on the loopback, not of one further away
            options += [word for word in words[1:] if _plain(word) and word != "trust-ad"]
    return Dns(tuple(servers[:MAX_NAMESERVERS]), tuple(search[:MAX_SEARCH]), tuple(options[:MAX_OPTIONS]))


def _usable(address: str) -> bool:
    try:
        number = socket.inet_pton(socket.AF_INET, address)
    except (OSError, ValueError):
        return False
    return number[0] not in (0, 127)


def _plain(word: str) -> bool:
    return len(word) < 256 and word.isascii() and word.isprintable()

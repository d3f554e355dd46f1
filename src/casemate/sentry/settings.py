"""``net.*`` settings of a specification: the keeper's side makes them, in the sandbox's network namespace.

The sentry itself could not: it sees no ``/proc/sys``. Two of them are open in every sandbox's namespace for the sentry,
which is nobody there, to act for all users of the container; of these the sentry knows by itself what the specification
says (:func:`casemate.sentry.net.ports.may_bind`, :func:`casemate.sentry.net.icmp.permit`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from casemate.errors import BadBundle, Unsupported
from casemate.host import namespaces

PORT_START, PING_GROUPS = "net/ipv4/ip_unprivileged_port_start", "net/ipv4/ping_group_range"
_OWN = {PORT_START: re.compile(r"[0-9]{1,5}"), PING_GROUPS: re.compile(r"[0-9]{1,10}[ \t]+[0-9]{1,10}")}
_MOST = {PORT_START: 65535, PING_GROUPS: 0x7FFF_FFFF}
_NAME = re.compile(r"[A-Za-z0-9_:@+-]+([./][A-Za-z0-9_:@+-]+)+")
_MAX_VALUE = 4096


def path(name: str) -> str:
    """Where a setting is below ``/proc/sys``: with slashes in it, dots belong to names of interfaces, sysctl(8)."""
    return name if "/" in name else name.replace(".", "/")


def apply(netns: int, settings: Mapping[str, str]) -> None:
    """Make the ``net.*`` settings of a specification; others are not the network's.

    Arguments:
        netns: descriptor of the sandbox's network namespace; not closed.
        settings: ``linux.sysctl``.

    Raises:
        BadBundle: a name or value is none.
        Unsupported: the namespace has no such setting or does not take the value, or it is the host's.
    """
    wanted = {path(name): value for name, value in settings.items() if name.startswith(("net.", "net/"))}
    for name, value in wanted.items():
        if _NAME.fullmatch(name) is None or len(value) > _MAX_VALUE or "\0" in value:
            raise BadBundle(f"sysctl {name[:80]!r} is not the name of a kernel parameter with a value")
        if name in _OWN and not _right(name, value.strip()):
            raise BadBundle(f"sysctl {name.replace('/', '.')} cannot be {value[:80]!r}", "give it one or two numbers")
    if not wanted:
        return
    found, own = os.fstat(netns), os.stat("/proc/self/ns/net")
    if (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino):
        raise Unsupported("settings of the host's network cannot be changed by a container", "leave --sysctl net.* out")
    for name in _OWN:
        wanted.pop(name, None)
    if wanted:
        namespaces.in_netns(netns, lambda: _write(wanted))


def _right(name: str, value: str) -> bool:
    """Whether Linux would take such a value."""
    return bool(_OWN[name].fullmatch(value)) and all(int(word) <= _MOST[name] for word in value.split())


def _write(wanted: Mapping[str, str]) -> None:
    """In the namespace: below ``/proc/sys/net`` each thread sees that of its own."""
    for name, value in wanted.items():
        try:
            fd = os.open(f"/proc/sys/{name}", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            why = "the sandbox's network has no such setting" if missing else error.strerror
            raise Unsupported(
                f"sysctl {name.replace('/', '.')} cannot be set to {value[:80]!r}: {why}",
                "only settings that each network namespace has for itself can be given",
            ) from None

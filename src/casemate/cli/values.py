"""Values of options: from the words that people write to typed ones, or a :class:`UsageError` that says what to write.

The words are Docker's, so that habits and scripts carry over.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from casemate.errors import UsageError
from casemate.oci import spec

TYPE_CHECKING = False  # not from typing: that is one of the modules which cost
if TYPE_CHECKING:
    from casemate.host.ports import PortMap

MIB = 1 << 20
MOST_MEMORY = 1 << 46
"""64 TiB; a number beyond it is a slip of the keyboard."""
MOST_CPUS = 256
MOST_ENV_FILE = 1 << 20
MOST_PORTS = 1024
"""How many ports one container may publish."""

_SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,9})?)\s*([bkmgt]?)(i?b)?\Z", re.IGNORECASE | re.ASCII)
_HOSTNAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9.-]{0,61}[a-zA-Z0-9])?\Z")
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ms|s|m|h|d)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_USER = re.compile(r"[^:\s\x00-\x1f]{1,256}(?::[^:\s\x00-\x1f]{1,256})?\Z")


def text(value: str, what: str) -> str:
    """``value`` if it is UTF-8 without zero bytes; what goes into the guest has to be."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} is not valid UTF-8") from None
    if "\0" in value:
        raise UsageError(f"{what} holds a zero byte")
    return value


def size(value: str, option: str) -> int:
    """Bytes from ``512``, ``64k``, ``256m``, ``1.5g``, ``1GiB``; the units are powers of 1024."""
    match = _SIZE.match(value)
    if match is None:
        raise UsageError(f"bad size {value!r} for {option}", "write it as 256m or 1g")
    number, unit = match.group(1), match.group(2).lower()
    factor = 1 << (10 * " kmgt".index(unit)) if unit and unit != "b" else 1
    result = round(float(number) * factor) if "." in number else int(number) * factor
    if not 0 < result <= MOST_MEMORY:
        raise UsageError(f"bad size {value!r} for {option}", "give from 1 byte to 64t")
    return result


def memory(value: str, minimum: int) -> int:
    """MiB of guest memory.

    Arguments:
        value: as for :func:`size`; what is no whole MiB is rounded up.
        minimum: MiB, from the configuration.
    """
    mebibytes = -(-size(value, "--memory") // MIB)
    if mebibytes < minimum:
        raise UsageError(f"--memory {value} is too little for a kernel of its own", f"the minimum is {minimum}m")
    return mebibytes


def cpus(value: str) -> float:
    """Processors, with fractions: ``0.5``, ``2``."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0.01 <= number <= MOST_CPUS:
        raise UsageError(f"bad number {value!r} for --cpus", f"give from 0.01 to {MOST_CPUS}, such as 1.5")
    return number


def count(value: str, option: str, low: int, high: int) -> int:
    """A whole number within bounds."""
    if not re.fullmatch(r"-?\d{1,18}", value, re.ASCII) or not low <= int(value) <= high:
        raise UsageError(f"bad number {value!r} for {option}", f"give from {low} to {high}")
    return int(value)


def pids(value: str) -> int | None:
    """A limit of processes; ``-1`` and ``0`` mean none."""
    number = count(value, "--pids-limit", -1, 4_194_304)
    return number if number > 0 else None


def hostname(value: str) -> str:
    """A name for uname(2)."""
    if _HOSTNAME.match(value) is None:
        raise UsageError(f"bad host name {value!r}", "use 1 to 63 letters, digits, dots and dashes")
    return value


def user(value: str) -> str:
    """``name``, ``name:group``, ``uid`` or ``uid:gid``; who that is only the container knows."""
    if _USER.match(value) is None:
        raise UsageError(f"bad user {value!r}", "write it as name, name:group, uid or uid:gid")
    return text(value, "the user")


def network(value: str) -> str:
    """``nat`` or ``none``; Docker's ``bridge`` and ``default`` mean the first."""
    if value in ("bridge", "default"):
        return "nat"
    if value == "host":
        raise UsageError("--network host is not possible", "a container has its own kernel; publish ports with -p")
    if value not in ("nat", "none"):
        raise UsageError(f"unknown network {value!r}", "use nat or none")
    return value


def address(value: str, what: str) -> str:
    """An IPv4 address."""
    from ipaddress import IPv4Address

    try:
        return str(IPv4Address(value))
    except ValueError:
        raise UsageError(f"bad address {value!r} for {what}", "give an IPv4 address such as 192.0.2.1") from None


def ports(values: Iterable[str]) -> tuple[PortMap, ...]:
    """Published ports, each ``[[IP:][HOST]:]CONTAINER[/tcp|/udp]``; HOST and CONTAINER may be ranges of one length.

    A host port that is left out is 0: any that is free.
    """
    from casemate.host.ports import PortMap

    result: list[PortMap] = []
    for value in values:
        hint = "write it as 8080:80, 127.0.0.1:8080:80, 8080:80/udp or 8000-8009:8000-8009"
        rest, slash, protocol = value.partition("/")
        protocol = protocol.lower() if slash else "tcp"
        if protocol not in ("tcp", "udp"):
            raise UsageError(f"bad protocol in -p {value}", "use tcp or udp")
        if "[" in rest or rest.count(":") > 2:
            raise UsageError(f"-p {value} is not an IPv4 mapping", hint)
        parts = rest.split(":")
        inside = _port_range(parts[-1], value, hint)
        outside_text = parts[-2] if len(parts) > 1 else ""
        outside = _port_range(outside_text, value, hint) if outside_text else range(0)
        where = address(parts[0], f"-p {value}") if len(parts) == 3 and parts[0] else "0.0.0.0"
        if outside and len(outside) != len(inside):
            raise UsageError(f"the ranges in -p {value} differ in length", hint)
        for index, port in enumerate(inside):
            made = PortMap(host_ip=where, host_port=outside[index] if outside else 0, container_port=port,
                           protocol=protocol)  # fmt: skip
            if any(_clash(made, other) for other in result):
                raise UsageError(f"host port {made.host_port}/{protocol} is published twice", "publish it once")
            result.append(made)
            if len(result) > MOST_PORTS:
                raise UsageError(f"more than {MOST_PORTS} ports published", "publish fewer")
    return tuple(result)


def _clash(one: PortMap, other: PortMap) -> bool:
    if one.host_port == 0 or (one.host_port, one.protocol) != (other.host_port, other.protocol):
        return False
    return one.host_ip == other.host_ip or "0.0.0.0" in (one.host_ip, other.host_ip)


def _port_range(part: str, whole: str, hint: str) -> range:
    first, dash, last = part.partition("-")
    for number in (first, last) if dash else (first,):
        if not re.fullmatch(r"\d{1,5}", number, re.ASCII) or not 1 <= int(number) <= 65535:
            raise UsageError(f"bad port {number!r} in -p {whole}", hint)
    result = range(int(first), int(last if dash else first) + 1)
    if not result:
        raise UsageError(f"the range {part} in -p {whole} runs backwards", hint)
    return result


def volume(value: str) -> spec.Volume:
    """``SRC:DST[:ro|rw]``. A source with a slash that is relative is taken from the working directory."""
    parts = value.split(":")
    hint = "write it as /path/here:/path/there or /path/here:/path/there:ro"
    if len(parts) == 1:
        raise UsageError(f"-v {value} names no source", f"{hint}; anything else in a container is writable anyway")
    if len(parts) > 3 or not parts[0] or not parts[1]:
        raise UsageError(f"bad volume {value!r}", hint)
    source, target = parts[0], parts[1]
    if "/" not in source and source not in (".", ".."):
        raise UsageError(f"named volumes such as {source!r} are not supported", f"use a path: ./{source}:{target}")
    read_only = False
    for option in parts[2].split(",") if len(parts) == 3 else ():
        if option in ("ro", "readonly"):
            read_only = True
        elif option not in ("rw", "z", "Z", "rprivate", "private"):
            # z and Z relabel for SELinux, which a virtual machine makes needless: the field's scripts keep working.
            raise UsageError(f"unknown option {option!r} in -v {value}", hint)
    text(value, f"volume {source!r}")
    return spec.Volume(os.path.realpath(source), spec.mount_target(target), read_only)


def tmpfs(value: str) -> spec.Tmpfs:
    """``DST[:OPTION,...]`` with the options of tmpfs(5)."""
    target, _, options = text(value, "--tmpfs").partition(":")
    chosen = [option for option in options.split(",") if option]
    for option in chosen:
        name, equals, argument = option.partition("=")
        known = name in spec.TMPFS_VALUES if equals else name in spec.TMPFS_FLAGS
        if not known or (equals and not re.fullmatch(r"[0-9a-z]{1,20}%?", argument, re.IGNORECASE | re.ASCII)):
            raise UsageError(f"bad option {option!r} in --tmpfs {value}", "such as size=64m,mode=1777,exec")
    return spec.Tmpfs(spec.mount_target(target), tuple(chosen))


def environment(values: Iterable[str], environ: Mapping[str, str]) -> list[str]:
    """``NAME=value`` strings as they are; a bare ``NAME`` takes its value from ``environ``, and stays bare without."""
    result = []
    for value in values:
        name, equals, _ = value.partition("=")
        if not name:
            raise UsageError(f"bad variable {value!r}", "write it as NAME=value or NAME")
        if not equals and name in environ:
            value = f"{name}={environ[name]}"
        result.append(text(value, f"variable {name!r}"))
    return result


def env_file(path: str, environ: Mapping[str, str]) -> list[str]:
    """The variables in a file: one a line, quotes are kept, lines that begin with ``#`` are left out."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MOST_ENV_FILE + 1)
    except OSError as error:
        raise UsageError(f"cannot read the environment file {path}: {error.strerror}") from None
    if len(raw) > MOST_ENV_FILE:
        raise UsageError(f"the environment file {path} is larger than 1 MiB")
    try:
        lines = raw.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UsageError(f"the environment file {path} is not valid UTF-8") from None
    entries = []
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r").lstrip()
        if not line or line.startswith("#"):
            continue
        name = line.partition("=")[0]
        if not name or any(char.isspace() for char in name):
            raise UsageError(f"{path}, line {number}: bad variable name {name!r}", "write it as NAME=value or NAME")
        entries.append(line)
    return environment(entries, environ)


def labels(values: Iterable[str]) -> dict[str, str]:
    """``NAME=value`` or ``NAME`` for labels."""
    result = {}
    for value in values:
        name, _, content = text(value, "a label").partition("=")
        if not name:
            raise UsageError(f"bad label {value!r}", "write it as name=value")
        result[name] = content
    return result


def ulimit(value: str) -> spec.Ulimit:
    """``NAME=SOFT[:HARD]``; ``-1`` and ``unlimited`` mean no limit."""
    name, equals, numbers = value.partition("=")
    hint = "write it as nofile=1024:4096"
    if not equals or name not in spec.RLIMITS:
        known = ", ".join(sorted(spec.RLIMITS))
        raise UsageError(f"bad limit {value!r}", f"{hint}; known are {known}" if equals else hint)
    soft_text, colon, hard_text = numbers.partition(":")
    soft = _limit(soft_text, value, hint)
    hard = _limit(hard_text, value, hint) if colon else soft
    if soft > hard:
        raise UsageError(f"the soft limit in --ulimit {value} is above the hard one", hint)
    return spec.Ulimit(name, soft, hard)


def _limit(number: str, value: str, hint: str) -> int:
    if number in ("-1", "unlimited"):
        return spec.RLIM_INFINITY
    if not re.fullmatch(r"\d{1,18}", number, re.ASCII):
        raise UsageError(f"bad limit {value!r}", hint)
    return int(number)


def sysctl(value: str) -> tuple[str, str]:
    """``NAME=value`` for the settings that belong to a container and not to its whole machine."""
    name, equals, content = text(value, "--sysctl").partition("=")
    if not equals or "/" in name:
        raise UsageError(f"bad setting {value!r} for --sysctl", "write it as kernel.msgmax=65536")
    if name not in spec.SYSCTLS and not re.fullmatch(r"fs\.mqueue\.[a-z_]+", name):
        raise UsageError(f"{name} cannot be set for one container", f"known are {', '.join(spec.SYSCTLS)}, fs.mqueue.*")
    return name, content


def signal(value: str) -> int:
    """The number of a signal: ``TERM``, ``SIGTERM``, ``15``, ``SIGRTMIN+3``."""
    import signal as numbers

    lowest, highest = 34, 64  # real-time signals as every C library for Linux leaves them to programs
    name = value.upper().removeprefix("SIG")
    if re.fullmatch(r"\d{1,2}", name, re.ASCII) and 1 <= int(name) <= highest:
        return int(name)
    match = re.fullmatch(r"(RTMIN|RTMAX)(?:([+-])(\d{1,2}))?", name, re.ASCII)
    if match:
        base = lowest if match.group(1) == "RTMIN" else highest
        number = base + int((match.group(2) or "+") + (match.group(3) or "0"))
        if lowest <= number <= highest:
            return number
    elif re.fullmatch(r"[A-Z0-9]{2,7}", name) and hasattr(numbers, f"SIG{name}"):
        return int(getattr(numbers, f"SIG{name}"))
    raise UsageError(f"unknown signal {value!r}", "such as TERM, SIGKILL or 9")


def seconds(value: str, option: str) -> float:
    """A length of time: ``10``, ``1.5``, ``90s``, ``2m``, ``1h30m``."""
    if re.fullmatch(r"\d{1,12}(\.\d{1,9})?", value, re.ASCII):
        return float(value)
    total, end = 0.0, 0
    for match in _DURATION.finditer(value):
        if match.start() != end:
            break
        total += float(match.group(1)) * _SECONDS[match.group(2)]
        end = match.end()
    if not value or end != len(value):
        raise UsageError(f"bad time {value!r} for {option}", "such as 10, 90s, 2m or 1h30m")
    return total


def since(value: str, now: float) -> float:
    """A moment, in seconds since the epoch: a length of time ago, an RFC 3339 time, or seconds since the epoch."""
    from datetime import datetime

    if re.fullmatch(r"\d{9,12}(\.\d{1,9})?", value, re.ASCII):
        return float(value)
    if re.match(r"\d{4}-\d\d-\d\d", value, re.ASCII):
        try:
            # fromisoformat takes no more than microseconds; nobody will miss the rest.
            return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", value)).timestamp()
        except (ValueError, OverflowError, OSError):
            raise UsageError(f"bad time {value!r}", "such as 2026-01-31T12:00:00Z or 10m") from None
    return now - seconds(value, "--since")


def words(values: Sequence[str], what: str) -> tuple[str, ...]:
    """A command's words, checked."""
    return tuple(text(value, what) for value in values)

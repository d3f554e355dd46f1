"""Kernel modules of the root image, loaded when they are needed: by the agent, or by the kernel's own wish.

When somebody asks for what a module would bring (a file system, a kind of link, a packet filter's rule), the kernel
starts the program that ``kernel.modprobe`` names, which is :func:`main`, with the module's name or one of its aliases.
"""

from __future__ import annotations

import errno
import os

from casemate.agent.system import log, read_whole, syscall

DIRECTORY = "/usr/lib/casemate/modules"
INDEX = "index"
"""A line for each module: its name, the modules it needs (separated by commas, or ``-``), its aliases. In all of them
every ``-`` is a ``_``, for the kernel's spelling varies."""
MAX_INDEX = 1 << 20


def load(wanted: str, directory: str = DIRECTORY) -> bool:
    """Load a module and what it needs.

    Arguments:
        wanted: its name, or an alias.
        directory: where the modules and their index are.

    Returns:
        whether it is there now; False when the image has no such module.
    """
    table = _index(directory)
    wanted = wanted.replace("-", "_")
    names = [name for name, (_, aliases) in table.items() if wanted == name or wanted in aliases]
    done: set[str] = set()
    return bool(names) and all([_load(name, table, directory, done) for name in names])


def _index(directory: str) -> dict[str, tuple[list[str], frozenset[str]]]:
    table = {}
    for line in read_whole(f"{directory}/{INDEX}", MAX_INDEX).splitlines():
        name, needs, *aliases = line.split(" ")
        table[name] = (needs.split(",") if needs != "-" else [], frozenset(aliases))
    return table


def _load(name: str, table: dict[str, tuple[list[str], frozenset[str]]], directory: str, done: set[str]) -> bool:
    if name in done:
        return True
    done.add(name)
    if os.path.exists(f"/sys/module/{name}/initstate"):
        return True
    for other in table[name][0] if name in table else ():
        _load(other, table, directory, done)
    image = _read(f"{directory}/{name}.ko", 1 << 26)
    if not image:
        return False
    try:
        syscall("init_module", image, len(image), b"")
    except OSError as error:
        if error.errno != errno.EEXIST:  # somebody else was faster
            log(f"the kernel module {name} cannot be loaded: {error.strerror}")
            return False
    return True


def _read(path: str, limit: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        parts = []
        while limit > 0 and (part := os.read(fd, min(limit, 1 << 20))):
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def main(arguments: list[str]) -> int:
    """The program that the kernel starts: ``modprobe -q -- NAME``."""
    return 0 if len(arguments) > 1 and load(arguments[-1]) else 1

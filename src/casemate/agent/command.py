"""Judge a command before it is started, for what the runtime cannot report.

crun says that a command is missing or has no execute permission. When the kernel refuses the file at the very end (it
is no program, its interpreter is missing), crun has already said that all is well. So those cases are looked at
before. When in doubt the answer is "go on": then the process itself fails.
"""

from __future__ import annotations

import os
import struct

from casemate.agent.system import open_regular
from casemate.protocol.wire import RequestFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

PT_INTERP = 3
MAX_HEADERS = 64


def check(root: int, command: str, path: str, cwd: str, covered: Collection[str]) -> str | None:
    """Look at the file that a command names.

    Arguments:
        root: a descriptor of the container's root directory.
        command: the first argument.
        path: the PATH of the environment, for a command without a slash.
        cwd: the working directory, for a relative command.
        covered: mount points, below which ``root`` does not show what the container will see.

    Returns:
        the file, where it is sure that it will be executed; None where that is to be seen.

    Raises:
        RequestFailed: ``not-found``: its interpreter is missing; ``not-executable``: the kernel will not execute it.
    """
    if "/" in command:
        places = [os.path.join(cwd, command)]
    else:
        places = [os.path.join(directory or ".", command) for directory in path.split(":")]
    for place in places:
        if _is_covered(place, covered):
            return None
        fd = _open(root, place)
        if fd is None:
            continue
        try:
            if not os.fstat(fd).st_mode & 0o111:
                return None  # the runtime has words for that
            return place if _check_file(root, fd, command, covered) else None
        except OSError:
            return None
        finally:
            os.close(fd)
    return None


def _is_covered(place: str, covered: Collection[str]) -> bool:
    place = os.path.normpath(place)
    return any(place == point or place.startswith(point.rstrip("/") + "/") for point in covered)


def _open(root: int, place: str) -> int | None:
    try:
        return open_regular(root, place)
    except (OSError, ValueError):
        return None


def _check_file(root: int, fd: int, command: str, covered: Collection[str]) -> bool:
    """Whether it is sure that the kernel executes it. Raises RequestFailed where it is sure that it does not."""
    head = os.pread(fd, 256, 0)
    if head.startswith(b"#!"):
        words = head[2:].split(b"\n", 1)[0].split()
        interpreter = os.fsdecode(words[0]) if words else ""
    elif head.startswith(b"\x7fELF"):
        if head[:20] and not _machine_fits(head):
            raise RequestFailed("not-executable", f"{command}: it is a program for another processor")
        interpreter = _elf_interpreter(fd, head)
    else:
        raise RequestFailed("not-executable", f"{command}: exec format error: neither a program nor a script with #!")
    if not interpreter:
        return True
    if not interpreter.startswith("/") or _is_covered(interpreter, covered):
        return False
    found = _open(root, interpreter)
    if found is None:
        raise RequestFailed("not-found", f"{command}: its interpreter {interpreter[:200]} is not in the container")
    os.close(found)
    return True


def _machine_fits(head: bytes) -> bool:
    """Whether an ELF header's machine is this one's; x86-64 also executes i386."""
    own = os.open("/proc/self/exe", os.O_RDONLY | os.O_CLOEXEC)
    try:
        ours = os.pread(own, 20, 0)
    finally:
        os.close(own)
    return head[18:20] == ours[18:20] or (ours[18:20] == b"\x3e\0" and head[18:20] == b"\x03\0")


def _elf_interpreter(fd: int, head: bytes) -> str:
    """The loader that an ELF program asks for (elf(5)), empty when there is none or the file is strange."""
    order = "<" if head[5:6] == b"\x01" else ">"
    try:
        if head[4:5] == b"\x02":
            offset, size, count = (
                *struct.unpack_from(order + "Q", head, 32),
                *struct.unpack_from(order + "HH", head, 54),
            )
            place, where, length = 0, 8, 32
            word = "Q"
        else:
            offset, size, count = (
                *struct.unpack_from(order + "I", head, 28),
                *struct.unpack_from(order + "HH", head, 42),
            )
            place, where, length = 0, 4, 16
            word = "I"
        table = os.pread(fd, min(count, MAX_HEADERS) * size, offset)
        for start in range(0, len(table) - size + 1, max(size, 1)):
            if struct.unpack_from(order + "I", table, start + place)[0] == PT_INTERP:
                at = struct.unpack_from(order + word, table, start + where)[0]
                count = struct.unpack_from(order + word, table, start + length)[0]
                return os.fsdecode(os.pread(fd, min(count, 4096), at).split(b"\0", 1)[0])
    except (struct.error, OSError, OverflowError):
        return ""
    return ""

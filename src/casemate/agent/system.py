"""The system calls that Python's ``os`` lacks, and small things that the rest of the agent shares."""

from __future__ import annotations

import _ctypes
import errno
import os
import stat
import struct
from _signal import SIG_IGN, SIGINT, SIGKILL, SIGPIPE, SIGXFSZ  # type: ignore[import-not-found]  # signal imports enum

from casemate.protocol import threads
from casemate.protocol.wire import RequestFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["SIG_IGN", "SIGINT", "SIGKILL", "SIGPIPE", "SIGXFSZ"]

MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
RB_POWER_OFF = 0x4321FEDC
SYS_OPENAT2 = 437  # the same number on every architecture, being younger than their common table
RESOLVE_NO_MAGICLINKS, RESOLVE_IN_ROOT = 0x02, 0x10
SYSCALLS = {
    "x86_64": {
        "init_module": 175, "ioprio_set": 251, "bpf": 321, "capset": 126, "pivot_root": 155, "keyctl": 250,
        "unshare": 272, "seccomp": 317, "setns": 308, "open_tree": 428, "move_mount": 429,
        "mount_setattr": 442,
    },
    "aarch64": {
        "init_module": 105, "ioprio_set": 30, "bpf": 280, "capset": 91, "pivot_root": 41, "keyctl": 219, "unshare": 97,
        "seccomp": 277, "setns": 268, "open_tree": 428, "move_mount": 429,
        "mount_setattr": 442,
    },
}  # fmt: skip
"""Numbers of system calls that the C library has no function for, by architecture."""
_NUMBERS = SYSCALLS.get(os.uname().machine, {})
ADDR_NO_RANDOMIZE = 0x0040000
MAX_LINE = 1000
MAX_ID = 128


# The C half of ctypes alone: the Python half, with its many types, costs 60 ms of imports on an emulated processor.
class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]  # cannot be subscripted
    _type_ = "i"


class _Long(_ctypes._SimpleCData):  # type: ignore[type-arg]  # cannot be subscripted
    _type_ = "l"


class _IntFunction(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Int


class _LongFunction(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Long


_handle = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # the program itself
_mount = _IntFunction(_ctypes.dlsym(_handle, "mount"))
_umount2 = _IntFunction(_ctypes.dlsym(_handle, "umount2"))
_reboot = _IntFunction(_ctypes.dlsym(_handle, "reboot"))
_personality = _IntFunction(_ctypes.dlsym(_handle, "personality"))
_prctl = _IntFunction(_ctypes.dlsym(_handle, "prctl"))
_syscall = _LongFunction(_ctypes.dlsym(_handle, "syscall"))


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = _ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2); a source or type that is empty is none.

    Raises:
        OSError: it was refused; ``filename`` is the target.
    """
    _checked(
        _mount(source.encode() or None, target.encode(), kind.encode() or None, _Long(flags), data.encode() or None),
        target,
    )


def unmount(target: str) -> bool:
    """Take away what is mounted on a path, and all below it, when nobody uses it any more (umount2(2), MNT_DETACH).

    Returns:
        whether something was.

    Raises:
        OSError: it was refused.
    """
    if _umount2(target.encode(), MNT_DETACH | UMOUNT_NOFOLLOW) < 0:
        number = _ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOENT):
            return False
        raise OSError(number, os.strerror(number), target)
    return True


def personality(value: int) -> int:
    """Set the execution domain of this thread and of what it starts (personality(2)); what it was before.

    Raises:
        OSError: it was refused.
    """
    return _checked(_personality(_Long(value)), "personality")


def prctl(option: int, value: int = 0, further: int = 0) -> int:
    """prctl(2). Raises OSError."""
    return _checked(_prctl(option, _Long(value), _Long(further), _Long(0), _Long(0)), "prctl")


def syscall(name: str, *arguments: int | bytes) -> int:
    """A system call that the C library has no function for.

    Arguments:
        name: one of :data:`SYSCALLS`.
        arguments: numbers, or bytes for what the kernel reads by address.

    Raises:
        OSError: it was refused, or the number is not known on this architecture.
    """
    number = _NUMBERS.get(name)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), name)
    words = [word if isinstance(word, bytes) else _Long(word) for word in arguments]
    return _checked(int(_syscall(_Long(number), *words)), name)


def power_off() -> None:
    """End the machine at once: reboot(2) with RB_POWER_OFF. Returns only where it is refused."""
    _reboot(RB_POWER_OFF)


def open_in_root(root: int, path: str, flags: int) -> int:
    """Open a path as if ``root`` were the root directory: no link and no ``..`` leads out (openat2(2)).

    Arguments:
        root: a descriptor of a directory.
        path: relative or absolute, below it.
        flags: as for open(2); O_CLOEXEC is added.

    Raises:
        OSError: it cannot be opened.
    """
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    for _ in range(8):
        fd = int(_syscall(_Long(SYS_OPENAT2), _Long(root), path.encode(), how, _Long(len(how))))
        if fd >= 0 or _ctypes.get_errno() != errno.EAGAIN:  # a rename went on beside it
            break
    return _checked(fd, path)


def open_regular(root: int, path: str) -> int:
    """Open a regular file of a container for reading; never anything else, such as a pipe or a device, which a
    container can put in the file's place.

    Raises:
        OSError: it cannot be opened or is something else.
    """
    handle = open_in_root(root, path, os.O_PATH)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(handle)


def log(message: str) -> None:
    """A line on the guest's console, which is standard error; bounded, and never a reason to fail."""
    line = f"casemate-agent: {message}".replace("\n", " | ")[:MAX_LINE] + "\n"
    try:
        os.write(2, line.encode("utf-8", "replace"))
    except OSError:
        return


def make_directory(path: str, mode: int, *, exist_ok: bool = False) -> None:
    """mkdir(2); what is above is made too, where it is missing. Raises OSError."""
    try:
        os.mkdir(path, mode)  # os.makedirs() looks at all that is above first
    except FileNotFoundError:
        os.makedirs(path, mode)
    except FileExistsError:
        if not exist_ok:
            raise


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


def read_text(path: str, limit: int = 65536) -> str:
    """The beginning of a small file, such as those of /proc; an empty string where it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, limit).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def read_whole(path: str, limit: int) -> str:
    """As :func:`read_text`, for what the kernel gives in pieces, such as the processes of a control group."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    parts: list[bytes] = []
    try:
        while limit > 0 and (part := os.read(fd, limit)):
            parts.append(part)
            limit -= len(part)
    except OSError:
        pass
    finally:
        os.close(fd)
    return b"".join(parts).decode("utf-8", "replace")


def write_text(path: str, content: str, mode: int = 0o600, *, create: bool = False) -> None:
    """Write a file in one piece.

    Raises:
        OSError: it cannot be written.
    """
    flags = os.O_WRONLY | os.O_CLOEXEC | ((os.O_CREAT | os.O_TRUNC) if create else 0)
    fd = os.open(path, flags, mode)
    try:
        data = memoryview(content.encode())
        while data:
            data = data[os.write(fd, data) :]
        if create:
            os.fchmod(fd, mode)
    finally:
        os.close(fd)


def sync(timeout: float) -> bool:
    """Have the kernel write back what it has not yet (sync(2)); whether that was done within ``timeout`` seconds."""
    done = threads.Event()

    def run() -> None:
        os.sync()
        done.set()

    try:
        threads.start(run)
    except RuntimeError:  # there can be no more threads for the moment
        return False
    return done.wait(timeout)


def forget_names() -> None:
    """Forget the names and attributes of files that nobody has open, for the host may have changed some.

    Raises:
        RequestFailed: it was refused.
    """
    try:
        write_text("/proc/sys/vm/drop_caches", "2")
    except OSError as error:
        raise RequestFailed("failed", f"caches cannot be dropped: {error.strerror}") from None


# ---- parameters of requests


def bad(what: str) -> RequestFailed:
    """The refusal of a request that is not as it should be."""
    return RequestFailed("bad-spec", what)


def get_text(params: dict[str, Any], key: str, limit: int = 4096) -> str:
    """A string without zero bytes. Raises RequestFailed ``bad-spec``."""
    value = params.get(key)
    if not isinstance(value, str) or len(value) > limit or "\0" in value:
        raise bad(f"{key} must be a string of at most {limit} characters")
    return value


def get_int(params: dict[str, Any], key: str, low: int, high: int) -> int:
    """A whole number within bounds. Raises RequestFailed ``bad-spec``."""
    value = params.get(key)
    if type(value) is not int or not low <= value <= high:
        raise bad(f"{key} must be a whole number from {low} to {high}")
    return value


def get_optional_int(params: dict[str, Any], key: str, low: int, high: int) -> int | None:
    """A whole number within bounds, or None when it is absent or null. Raises RequestFailed ``bad-spec``."""
    return None if params.get(key) is None else get_int(params, key, low, high)


def get_dict(params: dict[str, Any], key: str) -> dict[str, Any]:
    """An object. Raises RequestFailed ``bad-spec``."""
    value = params.get(key)
    if not isinstance(value, dict):
        raise bad(f"{key} must be an object")
    return value


def get_list(params: dict[str, Any], key: str, limit: int) -> list[Any]:
    """A list, empty when absent or null. Raises RequestFailed ``bad-spec``."""
    value = params.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > limit:
        raise bad(f"{key} must be a list of at most {limit} entries")
    return value


def get_id(params: dict[str, Any], key: str) -> str:
    """A name that is safe in a path and on a command line. Raises RequestFailed ``bad-spec``."""
    value = get_text(params, key, MAX_ID)
    plain = value.replace("-", "").replace("_", "").replace(".", "").replace("+", "")
    if not plain.isalnum() or not value.isascii() or not value[0].isalnum():
        raise bad(f"{key} must begin with a letter or digit and hold only those, '-', '_', '.' and '+'")
    return value

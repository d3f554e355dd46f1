"""What /proc tells of a process's memory: maps, smaps, statm, mem; proc_pid_maps(5), proc_pid_smaps(5)."""

from __future__ import annotations

import os
from bisect import bisect_left
from errno import EFAULT, EINVAL, EIO, ESRCH
from operator import itemgetter
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.mm.vma import (
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    VM_DONTDUMP,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYWRITE,
    VM_NORESERVE,
    VM_SEALED,
    VM_SHARED,
)
from casemate.sentry.vfs.file import File
from casemate.sentry.vfs.proc.view import View, file_path

if TYPE_CHECKING:
    from casemate.sentry.mm.space import AddressSpace
    from casemate.sentry.mm.vma import Vma
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.inode import Inode


def resident(view: View) -> tuple[int, int]:
    """Pages in memory, and those of them that files back, as the host counts them."""
    task = view.task
    if task is None or task.thread is None:
        return 0, 0
    fields = _host_file(view, task.thread.pid, "statm").split()
    return (int(fields[1]), int(fields[2])) if len(fields) > 2 else (0, 0)


def _host_file(view: View, pid: int, name: str) -> bytes:
    """What the host's /proc says of one of our host processes; nothing when it is gone."""
    try:
        fd = os.open(f"{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=view.kernel.platform.proc)
    except OSError:
        return b""
    with open(fd, "rb") as file:
        try:
            return file.read()
        except OSError:
            return b""


def line(mm: AddressSpace, vma: Vma, task: Task) -> bytes:
    """A mapping's line of maps, without its end; the path is as ``task`` sees it."""
    letters = "".join(
        letter if vma.prot & bit else "-" for letter, bit in (("r", PROT_READ), ("w", PROT_WRITE), ("x", PROT_EXEC))
    )
    letters += "s" if vma.flags & VM_SHARED else "p"
    major = minor = number = 0
    name = vma.name
    if vma.file is not None:
        if vma.file.inode is not None:
            found = vma.file.inode.stat()
            major, minor, number = os.major(found.dev), os.minor(found.dev), found.ino
        name = name or file_path(task, vma.file).replace(b"\n", b"\\012")
    elif vma.flags & VM_SHARED and not name:
        name = b"/dev/zero (deleted)"
    elif not name and mm.heap_at(vma):
        name = b"[heap]"
    offset = vma.offset if vma.file is not None or vma.flags & VM_SHARED else 0
    where = f"{vma.start:08x}-{vma.end:08x} {letters} {offset:08x}"
    text = f"{where} {major:02x}:{minor:02x} {number} ".encode()
    return text.ljust(73) + name if name else text


def maps(view: View, task: Task) -> bytes:
    """proc_pid_maps(5)."""
    view.check(task)
    mm = view.mm
    if mm is None:
        return b""
    return b"".join(line(mm, vma, task) + b"\n" for vma in shown(mm))


def shown(mm: AddressSpace) -> list[Vma]:
    """All mappings but those of the platform that have no name."""
    return [vma for vma in mm.regions if vma.name or not vma.flags & VM_SEALED]


_FIELDS = (
    "Rss", "Pss", "Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty", "Referenced", "Anonymous",
    "LazyFree", "AnonHugePages", "Swap", "SwapPss", "Locked",
)  # fmt: skip


def _host_smaps(view: View) -> list[tuple[int, int, dict[str, int]]]:
    """What the host says of its own mappings of this memory: start, end and kB of each field."""
    task = view.task
    if task is None or task.thread is None:
        return []
    text = _host_file(view, task.thread.pid, "smaps")
    found: list[tuple[int, int, dict[str, int]]] = []
    for line in text.decode("ascii", "replace").splitlines():
        key, _, rest = line.partition(" ")
        if key.endswith(":"):
            name = key[:-1]
            if found and name in _FIELDS:
                found[-1][2][name] = int(rest.split()[0])
        else:
            start, _, end = key.partition("-")
            found.append((int(start, 16), int(end, 16), {}))
    return found


def _sum(host: list[tuple[int, int, dict[str, int]]], start: int, end: int) -> dict[str, int]:
    total = dict.fromkeys(_FIELDS, 0)
    for index in range(bisect_left(host, start, key=itemgetter(0)), len(host)):
        _, high, fields = host[index]
        if high > end:
            break
        for name, value in fields.items():
            total[name] += value
    return total


_VM_FLAGS = (
    (VM_SHARED, "sh"), (VM_MAYREAD, "mr"), (VM_MAYWRITE, "mw"), (VM_MAYEXEC, "me"), (VM_GROWSDOWN, "gd"),
    (VM_LOCKED, "lo"), (VM_NORESERVE, "nr"), (VM_DONTDUMP, "dd"),
)  # fmt: skip


def smaps(view: View, task: Task) -> bytes:
    """proc_pid_smaps(5): which memory is there is the host's to say."""
    view.check(task)
    mm = view.mm
    if mm is None:
        return b""
    host = _host_smaps(view)
    parts: list[bytes] = []
    for vma in shown(mm):
        fields = _sum(host, vma.start, vma.end)
        flags = [text for bit, text in ((PROT_READ, "rd"), (PROT_WRITE, "wr"), (PROT_EXEC, "ex")) if vma.prot & bit]
        flags += [text for bit, text in _VM_FLAGS if vma.flags & bit]
        rows = [("Size", vma.size >> 10), ("KernelPageSize", 4), ("MMUPageSize", 4), *fields.items()]
        parts.append(line(mm, vma, task) + b"\n")
        parts.append("".join(f"{name + ':':<16}{value:>8} kB\n" for name, value in rows).encode())
        parts.append(f"THPeligible:    0\nVmFlags: {' '.join(flags)} \n".encode())
    return b"".join(parts)


def smaps_rollup(view: View, task: Task) -> bytes:
    """The sums of smaps."""
    view.check(task)
    mm = view.mm
    if mm is None or not len(mm.regions):
        return b""
    total = dict.fromkeys(_FIELDS, 0)
    host = _host_smaps(view)
    for vma in shown(mm):
        for name, value in _sum(host, vma.start, vma.end).items():
            total[name] += value
    low, high = mm.regions.vmas[0].start, mm.regions.vmas[-1].end
    head = f"{low:08x}-{high:08x} ---p 00000000 00:00 0 ".ljust(73) + "[rollup]\n"
    return (head + "".join(f"{name + ':':<16}{value:>8} kB\n" for name, value in total.items())).encode()


def _kinds(mm: AddressSpace) -> dict[str, int]:
    """Bytes of stack, code and libraries."""
    sums = {"stack": 0, "code": 0, "lib": 0, "locked": 0}
    for vma in mm.regions:
        if vma.name == b"[stack]" or vma.flags & VM_GROWSDOWN:
            sums["stack"] += vma.size
        elif vma.prot & PROT_EXEC and vma.file is not None:
            sums["code" if mm.start_code <= vma.start < max(mm.end_code, mm.start_code + 1) else "lib"] += vma.size
        if vma.flags & VM_LOCKED:
            sums["locked"] += vma.size
    return sums


def statm(view: View, task: Task) -> bytes:
    """proc_pid_statm(5), in pages."""
    mm = view.mm
    if mm is None:
        return b"0 0 0 0 0 0 0\n"
    kinds = _kinds(mm)
    pages, shared = resident(view)
    return b"%d %d %d %d 0 %d 0\n" % (
        mm.regions.bytes >> 12, pages, shared, kinds["code"] >> 12,
        (mm.regions.data + kinds["stack"]) >> 12,
    )  # fmt: skip


def status_lines(view: View, mm: AddressSpace) -> list[tuple[str, str]]:
    """The part of proc_pid_status(5) that is about memory."""
    kinds = _kinds(mm)
    pages, shared = resident(view)
    rss, files = pages * 4, shared * 4
    size = mm.regions.bytes >> 10
    values = {
        "VmPeak": size, "VmSize": size, "VmLck": kinds["locked"] >> 10, "VmPin": 0, "VmHWM": rss, "VmRSS": rss,
        "RssAnon": rss - files, "RssFile": files, "RssShmem": 0, "VmData": mm.regions.data >> 10,
        "VmStk": kinds["stack"] >> 10, "VmExe": kinds["code"] >> 10, "VmLib": kinds["lib"] >> 10,
        "VmPTE": max(4, rss >> 9), "VmSwap": 0,
        "HugetlbPages": 0,
    }  # fmt: skip
    lines = [(name, f"{value:8d} kB") for name, value in values.items()]
    return [*lines, ("CoreDumping", "0"), ("THP_enabled", "1")]


class MemFile(File):
    """``/proc/PID/mem``, proc_pid_mem(5).

    Arguments:
        view: whose memory; it was checked when the file was opened.
    """

    def __init__(self, flags: int, inode: Inode, view: View) -> None:
        super().__init__(flags, inode)
        self._mm = view.mm
        self._view = view

    def _memory(self) -> AddressSpace | None:
        # A program that has replaced itself has another memory, which was not asked for.
        mm = self._view.mm
        return mm if mm is self._mm else None

    def read(self, task: Task, size: int) -> bytes:
        data = self.pread(task, size, self.offset)
        self.offset += len(data)
        return data

    def pread(self, task: Task, size: int, offset: int) -> bytes:
        mm = self._memory()
        if mm is None:
            return b""
        # Protections do not matter to it; what is not the application's does.
        size = min(size, mm.regions.covered(offset, offset + size) - offset)
        if size <= 0:
            raise SysError(EIO)
        try:
            return os.pread(mm.fd, size, offset)
        except OSError:
            raise SysError(EIO) from None

    def write(self, task: Task, data: bytes) -> int:
        done = self.pwrite(task, data, self.offset)
        self.offset += done
        return done

    def pwrite(self, task: Task, data: bytes, offset: int) -> int:
        mm = self._memory()
        if mm is None:
            raise SysError(ESRCH)
        try:
            mm.write(offset, data)
        except SysError as error:
            raise SysError(EIO if error.errno == EFAULT else error.errno) from None
        return len(data)

    def seek(self, task: Task, offset: int, whence: int) -> int:
        if whence == os.SEEK_CUR:
            offset += self.offset
        elif whence != os.SEEK_SET:
            raise SysError(EINVAL)
        self.offset = offset & 0xFFFF_FFFF_FFFF_FFFF
        return self.offset

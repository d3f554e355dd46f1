"""Putting a program into fresh memory: its segments, its dynamic loader, its stack, its first registers."""

from __future__ import annotations

from errno import ENOMEM
from resource import RLIMIT_STACK
from typing import TYPE_CHECKING

from casemate.sentry.abi import PAGE_SIZE, page_down, page_up
from casemate.sentry.errno import SysError
from casemate.sentry.loader import stack as st
from casemate.sentry.loader.elf import PF_R, PF_W, PF_X, PHDR_SIZE
from casemate.sentry.mm import passed
from casemate.sentry.mm.layout import Layout
from casemate.sentry.mm.mapping import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MMAP_MIN_ADDR
from casemate.sentry.mm.space import AddressSpace
from casemate.sentry.mm.vma import PROT_EXEC, PROT_READ, PROT_WRITE

if TYPE_CHECKING:
    from casemate.sentry.creds import Credentials
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.limits import Limits
    from casemate.sentry.loader.elf import Elf, Segment
    from casemate.sentry.loader.program import Program
    from casemate.sentry.platform.base import HostThread
    from casemate.sentry.vfs.file import File

CLK_TCK = 100
_FIXED = MAP_PRIVATE | MAP_FIXED


def fresh(kernel: Kernel, limits: Limits, randomize: bool = True) -> tuple[HostThread, AddressSpace]:
    """A host process with nothing in its memory. Raises SysError.

    Arguments:
        randomize: false for ``ADDR_NO_RANDOMIZE`` of personality(2).
    """
    try:
        thread = kernel.platform.spawn()
    except OSError:
        raise SysError(ENOMEM) from None
    try:
        fd = kernel.platform.open_memory(thread)
    except OSError:
        thread.kill()
        raise SysError(ENOMEM) from None
    layout = Layout(randomize, limits.soft(RLIMIT_STACK), kernel.platform.ceiling)
    return thread, AddressSpace(fd, kernel.platform.reserved, layout)


def load(
    thread: HostThread,
    mm: AddressSpace,
    program: Program,
    env: list[bytes],
    creds: Credentials,
    secure: bool,
    limits: Limits,
) -> None:
    """Map a program and set the thread's registers so that it starts when the thread is resumed.

    Arguments:
        thread, mm: as :func:`fresh` made them.
        creds: those that the program will have.
        secure: ``AT_SECURE``: its rights are not those of who started it.

    Raises:
        SysError: the memory is partly filled then, and of no use any more.
    """
    elf = program.elf
    bias = 0
    if elf.dynamic:
        bias = mm.layout.exec_base - elf.start if program.loader is not None else _room(mm, elf)
    _map(thread, mm, elf, program.file, bias)
    _describe(mm, elf, bias)
    heap = elf.end + bias
    if elf.dynamic and program.loader is None:
        heap = mm.layout.exec_base
    mm.set_heap(heap + mm.layout.heap_gap)
    entry = elf.entry + bias
    base = 0
    if program.loader is not None:
        assert program.loader_file is not None
        loader = program.loader
        base = _room(mm, loader) if loader.dynamic else 0
        _map(thread, mm, loader, program.loader_file, base)
        entry = loader.entry + base
    prot = PROT_READ | PROT_WRITE | (PROT_EXEC if elf.stack_exec else 0)
    top = mm.map_stack(thread, limits.soft(RLIMIT_STACK), prot)
    entries = [
        *_vdso(mm),
        *st.processor_entries(),
        (st.AT_PAGESZ, PAGE_SIZE),
        (st.AT_CLKTCK, CLK_TCK),
        (st.AT_PHDR, elf.phdr + bias if elf.phdr else 0),
        (st.AT_PHENT, PHDR_SIZE),
        (st.AT_PHNUM, elf.phnum),
        (st.AT_BASE, base),
        (st.AT_FLAGS, 0),
        (st.AT_ENTRY, elf.entry + bias),
        (st.AT_UID, creds.uid),
        (st.AT_EUID, creds.euid),
        (st.AT_GID, creds.gid),
        (st.AT_EGID, creds.egid),
        (st.AT_SECURE, int(secure)),
    ]
    passed.fence_in(mm, thread)
    passed.tell_heap(mm, thread, top)
    image = st.build(top, program.argv, env, program.filename, entries)
    mm.write(image.pointer, image.data)
    mm.arg_start, mm.arg_end = image.arg_start, image.arg_end
    mm.env_start, mm.env_end = image.env_start, image.env_end
    mm.stack_start = image.pointer
    mm.auxv = image.auxv
    regs = thread.regs
    regs.rip = entry
    regs.rsp = image.pointer


def _vdso(mm: AddressSpace) -> list[tuple[int, int]]:
    for vma in mm.regions.vmas:
        if vma.name == b"[vdso]":
            return [(st.AT_SYSINFO_EHDR, vma.start)]
    return []


def _room(mm: AddressSpace, elf: Elf) -> int:
    """The load bias that puts it where mappings go by themselves."""
    place = mm.regions.room_below(elf.end - elf.start, MMAP_MIN_ADDR, mm.layout.mmap_base)
    if place is None:
        raise SysError(ENOMEM)
    return place - elf.start


def _map(thread: HostThread, mm: AddressSpace, elf: Elf, file: File, bias: int) -> None:
    for segment in elf.segments:
        _map_segment(thread, mm, segment, file, bias)


def _map_segment(thread: HostThread, mm: AddressSpace, segment: Segment, file: File, bias: int) -> None:
    prot = (
        (PROT_READ if segment.flags & PF_R else 0)
        | (PROT_WRITE if segment.flags & PF_W else 0)
        | (PROT_EXEC if segment.flags & PF_X else 0)
    )
    address = segment.vaddr + bias
    start = page_down(address)
    end = address + segment.memsz
    zeros = address + segment.filesz
    if segment.filesz:
        mm.map(thread, start, zeros - start, prot, _FIXED, file, page_down(segment.offset))
        if zeros < end and zeros % PAGE_SIZE and prot & PROT_WRITE:
            # The rest of the last page holds what follows in the file; the program expects zeros.
            mm.write(zeros, bytes(page_up(zeros) - zeros))
        start = page_up(zeros)
    if page_up(end) > start:
        mm.map(thread, start, page_up(end) - start, prot, _FIXED | MAP_ANONYMOUS)


def _describe(mm: AddressSpace, elf: Elf, bias: int) -> None:
    """Where code and data are, for ``/proc/PID/stat``."""
    code = [segment for segment in elf.segments if segment.flags & PF_X] or elf.segments
    mm.start_code = min(segment.vaddr for segment in code) + bias
    mm.end_code = max(segment.vaddr + segment.filesz for segment in code) + bias
    last = max(elf.segments, key=_address)
    mm.start_data = last.vaddr + bias
    mm.end_data = last.vaddr + last.filesz + bias


def _address(segment: Segment) -> int:
    return segment.vaddr

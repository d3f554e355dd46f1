"""The program by which a machine gets warm: what most programs do when they begin, and nothing else.

Under emulation the guest's kernel is translated piece by piece when it first gets there. So what this program has asked
the kernel for, the sandbox's program finds translated; and where the machine is one that others are copied from
(:mod:`casemate.twins`), what each copy then need not translate it does not have for itself in memory either. It is an
ELF executable for x86-64 of two segments, as large as a small program of an image is, so that pages of it are read
ahead, mapped and copied as those of any other: a table of system calls, and a loop that makes them.
"""

from __future__ import annotations

import struct

WORD = b"warm\n"
BASE, PAGE = 0x400000, 4096
TEXT, DATA, BSS = 192 << 10, 16 << 10, 64 << 10
"""Bytes of the segments: code, with what is only there to be read; data; what begins as zeros."""
DATA_BASE = BASE + TEXT + PAGE - 0x60
"""Where the data are: not at the beginning of a page, as in any program."""
HEAD = 64 + 3 * 56
FREE = 0x10000000
"""Where nothing is mapped."""
HEAP = 0x21000
PATH_MAX = 4096

_AT_FDCWD = (1 << 64) - 100
_OPENED = 3
"""The descriptor that a program opens first."""
_READ, _WRITE, _CLOSE, _POLL, _MMAP, _MPROTECT, _MUNMAP, _BRK = 0, 1, 3, 7, 9, 10, 11, 12
_SIGACTION, _SIGPROCMASK, _PREAD, _FORK, _WAIT4, _UNAME, _READLINK, _GETUID = 13, 14, 17, 57, 61, 63, 89, 102
_PRCTL, _ARCH_PRCTL, _SET_TID_ADDRESS, _CLOCK_NANOSLEEP, _EXIT_GROUP, _OPENAT, _NEWFSTATAT = (
    157, 158, 218, 230, 231, 257, 262,
)  # fmt: skip
_SET_ROBUST_LIST, _PIPE2, _PRLIMIT64, _GETRANDOM, _RSEQ = 273, 293, 302, 318, 334
_PR_GET_NAME, _ARCH_SET_FS, _RLIMIT_STACK, _SIGCHLD, _RSEQ_SIG = 16, 0x1002, 3, 17, 0x53053053
_R, _RW, _PRIVATE, _FIXED, _ANONYMOUS = 1, 3, 2, 0x10, 0x20

# What the calls are given addresses of, in the second segment behind the data that are in the file.
_ROOM = DATA_BASE + DATA + PAGE
_TIME, _SOME_TIME, _SELF, _WORD = (DATA_BASE + at for at in (16, 32, 48, 80))  # behind a byte that is written to
_THREAD = DATA_BASE + 256
"""For the thread's own things: the kernel wants the last of them at a multiple of 32."""


def build(seconds: float) -> bytes:
    """The program, which writes :data:`WORD` and ends with status 0.

    Arguments:
        seconds: how long it sleeps before: what the guest does a while after a container has begun belongs to the
            start, too.
    """
    calls = _calls()
    code = _code(len(calls))
    table = b"".join(struct.pack("<7Q", *(*call, *(0,) * (7 - len(call)))) for call in calls)
    data = struct.pack("<6Q", 0, 0, int(seconds), int(seconds % 1 * 1e9), 0, 1_000_000)
    data = (data + b"/proc/self/exe".ljust(32, b"\0") + WORD).ljust(DATA, b"\0")
    elf = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, BASE + HEAD, 64, 0, 0, 64, 56, 3, 0, 0, 0
    )
    offset = TEXT + (DATA_BASE - TEXT) % PAGE
    segments = [
        struct.pack("<IIQQQQQQ", 1, 5, 0, BASE, BASE, TEXT, TEXT, PAGE),
        struct.pack("<IIQQQQQQ", 1, 6, offset, DATA_BASE, DATA_BASE, DATA, DATA + BSS, PAGE),
        struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16),  # PT_GNU_STACK: the stack is not executable
    ]
    text = (elf + b"".join(segments) + code + table).ljust(offset, b"\x90")
    return text + data


def _calls() -> list[tuple[int, ...]]:
    """Numbers and arguments, in the order of a program of the C library."""
    thread = _THREAD & ~31
    private = _PRIVATE | _FIXED
    return [
        # ---- the dynamic loader, for itself
        (_OPENAT, _AT_FDCWD, _SELF, 0x80000),  # O_CLOEXEC
        (_NEWFSTATAT, _OPENED, _WORD + 8, _ROOM, 0x1000),  # AT_EMPTY_PATH
        (_READ, _OPENED, _ROOM, 832),
        (_PREAD, _OPENED, _ROOM, 784, 64),
        (_MMAP, FREE, TEXT, _R, private, _OPENED, 0),
        (_MMAP, FREE + TEXT, DATA, _RW, private, _OPENED, TEXT),
        (_MMAP, FREE + TEXT + DATA, BSS, _RW, private | _ANONYMOUS, (1 << 64) - 1, 0),
        (_CLOSE, _OPENED),
        (_READ, _OPENED, FREE + TEXT, 1),  # an error, as where a file is missing
        (_OPENAT, _AT_FDCWD, _WORD, 0x80000),
        # ---- the C library
        (_ARCH_PRCTL, _ARCH_SET_FS, thread),
        (_SET_TID_ADDRESS, thread + 64),
        (_SET_ROBUST_LIST, thread + 96, 24),
        (_RSEQ, thread + 160, 32, 0, _RSEQ_SIG),
        (_MPROTECT, FREE + TEXT, PAGE, _R),
        (_MPROTECT, DATA_BASE & -PAGE, PAGE, _R),
        (_MPROTECT, DATA_BASE & -PAGE, PAGE, _RW),
        (_PRLIMIT64, 0, _RLIMIT_STACK, 0, _ROOM),
        (_READLINK, _SELF, _ROOM, PATH_MAX),
        (_GETRANDOM, _ROOM, 8, 1),  # GRND_NONBLOCK
        # ---- the program
        (_MUNMAP, FREE, TEXT),
        (_PRCTL, _PR_GET_NAME, _ROOM),
        (_GETUID,),
        (_UNAME, _ROOM),
        (_SIGACTION, _SIGCHLD, 0, _ROOM, 8),
        (_SIGPROCMASK, 0, 0, _ROOM, 8),
        (_PIPE2, _ROOM, 0x80000),
        (_WRITE, _OPENED + 1, _WORD, len(WORD)),
        (_POLL, _ROOM + 64, 0, 1),
        (_READ, _OPENED, _ROOM, PAGE),
        (_CLOSE, _OPENED),
        (_CLOSE, _OPENED + 1),
        (_CLOCK_NANOSLEEP, 0, 0, _SOME_TIME, 0),
        (_CLOCK_NANOSLEEP, 0, 0, _TIME, 0),
        (_WRITE, 1, _WORD, len(WORD)),
        (_EXIT_GROUP, 0),
    ]


def _code(calls: int) -> bytes:
    """Machine code: look at each page, have memory on the heap, have a child, then make the calls."""

    def touch(begin: int, end: int, how: bytes) -> bytes:
        # mov rsi, begin; mov rdi, end; again: (how); add rsi, 4096; cmp rsi, rdi; jb again
        loop = how + b"\x48\x81\xc6" + struct.pack("<I", PAGE) + b"\x48\x39\xfe"
        back = struct.pack("<b", -(len(loop) + 2))
        return b"\x48\xbe" + struct.pack("<Q", begin) + b"\x48\xbf" + struct.pack("<Q", end) + loop + b"\x72" + back

    read, write = b"\x8a\x06", b"\x88\x06"  # mov al, [rsi]; mov [rsi], al
    brk = b"\xb8" + struct.pack("<I", _BRK) + b"\x0f\x05"
    heap = (
        b"\x31\xff" + brk +  # xor edi, edi: where it ends
        b"\x48\x8d\xb8" + struct.pack("<I", HEAP // 2) + brk +  # lea rdi, [rax + HEAP / 2]: more
        b"\xc6\x40\xff\x01"  # mov byte [rax - 1], 1
        b"\x48\x8d\xb8" + struct.pack("<I", HEAP // 2) + brk +
        b"\xc6\x40\xff\x01"
    )  # fmt: skip
    child = b"\x31\xff\xb8" + struct.pack("<I", _EXIT_GROUP) + b"\x0f\x05"
    parent = (
        b"\x48\xc7\xc7\xff\xff\xff\xff\x31\xf6\x31\xd2\x4d\x31\xd2"  # mov rdi, -1; xor esi, edx, r10
        b"\xb8" + struct.pack("<I", _WAIT4) + b"\x0f\x05"
    )  # fmt: skip
    family = (
        b"\xb8" + struct.pack("<I", _FORK) + b"\x0f\x05\x85\xc0"  # test eax, eax
        b"\x75" + struct.pack("<b", len(child)) + child + parent  # jnz parent
    )  # fmt: skip
    entry = 7 * 8
    loop = b"".join(
        (
            b"\x48\x8b\x03",  # mov rax, [rbx]
            b"\x48\x8b\x7b\x08",  # mov rdi, [rbx + 8]
            b"\x48\x8b\x73\x10",  # mov rsi, [rbx + 16]
            b"\x48\x8b\x53\x18",  # mov rdx, [rbx + 24]
            b"\x4c\x8b\x53\x20",  # mov r10, [rbx + 32]
            b"\x4c\x8b\x43\x28",  # mov r8, [rbx + 40]
            b"\x4c\x8b\x4b\x30",  # mov r9, [rbx + 48]
            b"\x0f\x05",  # syscall
            b"\x48\x83\xc3" + struct.pack("<b", entry),  # add rbx, entry
        )
    )
    loop += b"\xeb" + struct.pack("<b", -(len(loop) + 2))  # jmp: the last call does not return
    first = touch(BASE, BASE + TEXT, read) + touch(DATA_BASE, DATA_BASE + DATA + BSS, write) + heap + family
    size = len(first) + 10 + len(loop)
    assert calls * entry + HEAD + size < TEXT
    return first + b"\x48\xbb" + struct.pack("<Q", BASE + HEAD + size) + loop  # mov rbx, the table

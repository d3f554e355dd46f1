"""Signal frames of x86-64: what a handler finds on its stack, and what rt_sigreturn(2) takes back from there.

The layout is Linux's (``struct rt_sigframe``): the restorer's address, a ``ucontext_t``, a ``siginfo_t``, and above
them, on a boundary of 64 bytes, the extended state as the processor's XSAVE stores it, marked as such by two magic
words. What comes back is the application's and can be anything: only what the application could set by itself is taken.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from errno import EFAULT, EINVAL, ENOMEM, EPERM
from typing import TYPE_CHECKING

from casemate.sentry.abi import U64
from casemate.sentry.errno import SysError
from casemate.sentry.mm.memory import TASK_SIZE
from casemate.sentry.signals.send import set_mask
from casemate.sentry.signals.state import (
    NO_STACK,
    SA_ONSTACK,
    SA_RESTORER,
    SS_AUTODISARM,
    SS_DISABLE,
    SS_ONSTACK,
    AltStack,
)

if TYPE_CHECKING:
    from casemate.sentry.platform.base import HostThread
    from casemate.sentry.signals.info import SigInfo
    from casemate.sentry.signals.state import Action
    from casemate.sentry.tasks.task import Task

_NAMES = (
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    *("rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp", "rip"),
)
"""The registers of a ``struct sigcontext``, in its order."""
_HEAD = struct.Struct("<QQQQI4xQ")  # pretcode, uc_flags, uc_link, ss_sp, ss_flags, ss_size
_CONTEXT = struct.Struct("<18Q4H5Q64x")  # struct sigcontext
_MASK = struct.Struct("<Q")
_CONTEXT_AT = _HEAD.size
_MASK_AT = _CONTEXT_AT + _CONTEXT.size
_INFO_AT = _MASK_AT + _MASK.size
_UCONTEXT_AT = 8
FRAME_SIZE = _INFO_AT + 128

UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS = 1, 2, 4
USER_CS, USER_DS = 0x33, 0x2B
REDZONE = 128
FLAGS_CLEARED = 0x400 | 0x10000 | 0x100  # direction, resume, trap
FLAGS_RESTORED = 0x40000 | 0x800 | 0x400 | 0x100 | 0x80 | 0x40 | 0x10 | 0x4 | 0x1 | 0x10000
"""What rt_sigreturn sets: AC, OF, DF, TF, SF, ZF, AF, PF, CF, RF."""
MINSIGSTKSZ = 2048

# The extended state.
_SOFTWARE = struct.Struct("<IIQI28x")  # struct _fpx_sw_bytes: magic1, extended_size, xfeatures, xstate_size
_SOFTWARE_AT = 464
_HEADER_AT = 512
_LEGACY_SIZE = 512
_STANDARD = 576
MAGIC1, MAGIC2 = 0x46505853, 0x46505845
X87_SSE = 3
TILES = 1 << 17 | 1 << 18
"""AMX: an application has it by arch_prctl(2) only, so frames have no room for it."""
WITHOUT_TILES = 2696
"""Where AVX-512 and protection keys end, on processors that have AMX."""
_INITIAL = struct.pack("<H22xI484xQ56x", 0x37F, 0x1F80, X87_SSE)
"""The state that programs begin with: the x87's control word and MXCSR."""


def push(task: Task, info: SigInfo, action: Action, mask: int) -> None:
    """Put a frame on the thread's stack, and the thread at the start of the handler.

    Arguments:
        mask: the blocked signals that the handler comes back to.

    Raises SysError(EFAULT) when there is no room for the frame; the thread is unchanged then.
    """
    thread = task.thread
    assert thread is not None
    if not action.flags & SA_RESTORER:
        raise SysError(EFAULT)
    regs = thread.regs
    signals = task.signals
    altstack = signals.altstack
    sp = regs.rsp
    nested = altstack.in_use(sp)
    top = (sp - REDZONE) & U64
    entering = bool(action.flags & SA_ONSTACK) and altstack.size > 0 and not nested
    if entering:
        top = altstack.sp + altstack.size
    state = thread.xstate()
    signals.xstate_size = len(state)
    extended = _extended(state)
    fp = (top - len(extended)) & ~63
    base = ((fp - FRAME_SIZE) & ~15) - 8
    if base < 0 or top > TASK_SIZE or ((nested or entering) and not altstack.holds(base)):
        raise SysError(EFAULT)
    number, error, cr2 = signals.trap
    frame = bytearray(fp - base + len(extended))
    _HEAD.pack_into(
        frame,
        0,
        action.restorer,
        UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS,
        0,
        altstack.sp,
        altstack.flags if altstack.size else SS_DISABLE,
        altstack.size,
    )
    _CONTEXT.pack_into(
        frame,
        _CONTEXT_AT,
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
        regs.rdi,
        regs.rsi,
        regs.rbp,
        regs.rbx,
        regs.rdx,
        regs.rax,
        regs.rcx,
        sp,
        regs.rip,
        regs.eflags,
        regs.cs & 0xFFFF,
        0,
        0,
        regs.ss & 0xFFFF,
        error,
        number,
        mask,
        cr2,
        fp,
    )
    _MASK.pack_into(frame, _MASK_AT, mask)
    frame[_INFO_AT:FRAME_SIZE] = info.pack()
    frame[fp - base :] = extended
    task.mem.write(base, bytes(frame))
    # The handler starts with the extended state of a new program.
    thread.set_xstate(_INITIAL.ljust(len(state), b"\0"))
    regs.rdi = info.signo
    regs.rsi = base + _INFO_AT
    regs.rdx = base + _UCONTEXT_AT
    regs.rax = 0
    regs.rsp = base
    regs.rip = action.handler
    regs.cs = USER_CS
    regs.ss = USER_DS
    regs.orig_rax = U64
    regs.eflags &= ~FLAGS_CLEARED
    if altstack.flags & SS_AUTODISARM:
        signals.altstack = NO_STACK


def _extended(state: bytes) -> bytes:
    """The extended state as frames have it, with both magic words."""
    features = int.from_bytes(state[_SOFTWARE_AT : _SOFTWARE_AT + 8], "little")
    size = len(state)
    if features & TILES:
        features &= ~TILES
        size = WITHOUT_TILES
    area = bytearray(state[:size])
    _SOFTWARE.pack_into(area, _SOFTWARE_AT, MAGIC1, size + 4, features, size)
    present = int.from_bytes(area[_HEADER_AT : _HEADER_AT + 8], "little") & features | X87_SSE
    area[_HEADER_AT : _HEADER_AT + 8] = present.to_bytes(8, "little")
    return bytes(area) + MAGIC2.to_bytes(4, "little")


def pop(task: Task) -> None:
    """rt_sigreturn(2): take everything back from the frame. Raises SysError(EFAULT) when that is no such frame."""
    thread = task.thread
    assert thread is not None
    regs = thread.regs
    # The handler's return took the restorer's address from the stack.
    data = task.mem.read((regs.rsp - 8) & U64, FRAME_SIZE)
    words = _CONTEXT.unpack_from(data, _CONTEXT_AT)
    if words[18] & 0xFFFF | 3 != USER_CS:
        raise SysError(EFAULT)  # the 32-bit world, which is not there
    _restore_extended(task, thread, words[26])
    set_mask(task, _MASK.unpack_from(data, _MASK_AT)[0])
    task.signals.saved = None
    eflags = regs.eflags & ~FLAGS_RESTORED | words[17] & FLAGS_RESTORED
    thread.finish(words[13])
    for name, value in zip(_NAMES, words, strict=False):
        setattr(regs, name, value)
    regs.eflags = eflags
    regs.cs = USER_CS
    regs.ss = USER_DS
    _, _, _, stack, flags, size = _HEAD.unpack_from(data)
    with suppress(SysError):  # as Linux: a bad one changes nothing
        set_altstack(task, stack, flags, size)


def _restore_extended(task: Task, thread: HostThread, address: int) -> None:
    size = task.signals.xstate_size or len(thread.xstate())
    if not address:
        thread.set_xstate(_INITIAL.ljust(size, b"\0"))
        return
    legacy = task.mem.read(address, _LEGACY_SIZE)
    area = bytearray(size)
    area[:_LEGACY_SIZE] = legacy
    present = X87_SSE
    magic, extended_size, features, state_size = _SOFTWARE.unpack_from(legacy, _SOFTWARE_AT)
    if (
        magic == MAGIC1
        and _STANDARD <= state_size <= size
        and state_size <= extended_size
        and task.mem.u32(address + state_size) == MAGIC2
    ):
        area[:state_size] = task.mem.read(address, state_size)
        present = int.from_bytes(area[_HEADER_AT : _HEADER_AT + 8], "little") & features & ~TILES
    # The rest of the header belongs to the kernel, and has to be zero.
    area[_HEADER_AT:_STANDARD] = present.to_bytes(8, "little").ljust(_STANDARD - _HEADER_AT, b"\0")
    area[_SOFTWARE_AT:_LEGACY_SIZE] = bytes(_LEGACY_SIZE - _SOFTWARE_AT)
    thread.set_xstate(bytes(area))


def set_altstack(task: Task, sp: int, flags: int, size: int) -> None:
    """Change the alternate stack, sigaltstack(2).

    Arguments:
        flags: ``ss_flags``, 32 bits.

    Raises SysError: EPERM while the thread runs on it, EINVAL for unknown flags, ENOMEM when it is too small.
    """
    thread = task.thread
    assert thread is not None
    signals = task.signals
    old = signals.altstack
    if old.in_use(thread.regs.rsp):
        raise SysError(EPERM)
    mode = flags & ~SS_AUTODISARM
    if mode not in (0, SS_DISABLE, SS_ONSTACK):
        raise SysError(EINVAL)
    if mode == SS_DISABLE:
        signals.altstack = NO_STACK
        return
    if (sp, size, flags) == (old.sp, old.size, old.flags):
        return  # nothing changes, so nothing is checked
    if size < MINSIGSTKSZ:
        raise SysError(ENOMEM)
    signals.altstack = AltStack(sp, size, flags & SS_AUTODISARM)

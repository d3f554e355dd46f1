"""The filter that applications' processes are under on the host, run by the sentry's own interpreter."""

from __future__ import annotations

from errno import ENOSYS, EPERM

import pytest

from casemate.sentry.platform import filter as seccomp
from casemate.sentry.platform.notify import MMAP, PASSED_ON, STOPPING
from casemate.sentry.syscalls.numbers import NUMBERS
from casemate.sentry.tasks.bpf import Program

I386 = 0x40000003
X32 = 0x40000000


def answer(
    number: int,
    first: int = 0,
    arch: int = seccomp.AUDIT_ARCH_X86_64,
    notify: bool = True,
    last: int = 0,
    others: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> int:
    """What the filter says of a call."""
    program = Program(seccomp.program(STOPPING, PASSED_ON, plain=True) if notify else seccomp.program())
    halves = [half for word in (first, *others, last) for half in (word & 0xFFFFFFFF, word >> 32)]
    return program.run((number, arch, 0, 0, *halves))[0]


def test_no_call_is_let_through() -> None:
    for number in (*range(600), *range(X32, X32 + 600), 0xFFFFFFFF):
        refused = seccomp.SECCOMP_RET_ERRNO | ENOSYS if number == NUMBERS["clone3"] else None
        told = seccomp.SECCOMP_RET_TRACE if number in {*STOPPING, MMAP} else seccomp.SECCOMP_RET_USER_NOTIF
        assert answer(number) == (refused or told)
        assert answer(number, notify=False) == (refused or seccomp.SECCOMP_RET_TRACE)
        assert answer(number, arch=I386) == seccomp.SECCOMP_RET_ERRNO | ENOSYS


def test_calls_of_the_sentry_itself_stop_the_thread() -> None:
    """Their numbers are put in the place of a call that the filter has seen: it must not tell the listener of them."""
    for number in PASSED_ON:
        assert answer(number, last=seccomp.MARK) == seccomp.SECCOMP_RET_TRACE
        assert answer(number, last=seccomp.MARK + 1) == seccomp.SECCOMP_RET_USER_NOTIF
        assert answer(number, first=seccomp.MARK) == seccomp.SECCOMP_RET_USER_NOTIF
    for number in set(range(600)) - PASSED_ON:
        assert answer(number, last=seccomp.MARK) == answer(number)


@pytest.mark.parametrize("notify", [True, False])
def test_nobody_gets_a_user_namespace(notify: bool) -> None:
    refused = seccomp.SECCOMP_RET_ERRNO | EPERM
    for name in ("clone", "unshare"):
        assert answer(NUMBERS[name], seccomp.CLONE_NEWUSER | 17, notify=notify) == refused
        assert answer(NUMBERS[name], 0xFFFFFFFF, notify=notify) == refused
        assert answer(NUMBERS[name], 0xEFFFFFFF, notify=notify) != refused
    assert answer(NUMBERS["mmap"], seccomp.CLONE_NEWUSER, notify=notify) != refused


PRIVATE, SHARED, ANONYMOUS, STACK, NORESERVE, PLACED = 0x2, 0x1, 0x20, 0x20000, 0x4000, 0x100000


def mmap(address: int, size: int, prot: int, flags: int) -> int:
    return answer(MMAP, address, others=(size, prot, flags, 0xFFFFFFFF), last=0)


def test_plain_memory_is_asked_for_by_a_notification() -> None:
    told, stopped = seccomp.SECCOMP_RET_USER_NOTIF, seccomp.SECCOMP_RET_TRACE
    plain = PRIVATE | ANONYMOUS
    for size in (0, 1, 65536, seccomp.HUGE - 1):
        for prot in (0, 1, 2, 3):
            for more in (0, STACK, NORESERVE, STACK | NORESERVE):
                assert mmap(0, size, prot, plain | more) == told
    assert mmap(0, seccomp.HUGE, 3, plain) == mmap(0, 1 << 32, 3, plain) == stopped
    assert mmap(1, 4096, 3, plain) == mmap(1 << 32, 4096, 3, plain) == stopped
    assert mmap(0, 4096, 7, plain) == mmap(0, 4096, 3 | 0x01000000, plain) == stopped


def test_what_the_sentry_maps_stops_the_thread() -> None:
    """And so does all that the host would do otherwise than is expected."""
    for bit in range(32):
        flags = PRIVATE | ANONYMOUS | 1 << bit
        if 1 << bit not in (PRIVATE, ANONYMOUS, STACK, NORESERVE):
            assert mmap(0, 4096, 3, flags) == seccomp.SECCOMP_RET_TRACE, bit
    for flags in (0, PRIVATE, ANONYMOUS, SHARED | ANONYMOUS):
        assert mmap(0, 4096, 3, flags) == seccomp.SECCOMP_RET_TRACE
    assert mmap(0x7000_0000_0000, 4096, 3, PRIVATE | ANONYMOUS | PLACED) == seccomp.SECCOMP_RET_TRACE

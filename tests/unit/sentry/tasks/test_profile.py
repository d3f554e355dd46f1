"""``linux.seccomp`` of a specification, as the sentry applies it."""

from __future__ import annotations

from errno import EACCES, ENOSYS, EPERM
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.oci import seccomp
from casemate.sentry.syscalls.numbers import NUMBERS
from casemate.sentry.tasks import filters
from casemate.sentry.tasks.profile import Profile

ALLOW, ERRNO = filters.SECCOMP_RET_ALLOW, filters.SECCOMP_RET_ERRNO
U64 = st.integers(0, (1 << 64) - 1)


def words(name: str, *arguments: int) -> tuple[int, ...]:
    found = [NUMBERS[name], filters.AUDIT_ARCH_X86_64, 0, 0]
    for value in (*arguments, 0, 0, 0, 0, 0, 0)[:6]:
        found += [value & 0xFFFFFFFF, value >> 32]
    return tuple(found)


def profile(*entries: dict[str, Any], default: str = "SCMP_ACT_ERRNO", **more: Any) -> Profile:
    return Profile({"defaultAction": default, "syscalls": list(entries), **more})


def test_what_is_named_is_let_through_and_the_rest_refused() -> None:
    made = profile({"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"})
    assert made.run(words("read")) == (ALLOW, False)
    assert made.run(words("write")) == (ERRNO | EPERM, False)


def test_errors_are_those_that_were_named() -> None:
    made = profile({"names": ["open"], "action": "SCMP_ACT_ERRNO", "errnoRet": EACCES}, defaultErrnoRet=ENOSYS)
    assert made.run(words("open"))[0] == ERRNO | EACCES
    assert made.run(words("bpf"))[0] == ERRNO | ENOSYS


@given(value=U64, second=U64, argument=U64, index=st.integers(0, 5))
def test_comparisons(value: int, second: int, argument: int, index: int) -> None:
    expected = {
        "EQ": argument == value, "NE": argument != value, "LT": argument < value, "LE": argument <= value,
        "GE": argument >= value, "GT": argument > value, "MASKED_EQ": argument & value == second,
    }  # fmt: skip
    arguments = [0] * 6
    arguments[index] = argument
    for name, holds in expected.items():
        rule = {"index": index, "op": f"SCMP_CMP_{name}", "value": value, "valueTwo": second}
        made = profile({"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": [rule]})
        assert made.run(words("ioctl", *arguments)) == (ALLOW if holds else ERRNO | EPERM, True)


def test_all_conditions_of_a_rule_and_any_of_the_rules() -> None:
    def rule(index: int, value: int) -> dict[str, Any]:
        return {"index": index, "op": "SCMP_CMP_EQ", "value": value}

    made = profile(
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [rule(0, 1), rule(1, 2)]},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [rule(0, 7)]},
    )
    assert made.run(words("socket", 1, 2))[0] == ALLOW
    assert made.run(words("socket", 7, 9))[0] == ALLOW
    assert made.run(words("socket", 1, 3))[0] == ERRNO | EPERM


@pytest.mark.parametrize(
    "bad",
    [
        {"defaultAction": "SCMP_ACT_NOTIFY"}, {"defaultAction": None}, {},
        {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [7]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_MAYBE"}]},
        {"defaultAction": "SCMP_ACT_ALLOW",
         "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL", "args": [{"index": 6, "op": "SCMP_CMP_EQ"}]}]},
        {"defaultAction": "SCMP_ACT_ALLOW",
         "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL", "args": [{"index": 0, "op": "SCMP_CMP_XX"}]}]},
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_an_error(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Profile(bad)


def test_our_own_profile_lets_programs_work() -> None:
    made = Profile(seccomp.profile([], "x86_64"))
    for name in ("read", "write", "openat", "mmap", "clone", "execve", "futex", "epoll_wait"):
        assert made.run(words(name))[0] == ALLOW
    assert made.run(words("clone3"))[0] == ERRNO | ENOSYS
    assert made.run(words("init_module"))[0] == ERRNO | EPERM

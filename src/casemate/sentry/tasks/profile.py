"""The filter that a container's specification asks for: ``linux.seccomp`` (config-linux.md, "Seccomp").

The host's kernel is out of the container's reach with or without it; it is applied because people mean it, and because
what it refuses is code of the sentry that a hostile program does not get to.
"""

from __future__ import annotations

from errno import EPERM
from typing import Any

from casemate.sentry.syscalls.numbers import NUMBERS
from casemate.sentry.tasks import filters

ACTIONS = {
    "SCMP_ACT_KILL": filters.SECCOMP_RET_KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": filters.SECCOMP_RET_KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": filters.SECCOMP_RET_KILL_PROCESS,
    "SCMP_ACT_TRAP": filters.SECCOMP_RET_TRAP,
    "SCMP_ACT_ERRNO": filters.SECCOMP_RET_ERRNO,
    "SCMP_ACT_TRACE": filters.SECCOMP_RET_TRACE,
    "SCMP_ACT_ALLOW": filters.SECCOMP_RET_ALLOW,
    "SCMP_ACT_LOG": filters.SECCOMP_RET_LOG,
}
OPERATORS = frozenset(
    f"SCMP_CMP_{name}" for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
)
MAX_RULES = 4096
MAX_NAMES = 8192
_ARGUMENTS = 4
"""Where the arguments begin in the words of ``struct seccomp_data``, each as a low and a high half."""
_U64 = (1 << 64) - 1
Condition = tuple[int, str, int, int]
"""Index of the argument, operator, value and second value."""


class Profile:
    """A profile, in the place of a filter's program.

    Arguments:
        seccomp: the specification's object.

    Raises:
        ValueError: it is not as it should be, or asks for what there is not.
    """

    def __init__(self, seccomp: dict[str, Any]) -> None:
        self.default = _action(seccomp.get("defaultAction"), seccomp.get("defaultErrnoRet"))
        self.rules: dict[int, list[tuple[tuple[Condition, ...], int]]] = {}
        entries = seccomp.get("syscalls") or []
        if not isinstance(entries, list) or len(entries) > MAX_RULES:
            raise ValueError(f"seccomp.syscalls must be a list of at most {MAX_RULES}")
        for entry in entries:
            if not isinstance(entry, dict) or not isinstance(entry.get("names"), list):
                raise ValueError("an entry of seccomp.syscalls must be an object with names")
            action = _action(entry.get("action"), entry.get("errnoRet"))
            conditions = tuple(_condition(one) for one in entry.get("args") or ())
            if len(entry["names"]) > MAX_NAMES:
                raise ValueError(f"an entry of seccomp.syscalls has more than {MAX_NAMES} names")
            for name in entry["names"]:
                number = NUMBERS.get(str(name))  # those of other architectures are passed over
                if number is not None:
                    self.rules.setdefault(number, []).append((conditions, action))

    def __len__(self) -> int:
        """Its share of what filters may have in all, in instructions."""
        return 4 * len(self.rules)

    def run(self, words: tuple[int, ...]) -> tuple[int, bool]:
        """What it says of a call, and whether it has looked at more than the call's number."""
        rules = self.rules.get(words[0])
        if rules is None:
            return self.default, False
        looked = False
        for conditions, action in rules:
            if not conditions:
                return action, looked
            looked = True
            if all(_holds(one, words) for one in conditions):
                return action, True
        return self.default, looked


def _action(name: Any, errno: Any) -> int:
    action = ACTIONS.get(str(name))
    if action is None:
        raise ValueError(f"the seccomp action {name!r} cannot be had")
    if action == filters.SECCOMP_RET_ERRNO:
        number = EPERM if errno is None else errno
        if type(number) is not int or not 0 <= number <= filters.MAX_ERRNO:
            raise ValueError(f"{errno!r} is no error number for seccomp")
        return action | number
    return action


def _condition(given: Any) -> Condition:
    if not isinstance(given, dict):
        raise ValueError("seccomp's args must be objects")
    index, operator = given.get("index"), given.get("op")
    value, second = given.get("value", 0), given.get("valueTwo", 0)
    if type(index) is not int or not 0 <= index < 6 or operator not in OPERATORS:
        raise ValueError(f"seccomp cannot compare {given!r}")
    if type(value) is not int or type(second) is not int:
        raise ValueError("seccomp compares with numbers")
    return index, str(operator), value & _U64, second & _U64


def _holds(condition: Condition, words: tuple[int, ...]) -> bool:
    index, operator, value, second = condition
    at = _ARGUMENTS + 2 * index
    argument = words[at] | words[at + 1] << 32
    if operator == "SCMP_CMP_EQ":
        return argument == value
    if operator == "SCMP_CMP_NE":
        return argument != value
    if operator == "SCMP_CMP_MASKED_EQ":
        return argument & value == second
    if operator == "SCMP_CMP_LT":
        return argument < value
    if operator == "SCMP_CMP_LE":
        return argument <= value
    if operator == "SCMP_CMP_GE":
        return argument >= value
    return argument > value

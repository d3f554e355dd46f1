"""What a container may ask the kernel for: the filter of system calls, and the program that guards its devices.

The runtime in the guest, crun(1), makes both by itself. They are made here for a container that is started without it
(:mod:`casemate.agent.blank`), of the same specification and to the same effect: the filter by the same library, so that
it is the same byte for byte, the program by the same rules.
"""

from __future__ import annotations

import _ctypes
import os
import struct

from casemate.agent.redirect import BPF_EXIT, MOVE_NUMBER, bytes_at, instruction
from casemate.agent.system import syscall, words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LIBRARY = "libseccomp.so.2"
ACTIONS = {
    "SCMP_ACT_ALLOW": 0x7FFF0000, "SCMP_ACT_LOG": 0x7FFC0000, "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_KILL": 0x00000000, "SCMP_ACT_KILL_THREAD": 0x00000000, "SCMP_ACT_KILL_PROCESS": 0x80000000,
}  # fmt: skip
"""seccomp_init(3). Those that need somebody beside the process are not for us."""
OPERATORS = {
    "SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4, "SCMP_CMP_GE": 5, "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}  # fmt: skip
NEEDED = frozenset(
    words(
        "brk mmap munmap mremap madvise mprotect futex prctl capset setresuid setresgid setgroups rt_sigprocmask"
        " rt_sigaction execve read write close exit_group"
    )
)
"""What the process itself asks for once the filter is in force, before it becomes the container's program."""
EPERM = 1
MAX_FILTER = 4096 * 8
CTL_NNP, CTL_OPTIMIZE = 3, 8
BINARY_TREE = 2
_KEYS = frozenset(("defaultAction", "defaultErrnoRet", "architectures", "syscalls"))

PROG_LOAD, PROG_ATTACH, PROG_DETACH = 5, 8, 9
PROG_TYPE_CGROUP_DEVICE, CGROUP_DEVICE = 15, 6
ALLOW_MULTI = 2
ALWAYS: tuple[tuple[str, int | None, int | None, str], ...] = (
    ("c", None, None, "m"), ("b", None, None, "m"), ("c", 1, 3, "rwm"), ("c", 1, 8, "rwm"), ("c", 1, 7, "rwm"),
    ("c", 5, 0, "rwm"), ("c", 1, 5, "rwm"), ("c", 1, 9, "rwm"), ("c", 5, 1, "rwm"), ("c", 136, None, "rwm"),
    ("c", 5, 2, "rwm"),
)  # fmt: skip
"""Devices that every container has (runtime specification, "Default Devices"), whatever the rules say."""
_TYPES = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}
# Instructions: see casemate.agent.redirect.
_LOAD_WORD, _MOVE, _AND, _SHIFT_RIGHT = 0x61, 0xBF, 0x57, 0x77
_NOT_EQUAL, _NOT_EQUAL_REGISTER = 0x55, 0x5D
_LEAST = 16
"""Bytes of a rule without conditions."""


class Unfit(Exception):
    """It cannot be made here; the runtime makes it, or says why not."""


class _Pointer(_ctypes._SimpleCData):  # type: ignore[type-arg]  # cannot be subscripted
    _type_ = "P"


class _Unsigned(_ctypes._SimpleCData):  # type: ignore[type-arg]  # cannot be subscripted
    _type_ = "I"


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]  # cannot be subscripted
    _type_ = "i"


class _PointerFunction(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL
    _restype_ = _Pointer


class _UnsignedFunction(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL
    _restype_ = _Unsigned


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL
    _restype_ = _Int


def seccomp(profile: dict[str, Any]) -> bytes:
    """The filter of a profile (runtime specification, config-linux.md, "Seccomp"), as seccomp(2) takes it.

    Raises:
        Unfit: it asks for more than is known here, or forbids what is needed to start the program.
    """
    if not _KEYS.issuperset(profile):
        raise Unfit("an unknown key")
    try:
        _harmless(profile)
        return _compile(profile)
    except (KeyError, TypeError, ValueError, AttributeError, struct.error, OSError) as error:
        raise Unfit(f"{type(error).__name__}: {error}") from None


def _harmless(profile: dict[str, Any]) -> None:
    """See to it that the process gets through the filter to its program, as the runtime would."""
    allowed: set[str] = set()
    forbidden: set[str] = set()
    for rule in profile["syscalls"]:
        if rule["action"] != "SCMP_ACT_ALLOW":
            forbidden.update(rule["names"])
        elif not rule.get("args"):
            allowed.update(rule["names"])
    if NEEDED & forbidden or (profile["defaultAction"] != "SCMP_ACT_ALLOW" and not allowed >= NEEDED):
        raise Unfit("it forbids what is needed to start a program")


def _action(name: str, errno: object) -> int:
    value = ACTIONS[name]
    if name == "SCMP_ACT_ERRNO":
        value |= EPERM if errno is None else int(errno) & 0xFFFF  # type: ignore[call-overload]
    return value


def _compile(profile: dict[str, Any]) -> bytes:
    library = _ctypes.dlopen(LIBRARY, 0)

    def of(kind: type[_ctypes.CFuncPtr], name: str) -> Any:
        return kind(_ctypes.dlsym(library, f"seccomp_{name}"))

    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    context = _Pointer(of(_PointerFunction, "init")(_Unsigned(default)))
    if not context.value:
        raise Unfit("the library makes no filter")
    try:
        _check(of(_Function, "attr_set")(context, CTL_NNP, _Unsigned(0)))
        _check(of(_Function, "attr_set")(context, CTL_OPTIMIZE, _Unsigned(BINARY_TREE)))
        for name in profile.get("architectures") or ():
            token = of(_UnsignedFunction, "arch_resolve_name")(name.removeprefix("SCMP_ARCH_").lower().encode())
            if not token:
                raise Unfit(f"no architecture {name}")
            if of(_Function, "arch_add")(context, _Unsigned(token)) not in (0, -17):  # EEXIST: it is there
                raise Unfit(f"{name} cannot be added")
        resolve, add = of(_Function, "syscall_resolve_name"), of(_Function, "rule_add_array")
        for rule in profile["syscalls"]:
            action = _action(rule["action"], rule.get("errnoRet"))
            if action == default:
                continue
            for name in rule["names"]:
                number = resolve(name.encode())
                if number == -1:  # the library does not know it, so nothing is said of it
                    continue
                for count, packed in _arguments(rule.get("args") or ()):
                    _check(add(context, _Unsigned(action), number, _Unsigned(count), packed))
        fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        try:
            _check(of(_Function, "export_bpf")(context, fd))
            code = os.pread(fd, MAX_FILTER + 1, 0)
            if len(code) > MAX_FILTER:
                raise Unfit("the filter is too long")
            return code
        finally:
            os.close(fd)
    finally:
        of(_Function, "release")(context)


def _arguments(conditions: Any) -> list[tuple[int, bytes]]:
    """The conditions of a rule as ``struct scmp_arg_cmp``: each for itself where two are of one argument."""
    packed = []
    for one in conditions:
        packed.append(
            struct.pack(
                "=IIQQ", one["index"], OPERATORS[one["op"]], one["value"] & (1 << 64) - 1,
                (one.get("valueTwo") or 0) & (1 << 64) - 1,
            )
        )  # fmt: skip
    if len({one["index"] for one in conditions}) < len(packed):
        return [(1, one) for one in packed]
    return [(len(packed), b"".join(packed))]


def _check(result: int) -> None:
    if result < 0:
        raise Unfit(f"the library refuses: {os.strerror(-result)}")


# ---- devices


def devices(rules: list[dict[str, Any]]) -> bytes:
    """The program for rules on devices (runtime specification, config-linux.md, "Allowed Device list").

    Those of :data:`ALWAYS` are allowed. Of the rules the last that has all that is asked for decides; what none has is
    refused.

    Raises:
        Unfit: a rule is not as it should be.
    """
    try:
        code = b"".join(
            (
                # The low half of the first word is the device's type, the high half what is wanted of it.
                instruction(_LOAD_WORD, 2, 1, 0, 0),
                instruction(_AND, 2, 0, 0, 0xFFFF),
                instruction(_LOAD_WORD, 3, 1, 0, 0),
                instruction(_SHIFT_RIGHT, 3, 0, 0, 16),
                instruction(_LOAD_WORD, 4, 1, 4, 0),
                instruction(_LOAD_WORD, 5, 1, 8, 0),
            )
        )
        for kind, major, minor, access in ALWAYS:
            code += _rule(kind, major, minor, access, True)
        for rule in reversed(rules):
            kind, access = rule.get("type") or "a", rule.get("access") or "rwm"
            part = _rule(kind, _number(rule, "major"), _number(rule, "minor"), access, rule["allow"])
            code += part
            if len(part) == _LEAST:  # it is for all devices: the kernel takes no program with steps that none gets to
                return code
        return code + instruction(MOVE_NUMBER, 0, 0, 0, 0) + instruction(BPF_EXIT, 0, 0, 0, 0)
    except (KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise Unfit(f"{type(error).__name__}: {error}") from None


def _number(rule: dict[str, Any], key: str) -> int | None:
    value = rule.get(key)
    return None if value is None or value < 0 else value


def _rule(kind: str, major: int | None, minor: int | None, access: str, allow: bool) -> bytes:
    mask = sum({_ACCESS[letter] for letter in access})
    tests: list[bytes] = []
    if mask != 7:
        tests.append(instruction(_MOVE, 0, 3, 0, 0) + instruction(_AND, 0, 0, 0, mask))
        tests.append(instruction(_NOT_EQUAL_REGISTER, 0, 3, 0, 0))
    if kind != "a":
        tests.append(instruction(_NOT_EQUAL, 2, 0, 0, _TYPES[kind]))
    for register, number in ((4, major), (5, minor)):
        if number is not None:
            tests.append(instruction(_NOT_EQUAL, register, 0, 0, number))
    body = b"".join(tests)
    whole = len(body) // 8 + 2
    code = b""
    for at in range(0, len(body), 8):
        operation, registers, _, number = struct.unpack("=BBhI", body[at : at + 8])
        skip = whole - at // 8 - 1 if operation in (_NOT_EQUAL, _NOT_EQUAL_REGISTER) else 0
        code += struct.pack("=BBhI", operation, registers, skip, number)
    return code + instruction(MOVE_NUMBER, 0, 0, 0, int(bool(allow))) + instruction(BPF_EXIT, 0, 0, 0, 0)


def guard(group: str, code: bytes) -> int:
    """Have a program of :func:`devices` decide for the processes of a control group.

    Arguments:
        group: its directory.

    Returns:
        the program's descriptor; it stays in force when that is closed.

    Raises:
        OSError: the kernel refused.
    """
    instructions, licence = bytes_at(code), bytes_at(b"GPL\0")
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        PROG_TYPE_CGROUP_DEVICE, len(code) // 8, _ctypes.addressof(instructions), _ctypes.addressof(licence),
        0, 0, 0, 0, 0, b"", 0, CGROUP_DEVICE,
    )  # fmt: skip
    program = syscall("bpf", PROG_LOAD, attributes, len(attributes))
    try:
        _attach(group, PROG_ATTACH, program, ALLOW_MULTI)
    except BaseException:
        os.close(program)
        raise
    return program


def release(group: str, program: int) -> None:
    """Take away what :func:`guard` has put there, and close it. Raises OSError."""
    try:
        _attach(group, PROG_DETACH, program, 0)
    finally:
        os.close(program)


def _attach(group: str, command: int, program: int, flags: int) -> None:
    directory = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        attributes = struct.pack("=IIII", directory, program, CGROUP_DEVICE, flags)
        syscall("bpf", command, attributes, len(attributes))
    finally:
        os.close(directory)

"""The system call filter: our profile as data, and profiles that people bring."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import UsageError
from casemate.oci import seccomp, seccomp_file, spec

DEFAULT = seccomp.profile(spec.DEFAULT_CAPABILITIES)


def answer(profile: dict[str, Any], name: str, *arguments: int) -> int | str:
    """What a profile does with a call: ``allow``, or the errno. The rules as libseccomp reads them."""
    given_up: int | str = profile["defaultErrnoRet"]
    for rule in profile["syscalls"]:
        if name in rule["names"] and all(_holds(each, arguments) for each in rule.get("args", ())):
            given_up = "allow" if rule["action"] == "SCMP_ACT_ALLOW" else rule["errnoRet"]
            if given_up == "allow":
                return given_up
    return given_up


def _holds(condition: dict[str, Any], arguments: tuple[int, ...]) -> bool:
    value = arguments[condition["index"]]
    if condition["op"] == "SCMP_CMP_EQ":
        return bool(value == condition["value"])
    if condition["op"] == "SCMP_CMP_NE":
        return bool(value != condition["value"])
    if condition["op"] == "SCMP_CMP_LT":
        return bool(value < condition["value"])
    assert condition["op"] == "SCMP_CMP_MASKED_EQ"
    return bool(value & condition["value"] == condition["valueTwo"])


def test_every_name_is_known_to_libseccomp() -> None:
    library = ctypes.util.find_library("seccomp")
    assert library, "libseccomp2 is missing: run scripts/setup --tests"
    resolve = ctypes.CDLL(library).seccomp_syscall_resolve_name
    names = {name for rule in DEFAULT["syscalls"] for name in rule["names"]}
    unknown = {name for name in names if resolve(name.encode()) == -1}
    # Newer than the library of the oldest supported Debian; crun leaves out what its library does not know.
    newer = {"cachestat", "fchmodat2", "futex_requeue", "futex_wait", "futex_wake", "map_shadow_stack", "memfd_secret"}
    newer |= {"set_mempolicy_home_node", "process_mrelease", "quotactl_fd", "futex_waitv"}
    assert unknown <= newer


@pytest.mark.parametrize("name", ["read", "openat", "execve", "mmap", "futex", "epoll_wait", "chroot", "ptrace"])
def test_ordinary_calls_pass(name: str) -> None:
    assert answer(DEFAULT, name) == "allow"


@pytest.mark.parametrize(
    "name",
    [
        "mount", "umount2", "unshare", "setns", "bpf", "init_module", "kexec_load", "keyctl", "add_key", "reboot",
        "open_by_handle_at", "perf_event_open", "userfaultfd", "io_uring_setup", "pivot_root", "swapon", "settimeofday",
        "iopl", "move_mount",
    ],
)  # fmt: skip
def test_calls_that_change_the_machine_are_refused(name: str) -> None:
    assert answer(DEFAULT, name) == errno.EPERM


def test_unknown_calls_and_clone3_do_not_exist_so_that_programs_fall_back() -> None:
    assert answer(DEFAULT, "a_call_of_the_future") == errno.ENOSYS
    assert answer(DEFAULT, "clone3") == errno.ENOSYS


def test_clone_makes_threads_and_children_but_no_namespaces() -> None:
    thread, user_namespace, mount_namespace = 0x3D0F00, 0x10000000, 0x00020000
    assert answer(DEFAULT, "clone", thread) == "allow"
    assert answer(DEFAULT, "clone", 17) == "allow"
    assert answer(DEFAULT, "clone", user_namespace | 17) != "allow"
    assert answer(DEFAULT, "clone", mount_namespace) != "allow"
    admin = seccomp.profile([*spec.DEFAULT_CAPABILITIES, "CAP_SYS_ADMIN"])
    assert answer(admin, "clone", user_namespace | 17) == "allow"
    assert answer(admin, "clone3") == "allow"
    on_s390 = [rule for rule in seccomp.profile((), "s390x")["syscalls"] if rule["names"] == ["clone"]]
    assert on_s390[0]["args"][0]["index"] == 1


def test_sockets_of_every_family_but_vsock() -> None:
    assert answer(DEFAULT, "socket", 2) == "allow"
    assert all(answer(DEFAULT, "socket", family) == "allow" for family in range(46) if family != 40)
    for family in range(46):
        assert answer(DEFAULT, "socket", family) == ("allow" if family != 40 else errno.ENOSYS), family
    # The kernel takes the lower half of the register alone.
    for bit in range(32, 64):
        assert answer(DEFAULT, "socket", 40 | 1 << bit) == errno.ENOSYS, bit
    assert answer(DEFAULT, "socket", (1 << 32) + 40) == errno.ENOSYS, "the kernel takes 32 bits of the register"
    assert answer(DEFAULT, "socketcall", 1) == errno.ENOSYS, "it would hide the family"


def test_personalities_that_weaken_nothing() -> None:
    assert answer(DEFAULT, "personality", 0xFFFFFFFF) == "allow"
    assert answer(DEFAULT, "personality", 0x0040000) != "allow", "ADDR_NO_RANDOMIZE"


@pytest.mark.parametrize("capability", sorted(seccomp.WITH_CAPABILITY))
def test_a_capability_opens_its_calls_and_nothing_else(capability: str) -> None:
    without = seccomp.profile(set(spec.CAPABILITIES) - {capability})
    with_it = seccomp.profile({capability})
    names = set(seccomp.WITH_CAPABILITY[capability].split())
    assert all(answer(with_it, name, 0x10000000) == "allow" for name in names)
    shared = {n for c, group in seccomp.WITH_CAPABILITY.items() if c != capability for n in group.split()}
    assert all(answer(without, name, 0x10000000) != "allow" for name in names - shared)


def test_groups_do_not_contradict_each_other() -> None:
    allowed = {name for group in seccomp.ALLOWED.values() for name in group.split()}
    gated = {name for group in seccomp.WITH_CAPABILITY.values() for name in group.split()}
    refused = set(seccomp.REFUSED.split())
    assert not allowed & gated
    assert not (allowed | gated) & refused
    count = sum(len(group.split()) for group in seccomp.ALLOWED.values())
    assert count == len(allowed), "a name stands in two groups"


def test_docker_form_is_reduced_for_the_guest() -> None:
    document = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "archMap": [
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
        ],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "x"},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["future"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "9.0"}},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]},
             "args": [{"index": 0, "value": 7, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["arm"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
            {"names": ["amd"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64"]}},
            {"name": "old", "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        ],
    }  # fmt: skip
    result = seccomp_file.reduce(document, spec.DEFAULT_CAPABILITIES, "x86_64", (6, 1))
    assert result["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    assert [rule["names"] for rule in result["syscalls"]] == [["read"], ["ptrace"], ["clone"], ["amd"], ["old"]]
    assert result["syscalls"][2]["args"] == [{"index": 0, "value": 7, "op": "SCMP_CMP_MASKED_EQ", "valueTwo": 0}]
    assert result["syscalls"][4]["errnoRet"] == 38


def test_our_own_profile_is_read_back_as_it_is() -> None:
    assert seccomp_file.reduce(json.loads(json.dumps(DEFAULT)), ()) == DEFAULT


@pytest.mark.parametrize(
    "document",
    [
        [], "x", None, {}, {"defaultAction": "ALLOW"}, {"defaultAction": ["SCMP_ACT_ALLOW"]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": {"read": 1}},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [1]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["x"], "action": "SCMP_ACT_NOTIFY"}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [], "action": "SCMP_ACT_LOG"}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["x"], "action": "SCMP_ACT_LOG", "args": [{}]}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "architectures": "x86"},
        {"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": -1},
        {"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": True},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["x"]}] * 5000},
        {"defaultAction": "SCMP_ACT_ALLOW",
         "syscalls": [{"names": ["x"], "action": "SCMP_ACT_LOG", "includes": {"minKernel": "new"}}]},
    ],
)  # fmt: skip
def test_bad_profiles(document: Any) -> None:
    with pytest.raises(UsageError, match="bad seccomp profile"):
        seccomp_file.reduce(document, ())


def test_reading_files(tmp_path: Path) -> None:
    good = tmp_path / "good.json"
    good.write_text(json.dumps(DEFAULT))
    assert seccomp_file.read(str(good), (), "x86_64") == DEFAULT
    with pytest.raises(UsageError, match="cannot read"):
        seccomp_file.read(str(tmp_path / "missing"), (), "x86_64")
    for content in ("{", "[" * 100_000, "\xff"):
        bad = tmp_path / "bad.json"
        bad.write_bytes(content.encode("latin-1"))
        with pytest.raises(UsageError, match="bad seccomp profile"):
            seccomp_file.read(str(bad), (), "x86_64")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8)
    | st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_CMP_EQ", "read", "4.8"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["defaultAction", "syscalls", "names", "name", "action", "args", "index", "value", "op",
                         "includes", "excludes", "caps", "arches", "minKernel", "archMap", "architecture",
                         "subArchitectures", "architectures", "flags", "errnoRet", "valueTwo", "defaultErrnoRet"]),
        inner, max_size=6),
    max_leaves=30,
)  # fmt: skip


@given(JSON)
def test_whatever_is_brought_is_read_or_refused(document: Any) -> None:
    try:
        result = seccomp_file.reduce(document, ("CAP_SYS_ADMIN",))
    except UsageError:
        return
    assert result["defaultAction"] in seccomp_file.ACTIONS
    json.dumps(result)


@given(JSON)
def test_a_rule_of_any_shape_is_read_or_refused(rule: Any) -> None:
    with_rule = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    try:
        result = seccomp_file.reduce(with_rule, ())
    except UsageError:
        return
    assert all(each["names"] for each in result["syscalls"])

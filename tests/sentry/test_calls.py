"""Calls that the C library has no function for, by their numbers; and calls that answer an error by intention."""

from __future__ import annotations

import os

import pytest

from casemate.sentry.syscalls.table import Support, load
from tests.sentry import tally
from tests.sentry.lab import C, both, build, sentry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the sentry is started by root")

ANSWERS = {
    "EPERM": """acct bpf delete_module finit_module init_module ioperm iopl kexec_file_load kexec_load perf_event_open
        ptrace quotactl setns swapoff swapon userfaultfd""",
    "ENOSYS": """_sysctl add_key afs_syscall clone3 create_module epoll_ctl_old epoll_wait_old fanotify_init
        fanotify_mark fsconfig fsmount fsopen fspick get_kernel_syms get_thread_area getpmsg io_pgetevents
        io_uring_enter
        io_uring_register io_uring_setup keyctl landlock_add_rule landlock_create_ruleset landlock_restrict_self
        lookup_dcookie memfd_secret modify_ldt mount_setattr move_mount nfsservctl open_tree putpmsg query_module
        quotactl_fd request_key rseq security set_mempolicy_home_node set_thread_area sysfs tuxcall uselib ustat
        vserver""",
    "EOPNOTSUPP": "name_to_handle_at",
    "EBADF": "open_by_handle_at",
    "ENOSPC": "pkey_alloc",
    "EINVAL": "pkey_free",
}
"""What each call answers that the sentry does not serve: programs fall back to something else by it."""


@pytest.mark.parametrize("case", ["names", "events", "process", "memory"])
def test_as_linux(case: str) -> None:
    both(f"calls/{case}.c")


def test_what_is_not_served_answers_as_the_table_says() -> None:
    entries = {entry.name: entry for entry in load().values() if entry.support is Support.NONE}
    expected = {name: answer for answer, names in ANSWERS.items() for name in names.split()}
    assert sorted(entries) == sorted(expected)
    for name, answer in expected.items():
        # A note that names an error names this one.
        named = {word.strip(":;,") for word in entries[name].note.split()} & set(ANSWERS)
        assert named <= {answer}, name
    numbers = {str(entry.number): entry.name for entry in entries.values()}
    done = sentry([str(build(C / "refused" / "refused.c")), *numbers], options=["--summary"])
    assert done.returncode == 0, done.stderr
    tally.note("refused", done.stderr)
    answers = dict(line.split() for line in done.stdout.decode().splitlines())
    assert {numbers[number]: answer for number, answer in answers.items()} == expected

"""Calls with odd arguments answer behind the sentry what they answer natively, but for a list with reasons."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase

import pytest

from tests.sentry import tally
from tests.sentry.lab import C, build, native, sentry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the sentry is started by root")

NEWER = """
    write 0=event|ioctl 0=epoll|sched_get_priority_* 0=7|fchmod 0=*|fchown 0=*|fsetxattr 0=cwd|fgetxattr 0=cwd
    mount 3=high|execveat 4=b16|membarrier 0=b9|preadv2 5=b[58]|pwritev2 5=b[58]|pidfd_send_signal 3=b[012]
    pidfd_open 1=b7|ftruncate 0=pidfd|setsockopt 2=22|getsockopt 2=14|lseek 0=*|pread* 0=pidfd|pwrite* 0=pidfd
    *xattr 0=pidfd|copy_file_range [02]=pidfd|sync_file_range 0=pidfd|fallocate-length 0=pidfd
    ?etsockopt-socket 2=16|fcntl-later 1=1028|fcntl-later 1=103[678]|prctl-later 0=43|ioctl-socket 0=epoll
"""
"""What Linux has changed since 6.1, which the sentry says it is."""

HOST = """
    *chown* *=-2|set*id 0=-2|set*id 1=-2|set*id 2=-2|*xattr 1=trusted
    mmap 4=inet|mmap-flags 4=inet|ioctl 1=1|prctl-later 0=35|ioctl-terminal 1=5412
    madvise 2=1[23]|madvise 2=100|shmget 2=b11|shmget 2=-1|socketpair 0=17|pipe2 1=*
    *msg [23]=b0|*msg [23]=[357]|io_setup 0=min|get_mempolicy *|mbind *|set_mempolicy *|move_pages *|migrate_pages *
"""
"""What depends on how the host's kernel was built (AF_UNIX's out-of-band data, merging of pages, nodes, ...), or is so
in a user namespace only, in which the native run is: without users beyond the first 65,536, without ``trusted.``."""

OURS = {
    "madvise 1=*": "the range meets a page of the platform's own (EPERM)",
    "setsockopt 2=*|setsockopt 3=*|getsockopt 2=*": "options of IP that hardly anybody needs",
    "fcntl 1=17": "no F_GETOWNER_UIDS",
    "fcntl-later 1=1026": "no F_NOTIFY",
    "?etsockopt-tcp 2=*|setsockopt-ip6 3=*": "options of TCP and IPv6 that hardly anybody needs",
    "prctl-later 0=[12][f0]": "no performance counters to switch",
    "ioctl-terminal 1=54*": "no software carrier, no console to redirect",
    "ioctl-socket [12]=*": "no commands of drivers, bridges and old protocols",
    "*chmod 0=tty|*chown 0=tty": "nobody changes ptmx",
    "mlockall 0=*": "counts the whole room of a stack",
    "pread* 0=queue|pwrite* 0=queue|lseek 0=queue|readahead 0=queue|ftruncate 0=queue|copy_file_range [02]=queue"
    "|fremovexattr 0=queue|sync_file_range 0=queue|fallocate-length 0=queue": "message queues are no files with places",
    "flistxattr 0=*": "sockets list no attributes",
    "futex 0=readonly": "one wakes by a page that can only be read",
    "mq_open 1=*": "O_DIRECT is ignored",
    "unshare 0=*": "namespaces are refused before the sentry is asked",
    "vmsplice 3=*": "pipes are bounded by bytes, not by pages",
    "kcmp 2=7": "no KCMP_EPOLL_TFD",
    "renameat2 4=*": "no RENAME_WHITEOUT",
    "memfd_create 1=*": "no MFD_HUGETLB",
    "membarrier 0=b[5678]": "no SYNC_CORE and RSEQ commands",
    "copy_file_range [02]=mem": "copies between file systems",
    "preadv2 5=b3|pwritev2 5=b3": "RWF_NOWAIT where Linux's tmpfs has none",
}
"""Where the sentry differs, and means to."""


VARY = """
    adjtimex|clock_adjtime|getpgid|getsid|kcmp|membarrier|memfd_create|mmap|mmap-flags|mq_open|pidfd_open|sched_getaffinity|setfsgid
    setfsuid|shmat|time|times
"""
"""Calls whose results are addresses, numbers of processes, moments, or the machine's own; or descriptors, where another
call before has given one that Linux 6.1 would not. Of these it only counts whether they succeed."""


def answers(told: str) -> dict[str, str]:
    """By call and argument: the result or error."""
    found = {}
    for line in told.splitlines():
        call, argument, answer = line.split(maxsplit=2)
        found[f"{call} {argument}"] = "done" if answer.isdecimal() and excused(VARY, call) else answer
    return found


def excused(names: str, case: str) -> bool:
    """Whether a list of patterns has this case."""
    return any(fnmatchcase(case, pattern.strip()) for line in names.splitlines() for pattern in line.split("|"))


def differences(there: dict[str, str], here: dict[str, str]) -> Iterator[str]:
    """What is no excused difference, a line each."""
    for case, answer in there.items():
        if here.get(case) == answer or excused(NEWER, case) or excused(HOST, case):
            continue
        if not any(excused(patterns, case) for patterns in OURS):
            yield f"{case}: {answer} natively, {here.get(case)} behind the sentry"


def run(*arguments: str, where: str = "tmpfs") -> tuple[dict[str, str], dict[str, str]]:
    """What the program says natively, where it can reach nothing of the host, and behind the sentry.

    Arguments:
        where: its files are there: ``tmpfs``, or an ``overlay`` of the host's.
    """
    alone, program = str(build(C / "breadth" / "alone.c")), str(build(C / "breadth" / "breadth.c"))
    there = native([alone, program, *arguments])
    assert there.returncode == 0, there.stderr
    options = ["--debug", "--summary", "--env=BEHIND_THE_SENTRY=1"]
    if where == "overlay":
        options.append("--env=WHERE_IT_IS=1")
    here = sentry([program, *arguments], options=options)
    assert here.returncode == 0, here.stderr[-4000:]
    assert b"Traceback" not in here.stderr, here.stderr[-6000:].decode(errors="replace")
    tally.note(f"breadth-{arguments[0]}", here.stderr, successes=False)
    return answers(there.stdout.decode()), answers(here.stdout.decode())


KERNELS = ("6.18.",)
"""With which the lists above were made. Others have changed more, or less."""


of_this_kernel = pytest.mark.skipif(
    not os.uname().release.startswith(KERNELS), reason="the lists of differences are for other kernels"
)


@of_this_kernel
def test_a_user_without_rights_is_answered_as_by_linux() -> None:
    """The same calls, by a user to files that are root's."""
    there, here = run("user")
    assert len(there) > 10_000
    found = list(differences(there, here))
    assert not found, f"{len(found)} differences:\n" + "\n".join(found)


@of_this_kernel
def test_an_overlay_answers_as_tmpfs_does() -> None:
    there, here = run("single", where="overlay")
    found = [told for told in differences(there, here) if not told.startswith("umount2 0=root")]
    assert not found, f"{len(found)} differences:\n" + "\n".join(found)


@of_this_kernel
def test_each_odd_argument_is_answered_as_by_linux() -> None:
    there, here = run("single")
    assert len(there) > 10_000
    found = list(differences(there, here))
    assert not found, f"{len(found)} differences:\n" + "\n".join(found)
    # An excuse that nothing needs any more would hide what breaks later.
    for patterns, reason in OURS.items():
        assert any(excused(patterns, case) and here.get(case) != there[case] for case in there), f"needless: {reason}"

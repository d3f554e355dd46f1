"""What a process of a wall is shut into; :mod:`casemate.wall.launch` does it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a VMM or file server process is shut into before its program is executed.

    Arguments:
        uid, gid: who it runs as. (0, 0) keeps root, for a file server that must act as any user.
        groups: supplementary groups.
        cgroup_procs: ``cgroup.procs`` files to join (several with cgroup v1).
        netns_fd: network namespace to enter, or None to stay. Not closed.
        mntns_fd: mount namespace to enter, or None to stay. Not closed.
        capabilities: numbers of the capabilities kept (:manpage:`capabilities(7)`); none by default.
        max_files: limit of open descriptors, or this process's own hard limit where that is lower and cannot be raised.
        environment: the program's whole environment.
        oom_score_adj: how gladly the kernel kills it for want of memory (``proc_pid_oom_score_adj(5)``).
        keep_files: fallocate(2) punches no holes into files for it, and says that it has.
    """

    uid: int
    gid: int
    cgroup_procs: tuple[Path, ...] = ()
    netns_fd: int | None = None
    mntns_fd: int | None = None
    capabilities: frozenset[int] = frozenset()
    max_files: int = 1024
    environment: tuple[tuple[str, str], ...] = ()
    groups: tuple[int, ...] = ()
    oom_score_adj: int = 0
    keep_files: bool = False

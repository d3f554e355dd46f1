"""Policies of memory, numa(7), on a machine of one node: arguments are checked, and there is nothing to do."""

from __future__ import annotations

import struct
from errno import EFAULT, EINVAL, ENODEV, EPERM, ESRCH
from typing import TYPE_CHECKING

from casemate.sentry.abi import PAGE_SIZE, U64, page_up, s32, u32
from casemate.sentry.creds import CAP_SYS_NICE
from casemate.sentry.errno import SysError
from casemate.sentry.mm.memory import TASK_SIZE
from casemate.sentry.syscalls.process import find_task, may_inspect
from casemate.sentry.syscalls.table import Support, syscall

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

MPOL_DEFAULT, MPOL_PREFERRED, MPOL_BIND, MPOL_INTERLEAVE, MPOL_LOCAL, MPOL_PREFERRED_MANY = range(6)
MPOL_F_STATIC_NODES, MPOL_F_RELATIVE_NODES, MPOL_F_NUMA_BALANCING = 1 << 15, 1 << 14, 1 << 13
MPOL_F_NODE, MPOL_F_ADDR, MPOL_F_MEMS_ALLOWED = 1, 2, 4
MPOL_MF_STRICT, MPOL_MF_MOVE, MPOL_MF_MOVE_ALL = 1, 2, 4
NODE = 1
"""The set of all nodes there are."""
MAX_NODES = PAGE_SIZE * 8
"""How many bits a set of nodes may have."""
MAX_PAGES = 1 << 15
"""How many pages one move_pages(2) may ask about: nobody else is served meanwhile."""


def _nodes(task: Task, address: int, count: int) -> int:
    """A set of nodes, of which ``count`` - 1 bits are looked at. Raises SysError: EINVAL, EFAULT."""
    bits = (count - 1) & U64
    if bits == 0 or not address:
        return 0
    if bits > MAX_NODES:
        raise SysError(EINVAL)
    found = int.from_bytes(task.mem.read(address, (bits + 63) // 64 * 8), "little")
    return found & (1 << bits) - 1


def _policy(mode: int, nodes: int) -> None:
    """Check a policy and the set of nodes that goes with it. Raises SysError(EINVAL)."""
    kind = mode & ~(MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES | MPOL_F_NUMA_BALANCING)
    flags = mode & ~kind
    if kind > MPOL_PREFERRED_MANY or nodes & ~NODE and not nodes & NODE:
        raise SysError(EINVAL)
    if flags & MPOL_F_STATIC_NODES and flags & MPOL_F_RELATIVE_NODES:
        raise SysError(EINVAL)
    if flags & MPOL_F_NUMA_BALANCING and kind not in (MPOL_BIND, MPOL_PREFERRED_MANY):
        raise SysError(EINVAL)
    if kind in (MPOL_DEFAULT, MPOL_LOCAL) and (nodes or flags):
        raise SysError(EINVAL)
    if kind in (MPOL_BIND, MPOL_INTERLEAVE, MPOL_PREFERRED_MANY) and not nodes:
        raise SysError(EINVAL)
    if kind == MPOL_PREFERRED and not nodes and flags:
        raise SysError(EINVAL)


@syscall("set_mempolicy", Support.PARTIAL, "one node: the policy is checked and has no effect")
def set_mempolicy(task: Task, mode: int, nodes: int, count: int) -> int:
    """set_mempolicy(2)."""
    _policy(u32(mode), _nodes(task, nodes, count))
    return 0


@syscall("get_mempolicy", Support.PARTIAL, "one node, the default policy")
def get_mempolicy(task: Task, mode: int, nodes: int, count: int, address: int, flags: int) -> int:
    """get_mempolicy(2)."""
    if flags & ~(MPOL_F_NODE | MPOL_F_ADDR | MPOL_F_MEMS_ALLOWED):
        raise SysError(EINVAL)
    if mode:
        task.mem.put_u32(mode, 0)
    if nodes:
        if not 0 < count <= 4096:
            raise SysError(EINVAL)
        # MPOL_F_MEMS_ALLOWED tells the one node there is; the default policy has none.
        first = b"\1" if flags & MPOL_F_MEMS_ALLOWED else b"\0"
        task.mem.write(nodes, first.ljust((count + 63) // 64 * 8, b"\0"))
    return 0


@syscall("mbind", Support.PARTIAL, "one node: the policy is checked and has no effect")
def mbind(task: Task, address: int, length: int, mode: int, nodes: int, count: int, flags: int) -> int:
    """mbind(2)."""
    mode, flags = u32(mode), u32(flags)
    found = _nodes(task, nodes, count)
    if flags & ~(MPOL_MF_STRICT | MPOL_MF_MOVE | MPOL_MF_MOVE_ALL):
        raise SysError(EINVAL)
    if flags & MPOL_MF_MOVE_ALL and not task.creds.capable(CAP_SYS_NICE):
        raise SysError(EPERM)
    end = address + (page_up(length) & U64)
    if address % PAGE_SIZE or end > U64:
        raise SysError(EINVAL)
    if end == address:
        return 0
    _policy(mode, found)
    end = min(end, TASK_SIZE)
    if address >= end or not task.mm.regions.within(address, end):
        raise SysError(EFAULT)
    if mode != MPOL_DEFAULT and task.mm.regions.covered(address, end) < end:
        raise SysError(EFAULT)
    return 0


def _other(task: Task, pid: int) -> Task:
    """Whose pages are meant. Raises SysError: ESRCH, EPERM."""
    if s32(pid) < 0:
        raise SysError(ESRCH)
    other = find_task(task, pid)
    if other.mm is not task.mm and not may_inspect(task, other):
        raise SysError(EPERM)
    return other


@syscall("migrate_pages", Support.PARTIAL, "one node: nothing to move")
def migrate_pages(task: Task, pid: int, count: int, old: int, new: int) -> int:
    """migrate_pages(2)."""
    _nodes(task, old, count)
    to = _nodes(task, new, count)
    _other(task, pid)
    if to & ~NODE and not task.creds.capable(CAP_SYS_NICE):
        raise SysError(EPERM)
    if not to & NODE:
        raise SysError(EINVAL)
    return 0


@syscall("move_pages", Support.PARTIAL, "one node: tells it")
def move_pages(task: Task, pid: int, count: int, pages: int, nodes: int, status: int, flags: int) -> int:
    """move_pages(2): what is mapped is on the one node."""
    flags = u32(flags)
    if flags & ~(MPOL_MF_MOVE | MPOL_MF_MOVE_ALL):
        raise SysError(EINVAL)
    if flags & MPOL_MF_MOVE_ALL and not task.creds.capable(CAP_SYS_NICE):
        raise SysError(EPERM)
    other = _other(task, pid)
    done = 0
    while done < count:
        step = min(512, count - done)
        places = struct.unpack(f"<{step}Q", task.mem.read(pages + 8 * done, 8 * step))
        if count > MAX_PAGES:
            raise SysError(EINVAL)
        if nodes and any(task.mem.read(nodes + 4 * done, 4 * step)):
            raise SysError(ENODEV)
        told = [0 if other.mm.readable_size(place, 1) else -EFAULT for place in places]
        task.mem.write(status + 4 * done, struct.pack(f"<{step}i", *told))
        done += step
    return 0

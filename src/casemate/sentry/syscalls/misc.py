"""What fits nowhere else: names and state of the system, randomness, and what a sandbox has none of."""

from __future__ import annotations

import os
import struct
from errno import EFAULT, EINVAL, ENOSYS, EPERM
from signal import SIGHUP, SIGINT
from typing import TYPE_CHECKING

from casemate.sentry.abi import s32, u32
from casemate.sentry.creds import CAP_SYS_ADMIN, CAP_SYS_BOOT, CAP_SYSLOG
from casemate.sentry.errno import SysError
from casemate.sentry.mm.memory import MAX_RW_COUNT
from casemate.sentry.mm.vma import PROT_WRITE
from casemate.sentry.syscalls.table import Support, syscall
from casemate.sentry.tasks import exit as exits
from casemate.sentry.tasks.attributes import BARRIERS, PERSONALITY
from casemate.sentry.vfs.proc import machine

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

SYSNAME = b"Linux"
RELEASE = b"6.1.0-casemate"
"""The Linux whose behaviour is meant."""
VERSION = b"#1 SMP casemate sentry"
MACHINE = b"x86_64"
UTS_LEN = 64
GRND_NONBLOCK, GRND_RANDOM, GRND_INSECURE = 1, 2, 4
MEMBARRIER_CMD_QUERY, MEMBARRIER_CMD_GLOBAL, MEMBARRIER_CMD_GLOBAL_EXPEDITED = 0, 1, 2
MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, MEMBARRIER_CMD_PRIVATE_EXPEDITED = 4, 8
MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED = 16
MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE = 32, 64
LINUX_REBOOT_MAGIC1 = 0xFEE1DEAD
LINUX_REBOOT_MAGIC2 = (0x28121969, 0x05121996, 0x16041998, 0x20112000)
_ENDS = {0x01234567: SIGHUP, 0xA1B2C3D4: SIGHUP, 0xCDEF0123: SIGINT, 0x4321FEDC: SIGINT}
"""Restart and restart with a command; halt and power off."""
_RANDOM_CHUNK = 256 * 1024


@syscall("uname")
def uname(task: Task, address: int) -> int:
    """uname(2)."""
    uts = task.group.ns.uts
    fields = (SYSNAME, uts.hostname, RELEASE, VERSION, MACHINE, uts.domainname)
    task.mem.write(address, b"".join([field[:UTS_LEN].ljust(UTS_LEN + 1, b"\0") for field in fields]))
    return 0


def _name(task: Task, address: int, length: int) -> bytes:
    size = s32(length)
    if not task.creds.capable(CAP_SYS_ADMIN):
        raise SysError(EPERM)
    if not 0 <= size <= UTS_LEN:
        raise SysError(EINVAL)
    return task.mem.read(address, size).split(b"\0", 1)[0]


@syscall("sethostname")
def sethostname(task: Task, address: int, length: int) -> int:
    """sethostname(2)."""
    task.group.ns.uts.hostname = _name(task, address, length)
    return 0


@syscall("setdomainname")
def setdomainname(task: Task, address: int, length: int) -> int:
    """setdomainname(2)."""
    task.group.ns.uts.domainname = _name(task, address, length)
    return 0


@syscall("sysinfo")
def sysinfo(task: Task, address: int) -> int:
    """sysinfo(2): the memory is the sandbox's limit, or the host's."""
    total, free = memory(task)
    uptime = task.kernel.clock.monotonic() // 1_000_000_000
    procs = min(len(task.kernel.tasks), 0xFFFF)
    data = struct.pack("<q3Q6QH6xQQI4x", uptime, 0, 0, 0, total, free, 0, 0, 0, 0, procs, 0, 0, 1)
    task.mem.write(address, data.ljust(112, b"\0"))
    return 0


def memory(task: Task) -> tuple[int, int]:
    """The memory that there is and what of it is free, in bytes."""
    total, free, _ = machine.memory(task.kernel)
    return total << 10, free << 10


@syscall("getrandom")
def getrandom(task: Task, address: int, size: int, flags: int) -> int:
    """getrandom(2)."""
    flags = u32(flags)
    both = GRND_RANDOM | GRND_INSECURE
    if flags & ~(GRND_NONBLOCK | both) or flags & both == both:
        raise SysError(EINVAL)
    size = min(size, MAX_RW_COUNT)
    done = 0
    while done < size:
        chunk = min(size - done, _RANDOM_CHUNK)
        room = task.mem.readable_size(address + done, chunk, PROT_WRITE)
        if not room:
            if done:
                break
            raise SysError(EFAULT)
        task.mem.write(address + done, os.urandom(room))
        done += room
    return done


@syscall("membarrier", Support.PARTIAL, "no RSEQ and SYNC_CORE commands")
def membarrier(task: Task, command: int, flags: int, cpu: int) -> int:
    """membarrier(2): the tasks that run are stopped by the host for a moment, which is a barrier."""
    command = s32(command)
    if u32(flags):
        raise SysError(EINVAL)
    if command == MEMBARRIER_CMD_QUERY:
        return (
            MEMBARRIER_CMD_GLOBAL
            | MEMBARRIER_CMD_GLOBAL_EXPEDITED
            | MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED
            | MEMBARRIER_CMD_PRIVATE_EXPEDITED
            | MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED
        )
    if command in (MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED):
        for other in task.group.tasks.values():
            other.prctl[BARRIERS] = other.prctl.get(BARRIERS, 0) | command
        return 0
    if command == MEMBARRIER_CMD_PRIVATE_EXPEDITED:
        if not task.prctl.get(BARRIERS, 0) & MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED:
            raise SysError(EPERM)
        _barrier(task, only_group=True)
        return 0
    if command in (MEMBARRIER_CMD_GLOBAL, MEMBARRIER_CMD_GLOBAL_EXPEDITED):
        _barrier(task, only_group=False)
        return 0
    raise SysError(EINVAL)


def _barrier(task: Task, only_group: bool) -> None:
    """Stop and continue the other tasks that run application code: each has then been through the host's scheduler."""
    others = task.group.tasks if only_group else task.kernel.tasks
    for other in list(others.values()):
        thread = other.thread
        if other is task or thread is None or other.number != -1 or other.block is not None:
            continue
        if thread.interrupt():
            task.kernel.resume(other)


@syscall("personality", Support.PARTIAL, "only ADDR_NO_RANDOMIZE does anything")
def personality(task: Task, persona: int) -> int:
    """personality(2)."""
    old = task.prctl.get(PERSONALITY, 0)
    if u32(persona) != 0xFFFF_FFFF:
        task.prctl[PERSONALITY] = u32(persona)
    return old


@syscall("syslog", Support.PARTIAL, "the log is always empty")
def syslog(task: Task, kind: int, buffer: int, size: int) -> int:
    """syslog(2)."""
    kind = s32(kind)
    if not 0 <= kind <= 10:
        raise SysError(EINVAL)
    if kind not in (3, 10) and not task.creds.capable(CAP_SYSLOG):
        raise SysError(EPERM)
    if kind in (2, 3, 4):
        if s32(size) < 0 or not buffer:
            raise SysError(EINVAL)
        return 0
    if kind == 8 and not 1 <= s32(size) <= 8:
        raise SysError(EINVAL)
    return 4096 if kind == 10 else 0


@syscall("rseq", Support.NONE, "libraries do without it")
def rseq(task: Task, area: int, size: int, flags: int, signature: int) -> int:
    """rseq(2)."""
    raise SysError(ENOSYS)


@syscall("reboot", Support.PARTIAL, "ends the container; no kexec and no key sequence")
def reboot(task: Task, magic: int, magic2: int, command: int, argument: int) -> int:
    """reboot(2), as in a PID namespace: its first process ends, by a signal that says why."""
    if not task.creds.capable(CAP_SYS_BOOT):
        raise SysError(EPERM)
    if u32(magic) != LINUX_REBOOT_MAGIC1 or u32(magic2) not in LINUX_REBOOT_MAGIC2:
        raise SysError(EINVAL)
    signum = _ENDS.get(u32(command))
    if signum is None:
        raise SysError(EINVAL)
    exits.exit_group(exits.first_process(task.group) or task.group, signum)
    return 0


def _refused(task: Task) -> int:
    """What needs the whole machine, that a sandbox is not."""
    raise SysError(EPERM)


for _call in (
    "acct",
    "bpf",
    "delete_module",
    "finit_module",
    "init_module",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "perf_event_open",
    "quotactl",
    "setns",
    "swapoff",
    "swapon",
):
    syscall(_call, Support.NONE, "refused with EPERM: it is about the machine")(_refused)


def _absent(task: Task) -> int:
    """What Linux has no longer, or can be built without."""
    raise SysError(ENOSYS)


for _call in (
    "_sysctl",
    "add_key",
    "afs_syscall",
    "create_module",
    "epoll_ctl_old",
    "epoll_wait_old",
    "fsconfig",
    "fsmount",
    "fspick",
    "get_kernel_syms",
    "get_thread_area",
    "getpmsg",
    "io_pgetevents",
    "io_uring_enter",
    "io_uring_register",
    "keyctl",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "lookup_dcookie",
    "memfd_secret",
    "modify_ldt",
    "nfsservctl",
    "putpmsg",
    "query_module",
    "quotactl_fd",
    "request_key",
    "security",
    "set_mempolicy_home_node",
    "set_thread_area",
    "sysfs",
    "tuxcall",
    "uselib",
    "vserver",
):
    syscall(_call, Support.NONE, "ENOSYS, as in kernels that were built without it")(_absent)

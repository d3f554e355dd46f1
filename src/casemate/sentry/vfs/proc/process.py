"""The small files of ``/proc/PID``, proc_pid(5)."""

from __future__ import annotations

import resource
from collections.abc import Callable
from errno import EACCES, EINVAL, EPERM
from typing import TYPE_CHECKING

from casemate.sentry.creds import CAP_AUDIT_CONTROL, CAP_SYS_RESOURCE
from casemate.sentry.errno import SysError
from casemate.sentry.limits import NAMES, RLIM_INFINITY
from casemate.sentry.tasks import usage
from casemate.sentry.tasks.attributes import AFFINITY, LOGINUID, NICE, PERSONALITY, POLICY, PRIORITY
from casemate.sentry.vfs.proc import memory
from casemate.sentry.vfs.proc.machine import boot_offset, cpu_list, cpu_mask, cpus
from casemate.sentry.vfs.proc.view import HZ, View

if TYPE_CHECKING:
    from casemate.sentry.mm.space import AddressSpace
    from casemate.sentry.tasks.task import Task

TICK = 1_000_000_000 // HZ
MAX_STRINGS = 4 << 20
"""How much of arguments and environment is shown."""


def _cpu(view: View) -> int:
    """Nanoseconds that it has run."""
    if view.tid is not None:
        task = view.task
        return 0 if task is None else usage.thread_time(task)
    if view.group.zombie:
        return view.group.usage.get("self", 0)
    return usage.process_time(view.group)


def _parent(view: View) -> int:
    parent = view.group.parent
    return 0 if parent is None else parent.pid


def stat(view: View, task: Task) -> bytes:
    """proc_pid_stat(5)."""
    group = view.group
    session = group.process_group.session
    terminal = session.terminal
    foreground = session.foreground
    mm = view.mm
    own = view.task
    pending, blocked, ignored, caught = _signal_sets(view)
    nice = own.prctl.get(NICE, 0) if own is not None else 0
    policy = own.prctl.get(POLICY, 0) if own is not None else 0
    priority = own.prctl.get(PRIORITY, 0) if own is not None else 0
    started = (own.started + boot_offset()) // TICK if own is not None else 0
    fields = [
        _parent(view),
        group.process_group.pgid,
        session.sid,
        terminal.device if terminal is not None else 0,
        (foreground.pgid if foreground is not None else 0) if terminal is not None else -1,
        0x400000 if group.did_exec else 0x400040,
        0, 0, 0, 0,  # faults are the host's business
        _cpu(view) // TICK,
        0,
        group.usage.get("children", 0) // TICK,
        0,
        -1 - priority if priority else 20 + nice,
        nice,
        view.threads,
        0,
        started,
        mm.regions.bytes if mm is not None else 0,
        memory.resident(view)[0],
        min(group.limits.soft(resource.RLIMIT_RSS), RLIM_INFINITY),
        *(_layout(mm) if mm is not None else (0, 0, 0)),
        0, 0,  # registers, which only stopped processes show
        pending & 0x7FFFFFFF,
        blocked & 0x7FFFFFFF,
        ignored & 0x7FFFFFFF,
        caught & 0x7FFFFFFF,
        1 if view.letter == "S" else 0,
        0, 0,
        group.exit_signal if view.tid in (None, group.pid) else -1,
        0,
        priority,
        policy,
        0, 0, 0,
        *(
            (mm.start_data, mm.end_data, mm.start_brk, mm.arg_start, mm.arg_end, mm.env_start, mm.env_end)
            if mm is not None
            else (0,) * 7
        ),
        (group.exit_code or 0) if group.zombie else 0,
    ]  # fmt: skip
    head = b"%d (%s) %s " % (view.number, view.name, view.letter.encode())
    return head + " ".join(map(str, fields)).encode() + b"\n"


def _layout(mm: AddressSpace) -> tuple[int, int, int]:
    return mm.start_code, mm.end_code, mm.stack_start


def _signal_sets(view: View) -> tuple[int, int, int, int]:
    task = view.task
    signals = view.group.signals
    own = task.signals if task is not None else None
    return own.bits if own else 0, own.mask if own else 0, signals.ignored(), signals.caught()


_STATES = {"R": "running", "S": "sleeping", "T": "stopped", "Z": "zombie", "X": "dead"}


def status(view: View, task: Task) -> bytes:
    """proc_pid_status(5)."""
    group = view.group
    own = view.task
    creds = view.creds
    mm = view.mm
    letter = view.letter
    name = view.name.decode("utf-8", "surrogateescape").replace("\\", "\\\\").replace("\n", "\\n")
    lines: list[tuple[str, object]] = [("Name", name)]
    if mm is not None and own is not None:
        lines.append(("Umask", f"{own.fs.umask:04o}"))
    lines += [
        ("State", f"{letter} ({_STATES.get(letter, 'sleeping')})"),
        ("Tgid", group.pid),
        ("Ngid", 0),
        ("Pid", view.number),
        ("PPid", _parent(view)),
        ("TracerPid", 0),
    ]
    if creds is not None:
        lines.append(("Uid", f"{creds.uid}\t{creds.euid}\t{creds.suid}\t{creds.fsuid}"))
        lines.append(("Gid", f"{creds.gid}\t{creds.egid}\t{creds.sgid}\t{creds.fsgid}"))
    slots = 64 if mm is not None else 0
    while own is not None and mm is not None and slots < len(own.files):
        slots *= 2
    lines.append(("FDSize", str(slots)))
    lines.append(("Groups", "".join(f"{gid} " for gid in creds.groups) if creds is not None else ""))
    lines += [
        ("NStgid", str(group.pid)),
        ("NSpid", str(view.number)),
        ("NSpgid", str(group.process_group.pgid)),
        ("NSsid", str(group.process_group.session.sid)),
    ]
    if mm is not None:
        lines += memory.status_lines(view, mm)
    pending, blocked, ignored, caught = _signal_sets(view)
    queued = sum(map(len, group.signals.queues.values()))
    lines += [
        ("Threads", str(view.threads)),
        ("SigQ", f"{queued}/{group.limits.soft(resource.RLIMIT_SIGPENDING)}"),
        ("SigPnd", f"{pending:016x}"),
        ("ShdPnd", f"{group.signals.bits:016x}"),
        ("SigBlk", f"{blocked:016x}"),
        ("SigIgn", f"{ignored:016x}"),
        ("SigCgt", f"{caught:016x}"),
    ]
    if creds is not None:
        lines += [
            ("CapInh", f"{creds.inheritable:016x}"),
            ("CapPrm", f"{creds.permitted:016x}"),
            ("CapEff", f"{creds.effective:016x}"),
            ("CapBnd", f"{creds.bounding:016x}"),
            ("CapAmb", f"{creds.ambient:016x}"),
        ]
    filters = len(own.seccomp) if own is not None else 0
    allowed = own.prctl.get(AFFINITY, 0) if own is not None else 0
    usable = tuple(number for number in cpus() if not allowed or allowed >> number & 1)
    lines += [
        ("NoNewPrivs", str(int(own.no_new_privs)) if own is not None else "0"),
        ("Seccomp", "2" if filters else "0"),
        ("Seccomp_filters", str(filters)),
        ("Speculation_Store_Bypass", "vulnerable"),
        ("SpeculationIndirectBranch", "always enabled"),
        ("Cpus_allowed", cpu_mask(usable)),
        ("Cpus_allowed_list", cpu_list(usable)),
        ("Mems_allowed", "1"),
        ("Mems_allowed_list", "0"),
        ("voluntary_ctxt_switches", "0"),
        ("nonvoluntary_ctxt_switches", "0"),
    ]
    return "".join(f"{key}:\t{value}\n" for key, value in lines).encode("utf-8", "surrogateescape")


def _strings(mm: AddressSpace, start: int, end: int) -> bytes:
    if end <= start:
        return b""
    try:
        return mm.read(start, min(end - start, MAX_STRINGS))
    except SysError:
        return b""  # unmapped by the program


def cmdline(view: View, task: Task) -> bytes:
    """proc_pid_cmdline(5): programs that overwrite their arguments show what they wrote."""
    mm = view.mm
    if mm is None:
        return b""
    data = _strings(mm, mm.arg_start, mm.arg_end)
    if data and data[-1]:
        # setproctitle(3): the string goes on where the environment was.
        data = (data + _strings(mm, mm.arg_end, mm.env_end)).split(b"\0", 1)[0]
    return data


def environ(view: View, task: Task) -> bytes:
    """proc_pid_environ(5)."""
    view.check(task)
    mm = view.mm
    return b"" if mm is None else _strings(mm, mm.env_start, mm.env_end)


def auxv(view: View, task: Task) -> bytes:
    """proc_pid_auxv(5)."""
    view.check(task)
    mm = view.mm
    return b"" if mm is None else mm.auxv


def comm(view: View, task: Task) -> bytes:
    """proc_pid_comm(5)."""
    return view.name + b"\n"


def set_comm(view: View, task: Task, data: bytes) -> None:
    """Threads may name each other."""
    target = view.living()
    if target.group is not task.group:
        raise SysError(EINVAL)
    target.name = data.split(b"\0", 1)[0].rstrip(b"\n")[:15]


def limits(view: View, task: Task) -> bytes:
    """proc_pid_limits(5)."""
    lines = [f"{'Limit':<25} {'Soft Limit':<20} {'Hard Limit':<20} {'Units':<10}\n"]
    for number, (name, unit) in enumerate(NAMES):
        soft, hard = ("unlimited" if value == RLIM_INFINITY else str(value) for value in view.group.limits.get(number))
        row = f"{name:<25} {soft:<20} {hard:<20} "
        lines.append(f"{row}{unit:<10}\n" if unit else row + "\n")
    return "".join(lines).encode()


def oom_score_adj(view: View, task: Task) -> bytes:
    """proc_pid_oom_score_adj(5)."""
    return b"%d\n" % view.group.oom_score_adj


def set_oom_score_adj(view: View, task: Task, data: bytes) -> None:
    """Lowering it needs CAP_SYS_RESOURCE."""
    try:
        value = int(data.strip(b" \t\n\0"))
    except ValueError:
        raise SysError(EINVAL) from None
    if not -1000 <= value <= 1000:
        raise SysError(EINVAL)
    if value < view.group.oom_score_adj and not task.creds.capable(CAP_SYS_RESOURCE):
        raise SysError(EACCES)
    view.group.oom_score_adj = value


def io(view: View, task: Task) -> bytes:
    """proc_pid_io(5). Nothing is counted here: all are zero."""
    view.check(task)
    names = (b"rchar", b"wchar", b"syscr", b"syscw", b"read_bytes", b"write_bytes", b"cancelled_write_bytes")
    return b"".join(name + b": 0\n" for name in names)


def syscall(view: View, task: Task) -> bytes:
    """proc_pid_syscall(5)."""
    view.check(task)
    target = view.task
    if target is None or target.thread is None or target.block is None or target.number < 0:
        return b"running\n"
    regs = target.thread.regs
    words = " ".join(f"0x{value:x}" for value in (*target.args[:6], regs.rsp, regs.rip))
    return f"{target.number} {words}\n".encode()


def children(view: View, task: Task) -> bytes:
    """``/proc/PID/task/TID/children``: all that the process has are its first thread's."""
    if view.number != view.group.pid:
        return b""
    return b"".join(b"%d " % pid for pid in sorted(view.group.children))


def schedstat(view: View, task: Task) -> bytes:
    """Time that it has run, that it waited to, and how often it did."""
    return b"%d 0 0\n" % _cpu(view)


def sched(view: View, task: Task) -> bytes:
    """Its scheduling, as far as it is known."""
    name = view.name.decode("utf-8", "replace")
    return (
        f"{name} ({view.number}, #threads: {view.threads})\n{'-' * 67}\n"
        f"{'se.sum_exec_runtime':<45}:{_cpu(view) / 1e6:>21.6f}\n{'policy':<45}:{0:>21}\n{'prio':<45}:{120:>21}\n"
    ).encode()


def mounts(view: View, task: Task) -> bytes:
    """proc_pid_mounts(5)."""
    target = view.living()
    text: bytes = view.kernel.mounts.mounts_text(target.fs.root)
    return text


def mountinfo(view: View, task: Task) -> bytes:
    """proc_pid_mountinfo(5)."""
    target = view.living()
    text: bytes = view.kernel.mounts.mountinfo_text(target.fs.root)
    return text


def mountstats(view: View, task: Task) -> bytes:
    """proc_pid_mountstats(5)."""
    lines = []
    for line in mounts(view, task).splitlines():
        source, path, kind = line.split(b" ")[:3]
        lines.append(b"device %s mounted on %s with fstype %s\n" % (source, path, kind))
    return b"".join(lines)


def fixed(data: bytes) -> Callable[[View, Task], bytes]:
    """A content that is the same for all."""
    return _Fixed(data)


class _Fixed:
    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __call__(self, view: View, task: Task) -> bytes:
        return self.data


def personality(view: View, task: Task) -> bytes:
    """proc_pid_personality(5)."""
    view.check(task)
    target = view.task
    return b"%08x\n" % (target.prctl.get(PERSONALITY, 0) if target is not None else 0)


def ignore(view: View, task: Task, data: bytes) -> None:
    """Taken, without effect: what it would set is not kept."""


def refuse(view: View, task: Task, data: bytes) -> None:
    """There is one user namespace, and its map is written already."""
    raise SysError(EPERM)


UNSET = 0xFFFF_FFFF


def loginuid(view: View, task: Task) -> bytes:
    """``/proc/PID/loginuid``: whom a process was begun for, which its children keep."""
    target = view.task
    return b"%d" % (target.prctl.get(LOGINUID, UNSET) if target is not None else UNSET)


def set_loginuid(view: View, task: Task, data: bytes) -> None:
    """Each says it of itself: once, or with CAP_AUDIT_CONTROL."""
    if view.task is not task:
        raise SysError(EPERM)
    text = data.rstrip(b"\n\0")
    if not text.isdigit() or int(text) > UNSET:
        raise SysError(EINVAL)
    if task.prctl.get(LOGINUID, UNSET) != UNSET and not task.creds.capable(CAP_AUDIT_CONTROL):
        raise SysError(EPERM)
    task.prctl[LOGINUID] = int(text)

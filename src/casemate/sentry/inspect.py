"""What a sandbox's kernel knows of its processes, for ``casemate sentry ps|maps|fds|stacks``.

All of it is read by the kernel's thread between two events, as plain data of a bounded size. Looking changes nothing:
no thread is stopped for it, nothing is asked of a file that could have an effect, and what is paused stays so.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from casemate.protocol.wire import RequestFailed
from casemate.sentry.errno import SysError
from casemate.sentry.opened import kind_of, shown_flags, what_of
from casemate.sentry.strace import arguments
from casemate.sentry.syscalls.table import TABLE, name_of
from casemate.sentry.tasks.task import State
from casemate.sentry.vfs.proc import memory
from casemate.sentry.vfs.proc.view import View, file_path
from casemate.sentry.waits import waits_for

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task, ThreadGroup

BUDGET = 600_000
"""Bytes of JSON that an answer has at most, which with all around it fits into a frame of the link."""
COMMAND = 1024
"""How much of a command line is read, and TEXT how much of any other text is told."""
TEXT = 512

Row = dict[str, Any]


def collect(kernel: Kernel, what: str, pid: int | None, container: str | None) -> dict[str, Any]:
    """Answer one question. On the kernel's thread.

    Arguments:
        what: one of :data:`QUESTIONS`.
        pid: a process, or one of its threads; None for all.
        container: whose processes they are; None for all of the sandbox.

    Returns:
        ``rows``, and ``cut``: whether there would have been more.

    Raises:
        RequestFailed: there is no such question or process.
    """
    question = QUESTIONS.get(what)
    if question is None:
        raise RequestFailed("bad-spec", f"what must be one of {', '.join(QUESTIONS)}")
    groups = [
        group for _, group in sorted(kernel.groups.items()) if container is None or group.container == container
    ]
    if pid is not None:
        groups = [group for group in groups if pid == group.pid or pid in group.tasks]
        if not groups:
            raise RequestFailed("no-such-process", f"the container has no process {pid}")
    return bounded(row for group in groups for row in question(group))


def bounded(rows: Iterator[Row], budget: int = BUDGET) -> dict[str, Any]:
    """As many of the rows as fit into ``budget`` bytes of JSON; no more than one is made beyond that."""
    kept: list[Row] = []
    for row in rows:
        budget -= len(json.dumps(row)) + 2
        if budget < 0:
            return {"rows": kept, "cut": True}
        kept.append(row)
    return {"rows": kept, "cut": False}


# ---- processes


def _tasks(group: ThreadGroup) -> list[Task]:
    """Its threads, the first one first, also when that has ended before the others."""
    tasks = [task for _, task in sorted(group.tasks.items())]
    first = group.ns.pid.task(group.pid)
    if first is not None and first.group is group and first not in tasks:
        tasks.insert(0, first)
    return tasks


def processes(group: ThreadGroup) -> Iterator[Row]:
    """One row for each thread."""
    whole = View(group)
    for task in _tasks(group):
        view = View(group, task.tid)
        waits = task.block is not None
        yield {
            "pid": group.pid,
            "tid": task.tid,
            "ppid": group.parent.pid if group.parent is not None else 0,
            "threads": whole.threads,
            "state": view.letter,
            "uid": task.creds.euid,
            "call": name_of(task.number) if waits else None,
            "on": text(waits_for(task)) if waits else None,
            "left_ms": left(task),
            "name": text(task.name),
            "command": command(group) if task.leader else f"[{text(task.name)}]",
        }


def command(group: ThreadGroup) -> str:
    """Its command line; its name in brackets where it has none any more, as ps(1) has it."""
    view = View(group)
    mm = view.mm
    data = b""
    if mm is not None and mm.arg_end > mm.arg_start:
        try:
            data = mm.read(mm.arg_start, min(mm.arg_end - mm.arg_start, COMMAND))
        except SysError:
            data = b""  # unmapped by the program
    words = data.rstrip(b"\0").replace(b"\0", b" ")
    return text(words, COMMAND) if words else f"[{text(view.name)}]"


def left(task: Task) -> int | None:
    """Milliseconds until the time of its call is up; None without a limit."""
    if task.block is None or task.block.deadline is None:
        return None
    return max(0, task.block.deadline - task.kernel.clock.monotonic()) // 1_000_000


# ---- memory


def mappings(group: ThreadGroup) -> Iterator[Row]:
    """One row for each mapping of the process, as proc_pid_maps(5) has them."""
    view = View(group)
    task, mm = view.task, view.mm
    if task is None or mm is None:
        return
    for vma in memory.shown(mm):
        fields = memory.line(mm, vma, task).split(None, 5)
        yield {
            "pid": group.pid,
            "start": vma.start,
            "end": vma.end,
            "access": fields[1].decode(),
            "offset": int(fields[2], 16),
            "device": fields[3].decode(),
            "inode": int(fields[4]),
            "name": text(fields[5]) if len(fields) > 5 else "",
        }


# ---- descriptors


def descriptors(group: ThreadGroup) -> Iterator[Row]:
    """One row for each descriptor of the process. Threads that have a table of their own show up with theirs."""
    seen: set[int] = set()
    for task in _tasks(group):
        if task.thread is None or id(task.files) in seen:
            continue
        seen.add(id(task.files))
        for fd, file in task.files.items():
            access = "r" * file.can_read + "w" * file.can_write
            yield {
                "pid": group.pid,
                "tid": task.tid,
                "fd": fd,
                "kind": kind_of(file),
                "access": access or "path",
                "flags": shown_flags(file.flags | (os.O_CLOEXEC if task.files.cloexec(fd) else 0)),
                "offset": file.offset if file.bulk else None,
                "name": text(file_path(task, file)),
                "what": text(what_of(file)),
            }


# ---- calls


def calls(group: ThreadGroup) -> Iterator[Row]:
    """One row for each thread: the call it stands in, with its arguments, and why that waits; else what it does."""
    kernel = group.kernel
    for task in _tasks(group):
        shared = group.signals.bits
        entry = TABLE.get(task.number)
        row: Row = {
            "pid": group.pid,
            "tid": task.tid,
            "name": text(task.name),
            "state": View(group, task.tid).letter,
            "call": None,
            "why": _idle(task),
            "left_ms": left(task),
            "restart": None,
            "partial": 0,
            "pending": signals(task.signals.bits | shared),
            "blocked": signals(task.signals.mask),
            "frozen": group.container in kernel.frozen,
        }
        if task.thread is not None and task.number != -1:
            row["call"] = text(f"{entry.name}({arguments(task, entry)})" if entry else name_of(task.number))
        if task.block is not None:
            row["why"] = text(waits_for(task))
            row["restart"] = task.block.restart.value
            row["partial"] = task.block.partial
        yield row


def _idle(task: Task) -> str:
    """What a thread does that waits in no call."""
    if task.thread is None or task.state in (State.ZOMBIE, State.DEAD):
        return "has ended, and nobody has waited for it"
    if task.state is State.STOPPED or task.group.signals.stopped:
        return "stopped by a signal"
    if task.number != -1:
        return "its call is about to be made again"
    if task.group.container in task.kernel.frozen:
        return "runs when its container is resumed"
    return "runs code of its own"


def signals(bits: int) -> list[str]:
    """Names of the signals of a set, of which bit N-1 is signal N."""
    found = []
    for number in range(1, 65):
        if bits >> (number - 1) & 1:
            try:
                found.append(signal.Signals(number).name)
            except ValueError:
                found.append(f"SIGRTMIN+{number - 34}" if number >= 34 else f"signal {number}")
    return found


def text(value: str | bytes, most: int = TEXT) -> str:
    """A text for JSON, no longer than ``most`` characters; bytes that are no UTF-8 are shown as escapes."""
    shown = value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")
    return shown if len(shown) <= most else shown[: most - 3] + "..."


QUESTIONS = {"ps": processes, "maps": mappings, "fds": descriptors, "stacks": calls}

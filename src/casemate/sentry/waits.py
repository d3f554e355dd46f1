"""What a system call that waits is waiting for, in words.

A waiting call is plain data: its number, its arguments, the queues it is in and what its handler has noted. Each family
of calls tells what it means; of the rest, the queues tell which open files they belong to.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

from casemate.sentry.abi import s32
from casemate.sentry.errno import SysError
from casemate.sentry.ipc.epoll import Epoll
from casemate.sentry.ipc.pipe import PipeFile
from casemate.sentry.mm.futex import FUTEX_TID_MASK
from casemate.sentry.opened import SHOWN, several, watched
from casemate.sentry.syscalls.table import TABLE, name_of
from casemate.sentry.vfs.proc.view import file_path

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.file import File
    from casemate.sentry.wait import Block, WaitQueue

MAX_FILES = 4096
"""Of how many descriptors the queues are looked at."""
_DESCRIPTORS = ("fd", "epfd")
P_ALL, P_PID, P_PGID, P_PIDFD = 0, 1, 2, 3


def waits_for(task: Task) -> str:
    """What the task's call waits for; empty for a task that does not wait."""
    block = task.block
    if block is None:
        return ""
    teller = _TELLERS.get(name_of(task.number))
    try:
        told = teller(task) if teller is not None else _named(task)
    except SysError:
        told = ""  # what its arguments point to is not there any more
    return told or _by_queues(task, block)


def _named(task: Task) -> str:
    """The file that the call's first argument names, as a descriptor."""
    entry = TABLE.get(task.number)
    if entry is None or not task.args or not entry.arguments:
        return ""
    if entry.handler.__code__.co_varnames[1] not in _DESCRIPTORS:
        return ""
    fd = s32(task.args[0])
    # A call goes on with the file it began with, whatever its descriptor refers to by now.
    number, file = task.blocked.get("file", (fd, None))
    if file is None or number != fd:
        file = task.files.peek(task.args[0])
    return "" if file is None else described(task, fd, file)


def described(task: Task, fd: int, file: File) -> str:
    """``fd 0 (pipe:[7])``."""
    path = file_path(task, file).decode("utf-8", "backslashreplace")
    shown = f"fd {fd} ({path})"
    return f"{shown}, which {watched(file)}" if isinstance(file, Epoll) else shown


def _by_queues(task: Task, block: Block) -> str:
    """Whose queues it is in, among the files it has open; its deadline where it is in none."""
    if not block.queues:
        return "the time" if block.deadline is not None else "nothing but signals"
    wanted = {id(queue) for queue in block.queues}
    found: list[str] = []
    count = 0
    for fd, file in islice(task.files.items(), MAX_FILES):
        if any(id(queue) in wanted for queue in _queues(file)):
            count += 1
            if len(found) < SHOWN:
                found.append(described(task, fd, file))
    if not found:
        return f"{len(block.queues)} event{'' if len(block.queues) == 1 else 's'} that no open file stands for"
    return several(found, count)


def _queues(file: File) -> tuple[WaitQueue, ...]:
    if isinstance(file, PipeFile):
        pipe = file.pipe
        return file.queue, *((pipe.read_queue,) if file.reads else ()), *(
            (pipe.write_queue, pipe.space) if file.writes else ()
        )
    return (file.queue,)


# What calls without a descriptor wait for.


def _futex(task: Task) -> str:
    waiters = task.blocked.get("futex") or ()
    words = []
    for waiter in waiters[:SHOWN]:
        value = task.mem.u32(waiter.address)
        if waiter.pi:
            words.append(f"the lock at {waiter.address:#x}, which thread {value & FUTEX_TID_MASK} has")
        else:
            words.append(f"the word at {waiter.address:#x}, which is {value}")
    return several(words, len(waiters)) if words else ""


def _wait4(task: Task) -> str:
    number = s32(task.args[0])
    if number > 0:
        return _child(number)
    if number == -1:
        return _children(task)
    return f"a child of process group {-number or task.group.process_group.pgid}"


def _waitid(task: Task) -> str:
    which, number = task.args[0], s32(task.args[1])
    if which == P_PID:
        return _child(number)
    if which == P_PIDFD:
        file = task.files.peek(number)
        return "" if file is None else described(task, number, file)
    return f"a child of process group {number or task.group.process_group.pgid}" if which == P_PGID else _children(task)


def _child(number: int) -> str:
    return f"process {number} to change state"


def _children(task: Task) -> str:
    children = sorted(task.group.children)
    return "any child to change state: " + several([str(pid) for pid in children[:SHOWN]], len(children))


def _vfork(task: Task) -> str:
    return "its child to call execve or to end"


def _fifo(task: Task) -> str:
    return "somebody to open the other end of the FIFO"


def _signal(task: Task) -> str:
    return "a signal"


def _time(task: Task) -> str:
    return "the time"


def _semaphores(task: Task) -> str:
    return f"semaphore set {s32(task.args[0])}"


def _message(task: Task) -> str:
    return f"a message in queue {s32(task.args[0])}"


def _room(task: Task) -> str:
    return f"room in message queue {s32(task.args[0])}"


def _lock(task: Task) -> str:
    return f"a lock of {_named(task)}"


def _requests(task: Task) -> str:
    return f"requests of context {task.args[0]:#x}"


_TELLERS: dict[str, Callable[[Task], str]] = {
    "futex": _futex, "futex_waitv": _futex, "wait4": _wait4, "waitid": _waitid, "vfork": _vfork, "clone": _vfork,
    "open": _fifo, "openat": _fifo, "openat2": _fifo, "creat": _fifo, "pause": _signal, "rt_sigsuspend": _signal,
    "rt_sigtimedwait": _signal, "nanosleep": _time, "clock_nanosleep": _time, "semop": _semaphores,
    "semtimedop": _semaphores, "msgrcv": _message, "msgsnd": _room, "flock": _lock, "fcntl": _lock,
    "io_getevents": _requests,
}  # fmt: skip

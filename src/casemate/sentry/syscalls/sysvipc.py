"""System V semaphores and messages: semget(2), semop(2), semctl(2), msgget(2), msgop(2), msgctl(2)."""

from __future__ import annotations

import struct
from errno import E2BIG, EAGAIN, EINVAL, ENOMSG, ERANGE
from typing import TYPE_CHECKING

from casemate.sentry.abi import s32, s64, u32
from casemate.sentry.errno import SysError
from casemate.sentry.ipc import msg, sem, sysv
from casemate.sentry.ipc.sysv import IPC_INFO, IPC_NOWAIT, IPC_RMID, IPC_SET, IPC_STAT, READ, WRITE
from casemate.sentry.syscalls.poll import deadline_after
from casemate.sentry.syscalls.table import syscall
from casemate.sentry.wait import Block, Restart

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task

GETPID, GETVAL, GETALL, GETNCNT, GETZCNT, SETVAL, SETALL = range(11, 18)
SEM_STAT, SEM_INFO, SEM_STAT_ANY = 18, 19, 20
MSG_STAT, MSG_INFO, MSG_STAT_ANY = 11, 12, 13
MSG_NOERROR, MSG_EXCEPT, MSG_COPY = 0o10000, 0o20000, 0o40000
SEMBUF_SIZE = 6
MSQID_SIZE = 120


# Semaphores


@syscall("semget")
def semget(task: Task, key: int, count: int, flags: int) -> int:
    """semget(2)."""
    key, count, flags = s32(key), s32(count), u32(flags)
    if not 0 <= count <= sem.SEMMSL:
        raise SysError(EINVAL)
    table = sem.sets(task.group.ns.ipc)

    def make() -> sem.SemSet:
        if not count:
            raise SysError(EINVAL)
        return table.make(task, key, flags, count)

    def fits(known: sem.SemSet) -> None:
        if count > len(known.values):
            raise SysError(EINVAL)

    return table.get(task, key, flags, make, fits).id


@syscall("semop")
def semop(task: Task, number: int, operations: int, count: int) -> int:
    """semop(2)."""
    return _semop(task, s32(number), operations, u32(count), 0)


@syscall("semtimedop")
def semtimedop(task: Task, number: int, operations: int, count: int, timeout: int) -> int:
    """semtimedop(2): EAGAIN when the time is over."""
    return _semop(task, s32(number), operations, u32(count), timeout)


def _semop(task: Task, number: int, address: int, count: int, timeout: int) -> int:
    if count < 1 or number < 0:
        raise SysError(EINVAL)
    if count > sem.SEMOPM:
        raise SysError(E2BIG)
    data = task.mem.read(address, count * SEMBUF_SIZE)
    operations = list(struct.iter_unpack("<Hhh", data))
    span = task.mem.timespec(timeout) if timeout else None
    known: sem.SemSet | None = task.blocked.get("sem")
    if known is None:
        known = sem.sets(task.group.ns.ipc).find(number)
        known.check(task, WRITE if any(change for _, change, _ in operations) else READ)
    else:
        known.alive()
    waits = known.operate(task, operations)
    if waits is None:
        known.waiting.pop(task, None)
        return 0
    if task.timed_out:
        known.waiting.pop(task, None)
        raise SysError(EAGAIN)
    deadline = deadline_after(task, span)
    task.blocked["deadline"] = deadline
    task.blocked["sem"] = known
    known.waiting[task] = waits
    raise Block(known.queue, deadline=deadline, restart=Restart.NOHAND)


@syscall("semctl")
def semctl(task: Task, number: int, which: int, command: int, argument: int) -> int:
    """semctl(2)."""
    number, which, command = s32(number), s32(which), s32(command)
    table = sem.sets(task.group.ns.ipc)
    if number < 0:
        raise SysError(EINVAL)
    if command in (IPC_INFO, SEM_INFO):
        used = table.total if command == SEM_INFO else sem.SEMVMX
        total = len(table.by_index) if command == SEM_INFO else 20
        info = struct.pack(
            "<10i", sem.SEMMNS, sem.SEMMNI, sem.SEMMNS, sem.SEMMNS, sem.SEMMSL, sem.SEMOPM, sem.SEMOPM, total,
            sem.SEMVMX, used,
        )  # fmt: skip
        task.mem.write(argument, info)
        return table.highest()
    if command in (SEM_STAT, SEM_STAT_ANY):
        known = table.at(number)
        if command == SEM_STAT:
            known.check(task, READ)
        task.mem.write(argument, known.pack())
        return known.id
    if command not in (IPC_STAT, IPC_RMID, IPC_SET, *range(GETPID, SETALL + 1)):
        raise SysError(EINVAL)
    known = table.find(number)
    if command == IPC_STAT:
        known.check(task, READ)
        task.mem.write(argument, known.pack())
    elif command == IPC_RMID:
        known.own(task)
        table.remove(known)
    elif command == IPC_SET:
        known.set_perm(task, task.mem.read(argument, sysv.PERM_SIZE))
    else:
        return _values(task, known, which, command, argument)
    return 0


def _values(task: Task, known: sem.SemSet, which: int, command: int, argument: int) -> int:
    """What semctl(2) does with the semaphores of a set."""
    count = len(known.values)
    if command == GETALL:
        known.check(task, READ)
        task.mem.write(argument, struct.pack(f"<{count}H", *known.values))
        return 0
    if command == SETALL:
        known.check(task, WRITE)
        values = struct.unpack(f"<{count}H", task.mem.read(argument, 2 * count))
        known.set(task, list(range(count)), list(values))
        return 0
    known.check(task, WRITE if command == SETVAL else READ)
    if command == SETVAL and not 0 <= s32(argument) <= sem.SEMVMX:
        raise SysError(ERANGE)
    if not 0 <= which < count:
        raise SysError(EINVAL)
    if command == SETVAL:
        known.set(task, [which], [s32(argument)])
        return 0
    if command == GETVAL:
        return known.values[which]
    if command == GETPID:
        return known.pids[which]
    return known.count(which, zero=command == GETZCNT)


# Messages


@syscall("msgget")
def msgget(task: Task, key: int, flags: int) -> int:
    """msgget(2)."""
    key, flags = s32(key), u32(flags)
    return msg.queues(task.group.ns.ipc).get(
        task, key, flags, lambda: msg.MsgQueue(task, key, flags), lambda known: None
    ).id


def _queue(task: Task, number: int, access: int) -> msg.MsgQueue:
    """The queue, also when the call has waited for it and it is gone: EIDRM."""
    known: msg.MsgQueue | None = task.blocked.get("msg")
    if known is None:
        known = msg.queues(task.group.ns.ipc).find(number)
        known.check(task, access)
    known.alive()
    return known


@syscall("msgsnd")
def msgsnd(task: Task, number: int, message: int, size: int, flags: int) -> int:
    """msgsnd(2)."""
    size = s64(size)
    if not 0 <= size <= msg.MSGMAX or s32(number) < 0:
        raise SysError(EINVAL)
    kind = s64(task.mem.u64(message))
    if kind < 1:
        raise SysError(EINVAL)
    text = task.mem.read(message + 8, size)
    known = _queue(task, s32(number), WRITE)
    if known.fits(size):
        known.send(task, kind, text)
        return 0
    if u32(flags) & IPC_NOWAIT:
        raise SysError(EAGAIN)
    task.blocked["msg"] = known
    raise Block(known.space, restart=Restart.NOHAND)


@syscall("msgrcv")
def msgrcv(task: Task, number: int, message: int, size: int, kind: int, flags: int) -> int:
    """msgrcv(2), with MSG_NOERROR, MSG_EXCEPT, MSG_COPY."""
    size, kind, flags = s64(size), s64(kind), u32(flags)
    if size < 0 or s32(number) < 0:
        raise SysError(EINVAL)
    if flags & MSG_COPY and (flags & MSG_EXCEPT or not flags & IPC_NOWAIT):
        raise SysError(EINVAL)
    known = _queue(task, s32(number), READ)
    if flags & MSG_COPY:
        at = kind if 0 <= kind < len(known.messages) else -1
    else:
        at = known.search(kind, bool(flags & MSG_EXCEPT))
    if at < 0:
        if flags & IPC_NOWAIT:
            raise SysError(ENOMSG)
        task.blocked["msg"] = known
        raise Block(known.arrivals, restart=Restart.NOHAND)
    if len(known.messages[at][1]) > size and not flags & MSG_NOERROR:
        raise SysError(E2BIG)
    found, text = known.messages[at] if flags & MSG_COPY else known.take(task, at)
    text = text[:size]
    task.mem.write(message, struct.pack("<q", found) + text)
    return len(text)


@syscall("msgctl")
def msgctl(task: Task, number: int, command: int, buffer: int) -> int:
    """msgctl(2)."""
    number, command = s32(number), s32(command)
    table = msg.queues(task.group.ns.ipc)
    if number < 0 or command < 0:
        raise SysError(EINVAL)
    if command in (IPC_INFO, MSG_INFO):
        pool, tail, segments = 0, 0, 0
        if command == MSG_INFO:
            pool = len(table.by_index)
            segments = sum(len(known.messages) for known in table.by_index.values())
            tail = sum(known.size for known in table.by_index.values())
        info = struct.pack(
            "<7iH2x", pool, segments, msg.MSGMAX, msg.MSGMNB, msg.MSGMNI, 16, tail, 0xFFFF,
        )  # fmt: skip
        task.mem.write(buffer, info)
        return table.highest()
    if command in (MSG_STAT, MSG_STAT_ANY, IPC_STAT):
        known = table.find(number) if command == IPC_STAT else table.at(number)
        if command != MSG_STAT_ANY:
            known.check(task, READ)
        task.mem.write(buffer, known.pack())
        return 0 if command == IPC_STAT else known.id
    if command == IPC_SET:
        data = task.mem.read(buffer, MSQID_SIZE)
        table.find(number).configure(task, data)
    elif command == IPC_RMID:
        known = table.find(number)
        known.own(task)
        table.remove(known)
    else:
        raise SysError(EINVAL)
    return 0

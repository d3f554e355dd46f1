"""System calls for futexes."""

from __future__ import annotations

from collections.abc import Callable
from errno import EAGAIN, EDEADLK, EFAULT, EINVAL, ENOSYS, EPERM, ESRCH, ETIMEDOUT

from casemate.sentry.abi import s32, u32
from casemate.sentry.creds import CAP_SYS_PTRACE
from casemate.sentry.errno import SysError
from casemate.sentry.mm.futex import (
    FUTEX_BITSET_MATCH_ANY,
    FUTEX_OWNER_DIED,
    FUTEX_TID_MASK,
    FUTEX_WAITERS,
    TABLE,
    Key,
    Standstill,
    Waiter,
    hand_over,
    pi_waiters,
)
from casemate.sentry.mm.memory import TASK_SIZE
from casemate.sentry.syscalls.prctl import DEFAULT_TIMERSLACK, PR_SET_TIMERSLACK
from casemate.sentry.syscalls.table import Support, syscall
from casemate.sentry.tasks.task import Task
from casemate.sentry.wait import Block, Restart

FUTEX_WAIT, FUTEX_WAKE, FUTEX_REQUEUE, FUTEX_CMP_REQUEUE, FUTEX_WAKE_OP = 0, 1, 3, 4, 5
FUTEX_LOCK_PI, FUTEX_UNLOCK_PI, FUTEX_TRYLOCK_PI = 6, 7, 8
FUTEX_WAIT_BITSET, FUTEX_WAKE_BITSET, FUTEX_WAIT_REQUEUE_PI, FUTEX_CMP_REQUEUE_PI, FUTEX_LOCK_PI2 = 9, 10, 11, 12, 13
FUTEX_PRIVATE_FLAG, FUTEX_CLOCK_REALTIME, FUTEX_CMD_MASK = 128, 256, ~384
FUTEX2_SIZE_U32, FUTEX2_PRIVATE = 0x2, FUTEX_PRIVATE_FLAG
FUTEX_WAITV_MAX = 128
CLOCK_REALTIME, CLOCK_MONOTONIC = 0, 1


def _key(task: Task, address: int, private: bool) -> Key:
    if address & 3:
        raise SysError(EINVAL)
    if address >= TASK_SIZE:
        raise SysError(EFAULT)
    return (task.mm, address) if private else task.mm.identity(address)


def _absolute(task: Task, nanoseconds: int, realtime: bool) -> int:
    """An absolute time as one of the kernel's own clock."""
    if realtime:
        clock = task.kernel.clock
        return clock.monotonic() + nanoseconds - clock.realtime()
    return nanoseconds


@syscall("futex", Support.PARTIAL, "locks with priority inheritance are handed over, but nobody inherits a priority")
def futex(task: Task, address: int, op: int, value: int, timeout: int, address2: int, value3: int) -> int:
    """futex(2)."""
    op = u32(op)
    command = op & FUTEX_CMD_MASK
    private = bool(op & FUTEX_PRIVATE_FLAG)
    value = u32(value)
    if command == FUTEX_WAKE:
        if op & FUTEX_CLOCK_REALTIME:
            raise SysError(ENOSYS)
        # Linux wakes one where none was asked for.
        return TABLE.wake(_key(task, address, private), max(1, s32(value)))
    if command in (FUTEX_WAIT, FUTEX_WAIT_BITSET):
        waiting = task.blocked.get("futex")
        if waiting is not None:
            return _again(task, waiting)
        bitset = FUTEX_BITSET_MATCH_ANY
        if command == FUTEX_WAIT:
            if op & FUTEX_CLOCK_REALTIME:
                raise SysError(ENOSYS)
            deadline = task.mem.timespec(timeout) + task.kernel.clock.monotonic() if timeout else None
        else:
            bitset = u32(value3)
            if not bitset:
                raise SysError(EINVAL)
            deadline = None
            if timeout:
                deadline = _absolute(task, task.mem.timespec(timeout), bool(op & FUTEX_CLOCK_REALTIME))
        key = _key(task, address, private)
        if task.mem.u32(address) != value:
            raise SysError(EAGAIN)
        return _wait(task, Waiter(task, address, key, bitset), deadline)
    handler = _OTHERS.get(command)
    if handler is None or (op & FUTEX_CLOCK_REALTIME and command not in (FUTEX_WAIT_REQUEUE_PI, FUTEX_LOCK_PI2)):
        raise SysError(ENOSYS)
    return handler(task, op, private, address, value, timeout, address2, u32(value3))


def _wait(task: Task, waiter: Waiter, deadline: int | None, restart: Restart = Restart.SYS) -> int:
    """Park the task: never returns.

    The host's timers are as late as PR_SET_TIMERSLACK(2const) allows; so is this one, and with it somebody has the
    chance to wake who waits for a few microseconds only.
    """
    waiters = [waiter]
    TABLE.add(task, waiters)
    if deadline is not None:
        deadline += task.prctl.get(PR_SET_TIMERSLACK, DEFAULT_TIMERSLACK)
    task.blocked["futex"] = waiters
    task.blocked["deadline"] = deadline
    if deadline is not None and restart is Restart.SYS:
        restart = Restart.NOHAND
    task.blocked["restart"] = restart
    raise Block(waiter.queue, deadline=deadline, restart=restart)


def _again(task: Task, waiters: list[Waiter]) -> int:
    """The call is made again: it was woken, its time is up, or something else happened that is not its concern."""
    for waiter in waiters:
        if waiter.woken:
            TABLE.forget(task)
            return waiter.index
    if task.timed_out:
        TABLE.forget(task)
        raise SysError(ETIMEDOUT)
    queues = [waiter.queue for waiter in waiters]
    raise Block(*queues, deadline=task.blocked["deadline"], restart=task.blocked["restart"])


def _wake_bitset(task: Task, op: int, private: bool, address: int, value: int, _t: int, _a: int, bitset: int) -> int:
    if not bitset:
        raise SysError(EINVAL)
    return TABLE.wake(_key(task, address, private), max(1, s32(value)), bitset)


def _requeue(task: Task, op: int, private: bool, address: int, value: int, count: int, address2: int, seen: int) -> int:
    """FUTEX_REQUEUE and FUTEX_CMP_REQUEUE: how many were woken or moved."""
    wakes, moves = s32(value), s32(count)
    if wakes < 0 or moves < 0:
        raise SysError(EINVAL)
    key, key2 = _key(task, address, private), _key(task, address2, private)
    if op & 127 == FUTEX_CMP_REQUEUE and task.mem.u32(address) != seen:
        raise SysError(EAGAIN)
    done = 0
    for waiter in TABLE.live(key):
        if waiter.pi or waiter.target is not None:
            raise SysError(EINVAL)
        if done < wakes:
            TABLE.release(waiter)
        elif done - wakes < moves:
            if key2 != key:
                TABLE.move(waiter, address2, key2)
        else:
            break
        done += 1
    return done


_OPERATIONS: tuple[Callable[[int, int], int], ...] = (
    lambda old, argument: argument,
    lambda old, argument: old + argument,
    lambda old, argument: old | argument,
    lambda old, argument: old & ~argument,
    lambda old, argument: old ^ argument,
)
_COMPARISONS: tuple[Callable[[int, int], bool], ...] = (
    lambda old, argument: old == argument,
    lambda old, argument: old != argument,
    lambda old, argument: old < argument,
    lambda old, argument: old <= argument,
    lambda old, argument: old > argument,
    lambda old, argument: old >= argument,
)


def _wake_op(task: Task, op: int, private: bool, address: int, value: int, count: int, address2: int, code: int) -> int:
    key, key2 = _key(task, address, private), _key(task, address2, private)
    operation, comparison = code >> 28, code >> 24 & 15
    argument = (code >> 12 & 0xFFF ^ 0x800) - 0x800
    against = (code & 0xFFF ^ 0x800) - 0x800
    if operation & 8:
        argument = 1 << (argument & 31)
        operation &= 7
    if operation >= len(_OPERATIONS) or comparison >= len(_COMPARISONS):
        raise SysError(ENOSYS)
    with Standstill(task, key2):
        old = task.mem.s32(address2)
        task.mem.put_u32(address2, _OPERATIONS[operation](old, argument))
    done = TABLE.wake(key, max(1, s32(value)))
    if _COMPARISONS[comparison](old, against):
        done += TABLE.wake(key2, max(1, s32(count)))
    return done


def _take(task: Task, address: int, key: Key, tid: int) -> bool:
    """Try to take a lock with priority inheritance for a task; where somebody else has it, mark that one waits.

    Raises:
        SysError: EDEADLK when it has it already; ESRCH when its owner is nobody; EINVAL when the owner has it as an
            ordinary lock that others wait for.
    """
    mem = task.mem
    with Standstill(task, key):
        word = mem.u32(address)
        owner = word & FUTEX_TID_MASK
        if owner == tid:
            raise SysError(EDEADLK)
        waiters = TABLE.live(key)
        if any(not waiter.pi for waiter in waiters):
            raise SysError(EINVAL)
        if not owner:
            mem.put_u32(address, tid | word & FUTEX_OWNER_DIED | (FUTEX_WAITERS if waiters else 0))
            return True
        if task.group.ns.pid.task(owner) is None:
            raise SysError(ESRCH)
        if not word & FUTEX_WAITERS:
            mem.put_u32(address, word | FUTEX_WAITERS)
        return False


def _lock_pi(task: Task, op: int, private: bool, address: int, value: int, timeout: int, _a: int, _v: int) -> int:
    waiting = task.blocked.get("futex")
    if waiting is not None:
        return _again(task, waiting)
    deadline = None
    if timeout and op & 127 != FUTEX_TRYLOCK_PI:
        realtime = op & 127 == FUTEX_LOCK_PI or bool(op & FUTEX_CLOCK_REALTIME)
        deadline = _absolute(task, task.mem.timespec(timeout), realtime)
    key = _key(task, address, private)
    if op & 127 == FUTEX_TRYLOCK_PI:
        # It may free the lock of an owner that died; nothing else is tried.
        with Standstill(task, key):
            word = task.mem.u32(address)
            if word & FUTEX_TID_MASK == task.tid:
                raise SysError(EDEADLK)
            if word & FUTEX_TID_MASK:
                raise SysError(EAGAIN)
        _take(task, address, key, task.tid)
        return 0
    if _take(task, address, key, task.tid):
        return 0
    return _wait(task, Waiter(task, address, key, pi=True), deadline, Restart.NOINTR)


def _unlock_pi(task: Task, op: int, private: bool, address: int, value: int, _t: int, _a: int, _v: int) -> int:
    key = _key(task, address, private)
    with Standstill(task, key):
        if task.mem.u32(address) & FUTEX_TID_MASK != task.tid:
            raise SysError(EPERM)
        waiters = pi_waiters(key)
        if waiters:
            hand_over(waiters)
        else:
            task.mem.put_u32(address, 0)
    return 0


def _wait_requeue_pi(
    task: Task, op: int, private: bool, address: int, value: int, timeout: int, address2: int, bitset: int
) -> int:
    waiting = task.blocked.get("futex")
    if waiting is not None:
        return _again(task, waiting)
    deadline = None
    if timeout:
        deadline = _absolute(task, task.mem.timespec(timeout), bool(op & FUTEX_CLOCK_REALTIME))
    key, key2 = _key(task, address, private), _key(task, address2, private)
    if key == key2:
        raise SysError(EINVAL)
    if task.mem.u32(address) != value:
        raise SysError(EAGAIN)
    return _wait(task, Waiter(task, address, key, target=(address2, key2)), deadline, Restart.NOINTR)


def _cmp_requeue_pi(
    task: Task, op: int, private: bool, address: int, value: int, count: int, address2: int, seen: int
) -> int:
    if value != 1 or s32(count) < 0:
        raise SysError(EINVAL)
    key, key2 = _key(task, address, private), _key(task, address2, private)
    if key == key2:
        raise SysError(EINVAL)
    if task.mem.u32(address) != seen:
        raise SysError(EAGAIN)
    waiters = TABLE.live(key)
    if any(waiter.target is None or waiter.target[1] != key2 for waiter in waiters):
        raise SysError(EINVAL)
    done = 0
    for waiter in waiters[: s32(count) + 1]:
        if _take(task, address2, key2, waiter.task.tid):
            TABLE.release(waiter)
        else:
            assert waiter.target is not None
            TABLE.move(waiter, waiter.target[0], key2, pi=True)
        done += 1
    return done


_OTHERS: dict[int, Callable[..., int]] = {
    FUTEX_REQUEUE: _requeue,
    FUTEX_CMP_REQUEUE: _requeue,
    FUTEX_WAKE_OP: _wake_op,
    FUTEX_LOCK_PI: _lock_pi,
    FUTEX_LOCK_PI2: _lock_pi,
    FUTEX_TRYLOCK_PI: _lock_pi,
    FUTEX_UNLOCK_PI: _unlock_pi,
    FUTEX_WAKE_BITSET: _wake_bitset,
    FUTEX_WAIT_REQUEUE_PI: _wait_requeue_pi,
    FUTEX_CMP_REQUEUE_PI: _cmp_requeue_pi,
}


@syscall("futex_waitv")
def futex_waitv(task: Task, vector: int, count: int, flags: int, timeout: int, clock: int) -> int:
    """futex_waitv(2): the index of a word that was woken; ``timeout`` is absolute."""
    waiting = task.blocked.get("futex")
    if waiting is not None:
        return _again(task, waiting)
    count = u32(count)
    if u32(flags) or not 0 < count <= FUTEX_WAITV_MAX or not vector:
        raise SysError(EINVAL)
    deadline = None
    if timeout:
        if s32(clock) not in (CLOCK_REALTIME, CLOCK_MONOTONIC):
            raise SysError(EINVAL)
        deadline = _absolute(task, task.mem.timespec(timeout), s32(clock) == CLOCK_REALTIME)
    data = task.mem.read(vector, 24 * count)
    waiters = []
    values = []
    for index in range(count):
        entry = data[24 * index : 24 * index + 24]
        how, reserved = int.from_bytes(entry[16:20], "little"), int.from_bytes(entry[20:24], "little")
        if how & ~(FUTEX2_PRIVATE | 3) or reserved or how & 3 != FUTEX2_SIZE_U32:
            raise SysError(EINVAL)
        address = int.from_bytes(entry[8:16], "little")
        values.append(int.from_bytes(entry[0:8], "little") & 0xFFFF_FFFF)
        key = _key(task, address, bool(how & FUTEX2_PRIVATE))
        waiters.append(Waiter(task, address, key, index=index))
    for waiter, value in zip(waiters, values, strict=True):
        if task.mem.u32(waiter.address) != value:
            raise SysError(EAGAIN)
    TABLE.add(task, waiters)
    restart = Restart.SYS if deadline is None else Restart.NOHAND
    task.blocked.update(futex=waiters, deadline=deadline, restart=restart)
    raise Block(*[waiter.queue for waiter in waiters], deadline=deadline, restart=restart)


@syscall("set_robust_list")
def set_robust_list(task: Task, head: int, size: int) -> int:
    """set_robust_list(2)."""
    if size != 24:
        raise SysError(EINVAL)
    task.robust_list = head
    task.robust_size = size
    return 0


@syscall("get_robust_list")
def get_robust_list(task: Task, tid: int, head: int, size: int) -> int:
    """get_robust_list(2)."""
    tid = s32(tid)
    other = task if tid == 0 else task.group.ns.pid.task(tid)
    if other is None:
        raise SysError(ESRCH)
    mine, theirs = task.creds, other.creds
    if (
        other.group is not task.group
        and (mine.uid, mine.gid) != (theirs.uid, theirs.gid)
        and not mine.capable(CAP_SYS_PTRACE)
    ):
        raise SysError(EPERM)
    task.mem.put_u64(size, 24)
    task.mem.put_u64(head, other.robust_list)
    return 0

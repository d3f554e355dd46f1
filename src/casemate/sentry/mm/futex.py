"""Futexes: waiting for a word of memory to change, futex(2), futex(7).

Waiters stand in one queue for each word, known by :meth:`AddressSpace.identity`. A waiter belongs to a task that is
parked in a futex call, and is kept in ``task.blocked["futex"]``; it is *stale* once that call has ended otherwise (by a
signal). Stale ones are dropped where they are met, and when their task waits again or ends.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.tasks.task import State
from casemate.sentry.wait import WaitQueue

if TYPE_CHECKING:
    from casemate.sentry.mm.space import AddressSpace
    from casemate.sentry.tasks.task import Task

FUTEX_BITSET_MATCH_ANY = 0xFFFF_FFFF
FUTEX_WAITERS, FUTEX_OWNER_DIED, FUTEX_TID_MASK = 0x8000_0000, 0x4000_0000, 0x3FFF_FFFF
ROBUST_LIST_LIMIT = 2048

Key = tuple[object, int]


class Waiter:
    """A task that waits for one word.

    Arguments:
        address: of the word, in the task's memory.
        key: of the word.
        bitset: which wake-ups it listens to.
        index: which of the words of futex_waitv(2) it is.
        pi: it waits for a lock with priority inheritance, which it is given; wake-ups are not for it.
        target: the lock with priority inheritance (address and key) that it is to be moved to.
    """

    __slots__ = ("address", "bitset", "index", "key", "pi", "queue", "target", "task", "woken")

    def __init__(
        self,
        task: Task,
        address: int,
        key: Key,
        bitset: int = FUTEX_BITSET_MATCH_ANY,
        index: int = 0,
        pi: bool = False,
        target: tuple[int, Key] | None = None,
    ) -> None:
        self.task = task
        self.address = address
        self.key = key
        self.bitset = bitset
        self.index = index
        self.pi = pi
        self.target = target
        self.queue = WaitQueue()
        """What the task is parked at."""
        self.woken = False


class Futexes:
    """Waiters and their queues."""

    __slots__ = ("_of_task", "_queues")

    def __init__(self) -> None:
        # Dictionaries keep their order, and give up a waiter from anywhere in it at once.
        self._queues: dict[Key, dict[Waiter, None]] = {}
        self._of_task: dict[Task, list[Waiter]] = {}

    def add(self, task: Task, waiters: list[Waiter]) -> None:
        """Queue all that a task waits for now; the list is to be kept in ``task.blocked["futex"]``."""
        if task in self._of_task:
            self.forget(task)
        self._of_task[task] = waiters
        for waiter in waiters:
            queue = self._queues.get(waiter.key)
            if queue is None:
                queue = self._queues[waiter.key] = {}
            queue[waiter] = None

    def _unqueue(self, waiter: Waiter) -> None:
        queue = self._queues.get(waiter.key)
        if queue is not None:
            queue.pop(waiter, None)
            if not queue:
                del self._queues[waiter.key]

    def forget(self, task: Task) -> None:
        """Drop all of the task's waiters: its call ends, or it does."""
        waiters = self._of_task.pop(task, None)
        if waiters is not None:
            for waiter in waiters:
                self._unqueue(waiter)

    def live(self, key: Key) -> list[Waiter]:
        """Those who wait for this word, in the order they came."""
        queue = self._queues.get(key)
        if not queue:
            return []
        waiters = []
        for waiter in tuple(queue):
            task = waiter.task
            mine = self._of_task.get(task)
            if mine is not None and task.blocked.get("futex") is mine:
                waiters.append(waiter)
            else:
                self.forget(task)
        return waiters

    def wake(self, key: Key, count: int, bitset: int = FUTEX_BITSET_MATCH_ANY) -> int:
        """Wake at most ``count`` who listen to one of the bits; returns how many."""
        done = 0
        if key in self._queues and count > 0:
            for waiter in self.live(key):
                if waiter.bitset & bitset and not waiter.pi:
                    self.release(waiter)
                    done += 1
                    if done == count:
                        break
        return done

    def release(self, waiter: Waiter) -> None:
        """Let its task go on. It is in no queue any more: who was woken takes no second wake-up."""
        self._unqueue(waiter)
        waiter.woken = True
        waiter.queue.notify()

    def move(self, waiter: Waiter, address: int, key: Key, pi: bool = False) -> None:
        """Let it wait for another word, last there."""
        self._unqueue(waiter)
        waiter.address = address
        waiter.key = key
        waiter.pi = pi
        self._queues.setdefault(key, {})[waiter] = None

    def locks_of(self, task: Task) -> list[Waiter]:
        """The first waiter of each lock with priority inheritance whose word names this task."""
        found = []
        for key in list(self._queues):
            first = next((waiter for waiter in self._queues[key] if waiter.pi), None)
            if first is None:
                continue
            try:
                if first.task.mm.u32(first.address) & FUTEX_TID_MASK == task.tid:
                    found.append(first)
            except SysError:
                continue
        return found

    def __len__(self) -> int:
        return len(self._of_task)


TABLE = Futexes()
"""A sentry serves one sandbox, so there is one."""


def private(mm: AddressSpace, address: int) -> Key:
    """What a word is known by that only the threads of one process use, ``FUTEX_PRIVATE_FLAG``."""
    return mm, address


def wake(mm: AddressSpace, address: int, count: int, bitset: int = FUTEX_BITSET_MATCH_ANY) -> int:
    """Wake at most ``count`` tasks that wait for the word at ``address``; returns how many. Never fails."""
    try:
        key = mm.identity(address)
    except SysError:
        return 0
    return TABLE.wake(key, count, bitset)


class Standstill:
    """While this lasts no other task changes the word: for what must be one step, as the processor's
    compare-and-exchange is. Locks with priority inheritance and FUTEX_WAKE_OP are rare enough to cost what it costs.

    Arguments:
        task: the one that makes the call, and stands still anyhow.
        key: of the word.
    """

    __slots__ = ("_stopped",)

    def __init__(self, task: Task, key: Key) -> None:
        self._stopped: list[Task] = []
        alone = key[0] is task.mm
        for other in tuple(task.kernel.tasks.values()):
            if other is task or other.state is not State.RUNNING or other.number != -1:
                continue
            thread = other.thread
            if thread is not None and (other.mm is task.mm or not alone) and thread.interrupt():
                self._stopped.append(other)

    def __enter__(self) -> Standstill:
        return self

    def __exit__(self, *_: object) -> None:
        for other in self._stopped:
            if other.thread is not None:
                other.thread.resume()


# Locks with priority inheritance. Nobody's priority changes here: all that is left of it is that the kernel hands the
# lock over, FUTEX_LOCK_PI in futex(2).


def hand_over(waiters: list[Waiter], died: int = 0) -> None:
    """Give a lock to the first of those who wait for it; ``died`` is ``FUTEX_OWNER_DIED`` where its owner did."""
    first = waiters[0]
    more = FUTEX_WAITERS if len(waiters) > 1 else 0
    first.task.mm.put_u32(first.address, first.task.tid | more | died)
    TABLE.release(first)


def pi_waiters(key: Key) -> list[Waiter]:
    """Who waits for such a lock."""
    return [waiter for waiter in TABLE.live(key) if waiter.pi]


# The end of a task.


def exit_robust(task: Task) -> None:
    """A task ends or loses its memory: mark the locks that it holds and wake one waiter of each, get_robust_list(2)."""
    TABLE.forget(task)
    head, task.robust_list = task.robust_list, 0
    if head:
        # A list that leads nowhere ends there, as in Linux.
        with suppress(SysError):
            _walk(task, head)
    if len(TABLE):
        for waiter in TABLE.locks_of(task):
            try:
                hand_over(pi_waiters(waiter.key), FUTEX_OWNER_DIED)
            except (SysError, IndexError):
                continue


def _walk(task: Task, head: int) -> None:
    mem = task.mem
    entry = mem.u64(head)
    offset = mem.u64(head + 8)
    pending = mem.u64(head + 16)
    if offset >> 63:
        offset -= 1 << 64
    for _ in range(ROBUST_LIST_LIMIT):
        if entry & ~1 == head:
            break
        # The next one first: who is woken may free this one.
        following = mem.u64(entry & ~1)
        if entry & ~1 != pending & ~1:
            _owner_died(task, (entry & ~1) + offset, bool(entry & 1), False)
        entry = following
    if pending & ~1:
        _owner_died(task, (pending & ~1) + offset, bool(pending & 1), True)


def _owner_died(task: Task, address: int, pi: bool, pending: bool) -> None:
    """What becomes of one robust lock whose owner ends."""
    if address % 4 or address < 0:
        return
    mm = task.mm
    key = mm.identity(address)
    with Standstill(task, key):
        value = mm.u32(address)
        if pending and not pi and not value:
            # It may have unlocked the word and not got to waking anybody.
            TABLE.wake(key, 1)
            return
        if value & FUTEX_TID_MASK != task.tid:
            return
        waiters = pi_waiters(key) if pi else []
        if waiters:
            hand_over(waiters, FUTEX_OWNER_DIED)
            return
        mm.put_u32(address, value & FUTEX_WAITERS | FUTEX_OWNER_DIED)
    if value & FUTEX_WAITERS and not pi:
        TABLE.wake(key, 1)

"""Taking turns at booting: a machine that boots keeps a processor busy, and twenty at once on two would all be late.

There are as many slots as processors, files below the run directory that are held with flock(2), so that they are free
again whatever ends their holder. Who finds none free queues at two of them, and has the one that comes first: with one
queue only, a slot would often stay empty while others still wait at its neighbour.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable

from casemate.config import Config
from casemate.errors import HostError

LEAST = 2


def slots(config: Config) -> int:
    """How many machines may boot at the same time: the configured number, or one for each processor."""
    return config.parallel_boots or max(LEAST, len(os.sched_getaffinity(0)))


class Turn:
    """A turn at booting; :meth:`end` gives it back, and so does the end of the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def end(self) -> None:
        """Let the next one boot. May be called more than once, and by several threads."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def take(config: Config, identifier: str, waiting: Callable[[], None], gone: threading.Event) -> Turn:
    """Wait for a turn.

    Arguments:
        identifier: the sandbox's id; spreads those who queue over the slots.
        waiting: called once when there is none at once.
        gone: set by whoever does not want the turn any more.

    Raises:
        HostError: ``gone`` was set first, or the slots cannot be made.
    """
    directory = config.run / "boots"
    count = slots(config)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        start = int(identifier[:8], 16) % count
        for offset in range(count):
            turn = _try(str(directory / f"slot-{(start + offset) % count}"), fcntl.LOCK_EX | fcntl.LOCK_NB)
            if turn is not None:
                return turn
    except OSError as error:
        raise HostError(f"cannot use {directory}: {error.strerror}", "run as root, or free some space") from None
    waiting()
    queues = {start, (start + 1) % count}
    got: list[Turn] = []
    lost: list[int] = []
    one = threading.Lock()
    decided = threading.Event()

    def queue(slot: int) -> None:
        turn = None
        with contextlib.suppress(OSError):  # no descriptors, perhaps
            turn = _try(str(directory / f"slot-{slot}"), fcntl.LOCK_EX)
        with one:
            if turn is None:
                lost.append(slot)
            elif not got and not gone.is_set():
                got.append(turn)
                turn = None
            if got or len(lost) == len(queues):
                decided.set()
        if turn is not None:  # there is one already, or nobody waits any more: it is the next one's
            turn.end()

    def give_up() -> None:
        gone.wait()
        decided.set()

    for slot in queues:
        threading.Thread(target=queue, args=(slot,), name="boot-turn", daemon=True).start()
    threading.Thread(target=give_up, name="boot-turn", daemon=True).start()
    decided.wait()
    with one:
        if got and not gone.is_set():
            return got[0]
        for turn in got:
            turn.end()
    if not gone.is_set():
        raise HostError(f"cannot use {directory}", "see 'ulimit -n', or whether other processes are out of control")
    raise HostError("ended while it waited for its turn to boot")


def busy(config: Config) -> bool:
    """Whether a machine boots, or waits for its turn."""
    for path in (config.run / "boots").glob("slot-*"):
        turn = _try(str(path), fcntl.LOCK_SH | fcntl.LOCK_NB)
        if turn is None:
            return True
        turn.end()
    return False


def _try(path: str, operation: int) -> Turn | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return Turn(descriptor)

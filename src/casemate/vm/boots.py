"""Taking turns at booting: a machine that boots keeps a processor busy, and twenty at once on two would all be late.

There are as many slots as processors, files below the run directory that are held with flock(2), so that they are free
again whatever ends their holder. Who finds none free queues at one of them.
"""

from __future__ import annotations

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
    got: list[Turn] = []
    decided = threading.Event()

    def queue() -> None:
        turn = _try(str(directory / f"slot-{start}"), fcntl.LOCK_EX)
        if turn is not None:
            got.append(turn)
            if gone.is_set():  # nobody waits for it any more: it is the next one's
                turn.end()
        decided.set()

    def give_up() -> None:
        gone.wait()
        decided.set()

    for target in (queue, give_up):
        threading.Thread(target=target, name="boot-turn", daemon=True).start()
    decided.wait()
    if gone.is_set() or not got:
        for turn in got:
            turn.end()
        raise HostError("ended while it waited for its turn to boot")
    return got[0]


def _try(path: str, operation: int) -> Turn | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return Turn(descriptor)

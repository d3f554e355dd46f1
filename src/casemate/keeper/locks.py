"""Locks that tell who is alive: flock(2) on a file, held by a keeper for its life and freed by its end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def hold(path: Path, timeout: float = 0.0) -> Iterator[bool]:
    """Hold the lock of the file ``path`` for a while; gives whether it does, which is not so when there is no file.

    Arguments:
        timeout: how many seconds to wait for who has it.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = True
    except BlockingIOError:
        locked = timeout > 0 and _wait(descriptor, timeout)
    try:
        yield locked
    finally:
        if locked or timeout <= 0:
            os.close(descriptor)


def _wait(descriptor: int, timeout: float) -> bool:
    """Wait for a flock(2), which itself knows no time limit; the descriptor is closed when the time is up."""
    guard = threading.Lock()
    got, given_up = threading.Event(), threading.Event()

    def wait() -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with guard:
            got.set()
            if given_up.is_set():
                os.close(descriptor)

    threading.Thread(target=wait, name="lock", daemon=True).start()
    if got.wait(timeout):
        return True
    with guard:
        if got.is_set():
            return True
        given_up.set()
        return False

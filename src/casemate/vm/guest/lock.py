"""One builder at a time in a directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(directory: Path, waiting: Callable[[], None] | None = None, mode: int = 0o755) -> Iterator[None]:
    """Hold the directory's lock; the kernel frees it when the process dies.

    Arguments:
        directory: is made when it does not exist.
        waiting: called once when another process has the lock, before waiting for it; an error of its own is raised.
        mode: permission bits of a directory that is made.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=mode)
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

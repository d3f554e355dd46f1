"""Runs inside a container: reads and writes files and prints what it managed as one JSON object.

``python3 - DIRECTORY MEGABYTES SECONDS < io_program.py``. Standard library only; it must run in any image with Python.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable

BLOCK = 1 << 20
PAGE = 4096


def main(directory: str, megabytes: int, seconds: float) -> dict[str, float]:
    """Measure in a directory.

    Arguments:
        directory: where to make the file; it is removed at the end.
        megabytes: the file's size.
        seconds: how long each of the two random measurements goes on.

    Returns:
        Megabytes a second for ``write`` and ``read``, operations a second for ``random_read`` and ``random_write``.
    """
    path = os.path.join(directory, "casemate-benchmark")
    data = os.urandom(BLOCK)
    size = megabytes * BLOCK
    result = {}
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        begun = time.monotonic()
        for _ in range(megabytes):
            os.write(descriptor, data)
        os.fsync(descriptor)
        result["write"] = megabytes / (time.monotonic() - begun)

        _forget(descriptor)
        begun = time.monotonic()
        os.lseek(descriptor, 0, os.SEEK_SET)
        total = 0
        while block := os.read(descriptor, BLOCK):
            total += len(block)
        if total != size:
            raise OSError(f"read {total} of {size} bytes")
        result["read"] = megabytes / (time.monotonic() - begun)

        # The same places on every run; made beforehand, so that only the reading and writing is measured.
        chosen = random.Random(1)
        places = [chosen.randrange(size // PAGE) * PAGE for _ in range(200_000)]
        _forget(descriptor)
        result["random_read"] = _rate(seconds, places, lambda place: os.pread(descriptor, PAGE, place))
        page = data[:PAGE]
        result["random_write"] = _rate(
            seconds, places, lambda place: os.pwrite(descriptor, page, place), lambda: os.fsync(descriptor)
        )
    finally:
        os.close(descriptor)
        os.unlink(path)
    return result


def _forget(descriptor: int) -> None:
    """Ask the kernel that answers here to drop the file from its cache; the host's own cache stays warm for all."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _rate(
    seconds: float,
    places: list[int],
    operation: Callable[[int], object],
    end: Callable[[], object] = lambda: None,
) -> float:
    """Operations a second; what has to be done at the end counts as time."""
    done = 0
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        for _ in range(64):
            operation(places[done % len(places)])
            done += 1
    end()
    return done / (time.monotonic() - begun)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))

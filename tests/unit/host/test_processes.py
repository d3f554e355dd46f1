"""What is known of other processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

from casemate.host import processes

SPIN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
while True:
    pass
"""


@contextlib.contextmanager
def _running(*words: str) -> Iterator[int]:
    with subprocess.Popen(words) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def test_who_gets_no_processor_has_waited_and_who_sleeps_has_not() -> None:
    place = str(min(os.sched_getaffinity(0)))
    spin = (sys.executable, "-c", SPIN, place)
    # The one that counts is a child's child: descendants are counted along.
    shell = ("sh", "-c", '"$@" & child=$!; trap "kill -9 $child; exit" TERM; wait', "sh", *spin)
    with _running("sleep", "60") as idle, _running(*spin), subprocess.Popen(shell) as parent:
        try:
            while processes.waited(idle) != (before := processes.waited(idle)) or _state(idle) != "S":
                time.sleep(0.02)  # until it sleeps
            deadline = time.monotonic() + 20
            while processes.waited(parent.pid) < 0.2:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert processes.waited(idle) == before
        finally:
            parent.terminate()
            parent.wait()


def test_nobody_has_not_waited() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert processes.waited(process.pid) == 0

"""Helpers of the tests of ``casemate.host`` against the real kernel."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def in_child(body: Callable[[], None]) -> None:
    """Run ``body`` in a forked process, which has one thread and may change its namespaces; fail as it fails."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read)
            body()
            status = 0
        except BaseException:
            os.write(write, traceback.format_exc().encode()[-60000:])
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        text = file.read().decode()
    _, status = os.waitpid(pid, 0)
    if status:
        pytest.fail(text or f"the child ended with status {status}", pytrace=False)

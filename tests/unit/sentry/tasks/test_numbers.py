"""The numbers of processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from casemate.sentry.errno import SysError
from casemate.sentry.kernel import Kernel
from casemate.sentry.tasks.namespaces import FIRST_AGAIN


def group(kernel: Kernel, pgid: int, sid: int) -> Any:
    session = SimpleNamespace(sid=sid)
    return SimpleNamespace(process_group=SimpleNamespace(pgid=pgid, session=session), ns=kernel.ns)


def test_each_is_free_and_they_go_round() -> None:
    platform: Any = SimpleNamespace()
    kernel = Kernel(platform)
    assert [kernel.ns.pid.next() for _ in range(3)] == [1, 2, 3]
    kernel.groups[4] = group(kernel, 4, 4)
    assert kernel.ns.pid.next() == 5
    kernel.pid_max = FIRST_AGAIN + 5
    kernel.ns.pid.last = kernel.pid_max - 1
    assert kernel.ns.pid.next() == kernel.pid_max
    # Taken: a thread, and the numbers of a group and a session whose first processes are gone.
    kernel.tasks[FIRST_AGAIN] = SimpleNamespace()  # type: ignore[assignment]
    kernel.groups[7] = group(kernel, FIRST_AGAIN + 1, FIRST_AGAIN + 2)
    assert kernel.ns.pid.next() == FIRST_AGAIN + 3
    for pid in range(1, kernel.pid_max + 1):
        kernel.groups[pid] = group(kernel, pid, 1)
    with pytest.raises(SysError, match="EAGAIN"):
        kernel.ns.pid.next()


def test_each_namespace_has_its_own() -> None:
    platform: Any = SimpleNamespace()
    kernel = Kernel(platform)
    one, two = kernel.namespaces(b"one"), kernel.namespaces(b"two")
    assert [one.pid.next(), one.pid.next(), two.pid.next()] == [1, 2, 1]
    task: Any = SimpleNamespace()
    kernel.tasks[one.pid.key(2)] = task
    assert one.pid.task(2) is task
    for number in (2, 1, 0, -1, 2 - (1 << 32), 2 + (1 << 32)):
        assert two.pid.task(number) is None
    shared = kernel.namespaces(b"three", pid=one.pid, ipc=two.ipc)
    assert (shared.pid, shared.ipc) == (one.pid, two.ipc) and shared.uts.hostname == b"three"

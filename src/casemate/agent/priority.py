"""How a process is scheduled, which the guest's runtime does not set (runtime specification, config.md, "Process")."""

from __future__ import annotations

import os

from casemate.agent.system import bad, get_dict, get_int, get_text, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

IOPRIO_WHO_PROCESS = 1
CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
POLICIES = {"SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_IDLE": 5}
"""sched(7). A deadline cannot be given: the process would be kept from starting others."""
RESET_ON_FORK = "SCHED_FLAG_RESET_ON_FORK"


def check(wanted: dict[str, Any]) -> None:
    """Look at ``scheduler`` and ``ioPriority`` of a process object. Raises RequestFailed ``bad-spec``."""
    _scheduler(wanted)
    _io_priority(wanted)


def _scheduler(wanted: dict[str, Any]) -> tuple[int, int, int] | None:
    """Policy, priority and nice value."""
    if wanted.get("scheduler") is None:
        return None
    table = get_dict(wanted, "scheduler")
    policy = POLICIES.get(get_text(table, "policy", 64))
    if policy is None:
        raise bad(f"scheduler.policy must be one of {', '.join(POLICIES)}")
    flags = table.get("flags") or []
    if not isinstance(flags, list) or not set(map(str, flags)) <= {RESET_ON_FORK}:
        raise bad(f"scheduler.flags can hold {RESET_ON_FORK} alone")
    priority = get_int(table, "priority", 0, 99) if table.get("priority") is not None else 0
    nice = get_int(table, "nice", -20, 19) if table.get("nice") is not None else 0
    return policy | (os.SCHED_RESET_ON_FORK if flags else 0), priority, nice


def _io_priority(wanted: dict[str, Any]) -> int | None:
    """As ioprio_set(2) takes it: the class in the upper bits, the priority in the lower 13."""
    if wanted.get("ioPriority") is None:
        return None
    table = get_dict(wanted, "ioPriority")
    kind = CLASSES.get(get_text(table, "class", 64))
    if kind is None:
        raise bad(f"ioPriority.class must be one of {', '.join(CLASSES)}")
    return kind << 13 | (get_int(table, "priority", 0, 7) if table.get("priority") is not None else 0)


def apply(pid: int, wanted: dict[str, Any]) -> None:
    """Give a process its priorities. Raises OSError."""
    scheduler, io_priority = _scheduler(wanted), _io_priority(wanted)
    if scheduler is not None:
        policy, priority, nice = scheduler
        os.sched_setscheduler(pid, policy, os.sched_param(priority))
        if policy & ~os.SCHED_RESET_ON_FORK in (POLICIES["SCHED_OTHER"], POLICIES["SCHED_BATCH"]):
            os.setpriority(os.PRIO_PROCESS, pid, nice)
    if io_priority is not None:
        syscall("ioprio_set", IOPRIO_WHO_PROCESS, pid, io_priority)

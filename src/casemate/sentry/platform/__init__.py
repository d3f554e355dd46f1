"""How the sentry holds an application: host processes that own memory and registers, and nothing else."""

from __future__ import annotations

from casemate.sentry.platform.base import Platform

NAMES = ("notify", "notify-python", "ptrace")
"""``notify-python`` is ``notify`` without its native part."""


def choose(proc: int, name: str = "") -> Platform:
    """Make a platform.

    Arguments:
        proc: descriptor of a ``/proc`` that shows this process, taken over.
        name: one of :data:`NAMES`; empty for the fastest that this host has.

    Raises:
        ValueError: there is no such platform.
    """
    from casemate.sentry.platform import notify, ptrace

    if name and name not in NAMES:
        raise ValueError(f"there is no platform {name!r}: {', '.join(NAMES)}")
    if name.startswith("notify") or (not name and notify.available()):
        return notify.NotifyPlatform(proc, native=name != "notify-python")
    return ptrace.PtracePlatform(proc)

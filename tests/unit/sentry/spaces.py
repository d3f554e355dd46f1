"""Namespaces for kernels that run no process."""

from __future__ import annotations

from typing import Any

from casemate.sentry.tasks.namespaces import IpcNamespace, Namespaces, PidNamespace, UtsNamespace


def namespaces(kernel: Any, index: int = 0, hostname: bytes = b"test") -> Namespaces:
    """New ones. The kernel has to have ``tasks``, ``groups`` and ``clock`` where somebody looks them up.

    Arguments:
        index: of the PID namespace: each has numbers of its own.
    """
    return Namespaces(
        PidNamespace(kernel, index), IpcNamespace(getattr(kernel, "clock", None)), UtsNamespace(hostname)  # type: ignore[arg-type]
    )

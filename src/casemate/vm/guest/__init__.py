"""Guest bundles: the kernel and the root image that every virtual machine starts from.

:func:`find`, :func:`list_bundles` and :func:`prune` are cheap; :func:`build` loads what it needs when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from casemate.vm.guest.bundle import GuestBundle, current, find, list_bundles, prune

__all__ = ["GuestBundle", "build", "current", "find", "list_bundles", "prune"]


def build(
    root: Path, cache: Path, progress: Callable[[str], None], *, update: bool = False, kernel: str = "auto"
) -> GuestBundle:
    """Build the guest bundle when something has changed; see :func:`casemate.vm.guest.builder.build`."""
    from casemate.vm.guest.builder import build as build_now

    return build_now(root, cache, progress, update=update, choice=kernel)

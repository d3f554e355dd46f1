"""What the throttler and the kernel do, for people and programs."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from casemate.ksm import settings
from casemate.ksm.kept import Home

if TYPE_CHECKING:
    from casemate.config import Config


def status(config: Config, home: Home) -> dict[str, Any]:
    """Everything there is to tell.

    Returns:
        ``running`` whether a throttler runs, ``pid`` its process; ``mode``, its own or the one it would have; ``state``
        and ``changes_in``, in seconds, None where only a start changes it; ``settings`` in force; ``kernel``, the
        kernel's figures; ``saved_bytes``; ``general_profit``, in bytes, None where the kernel does not tell it.

    Raises:
        HostError: the kernel does not merge pages, or does not tell.
    """
    figures = settings.figures(home.kernel)
    state = home.state()
    until = state.get("until")
    left = max(0.0, until - time.monotonic()) if isinstance(until, float) else None
    return {
        "running": bool(state),
        "pid": state.get("pid"),
        "mode": state.get("mode", config.ksm),
        "state": state.get("state"),
        "changes_in": left,
        "settings": settings.read(home.kernel).to_json(),
        "kernel": figures,
        "page_size": os.sysconf("SC_PAGE_SIZE"),
        "saved_bytes": settings.saved(figures),
        "general_profit": figures.get("general_profit"),
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The same for people, one thing a line.

    Arguments:
        found: what :func:`status` gave.
    """
    in_force, figures = found["settings"], found["kernel"]
    if found["running"]:
        left = found["changes_in"]
        change = f", for {left:.0f} s more" if left is not None else ""
        throttler = f"process {found['pid']}, mode {found['mode']}"
        state = f"{found['state']}{change}"
    else:
        throttler, state = f"not running; its mode would be {found['mode']}", "-"
    kernel = {settings.STOPPED: "stopped", settings.RUNNING: "merging", settings.UNMERGED: "stopped, all unmerged"}
    by = in_force["advisor_mode"]
    advisor = f", chosen by the kernel ({by})" if by not in ("", settings.NO_ADVISOR) else ""
    pace = f"{in_force['pages_to_scan']} pages every {in_force['sleep_millisecs']} ms{advisor}"
    shared, sharing = figures.get("pages_shared", 0), figures.get("pages_sharing", 0)
    rows = [
        ("throttler", throttler),
        ("state", state),
        ("kernel", f"{kernel[in_force['run']]}, {pace}"),
        ("shared", f"{shared} pages, in use at {shared + sharing} places; {figures.get('full_scans', 0)} full scans"),
        ("saved", f"{found['saved_bytes'] / (1 << 20):.1f} MiB"),
    ]  # fmt: skip
    if found["general_profit"] is not None:
        rows.append(("profit", f"{found['general_profit'] / (1 << 20):.1f} MiB, without what the kernel keeps for it"))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]

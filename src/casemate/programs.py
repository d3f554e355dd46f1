"""Where casemate's programs begin and end: how a process of Python starts fast, and goes away fast.

Each entry point imports what it runs only after :func:`begin`. As a library casemate does nothing of this.
"""

from __future__ import annotations

import gc
import os
import sys

from casemate import bundle, late

TYPE_CHECKING = False  # not from typing: that is one of the modules which cost
if TYPE_CHECKING:
    from typing import NoReturn


def begin() -> None:
    """To be called before anything else is imported: from now on modules come from the bundle, those that are seldom
    used come late, and nobody collects garbage until :func:`settle`, for an import makes none."""
    gc.disable()
    bundle.use()
    late.late()


def settle() -> None:
    """The imports are done: what there is now is not looked at again when garbage is collected. That would touch, and
    in forked processes copy, all of it."""
    gc.freeze()
    gc.enable()


def leave(status: int) -> NoReturn:
    """End this program at once: nothing is left that wants to be taken down piece by piece."""
    threads = sys.modules.get("threading")
    if threads is not None and any(not one.daemon for one in threads.enumerate() if one is not threads.main_thread()):
        sys.exit(status)  # which waits for them
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.exit(status)  # which says so
    os._exit(status)


RUN = "/run/casemate"
"""The run directory where neither the environment nor the configuration names another; here because that one imports
what a command that has only just begun should not wait for."""


def _ask_for_keeper(program: str) -> None:
    """Have a keeper forked while this program reads its words. Where the configuration names another run directory,
    or there is a pool that has keepers ready, it is of no use, and ends with this process."""
    run = os.environ.get("CASEMATE_RUN") or RUN
    pooled = program == "casemate.keeper" and os.path.exists(f"{run}/pool/pool.sock")
    if os.path.isdir(f"{run}/nursery") and not pooled:
        from casemate.keeper import nursery

        nursery.reserve(program, run)


def casemate() -> NoReturn:
    """``casemate``."""
    begin()
    if sys.argv[1:2] == ["run"]:
        _ask_for_keeper("casemate.keeper")
    from casemate.cli.main import main

    leave(main())


def runtime() -> NoReturn:
    """``casemate-runtime``."""
    begin()
    words = sys.argv[1:]
    # Descriptors that a container is to get are told by their numbers: none of ours may be among them.
    kept = "LISTEN_FDS" in os.environ or any("preserve-fds" in word for word in words)
    if {"create", "run"}.intersection(words) and not kept:
        _ask_for_keeper("casemate.pod")
    from casemate.runtime_cli.main import main

    leave(main())


def shim() -> NoReturn:
    """``containerd-shim-casemate-v2``."""
    begin()
    from casemate.shim.main import main

    leave(main())

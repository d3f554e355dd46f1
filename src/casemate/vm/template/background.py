"""A template for a class of machines that has none, made while the first of them boots.

The first machine of a class (other than the configured one, whose first start waits for its template) boots, and has a
process of its own make the template: ``python -P -m casemate.vm.template.background MEMORY CPUS``. That belongs to
nobody's sandbox: it leaves the control groups and the mount namespace of the keeper that starts it. It begins when that
machine is up, told by the end of its standard input, and is as nice as can be. Makers hold a lock, so there is one at a
time; who finds it held leaves it to the next start.

One that fails leaves ``<run>/templates-failed/<key>`` with the reason. ``casemate template list`` tells it, and nobody
tries again for :data:`RETRY_SECONDS`, but ``casemate template create`` and the host's next boot.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate import ids, jsonfile
from casemate.config import TEMPLATE_MIB, Config
from casemate.errors import CasemateError, HostError, StateError, TemplateError
from casemate.vm.template import Class, store

RETRY_SECONDS = 3600
NICENESS = 19
START_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Pending:
    """There is no template yet."""

    state: str
    """What is being done about it."""
    start: int = -1
    """A descriptor, or -1: when it is closed the making begins."""


def begin(config: Config, key: str, kind: Class) -> Pending:
    """Have a template made, unless that was tried in vain, or somebody makes one; by somebody who is not the child of
    this process."""
    reason = failed(config.run, key)
    if reason:
        return Pending(f"it could not be made: {reason}")
    if _held(store.home(config.root)):
        return Pending("another one is being made")
    import subprocess

    program = [sys.executable, "-P", "-m", "casemate.vm.template.background"]
    environment = {**os.environ, "CASEMATE_ROOT": str(config.root), "CASEMATE_RUN": str(config.run)}
    waiting, start = os.pipe2(os.O_CLOEXEC)
    try:
        # It ends as soon as it has left what is ours, and left another process behind.
        code = subprocess.call(
            [*program, str(TEMPLATE_MIB + kind.growth_mib), str(kind.vcpus)],
            stdin=waiting, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", env=environment,
            start_new_session=True, timeout=START_SECONDS,
        )  # fmt: skip
        if code == 0:
            return Pending("it is being made", start)
        reason = "whoever was to do it has failed"
    except (OSError, subprocess.SubprocessError) as error:
        reason = str(error)
    finally:
        os.close(waiting)
    os.close(start)
    return Pending(f"it could not be made: {reason}")


def _held(directory: Path) -> bool:
    """Whether somebody holds a directory's lock."""
    import fcntl

    try:
        descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


# ---- what failed


def _notes(run: Path) -> Path:
    return run / "templates-failed"


def failed(run: Path, key: str) -> str:
    """Why a template could not be made, where that was not long ago; else nothing."""
    try:
        note = jsonfile.read(_notes(run) / key)
        return str(note["reason"]) if 0 <= time.time() - float(note["at"]) < RETRY_SECONDS else ""
    except (OSError, StateError, KeyError, ValueError, TypeError):
        return ""


def failures(run: Path) -> list[tuple[str, str]]:
    """What could not be made: for whom, and why."""
    with contextlib.suppress(OSError):
        found = []
        for key in sorted(os.listdir(_notes(run))):
            with contextlib.suppress(OSError, StateError, KeyError):
                note = jsonfile.read(_notes(run) / key)
                found.append((f"up to {note['memory_mib']} MiB and {note['vcpus']} processors", str(note["reason"])))
        return found
    return []


def note(run: Path, key: str, kind: Class, reason: str) -> None:
    """Note that a template could not be made; where even that cannot be written, it is tried again."""
    value: dict[str, Any] = {
        "reason": reason, "at": time.time(), "memory_mib": TEMPLATE_MIB + kind.growth_mib, "vcpus": kind.vcpus,
    }  # fmt: skip
    with contextlib.suppress(OSError):
        _notes(run).mkdir(mode=0o700, exist_ok=True)
        jsonfile.write(_notes(run) / key, value, durable=False)


def forget(run: Path, key: str) -> None:
    """A template was made: what is noted of earlier attempts is of no interest any more."""
    with contextlib.suppress(OSError):
        (_notes(run) / key).unlink()


# ---- the process


def make(
    config: Config, memory_mib: int, vcpus: int, progress: Callable[[str], None], *, wait: bool
) -> store.Template | None:
    """Make the template of a class for nobody in particular.

    Arguments:
        memory_mib, vcpus: of a machine of the class.
        progress: told what is being done.
        wait: see :func:`casemate.vm.template.making.make`.

    Returns:
        the template; None where another process is making one and ``wait`` is false.

    Raises:
        TemplateError: it cannot be made. That is noted.
        CasemateError: there is no guest, or no class for so little or so much memory.
    """
    from casemate.host import network, uids
    from casemate.vm import guest
    from casemate.vm.hypervisor import base, drivers, probe
    from casemate.vm.template import class_of, largest_mib, making

    bundle = guest.find(config.root, config.guest)
    kind = class_of(probe.choose(config).accelerator, memory_mib, vcpus)
    if kind is None:
        hint = f"from {TEMPLATE_MIB}m to {largest_mib()}m"
        raise TemplateError(f"no template is for {memory_mib} MiB of memory", hint)
    key = store.key(config, bundle, kind)
    identifier = ids.new_id()
    netns = network.isolated()
    try:
        uid = uids.lease(identifier, config)
        jail = base.Confinement(uid=uid, gid=uid, netns_fd=netns)
        made = making.make(config, bundle, kind, jail, drivers.driver(config), progress, wait=wait)
    except CasemateError as error:
        note(config.run, key, kind, str(error))
        raise
    finally:
        os.close(netns)
        uids.release(identifier, config)
    if made is not None:
        forget(config.run, key)
    return made


def leave() -> None:
    """Leave what belongs to the sandbox that has started this process: its control groups and its mounts.

    Raises:
        HostError: it cannot be left. The sandbox could not be taken down for as long as somebody is there.
    """
    from casemate.host import cgroups, namespaces

    namespaces.unshare_mounts()
    for tree in cgroups.hierarchies(every=True):
        try:
            (tree.mount / "cgroup.procs").write_text("0")
        except OSError as error:
            raise HostError(f"cannot leave the control groups of a sandbox: {error.strerror}") from None


def main() -> int:
    """Make a template; the exit status is 0 once that goes on in another process."""
    from casemate import config as configuration

    memory_mib, vcpus = int(sys.argv[1]), int(sys.argv[2])
    try:
        config = configuration.load()
        leave()
    except CasemateError:
        return 1
    if os.fork():
        return 0
    sys.stdin.buffer.read()
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    with contextlib.suppress(CasemateError):  # is noted
        make(config, memory_mib, vcpus, lambda what: None, wait=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())

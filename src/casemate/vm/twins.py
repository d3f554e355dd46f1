"""Asking for a machine that is a copy of one that has come up, got warm and stands still: a *twin*.

Who has one is a process of its own for each kind of machine (:mod:`casemate.twins`), which listens at
``<run>/twins/<place>``. The first start that finds none has one begun (:func:`begin`), which makes its original when
nobody else has anything to do; until it is there, machines come from the template as ever.

::

    machine to originals   {"version", "key", "memory"}, with what keeps alive where the machine's keeper comes from
    originals to machine   {"hello", "facts", "numbers", "channels"}, with a life line, a process, and a window
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from casemate import __version__
from casemate.config import TEMPLATE_MIB, Config
from casemate.errors import CasemateError, HostError
from casemate.keeper import nursery
from casemate.keeper.control import Connection, close_all
from casemate.vm.hypervisor import base, twin

SECONDS = 2.0
"""How long one may take to be handed out; who has to wait for longer makes its machine from the template."""
RETRY_SECONDS = 3600.0
"""How long nobody tries again what has failed."""
END_SECONDS = 30.0
MOST = 3
"""Originals of all kinds that there are at a time: each has memory. The next one may come when one has ended."""
MAX_CHANNELS = 1 << 20


@dataclass(frozen=True, slots=True)
class Kind:
    """What twins of one original have in common.

    Arguments:
        key: of the template that the original was made from.
        memory_mib: the guest's memory.
        vcpus: its processors.
    """

    key: str
    memory_mib: int
    vcpus: int


def possible(config: Config, accelerator: base.Accelerator) -> bool:
    """Whether machines can be copies here."""
    return config.twins_wanted and accelerator is base.Accelerator.TCG and twin.available()


def kind(config: Config, key: str, memory_mib: int, vcpus: int) -> Kind:
    """The original for a machine.

    Arguments:
        key: of the machine's template.
        memory_mib: all of its memory. More than the original has is added to the twin.
    """
    return Kind(key, config.memory if memory_mib >= config.memory > TEMPLATE_MIB else TEMPLATE_MIB, vcpus)


def place(config: Config, wanted: Kind) -> Path:
    """Where the originals of a kind are asked for."""
    found = os.stat(twin.LIBRARY)
    words = (wanted, __version__, found.st_size, found.st_mtime_ns)
    return config.run / "twins" / hashlib.sha256(repr(words).encode()).hexdigest()[:12]


@dataclass(slots=True)
class Taken:
    """A twin that is the caller's.

    Arguments:
        unborn: its process.
        window: the file that it is to have in the place of its window, a descriptor.
        hello: what the agent has said.
        facts: what it has told of its guest.
        numbers: the original's descriptors.
        channels: the first number of a stream that none had yet.
        memory_mib: how much memory it has.
    """

    unborn: twin.Unborn
    window: int
    hello: dict[str, Any]
    facts: dict[str, Any]
    numbers: twin.Numbers
    channels: int
    memory_mib: int
    given: bool = False
    """Whether a machine has it."""

    def close(self) -> None:
        """Give it up, where no machine has it."""
        if not self.given:
            self.given = True
            self.unborn.close()
            os.close(self.window)


def offered(config: Config, wanted: Kind) -> bool:
    """Whether somebody seems to have some: he may have died."""
    return place(config, wanted).exists()


def take(config: Config, wanted: Kind) -> Taken | None:
    """A twin; None where there is none to be had."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(SECONDS)
        sock.connect(str(place(config, wanted)))
    except OSError:
        sock.close()
        return None
    fds: list[int] = []
    try:
        connection = Connection(sock)
        alive = (nursery.held,) if nursery.held >= 0 else ()
        connection.send({"version": __version__, "key": wanted.key, "memory": wanted.memory_mib}, alive)
        answer, fds = connection.receive()
        numbers, hello, channels = twin.Numbers(**answer["numbers"]), answer["hello"], answer["channels"]
        facts = answer["facts"]
        sane = all(type(number) is int and number >= 0 for number in (*astuple(numbers), channels))
        if len(fds) == 3 and isinstance(hello, dict) and isinstance(facts, dict) and sane and channels < MAX_CHANNELS:
            life, pidfd, window = socket.socket(fileno=fds[0]), fds[1], fds[2]  # OSError: it is no socket
            fds = []
            return Taken(twin.Unborn(life, pidfd), window, hello, facts, numbers, channels, wanted.memory_mib)
    except (CasemateError, OSError, KeyError, TypeError):  # it is at its end
        pass
    finally:
        close_all(fds)
        sock.close()
    return None


def begin(config: Config, wanted: Kind) -> None:
    """Have an original made by a process that is nobody's sandbox's; what goes wrong is left to the next start."""
    where = place(config, wanted)
    if _failed(where) or len(holders(config)) >= MOST or _holder(where.with_name(f"{where.name}.lock")) is not None:
        return
    import subprocess

    from casemate.host import cgroups

    program = [sys.executable, "-P", "-m", "casemate.twins", wanted.key, str(wanted.memory_mib), str(wanted.vcpus)]
    environment = {**os.environ, "CASEMATE_ROOT": str(config.root), "CASEMATE_RUN": str(config.run)}
    with contextlib.suppress(OSError):
        child = subprocess.Popen(
            program, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
            env=environment, start_new_session=True,
        )  # fmt: skip
        child.returncode = 0  # it is not waited for: whoever starts containers may end before
        # At once: what is in a sandbox's group ends with the sandbox. Where that is refused, the child notes it.
        for tree in cgroups.hierarchies(every=True):
            (tree.mount / "cgroup.procs").write_text(str(child.pid))


# ---- who has one


def hold(config: Config, wanted: Kind) -> int | None:
    """Be the one who has the originals of a kind, until the descriptor is closed that is returned.

    Returns:
        None where somebody else is.

    Raises:
        OSError: the run directory cannot be written.
    """
    import fcntl

    where = place(config, wanted)
    where.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(f"{where}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        where.unlink(missing_ok=True)  # of one that was killed: it is not ready yet
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), **asdict(wanted)}).encode(), 0)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _holder(lock: Path) -> dict[str, Any] | None:
    """What the one has noted who holds a lock; None where nobody does."""
    import fcntl

    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(ValueError):
            note = json.loads(os.pread(descriptor, 4096, 0))
            return note if isinstance(note, dict) else {}
        return {}  # he has not noted anything yet
    finally:
        os.close(descriptor)
    return None


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has an original, or makes it.

    Arguments:
        pid: its number.
        kind: of what.
        ready: whether twins can be had.
        lock: what it holds.
    """

    pid: int
    kind: Kind
    ready: bool
    lock: Path


def holders(config: Config) -> list[Holder]:
    """All that there are."""
    found = []
    for lock in sorted((config.run / "twins").glob("*.lock")):
        note = _holder(lock)
        with contextlib.suppress(KeyError, TypeError, ValueError):
            if note is not None:
                pid = int(note.pop("pid"))
                found.append(Holder(pid, Kind(**note), lock.with_suffix("").is_socket(), lock))
    return found


def end(config: Config, key: str | None = None) -> None:
    """Have originals end, and wait for that. Their twins go on.

    Arguments:
        key: only those of this template.

    Raises:
        HostError: one does not.
    """
    for holder in holders(config):
        if key is None or holder.kind.key == key:
            try:
                descriptor = os.pidfd_open(holder.pid)
            except ProcessLookupError:
                continue
            try:
                if _holder(holder.lock) is not None:  # the descriptor is of no process that came after it
                    signal.pidfd_send_signal(descriptor, signal.SIGTERM)
                    if not select.select([descriptor], [], [], END_SECONDS)[0]:
                        raise HostError(f"the original {holder.pid} does not end", f"kill -9 {holder.pid}")
            finally:
                os.close(descriptor)


def _note(where: Path) -> Path:
    return where.with_name(f"{where.name}.failed")


def _failed(where: Path) -> bool:
    with contextlib.suppress(OSError):
        return 0 <= time.time() - os.stat(_note(where)).st_mtime < RETRY_SECONDS
    return False


def failures(config: Config) -> list[str]:
    """Why there are no originals, where one could not be made not long ago."""
    notes = [path for path in sorted((config.run / "twins").glob("*.failed")) if _failed(path.with_suffix(""))]
    return [path.read_text().strip() for path in notes]


def note(where: Path, reason: str) -> None:
    """Note that an original could not be made, so that it is not tried again soon."""
    with contextlib.suppress(OSError):
        _note(where).write_text(f"{reason}\n")


def forget(where: Path) -> None:
    """It could be made."""
    with contextlib.suppress(OSError):
        _note(where).unlink()

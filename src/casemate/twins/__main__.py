"""The process that has an original: ``python -P -m casemate.twins KEY MEMORY VCPUS``.

It belongs to nobody's sandbox. It makes the original as nicely as can be, copies it ahead of need, and hands copies
out. It ends when nobody has asked for ``twins_idle`` seconds, when the template is gone, on a signal, or when the
original has ended; twins go on.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from casemate import __version__, ids
from casemate import config as configuration
from casemate.config import Config
from casemate.errors import CasemateError, HypervisorError
from casemate.host.service import ENDING, signals
from casemate.keeper.control import Connection
from casemate.keeper.reap import clean_host
from casemate.keeper.store import Container
from casemate.pool import homes
from casemate.twins.original import Stock
from casemate.vm import twins
from casemate.vm.hypervisor import twin
from casemate.vm.template import background, store

PEER_SECONDS = 1.0
"""How long who asks may take to say for what."""
LOOK_SECONDS = 30.0
"""How often it is looked whether the template is still there."""
MAX_NURSERIES = 16


class Nurseries:
    """What keeps alive where keepers come from (:mod:`casemate.keeper.nursery`), for as long as there is an original:
    the next start needs one again."""

    def __init__(self) -> None:
        self._fds: dict[tuple[int, int], int] = {}

    def take(self, fds: list[int]) -> None:
        """Keep what came with a request, and close what is here already or is something else."""
        for fd in fds:
            found = os.fstat(fd)
            wanted = stat.S_ISFIFO(found.st_mode) and len(self._fds) < MAX_NURSERIES
            if not wanted or self._fds.setdefault((found.st_dev, found.st_ino), fd) != fd:
                os.close(fd)


def main() -> int:
    """Have an original until it is of no more use."""
    wanted = twins.Kind(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    try:
        config = configuration.load()
        lock = twins.hold(config, wanted)
    except (CasemateError, OSError):
        return 1
    if lock is None:
        return 0  # somebody else has one, or makes it
    where = twins.place(config, wanted)
    try:
        background.leave()
        with contextlib.suppress(OSError):
            os.nice(background.NICENESS)
        _have(config, wanted, where)
    except Exception as error:  # whatever it is, every start would come upon it
        twins.note(where, str(error) or type(error).__name__)
        return 1
    return 0


def _have(config: Config, wanted: twins.Kind, where: Path) -> None:
    identifier = ids.new_id()
    homes.sweep(config)
    path, lock = homes.make(config, identifier)
    container = Container(config, path)
    reasons: list[str] = []

    def ended(reason: str) -> None:
        reasons.append(reason)
        os.kill(os.getpid(), signal.SIGTERM)

    with signals() as wake:
        stock = Stock(
            config, identifier, path, container.run_path, wanted.memory_mib, wanted.vcpus, ended
        )
        try:
            try:
                with _ended_by_signals():
                    stock.make()
            except _Ended:
                if reasons:  # nobody has told it to end
                    raise HypervisorError(reasons[0]) from None
                raise
            twins.forget(where)
            _serve(config, wanted, where, stock, wake)
        except _Ended:
            pass
        finally:
            with contextlib.suppress(OSError):
                where.unlink()
            stock.close()
            with contextlib.suppress(CasemateError):
                clean_host(container)
            homes.remove(path)
            os.close(lock)


class _Ended(BaseException):
    """The process was told to end."""


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """What takes long is given up when a signal asks for the end."""

    def end(*_: object) -> None:
        raise _Ended

    before = {number: signal.signal(number, end) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(config: Config, wanted: twins.Kind, where: Path, stock: Stock, wake: socket.socket) -> None:
    template = store.home(config.root) / wanted.key / store.MANIFEST
    ready: tuple[twin.Unborn, int] | None = stock.copy()  # before anybody may ask
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        with contextlib.suppress(FileNotFoundError):
            where.unlink()
        listener.bind(str(where))
        listener.listen(128)
        listener.setblocking(False)
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        poll.register(listener, select.POLLIN)
        asked = time.monotonic()
        nurseries = Nurseries()
        try:
            while True:
                due = {fd for fd, _ in poll.poll(min(LOOK_SECONDS, config.twins_idle) * 1000)}
                if wake.fileno() in due or not template.exists() or time.monotonic() - asked > config.twins_idle:
                    return
                if listener.fileno() not in due:
                    continue
                asked = time.monotonic()
                if ready is None or not ready[0].alive():
                    _drop(ready)
                    ready = stock.copy()
                if _hand_out(listener, wanted, stock, ready, nurseries):
                    _drop(ready)
                    ready = None
                    ready = stock.copy()
        finally:
            _drop(ready)


def _drop(copy: tuple[twin.Unborn, int] | None) -> None:
    """Close what is ours of a copy: whoever it was given to has it still."""
    if copy is not None:
        copy[0].close()
        os.close(copy[1])


def _hand_out(
    listener: socket.socket, wanted: twins.Kind, stock: Stock, copy: tuple[twin.Unborn, int], nurseries: Nurseries
) -> bool:
    """Serve one who asks; whether the copy is his."""
    try:
        sock, _ = listener.accept()
    except OSError:
        return False
    with sock:
        try:
            sock.settimeout(PEER_SECONDS)
            connection = Connection(sock)
            request, fds = connection.receive()
            nurseries.take(fds)
            if request != {"version": __version__, "key": wanted.key, "memory": wanted.memory_mib}:
                return False
            answer = {
                "hello": stock.hello, "facts": stock.facts, "numbers": asdict(stock.numbers()),
                "channels": stock.channels,
            }  # fmt: skip
            connection.send(answer, (copy[0].life.fileno(), copy[0].pidfd, copy[1]))
            return True
        except (CasemateError, OSError):
            return True  # he may have got it before he went


if __name__ == "__main__":
    sys.exit(main())

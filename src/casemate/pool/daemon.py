"""The daemon: makes members, one at a time and when the host has nothing better to do, and hands them out.

It is one thread around poll(2), and never waits for anybody: a member that is being made is a process, of which it
hears on a connection. Whatever ends it ends its members too, for they have no other connection.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate import ids
from casemate.config import Config
from casemate.errors import CasemateError, HostError
from casemate.host.processes import waited
from casemate.host.service import ENDING, ready, signals
from casemate.keeper.control import Connection, ControlClosed, close_all
from casemate.pool import birth, client, homes
from casemate.pool.pace import Pace
from casemate.pool.supply import Supply
from casemate.vm.waiting import first_mib

PEER_SECONDS = 1.0
"""How long who asks may take to say what."""
BIRTH_SECONDS = 300.0
"""How long a member may take until it is warm, not counting what it waits for a processor."""
LOOK_SECONDS = 60.0
"""How often one that takes longer is looked at: where nothing wants the processors any more, neither does it wait."""
RELEASE_SECONDS = 1.0
"""How long the host has to get back what one member had, before another is let go."""
DRAIN_SECONDS = 30.0
KEEP_MESSAGES = 4096


@dataclass(slots=True)
class Member:
    """A keeper that waits, or that is on its way to that."""

    id: str
    path: Path
    connection: Connection
    process: birth.Child
    supply: str
    """Of what it was made."""
    since: float
    ready: bool = False


@dataclass(slots=True)
class Counts:
    """What the pool has done."""

    made: int = 0
    handed_out: int = 0
    refused: int = 0
    failures: int = 0
    replaced: int = 0
    released: int = 0
    seconds: float | None = None
    """How long the last member took to get ready."""
    error: str = ""


class Pool:
    """The daemon.

    Arguments:
        config: the configuration in force.
        size: how many members there are to be.
        say: told what a log should have, one line each.
        keeper: how a keeper's program is called; None to have them forked.
        pace, supply: see there; those of the configuration when None.
    """

    def __init__(
        self,
        config: Config,
        size: int,
        say: Callable[[str], None],
        keeper: Sequence[str] | None = None,
        pace: Pace | None = None,
        supply: Supply | None = None,
    ) -> None:
        self._config = config
        self._size = size
        self._say = say
        self._kind = client.kind(config)
        self._keeper = keeper
        self._supply = supply or Supply(config)
        self._pace = pace or Pace(config)
        self._members: list[Member] = []
        self._out: list[birth.Child] = []
        """Handed-out members, which are this process's children to their end."""
        self._ending: list[birth.Child] = []
        """Members that were let go."""
        self._counts = Counts()
        self._waits_for = ""

    def run(self) -> int:
        """Work until a signal asks for the end; no member that waits stays.

        Returns:
            0.

        Raises:
            HostError: another pool runs, or this one cannot.
        """
        if not self._config.templates:
            raise HostError("a pool needs templates", 'set template = "auto" and leave out transport = "vsock"')
        with _held(self._config), signals(signal.SIGCHLD) as wake, _listening(self._config) as listener:
            for problem in homes.sweep(self._config):
                self._say(f"something is left of a pool that was killed: {problem}")
            self._say(f"keeps {self._size} sandboxes ready")
            if self._keeper is None:
                birth.prepare()
            ready()
            try:
                while not self._turn(wake, listener):
                    pass
            finally:
                client.socket_path(self._config).unlink(missing_ok=True)
                listener.close()
                self._drain()
        self._say("ended; nothing waits any more")
        return 0

    # ---- one turn

    def _turn(self, wake: socket.socket, listener: socket.socket) -> bool:
        """Wait for what comes next and do what is due; whether that was a signal to end."""
        patience = self._refill()
        poll = select.poll()
        by_fd = {member.connection.fileno(): member for member in self._members}
        for fd in (wake.fileno(), listener.fileno(), *by_fd):
            poll.register(fd, select.POLLIN)
        ready_fds = {fd for fd, _ in poll.poll(None if patience is None else math.ceil(patience * 1000))}
        if wake.fileno() in ready_fds and _asked_to_end(wake):
            return True
        for fd in ready_fds & by_fd.keys():
            self._hear(by_fd[fd])
        if listener.fileno() in ready_fds:
            self._serve(listener)
        self._reap()
        return False

    def _reap(self) -> None:
        self._out = [process for process in self._out if process.poll() is None]
        ended = [process for process in self._ending if process.poll() is not None]
        self._ending = [process for process in self._ending if process not in ended]
        if any(process.returncode for process in ended):  # killed, perhaps before it could give anything back
            for problem in homes.sweep(self._config):
                self._say(f"something is left of a sandbox that waited: {problem}")

    # ---- making members

    def _refill(self) -> float | None:
        """Make a member if it is time for one; seconds until it is to be asked for again, None when nothing is due."""
        now = time.monotonic()
        for member in [one for one in self._members if not one.ready and self._patience(one, now) <= 0]:
            self._fail(member, "it did not get ready in time")
        self._waits_for = ""
        making = [member for member in self._members if not member.ready]
        if making:
            return min(LOOK_SECONDS, max(0.1, self._patience(making[0], now)))
        if self._pace.short() and (idle := next((one for one in self._members if one.ready), None)):
            self._counts.released += 1
            self._end(idle)
            return RELEASE_SECONDS
        stale = self._stale()
        if len(self._members) >= self._size and stale is None:
            return self._supply.patience
        patience, why = self._pace.wait(now)
        if patience > 0:
            self._waits_for = why
            return patience
        if stale is not None:  # one at a time, so that there are others meanwhile
            self._replace(stale)
        self._make(now)
        return 0.0

    @staticmethod
    def _patience(member: Member, now: float) -> float:
        """Seconds that a member still has to get ready. On a host where others want the processors it is the last to
        get one, and what it waits for that is not its fault."""
        left = BIRTH_SECONDS - (now - member.since)
        return left if left > 0 else left + waited(member.process.pid)

    def _stale(self) -> Member | None:
        """A member that is made of what is not in use any more."""
        try:
            now = self._supply.key()
        except CasemateError:
            return None
        return next((member for member in self._members if member.ready and member.supply != now), None)

    def _replace(self, member: Member) -> None:
        self._counts.replaced += 1
        self._end(member)

    def _make(self, now: float) -> None:
        try:
            supply = self._supply.key()
            self._members.append(self._spawn(supply, now))
        except (CasemateError, OSError) as error:
            self._failed(str(error))
        self._pace.began(now)

    def _spawn(self, supply: str, now: float) -> Member:
        config, identifier = self._config, ids.new_id()
        path, lock = homes.make(config, identifier)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with open(path / "keeper.log", "wb") as log:
                fds = (theirs.fileno(), lock)
                words = [str(config.root / "containers" / identifier), *map(str, fds), str(path)]
                environment = {**os.environ, "CASEMATE_ROOT": str(config.root), "CASEMATE_RUN": str(config.run)}
                process = self._start(words, fds, log.fileno(), environment)
        except BaseException:
            ours.close()
            homes.remove(path)
            raise
        finally:
            theirs.close()
            os.close(lock)
        ours.settimeout(PEER_SECONDS)
        return Member(identifier, path, Connection(ours), process, supply, now)

    def _start(self, words: list[str], fds: tuple[int, int], log: int, environment: dict[str, str]) -> birth.Child:
        if self._keeper is None and birth.can_fork(words):
            return birth.fork(words, fds, log, environment)
        return subprocess.Popen(
            [*(self._keeper or birth.PROGRAM), *words],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=fds, cwd="/", env=environment,
        )  # fmt: skip

    def _hear(self, member: Member) -> None:
        """A member says that it is ready, or why not, or is gone."""
        try:
            message, fds = member.connection.receive()
            close_all(fds)
        except ControlClosed:
            self._fail(member, _last_words(member.path) or "it ended by itself")
            return
        if message.get("ready") is True:
            member.ready = True
            member.since = time.monotonic()
            self._counts.made += 1
            self._counts.seconds = message.get("seconds")
            self._pace.ended(member.since, True)
        else:
            self._fail(member, str(message.get("error", "it said nothing that is known"))[:500])

    def _fail(self, member: Member, reason: str) -> None:
        self._end(member)
        self._failed(reason)

    def _failed(self, reason: str) -> None:
        self._counts.failures += 1
        if reason != self._counts.error:
            self._say(f"a sandbox could not be kept ready: {reason}")
        self._counts.error = reason
        self._pace.ended(time.monotonic(), False)

    def _end(self, member: Member) -> None:
        """Let a member go; it ends by itself then, and is told so where it does not listen yet."""
        self._members.remove(member)
        member.connection.close()
        if not member.ready:
            with contextlib.suppress(ProcessLookupError):
                member.process.terminate()
        self._ending.append(member.process)

    # ---- handing them out

    def _serve(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        sock.settimeout(PEER_SECONDS)
        connection = Connection(sock)
        try:
            if _peer(sock) != os.geteuid():
                return
            request, fds = connection.receive()
            close_all(fds)
            if request.get("op") == "take":
                self._hand_out(connection, request)
            elif request.get("op") == "status":
                connection.send(self.status())
        except (CasemateError, OSError):
            pass  # who asked has gone, and a member that was on its way ends with its connection
        finally:
            connection.close()

    def _hand_out(self, connection: Connection, request: dict[str, Any]) -> None:
        reason = self._unfit(request)
        member = None
        if not reason:
            supply = self._supply.key()
            member = next((one for one in self._members if one.ready and one.supply == supply), None)
            reason = "" if member else "empty"
        if member is None:
            self._counts.refused += 1
            connection.send({"none": reason})
            return
        self._members.remove(member)
        self._out.append(member.process)
        self._counts.handed_out += 1
        self._pace.handed_out(time.monotonic())
        try:
            connection.send({"id": member.id, "path": str(member.path)}, (member.connection.fileno(),))
        finally:
            member.connection.socket.close()  # only ours: not shut down, for it is the door's now

    def _unfit(self, request: dict[str, Any]) -> str:
        """Why a container cannot have a member of this pool; empty where it can."""
        config = self._config
        if {key: request.get(key) for key in self._kind} != self._kind:
            return "other settings"
        memory, cpus, volumes = request.get("memory"), request.get("cpus"), request.get("volumes")
        from casemate.vm import template
        from casemate.vm.hypervisor import base

        if memory is not None and type(memory) is not int:
            return "bad memory"
        tcg = base.Accelerator.TCG  # which accelerator it is makes no difference to the class's bounds
        wanted = template.class_of(tcg, memory or config.memory, config.vcpus)
        if (memory or config.memory) < first_mib(config) or wanted is None:
            return "other memory"
        if wanted != template.class_of(tcg, first_mib(config), config.vcpus):
            return "other memory"
        if cpus is not None and (type(cpus) not in (int, float) or max(1, math.ceil(cpus)) != config.vcpus):
            return "other processors"
        if type(volumes) is not int or not 0 <= volumes <= client.MAX_VOLUMES:
            return "too many volumes"
        return ""

    def status(self) -> dict[str, Any]:
        """What there is and what was done, for ``casemate pool --status``."""
        now = time.monotonic()
        counts = self._counts
        return {
            "pid": os.getpid(),
            "size": self._size,
            "members": [
                {"id": one.id, "state": "ready" if one.ready else "starting", "seconds": round(now - one.since, 1)}
                for one in self._members
            ],
            "made": counts.made,
            "handed_out": counts.handed_out,
            "refused": counts.refused,
            "failures": counts.failures,
            "replaced": counts.replaced,
            "released": counts.released,
            "last_seconds": counts.seconds,
            "last_error": counts.error,
            "waits_for": self._waits_for,
        }

    # ---- the end

    def _drain(self) -> None:
        """End all members, and wait until nothing of them is left."""
        for member in list(self._members):
            self._end(member)
        deadline = time.monotonic() + DRAIN_SECONDS
        for process in self._ending:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for problem in homes.sweep(self._config):
            self._say(f"something is left: {problem}")


def _last_words(path: Path) -> str:
    with contextlib.suppress(OSError), open(path / "keeper.log", "rb") as file:
        lines = file.read(KEEP_MESSAGES).decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""
    return ""


def _peer(sock: socket.socket) -> int:
    """The user at the other end (unix(7), SO_PEERCRED)."""
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)


def _asked_to_end(wake: socket.socket) -> bool:
    """Take the signals that have come; whether one of them asks for the end, and not only tells of a child's."""
    with contextlib.suppress(BlockingIOError):
        return any(number in ENDING for number in wake.recv(4096))
    return False


@contextlib.contextmanager
def _held(config: Config) -> Iterator[None]:
    """Be the only pool of these directories.

    Raises:
        HostError: there is one already.
    """
    directory = client.socket_path(config).parent
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"{directory} cannot be used: {error.strerror}", "run as root") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise HostError("a pool runs already", "see: casemate pool --status") from None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _listening(config: Config) -> Iterator[socket.socket]:
    """The socket that doors come to; nobody but its owner can.

    Raises:
        HostError: it cannot be made.
    """
    path = client.socket_path(config)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        before = os.umask(0o177)
        try:
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            listener.listen(128)
            listener.setblocking(False)
        except OSError as error:
            raise HostError(f"{path} cannot be made: {error.strerror}") from None
        finally:
            os.umask(before)
        yield listener

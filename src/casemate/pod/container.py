"""One container as its sandbox's keeper has it: its record, its processes, and their stand-ins on the host."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from casemate.errors import ContainerError, NotRunning, UsageError
from casemate.keeper.process import Process
from casemate.pod.model import LIVE, Record, guest_name
from casemate.pod.store import PodStore
from casemate.sandbox import ProcessExit

MAX_LINE = 128
"""Bytes of a line from a stand-in."""
MAX_NUMBER = 65535
MAX_SIGNALS = 128
"""Signals of one stand-in that wait to be passed on; the kernel does not keep as many either."""
GONE_SECONDS = 2.0
"""How long a stand-in may take to end when it was told to."""
STUCK_SECONDS = 10.0
"""How long a reader may leave the last output of a process that has ended, before the end is told without it."""
CONTAINER_TYPES = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")
KEPT = ("in", "out", "both", "null")
"""What a further descriptor of a process can be, see :class:`casemate.sandbox.PodSandbox`."""
MAX_ENDS = 256
"""Ended processes of a container whose end can still be asked for."""

Heard = Callable[[str, tuple[int, ...]], None]


class StandIn:
    """The keeper's end of a stand-in's socket: lines ``size ROWS COLUMNS`` and ``signal N`` come from it, ``exit N``
    goes there, and its end is the stand-in's.

    What it says is passed on by a thread of its own, as that may have to wait for the guest: the end of a stand-in has
    to be heard meanwhile, and a stand-in that cannot get rid of its words hears nothing itself.

    Arguments:
        descriptor: the socket; taken over.
        heard: called with the word and numbers of each line; of sizes that come faster than it returns, with the last.
        gone: called once when the stand-in has ended.
    """

    def __init__(self, descriptor: int, heard: Heard, gone: Callable[[], None]) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._heard, self._gone = heard, gone
        self._ended = threading.Event()
        self._lock = threading.Lock()  # guards the rest
        self._signals: deque[tuple[int, ...]] = deque()
        self._size: tuple[int, ...] | None = None
        self._passing = False
        threading.Thread(target=self._read, name="standin", daemon=True).start()

    def _read(self) -> None:
        rest = b""
        while True:
            try:
                data = self._socket.recv(4096)
            except OSError:
                data = b""
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-MAX_LINE:]
            for line in lines:
                word, *numbers = line[:MAX_LINE].split()[:4] or [b""]
                if word in (b"size", b"signal") and all(number.isdigit() for number in numbers):
                    self._take(word, tuple(min(int(number), MAX_NUMBER) for number in numbers))
        self._ended.set()
        self._gone()
        self._socket.close()

    def _take(self, word: bytes, numbers: tuple[int, ...]) -> None:
        with self._lock:
            if word == b"size":
                self._size = numbers
            elif len(self._signals) < MAX_SIGNALS:
                self._signals.append(numbers)
            if self._passing:
                return
            self._passing = True
        try:
            threading.Thread(target=self._pass_on, name="words", daemon=True).start()
        except RuntimeError:  # there can be no more threads; the next word tries anew
            with self._lock:
                self._passing = False

    def _pass_on(self) -> None:
        while True:
            with self._lock:
                if self._signals:
                    word, numbers = "signal", self._signals.popleft()
                elif self._size is not None:
                    (word, numbers), self._size = ("size", self._size), None
                else:
                    self._passing = False
                    return
            self._heard(word, numbers)

    def tell(self, status: int) -> None:
        """Have it end with ``status``, and wait a moment until it has."""
        with contextlib.suppress(OSError):
            self._socket.send(b"exit %d\n" % (status & 255), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        self._ended.wait(GONE_SECONDS)

    def close(self) -> None:
        """Let go of it; it then ends by itself."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class Task:
    """One process of a container.

    Arguments:
        exec_id: its name; None for the container's first.
        key: its name in the guest; None for the first.
        pid: its stand-in.
    """

    def __init__(self, exec_id: str | None, key: str | None, pid: int) -> None:
        self.exec_id, self.key, self.pid = exec_id, key, pid
        self.standin: StandIn | None = None
        self.size: tuple[int, int] | None = None
        """A size that the stand-in told before there was a terminal in the guest."""
        self.gone = False
        """Whether the stand-in ended before it was told to."""
        self.end: ProcessExit | None = None
        self.at = 0.0
        self.done = threading.Event()
        """Set when its end has been told."""
        self._lock = threading.Lock()
        self._process: Process | None = None
        self._early: ProcessExit | None = None
        self._told = False

    def adopt(self, process: Process) -> None:
        """It runs, and this carries its streams."""
        with self._lock:
            self._process = process
            early = self._early
        if early is not None:
            self.exited(early)  # nobody could be told before

    @property
    def over(self) -> bool:
        """Whether it has ended in the guest."""
        return self._early is not None

    @property
    def begun(self) -> bool:
        """Whether it has been adopted."""
        return self._process is not None

    def exited(self, end: ProcessExit) -> None:
        """It has ended in the guest; what it wrote may still be on its way."""
        with self._lock:
            self._early = self._early or end
            process = self._process
            if process is None or self._told:
                return
            self._told = True
        process.exited(end)
        threading.Thread(target=self._drain, args=(process,), name="drain", daemon=True).start()

    def _drain(self, process: Process) -> None:
        """Do not wait for ever for a reader that takes nothing: with other runtimes the end would not either."""
        while not self.done.wait(1.0):
            if process.stuck() > STUCK_SECONDS:
                process.detach()
                return

    def detach(self) -> None:
        """Let go of its streams on the host."""
        with self._lock:
            process = self._process
        if process is not None:
            process.detach()

    def close_stdin(self) -> None:
        """End its standard input."""
        with self._lock:
            process = self._process
        if process is not None:
            process.close_stdin()

    def result(self) -> dict[str, Any]:
        """How it ended, for who waits."""
        end = self.end or ProcessExit(255)
        return {"status": end.status, "signal": end.signal, "oom": end.oom, "error": end.error, "at": self.at}


class Container:
    """One container.

    Arguments:
        store: where its record is.
        record: its record as its maker left it.
        spec: its specification, as its bundle had it.
    """

    def __init__(self, store: PodStore, record: Record, spec: dict[str, Any]) -> None:
        self.id = record.id
        self.name = guest_name(record.id)
        self.record = record
        self.spec = spec
        self.resources: dict[str, Any] = (spec.get("linux") or {}).get("resources") or {}
        score = (spec.get("process") or {}).get("oomScoreAdj")
        self.oom_score = score if type(score) is int and -1000 <= score <= 1000 else 0
        self.is_pod = any(record.annotations.get(key) == "sandbox" for key in CONTAINER_TYPES)
        """Whether it is the one that a CRI engine makes to have a pod's namespaces."""
        self.tasks: dict[str | None, Task] = {None: Task(None, None, record.pid)}
        """Exec id to process; those that have ended stay for a while."""
        self.aborted: ProcessExit | None = None
        """Why it is not to come up, or did not end by itself."""
        self.ending = False
        self.ended = False
        """Whether it no longer keeps the sandbox alive, though its end may still have to be told."""
        self.starting = threading.Lock()
        """Held while it is started, so that its end is told after its start."""
        self.oom_told = threading.Event()
        self.oom_next = 0.0
        """When a kill for want of memory is to be told again, by the monotonic clock."""
        self._store = store
        self._lock = threading.RLock()
        self._next = 0
        self.oom_told.set()

    @property
    def init(self) -> Task:
        """Its first process."""
        return self.tasks[None]

    @property
    def live(self) -> bool:
        """Whether it has not stopped."""
        return self.record.status in LIVE

    def update(self, expected: tuple[str, ...] = LIVE, **changes: Any) -> bool:
        """Change the record when its status is one of ``expected``; False when it is not.

        A full disk must not end a container: the record is then behind the truth until the next change.
        """
        with self._lock:
            if self.record.status not in expected:
                return False
            self.record = replace(self.record, **changes)
            with contextlib.suppress(OSError):
                self._store.write(self.record)
            return True

    def save(self, **changes: Any) -> None:
        """Change the record, on disk first.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:
            record = replace(self.record, **changes)
            self._store.write(record)
            self.record = record

    def add_exec(self, exec_id: str, pid: int) -> Task:
        """Put another process on record.

        Raises:
            NotRunning: the container takes none.
            ContainerError: there is one of that name.
        """
        with self._lock:
            status = self.record.status
            if status == "paused":
                raise NotRunning("cannot exec in a paused container", "resume it first")
            if self.ending or status not in ("running", "created"):
                raise NotRunning("cannot exec in a stopped container")
            known = self.tasks.get(exec_id)
            if known is not None and not known.done.is_set():
                raise ContainerError(f"exec {exec_id[:80]} exists already", "choose another name")
            ended = [key for key, task in self.tasks.items() if key is not None and task.done.is_set()]
            for key in ended[: max(0, len(ended) - MAX_ENDS)]:
                del self.tasks[key]
            self._next += 1
            task = Task(exec_id, f"exec-{self._next}", pid)
            self.tasks[exec_id] = task
            self.update(execs={**self.record.execs, exec_id: pid})
            return task

    def drop_exec(self, task: Task, *, forget: bool = False) -> None:
        """Take a process off the record; ``forget``: it never ran."""
        with self._lock:
            left = {key: pid for key, pid in self.record.execs.items() if key != task.exec_id}
            self.update(execs=left)
            if forget:
                self.tasks.pop(task.exec_id, None)

    def execs(self) -> list[Task]:
        """Its other processes that have not ended."""
        with self._lock:
            return [task for key, task in self.tasks.items() if key is not None and not task.done.is_set()]

    def by_key(self, key: str | None) -> Task | None:
        """The process of a name in the guest."""
        with self._lock:
            return next((task for task in self.tasks.values() if task.key == key), None)

    def task(self, exec_id: str | None) -> Task:
        """A process that has not ended.

        Raises:
            NotRunning: it has, or there never was one.
        """
        task = self.tasks.get(exec_id)
        if task is None or task.done.is_set():
            what = "container not running" if exec_id is None else "process already finished"
            raise NotRunning(what)
        return task


def close_all(fds: dict[str, int]) -> None:
    """Close descriptors that nobody took."""
    for descriptor in fds.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)


def kept_of(request: dict[str, Any], fds: dict[str, int]) -> list[str]:
    """What the further descriptors of a process are that a request comes with.

    Raises:
        UsageError: there are others than those that it tells of.
    """
    kinds = [str(kind) for kind in request.get("kept") or ()]
    if not all(f"kept{place}" in fds and kind in KEPT for place, kind in enumerate(kinds)):
        raise UsageError("the request does not say what its descriptors are", "is the keeper of another version?")
    return kinds


def size_of(request: dict[str, Any]) -> tuple[int, int] | None:
    """The rows and columns that a request names."""
    size = request.get("size")
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) and len(size) == 2 else None


def nameservers(spec: dict[str, Any]) -> tuple[str, ...]:
    """The name servers in the engine's namespace that a container's ``resolv.conf`` names, which the guest cannot reach
    by itself (Docker's 127.0.0.11)."""
    from casemate.pod.resolver import loopback_servers

    namespaces = (spec.get("linux") or {}).get("namespaces") or ()
    fresh = any(entry.get("type") == "network" and not entry.get("path") for entry in namespaces)
    # Docker writes the address into resolv.conf when a running container joins its first network with names.
    found = ["127.0.0.11"] if fresh else []
    for mount in spec.get("mounts") or ():
        if mount.get("destination") == "/etc/resolv.conf" and mount.get("source"):
            found += loopback_servers(_read_small(Path(mount["source"])))
    return tuple(dict.fromkeys(found))[:3]


def _read_small(path: Path, limit: int = 65536) -> str:
    """The beginning of a regular file that somebody else named."""
    import stat

    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return os.read(descriptor, limit).decode(errors="replace")
        finally:
            os.close(descriptor)
    return ""

"""The keeper of a sandbox: brings its machine up with the first container, serves all, and ends with the last."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from casemate.errors import (
    CasemateError,
    ContainerError,
    NameInUse,
    NoSuchContainer,
    NotRunning,
    StillRunning,
    UsageError,
)
from casemate.host import processes
from casemate.keeper.control import SOCKET_NAME, Connection, ControlClosed, error_message
from casemate.keeper.process import Process
from casemate.pod import reap
from casemate.pod.bounds import number, section
from casemate.pod.cgroup import machine_mib
from casemate.pod.client import STDIO_NAMES
from casemate.pod.container import Container, StandIn, Task, kept_of, nameservers, size_of
from casemate.pod.home import Home, oom_score
from casemate.pod.model import PodRecord
from casemate.pod.network import log_line
from casemate.pod.operations import Operations
from casemate.pod.server import Feed, Given, Server
from casemate.pod.store import Pod, PodStore
from casemate.sandbox import Disk, Nic, PodSandbox, ProcessExit, ProcessStreams

MAX_CONTAINERS = 64
EXEC_SECONDS = 5.0
"""How long other processes of a container may outlive its first one, which in most of them ends them all."""
KILL_SECONDS = 1.0
"""How long they may take to end once they are killed."""
OOM_SECONDS = 5.0
"""How long the end of a container may wait until the host's control group has seen a kill for want of memory."""
TELL_SECONDS = 30.0
"""How long telling the ends of all containers may take."""
OOM_INTERVAL = 15.0
"""How often it is made to see one."""
CLOSE_SECONDS = 5.0
"""How long network and helpers may take to end, before the machine that they talk to is ended under them."""
NETWORK_SECONDS = 10.0
"""How long a start waits for what an engine has changed about the network since the sandbox was made."""
DELETE_SECONDS = 15.0
"""How long a guest may take to let go of a stopped container, before that is removed without it."""


class Network(Protocol):
    """What is needed of :class:`casemate.pod.network.PodNetwork`."""

    def nics(self) -> list[Nic]:
        """The interfaces to begin with."""

    def follow(self) -> None:
        """Carry over changes."""

    def catch_up(self, seconds: float) -> None:
        """Wait until those of before are."""

    def close(self) -> None:
        """Stop that."""


class Wall(Protocol):
    """Makes a sandbox."""

    def __call__(
        self, wall: str, pod: Pod, memory_mib: int, cpus: float | None, procs: tuple[Path, ...], oom_score: int
    ) -> PodSandbox:
        """The sandbox behind ``wall`` (vm, sentry), not booted yet, whose processes join the control groups of
        ``procs``."""


class PodKeeper:
    """The life of one sandbox.

    Arguments:
        store: where its containers are on record.
        pod: its lock is held by this process.
        wall: makes the sandbox.
        network: makes its network, from the sandbox and a descriptor of the engine's namespace.
        helpers: services beside it, made of the sandbox and that descriptor, and started and closed with it.
    """

    def __init__(
        self,
        store: PodStore,
        pod: Pod,
        wall: Wall,
        network: Callable[[PodSandbox, int], Network],
        helpers: Callable[[PodSandbox, int, dict[str, Any]], list[Any]] = lambda sandbox, netns, spec: [],
    ) -> None:
        self.store, self.pod = store, pod
        self.config = store.config
        self._wall, self._make_network, self._make_helpers = wall, network, helpers
        self._lock = threading.Lock()
        self._containers: dict[str, Container] = {}
        self._names: dict[str, Container] = {}
        self._sandbox: PodSandbox | None = None
        self._settled = threading.Event()
        """Set when the machine is up, or is not to come up."""
        self._up = False
        self._network: Network | None = None
        self._helpers: list[Any] = []
        self._growing = threading.Lock()
        self.home = Home(0, self.config.overhead)
        self._netns = -1
        self._ending = False
        self._over = threading.Event()
        self._gone = threading.Event()
        self._aborted: ProcessExit | None = None
        self.feed = Feed()
        self._server = Server(Operations(self), self._unheard, self.feed)
        pid = os.getpid()
        self._me = pid, processes.start_time(pid) or 0
        self.record = PodRecord(pod.id, keeper=pid, keeper_start=self._me[1], created=time.time())

    # ---- life

    def run(self, first: Connection) -> None:
        """Do everything; returns when nothing is left to do.

        Arguments:
            first: the connection of whoever started the keeper, who asks for the first container on it.
        """
        try:
            self.pod.write(self.record)
            self._server.listen(self.pod.run_path / SOCKET_NAME)
            self.pod.announce()
        except OSError as error:
            self._finish()
            with contextlib.suppress(ControlClosed):
                first.receive()
                first.send(error_message(error))
            return
        try:
            request, fds = first.receive()
        except ControlClosed:
            self._finish()  # whoever started us has changed his mind
            self._server.linger()
            return
        answer: dict[str, Any]
        try:
            if request.get("op") != "create":
                raise UsageError("the first request to a sandbox's keeper must be for a container")
            with Given(request, fds) as given:
                answer = self.create(request, given, first)
        except Exception as error:  # whatever went wrong, the one who waits has to be told
            with self._lock:
                self._ending = True
            self._finish()
            with contextlib.suppress(ControlClosed):
                first.send(error_message(ContainerError(self._aborted.error) if self._aborted else error))
            first.close()
            self._server.linger()
            if not isinstance(error, CasemateError | OSError):
                raise
            return
        try:
            first.send(answer)
        except ControlClosed:  # nobody knows that it is there
            self.kill(self.get(str(request["id"])))
        first.close()
        self._over.wait()
        with self._lock:
            containers = list(self._containers.values())
        # Another may have been the last, and this one is still being told of.
        _all_done([container.init for container in containers], TELL_SECONDS)
        self._finish()
        self._server.linger()

    def abort(self, reason: str, status: int = 255) -> None:
        """End all containers and the machine now, in whatever state they are."""
        end = ProcessExit(status, error=reason)
        with self._lock:
            self._aborted = self._aborted or end
            containers = list(self._containers.values())
            sandbox = self._sandbox
        for container in containers:
            self._abort_container(container, end)
        if sandbox is not None:
            sandbox.close()

    def _abort_container(self, container: Container, end: ProcessExit) -> None:
        container.aborted = container.aborted or end
        for task in [*container.execs(), container.init]:
            task.exited(end)

    def _finish(self) -> None:
        """Give everything back. The records of the containers say already how they ended."""
        self._server.close()
        steps: list[Callable[[], object]] = [helper.close for helper in self._helpers]
        if self._network is not None:
            steps.append(self._network.close)
        if self._sandbox is not None:
            # What is beside the machine may be telling the guest something, which need not listen.
            guard = threading.Timer(CLOSE_SECONDS, reap.attempt, ([self._sandbox.close],))
            guard.daemon = True
            guard.start()
            steps += [guard.cancel, self._sandbox.close]
        steps.append(lambda: reap.clean_pod(self.pod))
        problem = reap.attempt(steps)
        if self._netns >= 0:
            os.close(self._netns)
            self._netns = -1
        if problem:
            log_line(f"something is left on the host: {problem}")
        self._gone.set()
        self._settled.set()
        self.feed.close()

    # ---- containers

    def create(self, request: dict[str, Any], fds: dict[str, int], maker: Connection | None = None) -> dict[str, Any]:
        """Make a container that is on record, and bring the machine up for the first one.

        Arguments:
            request, fds: see :meth:`casemate.pod.client.PodClient.create`.
            maker: the connection of whoever makes the first one; None for another, which waits for the machine.

        Raises:
            CasemateError, OSError: it cannot be made; nothing is left of it then but its record.
        """
        id = str(request["id"])
        record = self.store.stored(id)
        if record.status != "creating" or record.pod != self.pod.id:
            raise UsageError(f"container {id} is {record.status}, or of another sandbox")
        full = self.store.spec(id)
        container = Container(self.store, record, full)
        with self._lock:
            if self._ending or self._aborted:
                raise NotRunning("container not running: its sandbox has ended")
            if id in self._containers or container.name in self._names:
                raise NameInUse(f"container with id exists: {id}")
            if len(self._containers) >= MAX_CONTAINERS:
                raise ContainerError(f"a sandbox holds at most {MAX_CONTAINERS} containers", "use another one")
            self._containers[id] = self._names[container.name] = container
        maker_pid = record.creator, record.creator_start
        task = container.init
        try:
            container.save(creator=self._me[0], creator_start=self._me[1])
            task.standin = self.meet(container, task, fds)
            if maker is not None:
                threading.Thread(target=self._watch, args=(maker, container), name="maker", daemon=True).start()
                self._boot(container, request, fds, full)
            else:
                self._settled.wait()
            sandbox = self.machine()
            if maker is None:
                for disk in _disks(request, fds):
                    sandbox.plug_disk(disk)
                self.make_room(container, container.resources, partly=True)
            self._check(container)
            sandbox.attach(container.name, fds.pop("root"), fds.pop("volumes", None))
            terminal = bool((request["spec"].get("process") or {}).get("terminal"))
            streams = sandbox.create(
                container.name, request["spec"], request.get("files") or [], "stdin" in fds, size_of(request),
                kept_of(request, fds),
            )  # fmt: skip
            self.adopt(container, task, streams, fds, terminal)
            with container.starting:
                self._check(container)
                if container.ending or task.over:
                    raise ContainerError("the container's process ended before it was started")
                container.save(status="created")
        except BaseException:
            self._undo(container, maker_pid)
            raise
        if maker is not None:
            self._settle_network(full)
        self._rebound()
        return {}

    def make_room(self, container: Container, resources: dict[str, Any], *, partly: bool) -> None:
        """Have the machine grow where its containers may use more than it has.

        Arguments:
            container: one of them.
            resources: the bounds that it is to have.
            partly: have it grow as far as it can, and the host has it, where it cannot have all; else not at all.

        Raises:
            CasemateError: the guest did not take the memory.
        """
        with self._growing:
            others = [one.resources for one in self.living() if one is not container]
            asked = sum(max(0, number(section(one, "memory"), "limit") or 0) for one in (*others, resources))
            wanted = machine_memory(asked, 0, 0)
            if wanted <= self.home.memory_mib or (machine_mib(-(-asked >> 20)) > wanted and not partly):
                return
            sandbox, had = self.machine(), self.home.memory_mib
            self.home.grown(wanted, self.living())  # first: the guest may use it at once, even where it fails to say so
            has = sandbox.grow(wanted, partly=partly)
            if has < wanted:
                log_line(f"the machine has {has} MiB of memory, and its containers may use {asked >> 20} MiB")
                self.home.grown(max(has, had), self.living())
            if has > had:
                self.record = replace(self.record, memory_mib=has)
                with contextlib.suppress(OSError):
                    self.pod.write(self.record)

    def _check(self, container: Container) -> None:
        """Stop making a container whose maker, stand-in or keeper is not to live."""
        aborted = container.aborted or self._aborted
        if aborted is not None:
            raise ContainerError(aborted.error)

    def _boot(self, container: Container, request: dict[str, Any], fds: dict[str, int], spec: dict[str, Any]) -> None:
        memory = request.get("memory")
        self.home.memory_mib = machine_memory(memory, self.config.memory, self.config.memory_minimum)
        procs = self.home.settle(container)
        wall = str(request.get("wall") or self.config.wall)
        sandbox = self._wall(wall, self.pod, self.home.memory_mib, request.get("cpus"), procs, oom_score([container]))
        sandbox.on_exit, sandbox.on_oom, sandbox.on_end = self._process_exited, self._out_of_memory, self._machine_ended
        with self._lock:
            self._sandbox = sandbox
        self._check(container)
        self._netns = fds.pop("netns")
        if sandbox.carried:
            self._network = self._make_network(sandbox, self._netns)
        disks = list(_disks(request, fds))
        try:
            nics = [] if self._network is None else self._network.nics()
        except BaseException:
            for disk in disks:
                os.close(disk.fd)
            raise
        sandbox.boot(self._netns, nics, disks, str(request.get("hostname") or ""))
        self._up = True
        self._settled.set()
        guest = {key: value for key, value in sandbox.info().items() if key != "processes"}
        self.record = PodRecord(
            self.pod.id, *self._me, created=self.record.created, memory_mib=self.home.memory_mib, guest=guest
        )
        with contextlib.suppress(OSError):
            self.pod.write(self.record)

    def catch_up(self) -> None:
        """Have the guest's network be what the engine has made by now."""
        if self._network is not None:
            self._network.catch_up(NETWORK_SECONDS)

    def _settle_network(self, spec: dict[str, Any]) -> None:
        """What goes on beside the machine; a sandbox does not end for want of it."""
        assert self._sandbox is not None
        if self._network is None:
            return
        try:
            self._network.follow()
        except (CasemateError, OSError) as error:
            log_line(f"network: {error}")
        for helper in self._make_helpers(self._sandbox, self._netns, spec):
            try:
                helper.start()
                self._helpers.append(helper)
            except (CasemateError, OSError) as error:
                log_line(f"{type(helper).__name__}: {error}")
                helper.close()

    def _watch(self, maker: Connection, container: Container) -> None:
        """Give up when whoever wants the first container goes away while it is made."""
        with contextlib.suppress(ControlClosed, ValueError):
            maker.receive()
        if container.record.status == "creating" and not self._gone.is_set():
            self.abort("whoever made the container went away")

    def _undo(self, container: Container, maker: tuple[int, int]) -> None:
        """Take back a container that did not come up."""
        task = container.init
        with self._lock:
            self._containers.pop(container.id, None)
            self._names.pop(container.name, None)
            sandbox = self._sandbox if self._up else None
        container.update(("creating", "created"), status="creating", creator=maker[0], creator_start=maker[1])
        task.done.set()  # first: that its stand-in ends now is no reason for anything
        if task.standin is not None:
            task.standin.close()
        task.exited(ProcessExit(255))
        if sandbox is not None:
            for step in (sandbox.delete, sandbox.detach):
                with contextlib.suppress(CasemateError, OSError):
                    step(container.name)
        self._end_if_last()

    def meet(self, container: Container, task: Task, fds: dict[str, int]) -> StandIn:
        """Listen to a process's stand-in."""

        def heard(word: str, numbers: tuple[int, ...]) -> None:
            if word == "size" and len(numbers) == 2:
                rows, columns = task.size = numbers[0], numbers[1]
                if task.begun:  # asked after the size is known: else whoever lets it begin passes it on
                    with contextlib.suppress(CasemateError):
                        self.machine().resize(container.name, task.key, rows, columns)
            elif word == "signal" and len(numbers) == 1 and task.begun and 0 < numbers[0] <= 64:
                with contextlib.suppress(CasemateError):
                    self.machine().signal(container.name, task.key, numbers[0])

        def gone() -> None:
            task.gone = True
            if task.end is not None or task.done.is_set():
                return
            if task.exec_id is not None:
                if task.begun:
                    with contextlib.suppress(CasemateError):
                        self.machine().signal(container.name, task.key, signal.SIGKILL)
            elif container.record.status == "creating":
                self.give_up(container, "its process on the host was killed", 128 + signal.SIGKILL)
            else:
                self.kill(container)

        return StandIn(fds.pop("standin"), heard, gone)

    def adopt(
        self, container: Container, task: Task, streams: ProcessStreams, fds: dict[str, int], terminal: bool
    ) -> None:
        """Carry the streams of a process that was made."""
        stdio: dict[str, int] = {name: fds.pop(name) for name in STDIO_NAMES if name in fds}
        kept = [fds.pop(f"kept{place}") for place in range(len(streams.kept))]
        if terminal:
            import termios

            from casemate.host.terminals import make_raw

            for descriptor in stdio.values():
                with contextlib.suppress(termios.error):  # it may have gone by now
                    make_raw(descriptor)

        def ended(end: ProcessExit) -> None:
            (self._init_ended if task.exec_id is None else self._exec_ended)(container, task, end)

        task.adopt(Process(streams, stdio, None, ended, kept))
        if task.size is not None:
            with contextlib.suppress(CasemateError):
                self.machine().resize(container.name, task.key, *task.size)

    # ---- for requests

    def machine(self) -> PodSandbox:
        sandbox = self._sandbox
        if sandbox is None or not self._up or self._gone.is_set():
            raise NotRunning("container not running: its sandbox is not up")
        return sandbox

    def get(self, id: str) -> Container:
        with self._lock:
            container = self._containers.get(id)
        if container is None:
            raise NoSuchContainer(f'container "{id}" does not exist')
        return container

    def living(self) -> list[Container]:
        with self._lock:
            return [one for one in self._containers.values() if one.live]

    def give_up(self, container: Container, reason: str, status: int) -> None:
        """Stop making a container."""
        if len(self.living()) <= 1:
            self.abort(reason, status)
        else:
            container.aborted = container.aborted or ProcessExit(status, error=reason)

    def kill(self, container: Container, *, everyone: bool = False) -> None:
        """SIGKILL for a container; if the guest does not see to it, for the whole sandbox. Does not wait for a guest
        that may not answer.

        Arguments:
            everyone: not only for its first process, which is the same where that is the first of a pid namespace.
        """

        def end() -> None:
            steps: list[Callable[[], None]] = [
                lambda: self.machine().signal(container.name, None, signal.SIGKILL, everyone),
                lambda: self.machine().delete(container.name),
            ]
            for step in steps:
                if len(self.living()) == 1 and step is steps[1]:
                    break
                worker = threading.Thread(target=reap.attempt, args=([step],), name="kill", daemon=True)
                worker.start()
                if container.init.done.wait(self.config.stop_timeout):
                    return
            self.abort("the guest did not end a container, so the whole sandbox was killed", 128 + signal.SIGKILL)

        threading.Thread(target=end, name="killer", daemon=True).start()

    def remove(self, id: str, *, force: bool) -> bool:
        """Let go of a stopped container, or of one that lives, with ``force``.

        Returns:
            whether it is gone and the sandbox goes on; else that ends.

        Raises:
            StillRunning: it lives.
            CasemateError: the machine cannot leave its control group, or the host does not take its files away.
        """
        with self._lock:
            container = self._containers.get(id)
            if container is None:
                # Where there is no machine yet, its maker has not asked for it: he is gone, and we shall be.
                return self._up and not self._ending
        if container.live:
            if not force:
                raise StillRunning(f"cannot delete container {id} that is not stopped: {container.record.status}")
            if container.record.status == "creating":
                self.give_up(container, "deleted before it was made", 128 + signal.SIGKILL)
                return False  # the next time it is unknown here
            self.kill(container)
            container.init.done.wait()
        with self._lock:
            if self._ending:
                return False
        sandbox = self.machine()
        self.home.leave(container, self.living())
        self._forget(sandbox, container.name)
        with contextlib.suppress(NotRunning):
            sandbox.detach(container.name)
        with self._lock:
            self._containers.pop(id, None)
            self._names.pop(container.name, None)
        return True

    @staticmethod
    def _forget(sandbox: PodSandbox, name: str) -> None:
        """Have the guest remove a stopped container. It has ended for everybody else, so this does not depend on it."""

        def delete() -> None:
            if problem := reap.attempt([lambda: sandbox.delete(name)]):
                log_line(f"the guest has not removed container {name}: {problem}")

        worker = threading.Thread(target=delete, name="delete", daemon=True)
        worker.start()
        worker.join(DELETE_SECONDS)

    def info(self) -> dict[str, Any]:
        """What the sandbox is, and the statuses of its containers."""
        with self._lock:
            containers = {id: container.record.status for id, container in self._containers.items()}
        about = self.machine().info() if self._up else {}
        return {**about, "pod": self.pod.id, "keeper": self._me[0], "containers": containers}

    def _unheard(self, op: str, request: dict[str, Any]) -> None:
        """Nobody could be told that something is done, so nobody knows that it is there. An engine whose ``start`` died
        takes the container for one that has not started, and deletes it as such."""
        with contextlib.suppress(CasemateError):
            if op in ("create", "start"):
                self.kill(self.get(str(request["id"])))
            elif op == "exec":
                container = self.get(str(request["id"]))
                task = container.task(str(request["exec"]))
                self.machine().signal(container.name, task.key, signal.SIGKILL)

    # ---- ends

    def _process_exited(self, name: str, key: str | None, end: ProcessExit) -> None:
        with self._lock:
            container = self._names.get(name)
        task = container.by_key(key) if container is not None else None
        if task is not None:
            task.exited(end)

    def _machine_ended(self, end: ProcessExit) -> None:
        log_line(f"the machine ended: {end.error}")

    def _out_of_memory(self, name: str) -> None:
        """Something was killed in a container, which may well go on without it."""
        with self._lock:
            container = self._names.get(name)
        # One at a time, and not too often: a hostile guest may tell of as many as it likes.
        if container is None or time.monotonic() < container.oom_next:
            return
        container.oom_next = time.monotonic() + OOM_INTERVAL
        container.oom_told.clear()
        container.update(oom_killed=True)
        self.feed.tell({"event": "oom", "id": container.id, "exec": None, "at": time.time()})

        def strike() -> None:
            from casemate.pod import oom

            try:
                oom.strike(self.home.group(container), shared=self.home.holds(container))
            except (CasemateError, OSError) as error:
                log_line(f"the host's control group cannot be told of the kill: {error}")
            finally:
                container.oom_told.set()

        if not _beside(strike, "oom"):
            container.oom_told.set()

    def _exec_ended(self, container: Container, task: Task, end: ProcessExit) -> None:
        self._set_end(task, end)
        if task.standin is not None:
            task.standin.tell(end.status)
            task.standin.close()
        container.drop_exec(task)
        self.feed.tell({"event": "exit", "id": container.id, "exec": task.exec_id, **task.result()})
        task.done.set()

    def _init_ended(self, container: Container, task: Task, end: ProcessExit) -> None:
        """The container's first process has ended and its output is delivered. Its end is told when all else is."""
        end = container.aborted or end
        with container.starting:
            container.ending = True
        if container.record.status == "creating":  # it is being taken back
            task.done.set()
            return
        self._end_execs(container)
        if end.oom and not container.record.oom_killed:
            self._out_of_memory(container.name)
        container.oom_told.wait(OOM_SECONDS)
        self._set_end(task, end)
        with self._lock:
            container.ended = True
            last = not any(one.live and not one.ended for one in self._containers.values())
            self._ending = self._ending or last
            sandbox = self._sandbox
        if last and sandbox is not None and (end.oom or not end.error):
            sandbox.flush()
        container.update(
            status="stopped", exit_code=end.status, error=end.error, finished=task.at, execs={},
            oom_killed=end.oom or container.record.oom_killed,
        )  # fmt: skip
        if task.standin is not None:
            task.standin.tell(end.status)
            task.standin.close()
        self.feed.tell({"event": "exit", "id": container.id, "exec": None, **task.result()})
        task.done.set()
        if last:
            self._over.set()
        else:
            self._rebound()

    def _end_execs(self, container: Container) -> None:
        """Wait for the container's other processes, so that their ends are told before its own."""
        if _all_done(container.execs(), EXEC_SECONDS):
            return
        # In a pid namespace that others share, they have outlived it. The guest need not answer.
        kill = [lambda: self.machine().signal(container.name, None, signal.SIGKILL, everyone=True)]
        if _beside(lambda: reap.attempt(kill), "kill") and _all_done(container.execs(), KILL_SECONDS):
            return
        left = container.execs()
        for task in left:
            task.exited(ProcessExit(128 + signal.SIGKILL, signal=signal.SIGKILL))
        _all_done(left, EXEC_SECONDS)

    @staticmethod
    def _set_end(task: Task, end: ProcessExit) -> None:
        task.end, task.at = end, time.time()

    def _end_if_last(self) -> None:
        """End when nothing is left that could live."""
        with self._lock:
            sandbox = self._sandbox
            if not self._up or sandbox is None or any(one.live and not one.ended for one in self._containers.values()):
                return
            self._ending = True
        sandbox.flush()  # those that have ended meanwhile left it to the one that did not come up
        self._over.set()

    def _rebound(self) -> None:
        """Bring the bounds of the machine's group up to date; it runs on with those that it had where that fails."""
        try:
            self.home.bound(self.living())
        except (CasemateError, OSError) as error:
            log_line(str(error))


def _beside(work: Callable[[], object], name: str) -> bool:
    """Do something on a thread of its own; False when there can be no more threads, which no end may depend on."""
    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    except RuntimeError as error:
        log_line(f"{name}: {error}")
        return False
    return True


def _all_done(tasks: Iterable[Task], seconds: float) -> bool:
    """Wait until the ends of processes have been told, at most so long for all of them; whether they have."""
    deadline = time.monotonic() + seconds
    return all([task.done.wait(max(0.0, deadline - time.monotonic())) for task in tasks])


def _disks(request: dict[str, Any], fds: dict[str, int]) -> Iterator[Disk]:
    """Takes the descriptor of each only when it is asked for."""
    for place, (serial, read_only) in enumerate(request.get("disks") or ()):
        yield Disk(str(serial), fds.pop(f"disk{place}"), bool(read_only))


def machine_memory(asked: int | None, usual: int, least: int) -> int:
    """MiB for a machine whose containers may use ``asked`` bytes (None: no bound, so the usual size), at most what the
    host has."""
    if not asked or asked < 0:
        return usual
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    return max(least, min(machine_mib(-(-asked >> 20)), host))


def helpers(sandbox: PodSandbox, netns: int, spec: dict[str, Any]) -> list[Any]:
    """The services beside a sandbox: names from the engine's resolver, connections to its loopback."""
    from casemate.pod import forward
    from casemate.pod.resolver import Resolver

    addresses = nameservers(spec)
    found: list[Any] = [forward.Forward(sandbox, netns)] if forward.wanted(spec) else []
    if addresses:
        found.append(Resolver(sandbox, netns, addresses))
    return found

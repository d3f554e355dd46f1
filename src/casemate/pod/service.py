"""The keeper of a sandbox: brings its machine up with the first container, serves all, and ends with the last."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from casemate.errors import (
    CasemateError,
    ContainerError,
    HostError,
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
from casemate.pod.cgroup import GUEST_OVERHEAD_MIB
from casemate.pod.client import STDIO_NAMES
from casemate.pod.container import Container, StandIn, Task, close_all, make_raw, nameservers
from casemate.pod.home import Home, oom_score
from casemate.pod.model import PodRecord
from casemate.pod.store import Pod, PodStore
from casemate.sandbox import Disk, Nic, PodSandbox, ProcessExit, ProcessStreams

MAX_CLIENTS = 512
MAX_CONTAINERS = 64
MAX_EVENTS = 4096
"""Events that may wait for a subscriber; one that is further behind is cut off."""
EXEC_SECONDS = 5.0
"""How long other processes of a container may outlive its first one, which in most of them ends them all."""
OOM_SECONDS = 5.0
"""How long the end of a container may wait until the host's control group has seen a kill for want of memory."""
OOM_INTERVAL = 15.0
LINGER_SECONDS = 5.0
"""How long the keeper stays for answers that are still to be sent."""


class Network(Protocol):
    """What is needed of :class:`casemate.pod.network.PodNetwork`."""

    def nics(self) -> list[Nic]:
        """The interfaces to begin with."""

    def follow(self) -> None:
        """Carry over changes."""

    def close(self) -> None:
        """Stop that."""


class Wall(Protocol):
    """Makes a sandbox."""

    def __call__(
        self, pod: Pod, memory_mib: int, cpus: float | None, procs: tuple[Path, ...], oom_score: int
    ) -> PodSandbox:
        """The sandbox, not booted yet, whose processes join the control groups of ``procs``."""


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
        self._answered = threading.Condition(self._lock)
        self._containers: dict[str, Container] = {}
        self._names: dict[str, Container] = {}
        self._sandbox: PodSandbox | None = None
        self._settled = threading.Event()
        """Set when the machine is up, or is not to come up."""
        self._up = False
        self._network: Network | None = None
        self._helpers: list[Any] = []
        self._home = Home(0, self.config.vmm_overhead)
        self._netns = -1
        self._ending = False
        self._over = threading.Event()
        self._gone = threading.Event()
        self._aborted: ProcessExit | None = None
        self._clients = 0
        self._owed = 0
        self._subscribers: list[queue.Queue[dict[str, Any] | None]] = []
        self._listener: socket.socket | None = None
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
            self._listen()
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
            return
        answer: dict[str, Any]
        try:
            if request.get("op") != "create":
                raise UsageError("the first request to a sandbox's keeper must be for a container")
            with Given(request, fds) as given:
                answer = self._create(request, given, first)
        except Exception as error:  # whatever went wrong, the one who waits has to be told
            with self._lock:
                self._ending = True
            self._finish()
            with contextlib.suppress(ControlClosed):
                first.send(error_message(ContainerError(self._aborted.error) if self._aborted else error))
            first.close()
            self._linger()
            if not isinstance(error, CasemateError | OSError):
                raise
            return
        try:
            first.send(answer)
        except ControlClosed:  # nobody knows that it is there
            self._kill(self._get(str(request["id"])))
        first.close()
        self._over.wait()
        self._finish()
        self._linger()

    def _linger(self) -> None:
        """Wait until everybody is answered: the other threads end with the process."""
        with self._answered:
            self._answered.wait_for(lambda: not self._owed, LINGER_SECONDS)

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
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
            self._listener.close()
        steps: list[Callable[[], object]] = [helper.close for helper in self._helpers]
        if self._network is not None:
            steps.append(self._network.close)
        if self._sandbox is not None:
            steps.append(self._sandbox.close)
        steps.append(lambda: reap.clean_pod(self.pod))
        problem = reap.attempt(steps)
        if self._netns >= 0:
            os.close(self._netns)
            self._netns = -1
        if problem:
            log(f"something is left on the host: {problem}")
        self._gone.set()
        self._settled.set()
        with self._lock:
            subscribers, self._subscribers = self._subscribers, []
        for subscriber in subscribers:
            with contextlib.suppress(queue.Full):
                subscriber.put_nowait(None)

    # ---- containers

    def _create(self, request: dict[str, Any], fds: dict[str, int], maker: Connection) -> dict[str, Any]:
        id = str(request["id"])
        record = self.store.stored(id)
        if record.status != "creating" or record.pod != self.pod.id:
            raise UsageError(f"container {id} is {record.status}, or of another sandbox")
        full = self.store.spec(id)
        container = Container(self.store, record, full)
        with self._lock:
            if self._ending or self._aborted:
                raise NotRunning("container not running: its sandbox has ended")
            if id in self._containers:
                raise NameInUse(f"container with id exists: {id}")
            if len(self._containers) >= MAX_CONTAINERS:
                raise ContainerError(f"a sandbox holds at most {MAX_CONTAINERS} containers", "use another one")
            first = not self._containers and self._sandbox is None
            self._containers[id] = self._names[container.name] = container
        maker_pid = record.creator, record.creator_start
        task = container.init
        try:
            container.save(creator=self._me[0], creator_start=self._me[1])
            task.standin = self._meet(container, task, fds)
            if first:
                threading.Thread(target=self._watch, args=(maker, container), name="maker", daemon=True).start()
                self._boot(container, request, fds, full)
            else:
                self._settled.wait()
            sandbox = self._machine()
            if not first:
                for disk in _disks(request, fds):
                    sandbox.plug_disk(disk)
            self._check(container)
            sandbox.attach(container.name, fds.pop("root"), fds.pop("volumes", None))
            terminal = bool((request["spec"].get("process") or {}).get("terminal"))
            streams = sandbox.create(
                container.name, request["spec"], request.get("files") or [], "stdin" in fds, _size(request)
            )
            self._adopt(container, task, streams, fds, terminal)
            with container.starting:
                self._check(container)
                if container.ending:
                    raise ContainerError("the container's process ended before it was started")
                container.save(status="created")
        except BaseException:
            self._undo(container, maker_pid)
            raise
        if first:
            self._settle_network(full)
        self._rebound()
        return {}

    def _check(self, container: Container) -> None:
        """Stop making a container whose maker, stand-in or keeper is not to live."""
        aborted = container.aborted or self._aborted
        if aborted is not None:
            raise ContainerError(aborted.error)

    def _boot(self, container: Container, request: dict[str, Any], fds: dict[str, int], spec: dict[str, Any]) -> None:
        memory = request.get("memory")
        self._home.memory_mib = machine_memory(memory, self.config.memory, self.config.memory_minimum)
        procs = self._home.settle(container)
        sandbox = self._wall(self.pod, self._home.memory_mib, request.get("cpus"), procs, oom_score([container]))
        sandbox.on_exit, sandbox.on_oom, sandbox.on_end = self._process_exited, self._out_of_memory, self._machine_ended
        with self._lock:
            self._sandbox = sandbox
        self._check(container)
        self._netns = fds.pop("netns")
        self._network = self._make_network(sandbox, self._netns)
        disks = _disks(request, fds)
        try:
            nics = self._network.nics()
        except BaseException:
            for disk in disks:
                os.close(disk.fd)
            raise
        sandbox.boot(self._netns, nics, disks, str(request.get("hostname") or ""))
        self._up = True
        self._settled.set()
        guest = {key: value for key, value in sandbox.info().items() if key != "processes"}
        self.record = PodRecord(
            self.pod.id, *self._me, created=self.record.created, memory_mib=self._home.memory_mib, guest=guest
        )
        with contextlib.suppress(OSError):
            self.pod.write(self.record)

    def _settle_network(self, spec: dict[str, Any]) -> None:
        """What goes on beside the machine; a sandbox does not end for want of it."""
        assert self._network is not None and self._sandbox is not None
        try:
            self._network.follow()
        except CasemateError as error:
            log(f"network: {error}")
        for helper in self._make_helpers(self._sandbox, self._netns, spec):
            try:
                helper.start()
                self._helpers.append(helper)
            except CasemateError as error:
                log(f"{type(helper).__name__}: {error}")
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
                with contextlib.suppress(CasemateError):
                    step(container.name)
        self._end_if_last()

    def _meet(self, container: Container, task: Task, fds: dict[str, int]) -> StandIn:
        """Listen to a process's stand-in."""

        def heard(word: str, numbers: tuple[int, ...]) -> None:
            if word == "size" and len(numbers) == 2:
                rows, columns = numbers
                if task.begun:
                    with contextlib.suppress(CasemateError):
                        self._machine().resize(container.name, task.key, rows, columns)
                else:
                    task.size = rows, columns
            elif word == "signal" and len(numbers) == 1 and task.begun and 0 < numbers[0] <= 64:
                with contextlib.suppress(CasemateError):
                    self._machine().signal(container.name, task.key, numbers[0])

        def gone() -> None:
            task.gone = True
            if task.end is not None or task.done.is_set():
                return
            if task.exec_id is not None:
                if task.begun:
                    with contextlib.suppress(CasemateError):
                        self._machine().signal(container.name, task.key, signal.SIGKILL)
            elif container.record.status == "creating":
                self._give_up(container, "its process on the host was killed", 128 + signal.SIGKILL)
            else:
                self._kill(container)

        return StandIn(fds.pop("standin"), heard, gone)

    def _adopt(
        self, container: Container, task: Task, streams: ProcessStreams, fds: dict[str, int], terminal: bool
    ) -> None:
        """Carry the streams of a process that was made."""
        stdio: dict[str, int] = {name: fds.pop(name) for name in STDIO_NAMES if name in fds}
        if terminal:
            for descriptor in stdio.values():
                make_raw(descriptor)

        def ended(end: ProcessExit) -> None:
            (self._init_ended if task.exec_id is None else self._exec_ended)(container, task, end)

        task.adopt(Process(streams, stdio, None, ended))
        if task.size is not None:
            with contextlib.suppress(CasemateError):
                self._machine().resize(container.name, task.key, *task.size)

    # ---- ends

    def _process_exited(self, name: str, key: str | None, end: ProcessExit) -> None:
        with self._lock:
            container = self._names.get(name)
        task = container.by_key(key) if container is not None else None
        if task is not None:
            task.exited(end)

    def _machine_ended(self, end: ProcessExit) -> None:
        log(f"the machine ended: {end.error}")

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
        self._tell({"event": "oom", "id": container.id, "exec": None, "at": time.time()})

        def strike() -> None:
            from casemate.pod import oom

            try:
                oom.strike(self._home.group(container), shared=self._home.holds(container))
            except (CasemateError, OSError) as error:
                log(f"the host's control group cannot be told of the kill: {error}")
            finally:
                container.oom_told.set()

        threading.Thread(target=strike, name="oom", daemon=True).start()

    def _exec_ended(self, container: Container, task: Task, end: ProcessExit) -> None:
        self._set_end(task, end)
        if task.standin is not None:
            task.standin.tell(end.status)
            task.standin.close()
        container.drop_exec(task)
        self._tell({"event": "exit", "id": container.id, "exec": task.exec_id, **task.result()})
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
            last = not any(one.live and one is not container for one in self._containers.values())
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
        self._tell({"event": "exit", "id": container.id, "exec": None, **task.result()})
        task.done.set()
        if last:
            self._over.set()
        else:
            self._rebound()

    def _end_execs(self, container: Container) -> None:
        """Wait for the container's other processes, so that their ends are told before its own."""
        deadline = time.monotonic() + EXEC_SECONDS
        for task in container.execs():
            task.done.wait(max(0.0, deadline - time.monotonic()))
        left = container.execs()
        if not left:
            return
        with contextlib.suppress(CasemateError):  # in a pid namespace that others share, they have outlived it
            self._machine().signal(container.name, None, signal.SIGKILL, everyone=True)
        for task in left:
            task.done.wait(1.0)
        for task in container.execs():
            task.exited(ProcessExit(128 + signal.SIGKILL, signal=signal.SIGKILL))
            task.done.wait(EXEC_SECONDS)

    @staticmethod
    def _set_end(task: Task, end: ProcessExit) -> None:
        task.end, task.at = end, time.time()

    def _end_if_last(self) -> None:
        """End when nothing is left that could live."""
        with self._lock:
            sandbox = self._sandbox
            if not self._up or sandbox is None or any(one.live for one in self._containers.values()):
                return
            self._ending = True
        sandbox.flush()  # those that have ended meanwhile left it to the one that did not come up
        self._over.set()

    def _rebound(self) -> None:
        """Bring the bounds of the machine's group up to date; it runs on with those that it had where that fails."""
        try:
            self._home.bound(self._living())
        except CasemateError as error:
            log(str(error))

    # ---- clients

    def _listen(self) -> None:
        run_path = self.pod.run_path
        run_path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._listener.bind(str(run_path / SOCKET_NAME))
        self._listener.listen(128)
        threading.Thread(target=self._accept, args=(self._listener,), name="accept", daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                if listener.fileno() < 0:
                    return
                self._gone.wait(0.1)  # out of descriptors or memory for the moment: there is no event for that
                continue
            with self._lock:
                self._clients += 1
                crowded = self._clients > MAX_CLIENTS
            try:
                if crowded:
                    raise RuntimeError("too many clients")
                threading.Thread(target=self._client, args=(Connection(sock),), name="client", daemon=True).start()
            except RuntimeError:  # or there can be no more threads
                sock.close()
                with self._lock:
                    self._clients -= 1

    def _client(self, connection: Connection) -> None:
        owed = 0
        try:
            request, fds = connection.receive()
            op = str(request.get("op"))
            with Given(request, fds) as given:
                if op == "events":
                    self._events(connection)
                    return
                with self._lock:
                    self._owed += 1
                    owed = 1
                method = getattr(self, f"_op_{op}", None)
                if method is None:
                    raise UsageError(f"the keeper knows no request {op!r}", "is it of another version?")
                answer = method(request, given, connection) or {}
                try:
                    connection.send(answer)
                except ControlClosed:
                    if op == "create":  # nobody knows that it is there
                        self._kill(self._get(str(request["id"])))
        except ControlClosed:
            pass
        except Exception as error:  # the client has to hear of it, whatever it is
            if isinstance(error, KeyError | TypeError | ValueError):
                error = UsageError(f"the keeper cannot read a request ({type(error).__name__}: {error})")
            with contextlib.suppress(ControlClosed):
                connection.send(error_message(error))
        finally:
            connection.close()
            with self._answered:
                self._clients -= 1
                self._owed -= owed
                self._answered.notify_all()

    def _events(self, connection: Connection) -> None:
        events: queue.Queue[dict[str, Any] | None] = queue.Queue(MAX_EVENTS)
        with self._lock:
            if self._gone.is_set():
                return
            self._subscribers.append(events)

        def watch() -> None:
            with contextlib.suppress(ControlClosed, ValueError):
                connection.receive()
            with contextlib.suppress(queue.Full):
                events.put_nowait(None)

        threading.Thread(target=watch, name="subscriber", daemon=True).start()
        try:
            connection.send({"event": "ready"})
            while (event := events.get()) is not None:
                connection.send(event)
        finally:
            with self._lock:
                if events in self._subscribers:
                    self._subscribers.remove(events)

    def _tell(self, event: dict[str, Any]) -> None:
        with self._lock:
            for events in list(self._subscribers):
                try:
                    events.put_nowait(event)
                except queue.Full:
                    self._subscribers.remove(events)
                    with contextlib.suppress(queue.Empty, queue.Full):  # it must not wait for more
                        events.get_nowait()
                        events.put_nowait(None)

    # ---- requests

    def _machine(self) -> PodSandbox:
        sandbox = self._sandbox
        if sandbox is None or not self._up or self._gone.is_set():
            raise NotRunning("container not running: its sandbox is not up")
        return sandbox

    def _get(self, id: str) -> Container:
        with self._lock:
            container = self._containers.get(id)
        if container is None:
            raise NoSuchContainer(f'container "{id}" does not exist')
        return container

    def _living(self) -> list[Container]:
        with self._lock:
            return [one for one in self._containers.values() if one.live]

    def _running(self, request: dict[str, Any], *statuses: str) -> Container:
        container = self._get(str(request["id"]))
        if container.record.status not in (statuses or ("created", "running", "paused")):
            raise NotRunning("container not running")
        return container

    def _op_create(self, request: dict[str, Any], fds: dict[str, int], connection: Connection) -> dict[str, Any]:
        return self._create(request, fds, connection)

    def _op_start(self, request: dict[str, Any], fds: dict[str, int], connection: Connection) -> None:
        container = self._get(str(request["id"]))
        with container.starting:
            status = container.record.status
            if status == "stopped" or container.ending:
                raise NotRunning("cannot start a container that has stopped")
            if status == "running":
                raise ContainerError("cannot start an already running container")
            if status != "created":
                raise ContainerError(f"cannot start a container in the {status} state")
            self._machine().start(container.name)
            container.update(("created",), status="running", started=time.time())
            self._tell({"event": "start", "id": container.id, "exec": None, "at": time.time()})

    def _op_exec(self, request: dict[str, Any], fds: dict[str, int], connection: Connection) -> dict[str, Any]:
        container = self._get(str(request["id"]))
        exec_id = str(request["exec"])
        if not 0 < len(exec_id) <= 200:
            raise UsageError("the name of an exec must have 1 to 200 characters")
        task = container.add_exec(exec_id, int(request.get("pid") or 0))
        try:
            task.standin = self._meet(container, task, fds)
            process = request["process"]
            streams = self._machine().exec(container.name, str(task.key), process, "stdin" in fds, _size(request))
        except BaseException:
            task.done.set()
            if task.standin is not None:
                task.standin.close()
            container.drop_exec(task, forget=True)
            raise
        self._tell({"event": "start", "id": container.id, "exec": exec_id, "at": time.time()})
        self._adopt(container, task, streams, fds, bool(process.get("terminal")))
        if task.gone:
            with contextlib.suppress(CasemateError):
                self._machine().signal(container.name, task.key, signal.SIGKILL)
        return {}

    def _op_kill(self, request: dict[str, Any], fds: dict[str, int], connection: Connection) -> None:
        container = self._get(str(request["id"]))
        signum, exec_id = int(request["signal"]), request.get("exec")
        if not 0 <= signum <= 64:
            raise UsageError(f"unknown signal {signum}", "signals are numbered 1 to 64")
        if container.record.status == "creating":
            self._give_up(container, f"killed by signal {signum} before it was made", 128 + signum)
            return
        task = container.task(exec_id)
        if signum == signal.SIGKILL and exec_id is None:
            self._kill(container)
        elif signum:
            self._machine().signal(container.name, task.key, signum, bool(request.get("all")))

    def _give_up(self, container: Container, reason: str, status: int) -> None:
        """Stop making a container."""
        if len(self._living()) <= 1:
            self.abort(reason, status)
        else:
            container.aborted = container.aborted or ProcessExit(status, error=reason)

    def _kill(self, container: Container) -> None:
        """SIGKILL for a container; if the guest does not see to it, for the whole sandbox. Does not wait for a guest
        that may not answer."""

        def end() -> None:
            steps: list[Callable[[], None]] = [
                lambda: self._machine().signal(container.name, None, signal.SIGKILL),
                lambda: self._machine().delete(container.name),
            ]
            for step in steps:
                if len(self._living()) == 1 and step is steps[1]:
                    break
                worker = threading.Thread(target=reap.attempt, args=([step],), name="kill", daemon=True)
                worker.start()
                if container.init.done.wait(self.config.stop_timeout):
                    return
            self.abort("the guest did not end a container, so the whole sandbox was killed", 128 + signal.SIGKILL)

        threading.Thread(target=end, name="killer", daemon=True).start()

    def _op_resize(self, request: dict[str, Any], fds: dict[str, int], connection: Connection) -> None:
        container = self._get(str(request["id"]))
        task = container.task(request.get("exec"))
        rows, columns = int(request["rows"]), int(request["columns"])
        self._machine().resize(container.name, task.key, rows, columns)

    def _op_close_stdin(self, request: dict[str, Any], fds: dict[str, int], connection: Connection) -> None:
        self._get(str(request["id"])).task(request.get("exec")).close_stdin()

    def _op_pause(self, request: dict[str, Any], fds: dict[str, int], connection: Connection) -> None:
        container = self._running(request, "created", "running")
        before = container.record.status
        self._machine().pause(container.name)
        container.update((before,), status="paused")

    def _op_resume(self, request: dict[str, Any], fds: dict[str, int], connection: Connection) -> None:
        container = self._get(str(request["id"]))
        if container.record.status != "paused":
            raise NotRunning("container not paused")
        self._machine().resume(container.name)
        container.update(("paused",), status="running" if container.record.started is not None else "created")

    def _op_stats(self, request: dict[str, Any], fds: dict[str, int], connection: Connection) -> dict[str, Any]:
        container = self._running(request)
        return self._machine().stats(container.name)

    def _op_update(self, request: dict[str, Any], fds: dict[str, int], connection: Connection) -> None:
        from casemate.oci.bundle import check_resources
        from casemate.pod.plan import resources as for_guest

        container = self._running(request)
        resources = request["resources"]
        check_resources(resources)
        inside = for_guest(resources)
        if inside:
            self._machine().update(container.name, inside)
        self._home.update(container, resources, self._living())

    def _op_delete(self, request: dict[str, Any], fds: dict[str, int], connection: Connection) -> dict[str, Any]:
        with self._lock:
            container = self._containers.get(str(request["id"]))
            if container is None:
                # Where there is no machine yet, its maker has not asked for it: he is gone, and we shall be.
                return {"removed": self._up and not self._ending}
        if container.live:
            if not request.get("force"):
                raise StillRunning(
                    f"cannot delete container {container.id} that is not stopped: {container.record.status}"
                )
            if container.record.status == "creating":
                self._give_up(container, "deleted before it was made", 128 + signal.SIGKILL)
                return {"removed": False}  # and the next time it is unknown here
            self._kill(container)
            container.init.done.wait()
        with self._lock:
            if self._ending:
                return {"removed": False}
        sandbox = self._machine()
        self._home.leave(container, self._living())
        for step in (sandbox.delete, sandbox.detach):
            with contextlib.suppress(NotRunning):
                step(container.name)
        with self._lock:
            self._containers.pop(container.id, None)
            self._names.pop(container.name, None)
        return {"removed": True}

    def _op_wait(self, request: dict[str, Any], fds: dict[str, int], connection: Connection) -> dict[str, Any]:
        container = self._get(str(request["id"]))
        task = container.tasks.get(request.get("exec"))
        if task is None:
            raise NotRunning("process already finished")
        task.done.wait()
        result = task.result()
        return {**result, "oom": bool(result["oom"] or (task.exec_id is None and container.record.oom_killed))}

    def _op_pids(self, request: dict[str, Any], fds: dict[str, int], connection: Connection) -> dict[str, Any]:
        record = self._get(str(request["id"])).record
        return {"pid": record.pid, "execs": record.execs}

    def _op_info(self, request: dict[str, Any], fds: dict[str, int], connection: Connection) -> dict[str, Any]:
        with self._lock:
            containers = {id: container.record.status for id, container in self._containers.items()}
        info = self._machine().info() if self._up else {}
        return {**info, "pod": self.pod.id, "keeper": self._me[0], "containers": containers}

    def _op_forward(self, request: dict[str, Any], fds: dict[str, int], connection: Connection) -> None:
        from casemate.pod.forward import pump

        port = int(request["port"])
        if not 0 < port < 65536:
            raise UsageError(f"{port} is no port")
        client, sandbox = socket.socket(fileno=fds.pop("conn")), self._machine()

        def carry() -> None:
            try:
                pump(sandbox, client, port)
            except CasemateError as error:
                log(f"port-forward: {error}")

        threading.Thread(target=carry, name="forward", daemon=True).start()


class Given:
    """The descriptors of a request by name; what nobody takes is closed at the end."""

    def __init__(self, request: dict[str, Any], fds: list[int]) -> None:
        names = request.get("fds")
        names = [str(name) for name in names] if isinstance(names, list) else []
        self._fds = dict(zip(names, fds, strict=False))
        for extra in fds[len(self._fds) :]:
            os.close(extra)
        if len(self._fds) != len(names):
            close_all(self._fds)
            raise HostError("descriptors of a request got lost", "raise the limit of open files")

    def __enter__(self) -> dict[str, int]:
        return self._fds

    def __exit__(self, *_: object) -> None:
        close_all(self._fds)


def _disks(request: dict[str, Any], fds: dict[str, int]) -> list[Disk]:
    return [
        Disk(str(serial), fds.pop(f"disk{number}"), bool(read_only))
        for number, (serial, read_only) in enumerate(request.get("disks") or ())
    ]


def _size(request: dict[str, Any]) -> tuple[int, int] | None:
    size = request.get("size")
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) and len(size) == 2 else None


def machine_memory(asked: int | None, usual: int, least: int) -> int:
    """MiB for a machine whose containers may use ``asked`` bytes (None: no bound, so the usual size), at most what the
    host has."""
    if not asked or asked < 0:
        return usual
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    return max(least, min(-(-asked >> 20) + GUEST_OVERHEAD_MIB, host))


def log(text: str) -> None:
    """Write a line to the keeper's log."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def helpers(sandbox: PodSandbox, netns: int, spec: dict[str, Any]) -> list[Any]:
    """The services beside a sandbox: names from the engine's resolver, connections to its loopback."""
    from casemate.pod import forward
    from casemate.pod.resolver import Resolver

    addresses = nameservers(spec)
    found: list[Any] = [forward.Forward(sandbox, netns)] if forward.wanted(spec) else []
    if addresses:
        found.append(Resolver(sandbox, netns, addresses))
    return found

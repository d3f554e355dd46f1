"""The requests of the doors: the protocol of a machine's agent (docs/protocol.md), spoken by the sentry.

So nothing above the wall knows which one it has. Requests come on threads of the link; whatever touches the kernel is
done by its own thread, through the mailbox.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from casemate import __version__
from casemate.agent import kept  # now: there is nothing to import from once the sentry serves
from casemate.agent.process import Process, Streams
from casemate.agent.processes import Exit
from casemate.agent.pumps import Input, Output
from casemate.late import Logger
from casemate.protocol import threads
from casemate.protocol.link import Link, Reply
from casemate.protocol.wire import LinkError, RequestFailed
from casemate.sentry import inspect, usage
from casemate.sentry.container import Container, bad
from casemate.sentry.signals.info import SI_USER, SigInfo
from casemate.sentry.signals.send import send
from casemate.sentry.starving import MemoryWatch
from casemate.sentry.vfs import cgroupfs
from casemate.sentry.vfs.console import Console
from casemate.sentry.vfs.devpts import open_pair
from casemate.sentry.vfs.hostfile import HostFile
from casemate.sentry.vfs.inode import FileSystem

if TYPE_CHECKING:
    from casemate.gofer.client import GoferClient
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.mailbox import Mailbox
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.file import File
    from casemate.sentry.vfs.goferfs import GoferFs

log = Logger("casemate.sentry")

PREFIX = "/run/casemate/"
TREES = ("share", "volumes")
"""What the gofer serves, in this order, and where a specification says that it is."""
MAX_CONTAINERS = 64
MAX_EXECS = 256
STDIO = ("stdin", "stdout", "stderr")


class GuestProcess(Process):
    """A process that a door asked for, and what carries its bytes.

    Arguments:
        exec_id, ended: see :class:`casemate.agent.process.Process`.
    """

    def __init__(self, exec_id: str | None, ended: Callable[[Process, Exit], None], mailbox: Mailbox) -> None:
        super().__init__(exec_id, ended)
        self.task: Task | None = None
        self.console: Console | None = None
        self._mailbox = mailbox

    def begin(
        self, streams: Streams, terminal: bool, size: tuple[int, int] | None, container: Container,
        make: Callable[[list[File], Any], Task],
    ) -> None:
        """Have the kernel make the process, with pipes to the streams as its descriptors.

        Arguments:
            streams: where its bytes come from and go to; they belong to this object then, whatever happens.
            terminal, size: whether it has a terminal, and rows and columns of that.
            container: where it runs.
            make: called on the kernel's thread with the files and the terminal; what it returns does not run yet.

        Raises:
            RequestFailed: it was not made.
        """
        theirs: list[int] = []
        try:
            if terminal:
                source, sink = self._console_pipes(streams)
                theirs += [source, sink]
            else:
                for number, name in enumerate(STDIO):
                    stream = streams.by_name.pop(name, None)
                    theirs.append(-1 if stream is None else self._pipe(stream, number == 0))
                if streams.kept:
                    kept.attach(streams.kept, theirs, self._inputs, self._outputs)
            for fd in theirs:
                if fd >= 0:
                    os.set_blocking(fd, False)
            self.task = self._mailbox.call(lambda: self._make(container, theirs, terminal, size, make))
            self.pid = self.task.pid
            self._begin()
        except OSError as error:
            self._discard()
            raise RequestFailed("failed", f"the process cannot be made: {error}") from None
        except BaseException:
            self._discard()
            raise
        finally:
            streams.close()

    def _console_pipes(self, streams: Streams) -> tuple[int, int]:
        source, typed = os.pipe2(os.O_CLOEXEC)
        shown, sink = os.pipe2(os.O_CLOEXEC)
        if "stdin" in streams.by_name:
            self._inputs.append(Input(typed, streams.by_name.pop("stdin")))
        else:
            os.close(typed)
        if "stdout" in streams.by_name:
            self._outputs.append(Output(shown, streams.by_name.pop("stdout")))
        else:
            os.close(shown)
        return source, sink

    def _make(
        self, container: Container, fds: list[int], terminal: bool, size: tuple[int, int] | None,
        make: Callable[[list[File], Any], Task],
    ) -> Task:  # fmt: skip
        """On the kernel's thread."""
        kernel = container.kernel
        if terminal:
            pair, slave = open_pair(kernel, container.root)
            self.console = Console(kernel, fds[0], fds[1], pair)
            if size is not None and size != (0, 0):
                self.console.resize(*size)
            slave.incref()
            slave.incref()
            return make([slave, slave, slave], pair)
        files: list[File] = []
        for fd in fds:
            if fd < 0:
                fd = os.dup(kernel.subsystems["null"])
            access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
            files.append(HostFile(fd, access, kernel))
        return make(files, None)

    def run(self, kernel: Kernel) -> None:
        """Let it run. On the kernel's thread."""
        if self.task is not None:
            kernel.resume(self.task)

    def ended(self, code: int) -> None:
        """It has ended, says the kernel; ``code`` as of wait(2)."""
        signum = code & 0x7F
        end = Exit(None, signum) if signum else Exit(code >> 8 & 0xFF, None)
        if self.console is not None:
            self._end = end
            self.console.end(self)
        else:
            self._exited(end)

    def console_ended(self, console: Console) -> None:
        """All output of its terminal has gone out."""
        self._exited(self._end)

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of its terminal. Raises RequestFailed: it has none, or has ended."""
        console = self.console
        if console is None or console.closed:
            raise RequestFailed("failed", "the process has no terminal")
        self._mailbox.call(lambda: console.resize(rows, columns))


class Held:
    """A container and its processes."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.init: GuestProcess | None = None
        self.execs: dict[str, GuestProcess] = {}
        self.ended = threads.Event()
        self.started = False
        self.paused = False
        self.memory: MemoryWatch | None = None
        """Where it has a bound of its own."""
        self.starved = False


class Service:
    """Answers requests.

    Arguments:
        kernel: the sandbox's; its loop runs.
        gofer: serves :data:`TREES`.
    """

    def __init__(self, kernel: Kernel, gofer: GoferClient, mailbox: Mailbox) -> None:
        self.kernel = kernel
        self.gofer = gofer
        self.mailbox = mailbox
        self.link: Link | None = None
        self._trees: WeakSet[GoferFs] = WeakSet()
        self._lock = threads.Lock()
        self._held: dict[str, Held] = {}
        self._methods: dict[str, Callable[[dict[str, Any]], dict[str, Any] | Reply]] = {
            "container.run": lambda params: self._make(params, True),
            "container.create": lambda params: self._make(params, False),
            "container.start": self._start,
            "container.exec": self._exec,
            "container.stats": self._stats,
            "container.pause": lambda params: self._freeze(params, True),
            "container.resume": lambda params: self._freeze(params, False),
            "container.update": self._update,
            "container.delete": self._delete,
            "process.signal": self._signal,
            "process.resize": self._resize,
            "sandbox.debug": self._debug,
            "sandbox.info": lambda params: usage.info(self.kernel, __version__),
            "sandbox.ping": lambda params: {},
            "sandbox.network": lambda params: {},
            "sandbox.refresh": self._refresh,
            "sandbox.shutdown": self._shutdown,
        }

    def request(self, method: str, params: dict[str, Any]) -> dict[str, Any] | Reply:
        """Answer one request, on a thread of the link. Raises RequestFailed."""
        handler = self._methods.get(method)
        if handler is None:
            raise RequestFailed("no-such-method", f"the sentry does not know {method!r}")
        try:
            return handler(params)
        except RequestFailed:
            raise
        except OSError as error:
            raise RequestFailed("failed", f"{method}: {error}") from None
        except Exception as error:
            log.exception("%s failed", method)
            raise RequestFailed("internal", f"{method}: {type(error).__name__}: {error}") from None

    def _container(self, params: dict[str, Any]) -> Held:
        identifier = _text(params, "id")
        with self._lock:
            held = self._held.get(identifier)
        if held is None:
            raise RequestFailed("no-such-container", f"the sandbox has no container {identifier}")
        return held

    # ---- containers

    def _tree(self, path: str, read_only: bool) -> FileSystem:
        """The file system of a path that a specification names. On the kernel's thread."""
        for number, name in enumerate(TREES):
            top = PREFIX + name + "/"
            if path.startswith(top) and ".." not in path.split("/"):
                inner = os.fsencode(path[len(top) :]).strip(b"/")
                fs = self.gofer.filesystem(number, self.kernel.mounts.device(), inner)
                self._trees.add(fs)
                return fs
        raise bad(f"{path[:200]} is not below what the host shows")

    def _make(self, params: dict[str, Any], run: bool) -> Reply:
        assert self.link is not None
        streams = Streams(self.link, params)
        identifier = ""
        try:
            identifier = _text(params, "id")
            spec = params.get("spec")
            if not isinstance(spec, dict) or not isinstance(spec.get("process"), dict):
                raise bad("spec.process is missing")
            sandbox = params.get("sandbox")
            held = Held(Container(self.kernel, identifier, self._tree))
            with self._lock:
                for name in [name for name, one in self._held.items() if one.ended.is_set()]:
                    del self._held[name]
                if identifier in self._held:
                    raise RequestFailed("failed", f"the sandbox has a container {identifier} already")
                if len(self._held) >= MAX_CONTAINERS:
                    raise RequestFailed("failed", f"the sandbox has {MAX_CONTAINERS} containers, the most there can be")
                self._held[identifier] = held
            process = GuestProcess(None, lambda process, end: self._init_ended(held, process, end), self.mailbox)
            held.init = process
            try:
                files = params.get("files") or []
                self.mailbox.call(lambda: self._prepare(held.container, spec, files, sandbox))
                self._begin(process, held, spec["process"], params, streams, True)
            except BaseException:
                with self._lock:
                    self._held.pop(identifier, None)
                self._remove(held)
                raise
            held.started = run
            if run:
                self.mailbox.call(lambda: process.run(self.kernel))
            return Reply({"pid": process.pid}, process.announced.set)
        finally:
            streams.close()

    def _prepare(self, container: Container, spec: dict[str, Any], files: list[Any], sandbox: Any) -> None:
        hostname = sandbox.get("hostname") if isinstance(sandbox, dict) else None
        if isinstance(sandbox, dict) and type(sandbox.get("memory")) is int:
            cgroupfs.note_machine(self.kernel, sandbox["memory"])
            self._bound_memory(container.identifier, sandbox["memory"])
        resources = (spec.get("linux") or {}).get("resources") or {}
        self._bound(container.identifier, resources)
        self._look_after_memory()
        name = os.fsencode(hostname)[:64] if isinstance(hostname, str) else b""
        container.make(spec, [one for one in files if isinstance(one, dict)], name, self._peer)

    def _peer(self, identifier: str) -> Container:
        """A container of the sandbox, whose namespaces another one is to share. Raises RequestFailed."""
        container = self._container({"id": identifier}).container
        if container.root is None or container.ending:
            raise RequestFailed("no-such-container", f"the container {identifier} has ended: nothing can be shared")
        return container

    def _bound(self, identifier: str, resources: dict[str, Any]) -> None:
        cgroupfs.note(self.kernel, identifier, resources)
        limit = (resources.get("pids") or {}).get("limit")
        if type(limit) is int:
            self.kernel.bound_tasks(identifier, limit)
        memory = (resources.get("memory") or {}).get("limit")
        if type(memory) is int:
            self._bound_memory(identifier, memory)

    def _bound_memory(self, identifier: str, limit: int) -> None:
        """Bytes; 0 and less for no bound but the sandbox's, which is the control group's affair."""
        with self._lock:
            held = self._held.get(identifier)
        if held is None:
            return
        if held.memory is not None:
            held.memory.stop()
        held.memory = None
        if limit > 0:
            held.memory = MemoryWatch(self.kernel, identifier, limit, lambda: self._starved(held))

    def _look_after_memory(self) -> None:
        """Have those containers looked at that have bounds of their own."""
        with self._lock:
            everybody = list(self._held.values())
        for one in everybody:
            if one.memory is not None and not one.ended.is_set():
                one.memory.start()

    def _starved(self, held: Held) -> None:
        """Told on the kernel's thread, which waits for nobody outside."""
        held.starved = True
        threads.start(self._tell_starved, held.container.identifier)

    def _tell_starved(self, identifier: str) -> None:
        try:
            if self.link is not None:
                self.link.notify("container.oom", {"id": identifier})
        except LinkError:
            return  # nobody is there to hear it

    def _begin(
        self, process: GuestProcess, held: Held, spec: dict[str, Any], params: dict[str, Any], streams: Streams,
        first: bool,
    ) -> None:
        terminal = spec.get("terminal") is True
        user = params.get("user")
        process.begin(
            streams, terminal, _size(params), held.container,
            lambda files, pair: held.container.process(
                spec, user if isinstance(user, str) else "", files, pair, process, first
            ),
        )  # fmt: skip

    def _start(self, params: dict[str, Any]) -> dict[str, Any]:
        held = self._container(params)
        with self._lock:
            if held.ended.is_set() or held.init is None or held.init.ending:
                raise RequestFailed("no-such-container", "the container has ended")
            if held.started:
                raise RequestFailed("failed", "the container was started before")
            held.started = True
        process = held.init
        self.mailbox.call(lambda: process.run(self.kernel))
        return {}

    def _exec(self, params: dict[str, Any]) -> Reply:
        assert self.link is not None
        streams = Streams(self.link, params)
        try:
            held = self._container(params)
            exec_id = _text(params, "exec_id")
            spec = params.get("process")
            if not isinstance(spec, dict):
                raise bad("process is missing")
            process = GuestProcess(exec_id, lambda process, end: self._exec_ended(held, process, end), self.mailbox)
            with self._lock:
                if held.ended.is_set() or held.init is None or held.init.ending:
                    raise RequestFailed("no-such-container", "the container has ended")
                if held.paused:
                    raise RequestFailed("failed", "the container is paused")
                if exec_id in held.execs:
                    raise RequestFailed("failed", f"the container has a process {exec_id} already")
                if len(held.execs) >= MAX_EXECS:
                    raise RequestFailed("failed", f"the container has {MAX_EXECS} further processes: no more")
                held.execs[exec_id] = process
            try:
                self._begin(process, held, spec, params, streams, False)
            except BaseException:
                with self._lock:
                    held.execs.pop(exec_id, None)
                raise
            self.mailbox.call(lambda: process.run(self.kernel))
            return Reply({"pid": process.pid}, process.announced.set)
        finally:
            streams.close()

    def _process(self, params: dict[str, Any]) -> GuestProcess:
        held = self._container(params)
        if params.get("exec_id") is None:
            process = held.init
        else:
            with self._lock:
                process = held.execs.get(_text(params, "exec_id"))
        if process is None or process.task is None:
            raise RequestFailed("no-such-process", "the container has no such process")
        return process

    def _signal(self, params: dict[str, Any]) -> dict[str, Any]:
        number = params.get("signal")
        if type(number) is not int or not 1 <= number <= 64:
            raise bad("signal must be a number from 1 to 64")
        if params.get("all") is True:
            container = self._container(params).container
            self.mailbox.call(lambda: container.kill(number))
            return {}
        process = self._process(params)

        def deliver() -> None:
            task = process.task
            if task is None or task.group.zombie or process.ending:
                raise RequestFailed("no-such-process", "the process has ended")
            send(task.group, SigInfo.user(number, SI_USER, 0, 0), force=True)

        self.mailbox.call(deliver)
        return {}

    def _resize(self, params: dict[str, Any]) -> dict[str, Any]:
        rows, columns = params.get("rows"), params.get("cols")
        if type(rows) is not int or type(columns) is not int or not (0 <= rows < 65536 and 0 <= columns < 65536):
            raise bad("rows and cols must be numbers below 65536")
        self._process(params).resize(rows, columns)
        return {}

    def _stats(self, params: dict[str, Any]) -> dict[str, Any]:
        identifier = self._container(params).container.identifier
        return self.mailbox.call(lambda: usage.stats(self.kernel, identifier))

    def _freeze(self, params: dict[str, Any], frozen: bool) -> dict[str, Any]:
        held = self._container(params)
        self.mailbox.call(lambda: self.kernel.freeze(held.container.identifier, frozen))
        held.paused = frozen
        return {}

    def _update(self, params: dict[str, Any]) -> dict[str, Any]:
        identifier = self._container(params).container.identifier
        resources = params.get("resources")
        if not isinstance(resources, dict):
            raise bad("resources must be an object")

        def bound() -> None:
            self._bound(identifier, resources)
            self._look_after_memory()

        self.mailbox.call(bound)
        return {}

    def _delete(self, params: dict[str, Any]) -> dict[str, Any]:
        identifier = _text(params, "id")
        with self._lock:
            held = self._held.get(identifier)
        if held is None:
            return {}
        if not held.ended.is_set():
            self.mailbox.call(held.container.end)
            if not held.ended.wait(60.0):
                raise RequestFailed("failed", f"the container {identifier} does not end")
        with self._lock:
            if self._held.get(identifier) is held:
                del self._held[identifier]
        return {}

    # ---- ends

    def _tell(self, held: Held, process: Process, end: Exit) -> None:
        params = {
            "id": held.container.identifier, "exec_id": process.exec_id, "status": end.status, "signal": end.signal,
            "oom": held.starved and process.exec_id is None,
        }  # fmt: skip
        try:
            if self.link is not None:
                self.link.notify("process.exited", params)
        except LinkError:
            return  # nobody is there to hear it

    def _exec_ended(self, held: Held, process: Process, end: Exit) -> None:
        with self._lock:
            held.execs.pop(str(process.exec_id), None)
        self._tell(held, process, end)

    def _init_ended(self, held: Held, process: Process, end: Exit) -> None:
        # With its first process a container's others end, as in a PID namespace of their own.
        try:
            self.mailbox.call(held.container.end)
        except Exception:
            log.exception("the container %s cannot be ended: the sandbox ends", held.container.identifier)
            self.mailbox.post(self._stop)
        with self._lock:
            others = list(held.execs.values())
        for other in others:
            other.done.wait(5.0)
        self._remove(held)
        self._tell(held, process, end)

    def _remove(self, held: Held) -> None:
        """Take away what a container leaves. Where something of that goes wrong the rest goes all the same, and who
        waits for the end does not wait for what will never be."""
        try:
            for step in (held.container.remove, lambda: self._forgotten(held)):
                try:
                    self.mailbox.call(step)
                except Exception:
                    log.exception("the container %s leaves something behind", held.container.identifier)
        finally:
            held.ended.set()

    def _forgotten(self, held: Held) -> None:
        if held.memory is not None:
            held.memory.stop()
        self.kernel.forget(held.container.identifier)

    # ---- the sandbox

    def _refresh(self, params: dict[str, Any]) -> dict[str, Any]:
        self.mailbox.call(self._forget)
        return {}

    def _forget(self) -> None:
        for fs in list(self._trees):
            fs.forget()

    def _debug(self, params: dict[str, Any]) -> dict[str, Any]:
        what, pid = _text(params, "what"), params.get("pid")
        if pid is not None and type(pid) is not int:
            raise bad("pid must be a number")
        container = None if params.get("id") is None else self._container(params).container.identifier
        return self.mailbox.call(lambda: inspect.collect(self.kernel, what, pid, container))

    def _shutdown(self, params: dict[str, Any]) -> Reply:
        with self._lock:
            held = list(self._held.values())
        for one in held:
            if not one.ended.is_set():
                self.mailbox.call(one.container.end)
        return Reply({}, lambda: self.mailbox.post(self._stop))

    def _stop(self) -> None:
        self.kernel.running = False


def _text(params: dict[str, Any], key: str) -> str:
    value = params.get(key)
    if not isinstance(value, str) or not value or len(value) > 1024:
        raise bad(f"{key} must be a name")
    return value


def _size(params: dict[str, Any]) -> tuple[int, int] | None:
    size = params.get("size")
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 2 or not all(type(one) is int and 0 <= one < 65536 for one in size):
        raise bad("size must be rows and columns")
    return size[0], size[1]

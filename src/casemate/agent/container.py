"""Containers: the runtime's bundle, starting, further processes, and the end."""

from __future__ import annotations

import errno
import os
from _signal import pidfd_send_signal  # type: ignore[import-not-found]  # signal imports enum
from time import monotonic

from casemate.agent import bundle, cgroup, system
from casemate.agent.cgroup import Cgroup
from casemate.agent.crun import Crun
from casemate.agent.marks import mark
from casemate.agent.oom import Watch
from casemate.agent.process import Process, Streams
from casemate.agent.processes import Exit, Reaper
from casemate.agent.system import bad, get_dict, get_int, get_text
from casemate.protocol import threads, wire
from casemate.protocol.link import Link
from casemate.protocol.wire import LinkError, RequestFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from casemate.agent.blank import Blank

BASE = "/run/casemate"
MAX_EXECS = 256
EXECS_END = 5.0
"""Seconds that the end of a container waits for the ends of its other processes to be told first."""
SYNC = 10.0
"""Seconds that the last container's end waits for what it wrote to be written back."""


class Places:
    """Paths and programs; tests have others.

    ``base`` has the containers' directories, ``share`` is where root filesystems may lie, ``cgroups`` is the root of
    the control groups, ``crun`` the runtime and its global options.
    """

    def __init__(
        self,
        base: str = BASE,
        share: str = f"{BASE}/share",
        cgroups: str = cgroup.ROOT,
        crun: tuple[str, ...] = ("crun", "--root=/run/crun", "--cgroup-manager=cgroupfs"),
    ) -> None:
        self.base = base
        self.share = share
        self.cgroups = cgroups
        self.crun = crun
        self.blank: Callable[[dict[str, Any]], Blank | None] = lambda spec: None
        """Gives a process that waits to become the container of a specification, see :mod:`casemate.agent.blank`."""
        self.complete: Callable[[dict[str, Any]], None] = lambda spec: None
        """Fills in what a specification has in common with that of this process."""


class Container:
    """One container.

    Arguments:
        identifier: its name.
        number: of its directories, for a name may be longer than a socket's path.
        places: see :class:`Places`.
        reaper, link: of the agent.
        others: gives all containers of the guest, this one among them, by their names.
    """

    def __init__(
        self,
        identifier: str,
        number: int,
        places: Places,
        reaper: Reaper,
        link: Link,
        others: Callable[[], dict[str, Container]],
    ) -> None:
        self.identifier = identifier
        self.cgroup = Cgroup(identifier, places.cgroups)
        self.paused = False
        self.ended = threads.Event()
        """Set when nothing of the container is left."""
        self._places = places
        self._directory = f"{places.base}/containers/{number}"
        self._files_directory = f"{places.base}/files/{number}"
        self._reaper = reaper
        self._link = link
        self._others = others
        self._crun = Crun(list(places.crun), reaper)
        self._init = Process(None, self._init_ended)
        self._lock = threads.Lock()
        self._execs: dict[str, Process] = {}
        self._telling: list[Process] = []
        """Further processes that have ended, of which that is being told; their names are free."""
        self._oom_seen = 0
        self._watch: Watch | None = None
        self._counter = 0
        self._created = False
        self._started = False
        self._shares = False
        self._last = False
        self._keeps = True
        self._blank: Blank | None = None
        self._spec: dict[str, Any] = {}
        """What was made, where it was made of a blank."""

    # ---- start

    def make(self, params: dict[str, Any], streams: Streams, run: bool) -> Process:
        """Make the container.

        Arguments:
            params: of ``container.run`` or ``container.create``.
            streams: of its first process.
            run: whether that process is started too; else it waits for :meth:`start`.

        Raises:
            RequestFailed: it was not made, and nothing is left of it.
        """
        opened: list[int] = []
        mark("asked")
        self._created, self._started = not run, run
        self._last = params.get("last") is True
        self._keeps = params.get("keeps") is not False
        try:
            spec = get_dict(params, "spec")
            self._places.complete(spec)
            terminal = _terminal(get_dict(spec, "process"))
            size = _size(params)
            _set_console_size(spec["process"], size)
            system.make_directory(self._directory, 0o700)
            pids = bundle.spare_pids()
            made = bundle.complete(
                spec, params,
                share=self._places.share, files=self._files_directory, cgroup=self.cgroup.relative,
                memory=cgroup.capacity(self._places.cgroups, pids), pids=pids,
                join=lambda other, kind: self._join(other, kind, opened),
            )  # fmt: skip
            self._prepare(made)
            if not (made.priority or made.shared or streams.kept):
                self._blank = self._places.blank(spec)
            if self._blank is not None:
                self.cgroup, self._spec = self._blank.cgroup, spec
                mark("blank")
                self._init.become(
                    self._blank, self.identifier, spec, streams, size, terminal, wait=not run, place=made.place
                )
            else:
                self._launch(spec, streams, size, terminal, made, run)
            mark("started")
            self._watch = Watch(self.cgroup, self._out_of_memory, self._groups)
            if self.ended.is_set():  # so soon that nobody saw the watch
                self._watch.close()
        except OSError as error:
            self._remove()
            raise RequestFailed("failed", f"the container cannot be made: {error}") from None
        except BaseException:
            self._remove()
            raise
        finally:
            streams.close()
            for fd in opened:
                os.close(fd)
        return self._init

    def _launch(
        self, spec: dict[str, Any], streams: Streams, size: tuple[int, int] | None, terminal: bool,
        made: bundle.Bundle, run: bool,
    ) -> None:  # fmt: skip
        """Have the runtime make it."""
        self._write_json("config.json", spec)
        mark("prepared")
        words = ["run", "--detach"] if run else ["create"]
        self._init.launch(
            self._crun, self._reaper, streams,
            lambda options: [*words, f"--bundle={self._directory}", *options, self.identifier],
            self._directory, "init", size, terminal, made.priority,
        )  # fmt: skip

    def _tell_runtime(self) -> None:
        """Tell the runtime of a container that it has not made."""
        if self._blank is not None:
            self._blank.hand_over_to(self._crun.state, self.identifier, self._directory, self._spec)

    def _prepare(self, made: bundle.Bundle) -> None:
        """Do what the runtime does not: settings of the guest's network, memory that containers share."""
        for path, value in made.sysctl:
            try:
                system.write_text(path, value)
            except OSError as error:
                raise RequestFailed("failed", f"{path} cannot be set to {value[:100]!r}: {error.strerror}") from None
        if made.shared:
            from casemate.agent import shm  # here, because few containers need it

            self._shares = True
            for entry in made.shared.values():
                shm.take(entry, f"{self._places.base}/shm", self)

    def _join(self, other: str, kind: str, opened: list[int]) -> str:
        """The path of another container's namespace, held open until this container is there."""
        found = self._others().get(other)
        if found is None or found is self:
            raise RequestFailed("no-such-container", f"the guest has no container {other} to share a namespace with")
        opened.append(found.namespace(kind))
        return f"/proc/{os.getpid()}/fd/{opened[-1]}"

    def namespace(self, kind: str) -> int:
        """A descriptor of one of the container's namespaces, by its name in /proc/PID/ns.

        Raises:
            RequestFailed: ``no-such-container``: it has ended, or is not there yet.
        """
        try:
            fd = os.open(f"/proc/{self._init.pid or 'none'}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            fd = -1
        # Only now: before its status was taken the number cannot have been given to another process.
        if fd >= 0 and self._reaper.watches(self._init.pid):
            return fd
        if fd >= 0:
            os.close(fd)
        raise RequestFailed("no-such-container", f"the container {self.identifier} has ended")

    def _groups(self) -> list[Cgroup]:
        return [container.cgroup for container in self._others().values()]

    def start(self) -> None:
        """Let the first process of a created container run.

        Raises:
            RequestFailed: ``no-such-container``: it has ended. ``failed``: it was started before.
        """
        with self._lock:
            if self._init.ending:
                raise RequestFailed("no-such-container", "the container has ended")
            if self._started:
                raise RequestFailed("failed", "the container was started before")
            self._started = True
        try:
            if self._blank is not None:
                self._blank.start()
                return
            self._crun.start(self.identifier, f"{self._directory}/start.log")
        except OSError:
            raise RequestFailed("no-such-container", "the container has ended") from None
        except RequestFailed:
            if self._init.ending:
                raise RequestFailed("no-such-container", "the container has ended") from None
            with self._lock:
                self._started = False
            raise

    def update(self, asked: dict[str, Any]) -> None:
        """Change the container's bounds.

        Arguments:
            asked: OCI ``linux.resources``; what is not in it stays as it is.

        Raises:
            RequestFailed: it was refused.
        """
        from casemate.agent import resources

        pids = bundle.spare_pids()
        made = resources.bounded(asked, cgroup.capacity(self._places.cgroups, pids), pids)
        made.pop("devices", None)  # which devices a container has is settled when it is made
        if resources.unbound(asked):
            self.cgroup.write("cpu.max", "max")
        if not made:
            return
        with self._lock:
            self._counter += 1
            name = f"update{self._counter}"
        path = self._write_json(f"{name}.json", made)
        try:
            self._tell_runtime()
            self._crun.command(["update", f"--resources={path}", self.identifier], f"{self._directory}/{name}.log")
        finally:
            _unlink(path)
            _unlink(f"{self._directory}/{name}.log")

    def _write_json(self, name: str, message: dict[str, Any]) -> str:
        path = f"{self._directory}/{name}"
        try:
            packed = wire.pack(wire.REQUEST, message)
        except wire.ProtocolError as error:
            raise bad(str(error)) from None
        system.write_text(path, packed.decode("ascii"), create=True)
        return path

    # ---- further processes

    def exec(self, params: dict[str, Any], streams: Streams) -> Process:
        """Start another process in the container.

        Arguments:
            params: of ``container.exec``.
            streams: of that process.

        Raises:
            RequestFailed: it was not started.
        """
        try:
            exec_id = system.get_id(params, "exec_id")
            spec = get_dict(params, "process")
            terminal, size = _terminal(spec), _size(params)
            _set_console_size(spec, size)
            process = Process(exec_id, self._exec_ended)
            with self._lock:
                if self._init.ending:
                    raise RequestFailed("no-such-container", "the container has ended")
                if self.paused:
                    raise RequestFailed("failed", "the container is paused")
                if exec_id in self._execs:
                    raise RequestFailed("failed", f"the container has a process {exec_id} already")
                if len(self._execs) >= MAX_EXECS:
                    raise RequestFailed(
                        "failed", f"the container has {MAX_EXECS} further processes, the most there can be"
                    )
                self._execs[exec_id] = process
                self._counter += 1
                name = f"exec{self._counter}"
            try:
                self._exec(process, spec, params, streams, name, size, terminal)
            except BaseException:
                with self._lock:
                    self._execs.pop(exec_id, None)
                process.done.set()
                raise
        finally:
            streams.close()
        return process

    def _exec(
        self,
        process: Process,
        spec: dict[str, Any],
        params: dict[str, Any],
        streams: Streams,
        name: str,
        size: tuple[int, int] | None,
        terminal: bool,
    ) -> None:
        if self._created:
            system.forget_names()
        try:
            root = os.open(f"/proc/{self._init.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            raise RequestFailed("no-such-container", "the container has ended") from None
        try:
            # Only now, as in namespace(): the number may have been given to a process of another container.
            if not self._reaper.watches(self._init.pid):
                raise RequestFailed("no-such-container", "the container has ended")
            priority = bundle.complete_process(spec, get_text(params, "user", 256), root, ())
        finally:
            os.close(root)
        path = self._write_json(f"{name}.json", spec)
        try:
            self._tell_runtime()
            process.launch(
                self._crun, self._reaper, streams,
                lambda options: ["exec", "--detach", f"--process={path}", *options, self.identifier],
                self._directory, name, size, terminal, priority,
            )  # fmt: skip
        except RequestFailed as error:
            if error.code == "failed" and self._init.done.is_set():
                raise RequestFailed("no-such-container", "the container has ended") from None
            raise
        finally:
            _unlink(path)

    def process(self, exec_id: str | None) -> Process:
        """One of its processes.

        Raises:
            RequestFailed: ``no-such-process``.
        """
        if exec_id is None:
            return self._init
        with self._lock:
            process = self._execs.get(exec_id)
        if process is None or not process.pid:
            raise RequestFailed("no-such-process", f"the container has no process {exec_id}")
        return process

    # ---- signals

    def signal(self, exec_id: str | None, number: int, everyone: bool) -> None:
        """Send a signal to one process, or to all of the container.

        Raises:
            RequestFailed: ``no-such-process``: it has ended.
        """
        if everyone:
            if self._init.ending:
                raise RequestFailed("no-such-process", "the container has ended")
            if number == 9:
                self._kill_members()
                return
            for pid in self.cgroup.pids():
                self._signal_member(pid, number)
            return
        if not self._reaper.signal(self.process(exec_id).pid, number):
            raise RequestFailed("no-such-process", "the process has ended")

    def _signal_member(self, pid: int, number: int) -> None:
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            # The number may have been given to another process since; the descriptor stays with the one it is of.
            if self.cgroup.holds(pid):
                pidfd_send_signal(process, number)
        except ProcessLookupError:
            return
        finally:
            os.close(process)

    def kill(self) -> None:
        """Kill everything in the container. Raises OSError."""
        self._reaper.signal(self._init.pid, 9)
        self._kill_members()

    def _kill_members(self) -> None:
        try:
            self.cgroup.kill()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # the group has gone, and all who were in it
                raise

    # ---- the end

    def _tell(self, process: Process, end: Exit, oom: bool, synced: bool = False) -> None:
        params = {
            "id": self.identifier, "exec_id": process.exec_id, "status": end.status, "signal": end.signal, "oom": oom
        }  # fmt: skip
        if synced:
            params["synced"] = True
        try:
            self._link.notify("process.exited", params)
        except LinkError:
            return  # nobody is there to hear it

    def _out_of_memory(self) -> None:
        try:
            self._link.notify("container.oom", {"id": self.identifier})
        except LinkError:
            return  # nobody is there to hear it

    def _exec_ended(self, process: Process, end: Exit) -> None:
        kills = self.cgroup.oom_kills()
        with self._lock:
            risen, self._oom_seen = kills > self._oom_seen, max(kills, self._oom_seen)
            self._execs.pop(str(process.exec_id), None)
            self._telling.append(process)
        self._tell(process, end, risen and end.signal == 9)
        process.done.set()
        with self._lock:
            self._telling.remove(process)

    def _init_ended(self, process: Process, end: Exit) -> None:
        mark("ended")
        oom = self.cgroup.oom_kills() > 0
        deadline = monotonic() + EXECS_END
        with self._lock:
            others = [*self._execs.values(), *self._telling]
        # With a process namespace of its own they are dead already. One that is being started may come in later.
        self._kill_rest()
        for other in others:
            while not other.done.wait(EXECS_END / 10) and monotonic() < deadline:
                self._kill_rest()
        if self._last:
            # The machine ends with this container: what there is to write back is written now, the rest goes with it.
            self._tell(process, end, oom, self._keeps and system.sync(SYNC))
            process.done.set()
            self.ended.set()
            if self._watch is not None:
                self._watch.close()
            return
        self._tell(process, end, oom)
        process.done.set()
        self._remove()

    def _kill_rest(self) -> None:
        try:
            self._kill_members()
        except OSError as error:
            system.log(f"container {self.identifier} cannot be killed: {error}")

    def _remove(self) -> None:
        """Take away all that is left."""
        try:
            if self._blank is None or self._blank.known:
                self._crun.command(["delete", "--force", self.identifier], f"{self._directory}/delete.log")
        except (RequestFailed, OSError) as error:
            if "does not exist" not in str(error) and "No such file" not in str(error):
                system.log(f"container {self.identifier}: {error}")
        if self._blank is not None:
            try:
                self._blank.end()
            except OSError as error:
                system.log(f"container {self.identifier}: {error}")
        _remove_tree(self._directory)
        _remove_tree(self._files_directory)
        if self._shares:
            from casemate.agent import shm

            shm.leave(f"{self._places.base}/shm", self)
        if self._created:
            let_go(self._places, self.identifier)
        self.ended.set()
        if self._watch is not None:
            self._watch.close()


def let_go(places: Places, identifier: str) -> None:
    """Give the host back the file systems that it has shown for a container: what was written is with it then, and it
    can take them away. They are mounts of their own in the guest, made by the kernel when somebody looked."""
    for path in (f"{places.share}/{identifier}", f"{places.base}/volumes/{identifier}"):
        try:
            system.unmount(path)
        except OSError as error:
            system.log(f"{path} cannot be let go: {error.strerror}")


def _remove_tree(directory: str) -> None:
    """Remove a directory of ours, which has plain files only."""
    try:
        for entry in os.scandir(directory):
            os.unlink(entry.path)
        os.rmdir(directory)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            system.log(f"{directory} cannot be removed: {error}")


def _terminal(process: dict[str, Any]) -> bool:
    return process.get("terminal") is True


def _size(params: dict[str, Any]) -> tuple[int, int] | None:
    size = params.get("size")
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 2:
        raise bad("size must be [rows, columns]")
    pair = {"rows": size[0], "columns": size[1]}
    return get_int(pair, "rows", 0, 65535), get_int(pair, "columns", 0, 65535)


def _set_console_size(process: dict[str, Any], size: tuple[int, int] | None) -> None:
    """Have the runtime set the size before the process looks at it."""
    if size is not None:
        process["consoleSize"] = {"height": size[0], "width": size[1]}


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return  # the container has ended, and its directory has gone

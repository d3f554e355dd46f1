"""Containers: the runtime's bundle, starting, further processes, and the end."""

from __future__ import annotations

import os
from time import monotonic

from casemate.agent import command, system
from casemate.agent.cgroup import ROOT as CGROUP_ROOT
from casemate.agent.cgroup import Cgroup
from casemate.agent.crun import Crun
from casemate.agent.oom import Watch
from casemate.agent.process import Process, Streams
from casemate.agent.processes import Exit, Reaper
from casemate.agent.system import bad, get_dict, get_int, get_list, get_text
from casemate.agent.user import resolve
from casemate.protocol import threads, wire
from casemate.protocol.link import Link
from casemate.protocol.wire import LinkError, RequestFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BASE = "/run/casemate"
RESERVE = 16 << 20
"""Bytes of the guest's free memory that a container does not get, so that it is the container that runs out."""
LEAST = 8 << 20
RESERVE_PIDS = 1024
"""How many of the guest's processes and threads a container cannot have, so that the agent can always start one; at
most a quarter of what there can be."""
MAX_FILES = 64
MAX_EXECS = 256
EXECS_END = 5.0
"""Seconds that the end of a container waits for the ends of its other processes to be told first."""


class Places:
    """Paths and programs; tests have others.

    ``base`` has the containers' directories, ``share`` is where root filesystems may lie, ``cgroups`` is the root of
    the control groups, ``crun`` the runtime and its global options.
    """

    def __init__(
        self,
        base: str = BASE,
        share: str = f"{BASE}/share",
        cgroups: str = CGROUP_ROOT,
        crun: tuple[str, ...] = ("crun", "--root=/run/crun", "--cgroup-manager=cgroupfs"),
    ) -> None:
        self.base = base
        self.share = share
        self.cgroups = cgroups
        self.crun = crun


class Container:
    """One container.

    Arguments:
        identifier: its name.
        places: see :class:`Places`.
        reaper, link: of the agent.
    """

    def __init__(self, identifier: str, places: Places, reaper: Reaper, link: Link) -> None:
        self.identifier = identifier
        self.cgroup = Cgroup(identifier, places.cgroups)
        self.paused = False
        self.ended = threads.Event()
        """Set when nothing of the container is left."""
        self._places = places
        self._directory = f"{places.base}/containers/{identifier}"
        self._files_directory = f"{places.base}/files/{identifier}"
        self._reaper = reaper
        self._link = link
        self._crun = Crun(list(places.crun), reaper)
        self._init = Process(None, self._init_ended)
        self._lock = threads.Lock()
        self._execs: dict[str, Process] = {}
        self._oom_seen = 0
        self._watch: Watch | None = None
        self._counter = 0

    # ---- start

    def start(self, params: dict[str, Any], streams: Streams) -> Process:
        """Make the container and start its first process.

        Arguments:
            params: of ``container.start``.
            streams: of that process.

        Raises:
            RequestFailed: it was not started, and nothing is left of it.
        """
        try:
            spec = get_dict(params, "spec")
            terminal = _terminal(get_dict(spec, "process"))
            size = _size(params)
            _set_console_size(spec["process"], size)
            os.makedirs(self._directory, mode=0o700)
            self._complete(spec, params)
            self._write_json("config.json", spec)
            self._init.launch(
                self._crun, self._reaper, streams,
                lambda options: ["run", "--detach", f"--bundle={self._directory}", *options, self.identifier],
                self._directory, "init", size, terminal,
            )  # fmt: skip
            self._watch = Watch(self.cgroup, self._out_of_memory)
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
        return self._init

    def _complete(self, spec: dict[str, Any], params: dict[str, Any]) -> None:
        """Fill in what only the guest knows: user, memory, control group, files."""
        process = spec["process"]
        root_path = get_text(get_dict(spec, "root"), "path")
        if not (root_path + "/").startswith(self._places.share + "/") or ".." in root_path.split("/"):
            raise bad(f"the root filesystem must lie below {self._places.share}")
        mounts = get_list(spec, "mounts", 1024)
        covered = [str(mount.get("destination")) for mount in mounts if isinstance(mount, dict)]
        try:
            root = os.open(root_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise bad(f"the root filesystem {root_path} cannot be opened: {error.strerror}") from None
        try:
            _complete_process(process, get_text(params, "user", 256), root, covered)
        finally:
            os.close(root)
        spec["mounts"] = mounts + self._files(params, covered)
        linux = spec.setdefault("linux", {})
        if not isinstance(linux, dict):
            raise bad("linux must be an object")
        linux["cgroupsPath"] = self.cgroup.relative
        resources = linux.setdefault("resources", {})
        if not isinstance(resources, dict):
            raise bad("linux.resources must be an object")
        limit = _spare_memory()
        if params.get("memory") is not None:
            limit = min(limit, get_int(params, "memory", LEAST, 1 << 62))
        resources["memory"] = {"limit": max(limit, LEAST)}
        pids = resources.setdefault("pids", {})
        if not isinstance(pids, dict):
            raise bad("linux.resources.pids must be an object")
        asked = get_int(pids, "limit", -(1 << 62), 1 << 62) if "limit" in pids else 0
        pids["limit"] = min(asked, _spare_pids()) if asked > 0 else _spare_pids()  # zero and below: no limit

    def _files(self, params: dict[str, Any], covered: list[str]) -> list[dict[str, Any]]:
        """Write the files that the host sends and say how to mount them; a mount of the person's own goes first."""
        mounts = []
        os.makedirs(self._files_directory, mode=0o700, exist_ok=True)
        for number, entry in enumerate(get_list(params, "files", MAX_FILES)):
            if not isinstance(entry, dict):
                raise bad("a file must be an object")
            path, content = get_text(entry, "path"), get_text(entry, "content", wire.MAX_CONTROL)
            mode = get_int(entry, "mode", 0, 0o7777)
            if not path.startswith("/") or ".." in path.split("/"):
                raise bad(f"the path {path[:100]} of a file must be absolute and plain")
            source = f"{self._files_directory}/{number}"
            system.write_text(source, content, mode, create=True)
            if path not in covered:
                options = ["bind", "rprivate", "rw"]
                mounts.append({"destination": path, "type": "bind", "source": source, "options": options})
        return mounts

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
                    del self._execs[exec_id]
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
        try:
            root = os.open(f"/proc/{self._init.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            raise RequestFailed("no-such-container", "the container has ended") from None
        try:
            _complete_process(spec, get_text(params, "user", 256), root, ())
        finally:
            os.close(root)
        path = self._write_json(f"{name}.json", spec)
        try:
            process.launch(
                self._crun, self._reaper, streams,
                lambda options: ["exec", "--detach", f"--process={path}", *options, self.identifier],
                self._directory, name, size, terminal,
            )  # fmt: skip
        except RequestFailed as error:
            if error.code == "failed" and self._init.done.is_set():
                raise RequestFailed("no-such-container", "the container has ended") from None
            raise
        finally:
            os.unlink(path)

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
            if number == 9:
                self.cgroup.kill()
                return
            for pid in self.cgroup.pids():
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
            return
        if not self._reaper.signal(self.process(exec_id).pid, number):
            raise RequestFailed("no-such-process", "the process has ended")

    def kill(self) -> None:
        """Kill everything in the container. Raises OSError."""
        self._reaper.signal(self._init.pid, 9)
        try:
            self.cgroup.kill()
        except FileNotFoundError:
            return

    # ---- the end

    def _tell(self, process: Process, end: Exit, oom: bool) -> None:
        params = {
            "id": self.identifier, "exec_id": process.exec_id, "status": end.status, "signal": end.signal, "oom": oom
        }  # fmt: skip
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
        self._tell(process, end, risen and end.signal == 9)
        process.done.set()

    def _init_ended(self, process: Process, end: Exit) -> None:
        oom = self.cgroup.oom_kills() > 0
        deadline = monotonic() + EXECS_END
        with self._lock:
            others = list(self._execs.values())
        for other in others:
            other.done.wait(max(0.0, deadline - monotonic()))
        self._tell(process, end, oom)
        process.done.set()
        self._remove()

    def _remove(self) -> None:
        """Take away all that is left."""
        try:
            self._crun.delete(self.identifier, f"{self._directory}/delete.log")
        except (RequestFailed, OSError) as error:
            if "does not exist" not in str(error) and "No such file" not in str(error):
                system.log(f"container {self.identifier}: {error}")
        _remove_tree(self._directory)
        _remove_tree(self._files_directory)
        self.ended.set()
        if self._watch is not None:
            self._watch.close()


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


def _complete_process(process: dict[str, Any], wanted: str, root: int, covered: list[str] | tuple[str, ...]) -> None:
    """Fill in the user and HOME, and judge the command."""
    words = process.get("args")
    if not isinstance(words, list) or not words or not all(isinstance(w, str) and "\0" not in w for w in words):
        raise bad("process.args must be a list of words")
    env = get_list(process, "env", 8192)
    if not all(isinstance(entry, str) and "\0" not in entry for entry in env):
        raise bad("process.env must be a list of strings")
    given = process.get("user")
    if wanted or not isinstance(given, dict):
        user = resolve(root, wanted)
        process["user"] = {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups}
    else:
        user = resolve(root, str(get_int(given, "uid", 0, (1 << 31) - 1)) if "uid" in given else "")
    if not any(entry.startswith("HOME=") for entry in env):
        env = [*env, f"HOME={user.home}"]
    process["env"] = env
    process.setdefault("cwd", "/")
    path = next((entry[5:] for entry in reversed(env) if entry.startswith("PATH=")), "")
    command.check(root, words[0], path, get_text(process, "cwd"), covered)


def _spare_memory() -> int:
    for line in system.read_text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 - RESERVE
    return LEAST


def _spare_pids() -> int:
    words = [system.read_text(f"/proc/sys/kernel/{name}").strip() for name in ("threads-max", "pid_max")]
    most = min((int(word) for word in words if word.isdigit()), default=RESERVE_PIDS)
    return most - min(RESERVE_PIDS, most // 4)

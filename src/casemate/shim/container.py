"""One container: its root filesystem, its processes, and what the runtime is told to do with them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time

from casemate.shim import messages, rootfs, status
from casemate.shim import options as runtime_options
from casemate.shim.loop import Future
from casemate.shim.pods import Keeper, KeeperGone, KeeperRefused
from casemate.shim.process import Process
from casemate.shim.runtime import Runtime, RuntimeFailed
from casemate.shim.stdio import ConsoleSocket, Names, Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from casemate.shim.loop import Steps
    from casemate.shim.shim import Shim
    from casemate.shim.wire import Table

EXECS_END_SECONDS = 5.0
"""How long the end of a container waits for the ends of its added processes, which are told first."""
CREATED_END_SECONDS = 5.0
MAX_SPEC = 16 << 20


class Container:
    """A container of this shim. Made by :meth:`create`.

    Arguments:
        shim: whose it is.
        request: ``CreateTaskRequest``.
        options: ``containerd.runc.v1.Options``.
        told: whether what happens to it is told to containerd.
    """

    def __init__(self, shim: Shim, request: dict[str, Any], options: dict[str, Any], *, told: bool = True) -> None:
        self._shim = shim
        self._told = told
        self.id: str = request["id"]
        self.bundle: str = request["bundle"]
        self.options = options
        self.runtime = Runtime(
            shim.loop, shim.children, options, shim.namespace, self.bundle, debug=shim.debug
        )
        self.root = os.path.join(self.bundle, rootfs.DIRECTORY) if request["rootfs"] else ""
        """Where the mounts are; empty where containerd left the root filesystem to the client."""
        names = Names(request["stdin"], request["stdout"], request["stderr"], request["terminal"])
        self.init = Process("", names)
        self.execs: dict[str, Process] = {}
        self.pausing = False
        self.cgroups: dict[str, str] = {}
        """Controller to the directory of its control group on the host; ``unified`` is version 2."""
        self.keeper: Keeper | None = None
        """Of the pod that it is in, where it is a virtual machine."""
        self.oom_told = False

    # --- making ---

    def create(self, request: dict[str, Any], seconds: float | None) -> Steps[None]:
        """Mount the root filesystem and have the runtime create the container.

        Raises:
            StatusError: it could not be made; nothing is left of it.
        """
        runtime_options.save(self.bundle, self.options)
        self._honour_cgroups_path()
        try:
            yield from self._mount(request["rootfs"])
            arguments = ["create", "--bundle", self.bundle]
            if self.options["no_pivot_root"]:
                arguments.append("--no-pivot")
            if self.options["no_new_keyring"]:
                arguments.append("--no-new-keyring")
            pid_file = os.path.join(self.bundle, "init.pid")
            try:
                yield from self._launch(self.init, arguments, pid_file, "log.json", seconds)
            except RuntimeFailed as error:
                if error.exit_status == 128 + signal.SIGKILL:  # it could not clean up after itself
                    with contextlib.suppress(RuntimeFailed):
                        yield from self.runtime.run(["delete", "--force", self.id], seconds=30.0)
                raise status.StatusError(status.UNKNOWN, f"OCI runtime create failed: {error.said}") from None
        except BaseException:
            yield from self._unmount(complain=True)
            raise

    def _honour_cgroups_path(self) -> None:
        """A path of the form ``slice:prefix:name`` is systemd's, whether or not the options say so.

        The CRI plugin has no way to say it to a runtime that is not runc.
        """
        with contextlib.suppress(OSError, ValueError, AttributeError):
            with open(os.path.join(self.bundle, "config.json"), "rb") as file:
                path = json.loads(file.read(MAX_SPEC)).get("linux", {}).get("cgroupsPath") or ""
            parts = path.split(":")
            if len(parts) == 3 and parts[0].endswith(".slice") and "/" not in path:
                self.runtime.systemd = True

    def _mount(self, wanted: list[dict[str, Any]]) -> Steps[None]:
        if not wanted:
            return
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.root, 0o711)
        for mount in wanted:
            try:
                target = rootfs.target_of(self.root, mount)
                if rootfs.needs_helper(mount):
                    yield from self._shim.run_helper(rootfs.helper_command(mount, target))
                else:
                    rootfs.mount_one(mount, target)
            except OSError as error:
                text = f"failed to mount rootfs component {mount['type']} {mount['source']}: {error.strerror}"
                raise status.StatusError(status.UNKNOWN, text) from None

    def _unmount(self, *, complain: bool) -> Steps[None]:
        if not self.root:
            return
        try:
            yield self._shim.loop.thread(lambda: rootfs.unmount_all(self.root))
        except OSError as error:
            if not complain:
                raise status.StatusError(status.UNKNOWN, f"failed rootfs umount: {error.strerror}") from None
            self._shim.loop.complain(f"failed to cleanup rootfs mount: {error}")

    def _launch(
        self, process: Process, arguments: list[str], pid_file: str, log: str, seconds: float | None
    ) -> Steps[None]:
        """Run ``create`` or ``exec`` and take over the process that it leaves."""
        shim = self._shim
        owner = (self.options["io_uid"], self.options["io_gid"])
        streams = Streams(
            shim.loop, shim.arrivals, shim.children, process.names, owner=owner, identity=(self.id, shim.namespace)
        )
        console = None
        stdio = yield from streams.open()
        shim.children.begin()
        try:
            if process.names.terminal:
                console = ConsoleSocket(shim.loop, shim.socket_directory)
                arguments = [*arguments, "--console-socket", console.path]
            words = [*arguments, "--pid-file", pid_file, self.id]
            taken = stdio if any(fd is not None for fd in stdio) else None
            yield from self.runtime.run(words, stdio=taken, log=log, seconds=seconds)
            if console is not None:
                master = yield from console.receive()
            pid = _read_pid(pid_file)
            if console is None:
                streams.started()
            else:
                streams.attach(master)
            process.take(pid, streams)
            ended = shim.children.wait(pid)
        except BaseException:
            if console is not None and console.master.value is not None:
                os.close(console.master.value)
            streams.close()
            raise
        finally:
            shim.children.end()
            if console is not None:
                console.close()
        process.starting = True  # until its first event is published; an end comes after it
        ended.then(lambda future: self._reaped(process, future.value))

    def published(self, process: Process) -> None:
        """Let the end of a process be told, now that its beginning has been."""
        process.starting = False
        late, process.late_exit = process.late_exit, None
        if late is not None:
            self._shim.loop.spawn(self._exited(process, *late))

    def _tell(self, table: Table, event: dict[str, Any]) -> None:
        if self._told:
            self._shim.publish(table, event)

    # --- the ends of processes ---

    def _reaped(self, process: Process, code: int) -> None:
        now = time.time_ns()
        if process.starting:
            process.late_exit = (code, now)
        else:
            self._shim.loop.spawn(self._exited(process, code, now))

    def _exited(self, process: Process, code: int, at: int) -> Steps[None]:
        was_paused = process.status == messages.PAUSED
        if process is self.init:
            yield from self._end_execs()
        if was_paused:  # runc deletes none that it takes for paused, and who hears of the end may ask for that at once
            with contextlib.suppress(RuntimeFailed):
                yield from self.runtime.run(["resume", self.id])
        process.status = messages.STOPPED
        process.exit_status = code
        process.exited_at = at
        if process.streams is not None:
            process.streams.process_ended()
        if process is self.init and self._told:
            self._shim.before_exit(self)
        exit_event = {"container_id": self.id, "id": process.exec_id or self.id, "pid": process.pid}
        self._tell(messages.TASK_EXIT, {**exit_event, **process.exited()})
        process.ended.set()

    def _end_execs(self) -> Steps[None]:
        """Before a container's end is told: the ends of the processes that were added to it."""
        if not self._private_pids():
            with contextlib.suppress(RuntimeFailed):
                yield from self.runtime.run(["kill", "--all", self.id, str(int(signal.SIGKILL))])
        limit = self._shim.loop.pause(EXECS_END_SECONDS)
        for process in list(self.execs.values()):
            if process.alive():
                either = Future()
                for future in (process.ended, limit):
                    future.then(lambda _, done=either: done.set())  # type: ignore[misc]
                yield either

    def _private_pids(self) -> bool:
        """Whether the container has a PID namespace of its own, so that nothing outlives its first process."""
        try:
            with open(os.path.join(self.bundle, "config.json"), "rb") as file:
                namespaces = json.loads(file.read(MAX_SPEC))["linux"]["namespaces"]
            return any(one.get("type") == "pid" and not one.get("path") for one in namespaces)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    # --- what clients ask for ---

    def process(self, exec_id: str) -> Process:
        """The process with that id; the first one when it is empty.

        Raises:
            StatusError: NOT_FOUND.
        """
        if not exec_id:
            return self.init
        if exec_id not in self.execs:
            raise status.failure(status.NOT_FOUND, f"process does not exist {exec_id}")
        return self.execs[exec_id]

    def start(self, seconds: float | None) -> Steps[None]:
        """Start the container's process."""
        process = self.init
        yield process.lock.take()
        try:
            process.must_be(messages.CREATED, what="start")
            process.starting = True
            try:
                yield from self.runtime.run(["start", self.id], seconds=seconds)
            except RuntimeFailed as error:
                self.published(process)
                raise status.StatusError(status.UNKNOWN, f"OCI runtime start failed: {error.said}") from None
            process.status = messages.RUNNING
            self._tell(messages.TASK_START, {"container_id": self.id, "pid": process.pid})
            self.published(process)
        finally:
            process.lock.give()

    def add(self, request: dict[str, Any]) -> Process:
        """Take note of a process that is to be started in the container.

        Raises:
            StatusError: the id is taken or bad, the container is paused or has ended, or the specification is none.
        """
        exec_id = request["exec_id"]
        if not exec_id or "/" in exec_id or exec_id.startswith(".") or len(exec_id) > 200:
            raise status.failure(status.INVALID_ARGUMENT, f"exec id {exec_id[:200]!r}")
        if exec_id in self.execs:
            raise status.failure(status.ALREADY_EXISTS, f"id {exec_id}")
        if self.init.status in (messages.PAUSED, messages.STOPPED):
            words = "paused" if self.init.status == messages.PAUSED else "stopped"
            raise status.failure(status.FAILED_PRECONDITION, f"cannot exec in a {words} state")
        try:
            spec = json.loads(request["spec"]["value"]) if request["spec"] is not None else None
        except ValueError as error:
            raise status.failure(status.INVALID_ARGUMENT, f"process specification: {error}") from None
        if not isinstance(spec, dict):
            raise status.failure(status.INVALID_ARGUMENT, "process specification is no object")
        spec["terminal"] = request["terminal"]
        names = Names(request["stdin"], request["stdout"], request["stderr"], request["terminal"])
        self.execs[exec_id] = process = Process(exec_id, names, spec)
        return process

    def start_exec(self, process: Process, seconds: float | None) -> Steps[None]:
        """Start a process that was added."""
        yield process.lock.take()
        try:
            process.must_be(messages.CREATED, what="start")
            base = os.path.join(self.bundle, process.exec_id)
            spec_file, log = f"{base}.process.json", f"{process.exec_id}.log.json"
            with open(os.open(spec_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
                json.dump(process.spec, file)
            try:
                arguments = ["exec", "--process", spec_file, "--detach"]
                yield from self._launch(process, arguments, f"{base}.pid", log, seconds)
            except RuntimeFailed as error:
                process.ended.set()
                raise status.StatusError(status.UNKNOWN, f"OCI runtime exec failed: {error.said}") from None
            finally:
                for path in (spec_file, os.path.join(self.bundle, log)):
                    with contextlib.suppress(OSError):
                        os.unlink(path)
            process.spec = None
            process.status = messages.RUNNING
            started = {"container_id": self.id, "exec_id": process.exec_id, "pid": process.pid}
            self._tell(messages.TASK_EXEC_STARTED, started)
            self.published(process)
        finally:
            process.lock.give()

    def give_up(self) -> Steps[None]:
        """Delete a container whose creation nobody waits for any more. containerd is told nothing of it: it knows none
        of that name, or has forgotten it."""
        self._told = False
        self.published(self.init)  # else its end would be kept for an event that never comes
        yield from self.delete()

    def delete(self) -> Steps[None]:
        """Remove what is left of the container."""
        process = self.init
        yield process.lock.take()
        try:
            process.must_be(messages.CREATED, messages.STOPPED, what="delete")
            if process.status == messages.STOPPED and process.streams is not None:
                yield from process.streams.settled()
            try:
                yield from self.runtime.run(["delete", self.id])
            except RuntimeFailed as error:
                if "does not exist" not in error.said:
                    raise status.StatusError(status.UNKNOWN, f"failed to delete task: {error.said}") from None
            if process.status != messages.STOPPED:  # the runtime has ended it
                try:
                    yield self._shim.loop.bounded(process.ended, CREATED_END_SECONDS)
                except TimeoutError:
                    self._shim.loop.complain(f"{self.id} is deleted, but the end of its process was not heard of")
                if process.streams is not None:
                    yield from process.streams.settled()
            for other in self.execs.values():
                if other.streams is not None:
                    other.streams.close()
            yield from self._unmount(complain=False)
        finally:
            process.lock.give()

    def delete_exec(self, process: Process) -> Steps[None]:
        """Forget a process that was added."""
        yield process.lock.take()
        try:
            process.must_be(messages.CREATED, messages.STOPPED, what="delete")
            if process.streams is not None:
                yield from process.streams.settled()
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.bundle, f"{process.exec_id}.pid"))
            self.execs.pop(process.exec_id, None)
        finally:
            process.lock.give()

    def pause(self) -> Steps[None]:
        """Stop everything in the container where it stands."""
        yield self.init.lock.take()
        try:
            self.init.must_be(messages.RUNNING, what="pause")
            self.pausing = True
            yield from self._simple("pause")
            if self.init.status == messages.RUNNING:
                self.init.status = messages.PAUSED
        finally:
            self.pausing = False
            self.init.lock.give()

    def resume(self) -> Steps[None]:
        """Let it go on."""
        yield self.init.lock.take()
        try:
            self.init.must_be(messages.PAUSED, what="resume")
            yield from self._simple("resume")
            if self.init.status == messages.PAUSED:
                self.init.status = messages.RUNNING
        finally:
            self.init.lock.give()

    def _simple(self, verb: str) -> Steps[None]:
        try:
            if not (yield from self._keeper_did(verb)):
                yield from self.runtime.run([verb, self.id])
        except RuntimeFailed as error:
            raise status.StatusError(status.UNKNOWN, f"OCI runtime {verb} failed: {error.said}") from None

    def update(self, resources: bytes) -> Steps[None]:
        """Change the container's limits: ``linux.resources`` as JSON."""
        yield self.init.lock.take()
        try:
            self.init.must_be(messages.CREATED, messages.RUNNING, messages.PAUSED, what="update")
            try:
                yield from self.runtime.run(["update", "--resources", "-", self.id], input_data=resources)
            except RuntimeFailed as error:
                raise status.StatusError(status.UNKNOWN, error.said) from None
        finally:
            self.init.lock.give()

    def kill(self, process: Process, signum: int, everyone: bool) -> Steps[None]:
        """Send a signal."""
        if process is not self.init:
            if not process.pid:
                raise status.failure(status.FAILED_PRECONDITION, "process not created")
            if process.exited_at:
                raise status.failure(status.NOT_FOUND, "process already finished")
            yield from self._kill_added(process, signum)
            return
        if process.status == messages.STOPPED and not everyone:
            raise status.failure(status.NOT_FOUND, "process already finished")
        arguments = ["kill", "--all"] if everyone else ["kill"]
        try:
            if signum == 0 or not (yield from self._keeper_did("kill", exec=None, signal=signum, all=everyone)):
                yield from self.runtime.run([*arguments, self.id, str(signum)])
        except RuntimeFailed as error:
            raise status.kill_error(error.said) from None

    def _kill_added(self, process: Process, signum: int) -> Steps[None]:
        """Send a signal to an added process. Where it is a stand-in, the keeper is told, which knows it by its number:
        a stand-in cannot hand on what it cannot catch."""
        if self.keeper is not None:
            with contextlib.suppress(KeeperGone, KeeperRefused):
                known = (yield from self.keeper.ask("pids", id=self.id)).get("execs")
                for name, pid in known.items() if isinstance(known, dict) else ():
                    if pid == process.pid:
                        yield from self.keeper.ask("kill", id=self.id, exec=name, signal=signum, all=False)
                        return
        if process.exited_at:  # meanwhile
            raise status.failure(status.NOT_FOUND, "process already finished")
        try:
            os.kill(process.pid, signum)
        except ProcessLookupError:
            raise status.failure(status.NOT_FOUND, "process already finished") from None
        except (OSError, OverflowError) as error:
            raise status.StatusError(status.UNKNOWN, f"exec kill error: {error}") from None

    def _keeper_did(self, op: str, **arguments: Any) -> Steps[bool]:
        """Have the keeper do something; False where there is none, and the command line is to be tried.

        Raises:
            RuntimeFailed: it refused.
        """
        if self.keeper is None:
            return False
        try:
            yield from self.keeper.ask(op, id=self.id, **arguments)
        except KeeperGone:
            return False
        except KeeperRefused as error:
            raise RuntimeFailed(str(error), 1) from None
        return True

    def pids(self) -> Steps[list[int]]:
        """The numbers of all processes in the container."""
        try:
            if self.keeper is not None:
                with contextlib.suppress(KeeperGone, KeeperRefused):
                    answer = yield from self.keeper.ask("pids", id=self.id)
                    known = [answer.get("pid"), *(answer.get("execs") or {}).values()]
                    return [pid for pid in known if type(pid) is int and 0 < pid < 1 << 32]
            output = yield from self.runtime.run(["ps", "--format", "json", self.id])
            found = json.loads(output)
            return [pid for pid in found or [] if type(pid) is int and 0 <= pid < 1 << 32]
        except (RuntimeFailed, ValueError, TypeError) as error:
            raise status.StatusError(status.UNKNOWN, str(error)) from None


def _read_pid(path: str) -> int:
    try:
        with open(path, "rb") as file:
            pid = int(file.read(32))
    except (OSError, ValueError) as error:
        raise RuntimeFailed(f"failed to retrieve OCI runtime container pid: {error}", 1) from None
    if pid <= 0:
        raise RuntimeFailed(f"the runtime wrote the process id {pid}", 1)
    return pid

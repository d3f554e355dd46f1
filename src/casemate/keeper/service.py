"""The keeper: brings one container up, serves requests about it, and gives everything back at its end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from casemate.errors import CasemateError, ContainerError, HostError, NotRunning, UsageError
from casemate.host import cgroups
from casemate.keeper import reap
from casemate.keeper.control import SOCKET_NAME, Connection, ControlClosed, close_all, error_message
from casemate.keeper.logs import LogWriter
from casemate.keeper.process import Process
from casemate.keeper.store import Container
from casemate.sandbox import ProcessExit, Sandbox

MAX_CLIENTS = 256
DRAIN_SECONDS = 1.0
"""How long readers have for the last output of a container that was ended by force."""
LINGER_SECONDS = 5.0
"""How long the keeper stays for answers that are still to be sent."""

Wall = Callable[[Container, Callable[[str | None, ProcessExit], None], Callable[[str], None]], Sandbox]


class Keeper:
    """The life of one container.

    Arguments:
        container: its lock is held by this process.
        wall: makes the sandbox.
    """

    def __init__(self, container: Container, wall: Wall) -> None:
        self.container = container
        self.spec = container.spec
        self.state = replace(container.stored_state(), pid=os.getpid())
        self.sandbox = wall(container, self._process_exited, self._progress)
        self.sandbox.on_oom = self._out_of_memory
        self._lock = threading.Lock()
        self._answered = threading.Condition(self._lock)
        self._state_lock = threading.RLock()  # of the state and its file
        self._oom = False
        self._processes: dict[str | None, Process] = {}
        self._early: dict[str | None, ProcessExit] = {}
        self._clients = 0
        self._owed = 0
        self._next_exec = 0
        self._end: ProcessExit | None = None
        self._ended = threading.Event()
        self._gone = threading.Event()
        self._first_gone = False
        self._aborted: ProcessExit | None = None
        self._log = LogWriter(container.path / "log", container.config.log_size << 20)
        self._listener: socket.socket | None = None

    # ---- life

    def run(self, first: Connection, received: tuple[dict[str, Any], list[int]] | None = None) -> None:
        """Do everything; returns when nothing is left to do.

        Arguments:
            first: the connection of whoever started the keeper; it asks for the container to run.
            received: that request and its descriptors, where it has come already.
        """
        recorded = self._save()  # whoever wants to end the keeper finds its pid there
        try:
            request, fds = received or first.receive()
        except ControlClosed:
            self._finish(ProcessExit(255, error="whoever started it went away"))
            return
        stdio = dict(zip(request.get("fds", ()), fds, strict=True))
        size = _size(request)
        try:
            if not recorded:
                raise HostError(f"cannot write to {self.container.path}", "free some space")
            self._listen()
            threading.Thread(target=self._first_client, args=(first,), name="first", daemon=True).start()
            self.sandbox.boot()
            streams = self.sandbox.start("stdin" in stdio, size)
        except Exception as error:  # whatever went wrong, the one who waits has to be told
            close_all(list(stdio.values()))
            aborted = self._aborted
            message = error_message(ContainerError(aborted.error) if aborted else error)
            status = getattr(error, "exit_status", 125)
            self._finish(aborted or ProcessExit(status, error=str(message["error"]["message"])))
            with contextlib.suppress(ControlClosed):
                first.send(message)
            self._linger()
            if not isinstance(error, CasemateError | OSError):
                raise
            return
        # On record before any output can be seen: who has seen some may go away and leave the container behind.
        self._update(
            status="running",
            started=time.time(),
            address=self.sandbox.address,
            ports=self.sandbox.ports,
            guest={key: value for key, value in self.sandbox.info().items() if key != "processes"},
        )
        self._adopt(None, streams, stdio, self._log, self._container_exited)
        with contextlib.suppress(ControlClosed):
            first.send({"started": os.getpid()})
        self._ended.wait()
        self._finish(self._end or ProcessExit(255))
        with contextlib.suppress(ControlClosed):
            first.send({"exited": self.state.exit_code, "reason": self.state.error})
        self._linger()

    def _linger(self) -> None:
        """Wait until everybody is answered: the other threads end with the process."""
        with self._answered:
            self._answered.wait_for(lambda: not self._owed and not self._processes.keys() - {None}, LINGER_SECONDS)

    def _progress(self, what: str) -> None:
        if self._aborted:
            raise ContainerError(self._aborted.error)

    def abort(self, reason: str, status: int = 255) -> None:
        """End the container now, in whatever state it is."""
        end = ProcessExit(status, error=reason)
        with self._lock:
            self._aborted = self._aborted or end
        self._process_exited(None, end)
        self.sandbox.close()
        with self._lock:
            processes = list(self._processes.values())
        if processes and not self._ended.wait(DRAIN_SECONDS):
            for process in processes:
                process.detach()  # somebody does not read what he asked for, and would keep the container for ever

    def _finish(self, end: ProcessExit) -> None:
        """Give everything back, then write down how it ended: who reads ``exited`` finds nothing left.

        What cannot be given back is told, and keeps the container on record, because its id is what leads there.
        """
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
            self._listener.close()
        if self.state.status == "running" and (end.oom or not end.error) and self.spec.keeps_files():
            self.sandbox.flush()
        # It can leave the sandbox's control group meanwhile; that waits for something in the kernel.
        leaving = threading.Thread(target=self._attempt, args=(self._leave_group,), name="leave", daemon=True)
        leaving.start()
        problem = self._attempt(self.sandbox.close)
        leaving.join()
        self._log.close()
        problem = self._attempt(lambda: reap.clean_host(self.container)) or problem
        error = "; ".join(filter(None, (end.error, problem and reap.leftovers(problem))))
        with self._state_lock:
            self.state = replace(
                self.state,
                status="exited",
                pid=None,
                exit_code=end.status,
                oom_killed=end.oom or self._oom,
                error=error,
                finished=time.time(),
            )
            if not self.spec.remove or problem or self._attempt(self.container.delete_files):
                self._save()
        self._gone.set()

    def _leave_group(self) -> None:
        reap.leave(cgroups.find(self.container.id).procs_files())

    @staticmethod
    def _attempt(step: Callable[[], None]) -> str:
        """Do ``step``; what went wrong, or an empty string."""
        try:
            step()
        except (CasemateError, OSError) as error:
            return str(error)
        return ""

    def _update(self, **changes: Any) -> None:
        """Change the state, unless the last word has been written."""
        with self._state_lock:
            if self.state.status != "exited":
                self.state = replace(self.state, **changes)
                self._save()

    def _save(self) -> bool:
        """Write the state; False where it cannot be. A full disk must not end a container: the lock tells who lives."""
        with self._state_lock:  # so that what is read is written before anything newer is
            try:
                self.container.write_state(replace(self.state, oom_killed=self.state.oom_killed or self._oom))
            except OSError:
                return False
        return True

    def _out_of_memory(self) -> None:
        """Something was killed; the container may well go on without it."""
        if not self._oom:
            self._oom = True
            if self.state.status in ("running", "paused"):
                self._save()

    # ---- processes

    def _adopt(
        self,
        key: str | None,
        streams: Any,
        stdio: dict[str, int],
        log: LogWriter | None,
        ended: Callable[[ProcessExit], None],
    ) -> Process:
        process = Process(streams, stdio, log, ended)
        with self._lock:
            self._processes[key] = process
            early = self._early.pop(key, None)
            unattended = key is None and self._first_gone
        if unattended:
            process.detach()
        if early is not None:
            process.exited(early)
        return process

    def _process_exited(self, key: str | None, end: ProcessExit) -> None:
        with self._lock:
            process = self._processes.get(key)
            if process is None:
                self._early[key] = end
        if process is not None:
            process.exited(end)

    def _container_exited(self, end: ProcessExit) -> None:
        self._end = end
        self._ended.set()

    # ---- clients

    def _listen(self) -> None:
        run_path = self.container.run_path
        run_path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._listener.bind(str(run_path / SOCKET_NAME))
        self._listener.listen(64)
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
        fds: list[int] = []
        owed = 0
        try:
            request, fds = connection.receive()
            op = str(request.get("op"))
            if op == "exec":
                fds, taken = [], fds
                self._exec(connection, request, taken)
                return
            with self._lock:
                self._owed += 1
                owed = 1
            method = getattr(self, f"_op_{op}", None)
            if method is None:
                raise UsageError(f"the keeper knows no request {op!r}", "is it of another version?")
            connection.send(method(request) or {})
        except ControlClosed:
            pass
        except Exception as error:  # the client has to hear of it, whatever it is
            with contextlib.suppress(ControlClosed):
                connection.send(error_message(error))
        finally:
            close_all(fds)
            connection.close()
            with self._answered:
                self._clients -= 1
                self._owed -= owed
                self._answered.notify_all()

    def _first_client(self, connection: Connection) -> None:
        """Serve the connection that the container was started on, until its end."""
        try:
            while True:
                message, fds = connection.receive()
                close_all(fds)
                if self.state.status == "creating" and message.get("op") == "signal":
                    signum = int(message.get("signum", signal.SIGTERM))
                    self.abort(f"interrupted by signal {signum} before it ran", 128 + signum)
                    continue
                self._session_message(None, message)
        except ControlClosed:
            with self._lock:
                self._first_gone = True
                process = self._processes.get(None)
            if process is not None:
                process.detach()
            elif self.state.status == "creating" and not self._gone.is_set():
                self.abort("whoever started it went away")

    def _session_message(self, key: str | None, message: dict[str, Any]) -> None:
        with contextlib.suppress(CasemateError, TypeError, ValueError):  # nobody waits for an answer to these
            if message.get("op") == "signal":
                self.sandbox.signal(key, int(message["signum"]))
            elif message.get("op") == "resize":
                self.sandbox.resize(key, int(message["rows"]), int(message["columns"]))

    def _exec(self, connection: Connection, request: dict[str, Any], fds: list[int]) -> None:
        stdio = dict(zip(request.get("fds", ()), fds, strict=True))
        with self._lock:
            self._next_exec += 1
            key = f"exec-{self._next_exec}"
        try:
            self._must_run()
            streams = self.sandbox.exec(
                key, request["process"], str(request.get("user", "")), "stdin" in stdio, _size(request)
            )
        except BaseException:
            close_all(list(stdio.values()))
            raise

        def ended(end: ProcessExit) -> None:
            with contextlib.suppress(ControlClosed):
                connection.send({"exited": end.status, "reason": end.error})
            with self._answered:
                self._processes.pop(key, None)
                self._answered.notify_all()

        with contextlib.suppress(ControlClosed):  # first, so that "exited" comes after it; who is gone is met below
            connection.send({"started": True})
        process = self._adopt(key, streams, stdio, None, ended)
        try:
            while True:
                message, more = connection.receive()
                close_all(more)
                self._session_message(key, message)
        except ControlClosed:
            process.detach()

    def _must_run(self) -> None:
        if self.state.status == "creating":
            raise NotRunning(f"container {self.spec.name} is still starting", "try again in a moment")
        if self.state.status == "paused":
            raise NotRunning(f"container {self.spec.name} is paused", "resume it with 'casemate unpause'")

    def _op_signal(self, request: dict[str, Any]) -> dict[str, Any]:
        signum = int(request["signum"])
        if self.state.status == "creating":
            self.abort(f"interrupted by signal {signum} before it ran", 128 + signum)
            return {}
        if signum == signal.SIGKILL:
            self._kill()
            return {}
        self._must_run()
        self.sandbox.signal(None, signum)
        return {}

    def _kill(self) -> None:
        """SIGKILL for the container; if the guest does not see to it, for the whole sandbox."""
        if self.state.status == "paused":
            self.abort("", 128 + signal.SIGKILL)
            return
        self._send(signal.SIGKILL)
        if not self._ended.wait(self.container.config.stop_timeout):
            self.abort("the guest did not end it, so the whole sandbox was killed", 128 + signal.SIGKILL)

    def _send(self, signum: int) -> None:
        """Send the container a signal, without waiting for a guest that may not answer."""

        def send() -> None:
            with contextlib.suppress(CasemateError):
                self.sandbox.signal(None, signum)

        threading.Thread(target=send, name="signal", daemon=True).start()

    def _op_stop(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.state.status == "creating":
            self.abort("stopped before it ran", 128 + signal.SIGTERM)
        elif self.state.status == "paused":
            self._kill()
        else:
            self._send(int(request["signum"]))
            if not self._ended.wait(max(0.0, float(request["timeout"]))):
                self._kill()
        return self._op_wait(request)

    def _op_wait(self, request: dict[str, Any]) -> dict[str, Any]:
        self._gone.wait()
        return {"exited": self.state.exit_code, "oom": self.state.oom_killed, "reason": self.state.error}

    def _op_pause(self, request: dict[str, Any]) -> dict[str, Any]:
        self._must_run()
        self.sandbox.pause()
        self._update(status="paused")
        return {}

    def _op_resume(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.state.status != "paused":
            raise NotRunning(f"container {self.spec.name} is not paused")
        self.sandbox.resume()
        self._update(status="running")
        return {}

    def _op_stats(self, request: dict[str, Any]) -> dict[str, Any]:
        self._must_run()
        return self.sandbox.stats()

    def _op_refresh(self, request: dict[str, Any]) -> dict[str, Any]:
        self._must_run()
        self.sandbox.refresh()
        return {}

    def _op_debug(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.state.status == "creating":
            self._must_run()
        pid = request.get("pid")
        return self.sandbox.debug(str(request["what"]), None if pid is None else int(pid))

    def _op_info(self, request: dict[str, Any]) -> dict[str, Any]:
        return self.sandbox.info()


def _size(request: dict[str, Any]) -> tuple[int, int] | None:
    size = request.get("size")
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) and len(size) == 2 else None

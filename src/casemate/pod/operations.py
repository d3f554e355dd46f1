"""What can be asked of a sandbox's keeper about containers that are there; their making and end is the keeper's own."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from casemate.errors import CasemateError, ContainerError, NotRunning, UsageError
from casemate.pod.container import Container, kept_of, size_of
from casemate.pod.home import Home
from casemate.pod.network import log_line

if TYPE_CHECKING:
    from casemate.pod.service import PodKeeper
    from casemate.sandbox import ProcessStreams

MAX_EXEC_ID = 200
MAX_EXECS = 400
"""Execs under way in one sandbox. Each takes half a dozen threads of the keeper, whose group bounds their number."""


class Operations:
    """The requests, by the names that they have on the socket.

    Arguments:
        keeper: whose containers they are about.
    """

    def __init__(self, keeper: PodKeeper) -> None:
        self._keeper = keeper

    def __call__(self, op: str, request: dict[str, Any], fds: dict[str, int]) -> dict[str, Any] | None:
        """Do what a request asks for; the answer.

        Raises:
            CasemateError: it cannot be done.
            KeyError, TypeError, ValueError: the request lacks something.
        """
        if op == "create":
            return self._keeper.create(request, fds)
        method = getattr(self, f"_op_{op}", None)
        if method is None:
            raise UsageError(f"the keeper knows no request {op!r}", "is it of another version?")
        answer: dict[str, Any] | None = method(request, fds)
        return answer

    def _running(self, request: dict[str, Any], *statuses: str) -> Container:
        container = self._keeper.get(str(request["id"]))
        if container.record.status not in (statuses or ("created", "running", "paused")):
            raise NotRunning("container not running")
        return container

    def _op_start(self, request: dict[str, Any], fds: dict[str, int]) -> None:
        container = self._keeper.get(str(request["id"]))
        with container.starting:
            status = container.record.status
            if status == "stopped" or container.ending:
                raise NotRunning("cannot start a container that has stopped")
            if status == "running":
                raise ContainerError("cannot start an already running container")
            if status != "created":
                raise ContainerError(f"cannot start a container in the {status} state")
            self._keeper.catch_up()
            self._keeper.machine().start(container.name)
            container.update(("created",), status="running", started=time.time())
            self._keeper.feed.tell({"event": "start", "id": container.id, "exec": None, "at": time.time()})

    def _op_exec(self, request: dict[str, Any], fds: dict[str, int]) -> dict[str, Any]:
        container = self._keeper.get(str(request["id"]))
        exec_id = str(request["exec"])
        if not 0 < len(exec_id) <= MAX_EXEC_ID:
            raise UsageError("the name of an exec must have 1 to 200 characters")
        if sum(len(one.execs()) for one in self._keeper.living()) >= MAX_EXECS:
            raise ContainerError(f"{MAX_EXECS} execs run in this sandbox already", "wait until some have ended")
        task = container.add_exec(exec_id, int(request.get("pid") or 0))
        streams: ProcessStreams | None = None
        try:
            task.standin = self._keeper.meet(container, task, fds)
            if request.get("pid"):
                with contextlib.suppress(CasemateError):  # it ends just now, and so will the exec
                    Home.group(container).add(int(request["pid"]))
            process = request["process"]
            streams = self._keeper.machine().exec(
                container.name, str(task.key), process, "stdin" in fds, size_of(request), kept_of(request, fds)
            )
            self._keeper.feed.tell({"event": "start", "id": container.id, "exec": exec_id, "at": time.time()})
            self._keeper.adopt(container, task, streams, fds, bool(process.get("terminal")))
        except BaseException:
            task.done.set()
            if task.standin is not None:
                task.standin.close()
            container.drop_exec(task, forget=True)
            if streams is not None:  # it runs, and nobody is to know of it
                with contextlib.suppress(CasemateError):
                    self._keeper.machine().signal(container.name, task.key, signal.SIGKILL)
                further = (stream for pair in streams.kept for stream in pair)
                for stream in filter(None, (streams.stdin, streams.stdout, streams.stderr, *further)):
                    stream.close()
            raise
        if task.gone:
            with contextlib.suppress(CasemateError):
                self._keeper.machine().signal(container.name, task.key, signal.SIGKILL)
        return {}

    def _op_kill(self, request: dict[str, Any], fds: dict[str, int]) -> None:
        container = self._keeper.get(str(request["id"]))
        signum, exec_id, everyone = int(request["signal"]), request.get("exec"), bool(request.get("all"))
        if not 0 <= signum <= 64:
            raise UsageError(f"unknown signal {signum}", "signals are numbered 1 to 64")
        if container.record.status == "creating":
            self._keeper.give_up(container, f"killed by signal {signum} before it was made", 128 + signum)
            return
        task = container.task(exec_id)
        if signum == signal.SIGKILL and exec_id is None:
            self._keeper.kill(container, everyone=everyone)
        elif signum:
            self._keeper.machine().signal(container.name, task.key, signum, everyone)

    def _op_resize(self, request: dict[str, Any], fds: dict[str, int]) -> None:
        container = self._keeper.get(str(request["id"]))
        task = container.task(request.get("exec"))
        rows, columns = int(request["rows"]), int(request["columns"])
        self._keeper.machine().resize(container.name, task.key, rows, columns)

    def _op_close_stdin(self, request: dict[str, Any], fds: dict[str, int]) -> None:
        self._keeper.get(str(request["id"])).task(request.get("exec")).close_stdin()

    def _op_pause(self, request: dict[str, Any], fds: dict[str, int]) -> None:
        container = self._running(request, "created", "running")
        before = container.record.status
        self._keeper.machine().pause(container.name)
        container.update((before,), status="paused")

    def _op_resume(self, request: dict[str, Any], fds: dict[str, int]) -> None:
        container = self._keeper.get(str(request["id"]))
        if container.record.status != "paused":
            raise NotRunning("container not paused")
        self._keeper.machine().resume(container.name)
        container.update(("paused",), status="running" if container.record.started is not None else "created")

    def _op_stats(self, request: dict[str, Any], fds: dict[str, int]) -> dict[str, Any]:
        container = self._running(request)
        return self._keeper.machine().stats(container.name)

    def _op_debug(self, request: dict[str, Any], fds: dict[str, int]) -> dict[str, Any]:
        container, pid = self._running(request), request.get("pid")
        return self._keeper.machine().debug(container.name, str(request["what"]), None if pid is None else int(pid))

    def _op_update(self, request: dict[str, Any], fds: dict[str, int]) -> None:
        from casemate.oci.bundle import check_resources
        from casemate.pod.plan import resources as for_guest

        container = self._running(request)
        resources = request["resources"]
        check_resources(resources)
        self._keeper.make_room(container, resources, partly=False)
        self._keeper.home.check(container, resources)
        inside = for_guest(resources)
        if inside:
            self._keeper.machine().update(container.name, inside)
        self._keeper.home.update(container, resources, self._keeper.living())

    def _op_delete(self, request: dict[str, Any], fds: dict[str, int]) -> dict[str, Any]:
        return {"removed": self._keeper.remove(str(request["id"]), force=bool(request.get("force")))}

    def _op_wait(self, request: dict[str, Any], fds: dict[str, int]) -> dict[str, Any]:
        container = self._keeper.get(str(request["id"]))
        task = container.tasks.get(request.get("exec"))
        if task is None:
            raise NotRunning("process already finished")
        task.done.wait()
        result = task.result()
        return {**result, "oom": bool(result["oom"] or (task.exec_id is None and container.record.oom_killed))}

    def _op_pids(self, request: dict[str, Any], fds: dict[str, int]) -> dict[str, Any]:
        record = self._keeper.get(str(request["id"])).record
        return {"pid": record.pid, "execs": record.execs}

    def _op_info(self, request: dict[str, Any], fds: dict[str, int]) -> dict[str, Any]:
        return self._keeper.info()

    def _op_forward(self, request: dict[str, Any], fds: dict[str, int]) -> None:
        from casemate.pod.forward import pump

        port = int(request["port"])
        if not 0 < port < 65536:
            raise UsageError(f"{port} is no port")
        client, sandbox = socket.socket(fileno=fds.pop("conn")), self._keeper.machine()

        def carry() -> None:
            try:
                pump(sandbox, client, port)
            except CasemateError as error:
                log_line(f"port-forward: {error}")

        threading.Thread(target=carry, name="forward", daemon=True).start()

"""The requests that the agent answers. ``docs/protocol.md`` describes each."""

from __future__ import annotations

import os
from time import monotonic

from casemate.agent import late, machine, marks, system
from casemate.agent.cgroup import PARENT
from casemate.agent.container import Container, Places, let_go
from casemate.agent.process import Process, Streams
from casemate.agent.processes import Reaper
from casemate.agent.system import get_dict, get_id, get_int, get_list
from casemate.protocol import threads
from casemate.protocol.link import Link, Reply
from casemate.protocol.wire import RequestFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_CONTAINERS = 64
READY = 60.0
DELETE = 60.0


class Service:
    """Answers requests.

    Arguments:
        places: see :class:`Places`.
        reaper: waits for all children.
        power_off: ends the machine.
    """

    def __init__(self, places: Places, reaper: Reaper, power_off: Callable[[str], None]) -> None:
        self.ready = threads.Event()
        """Set when the guest's file systems are there; requests wait for it."""
        self.trouble = ""
        """What went wrong in setting up the guest; every request but sandbox.* is refused with it."""
        self.link: Link | None = None
        self._places = places
        self._reaper = reaper
        self._power_off = power_off
        self._lock = threads.Lock()
        self._containers: dict[str, Container] = {}
        self._counter = 0
        self._methods: dict[str, Callable[[dict[str, Any]], dict[str, Any] | Reply]] = {
            "container.run": lambda params: self._make(params, True),
            "container.create": lambda params: self._make(params, False),
            "container.start": self._start,
            "container.exec": self._exec,
            "container.stats": self._stats,
            "container.pause": self._pause,
            "container.resume": self._resume,
            "container.update": self._update,
            "container.delete": self._delete,
            "process.signal": self._signal,
            "process.resize": self._resize,
            "sandbox.prepare": self._prepare,
            "sandbox.blank": self._blank,
            "sandbox.grow": self._grow,
            "sandbox.info": lambda params: machine.info(identity=params.get("identity") is not False),
            "sandbox.boot": lambda params: {**marks.tell(params.get("log") is True), **machine.memory()},
            "sandbox.ping": lambda params: {},
            "sandbox.network": self._network,
            "sandbox.dns": self._dns,
            "sandbox.connect": self._connect,
            "sandbox.detach": self._detach,
            "sandbox.rest": self._rest,
            "sandbox.refresh": self._refresh,
            "sandbox.shutdown": self._shutdown,
        }

    def request(self, method: str, params: dict[str, Any]) -> dict[str, Any] | Reply:
        """Answer one request, on a worker thread.

        Raises:
            RequestFailed: always with a code that the protocol names.
        """
        handler = self._methods.get(method)
        if handler is None:
            raise RequestFailed("no-such-method", f"the agent does not know {method!r}")
        if not self.ready.wait(READY):
            raise RequestFailed("failed", "the guest is not ready")
        if self.trouble and not method.startswith("sandbox."):
            raise RequestFailed("failed", f"the guest could not be set up: {self.trouble}")
        try:
            return handler(params)
        except RequestFailed:
            raise
        except OSError as error:
            raise RequestFailed("failed", f"{method}: {error}") from None
        except Exception as error:
            system.log(f"{method}: {type(error).__name__}: {error}")
            raise

    def _container(self, params: dict[str, Any]) -> Container:
        identifier = get_id(params, "id")
        with self._lock:
            container = self._containers.get(identifier)
        if container is None:
            raise RequestFailed("no-such-container", f"the guest has no container {identifier}")
        return container

    def _streams(self, params: dict[str, Any]) -> Streams:
        assert self.link is not None  # there is a request, so there is a link
        return Streams(self.link, params)

    def _started(self, process: Process) -> Reply:
        return Reply({"pid": process.pid}, process.announced.set)

    def _make(self, params: dict[str, Any], run: bool) -> Reply:
        streams = self._streams(params)
        try:
            identifier = get_id(params, "id")
            if params.get("sandbox") is not None:
                machine.setup(get_dict(params, "sandbox"))
            else:
                late.listen()  # the host may have plugged in more for this one
            assert self.link is not None
            with self._lock:
                for name in [n for n, c in self._containers.items() if c.ended.is_set()]:
                    del self._containers[name]
                if identifier in self._containers:
                    raise RequestFailed("failed", f"the guest has a container {identifier} already")
                if len(self._containers) >= MAX_CONTAINERS:
                    raise RequestFailed("failed", f"the guest has {MAX_CONTAINERS} containers, the most there can be")
                self._counter += 1
                container = Container(
                    identifier, self._counter, self._places, self._reaper, self.link, self._all_containers
                )
                self._containers[identifier] = container
            reply = self._started(container.make(params, streams, run))
            if params.get("info") is True:
                reply.result["guest"] = machine.info()
            return reply
        finally:
            streams.close()

    def _all_containers(self) -> dict[str, Container]:
        with self._lock:
            return dict(self._containers)

    def _start(self, params: dict[str, Any]) -> dict[str, Any]:
        self._container(params).start()
        return {}

    def _exec(self, params: dict[str, Any]) -> Reply:
        streams = self._streams(params)
        try:
            return self._started(self._container(params).exec(params, streams))
        finally:
            streams.close()

    def _signal(self, params: dict[str, Any]) -> dict[str, Any]:
        number = get_int(params, "signal", 1, 64)
        self._container(params).signal(_exec_id(params), number, params.get("all") is True)
        return {}

    def _resize(self, params: dict[str, Any]) -> dict[str, Any]:
        rows, columns = get_int(params, "rows", 0, 65535), get_int(params, "cols", 0, 65535)
        self._container(params).process(_exec_id(params)).resize(rows, columns)
        return {}

    def _stats(self, params: dict[str, Any]) -> dict[str, Any]:
        return {**self._container(params).cgroup.stats(), "guest": machine.memory(), "net": machine.counters()}

    def _pause(self, params: dict[str, Any]) -> dict[str, Any]:
        container = self._container(params)
        if not container.cgroup.freeze(True):
            container.cgroup.freeze(False)
            raise RequestFailed("failed", "not all processes of the container could be stopped in time")
        container.paused = True
        return {}

    def _resume(self, params: dict[str, Any]) -> dict[str, Any]:
        container = self._container(params)
        container.cgroup.freeze(False)
        container.paused = False
        return {}

    def _update(self, params: dict[str, Any]) -> dict[str, Any]:
        self._container(params).update(get_dict(params, "resources"))
        return {}

    def _delete(self, params: dict[str, Any]) -> dict[str, Any]:
        late.listen()
        identifier = get_id(params, "id")
        with self._lock:
            container = self._containers.get(identifier)
        if container is None:
            let_go(self._places, identifier)  # somebody may have looked once more since it has ended
            return {}
        deadline = monotonic() + DELETE
        while not container.ended.is_set():
            container.kill()  # again and again: it may be on its way into being
            if not container.ended.wait(1.0) and monotonic() > deadline:
                raise RequestFailed("failed", f"the container {identifier} does not end")
        with self._lock:
            if self._containers.get(identifier) is container:
                del self._containers[identifier]
        let_go(self._places, identifier)
        return {}

    def _network(self, params: dict[str, Any]) -> dict[str, Any]:
        late.listen()
        machine.apply_network(params)
        return {}

    def _dns(self, params: dict[str, Any]) -> dict[str, Any]:
        from casemate.agent import dns  # here, because few sandboxes need it

        streams = self._streams(params)
        try:
            dns.serve(params, streams, f"{self._places.cgroups}/{PARENT}")
        finally:
            streams.close()
        return {}

    def _connect(self, params: dict[str, Any]) -> dict[str, Any]:
        from casemate.agent import connect  # here, because few sandboxes need it

        streams = self._streams(params)
        try:
            connect.connect(params, streams)
        finally:
            streams.close()
        return {}

    def _prepare(self, params: dict[str, Any]) -> dict[str, Any]:
        late.prepare(self._places.crun[0], self._reaper.run_program)
        machine.apply_network({})
        machine.settle()
        if params.get("spec") is not None:
            self._blank(params)
            self._practise()
        late.settle()
        return {}

    def _practise(self) -> None:
        from casemate.agent import dns  # here, because most guests are not saved

        try:
            dns.practise(f"{self._places.cgroups}/{PARENT}")
        except OSError as error:  # who wants it is told then
            system.log(f"queries of names could not be taken: {error}")

    def _blank(self, params: dict[str, Any]) -> dict[str, Any]:
        from casemate.agent import blank  # here, because most guests are not saved

        usual = get_list(params, "usual", blank.MAX_USUAL)
        blank.make(self._reaper, self._places.cgroups, get_dict(params, "spec"), usual)
        self._places.blank, self._places.complete = blank.take, blank.complete
        return {}

    def _grow(self, params: dict[str, Any]) -> dict[str, Any]:
        late.wait_for_memory(get_int(params, "grown", 0, late.MAX_GROWN_MIB))
        return {}

    def _detach(self, params: dict[str, Any]) -> dict[str, Any]:
        from casemate.agent import guest  # here, because tests serve without a guest

        late.detach(guest.unmount_share)
        return {}

    def _rest(self, params: dict[str, Any]) -> dict[str, Any]:
        late.rest()
        machine.apply_network({})
        system.forget_names()
        self._practise()
        late.settle()
        return {}

    def _refresh(self, params: dict[str, Any]) -> dict[str, Any]:
        system.forget_names()
        return {}

    def _shutdown(self, params: dict[str, Any]) -> Reply:
        with self._lock:
            containers = list(self._containers.values())
        for container in containers:
            if not container.ended.is_set():
                container.kill()
        os.sync()
        return Reply({}, lambda: self._power_off("the host asked for it"))


def _exec_id(params: dict[str, Any]) -> str | None:
    return None if params.get("exec_id") is None else get_id(params, "exec_id")

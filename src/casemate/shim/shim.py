"""The shim itself: what all its services share, its containers, its beginning and its end."""

from __future__ import annotations

import signal
import time

from casemate.shim import messages, pods, status, wire
from casemate.shim.children import Children
from casemate.shim.container import Container
from casemate.shim.events import Publisher
from casemate.shim.fifos import Arrivals
from casemate.shim.loop import Future, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from casemate.shim.loop import Steps
    from casemate.shim.pumps import OutputPump
    from casemate.shim.ttrpc import Server

FORGOTTEN_SECONDS = 10.0
"""How long a shim without containers waits to be told to end, which containerd does at once."""
UNUSED_SECONDS = 20.0
"""How long a new shim waits to be told what for, which containerd does at once."""
FLUSH_SECONDS = 5.0
"""How long the last events may take when the shim ends."""
MAX_LINGERING = 64
"""Most outputs of deleted processes that wait for slow readers."""
LINGER_SECONDS = 10.0
"""How long slow readers of the last output are waited for when the shim ends."""


class Shim:
    """One shim, for the containers of one pod (or one container).

    Arguments:
        loop, children: of this process.
        publisher: where events go.
        namespace: containerd's.
        socket_directory: where short-lived sockets go.
        debug: have runtimes tell more.
    """

    def __init__(
        self, loop: Loop, children: Children, publisher: Publisher, namespace: str, *, socket_directory: str,
        debug: bool = False,
    ) -> None:
        self.loop = loop
        self.children = children
        self.arrivals = Arrivals(loop)
        self.namespace = namespace
        self.socket_directory = socket_directory
        self.debug = debug
        self.containers: dict[str, Container] = {}
        self.creating: dict[str, Future] = {}
        self.given_up: set[str] = set()
        """Those of them that nobody waits for any more."""
        self.unwanted = False
        """It was told to end while a container was being made."""
        self.sandbox: Container | None = None
        """The pod's own container, where the Sandbox service made it."""
        self.server: Server | None = None
        self.on_end: list[Callable[[], None]] = []
        """Called when the shim begins to end, before anything else."""
        self.ending = False
        self.ended = Future()
        self._publisher = publisher
        self._writing: list[OutputPump] = []
        self._keepers: dict[str, pods.Keeper] = {}
        self._run = Future()
        """Where keepers have their sockets; it stays undone where that cannot be told, and the command line is used."""
        loop.start(pods.run_directory(children)).then(self._found)

    def _found(self, run: Future) -> None:
        if run.error is None:
            self._run.set(run.value)
        else:
            self.loop.complain(f"casemate's configuration: {run.error}")

    # --- containers ---

    def container(self, container_id: str) -> Container:
        """The container with that id.

        Raises:
            StatusError: NOT_FOUND, in the words of containerd's shim.
        """
        found = self.containers.get(container_id)
        if found is None:
            raise status.failure(status.NOT_FOUND, "container not created")
        return found

    def begin(self, container_id: str) -> None:
        """A container is being made."""
        self.creating[container_id] = Future()

    def finish(self, container_id: str) -> None:
        """It is there now, or will not be."""
        self.given_up.discard(container_id)
        self.creating.pop(container_id).set()

    def made(self, container_id: str) -> Steps[Container]:
        """The container with that id; one that is being made is waited for, as containerd's own shim does.

        Who deletes one meanwhile would else be told that there is none, and leave it behind.

        Raises:
            StatusError: as for :meth:`container`.
        """
        while (coming := self.creating.get(container_id)) is not None:
            yield coming
        return self.container(container_id)

    def publish(self, table: wire.Table, event: dict[str, Any]) -> None:
        """Tell containerd of an event."""
        self._publisher.publish(table, event)

    def created(self, container: Container) -> None:
        """A container is there, and its creation has been told."""
        pod = pods.record(container.runtime.root, container.id).get("pod")
        if isinstance(pod, str) and pod:
            self._run.then(lambda run: self._adopt(container, pods.control_socket(run.value, pod)))
            return
        from casemate.shim import cgroups

        container.cgroups = cgroups.find(container.init.pid)

    def _adopt(self, container: Container, path: str) -> None:
        container.keeper = self._keepers.get(path)
        if container.keeper is None:
            container.keeper = self._keepers[path] = pods.Keeper(self.loop, path)
            container.keeper.follow(self._pod_event)

    def deleted(self, container: Container) -> None:
        """A container is gone."""
        keeper = container.keeper
        others = [*self.containers.values(), *([self.sandbox] if self.sandbox is not None else [])]
        if keeper is not None and not any(one.keeper is keeper for one in others):
            self._keepers.pop(keeper.path, None)
            keeper.close()

    def _pod_event(self, event: dict[str, Any]) -> None:
        """Something happened in a pod. Ends are told by the stand-ins; kills for want of memory only here."""
        container = self.containers.get(str(event.get("id"))) if event.get("event") == "oom" else None
        if container is not None and container.init.status != messages.STOPPED:
            container.oom_told = True
            self.publish(messages.TASK_OOM, {"container_id": container.id})

    def stats(self, container: Container) -> Steps[dict[str, Any]]:
        """What a container uses, as an Any.

        Raises:
            StatusError: nobody can tell.
        """
        if container.keeper is not None:
            return (yield from pods.stats(container.keeper, container.id))
        from casemate.shim import cgroups

        return cgroups.stats(container.cgroups)

    def before_exit(self, container: Container) -> None:
        """What is to be told before a container's end."""
        if container.keeper is not None:
            found = pods.record(container.runtime.root, container.id)
            killed = not container.oom_told and found.get("oom_killed") is True
        else:
            from casemate.shim import cgroups

            killed = cgroups.killed_for_memory(container.cgroups)
        if killed:
            self.publish(messages.TASK_OOM, {"container_id": container.id})

    def run_helper(self, command: Sequence[str]) -> Steps[None]:
        """Run a program to its end.

        Raises:
            OSError: it cannot be executed, or did not end with 0.
        """
        pid = self.children.spawn(command, die_with_us=False)
        code = yield self.children.wait(pid)
        if code != 0:
            raise OSError(5, f"{command[0]} ended with {code}")

    # --- the end ---

    def keep_writing(self, pumps: list[OutputPump]) -> None:
        """Output of deleted processes that a slow reader still takes. Of too many the oldest are given up: who has not
        read them by then never will, and each holds up to a mebibyte."""
        self._writing = [pump for pump in self._writing if not pump.done.done] + pumps
        for pump in self._writing[:-MAX_LINGERING]:
            pump.close()
        self._writing = self._writing[-MAX_LINGERING:]

    def shut_down(self) -> None:
        """End the shim: no new connections now; the process ends when what is under way is done."""
        if self.ending:
            return
        self.ending = True
        for callback in self.on_end:
            callback()
        if self.server is not None:
            self.server.stop_listening()
        self.loop.spawn(self._finish())

    def expect_a_container(self) -> None:
        """The shim has begun: containerd says now what for.

        It does not when it dies just then. The next containerd comes upon a shim that answers, and keeps it forever.
        """
        self.loop.later(UNUSED_SECONDS, lambda: self._forgotten("it was started"))

    def expect_the_end(self) -> None:
        """The last container is gone, or the first was not made: containerd says now that the shim is to end.

        It does not when its client went away just then, or when it died itself: it forgets the task without having told
        the shim. A shim that ended by itself it tidies up after.
        """
        if not self.in_use():
            self.loop.later(FORGOTTEN_SECONDS, lambda: self._forgotten("the last container was deleted"))

    def _forgotten(self, when: str) -> None:
        if not self.ending and not self.in_use():
            self.loop.complain(f"ending, because nobody has asked for it since {when}")
            self.shut_down()

    def in_use(self) -> bool:
        """Whether there is a container, or one on its way."""
        return bool(self.containers or self.creating or self.sandbox is not None)

    def _finish(self) -> Steps[None]:
        limit = time.monotonic() + LINGER_SECONDS
        writing = [(pump.done, LINGER_SECONDS) for pump in self._writing]
        for future, seconds in [(self._publisher.idle, FLUSH_SECONDS), *writing]:
            try:
                yield self.loop.bounded(future, min(seconds, max(0.0, limit - time.monotonic())))
            except TimeoutError:
                self.loop.complain("ending although not everything is told or written")
        self._publisher.close()
        self.ended.set()


def take_exit_signals(loop: Loop, shim: Shim) -> None:
    """End the shim on SIGTERM and SIGINT, as containerd's own does; containers are left as they are."""
    seen: list[int] = []

    def look() -> None:
        if seen:
            shim.shut_down()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: seen.append(signum))
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # whoever started us may have blocked some, ends of children too
    loop.on_wake.append(look)

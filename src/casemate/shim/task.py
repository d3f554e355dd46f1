"""containerd's Task service: what a shim is asked about containers and their processes.

Versions 2 and 3 of the service have the same messages; both are served, so that a containerd may be replaced by a newer
one while its containers run. Source: ``api/runtime/task/v2/shim.proto`` in containerd's repository.
"""

from __future__ import annotations

import os

from casemate.shim import messages, options, status
from casemate.shim.container import Container
from casemate.shim.messages import EMPTY, any_of
from casemate.shim.shim import Shim
from casemate.shim.ttrpc import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from casemate.shim.loop import Steps
    from casemate.shim.ttrpc import Service

    Message = dict[str, Any]

NAMES = ("containerd.task.v2.Task", "containerd.task.v3.Task")


class Task:
    """The service.

    Arguments:
        shim: whose containers it is about.
    """

    def __init__(self, shim: Shim) -> None:
        self._shim = shim

    def service(self) -> Service:
        """The methods, for a server."""
        return {
            "State": (messages.STATE_REQUEST, messages.STATE_RESPONSE, self.state),
            "Create": (messages.CREATE_REQUEST, messages.CREATE_RESPONSE, self.create),
            "Start": (messages.START_REQUEST, messages.START_RESPONSE, self.start),
            "Delete": (messages.DELETE_REQUEST, messages.DELETE_RESPONSE, self.delete),
            "Pids": (messages.PIDS_REQUEST, messages.PIDS_RESPONSE, self.pids),
            "Pause": (messages.PAUSE_REQUEST, EMPTY, self.pause),
            "Resume": (messages.RESUME_REQUEST, EMPTY, self.resume),
            "Checkpoint": (messages.CHECKPOINT_REQUEST, EMPTY, self.checkpoint),
            "Kill": (messages.KILL_REQUEST, EMPTY, self.kill),
            "Exec": (messages.EXEC_REQUEST, EMPTY, self.exec),
            "ResizePty": (messages.RESIZE_REQUEST, EMPTY, self.resize),
            "CloseIO": (messages.CLOSE_IO_REQUEST, EMPTY, self.close_io),
            "Update": (messages.UPDATE_REQUEST, EMPTY, self.update),
            "Wait": (messages.WAIT_REQUEST, messages.WAIT_RESPONSE, self.wait),
            "Stats": (messages.STATS_REQUEST, messages.STATS_RESPONSE, self.stats),
            "Connect": (messages.CONNECT_REQUEST, messages.CONNECT_RESPONSE, self.connect),
            "Shutdown": (messages.SHUTDOWN_REQUEST, EMPTY, self.shutdown),
        }

    def create(self, call: Call, request: Message) -> Steps[Message]:
        """Make a container, which then waits to be started."""
        shim = self._shim
        container_id, bundle = request["id"], request["bundle"]
        if not container_id or "/" in container_id:
            raise status.failure(status.INVALID_ARGUMENT, f"container id {container_id[:200]!r}")
        if not os.path.isabs(bundle):
            raise status.failure(status.INVALID_ARGUMENT, f"bundle {bundle[:200]!r}")
        if request["checkpoint"]:
            raise status.failure(status.UNIMPLEMENTED, "restoring a container from a checkpoint")
        if container_id in shim.containers or container_id in shim.creating:
            raise status.failure(status.ALREADY_EXISTS, f"container {container_id}")
        if shim.ending:
            raise status.failure(status.UNAVAILABLE, "the shim is ending")
        container = Container(shim, request, options.read(request["options"]))
        shim.begin(container_id)
        shim.unwanted = False
        try:
            yield from container.create(request, call.left())
            if container_id in shim.given_up or call.answered:  # by nobody here: the connection is gone, or the time up
                yield from container.give_up()
                raise status.failure(status.UNAVAILABLE, f"container {container_id} was given up while it was made")
        except OSError as error:
            raise status.StatusError(status.UNKNOWN, f"{error.strerror}: {error.filename}") from None
        else:
            shim.containers[container_id] = container
        finally:
            shim.finish(container_id)
            if shim.unwanted and not shim.containers and not shim.creating:
                shim.shut_down()
            shim.expect_the_end()
        names = container.init.names
        io = {"stdin": names.stdin, "stdout": names.stdout, "stderr": names.stderr, "terminal": names.terminal}
        event = {"container_id": container_id, "bundle": bundle, "rootfs": request["rootfs"], "io": io}
        shim.publish(messages.TASK_CREATE, {**event, "pid": container.init.pid})
        shim.created(container)
        container.published(container.init)
        return {"pid": container.init.pid}

    def start(self, call: Call, request: Message) -> Steps[Message]:
        """Start a container's process, or one that was added."""
        container = yield from self._shim.made(request["id"])
        process = container.process(request["exec_id"])
        if process is container.init:
            yield from container.start(call.left())
        else:
            yield from container.start_exec(process, call.left())
        return {"pid": process.pid}

    def delete(self, call: Call, request: Message) -> Steps[Message]:
        """Forget a process that has ended; with the first one, the container."""
        shim = self._shim
        container = yield from shim.made(request["id"])
        process = container.process(request["exec_id"])
        if process is container.init:
            yield from container.delete()
            shim.containers.pop(container.id, None)
            shim.deleted(container)
            event = {"container_id": container.id, "pid": process.pid, **process.exited()}
            shim.publish(messages.TASK_DELETE, event)
            shim.expect_the_end()
        else:
            yield from container.delete_exec(process)
        if process.streams is not None:
            shim.keep_writing(process.streams.unwritten())
        return {"pid": process.pid, **process.exited()}

    def exec(self, call: Call, request: Message) -> Steps[Message]:
        """Add a process to a container, which then waits to be started."""
        container = yield from self._shim.made(request["id"])
        container.add(request)
        event = {"container_id": container.id, "exec_id": request["exec_id"]}
        self._shim.publish(messages.TASK_EXEC_ADDED, event)
        return {}

    def state(self, call: Call, request: Message) -> Steps[Message]:
        """Tell of a process. What is being made is not there yet: containerd looks after some containers by itself, and
        would end one that waits to be started."""
        container = self._shim.container(request["id"])
        process = container.process(request["exec_id"])
        current = process.status
        if current == messages.RUNNING and container.pausing:
            current = messages.PAUSING
        elif current == messages.RUNNING and container.init.status == messages.PAUSED:
            current = messages.PAUSED
        names = process.names
        return {
            "id": process.exec_id or container.id, "bundle": container.bundle, "pid": process.pid, "status": current,
            "stdin": names.stdin, "stdout": names.stdout, "stderr": names.stderr, "terminal": names.terminal,
            "exec_id": process.exec_id, **process.exited(),
        }
        yield

    def pause(self, call: Call, request: Message) -> Steps[Message]:
        """Stop everything in a container where it stands."""
        container = yield from self._shim.made(request["id"])
        yield from container.pause()
        self._shim.publish(messages.TASK_PAUSED, {"container_id": container.id})
        return {}

    def resume(self, call: Call, request: Message) -> Steps[Message]:
        """Let a container go on."""
        container = yield from self._shim.made(request["id"])
        yield from container.resume()
        self._shim.publish(messages.TASK_RESUMED, {"container_id": container.id})
        return {}

    def checkpoint(self, call: Call, request: Message) -> Steps[Message]:
        """Not there yet."""
        yield from self._shim.made(request["id"])
        raise status.failure(status.UNIMPLEMENTED, "checkpoint")

    def kill(self, call: Call, request: Message) -> Steps[Message]:
        """Send a signal to a process."""
        container = yield from self._shim.made(request["id"])
        process = container.process(request["exec_id"])
        yield from container.kill(process, request["signal"], request["all"])
        return {}

    def pids(self, call: Call, request: Message) -> Steps[Message]:
        """List a container's processes."""
        container = yield from self._shim.made(request["id"])
        names = {process.pid: process.exec_id for process in container.execs.values() if process.pid}
        found = yield from container.pids()
        processes = []
        for pid in found:
            info = any_of(messages.PROCESS_DETAILS, {"exec_id": names[pid]}) if pid in names else None
            processes.append({"pid": pid, "info": info})
        return {"processes": processes}

    def resize(self, call: Call, request: Message) -> Steps[Message]:
        """Set the size of a process's terminal."""
        container = yield from self._shim.made(request["id"])
        process = container.process(request["exec_id"])
        if process.exec_id and process.status == messages.STOPPED:
            raise status.failure(status.FAILED_PRECONDITION, "cannot resize a stopped container")
        process.resize(request["height"], request["width"])
        return {}

    def close_io(self, call: Call, request: Message) -> Steps[Message]:
        """The client will send no more input."""
        container = yield from self._shim.made(request["id"])
        process = container.process(request["exec_id"])
        process.end_input()
        return {}

    def update(self, call: Call, request: Message) -> Steps[Message]:
        """Change a container's limits."""
        container = yield from self._shim.made(request["id"])
        if request["resources"] is None:
            raise status.failure(status.INVALID_ARGUMENT, "no resources")
        yield from container.update(request["resources"]["value"])
        return {}

    def wait(self, call: Call, request: Message) -> None:
        """Answer when a process has ended."""
        self._shim.container(request["id"]).process(request["exec_id"]).answer(call)

    def stats(self, call: Call, request: Message) -> Steps[Message]:
        """Tell what a container uses."""
        container = yield from self._shim.made(request["id"])
        return {"stats": (yield from self._shim.stats(container))}

    def connect(self, call: Call, request: Message) -> Steps[Message]:
        """Tell who we are. An unknown container is no error: it may not be made yet."""
        container = self._shim.containers.get(request["id"])
        return {"shim_pid": os.getpid(), "task_pid": container.init.pid if container is not None else 0}
        yield

    def shutdown(self, call: Call, request: Message) -> None:
        """End the shim, unless it still has containers."""
        call.reply({})
        # It is asked in the name of a task. One that is just being made containerd has forgotten, and nobody would
        # delete it: its client went away, or it was started anew meanwhile and found a shim without that container.
        if request["id"] in self._shim.creating:
            self._shim.given_up.add(request["id"])
        if self._shim.containers or self._shim.sandbox is not None:
            return
        if self._shim.creating:
            # containerd has given up, its client being gone, and does not ask again when the creation has failed.
            self._shim.unwanted = True
        else:
            self._shim.shut_down()

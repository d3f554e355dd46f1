"""containerd's Sandbox service (2.0): a pod as a thing of its own, which the shim makes without an image.

The pod is a container whose process does nothing but wait and reap: its virtual machine is the pod's, and other
containers join it by the annotation that names it, as they join a pause container of the CRI plugin. It is in no list
of the Task service, and its events are told to nobody. Its program is the host's static busybox, mounted read-only.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import time

from casemate.shim import messages, rootfs, status, wire
from casemate.shim import sandbox_messages as tables
from casemate.shim.container import Container
from casemate.shim.process import Process
from casemate.shim.shim import Shim
from casemate.shim.ttrpc import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from casemate.shim.loop import Steps
    from casemate.shim.ttrpc import Service

    Message = dict[str, Any]

PROGRAMS = ("/bin/busybox", "/usr/bin/busybox")
WAIT = "trap 'exit 0' TERM INT; while :; do /busybox sleep 86400 & wait $!; done"
READY, NOT_READY = "SANDBOX_READY", "SANDBOX_NOTREADY"
STOP_SECONDS = 10
"""How long a pod may take to end by itself where the request does not say."""
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64", "s390x": "s390x", "ppc64le": "ppc64le"}
"""Go's names for processors."""
_MOUNTS = (
    ("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),
)


class Sandbox:
    """The service.

    Arguments:
        shim: whose pod it is.
        options: of the runtime, ``containerd.runc.v1.Options``: the request has none.
    """

    def __init__(self, shim: Shim, options: dict[str, Any]) -> None:
        self._shim = shim
        self._options = options
        self._created_at = 0

    def service(self) -> Service:
        """The methods, for a server."""
        return {
            "CreateSandbox": (tables.CREATE_REQUEST, tables.CREATE_RESPONSE, self.create),
            "StartSandbox": (tables.START_REQUEST, tables.START_RESPONSE, self.start),
            "Platform": (tables.PLATFORM_REQUEST, tables.PLATFORM_RESPONSE, self.platform),
            "StopSandbox": (tables.STOP_REQUEST, tables.STOP_RESPONSE, self.stop),
            "WaitSandbox": (tables.WAIT_REQUEST, tables.WAIT_RESPONSE, self.wait),
            "SandboxStatus": (tables.STATUS_REQUEST, tables.STATUS_RESPONSE, self.status),
            "PingSandbox": (tables.PING_REQUEST, tables.PING_RESPONSE, self.ping),
            "ShutdownSandbox": (tables.SHUTDOWN_REQUEST, tables.SHUTDOWN_RESPONSE, self.shutdown),
            "SandboxMetrics": (tables.METRICS_REQUEST, tables.METRICS_RESPONSE, self.metrics),
        }

    def _get(self, request: Message) -> Container:
        container = self._shim.sandbox
        if container is None or container.id != request["sandbox_id"]:
            raise status.failure(status.NOT_FOUND, f"sandbox {request['sandbox_id'][:200]}")
        return container

    def create(self, call: Call, request: Message) -> Steps[Message]:
        """Make the pod, which then waits to be started."""
        shim, bundle, sandbox_id = self._shim, request["bundle_path"], request["sandbox_id"]
        if not sandbox_id or "/" in sandbox_id:
            raise status.failure(status.INVALID_ARGUMENT, f"sandbox id {sandbox_id[:200]!r}")
        if not os.path.isabs(bundle):
            raise status.failure(status.INVALID_ARGUMENT, f"bundle {bundle[:200]!r}")
        if shim.sandbox is not None or sandbox_id in shim.creating:
            raise status.failure(status.ALREADY_EXISTS, f"sandbox {sandbox_id}")
        if shim.ending:
            raise status.failure(status.UNAVAILABLE, "the shim is ending")
        spec = specification(sandbox_id, request["netns_path"], pod_config(request["options"]), request["annotations"])
        shim.begin(sandbox_id)
        try:
            with open(os.path.join(bundle, "config.json"), "w") as file:
                json.dump(spec, file)
            mounts = request["rootfs"] or [program_mount(bundle)]
            no_streams = dict.fromkeys(("stdin", "stdout", "stderr"), "")
            wanted = {"id": sandbox_id, "bundle": bundle, "rootfs": mounts, "terminal": False, **no_streams}
            container = Container(shim, wanted, self._options, told=False)
            yield from container.create(wanted, call.left())
        except OSError as error:
            raise status.StatusError(status.UNKNOWN, f"{error.strerror}: {error.filename}") from None
        finally:
            shim.finish(sandbox_id)
        self._created_at = time.time_ns()
        shim.sandbox = container
        shim.created(container)
        container.published(container.init)
        return {}

    def start(self, call: Call, request: Message) -> Steps[Message]:
        """Start the pod."""
        container = self._get(request)
        yield from container.start(call.left())
        return {"pid": container.init.pid, "created_at": messages.timestamp(self._created_at)}

    def platform(self, call: Call, request: Message) -> Steps[Message]:
        """For which operating system and processor its containers are to be: the guest has the host's."""
        self._get(request)
        machine = platform.machine()
        return {"platform": {"os": "linux", "architecture": _ARCHITECTURES.get(machine, machine)}}
        yield

    def stop(self, call: Call, request: Message) -> Steps[Message]:
        """End the pod and everything in it."""
        container = self._get(request)
        for other in [*self._shim.containers.values(), container]:
            yield from self._end(other, request["timeout_secs"] or STOP_SECONDS)
        return {}

    def _end(self, container: Container, seconds: float) -> Steps[None]:
        process = container.init
        if process.status == messages.CREATED and container is self._shim.sandbox:
            yield from self._kill(container, process)
        for signum in (signal.SIGTERM, signal.SIGKILL):
            if process.status == messages.STOPPED:
                return
            try:
                yield from container.kill(process, signum, False)
                yield self._shim.loop.bounded(process.ended, seconds)
            except TimeoutError:
                continue
            except status.StatusError as error:
                if error.code != status.NOT_FOUND:
                    raise
        yield process.ended

    def _kill(self, container: Container, process: Process) -> Steps[None]:
        yield from container.kill(process, signal.SIGKILL, False)
        yield process.ended

    def wait(self, call: Call, request: Message) -> None:
        """Answer when the pod has ended."""
        self._get(request).init.answer(call)

    def status(self, call: Call, request: Message) -> Steps[Message]:
        """Tell of the pod."""
        container = self._get(request)
        process = container.init
        return {
            "sandbox_id": container.id, "pid": process.pid,
            "state": READY if process.status == messages.RUNNING else NOT_READY,
            "info": {"runtime": container.runtime.binary, "bundle": container.bundle} if request["verbose"] else {},
            "created_at": messages.timestamp(self._created_at), "exited_at": process.exited()["exited_at"],
        }
        yield

    def ping(self, call: Call, request: Message) -> Steps[Message]:
        """Tell that the pod is there."""
        self._get(request)
        return {}
        yield

    def shutdown(self, call: Call, request: Message) -> Steps[Message]:
        """Remove the pod and end the shim. A pod that was never made, or is gone already, is fine."""
        container = self._shim.sandbox
        if container is not None:
            self._get(request)
            yield from self._end(container, STOP_SECONDS)
            yield from container.delete()
            self._shim.sandbox = None
            self._shim.deleted(container)
        if not self._shim.containers and not self._shim.creating:
            self._shim.loop.soon(self._shim.shut_down)  # after the answer
        return {}

    def metrics(self, call: Call, request: Message) -> Steps[Message]:
        """Tell what the pod's own container uses."""
        container = self._get(request)
        found = yield from self._shim.stats(container)
        return {"metrics": {"timestamp": messages.timestamp(time.time_ns()), "id": container.id, "data": found}}


def pod_config(any_message: Message | None) -> Message:
    """What a request says of its pod; the defaults where it says nothing that is known.

    Raises:
        StatusError: INVALID_ARGUMENT, it is damaged.
    """
    if any_message is None or messages.type_name(any_message) != tables.POD_CONFIG.name:
        return wire.empty(tables.POD_CONFIG)
    try:
        return wire.decode(tables.POD_CONFIG, any_message["value"])
    except wire.WireError as error:
        raise status.failure(status.INVALID_ARGUMENT, f"{tables.POD_CONFIG.name}: {error}") from None


def program_mount(bundle: str) -> Message:
    """A mount that puts the program there, on a file that it makes.

    Raises:
        StatusError: there is no static busybox on the host.
    """
    for path in PROGRAMS:
        if os.access(path, os.X_OK):
            break
    else:
        raise status.failure(status.FAILED_PRECONDITION, "no busybox: install the Debian package busybox-static")
    root = os.path.join(bundle, "rootfs")
    os.makedirs(root, 0o711, exist_ok=True)
    os.close(os.open(os.path.join(root, "busybox"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o755))
    return {"type": "bind", "source": os.path.realpath(path), "target": "/busybox", "options": ["bind", "ro"]}


def specification(sandbox_id: str, netns: str, config: Message, annotations: dict[str, str]) -> Message:
    """``config.json`` of a pod's own container.

    Arguments:
        sandbox_id: the pod's id, by which others join it.
        netns: path of its network namespace; empty for a new one.
        config: ``PodSandboxConfig``.
        annotations: of the request.
    """
    linux = config["linux"] or wire.empty(tables.POD_CONFIG.numbers[8].table)  # type: ignore[arg-type]
    security = (linux["security_context"] or {}).get("namespace_options") or {}
    if security.get("network", tables.POD) != tables.POD:
        raise status.failure(status.INVALID_ARGUMENT, "a pod in a virtual machine cannot have the host's network")
    network = {"type": "network", "path": netns} if netns else {"type": "network"}
    section: Message = {
        "namespaces": [network, *({"type": kind} for kind in ("pid", "ipc", "uts", "mount"))],
        "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    }
    if linux["sysctls"]:
        section["sysctl"] = linux["sysctls"]
    parent = linux["cgroup_parent"]
    if parent:
        base = os.path.basename(parent)
        section["cgroupsPath"] = f"{base}:cri-containerd:{sandbox_id}" if base.endswith(".slice") else (
            os.path.join("/", parent, sandbox_id)
        )
    fixed = {"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": sandbox_id}
    mounts = [
        {"destination": where, "type": kind, "source": source, "options": list(words)}
        for where, kind, source, words in _MOUNTS
    ]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "args": ["/busybox", "sh", "-c", WAIT], "cwd": "/", "env": ["PATH=/"], "user": {"uid": 65535, "gid": 65535},
            "noNewPrivileges": True,
        },
        "root": {"path": rootfs.DIRECTORY, "readonly": True},
        "hostname": config["hostname"],
        "mounts": mounts,
        "annotations": {**config["annotations"], **annotations, **fixed},
        "linux": section,
    }

"""A client of the Kubernetes Container Runtime Interface: gRPC, and web sockets for streams.

Names and numbers are those of ``runtime.v1`` in ``api.proto`` (https://github.com/kubernetes/cri-api), as far as the
tests need them. The streams are those of the kubelet's server: ``v4.channel.k8s.io``, a byte for the channel before
each message.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped]

from casemate.shim.wire import BOOL, BYTES, INT32, INT64, MAP, MESSAGE, STRING, UINT32, UINT64, Table, decode, encode
from tests.engines.host import Host
from tests.engines.images import BOX

RUNNING, EXITED = 1, 2
"""``ContainerState``."""
NODE, CONTAINER = 2, 1
"""``NamespaceMode``; POD is 0."""
OWN_PROCESSES = {"pid": CONTAINER}
"""What the kubelet asks for unless a pod says that it shares processes."""

_INT64_VALUE = Table("Int64Value", (1, "value", INT64))
_UINT64_VALUE = Table("UInt64Value", (1, "value", UINT64))
_POD_METADATA = Table(
    "PodSandboxMetadata", (1, "name", STRING), (2, "uid", STRING), (3, "namespace", STRING), (4, "attempt", UINT32)
)
_METADATA = Table("ContainerMetadata", (1, "name", STRING), (2, "attempt", UINT32))
_DNS = Table("DNSConfig", (1, "servers", STRING, None, True), (2, "searches", STRING, None, True))
_PORT = Table(
    "PortMapping", (1, "protocol", INT32), (2, "container_port", INT32), (3, "host_port", INT32), (4, "host_ip", STRING)
)
_NAMESPACES = Table(
    "NamespaceOption", (1, "network", INT32), (2, "pid", INT32), (3, "ipc", INT32), (4, "target_id", STRING)
)
_POD_SECURITY = Table(
    "LinuxSandboxSecurityContext", (1, "namespace_options", MESSAGE, _NAMESPACES), (6, "privileged", BOOL)
)
_POD_LINUX = Table(
    "LinuxPodSandboxConfig",
    (1, "cgroup_parent", STRING), (2, "security_context", MESSAGE, _POD_SECURITY), (3, "sysctls", MAP),
)  # fmt: skip
_POD_CONFIG = Table(
    "PodSandboxConfig",
    (1, "metadata", MESSAGE, _POD_METADATA), (2, "hostname", STRING), (3, "log_directory", STRING),
    (4, "dns_config", MESSAGE, _DNS), (5, "port_mappings", MESSAGE, _PORT, True), (6, "labels", MAP),
    (7, "annotations", MAP), (8, "linux", MESSAGE, _POD_LINUX),
)  # fmt: skip
_IMAGE = Table("ImageSpec", (1, "image", STRING))
_KEY_VALUE = Table("KeyValue", (1, "key", STRING), (2, "value", STRING))
_RESOURCES = Table(
    "LinuxContainerResources",
    (1, "cpu_period", INT64), (2, "cpu_quota", INT64), (3, "cpu_shares", INT64), (4, "memory_limit_in_bytes", INT64),
    (5, "oom_score_adj", INT64), (6, "cpuset_cpus", STRING),
)  # fmt: skip
_SECURITY = Table(
    "LinuxContainerSecurityContext",
    (2, "privileged", BOOL), (3, "namespace_options", MESSAGE, _NAMESPACES), (5, "run_as_user", MESSAGE, _INT64_VALUE),
    (7, "readonly_rootfs", BOOL), (11, "no_new_privs", BOOL), (12, "run_as_group", MESSAGE, _INT64_VALUE),
)  # fmt: skip
_LINUX = Table(
    "LinuxContainerConfig", (1, "resources", MESSAGE, _RESOURCES), (2, "security_context", MESSAGE, _SECURITY)
)
_MOUNT = Table("Mount", (1, "container_path", STRING), (2, "host_path", STRING), (3, "readonly", BOOL))
_CONFIG = Table(
    "ContainerConfig",
    (1, "metadata", MESSAGE, _METADATA), (2, "image", MESSAGE, _IMAGE), (3, "command", STRING, None, True),
    (4, "args", STRING, None, True), (5, "working_dir", STRING), (6, "envs", MESSAGE, _KEY_VALUE, True),
    (7, "mounts", MESSAGE, _MOUNT, True), (9, "labels", MAP), (10, "annotations", MAP), (11, "log_path", STRING),
    (12, "stdin", BOOL), (13, "stdin_once", BOOL), (14, "tty", BOOL), (15, "linux", MESSAGE, _LINUX),
)  # fmt: skip
_EMPTY = Table("Empty")
_POD_ID = Table("PodSandboxRequest", (1, "pod_sandbox_id", STRING))
_ID = Table("ContainerRequest", (1, "container_id", STRING))
_URL = Table("UrlResponse", (1, "url", STRING))
_POD_IP = Table("PodIP", (1, "ip", STRING))
_POD_NETWORK = Table("PodSandboxNetworkStatus", (1, "ip", STRING), (2, "additional_ips", MESSAGE, _POD_IP, True))
_POD_STATUS = Table(
    "PodSandboxStatus",
    (1, "id", STRING), (2, "metadata", MESSAGE, _POD_METADATA), (3, "state", INT32), (4, "created_at", INT64),
    (5, "network", MESSAGE, _POD_NETWORK), (9, "runtime_handler", STRING),
)  # fmt: skip
_STATUS = Table(
    "ContainerStatus",
    (1, "id", STRING), (2, "metadata", MESSAGE, _METADATA), (3, "state", INT32), (4, "created_at", INT64),
    (5, "started_at", INT64), (6, "finished_at", INT64), (7, "exit_code", INT32), (10, "reason", STRING),
    (11, "message", STRING), (15, "log_path", STRING),
)  # fmt: skip
_POD = Table("PodSandbox", (1, "id", STRING), (2, "metadata", MESSAGE, _POD_METADATA), (3, "state", INT32))
_CONTAINER = Table("Container", (1, "id", STRING), (2, "pod_sandbox_id", STRING), (6, "state", INT32))
_CPU = Table("CpuUsage", (1, "timestamp", INT64), (2, "usage_core_nano_seconds", MESSAGE, _UINT64_VALUE))
_MEMORY = Table("MemoryUsage", (1, "timestamp", INT64), (2, "working_set_bytes", MESSAGE, _UINT64_VALUE))
_STATS = Table("ContainerStats", (2, "cpu", MESSAGE, _CPU), (3, "memory", MESSAGE, _MEMORY))
_CONDITION = Table("RuntimeCondition", (1, "type", STRING), (2, "status", BOOL), (4, "message", STRING))
_RUNTIME_STATUS = Table("RuntimeStatus", (1, "conditions", MESSAGE, _CONDITION, True))

_METHODS: dict[str, tuple[Table, Table]] = {
    "Status": (_EMPTY, Table("StatusResponse", (1, "status", MESSAGE, _RUNTIME_STATUS))),
    "RunPodSandbox": (
        Table("RunPodSandboxRequest", (1, "config", MESSAGE, _POD_CONFIG), (2, "runtime_handler", STRING)), _POD_ID,
    ),
    "StopPodSandbox": (_POD_ID, _EMPTY),
    "RemovePodSandbox": (_POD_ID, _EMPTY),
    "PodSandboxStatus": (_POD_ID, Table("PodSandboxStatusResponse", (1, "status", MESSAGE, _POD_STATUS))),
    "ListPodSandbox": (_EMPTY, Table("ListPodSandboxResponse", (1, "items", MESSAGE, _POD, True))),
    "CreateContainer": (
        Table(
            "CreateContainerRequest",
            (1, "pod_sandbox_id", STRING), (2, "config", MESSAGE, _CONFIG), (3, "sandbox_config", MESSAGE, _POD_CONFIG),
        ),
        _ID,
    ),
    "StartContainer": (_ID, _EMPTY),
    "StopContainer": (Table("StopContainerRequest", (1, "container_id", STRING), (2, "timeout", INT64)), _EMPTY),
    "RemoveContainer": (_ID, _EMPTY),
    "ListContainers": (_EMPTY, Table("ListContainersResponse", (1, "containers", MESSAGE, _CONTAINER, True))),
    "ContainerStatus": (_ID, Table("ContainerStatusResponse", (1, "status", MESSAGE, _STATUS))),
    "UpdateContainerResources": (
        Table("UpdateContainerResourcesRequest", (1, "container_id", STRING), (2, "linux", MESSAGE, _RESOURCES)),
        _EMPTY,
    ),
    "ReopenContainerLog": (_ID, _EMPTY),
    "ContainerStats": (_ID, Table("ContainerStatsResponse", (1, "stats", MESSAGE, _STATS))),
    "ExecSync": (
        Table("ExecSyncRequest", (1, "container_id", STRING), (2, "cmd", STRING, None, True), (3, "timeout", INT64)),
        Table("ExecSyncResponse", (1, "stdout", BYTES), (2, "stderr", BYTES), (3, "exit_code", INT32)),
    ),
    "Exec": (
        Table(
            "ExecRequest",
            (1, "container_id", STRING), (2, "cmd", STRING, None, True), (3, "tty", BOOL), (4, "stdin", BOOL),
            (5, "stdout", BOOL), (6, "stderr", BOOL),
        ),
        _URL,
    ),
    "Attach": (
        Table(
            "AttachRequest",
            (1, "container_id", STRING), (2, "stdin", BOOL), (3, "tty", BOOL), (4, "stdout", BOOL), (5, "stderr", BOOL),
        ),
        _URL,
    ),
    "PortForward": (Table("PortForwardRequest", (1, "pod_sandbox_id", STRING), (2, "port", INT32, None, True)), _URL),
}  # fmt: skip


class Cri:
    """The runtime service of containerd in a host, for one runtime handler."""

    def __init__(self, host: Host, handler: str) -> None:
        self.host = host
        self.handler = handler
        # Go's HTTP refuses a path for the name of an authority.
        options = [("grpc.default_authority", "localhost")]
        self.channel = grpc.insecure_channel(f"unix:{host.base}/c.sock", options=options)
        self.logs = host.base / "pod-logs"
        self.count = 0

    def __repr__(self) -> str:
        return f"cri-{self.handler}"

    @property
    def ours(self) -> bool:
        """Whether the runtime is casemate."""
        return self.handler != "runc"

    def call(self, method: str, patience: float = 240, **request: Any) -> dict[str, Any]:
        """Call a method of the runtime service; fields left out have their defaults."""
        question, answer = _METHODS[method]
        function = self.channel.unary_unary(
            f"/runtime.v1.RuntimeService/{method}",
            request_serializer=lambda message: encode(question, message),
            response_deserializer=lambda data: decode(answer, data),
        )
        result: dict[str, Any] = function(request, timeout=patience, wait_for_ready=True)
        return result

    def ready(self) -> bool:
        """Whether containerd says that it can make pods; it does not when it has just begun."""
        try:
            return all(one["status"] for one in self.call("Status")["status"]["conditions"])
        except grpc.RpcError:
            return False

    def pod_config(self, name: str, **more: Any) -> dict[str, Any]:
        """A pod's configuration as the kubelet gives one."""
        self.count += 1
        directory = self.logs / f"{self.handler}-{name}-{self.count}"
        directory.mkdir(parents=True)
        return {
            "metadata": {"name": name, "uid": f"uid-{name}-{self.count}", "namespace": "default"},
            "hostname": name,
            "log_directory": str(directory),
            "dns_config": {"servers": ["198.18.0.2"], "searches": ["svc.test"]},
            "linux": {
                "cgroup_parent": f"/kubepods/pod{name}{self.count}",
                "security_context": {"namespace_options": OWN_PROCESSES},
            },
        } | more

    @contextlib.contextmanager
    def pod(self, name: str, **more: Any) -> Iterator[Pod]:
        """A pod for a while; stopped and removed at the end, with its containers."""
        config = self.pod_config(name, **more)
        id = self.call("RunPodSandbox", config=config, runtime_handler=self.handler)["pod_sandbox_id"]
        try:
            yield Pod(self, id, config)
        finally:
            self.call("StopPodSandbox", pod_sandbox_id=id)
            self.call("RemovePodSandbox", pod_sandbox_id=id)

    def status(self, container: str) -> dict[str, Any]:
        """What is known of a container."""
        return self.call("ContainerStatus", container_id=container)["status"]  # type: ignore[no-any-return]

    def exec(self, container: str, *words: str, timeout: int = 60) -> tuple[int, bytes, bytes]:
        """Run a command in a container to its end; its status and output."""
        done = self.call("ExecSync", container_id=container, cmd=list(words), timeout=timeout)
        return done["exit_code"], done["stdout"], done["stderr"]

    def sh(self, container: str, script: str) -> str:
        """Run a shell script that must succeed in a container; its output."""
        code, out, err = self.exec(container, "sh", "-c", script)
        assert code == 0, (code, out, err)
        return out.decode().rstrip("\n")

    def stream(self, method: str, **request: Any) -> Stream:
        """Open the stream that ``Exec``, ``Attach`` or ``PortForward`` answers with."""
        url = urlsplit(self.call(method, **request)["url"])
        query = url.query
        if method == "PortForward":
            query = "&".join(f"port={port}" for port in request["port"])
        target = f"{url.path}?{query}" if query else url.path
        assert url.hostname and url.port
        address = (url.hostname, url.port)
        return Stream(self.host.inside(lambda: socket.create_connection(address, 60)), url.netloc, target)


class Pod:
    """A running pod."""

    def __init__(self, cri: Cri, id: str, config: dict[str, Any]) -> None:
        self.cri = cri
        self.id = id
        self.config = config

    def create(self, name: str, *words: str, linux: dict[str, Any] | None = None, **more: Any) -> str:
        """Make a container in it, and give its id. Its log is ``NAME.log``."""
        metadata = {"name": name, "attempt": more.pop("attempt", 0)}
        config: dict[str, Any] = {"metadata": metadata, "image": {"image": BOX}, "command": list(words)}
        security = {"namespace_options": OWN_PROCESSES} | (linux or {}).get("security_context", {})
        config |= {"log_path": f"{name}.log", "linux": (linux or {}) | {"security_context": security}} | more
        made = self.cri.call("CreateContainer", pod_sandbox_id=self.id, config=config, sandbox_config=self.config)
        return made["container_id"]  # type: ignore[no-any-return]

    def start(self, name: str, *words: str, **more: Any) -> str:
        """Make a container in it and start that."""
        id = self.create(name, *words, **more)
        self.cri.call("StartContainer", container_id=id)
        return id

    def log(self, name: str) -> list[tuple[str, str]]:
        """A container's log: stream and line of each, as the kubelet reads it."""
        path = Path(self.config["log_directory"]) / f"{name}.log"
        found = []
        for line in path.read_text().splitlines():
            _, stream, tag, text = line.split(" ", 3)
            assert tag in ("F", "P"), line
            found.append((stream, text))
        return found

    @property
    def addresses(self) -> list[str]:
        """Its addresses, the first one of the first family."""
        network = self.cri.call("PodSandboxStatus", pod_sandbox_id=self.id)["status"]["network"]
        return [network["ip"], *(address["ip"] for address in network["additional_ips"])]


class Stream:
    """A web socket (RFC 6455) of channels; the first byte of each message names one."""

    def __init__(self, sock: socket.socket, host: str, target: str) -> None:
        self.sock = sock
        self.data = b""
        self.channels: dict[int, bytes] = {}
        head = (
            f"GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Origin: http://{host}\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            f"Sec-WebSocket-Protocol: v4.channel.k8s.io\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        sock.sendall(head.encode())
        answer = self._until(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101"), answer + self.data

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.sock.close()

    def send(self, channel: int, data: bytes) -> None:
        """Send data on a channel: 0 is standard input, 4 the size of the terminal as JSON."""
        data = bytes([channel]) + data
        mask = os.urandom(4)
        size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
        self.sock.sendall(b"\x82" + size + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(data)))

    def receive(self) -> bool:
        """Take one message; False at the end."""
        try:
            first, second = self._exactly(2)
            size = second & 127
            if size > 125:
                size = int.from_bytes(self._exactly(2 if size == 126 else 8), "big")
            data = self._exactly(size)
        except EOFError:
            return False
        if first & 15 == 8:
            return False
        if first & 15 in (0, 1, 2) and data:
            self.channels[data[0]] = self.channels.get(data[0], b"") + data[1:]
        return True

    def until(self, text: bytes, channel: int = 1) -> bytes:
        """Read until a channel has brought ``text``; all of the channel so far."""
        while text not in self.channels.get(channel, b""):
            assert self.receive(), self.channels
        return self.channels[channel]

    def rest(self) -> dict[int, bytes]:
        """Read to the end: 1 is standard output, 2 standard error, 3 how it ended, as JSON."""
        while self.receive():
            pass
        return self.channels

    def _exactly(self, size: int) -> bytes:
        while len(self.data) < size:
            piece = self.sock.recv(65536)
            if not piece:
                raise EOFError
            self.data += piece
        found, self.data = self.data[:size], self.data[size:]
        return found

    def _until(self, end: bytes) -> bytes:
        while end not in self.data:
            piece = self.sock.recv(65536)
            assert piece, self.data
            self.data += piece
        at = self.data.index(end) + len(end)
        found, self.data = self.data[:at], self.data[at:]
        return found

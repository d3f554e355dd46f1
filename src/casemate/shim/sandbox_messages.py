"""The tables of containerd's Sandbox service: ``api/runtime/sandbox/v1/sandbox.proto``, and what of the CRI it carries.

A pod's wishes come as ``runtime.v1.PodSandboxConfig`` (``k8s.io/cri-api``); of it there is what a sandbox needs.
"""

from __future__ import annotations

from casemate.shim.messages import ANY, METRIC, MOUNT, PLATFORM, TIMESTAMP
from casemate.shim.wire import BOOL, INT32, MAP, MESSAGE, STRING, UINT32, Table

NAME = "containerd.runtime.sandbox.v1.Sandbox"
_ID = (1, "sandbox_id", STRING)


def _table(name: str, *fields: tuple[object, ...]) -> Table:
    return Table(f"containerd.runtime.sandbox.v1.{name}", *fields)


CREATE_REQUEST = _table(
    "CreateSandboxRequest",
    _ID, (2, "bundle_path", STRING), (3, "rootfs", MESSAGE, MOUNT, True), (4, "options", MESSAGE, ANY),
    (5, "netns_path", STRING), (6, "annotations", MAP),
)
CREATE_RESPONSE = _table("CreateSandboxResponse")
START_REQUEST = _table("StartSandboxRequest", _ID)
START_RESPONSE = _table("StartSandboxResponse", (1, "pid", UINT32), (2, "created_at", MESSAGE, TIMESTAMP))
PLATFORM_REQUEST = _table("PlatformRequest", _ID)
PLATFORM_RESPONSE = _table("PlatformResponse", (1, "platform", MESSAGE, PLATFORM))
STOP_REQUEST = _table("StopSandboxRequest", _ID, (2, "timeout_secs", UINT32))
STOP_RESPONSE = _table("StopSandboxResponse")
WAIT_REQUEST = _table("WaitSandboxRequest", _ID)
WAIT_RESPONSE = _table("WaitSandboxResponse", (1, "exit_status", UINT32), (2, "exited_at", MESSAGE, TIMESTAMP))
STATUS_REQUEST = _table("SandboxStatusRequest", _ID, (2, "verbose", BOOL))
STATUS_RESPONSE = _table(
    "SandboxStatusResponse",
    _ID, (2, "pid", UINT32), (3, "state", STRING), (4, "info", MAP), (5, "created_at", MESSAGE, TIMESTAMP),
    (6, "exited_at", MESSAGE, TIMESTAMP), (7, "extra", MESSAGE, ANY),
)
PING_REQUEST = _table("PingRequest", _ID)
PING_RESPONSE = _table("PingResponse")
SHUTDOWN_REQUEST = _table("ShutdownSandboxRequest", _ID)
SHUTDOWN_RESPONSE = _table("ShutdownSandboxResponse")
METRICS_REQUEST = _table("SandboxMetricsRequest", _ID)
METRICS_RESPONSE = _table("SandboxMetricsResponse", (1, "metrics", MESSAGE, METRIC))

_NAMESPACES = Table("runtime.v1.NamespaceOption", (1, "network", INT32), (2, "pid", INT32), (3, "ipc", INT32))
POD = 0
"""Of a namespace option: the pod has one of its own."""
_SECURITY = Table("runtime.v1.LinuxSandboxSecurityContext", (1, "namespace_options", MESSAGE, _NAMESPACES))
_LINUX = Table(
    "runtime.v1.LinuxPodSandboxConfig",
    (1, "cgroup_parent", STRING), (2, "security_context", MESSAGE, _SECURITY), (3, "sysctls", MAP),
)
POD_CONFIG = Table(
    "runtime.v1.PodSandboxConfig", (2, "hostname", STRING), (7, "annotations", MAP), (8, "linux", MESSAGE, _LINUX)
)

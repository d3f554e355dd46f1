"""The tables of every message that the shim sends or takes; names and numbers are containerd's ``.proto`` files'.

Sources, in containerd's repository: ``api/runtime/task/v2/shim.proto`` (version 3 of the service has the same ones),
``api/types/*.proto``, ``api/events/task.proto``, ``api/services/ttrpc/events/v1/events.proto``,
``api/types/runc/options/oci.proto``, ``pkg/runtimeoptions/v1/api.proto``, ``api/types/introspection.proto``; ttrpc's
``request.proto``; ``google/rpc/status.proto``. Metrics and the sandbox service have modules of their own.
"""

from __future__ import annotations

from casemate.shim.wire import BOOL, BYTES, INT32, INT64, MAP, MESSAGE, STRING, UINT32, Table, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ANY = Table("google.protobuf.Any", (1, "type_url", STRING), (2, "value", BYTES))
TIMESTAMP = Table("google.protobuf.Timestamp", (1, "seconds", INT64), (2, "nanos", INT32))
EMPTY = Table("google.protobuf.Empty")

# --- ttrpc ---

PAIR = Table("ttrpc.KeyValue", (1, "key", STRING), (2, "value", STRING))
REQUEST = Table(
    "ttrpc.Request",
    (1, "service", STRING), (2, "method", STRING), (3, "payload", BYTES), (4, "timeout_nano", INT64),
    (5, "metadata", MESSAGE, PAIR, True),
)
STATUS = Table("google.rpc.Status", (1, "code", INT32), (2, "message", STRING), (3, "details", MESSAGE, ANY, True))
RESPONSE = Table("ttrpc.Response", (1, "status", MESSAGE, STATUS), (2, "payload", BYTES))

# --- types ---

MOUNT = Table(
    "containerd.types.Mount",
    (1, "type", STRING), (2, "source", STRING), (3, "target", STRING), (4, "options", STRING, None, True),
)
PROCESS_INFO = Table("containerd.v1.types.ProcessInfo", (1, "pid", UINT32), (2, "info", MESSAGE, ANY))
PLATFORM = Table("containerd.types.Platform", (1, "os", STRING), (2, "architecture", STRING), (3, "variant", STRING))
METRIC = Table(
    "containerd.types.Metric", (1, "timestamp", MESSAGE, TIMESTAMP), (2, "id", STRING), (3, "data", MESSAGE, ANY)
)
UNKNOWN, CREATED, RUNNING, STOPPED, PAUSED, PAUSING = range(6)
"""``containerd.v1.types.Status``."""

# --- the task service ---

_EXEC = ((1, "id", STRING), (2, "exec_id", STRING))
_PLACES = ((5, "stdin", STRING), (6, "stdout", STRING), (7, "stderr", STRING))
_EXITED = ((1, "exit_status", UINT32), (2, "exited_at", MESSAGE, TIMESTAMP))

CREATE_REQUEST = Table(
    "containerd.task.v2.CreateTaskRequest",
    (1, "id", STRING), (2, "bundle", STRING), (3, "rootfs", MESSAGE, MOUNT, True), (4, "terminal", BOOL), *_PLACES,
    (8, "checkpoint", STRING), (9, "parent_checkpoint", STRING), (10, "options", MESSAGE, ANY),
)
CREATE_RESPONSE = Table("containerd.task.v2.CreateTaskResponse", (1, "pid", UINT32))
DELETE_REQUEST = Table("containerd.task.v2.DeleteRequest", *_EXEC)
DELETE_RESPONSE = Table(
    "containerd.task.v2.DeleteResponse",
    (1, "pid", UINT32), (2, "exit_status", UINT32), (3, "exited_at", MESSAGE, TIMESTAMP),
)
EXEC_REQUEST = Table(
    "containerd.task.v2.ExecProcessRequest",
    *_EXEC, (3, "terminal", BOOL), (4, "stdin", STRING), (5, "stdout", STRING), (6, "stderr", STRING),
    (7, "spec", MESSAGE, ANY),
)
RESIZE_REQUEST = Table("containerd.task.v2.ResizePtyRequest", *_EXEC, (3, "width", UINT32), (4, "height", UINT32))
STATE_REQUEST = Table("containerd.task.v2.StateRequest", *_EXEC)
STATE_RESPONSE = Table(
    "containerd.task.v2.StateResponse",
    (1, "id", STRING), (2, "bundle", STRING), (3, "pid", UINT32), (4, "status", INT32), *_PLACES, (8, "terminal", BOOL),
    (9, "exit_status", UINT32), (10, "exited_at", MESSAGE, TIMESTAMP), (11, "exec_id", STRING),
)
KILL_REQUEST = Table("containerd.task.v2.KillRequest", *_EXEC, (3, "signal", UINT32), (4, "all", BOOL))
CLOSE_IO_REQUEST = Table("containerd.task.v2.CloseIORequest", *_EXEC, (3, "stdin", BOOL))
PIDS_REQUEST = Table("containerd.task.v2.PidsRequest", (1, "id", STRING))
PIDS_RESPONSE = Table("containerd.task.v2.PidsResponse", (1, "processes", MESSAGE, PROCESS_INFO, True))
CHECKPOINT_REQUEST = Table(
    "containerd.task.v2.CheckpointTaskRequest", (1, "id", STRING), (2, "path", STRING), (3, "options", MESSAGE, ANY)
)
UPDATE_REQUEST = Table(
    "containerd.task.v2.UpdateTaskRequest", (1, "id", STRING), (2, "resources", MESSAGE, ANY), (3, "annotations", MAP)
)
START_REQUEST = Table("containerd.task.v2.StartRequest", *_EXEC)
START_RESPONSE = Table("containerd.task.v2.StartResponse", (1, "pid", UINT32))
WAIT_REQUEST = Table("containerd.task.v2.WaitRequest", *_EXEC)
WAIT_RESPONSE = Table("containerd.task.v2.WaitResponse", *_EXITED)
STATS_REQUEST = Table("containerd.task.v2.StatsRequest", (1, "id", STRING))
STATS_RESPONSE = Table("containerd.task.v2.StatsResponse", (1, "stats", MESSAGE, ANY))
CONNECT_REQUEST = Table("containerd.task.v2.ConnectRequest", (1, "id", STRING))
CONNECT_RESPONSE = Table(
    "containerd.task.v2.ConnectResponse", (1, "shim_pid", UINT32), (2, "task_pid", UINT32), (3, "version", STRING)
)
SHUTDOWN_REQUEST = Table("containerd.task.v2.ShutdownRequest", (1, "id", STRING), (2, "now", BOOL))
PAUSE_REQUEST = Table("containerd.task.v2.PauseRequest", (1, "id", STRING))
RESUME_REQUEST = Table("containerd.task.v2.ResumeRequest", (1, "id", STRING))

# --- events ---

_ID = (1, "container_id", STRING)
TASK_IO = Table(
    "containerd.events.TaskIO",
    (1, "stdin", STRING), (2, "stdout", STRING), (3, "stderr", STRING), (4, "terminal", BOOL),
)
TASK_CREATE = Table(
    "containerd.events.TaskCreate",
    _ID, (2, "bundle", STRING), (3, "rootfs", MESSAGE, MOUNT, True), (4, "io", MESSAGE, TASK_IO),
    (5, "checkpoint", STRING), (6, "pid", UINT32),
)
TASK_START = Table("containerd.events.TaskStart", _ID, (2, "pid", UINT32))
TASK_DELETE = Table(
    "containerd.events.TaskDelete",
    _ID, (2, "pid", UINT32), (3, "exit_status", UINT32), (4, "exited_at", MESSAGE, TIMESTAMP), (5, "id", STRING),
)
TASK_EXIT = Table(
    "containerd.events.TaskExit",
    _ID, (2, "id", STRING), (3, "pid", UINT32), (4, "exit_status", UINT32), (5, "exited_at", MESSAGE, TIMESTAMP),
)
TASK_OOM = Table("containerd.events.TaskOOM", _ID)
TASK_EXEC_ADDED = Table("containerd.events.TaskExecAdded", _ID, (2, "exec_id", STRING))
TASK_EXEC_STARTED = Table("containerd.events.TaskExecStarted", _ID, (2, "exec_id", STRING), (3, "pid", UINT32))
TASK_PAUSED = Table("containerd.events.TaskPaused", _ID)
TASK_RESUMED = Table("containerd.events.TaskResumed", _ID)
TOPICS = {
    TASK_CREATE.name: "/tasks/create", TASK_START.name: "/tasks/start", TASK_DELETE.name: "/tasks/delete",
    TASK_EXIT.name: "/tasks/exit", TASK_OOM.name: "/tasks/oom", TASK_EXEC_ADDED.name: "/tasks/exec-added",
    TASK_EXEC_STARTED.name: "/tasks/exec-started", TASK_PAUSED.name: "/tasks/paused",
    TASK_RESUMED.name: "/tasks/resumed",
}
"""Under which topic an event is published (containerd's ``runtime/events.go``)."""
ENVELOPE = Table(
    "containerd.services.events.ttrpc.v1.Envelope",
    (1, "timestamp", MESSAGE, TIMESTAMP), (2, "namespace", STRING), (3, "topic", STRING), (4, "event", MESSAGE, ANY),
)
FORWARD_REQUEST = Table("containerd.services.events.ttrpc.v1.ForwardRequest", (1, "envelope", MESSAGE, ENVELOPE))

# --- options and what a shim says of itself ---

RUNC_OPTIONS = Table(
    "containerd.runc.v1.Options",
    (1, "no_pivot_root", BOOL), (2, "no_new_keyring", BOOL), (3, "shim_cgroup", STRING), (4, "io_uid", UINT32),
    (5, "io_gid", UINT32), (6, "binary_name", STRING), (7, "root", STRING), (8, "criu_path", STRING),
    (9, "systemd_cgroup", BOOL), (10, "criu_image_path", STRING), (11, "criu_work_path", STRING),
    (12, "task_api_address", STRING), (13, "task_api_version", UINT32),
)
PROCESS_DETAILS = Table("containerd.runc.v1.ProcessDetails", (1, "exec_id", STRING))
RUNTIME_OPTIONS = Table(
    "runtimeoptions.v1.Options", (1, "type_url", STRING), (2, "config_path", STRING), (3, "config_body", BYTES)
)
RUNTIME_VERSION = Table("containerd.types.RuntimeVersion", (1, "version", STRING), (2, "revision", STRING))
RUNTIME_INFO = Table(
    "containerd.types.RuntimeInfo",
    (1, "name", STRING), (2, "version", MESSAGE, RUNTIME_VERSION), (3, "options", MESSAGE, ANY),
    (4, "features", MESSAGE, ANY), (5, "annotations", MAP),
)


def any_of(table: Table, message: dict[str, Any]) -> dict[str, Any]:
    """A message packed into an Any, under its bare name, as containerd's typeurl has it."""
    return {"type_url": table.name, "value": encode(table, message)}


def type_name(any_message: dict[str, Any]) -> str:
    """The full name of what an Any holds: its type URL's last part."""
    return str(any_message["type_url"]).rpartition("/")[2]


def timestamp(nanoseconds: int) -> dict[str, Any]:
    """A time since the epoch as a Timestamp."""
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return {"seconds": seconds, "nanos": nanos}

"""``checkpoint``: not supported yet; the options are taken so that the refusal is what an engine shows."""

from __future__ import annotations

from casemate.errors import ContainerError
from casemate.runtime_cli.main import Context
from casemate.runtime_cli.options import BOOL, LIST, NUMBER, TEXT, Option, Options

USAGE = "[options] <container-id>"
COMMON = (
    Option("image-path", TEXT, "path for the image files"),
    Option("work-path", TEXT, "path for saving work files and logs"),
    Option("tcp-established", BOOL, "allow open tcp connections"),
    Option("ext-unix-sk", BOOL, "allow external unix sockets"),
    Option("shell-job", BOOL, "allow shell jobs"),
    Option("lazy-pages", BOOL, "use userfaultfd to lazily restore memory pages"),
    Option("file-locks", BOOL, "handle file locks, for safety"),
    Option("manage-cgroups-mode", TEXT, "cgroups mode"),
    Option("empty-ns", LIST, "create a namespace, but don't restore its properties"),
    Option("auto-dedup", BOOL, "enable auto deduplication of memory images"),
)
OPTIONS = (
    *COMMON,
    Option("parent-path", TEXT, "path for previous image files in pre-dump"),
    Option("leave-running", BOOL, "leave the process running after checkpointing"),
    Option("status-fd", NUMBER, "descriptor to tell when lazy pages are ready", -1),
    Option("page-server", TEXT, "ADDRESS:PORT of the page server"),
    Option("pre-dump", BOOL, "dump container's memory information only"),
)
ARGUMENTS = (1, 1)


def run(context: Context, options: Options, arguments: list[str]) -> int:
    """Refuse."""
    context.store.get(arguments[0])
    raise ContainerError("checkpoint is not supported", "containers in a virtual machine cannot be saved with criu")

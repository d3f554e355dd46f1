"""Running the OCI runtime: its command lines, its errors, its output.

The command line is runc's, as containerd's own shim uses it (github.com/containerd/go-runc), so any runtime that
Docker could use can stand behind this shim.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal

from casemate.shim import options as runtime_options
from casemate.shim.children import Children
from casemate.shim.loop import READ, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from casemate.shim.loop import Steps

MAX_OUTPUT = 4 << 20
MAX_LOG = 1 << 20
"""How much of the end of a runtime's log is looked through for its error."""


class RuntimeFailed(Exception):
    """A runtime's command failed.

    Arguments:
        said: its error, in one line: the last one of its log, else what it printed.
        exit_status: its exit status.
    """

    def __init__(self, said: str, exit_status: int) -> None:
        super().__init__(said)
        self.said = said
        self.exit_status = exit_status


class Runtime:
    """A runtime for the containers of one bundle.

    Arguments:
        loop, children: the shim's.
        options: of :mod:`casemate.shim.options`.
        namespace: containerd's; the runtime's state is kept apart for each.
        bundle: where its log goes.
        debug: have it tell more.
    """

    def __init__(
        self, loop: Loop, children: Children, options: dict[str, Any], namespace: str, bundle: str, *,
        debug: bool = False,
    ) -> None:
        self._loop = loop
        self._children = children
        self.binary = runtime_options.binary(options)
        self.root = os.path.join(options["root"] or runtime_options.DEFAULT_ROOT, namespace)
        self.bundle = bundle
        self.systemd = bool(options["systemd_cgroup"])
        self.wall = str(options["wall"])
        self._debug = debug

    def command(self, words: Sequence[str], log: str = "log.json") -> list[str]:
        """A command line: globals first, then the words."""
        command = [self.binary, "--root", self.root]
        if self._debug:
            command.append("--debug")
        command += ["--log", os.path.join(self.bundle, log), "--log-format", "json"]
        if self.systemd:
            command.append("--systemd-cgroup")
        if self.wall:
            command += ["--wall", self.wall]
        return [*command, *words]

    def run(
        self, words: Sequence[str], *, stdio: tuple[int | None, int | None, int | None] | None = None,
        input_data: bytes | None = None, log: str = "log.json", seconds: float | None = None,
    ) -> Steps[bytes]:
        """Run a command to its end.

        Arguments:
            words: the command and its arguments.
            stdio: descriptors that the container is to get; without them its output is returned.
            input_data: what it reads from its standard input.
            log: the log's name in the bundle.
            seconds: after which it is killed; None leaves it its time.

        Returns:
            what it printed, unless ``stdio`` took that.

        Raises:
            RuntimeFailed: it did not end with 0, could not be executed, or was killed for being late.
        """
        path = os.path.join(self.bundle, log)
        before = _size(path)
        reader = writer = -1
        data_fd: int | None = None
        output = bytearray()
        stdin, stdout, stderr = stdio if stdio is not None else (None, None, None)
        try:
            if input_data is not None:
                data_fd = stdin = memory_file(input_data)
            if stdio is None:
                reader, writer = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(reader, False)
                self._loop.watch(reader, READ, lambda _: self._collect(reader, output))
                stdout = stderr = writer
            try:
                pid = self._children.spawn(self.command(words, log), stdin=stdin, stdout=stdout, stderr=stderr)
            except OSError as error:
                raise RuntimeFailed(f"exec: {error.filename}: {error.strerror}", 127) from None
            if writer >= 0:
                os.close(writer)
                writer = -1
            ended = self._children.wait(pid)
            try:
                code = yield self._loop.bounded(ended, seconds)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                yield ended
                raise RuntimeFailed("the runtime took too long and was killed", 137) from None
            if reader >= 0:  # what a child of it still holds open is not waited for
                self._collect(reader, output)
        finally:
            if reader >= 0:
                self._loop.unwatch(reader)
            for fd in (reader, writer, -1 if data_fd is None else data_fd):
                if fd >= 0:
                    os.close(fd)
        if code != 0:
            said = last_error(path, before)
            if not said:
                said = f"{os.path.basename(self.binary)} did not terminate successfully: exit status {code}"
                printed = bytes(output).decode("utf-8", "replace").strip()
                said += f": {printed}" if printed else ""
            raise RuntimeFailed(said, code)
        return bytes(output)

    def _collect(self, reader: int, output: bytearray) -> None:
        with contextlib.suppress(BlockingIOError):
            while len(output) < MAX_OUTPUT:
                data = os.read(reader, 65536)
                if not data:
                    self._loop.unwatch(reader)
                    return
                output += data
            self._loop.unwatch(reader)


def _size(path: str) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_size
    return 0


def memory_file(data: bytes) -> int:
    fd = os.memfd_create("runtime-input", os.MFD_CLOEXEC)
    written = 0
    while written < len(data):
        written += os.write(fd, data[written:])
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def last_error(path: str, start: int = 0) -> str:
    """The last error in a runtime's log: JSON lines with ``level`` and ``msg``; empty when there is none.

    Arguments:
        path: the log.
        start: where to begin, in bytes.
    """
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(start, file.tell() - MAX_LOG))
            lines = file.read(MAX_LOG).splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal") and isinstance(entry.get("msg"), str):
            return str(entry["msg"]).strip()
    return ""

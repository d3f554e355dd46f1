"""From a file and its arguments to what is to run: scripts' interpreters, programs' loaders, execve(2)."""

from __future__ import annotations

from errno import ELIBBAD, ELOOP, ENOENT, ENOEXEC
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.loader import script
from casemate.sentry.loader.elf import Elf
from casemate.sentry.vfs.path import open_path

if TYPE_CHECKING:
    from casemate.sentry.tasks.task import Task
    from casemate.sentry.vfs.file import File

HEAD = 1024
"""How much of a file is read at first: the headers of nearly all programs are within."""


class Program:
    """A program that can be run, with what it is to be run by.

    Arguments:
        file: taken over; a script's is given back once its interpreter is open.
        filename: what the caller named it, for ``AT_EXECFN`` and scripts' interpreters.
        argv: at least one.
        inaccessible: the new program could not open ``filename`` (a descriptor that execve(2) closes).

    Raises:
        SysError: what execve(2) says of files that cannot be run.
    """

    __slots__ = ("argv", "elf", "file", "filename", "loader", "loader_file")

    def __init__(
        self, task: Task, file: File, filename: bytes, argv: list[bytes], inaccessible: bool = False
    ) -> None:
        self.file = file
        self.filename = filename
        self.argv = argv
        self.loader: Elf | None = None
        """The dynamic loader, where the program asks for one."""
        self.loader_file: File | None = None
        try:
            self.elf = self._open(task, inaccessible)
            if self.elf.interpreter is not None:
                self._open_loader(task, self.elf.interpreter)
        except BaseException:
            self.close()
            raise

    def _open(self, task: Task, inaccessible: bool) -> Elf:
        name = self.filename
        for _ in range(script.MAX_DEPTH + 1):
            head = _head(task, self.file)
            if head[:2] != b"#!":
                return Elf(head, _Reader(task, self.file))
            interpreter, argument = script.interpreter(head[: script.BINPRM_BUF_SIZE])
            if inaccessible:
                raise SysError(ENOENT)
            options = [] if argument is None else [argument]
            self.argv = [interpreter, *options, name, *self.argv[1:]]
            opened = open_path(task, interpreter)
            self.file.decref()
            self.file = opened
            name = interpreter
        raise SysError(ELOOP)

    def _open_loader(self, task: Task, path: bytes) -> None:
        self.loader_file = open_path(task, path)
        head = _head(task, self.loader_file)
        try:
            self.loader = Elf(head, _Reader(task, self.loader_file))
        except SysError as error:
            raise SysError(ELIBBAD if error.errno == ENOEXEC else error.errno) from None

    def close(self) -> None:
        """Give the files back; mappings hold their own references."""
        self.file.decref()
        if self.loader_file is not None:
            self.loader_file.decref()


class _Reader:
    """Reads from a file, as :class:`Elf` wants it."""

    __slots__ = ("_file", "_task")

    def __init__(self, task: Task, file: File) -> None:
        self._task = task
        self._file = file

    def __call__(self, size: int, offset: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._file.pread(self._task, size - len(data), offset + len(data))
            if not part:
                break
            data += part
        return data


def _head(task: Task, file: File) -> bytes:
    return file.pread(task, HEAD, 0)

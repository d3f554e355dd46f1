"""``casemate cp``: copy files into and out of a container, running or not.

Both sides are processes of ours with a tar stream between them: the one inside is confined to the container's root
filesystem (chroot(2) in a mount namespace of its own), so the container's links lead nowhere else; the one outside
never follows a link below the destination (see :mod:`casemate.cli.tree`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from casemate.cli import common, output
from casemate.errors import CasemateError, UsageError

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config
    from casemate.keeper.store import Container

USAGE = "[OPTIONS] SRC... CONTAINER:DST | CONTAINER:SRC... DST"


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.flag("-a", "--archive", help="keep owners, and set-user-id bits on the way out")
    parser.flag("-L", "--follow-link", help="copy what a SRC that is a link points to")
    parser.flag("-q", "--quiet", help="taken for Docker's sake: there is no progress to leave out")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="one side is CONTAINER:PATH; - is a tar stream")


def run(config: Config, args: Any) -> int:
    """Copy each source to the destination."""
    if len(args.paths) < 2:
        raise UsageError("cp needs a source and a destination", "see: casemate cp --help")
    *sources, destination = (split(path) for path in args.paths)
    into = destination[0] is not None
    if any((name is not None) == into for name, _ in sources):
        raise UsageError("one side of cp has to be in a container and the other not", "write that one as NAME:PATH")
    if len(sources) > 1 and any(path == "-" for _, path in (*sources, destination)):
        raise UsageError("- stands alone: a tar stream cannot be one of several", "copy in several calls")
    from casemate.cli import tree  # what it imports has to be there before the root directory changes

    store = common.containers(config)
    status = 0
    for name, path in sources:
        options = tree.Options(
            owners=args.archive, special_bits=args.archive or into, follow_source=args.follow_link,
            follow_links=into, must_be_directory=len(sources) > 1,
        )  # fmt: skip
        container = store.get((destination[0] if into else name) or "")
        copy = _into if into else _out_of
        status = max(status, copy(container, path, destination[1], options))
    return status


def split(word: str) -> tuple[str | None, str]:
    """The container and the path in ``CONTAINER:PATH``; no container where a slash or dot comes first."""
    name, colon, path = word.partition(":")
    if not colon or not name or "/" in name or name.startswith("."):
        return None, word
    if not path:
        raise UsageError(f"{word!r} names no path in the container", f"such as {name}:/tmp")
    return name, path


def _into(container: Container, source: str, destination: str, options: Any) -> int:
    from casemate.cli import tree
    from casemate.keeper.rootfs import run_in

    if source == "-":
        def unpack() -> int:
            return _guarded(lambda: tree.unpack(0, inside(destination), options, foreign=True))

        return run_in(container, unpack)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = _fork(lambda: tree.pack(source, writer, options), reader)
    os.close(writer)
    try:
        status = run_in(container, lambda: _guarded(lambda: tree.unpack(reader, inside(destination), options)))
    finally:
        os.close(reader)
        sent = _reap(child)
    return 1 if status or sent else 0


def _out_of(container: Container, source: str, destination: str, options: Any) -> int:
    from casemate.cli import tree
    from casemate.keeper.rootfs import run_in

    if destination == "-":
        if os.isatty(1):
            raise UsageError("a tar stream does not belong on a terminal", "redirect standard output")
        status = run_in(container, lambda: _guarded(lambda: tree.pack(inside(source), 1, options)))
        return 1 if status else 0
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = _fork(lambda: tree.unpack(reader, destination, options), writer)
    os.close(reader)
    try:
        status = run_in(container, lambda: _guarded(lambda: tree.pack(inside(source), writer, options)))
    finally:
        os.close(writer)
        received = _reap(child)
    return 1 if status or received else 0


def inside(path: str) -> str:
    """A path in the container: relative ones are taken from its root, as with Docker."""
    return path if path.startswith("/") else "/" + path


def _guarded(work: Callable[[], None]) -> int:
    """Do one side's work; its exit status, with the problem told."""
    try:
        work()
    except BrokenPipeError:
        return 1  # the other side gave up, and has said why
    except CasemateError as error:
        if error.message:
            output.error(error)
        return 1
    except OSError as error:
        where = f"{error.filename!s}: " if error.filename else ""
        output.error(CasemateError(f"{where}{error.strerror or error}"))
        return 1
    return 0


def _fork(work: Callable[[], None], other_end: int) -> int:
    """Do one side's work in a child that has not the pipe's other end; its process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(other_end)
            status = _guarded(work)
            sys.stderr.flush()
        finally:
            os._exit(status)
    return child


def _reap(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)

"""Read the global options, find the command, import it alone, run it, and report errors as engines expect them."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from casemate.errors import CasemateError, UsageError
from casemate.programs import settle
from casemate.runtime_cli.log import Log
from casemate.runtime_cli.options import BOOL, TEXT, Option, Options, parse

NAME = "casemate-runtime"
SPEC_VERSION = "1.0.2"
COMMANDS = {
    # name: (module, how many arguments, what it does)
    "checkpoint": ("checkpoint", "checkpoint a running container"),
    "create": ("create", "create a container"),
    "delete": ("delete", "delete any resources held by the container"),
    "events": ("events", "display container events such as OOM notifications, and usage statistics"),
    "exec": ("exec", "execute new process inside the container"),
    "features": ("features", "show the enabled features"),
    "kill": ("kill", "send the specified signal (default: SIGTERM) to the container's init process"),
    "list": ("list", "list containers started by casemate-runtime with the given root"),
    "pause": ("pause", "suspend all processes inside the container"),
    "ps": ("ps", "display the host processes that stand for those inside a container"),
    "restore": ("restore", "restore a container from a previous checkpoint"),
    "resume": ("resume", "resume all processes that have been previously paused"),
    "run": ("run", "create and run a container"),
    "spec": ("spec", "create a new specification file"),
    "start": ("start", "execute the user defined process in a created container"),
    "state": ("state", "output the state of a container"),
    "update": ("update", "update container resource constraints"),
}
HELP = Option("help, h", BOOL, "show help")
GLOBALS = (
    Option("debug", BOOL, "enable debug logging"),
    Option("log", TEXT, "set the log file to write logs to (default is '/dev/stderr')"),
    Option("log-format", TEXT, "set the log format ('text' (default), or 'json')", "text"),
    Option("root", TEXT, "root directory for storage of container state (default: runtime in the run directory)"),
    Option("criu", TEXT, "accepted and of no effect"),
    Option("systemd-cgroup", BOOL, 'cgroupsPath is of form "slice:prefix:name", and systemd makes the group'),
    Option("rootless", TEXT, "'auto' or 'false'; containers without root are not supported", "auto"),
    Option("wall", TEXT, "'vm' or 'sentry' (default is the configuration's)"),
    HELP,
    Option("version, v", BOOL, "print the version"),
)
NO_SUCH_COMMAND = 3
"""runc's exit status for a command that it does not know."""


class Context:
    """What every command needs: the global options and the log; the store is made when it is first asked for."""

    def __init__(self, options: Options, log: Log) -> None:
        self.options = options
        self.log = log
        self._store: Any = None

    @property
    def systemd(self) -> bool:
        """Whether systemd makes the containers' control groups."""
        return bool(self.options["systemd-cgroup"])

    @property
    def wall(self) -> str:
        """Which wall sandboxes that are made get; empty for the configured one."""
        return str(self.options["wall"])

    @property
    def store(self) -> Any:
        """The :class:`casemate.pod.store.PodStore` of ``--root``."""
        if self._store is None:
            from pathlib import Path

            from casemate import config
            from casemate.pod.store import PodStore

            root = self.options["root"]
            self._store = PodStore(config.load(), Path(os.path.abspath(root)) if root else None)
        return self._store


def main(argv: list[str] | None = None) -> int:
    """The program.

    Arguments:
        argv: the words after the program's name; the process's own when None.

    Returns:
        the exit status: 0, 1 for an error, or that of the container's process where the command waits for it.
    """
    if argv is not None:
        return _main(argv)
    _reset_signals()
    status = _main(sys.argv[1:])
    # At once: what is done counts for nothing with an engine whose command is killed while Python tidies up.
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            status = status or 1
    os._exit(status)


def _main(words: list[str]) -> int:
    _fill_standard()
    log = Log()
    status = 1
    try:
        options, rest = parse(GLOBALS, words, anywhere=False)
        if options["help"] or (not rest and not options["version"]) or rest[:1] in (["help"], ["h"]):
            return _help(rest[1:])
        if options["version"]:
            _write(version())
            return 0
        log = _open_log(options)
        if rest[0] not in COMMANDS:
            log.fail(f"No help topic for '{rest[0]}'\n")
            return NO_SUCH_COMMAND
        command = importlib.import_module(f"casemate.runtime_cli.{COMMANDS[rest[0]][0]}")
        status = getattr(command, "FAILURE", 1)
        known = (*command.OPTIONS, HELP)
        given, arguments = parse(known, rest[1:], anywhere=getattr(command, "ANYWHERE", True))
        if given["help"]:
            return _help([rest[0]])
        _check_count(rest[0], command.ARGUMENTS, arguments)
        if options["wall"] not in ("", "vm", "sentry"):
            raise UsageError(f"there is no wall '{options['wall']}'", "say vm or sentry")
        if options["rootless"] not in ("auto", "false"):
            _check_rootless(options["rootless"])
        if getattr(command, "ROOT", True) and os.geteuid() != 0:
            raise UsageError(f"{NAME} {rest[0]} needs root", "containers without root are not supported")
        settle()
        result: int = command.run(Context(options, log), given, arguments)
        return result
    except CasemateError as error:
        if log.to_standard_error and os.environ.get("CASEMATE_DEBUG"):
            raise
        log.fail(words_for(error))
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return status
    except KeyboardInterrupt as interrupt:
        return 128 + int(getattr(interrupt, "signum", 2))
    except Exception as error:  # the last resort: an engine gets one line, the log of which it shows
        if os.environ.get("CASEMATE_DEBUG"):
            raise
        log.fail(f"unexpected: {_what(error)}")
        return status


def _reset_signals() -> None:
    """Undo what a caller has left us: blocked signals would reach neither us nor the container, and where SIGCHLD is
    ignored the ends of our children are lost."""
    import _signal  # type: ignore[import-not-found]  # "signal" takes longer, and not every command needs it

    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)


def _fill_standard() -> None:
    """Have something behind the standard descriptors. Where a caller has closed one, the next file that we open would
    get its number, and be handed to the container as a standard stream: the log, a lock, a disk."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def words_for(error: CasemateError) -> str:
    """An error as one line, in runc's words where engines look for those."""
    from casemate.errors import NameInUse, NoSuchContainer

    if isinstance(error, NoSuchContainer):
        return "container does not exist"
    if isinstance(error, NameInUse):
        return "container with given ID already exists"
    return str(error)


def version() -> str:
    """Exactly three lines, as engines read them."""
    from casemate import __version__

    return f"{NAME} version {__version__}\ncommit: v{__version__}\nspec: {SPEC_VERSION}\n"


def _open_log(options: Options) -> Log:
    if options["log-format"] not in ("text", "json"):
        raise UsageError(f"invalid log-format: {options['log-format']}")
    try:
        return Log(options["log"], options["log-format"], options["debug"])
    except OSError as error:
        raise UsageError(f"open {options['log']}: {(error.strerror or '').lower()}") from None


def _check_rootless(value: str) -> None:
    if value in ("true", "1", "t"):
        raise UsageError("--rootless true is not supported", "run the engine as root")
    if value not in ("0", "f"):
        raise UsageError(f"invalid boolean value in rootless option: {value!r}")


def _check_count(name: str, bounds: tuple[int, int | None], arguments: list[str]) -> None:
    least, most = bounds
    count = len(arguments)
    if least == most and count != least:
        wanted = f"exactly {least}"
    elif count < least:
        wanted = f"a minimum of {least}"
    elif most is not None and count > most:
        wanted = f"a maximum of {most}"
    else:
        if least and not arguments[0]:
            raise UsageError("container id cannot be empty")
        return
    sys.stdout.write("Incorrect Usage.\n\n")
    _help([name])
    raise UsageError(f'{NAME}: "{name}" requires {wanted} argument(s)')


def _help(words: list[str]) -> int:
    if words and words[0] in COMMANDS:
        command = importlib.import_module(f"casemate.runtime_cli.{COMMANDS[words[0]][0]}")
        lines = [f"{NAME} {words[0]} - {COMMANDS[words[0]][1]}", "", f"Usage: {NAME} {words[0]} {command.USAGE}"]
        options = command.OPTIONS
    else:
        lines = [f"{NAME} - run OCI containers, each sandbox behind a kernel of its own", ""]
        lines += [f"Usage: {NAME} [global options] COMMAND [options] [arguments...]", "", "Commands:"]
        lines += [f"  {name:<12}{about}" for name, (_, about) in COMMANDS.items()]
        options = GLOBALS
    if options:
        lines += ["", "Options:"]
        for option in options:
            names = ", ".join(f"--{name}" if len(name) > 1 else f"-{name}" for name in option.names)
            lines.append(f"  {names + ('' if option.kind == BOOL else ' value'):<32} {option.help}")
    _write("\n".join(lines) + "\n")
    return 0


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _what(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())

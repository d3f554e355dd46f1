"""Find the command, import it alone, run it, and turn whatever happens into one line and an exit status."""

from __future__ import annotations

import os
import sys

from casemate.errors import CasemateError, HostError, UsageError
from casemate.programs import settle

TYPE_CHECKING = False  # not from typing: that is one of the modules which cost
if TYPE_CHECKING:
    from typing import Any

COMMANDS: dict[str, tuple[str, str]] = {
    # name: (module in casemate.cli, one line for the overview)
    "run": ("run", "Run a command in a new container behind its own kernel"),
    "do": ("do", "Run a command of this machine behind the sentry, its writes thrown away"),
    "exec": ("exec", "Run a further command in a running container"),
    "ps": ("ps", "List containers"),
    "logs": ("logs", "Show what a container wrote"),
    "stop": ("stop", "Ask containers to end, then end them"),
    "kill": ("kill", "Send a signal to containers"),
    "wait": ("wait", "Wait for containers to end and print their exit statuses"),
    "rm": ("rm", "Remove containers"),
    "inspect": ("inspect", "Show everything about containers or images, as JSON"),
    "cp": ("cp", "Copy files into and out of a container"),
    "stats": ("stats", "Show what containers use"),
    "pause": ("pause", "Stop containers where they stand"),
    "unpause": ("unpause", "Let paused containers go on"),
    "pull": ("pull", "Fetch an image"),
    "images": ("images", "List images"),
    "rmi": ("rmi", "Remove images"),
    "guest": ("guest", "Build, list and inspect guest bundles and minimal kernels"),
    "boot-chart": ("boot_chart", "Show where the time of a start goes, from the VMM to the end of a container"),
    "pool": ("pool", "Keep sandboxes ready, so that a start need not wait for one"),
    "ksm": ("ksm", "Have equal memory of machines merged, most of it soon after each start"),
    "template": ("templates", "Make, list, check and remove saved guests that machines start from"),
    "sentry": ("sentry", "Show what the sentry serves, and what that of a container knows of its processes"),
    "install": ("install", "Make Docker, Podman, containerd or systemd know casemate, or take that back"),
    "check": ("check", "Tell whether this machine is ready, and what to do if not"),
    "env": ("env", "Show the configuration in force and where it comes from"),
    "version": ("version", "Show versions"),
}
UNEXPECTED = 125
"""Exit status where casemate itself failed, as Docker has it."""
DEBUG = "CASEMATE_DEBUG"


def main(argv: list[str] | None = None) -> int:
    """The program.

    Arguments:
        argv: the words after the program's name; the process's own when None.

    Returns:
        the exit status.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        status = _dispatch(words)
        sys.stdout.flush()
        return status
    except CasemateError as error:
        if os.environ.get(DEBUG):
            raise
        _report(error)
        return error.exit_status
    except KeyboardInterrupt as interrupt:
        return 128 + int(getattr(interrupt, "signum", 2))
    except BrokenPipeError:
        # Whoever read our output has gone. Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:  # the last resort: a person gets one line, and a way to the rest
        if os.environ.get(DEBUG):
            raise
        _report(_unexpected(error))
        return UNEXPECTED


def _dispatch(words: list[str]) -> int:
    if not words:
        _write_overview(sys.stderr)
        return UNEXPECTED
    first, rest = words[0], words[1:]
    if first in ("-h", "--help", "help"):
        if first == "help" and rest:
            return _dispatch([rest[0], "--help"])
        _write_overview(sys.stdout)
        return 0
    if first in ("-V", "--version"):
        from casemate import __version__

        print(f"casemate {__version__}")
        return 0
    if first not in COMMANDS:
        raise _unknown(first)
    import importlib

    from casemate.cli import plain

    module: Any = importlib.import_module(f"casemate.cli.{COMMANDS[first][0]}")
    args: Any = plain.parse(module.declare, rest)
    if args is None:
        from casemate.cli.parser import Parser, reorder

        parser = Parser(first, module.USAGE, getattr(module, "SUMMARY", COMMANDS[first][1]))
        module.declare(parser)
        args = parser.parse_args(reorder(parser, rest))
    if getattr(module, "ROOT", True) and os.geteuid() != 0:
        raise HostError(f"casemate {first} needs root", f"try: sudo casemate {first} ...")
    from casemate.config import load

    config = load()
    settle()
    status: int = module.run(config, args)
    return status


def _unknown(word: str) -> UsageError:
    from difflib import get_close_matches

    if word.startswith("-"):
        return UsageError(f"unknown option {word!r} before a command", "see: casemate --help")
    close = get_close_matches(word, COMMANDS, 1)
    return UsageError(f"no command {word!r}", f"did you mean {close[0]}?" if close else "see: casemate --help")


def _unexpected(error: Exception) -> CasemateError:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        what = f"{where}{error.strerror}"
    else:
        what = f"{type(error).__name__}: {error}"
    return CasemateError(f"unexpected: {what}", f"{DEBUG}=1 shows where")


def _report(error: CasemateError) -> None:
    from casemate.cli import output

    output.error(error)


def _write_overview(file: Any) -> None:
    width = max(map(len, COMMANDS))
    lines = ["Containers behind a kernel of their own.", "", "Usage: casemate COMMAND [OPTIONS] ...", "", "Commands:"]
    lines += [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    lines += ["", "casemate COMMAND --help tells more. Try: sudo casemate run -it busybox"]
    print("\n".join(lines), file=file)

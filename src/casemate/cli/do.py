"""``casemate do``: run a command of the host behind the sentry, with a throw-away view of the host's files."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from typing import TYPE_CHECKING, Any

from casemate import bundle
from casemate.errors import UsageError

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config

USAGE = "[OPTIONS] COMMAND [ARG...]"


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.flag("--rw", help="let it change the host's files; else what it writes is thrown away")
    parser.value("-w", "--cwd", metavar="DIRECTORY", default="", help="where it begins (where you are)")
    parser.values("-e", "--env", metavar="NAME[=VALUE]", help="set a variable of its environment")
    parser.value("--network", metavar="none|host", default="none", help="none: a loopback of its own; host: the host's")
    parser.value("--strace", metavar="CALLS", default=None, help="show system calls: all, or names with commas between")
    parser.flag("--summary", help="count system calls and their errors, and show the table of them at the end")
    parser.flag("--debug", help="show the kernel's log")
    parser.value("--platform", metavar="NAME", default="", help="notify, notify-python or ptrace (the best there is)")
    parser.command("command", "args")


def run(config: Config, args: Any) -> int:
    """Run the command in a child that becomes the sentry; its status is ours."""
    from casemate.config import PLATFORMS

    if args.network not in ("none", "host"):
        raise UsageError(f"no network {args.network!r}", "choose none or host")
    if args.platform not in ("", *PLATFORMS[1:]):
        raise UsageError(f"no platform {args.platform!r}", f"choose one of {', '.join(PLATFORMS[1:])}")
    from casemate.host import uids
    from casemate.ids import new_id
    from casemate.sentry.foreground import Wanted
    from casemate.sentry.foreground import run as serve

    env = dict(os.environ)
    for word in args.env:
        name, equals, value = word.partition("=")
        if not name:
            raise UsageError(f"{word!r} is no variable", "say NAME=VALUE")
        if equals:
            env[name] = value
    words = args.args[1:] if args.args[:1] == ["--"] else args.args
    id = new_id()
    uid = uids.lease(id, config)
    strace = None if args.strace is None else [w for w in args.strace.split(",") if w and w != "all"]
    wanted = Wanted(
        [args.command, *words], env, args.cwd or os.getcwd(), uid, writable=args.rw,
        host_network=args.network == "host", strace=strace, summary=args.summary, debug=args.debug,
        platform=args.platform,
    )  # fmt: skip
    sys.stdout.flush()
    try:
        pid = os.fork()
        if pid == 0:
            gc.disable()  # until the kernel serves
            _child(serve, wanted)
        return _wait(pid)
    finally:
        uids.release(id, config)


def _child(serve: Any, wanted: Any) -> None:
    status = 125
    try:
        status = serve(wanted)
    except BaseException as error:
        print(f"casemate: {type(error).__name__}: {error}", file=sys.stderr)
        if os.environ.get("CASEMATE_DEBUG"):
            import traceback

            traceback.print_exc()
    finally:
        os._exit(status)


def _wait(pid: int) -> int:
    """Wait for the sentry; signals go to it."""
    import signal
    import termios

    settings = termios.tcgetattr(0) if os.isatty(0) else None

    def relay(number: int, frame: object) -> None:
        os.kill(pid, number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, relay)
    for number in (signal.SIGINT, signal.SIGQUIT):  # the terminal sends these to both
        signal.signal(number, lambda *_: None)
    if bundle.wanted():
        bundle.write()  # there is nothing else to do meanwhile
    _, status = os.waitpid(pid, 0)
    if settings is not None and os.WIFSIGNALED(status):
        # The sentry was killed and could not put the terminal back itself.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(0, termios.TCSADRAIN, settings)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 125

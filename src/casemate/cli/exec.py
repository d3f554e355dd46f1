"""``casemate exec``: run a further command in a running container."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from casemate.cli import attach, common, output, values
from casemate.errors import ContainerError, UsageError

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config

USAGE = "[OPTIONS] CONTAINER COMMAND [ARG...]"


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.flag("-i", "--interactive", help="keep standard input open")
    parser.flag("-t", "--tty", help="give the command a terminal")
    parser.flag("-d", "--detach", help="leave it running")
    parser.values("-e", "--env", metavar="NAME[=VALUE]", help="set a variable; without a value, take ours")
    parser.values("--env-file", metavar="FILE", help="set the variables in a file")
    parser.value("-w", "--workdir", metavar="DIR", default="", help="working directory; the container's otherwise")
    parser.value("-u", "--user", metavar="USER[:GROUP]", help="who runs it; the container's user otherwise")
    parser.command("container", "arguments")


def run(config: Config, args: Any) -> int:
    """Start the command and serve it unless detached; its exit status."""
    if not args.arguments:
        raise UsageError("no command to execute", "name one after the container")
    if args.interactive and args.tty and not args.detach and not os.isatty(0):
        raise UsageError("-t needs a terminal, and standard input is none", "leave out -t")
    if args.workdir and not args.workdir.startswith("/"):
        raise UsageError(f"the working directory {args.workdir!r} is relative", "begin it with a slash")
    from casemate.keeper.client import Client
    from casemate.oci.spec import exec_process

    env = [entry for path in args.env_file for entry in values.env_file(path, os.environ)]
    env += values.environment(args.env, os.environ)
    user = values.user(args.user) if args.user else ""
    container = common.containers(config).get(args.container)
    process = exec_process(
        container.spec.oci, values.words(args.arguments, "the command"), env=env,
        workdir=values.text(args.workdir, "the working directory"), tty=args.tty,
    )  # fmt: skip
    stdio = (None, None, None) if args.detach else attach.stdio(args.interactive)
    size = attach.terminal_size() if args.tty else None
    with attach.interruptible(lambda: not args.detach) as kept, Client(container) as client:
        session = client.exec(process, user, stdio, tty=args.tty, size=size)
    if args.detach:
        session.close()
        return 0
    status = attach.wait(session, tty=args.tty, interactive=args.interactive, kept=kept)
    if session.error:
        output.error(ContainerError(session.error))
    return status

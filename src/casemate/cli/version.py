"""``casemate version``: the versions of all that takes part."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Any

from casemate import __version__
from casemate.cli import output
from casemate.errors import CasemateError

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config

USAGE = "[OPTIONS]"
ROOT = False


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.value("--format", metavar="FORMAT", default="text", help="text (default) or json")


def run(config: Config, args: Any) -> int:
    """Print the versions."""
    parts = versions(config)
    if args.format == "json":
        print(json.dumps(parts, indent=4))
    elif args.format == "text":
        width = max(map(len, parts)) + 2
        print("\n".join(f"{name + ':':<{width}}{output.printable(value)}" for name, value in parts.items()))
    else:
        from casemate.cli.template import render

        print(render(args.format, parts))
    return 0


def versions(config: Config) -> dict[str, str]:
    """Each part and its version, or why there is none."""
    return {
        "casemate": __version__,
        "python": platform.python_version(),
        "qemu": _first_line([config.qemu, "--version"]),
        "host kernel": platform.release(),
        "guest kernel": _guest(config),
    }


def _first_line(argv: list[str]) -> str:
    import subprocess

    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "not installed"
    line = done.stdout.partition("\n")[0]
    return line.removeprefix("QEMU emulator version ") or f"ended with status {done.returncode}"


def _guest(config: Config) -> str:
    from casemate.vm import guest

    try:
        bundle = guest.find(config.root, config.guest)
    except CasemateError as error:
        return error.message
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return f"{bundle.kernel_release} (guest bundle {bundle.digest[:12]})"

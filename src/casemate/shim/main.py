"""``containerd-shim-casemate-v2``: how containerd starts and removes shims.

``start`` makes the shim's socket, leaves the serving process behind and prints its address; ``delete`` clears up after
a shim that died. Source: containerd's ``core/runtime/v2/README.md``. The serving process is a fork of ``start``:
another interpreter would need its 30 ms and load the same modules again.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME = "containerd-shim-casemate-v2"  # also in start.py, which is not to be loaded for this
USAGE = f"""Usage of {NAME}:
  {NAME} [flags] start | delete

  -address string
        grpc address back to main containerd
  -bundle string
        path to the bundle if not workdir
  -debug
        enable debug output in logs
  -id string
        id of the task
  -info
        get the option protobuf from stdin, print the shim info protobuf to stdout, and exit
  -namespace string
        namespace that owns the shim
  -publish-binary string
        path to publish binary (used for publishing events)
  -socket string
        socket path to serve
  -v    show the shim version and exit
"""
_STRINGS = ("address", "bundle", "id", "namespace", "publish-binary", "socket", "debug-socket")
_SWITCHES = ("debug", "v", "version", "info", "h", "help")


class UsageFault(Exception):
    """A flag that is not known, or without its value."""


def parse(words: list[str]) -> tuple[dict[str, Any], str]:
    """Flags, as Go's ``flag`` package takes them, and the action.

    Raises:
        UsageFault: a bad flag.
    """
    flags: dict[str, Any] = dict.fromkeys(_STRINGS, "") | dict.fromkeys(_SWITCHES, False)
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] not in ("-", "--"):
        word = rest.pop(0)
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        if name in _SWITCHES:
            if value not in ("", "true", "false", "1", "0"):
                raise UsageFault(f"invalid boolean value {value!r} for -{name}")
            flags[name] = value not in ("false", "0")
        elif name in _STRINGS:
            if not equals:
                if not rest:
                    raise UsageFault(f"flag needs an argument: -{name}")
                value = rest.pop(0)
            flags[name] = value
        else:
            raise UsageFault(f"flag provided but not defined: -{name}")
    if rest and rest[0] == "--":
        rest.pop(0)
    return flags, rest[0] if rest else ""


def main(argv: list[str] | None = None) -> int:
    """The program.

    Returns:
        the exit status.
    """
    try:
        flags, action = parse(sys.argv[1:] if argv is None else argv)
    except UsageFault as fault:
        sys.stderr.write(f"{fault}\n{USAGE}")
        return 2
    if flags["h"] or flags["help"]:
        sys.stderr.write(USAGE)
        return 0
    try:
        return _act(flags, action)
    except Exception as error:
        message = getattr(error, "message", None) or f"{error}"
        sys.stderr.write(f"{NAME}: {message}")
        return 1


def _act(flags: dict[str, Any], action: str) -> int:
    if flags["v"] or flags["version"]:
        from casemate import __version__

        sys.stdout.write(
            f"{os.path.basename(sys.argv[0])}:\n  Version:  {__version__}\n  Revision: \n"
            f"  Python version: {sys.version.split()[0]}\n\n"
        )
        return 0
    if flags["info"]:
        from casemate.shim.info import info

        os.write(1, info(_read_stdin()))
        return 0
    if not flags["namespace"]:
        raise ValueError("shim namespace cannot be empty")
    if action == "start":
        from casemate.shim.start import start

        return start(flags, _read_stdin())
    if action == "delete":
        from casemate.shim.remove import remove

        os.write(1, remove(flags))
        return 0
    if action:
        raise ValueError(f"unknown action {action}")
    from casemate.shim.start import serve_here

    return serve_here(flags, _read_stdin())


def _read_stdin() -> bytes:
    """The options that containerd hands over, at most 10 MiB; nothing where a terminal is the input."""
    if os.isatty(0):
        return b""
    data = bytearray()
    while len(data) < 10 << 20:
        try:
            part = os.read(0, 65536)
        except OSError:
            break
        if not part:
            break
        data += part
    return bytes(data)


if __name__ == "__main__":
    sys.exit(main())

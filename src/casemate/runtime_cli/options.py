"""Options as runc takes them: ``-x`` and ``--x`` are the same, a value follows or stands behind ``=``.

runc is built with urfave/cli and Go's flag package, and engines rely on what those accept. argparse would cost more
time than all of the rest, and reads ``-x=y`` and abbreviations in other ways.
"""

from __future__ import annotations

from typing import Any

from casemate.errors import UsageError

BOOL, TEXT, NUMBER, LIST = "bool", "text", "number", "list"
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


class Option:
    """One option.

    Arguments:
        names: without dashes, the first being the one that it is found under.
        kind: :data:`BOOL`, :data:`TEXT`, :data:`NUMBER` or :data:`LIST` (may be given more than once).
        help: what it does.
        default: None for the kind's own: False, an empty string, 0, an empty list.
    """

    __slots__ = ("default", "help", "kind", "names")

    def __init__(self, names: str, kind: str, help: str, default: Any = None) -> None:
        self.names = tuple(name.strip() for name in names.split(","))
        self.kind = kind
        self.help = help
        empty: dict[str, Any] = {BOOL: False, TEXT: "", NUMBER: 0, LIST: []}
        self.default = empty[kind] if default is None else default


class Options:
    """The values of options; ``options["bundle"]``."""

    def __init__(self, known: tuple[Option, ...]) -> None:
        self._values: dict[str, Any] = {option.names[0]: option.default for option in known}
        self._given: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def given(self, name: str) -> bool:
        """Whether it stood on the command line."""
        return name in self._given

    def set(self, option: Option, value: Any) -> None:
        """Note a value from the command line."""
        name = option.names[0]
        if option.kind == LIST:
            value = [*(self._values[name] if name in self._given else []), value]
        self._values[name] = value
        self._given.add(name)


def parse(known: tuple[Option, ...], words: list[str], *, anywhere: bool) -> tuple[Options, list[str]]:
    """Read options.

    Arguments:
        anywhere: options may also follow arguments, as with most of runc's commands; else the first argument ends them,
            as with its global options and with ``exec`` and ``ps``, where what follows is somebody else's.

    Returns:
        The options, and the arguments.

    Raises:
        UsageError: an option is unknown, lacks its value or has a bad one.
    """
    by_name = {name: option for option in known for name in option.names}
    options = Options(known)
    arguments: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word == "--":
            return options, arguments + queue
        if not word.startswith("-") or word == "-":
            arguments.append(word)
            if not anywhere:
                return options, arguments + queue
            continue
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        option = by_name.get(name)
        if option is None:
            if anywhere and arguments:
                arguments.append(word)  # as urfave/cli: it only looks for options that it knows among the arguments
                continue
            raise UsageError(f"flag provided but not defined: -{name}")
        if option.kind == BOOL:
            options.set(option, _boolean(name, value) if equals else True)
            continue
        if not equals:
            if not queue:
                raise UsageError(f"flag needs an argument: -{name}")
            value = queue.pop(0)
        options.set(option, _number(name, value) if option.kind == NUMBER else value)
    return options, arguments


def _boolean(name: str, value: str) -> bool:
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise UsageError(f'invalid boolean value "{value}" for -{name}: parse error')


def _number(name: str, value: str) -> int:
    try:
        return int(value, 0)
    except ValueError:
        raise UsageError(f'invalid value "{value}" for flag -{name}: parse error') from None

"""Words of commands that run another one (``run``, ``do``, ``exec``), read without argparse where they are as usual.

argparse, what it imports and the declarations of forty options are a good part of what such a command costs. This reads
what :func:`casemate.cli.parser.reorder` describes, into the same values. Whatever is not in order, or is not plain, it
leaves to argparse, which has the words for that.
"""

from __future__ import annotations

from types import SimpleNamespace

TYPE_CHECKING = False  # not from typing: that is one of the modules which cost
if TYPE_CHECKING:
    from typing import Any

FLAG, VALUE, VALUES = range(3)


class Odd(Exception):
    """For argparse."""


class _Options:
    """Notes what a command declares, as :class:`casemate.cli.parser.Parser` would be told of it."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[str, int]] = {}
        self.found: dict[str, Any] = {}
        self.positionals = ("", "")

    def flag(self, *names: str, help: str) -> None:
        self._declare(names, FLAG, False)

    def value(self, *names: str, metavar: str, help: str, default: Any = None, **more: Any) -> None:
        self._declare(names, VALUE, default, **more)

    def values(self, *names: str, metavar: str, help: str, **more: Any) -> None:
        self._declare(names, VALUES, [], **more)

    def command(self, first: str, rest: str) -> None:
        self.positionals = first, rest

    def __getattr__(self, name: str) -> Any:
        raise Odd

    def _declare(self, names: tuple[str, ...], kind: int, default: Any, **more: Any) -> None:
        long = next((name for name in names if name.startswith("--")), None)
        if more or long is None:
            raise Odd
        dest = long[2:].replace("-", "_")
        for name in names:
            self.known[name] = dest, kind
        self.found[dest] = default

    def read(self, words: list[str]) -> list[str]:
        """Read the options. Gives the words of the command; raises Odd."""
        index = 0
        while index < len(words):
            word = words[index]
            index += 1
            if word == "--":
                return words[index:]
            if word == "-" or not word.startswith("-"):
                return words[index - 1 :]
            equals, value = "", ""
            if word.startswith("--"):
                word, equals, value = word.partition("=")
            dest, kind = self.known.get(word, ("", FLAG))  # several short ones in one word are odd, too
            if not dest:
                raise Odd
            if kind == FLAG:
                if equals:
                    raise Odd
                self.found[dest] = True
                continue
            if not equals:
                if index == len(words):
                    raise Odd
                value = words[index]
                index += 1
            if value == "--":
                raise Odd
            if kind == VALUE:
                self.found[dest] = value
            else:
                self.found[dest].append(value)
        raise Odd


def parse(declare: Any, words: list[str]) -> SimpleNamespace | None:
    """Read a command's words.

    Arguments:
        declare: the command's function that names its options to a parser.
        words: after the command's name.

    Returns the values by name; None where argparse has to look.
    """
    options = _Options()
    try:
        declare(options)
        rest = options.read(words)
    except Odd:
        return None
    first, others = options.positionals
    # A second "--" is argparse's affair, and so is what looks like an option and is none.
    if not first or not rest or not rest[0] or rest[0].startswith("-") or rest[1:2] == ["--"]:
        return None
    return SimpleNamespace(**options.found, **{first: rest[0], others: rest[1:]})

"""argparse with our manners: errors are :class:`UsageError`, nothing is abbreviated, help comes in one shape."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import Any, NoReturn

from casemate.errors import UsageError


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        # The width is found out here, because argparse imports shutil for it whenever an option is declared.
        super().__init__(prog, max_help_position=34, width=_columns() - 2)


def _columns() -> int:
    """Of the terminal, as :func:`shutil.get_terminal_size` has it."""
    with contextlib.suppress(ValueError):
        if (columns := int(os.environ.get("COLUMNS", "0"))) > 0:
            return columns
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    return 80


class Parser(argparse.ArgumentParser):
    """The parser of one command.

    Arguments:
        name: the command.
        usage: what follows it on the usage line.
        summary: one line for the head of its help.
    """

    def __init__(self, name: str, usage: str, summary: str) -> None:
        super().__init__(
            prog=f"casemate {name}", usage=f"casemate {name} {usage}".rstrip(), description=summary,
            allow_abbrev=False, formatter_class=_Help, add_help=False,
        )  # fmt: skip
        self.add_argument("--help", action="help", help="show this and leave")

    def error(self, message: str) -> NoReturn:
        """Raise a :class:`UsageError` for what argparse found."""
        hint = f"see: {self.prog} --help"
        if message.startswith("the following arguments are required: "):
            message = message.replace("the following arguments are required: ", "missing ")
        elif message.startswith("unrecognized arguments: "):
            words = message.removeprefix("unrecognized arguments: ").split()
            word = words[words[0] == "--" and len(words) > 1]  # reorder() puts "--" before what is no option
            message = f"unknown option {word}" if word.startswith("-") else f"unexpected argument {word!r}"
        elif message.startswith("argument "):
            message = message.removeprefix("argument ").replace(": expected one argument", " needs a value")
        raise UsageError(message, hint)

    def flag(self, *names: str, help: str) -> None:
        """An option that is there or not; ``--name=false`` is understood too, as scripts written for Docker have it."""
        self.add_argument(*names, nargs=0, action=_Flag, default=False, help=help)

    def value(self, *names: str, metavar: str, help: str, **more: Any) -> None:
        """An option with a value; the last one counts."""
        self.add_argument(*names, metavar=metavar, help=help, **more)

    def values(self, *names: str, metavar: str, help: str, **more: Any) -> None:
        """An option with a value that may be given more than once."""
        self.add_argument(*names, metavar=metavar, help=help, action="append", default=[], **more)

    def command(self, first: str, rest: str) -> None:
        """A positional, and after it the words of a command, options among them not being ours."""
        self.add_argument(first, metavar=first.upper())
        self.add_argument(rest, metavar=rest.upper(), nargs=argparse.REMAINDER, default=[])
        self.stops_at_positional = True

    stops_at_positional = False


class _Flag(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, True)


def reorder(parser: Parser, words: list[str]) -> list[str]:
    """``words`` so that argparse reads them as a person means them.

    A value that begins with a dash is joined to its option, for argparse would take it for an option
    (``--entrypoint -x``). ``--flag=true`` and ``--flag=false`` become the flag or nothing. Positionals come last, after
    ``--``; where a command follows, the first of them ends the options, and what the command is given is left alone.

    Arguments:
        parser: with every option declared.
        words: after the command's name.
    """
    options = {name: action for action in parser._actions for name in action.option_strings}
    result: list[str] = []
    positionals: list[str] = []
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if word == "--":
            positionals += words[index:]
            break
        if word == "-" or not word.startswith("-"):
            if parser.stops_at_positional:
                positionals += words[index - 1 :]
                break
            positionals.append(word)
            continue
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            action = options.get(name)
            if action is None or action.nargs != 0:
                if action is not None and not equals:
                    if index == len(words):
                        parser.error(f"{name} needs a value")
                    word = f"{name}={words[index]}"
                    index += 1
            elif equals:
                if value not in ("true", "false", "1", "0"):
                    parser.error(f"{name} takes no value but true or false")
                if value in ("false", "0"):
                    continue
                word = name
            result.append(word)
            continue
        # A cluster of short options: flags, and at most one option with a value, at its end.
        for position, letter in enumerate(word[1:], 1):
            action = options.get(f"-{letter}")
            if action is None:
                parser.error(f"unknown option -{letter}" + (f" in {word}" if len(word) > 2 else ""))
            if action.nargs == 0:
                result.append(f"-{letter}")
                continue
            value = word[position + 1 :].removeprefix("=")
            if not value and position + 1 == len(word):
                if index == len(words):
                    parser.error(f"-{letter} needs a value")
                value = words[index]
                index += 1
            result.append(f"{max(action.option_strings, key=len)}={value}")
            break
    return [*result, "--", *positionals] if positionals else result

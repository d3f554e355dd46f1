"""The minimal kernel's configuration: readable fragments, one for each purpose, merged and checked.

A fragment is text in the form of the kernel's own ``.config``: ``CONFIG_NAME=value`` and ``# CONFIG_NAME is not set``;
other lines beginning with ``#`` are remarks. All that no fragment names is off, or has the kernel's default where it is
no question of yes or no. Source: Documentation/kbuild/kconfig.rst of the kernel, ``KCONFIG_ALLCONFIG``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from casemate.errors import GuestError, UsageError

DIRECTORY = Path(__file__).parent / "kconfig"
_SET = re.compile(r'CONFIG_([A-Za-z0-9_]+)=(y|m|-?\d+|0x[0-9a-fA-F]+|"(?:[^"\\]|\\.)*")\Z')
_UNSET = re.compile(r"# CONFIG_([A-Za-z0-9_]+) is not set\Z")
OFF = "n"


@dataclass(frozen=True, slots=True)
class Fragment:
    """One fragment.

    Arguments:
        name: of its file, without the suffix.
        options: names, without ``CONFIG_``, to values as the kernel writes them; ``n`` for what is to be off.
        own: the user's: it wins against those before it.
    """

    name: str
    options: Mapping[str, str]
    own: bool = False


def parse(name: str, text: str, *, own: bool = False) -> Fragment:
    """Read a fragment.

    Raises:
        GuestError: a line is none of a fragment, or an option is there twice.
    """
    options: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if match := _SET.match(line):
            option, value = match[1], match[2]
        elif match := _UNSET.match(line):
            option, value = match[1], OFF
        elif not line or (line.startswith("#") and not line.startswith("# CONFIG_")):
            continue
        else:
            raise GuestError(
                f"kernel fragment {name}, line {number}: {line!r} is no option", "write CONFIG_NAME=value"
            )
        if option in options:
            raise GuestError(f"kernel fragment {name}, line {number}: CONFIG_{option} is there twice")
        options[option] = value
    return Fragment(name, options, own)


def load(more: Sequence[Path] = ()) -> list[Fragment]:
    """The fragments that belong to casemate, and after them the user's own, from files.

    Raises:
        GuestError: one is not as it should be. UsageError: a file cannot be read.
    """
    found = [parse(path.stem, path.read_text()) for path in sorted(DIRECTORY.glob("*.config"))]
    for path in more:
        try:
            found.append(parse(path.name, path.read_text(), own=True))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise UsageError(f"kernel fragment {path} cannot be read: {reason}") from None
    return found


def merge(fragments: Iterable[Fragment]) -> dict[str, tuple[str, str]]:
    """All options, each with its value and the name of its fragment.

    Raises:
        GuestError: two fragments of casemate's say different things.
    """
    merged: dict[str, tuple[str, str]] = {}
    for fragment in fragments:
        for option, value in fragment.options.items():
            said, by = merged.get(option, (value, ""))
            if fragment.own or not by:
                merged[option] = (value, fragment.name)
            elif said != value:
                raise GuestError(
                    f"kernel fragments {by} and {fragment.name} disagree: CONFIG_{option} is {said} in one and "
                    f"{value} in the other"
                )
    return merged


def text(merged: Mapping[str, tuple[str, str]]) -> str:
    """The merged options as the file that ``KCONFIG_ALLCONFIG`` names."""
    return "".join(
        f"# CONFIG_{option} is not set\n" if value == OFF else f"CONFIG_{option}={value}\n"
        for option, (value, _) in sorted(merged.items())
    )


def check(merged: Mapping[str, tuple[str, str]], config: str) -> None:
    """See to it that the kernel took every option.

    Arguments:
        merged: what was asked for.
        config: the ``.config`` that came of it.

    Raises:
        GuestError: options were not taken; each is named with its fragment and what became of it.
    """
    got = {match[1]: match[2] for line in config.splitlines() if (match := _SET.match(line))}
    wrong = [
        f"CONFIG_{option}={value} of {fragment} is {got.get(option, OFF)}"
        for option, (value, fragment) in sorted(merged.items())
        if got.get(option, OFF) != value
    ]
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise GuestError(
            f"the kernel did not take {'; '.join(wrong[:8])}{more}",
            "the option has another name in this kernel, or needs one that no fragment sets",
        )


def digest(fragments: Sequence[Fragment]) -> str:
    """A hash of what the fragments ask for, whatever their remarks."""
    return hashlib.sha256(text(merge(fragments)).encode()).hexdigest()

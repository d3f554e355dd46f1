"""What classes of data and expressions are made of, out of the bundle: the same as without, and not compiled again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.test_bundle import home, make, python

__all__ = ["home"]

MODULE = '''
import re
from dataclasses import dataclass, field

WORD = re.compile(r"(?P<first>[a-z]+)-(?P<second>\\d+)", re.IGNORECASE)
BYTES = re.compile(rb"^x{2,3}$")


@dataclass(frozen=True, slots=True, order=True)
class One:
    """One."""

    number: int = 1
    words: tuple[str, ...] = field(default=("a", "b"), compare=False)
'''
USE = """
import sys
from casemate.programs import begin
begin()
compiled, parsed = [], []
import re
parse = re._parser.parse
re._parser.parse = lambda *args: parsed.append(args) or parse(*args)
sys.addaudithook(lambda event, args: compiled.append(args) if event == "compile" and args[1] == "<string>" else None)
from casemate.part import data
found = data.WORD.fullmatch("AB-12")
print(found.groupdict(), data.WORD.flags, data.WORD.groups, data.WORD.pattern, bool(data.BYTES.match(b"xxx")))
one, other = data.One(), data.One(1, ("c",))
print(repr(data.One(3)), data.One(1) < data.One(2), one == other, hash(one) == hash(other))
print(len(compiled), len(parsed))
"""


@pytest.fixture
def said(home: Path) -> list[str]:
    """What is said without a bundle."""
    (home / "casemate" / "part" / "data.py").write_text(MODULE)
    lines = python(home, "-c", USE).splitlines()
    compiled, parsed = map(int, lines[-1].split())
    assert compiled > 3 and parsed >= 2
    return lines[:-1]


def test_nothing_is_compiled_that_is_there(home: Path, said: list[str]) -> None:
    make(home)
    assert python(home, "-c", USE).splitlines() == [*said, "0 0"]


def test_another_text_is_compiled(home: Path, said: list[str]) -> None:
    make(home)
    changed = MODULE.replace("second", "other").replace("number: int = 1", "number: int = 1\n    third: int = 3")
    (home / "casemate" / "part" / "data.py").write_text(changed)
    lines = python(home, "-c", USE).splitlines()
    assert "'other': '12'" in lines[0] and "third=3" in lines[1]
    compiled, parsed = map(int, lines[-1].split())
    assert compiled > 1 and parsed == 1, "the other expression is the same"

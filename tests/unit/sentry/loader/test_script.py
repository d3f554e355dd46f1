"""The first lines of scripts, execve(2)."""

from __future__ import annotations

import pytest

from casemate.sentry.errno import SysError
from casemate.sentry.loader.script import interpreter


@pytest.mark.parametrize(
    ("head", "name", "argument"),
    [
        (b"#!/bin/sh\nrest", b"/bin/sh", None),
        (b"#! /bin/sh\n", b"/bin/sh", None),
        (b"#!/bin/sh -e\n", b"/bin/sh", b"-e"),
        (b"#!\t/bin/sh \t -e  two words \t\n", b"/bin/sh", b"-e  two words"),
        (b"#!/bin/sh  \n", b"/bin/sh", None),
        (b"#!/bin/sh", b"/bin/sh", None),
        (b"#!/bin/sh -x", b"/bin/sh", b"-x"),
        (b"#!relative\n", b"relative", None),
        (b"#!/bin/sh\r\n", b"/bin/sh\r", None),
        # The argument may be cut by the end of what is looked at, the name may not.
        (b"#!/bin/sh " + b"a" * 300, b"/bin/sh", b"a" * 246),
    ],
)
def test_lines(head: bytes, name: bytes, argument: bytes | None) -> None:
    assert interpreter(head[:256]) == (name, argument)


@pytest.mark.parametrize("head", [b"#!", b"#!\n/bin/sh", b"#!   \n", b"#!" + b"/a" * 200])
def test_no_interpreter(head: bytes) -> None:
    with pytest.raises(SysError, match="ENOEXEC"):
        interpreter(head[:256])

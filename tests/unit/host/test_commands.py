"""Programs of the host: what they said, and that nothing is left of one that cannot be watched."""

from __future__ import annotations

import errno
import os

import pytest

from casemate.host import commands


def test_reason_is_the_first_line_that_says_something() -> None:
    assert commands.Result(1, "", "\n  bad argument\nmore\n").reason == "bad argument"
    assert commands.Result(-9, "", "").reason == "signal 9, and no reason given"
    assert commands.Result(2, "", "\n").reason == "status 2, and no reason given"


def test_a_child_that_cannot_be_watched_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[int] = []

    def refuse(pid: int) -> int:
        children.append(pid)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(OSError, match="Too many"):
        commands.run(["sleep", "1000"], package="coreutils")
    with pytest.raises(ChildProcessError):
        os.waitpid(children[0], 0)  # reaped already

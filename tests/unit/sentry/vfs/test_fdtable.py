"""Descriptor tables: the lowest free number, references, sharing, what execve(2) closes."""

from __future__ import annotations

import resource
from errno import EBADF, EINVAL, EMFILE
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.sentry.errno import SysError
from casemate.sentry.limits import Limits
from casemate.sentry.vfs.fdtable import FdTable
from casemate.sentry.vfs.file import File

NOBODY: Any = None


class Counted(File):
    """A file that notes its end."""

    def __init__(self) -> None:
        super().__init__(0)
        self.released = 0

    def release(self) -> None:
        self.released += 1


def table(limit: int = 64) -> FdTable:
    limits = Limits()
    limits.set(resource.RLIMIT_NOFILE, limit, limit)
    return FdTable(limits)


def error_of(call: Any, *args: Any) -> int:
    with pytest.raises(SysError) as caught:
        call(*args)
    return caught.value.errno


@given(st.lists(st.one_of(st.just(None), st.integers(0, 20)), max_size=60), st.integers(0, 5))
def test_lowest_free_number(steps: list[int | None], lowest: int) -> None:
    files = table()
    model: set[int] = set()
    for step in steps:
        if step is None:
            wanted = next(fd for fd in range(lowest, 100) if fd not in model)
            assert files.install(File(0), lowest=lowest) == wanted
            model.add(wanted)
        elif step in model:
            files.close(NOBODY, step)
            model.discard(step)
        else:
            assert error_of(files.close, NOBODY, step) == EBADF
    assert set(files) == model
    free = next(fd for fd in range(100) if fd not in model)
    assert files.install(File(0)) == free


def test_limit_leaves_the_reference_to_the_caller() -> None:
    files = table(2)
    files.install(Counted())
    files.install(Counted())
    file = Counted()
    assert error_of(files.install, file) == EMFILE
    assert file.refs == 1
    assert error_of(files.reserve) == EMFILE
    assert error_of(files.dup, 0) == EMFILE
    assert files.get(0).refs == 1
    assert error_of(files.dup, 0, False, 2) == EINVAL
    assert error_of(files.replace, NOBODY, 2, file) == EBADF


def test_a_limit_that_was_lowered_bars_numbers_not_files() -> None:
    files = table(64)
    for _ in range(32):
        files.install(Counted())
    files.close(NOBODY, 3)
    files.close(NOBODY, 5)
    files.limits.set(resource.RLIMIT_NOFILE, 9, 64)
    files.reserve(2)
    assert error_of(files.reserve, 3) == EMFILE
    assert files.install(Counted()) == 3
    files.reserve()
    assert files.install(Counted()) == 5
    assert error_of(files.reserve) == error_of(files.install, Counted()) == EMFILE


def test_references() -> None:
    files = table()
    file = Counted()
    assert files.install(file, cloexec=True) == 0
    assert files.dup(0) == 1
    copy = files.fork(Limits())
    assert file.refs == 4
    copy.close_on_exec(NOBODY)
    assert list(copy) == [1]
    assert not copy.cloexec(1)
    files.close(NOBODY, 0)
    files.close(NOBODY, 1)
    assert not file.released
    copy.incref().decref(NOBODY)
    assert not file.released
    copy.decref(NOBODY)
    assert file.refs == 0 and file.released


def test_replaced_file_is_closed() -> None:
    files = table()
    old, new = Counted(), Counted()
    files.install(old, cloexec=True)
    files.replace(NOBODY, 0, new)
    assert (old.released, files.get(0), files.cloexec(0)) == (1, new, False)
    files.replace(NOBODY, 7, new.incref(), cloexec=True)
    assert files.cloexec(7)
    assert files.install(Counted()) == 1


@pytest.mark.parametrize("fd", [-1, 1, 1 << 31, (1 << 32) - 1, (1 << 64) - 1])
def test_no_descriptor(fd: int) -> None:
    files = table()
    files.install(File(0))
    assert error_of(files.get, fd) == EBADF
    assert files.get(1 << 32) is files.get(0), "only the low half of the register counts"

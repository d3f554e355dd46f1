"""What is copied of an original's window."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from casemate.config import TEMPLATE_MIB
from casemate.twins import original
from casemate.vm.template import WINDOW_MIB, memory

PAGE = 4096
SIZE = WINDOW_MIB << 20
START = (TEMPLATE_MIB << 20) - SIZE
LINE = "[    0.1] software IO TLB: mapped [mem 0x{:016x}-0x{:016x}] (8MB)\n"

pages = st.integers(0, SIZE // PAGE)
contents = st.dictionaries(st.integers(0, SIZE // PAGE - 1), st.sampled_from((b"\0", b"x", b"y")), max_size=20)


@given(pages, pages, st.text(max_size=200), st.text(max_size=200))
def test_bounce_buffers_are_where_the_kernel_says(first: int, second: int, before: str, after: str) -> None:
    begin, end = sorted((first * PAGE, second * PAGE))
    log = f"{before}\n{LINE.format(START + begin, START + end)}{after}"
    assert original._bounce_buffers(log) == (begin, end)


@given(st.integers(0, 1 << 64), st.integers(0, 1 << 64))
def test_whatever_it_says_they_are_pages_of_the_window(first: int, second: int) -> None:
    log = f"software IO TLB: mapped [mem 0x{first:x}-0x{second:x}]"
    begin, end = original._bounce_buffers(log)
    assert 0 <= begin <= end <= SIZE
    assert begin % PAGE == end % PAGE == 0
    if (begin, end) != (0, 0):
        assert (begin, end) == (first - START, second - START)


@given(st.text(max_size=2000))
def test_a_log_without_them_leaves_nothing_out(log: str) -> None:
    assert original._bounce_buffers(log) == (0, 0)


def test_the_wrong_way_round_or_beside_the_window_is_nowhere() -> None:
    for begin, end in ((PAGE, 0), (0, SIZE + PAGE), (-PAGE, PAGE), (1, PAGE), (0, PAGE + 1)):
        assert original._bounce_buffers(LINE.format(START + begin, START + end)) == (0, 0)


@given(pages, pages, contents)
def test_a_copy_has_all_but_what_is_left_out(first: int, second: int, held: dict[int, bytes]) -> None:
    begin, end = sorted((first * PAGE, second * PAGE))
    source = memory.create("test", SIZE)
    copy = -1
    try:
        for number, byte in held.items():
            os.pwrite(source, byte * PAGE, number * PAGE)
        copy = original.Window(source, (begin, end)).copy()
        assert os.fstat(copy).st_size == SIZE
        assert os.fstat(copy).st_ino != os.fstat(source).st_ino
        for number, byte in held.items():
            expected = bytes(PAGE) if begin <= number * PAGE < end else byte * PAGE
            assert os.pread(copy, PAGE, number * PAGE) == expected
        assert os.fstat(copy).st_blocks * 512 <= len(held) * PAGE
    finally:
        for fd in (source, copy):
            if fd >= 0:
                os.close(fd)


def test_nothing_is_left_open_when_there_is_no_room() -> None:
    before = len(os.listdir("/proc/self/fd"))
    try:
        original.Window(-1, (0, 0)).copy()
    except OSError:
        pass
    else:
        raise AssertionError("there is no such file")
    assert len(os.listdir("/proc/self/fd")) == before

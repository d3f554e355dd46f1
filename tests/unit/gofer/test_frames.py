"""The frames between sentry and gofer: what one side writes the other reads, and nothing else is taken."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.gofer import frames
from casemate.gofer.frames import FrameError

LIMITS = {"I": (0, 2**32 - 1), "Q": (0, 2**64 - 1), "q": (-(2**63), 2**63 - 1)}


@st.composite
def requests(draw: st.DrawFn) -> tuple[int, int, tuple[int, ...], list[bytes]]:
    """Any request."""
    kind = draw(st.sampled_from(sorted(frames.REQUESTS)))
    layout, count = frames.REQUESTS[kind]
    numbers = tuple(draw(st.integers(*LIMITS[letter])) for letter in layout)
    if count < 0:
        count = draw(st.integers(1, frames.MAX_NAMES))
    strings = draw(st.lists(st.binary(max_size=300), min_size=count, max_size=count))
    return kind, draw(st.integers(0, 0xFFFF)), numbers, strings


@given(requests())
def test_request_survives_the_wire(request: tuple[int, int, tuple[int, ...], list[bytes]]) -> None:
    kind, tag, numbers, strings = request
    assert frames.parse_request(frames.request(kind, tag, numbers, tuple(strings))) == request


@given(requests(), st.data())
def test_changed_request_is_another_or_refused(
    request: tuple[int, int, tuple[int, ...], list[bytes]], data: st.DataObject
) -> None:
    kind, tag, numbers, strings = request
    frame = bytearray(frames.request(kind, tag, numbers, tuple(strings)))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] ^= data.draw(st.integers(1, 255))
    try:
        parsed = frames.parse_request(bytes(frame))
    except FrameError:
        return
    assert parsed != request
    assert frames.request(parsed[0], parsed[1], parsed[2], tuple(parsed[3])) == bytes(frame)


@given(requests(), st.integers(1, 8))
def test_request_that_is_cut_short_or_longer_is_refused(
    request: tuple[int, int, tuple[int, ...], list[bytes]], by: int
) -> None:
    if frames.REQUESTS[request[0]][1] < 0:
        return  # with as many names as it likes, a part may be a whole
    frame = frames.request(request[0], request[1], request[2], tuple(request[3]))
    for other in (frame[:-by], frame + bytes(by)):
        with pytest.raises(FrameError):
            frames.parse_request(other)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for read in (
        frames.parse_request,
        lambda frame: frames.parse_reply(frame, frames.TWALK, 7),
        lambda frame: frames.parse_walk(frame, 3),
        frames.parse_entries,
    ):
        try:
            read(data)
        except FrameError:
            continue


def test_too_long_request_is_not_made() -> None:
    with pytest.raises(FrameError):
        frames.request(frames.TSETXATTR, 1, (1, 0), (b"user.a", bytes(frames.MAX_FRAME)))
    with pytest.raises(FrameError):
        frames.parse_request(frames.STRUCTS[frames.TGETATTR].pack(frames.TGETATTR, 1, 1) + bytes(frames.MAX_FRAME))


def test_reply_has_to_answer_the_request() -> None:
    reply = frames.reply(frames.TREADLINK, 0x1234, b"text")
    assert frames.parse_reply(reply, frames.TREADLINK, 0x1234) == b"text"
    for kind, tag in ((frames.TREADLINK, 0x1235), (frames.TREADLINK, 0x1134), (frames.TGETATTR, 0x1234)):
        with pytest.raises(FrameError):
            frames.parse_reply(reply, kind, tag)


def test_error_is_an_errno() -> None:
    assert frames.parse_reply(frames.error(9, errno.ENOENT), frames.TWALK, 9) == errno.ENOENT
    for number, tag in ((0, 9), (5000, 9), (errno.ENOENT, 8)):
        with pytest.raises(FrameError):
            frames.parse_reply(frames.error(tag, number), frames.TWALK, 9)


def test_walk_tells_no_more_than_was_asked() -> None:
    one = frames.ATTRIBUTES.pack(*range(13))
    assert frames.parse_walk(frames.LENGTH.pack(0) + one, 1) == (0, [tuple(range(13))])
    assert frames.parse_walk(frames.LENGTH.pack(2) + one, 2) == (2, [tuple(range(13))])
    for number, body in ((0, one * 3), (0, one), (2, b""), (4096, one), (2, one[:-1])):
        with pytest.raises(FrameError):
            frames.parse_walk(frames.LENGTH.pack(number) + body, 2)


def test_entries_of_a_directory() -> None:
    def entry(name: bytes, length: int, kind: int = 8) -> bytes:
        return (struct.pack("<QqHB", 5, 1, length, kind) + name).ljust(length, b"\0")

    last, more = frames.LENGTH.pack(1), frames.LENGTH.pack(0)
    listing = entry(b".", 24, 4) + entry(b"file", 24) + entry(b"..", 24, 4) + entry(b"long" * 10, 64, 10)
    for flag in (last, more):
        assert frames.parse_entries(flag + listing) == (flag is last, [(b"file", 5, 8), (b"long" * 10, 5, 10)])
    assert frames.parse_entries(last) == (True, [])
    with pytest.raises(FrameError):
        frames.parse_entries(more)  # else one would ask for ever
    good = entry(b"x" * 5, 32)
    for bad in (good[:-1], good + b"\0", struct.pack("<QqHB", 1, 1, 19, 8), entry(b"", 0)):
        with pytest.raises(FrameError):
            frames.parse_entries(last + bad)
    with pytest.raises(FrameError):
        frames.parse_entries(last + struct.pack("<QqHB", 1, 1, 24, 8) + b"abcde")


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0", b"n" * 256])
def test_what_is_no_name(name: bytes) -> None:
    assert not frames.good_name(name)
    assert frames.good_name(b"...") and frames.good_name(b"n" * 255) and frames.good_name(b"\xff\n ")

"""The line discipline, held against the host's own: the same input and settings must give the same echo and reads."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import termios as host
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.sentry.errno import SysError
from casemate.sentry.vfs import termios as t
from casemate.sentry.vfs.file import POLLHUP, POLLIN, POLLOUT
from casemate.sentry.vfs.tty import LINE_LIMIT, Terminal
from casemate.sentry.vfs.ttyfile import MasterFile, SlaveFile
from casemate.sentry.wait import Block

Flags = tuple[int, int, int]
"""Input, output and local modes to toggle from those of a new terminal."""


def fake_task() -> Any:
    """A task whose session has another terminal, so that job control stays out of the way."""
    session = SimpleNamespace(sid=1, terminal=object(), groups={}, foreground=None)
    group = SimpleNamespace(pid=1, process_group=SimpleNamespace(session=session))
    return SimpleNamespace(group=group, creds=SimpleNamespace(capable=lambda cap: True), blocked={}, timed_out=False)


TASK = fake_task()


def pair(flags: int = os.O_NONBLOCK) -> tuple[Terminal, MasterFile, SlaveFile]:
    """A terminal with both sides open."""
    terminal = Terminal(0, os.makedev(136, 0))
    terminal.locked = False
    master = MasterFile(os.O_RDWR | flags, None, terminal)
    return terminal, master, SlaveFile.open(TASK, terminal, None, os.O_RDWR | os.O_NOCTTY | flags)


def ours(flags: Flags, cc: dict[int, int], chunks: list[bytes], written: bytes) -> tuple[bytes, list[bytes]]:
    """What the master reads, and what the slave reads, here."""
    terminal, master, slave = pair()
    changed = terminal.settings.copy()
    changed.iflag ^= flags[0]
    changed.oflag ^= flags[1]
    changed.lflag ^= flags[2]
    values = bytearray(changed.cc)
    for index, value in cc.items():
        values[index] = value
    changed.cc = bytes(values)
    terminal.configure(changed)
    for chunk in chunks:
        master.write(TASK, chunk)
    if written and not terminal.stopped:
        slave.write(TASK, written)
    echo = b"" if terminal.stopped else bytes(terminal.output)
    reads: list[bytes] = []
    while len(reads) < 50:
        try:
            data = slave.read(TASK, 4096)
        except SysError as error:
            assert error.errno == errno.EAGAIN
            break
        reads.append(data)
        if not data and not terminal.canonical:
            break
    return echo, reads


def theirs(
    flags: Flags, cc: dict[int, int], chunks: list[bytes], written: bytes, wanted: tuple[bytes, list[bytes]]
) -> tuple[bytes, list[bytes]]:
    """The same of the host's, where a worker of the kernel's carries bytes: what is ``wanted`` is waited for."""
    master, slave = pty.openpty()
    try:
        os.set_blocking(master, False)
        os.set_blocking(slave, False)
        attributes = host.tcgetattr(slave)
        for index in (0, 1, 3):
            attributes[index] ^= flags[(0, 1, 0, 2)[index]]
        chars = attributes[6]
        for index, value in cc.items():
            chars[index] = value if index in (host.VMIN, host.VTIME) and flags[2] & t.ICANON else bytes((value,))
        host.tcsetattr(slave, host.TCSANOW, attributes)
        for chunk in chunks:
            os.write(master, chunk)
        limit = time.monotonic() + 1
        if written:
            time.sleep(0.01)
        if written:
            try:
                os.write(slave, written)
            except BlockingIOError:
                written = b""
        echo = b""
        reads: list[bytes] = []
        raw = bool(flags[2] & t.ICANON)
        while time.monotonic() < limit:
            time.sleep(0.002)
            with contextlib.suppress(BlockingIOError):
                echo += os.read(master, 65536)
            while len(reads) < 50:
                try:
                    data = os.read(slave, 4096)
                except BlockingIOError:
                    break
                if raw and reads:
                    reads[0] += data
                else:
                    reads.append(data)
                if not data and raw:
                    break
            if len(echo) >= len(wanted[0]) and len(b"".join(reads)) >= len(b"".join(wanted[1])):
                break
        return echo, reads
    finally:
        os.close(master)
        os.close(slave)


def same(chunks: list[bytes], flags: Flags = (0, 0, 0), cc: dict[int, int] | None = None, written: bytes = b"") -> None:
    """Both do the same."""
    wanted = ours(flags, cc or {}, chunks, written)
    assert wanted == theirs(flags, cc or {}, chunks, written, wanted)


CASES: list[tuple[list[bytes], Flags]] = [
    ([b"hello\n"], (0, 0, 0)),
    ([b"hel\x7flo\n"], (0, 0, 0)),
    ([b"hello world\x17there\n"], (0, 0, 0)),
    ([b"a.b_c  \x17x\n"], (0, 0, 0)),
    ([b"never\x15mind\n"], (0, 0, 0)),
    ([b"one\rtwo\n"], (0, 0, 0)),
    ([b"one\rtwo\n"], (t.ICRNL, 0, 0)),
    ([b"one\rtwo\n"], (t.IGNCR, 0, 0)),
    ([b"one\rtwo\n\n"], (t.ICRNL | t.INLCR, 0, 0)),
    ([b"par\x04tial\x04\x04"], (0, 0, 0)),
    ([b"x\x16\x03y\x16\x7fz\n"], (0, 0, 0)),
    ([b"re\x12print\n"], (0, 0, 0)),
    ([b"tab\tx\x7f\x7fy\n"], (0, 0, 0)),
    ([b"\x01\x02\x7f\x7f\n"], (0, 0, 0)),
    ([b"caf\xc3\xa9\x7f\n"], (t.IUTF8, 0, 0)),
    ([b"caf\xc3\xa9\x7f\n"], (0, 0, 0)),
    ([b"lost\x03kept\n"], (0, 0, 0)),
    ([b"kept\x03too\n"], (0, 0, t.NOFLSH)),
    ([b"quit\x1c susp\x1a\n"], (0, 0, 0)),
    ([b"plain\x03\x1a\n"], (0, 0, t.ISIG)),
    ([b"silent\n"], (0, 0, t.ECHO)),
    ([b"silent\n"], (0, 0, t.ECHO | t.ECHONL)),
    ([b"no\x01caret\n"], (0, 0, t.ECHOCTL)),
    ([b"hard\x7f\x7f\x15copy\n"], (0, 0, t.ECHOE)),
    ([b"kill\x15it\n"], (0, 0, t.ECHOKE)),
    ([b"kill\x15it\n"], (0, 0, t.ECHOKE | t.ECHOK)),
    ([b"raw\x7f\x04\n\r"], (0, 0, t.ICANON)),
    ([b"raw\x03\x7f\x04\n\r"], (t.ICRNL | t.IXON, t.OPOST, t.ICANON | t.ISIG | t.ECHO | t.IEXTEN)),
    ([b"\xffmark\n"], (t.PARMRK, 0, t.ICANON)),
    ([b"\xe1strip\n"], (t.ISTRIP, 0, 0)),
    ([b"LOWER\n"], (t.IUCLC, 0, 0)),
    ([b"stop\x13ped\n"], (0, 0, 0)),
    ([b"stop\x13ped\x11on\n"], (0, 0, 0)),
    ([b"any\x13x\n"], (t.IXANY, 0, 0)),
    ([b"no flow\x13\x11\n"], (t.IXON, 0, 0)),
    ([b"plain\n"], (0, t.OPOST, 0)),
    ([b"\t\r\x15\t\x7f"], (t.ICRNL, t.OPOST, 0)),
    ([b"plain\n"], (0, t.ONLCR, 0)),
    ([b"a\tb\n"], (0, t.XTABS, 0)),
    ([b"upper\n"], (0, t.OLCUC, 0)),
    ([b"x\x16\ry\n"], (0, t.OCRNL, 0)),
    ([b"no extended\x16\x03 \x17\n"], (0, 0, t.IEXTEN)),
]


@pytest.mark.parametrize(("chunks", "flags"), CASES, ids=[str(index) for index in range(len(CASES))])
def test_input_is_handled_as_the_host_does(chunks: list[bytes], flags: Flags) -> None:
    same(chunks, flags)


@pytest.mark.parametrize(
    "flags", [0, t.OPOST, t.ONLCR, t.OCRNL, t.ONOCR, t.ONLRET, t.XTABS, t.OLCUC, t.OCRNL | t.ONLRET]
)
def test_output_is_processed_as_the_host_does(flags: int) -> None:
    text = b"\rone\ttwo\n\r\nthree\b\b\tfour\r\rfive\n"
    same([], (0, flags, 0), written=text)


def test_further_ends_of_line() -> None:
    same([b"one;two|three\n"], cc={t.VEOL: ord(";"), t.VEOL2: ord("|")})


def test_disabled_characters_are_ordinary() -> None:
    same([b"a\0b\n"], cc={t.VINTR: 0, t.VERASE: 0, t.VEOF: 0})


def test_a_line_that_is_too_long_is_cut() -> None:
    terminal, master, slave = pair()
    master.write(TASK, b"x" * (LINE_LIMIT + 100) + b"\n")
    assert slave.read(TASK, 8192) == b"x" * LINE_LIMIT + b"\n"


@settings(max_examples=100, deadline=None)
@given(
    data=st.lists(st.sampled_from(list(b"ab \t\n\r\x7f\x15\x17\x16\x04_\xc3\xa9;A")), max_size=20).map(bytes),
    iflag=st.lists(st.sampled_from([t.ICRNL, t.INLCR, t.IGNCR, t.ISTRIP, t.IUTF8]), max_size=2),
    oflag=st.lists(st.sampled_from([t.OPOST, t.ONLCR, t.OLCUC]), max_size=2),
    lflag=st.lists(st.sampled_from([t.ECHO, t.ECHOE, t.ECHOK, t.ECHOKE, t.ECHONL, t.ECHOCTL, t.NOFLSH]), max_size=3),
)
def test_random_typing_is_handled_as_the_host_does(
    data: bytes, iflag: list[int], oflag: list[int], lflag: list[int]
) -> None:
    same([data], (sum(set(iflag)), sum(set(oflag)), sum(set(lflag))))


# What both sides see of each other.


def test_min_and_time() -> None:
    terminal, master, slave = pair(0)
    raw = terminal.settings.copy()
    raw.lflag &= ~(t.ICANON | t.ECHO)
    values = bytearray(raw.cc)
    values[t.VMIN], values[t.VTIME] = 3, 0
    raw.cc = bytes(values)
    terminal.configure(raw)
    master.write(TASK, b"ab")
    assert not slave.poll(TASK) & POLLIN
    with pytest.raises(Block):
        slave.read(TASK, 10)
    assert slave.read(TASK, 2) == b"ab"  # no more was asked for
    master.write(TASK, b"abcd")
    assert slave.poll(TASK) & POLLIN
    assert slave.read(TASK, 10) == b"abcd"
    values[t.VMIN] = 0
    raw = raw.copy()
    raw.cc = bytes(values)
    terminal.configure(raw)
    assert slave.read(TASK, 10) == b""


def test_time_between_bytes() -> None:
    terminal, master, slave = pair(0)
    raw = terminal.settings.copy()
    raw.lflag &= ~(t.ICANON | t.ECHO)
    values = bytearray(raw.cc)
    values[t.VMIN], values[t.VTIME] = 5, 2
    raw.cc = bytes(values)
    terminal.configure(raw)
    task = fake_task()
    task.kernel = SimpleNamespace(clock=SimpleNamespace(monotonic=lambda: 1_000))
    with pytest.raises(Block) as waiting:
        slave.read(task, 10)
    assert waiting.value.deadline is None  # the timer begins with the first byte
    master.write(TASK, b"ab")
    with pytest.raises(Block) as waiting:
        slave.read(task, 10)
    assert waiting.value.deadline == 200_001_000
    task.timed_out = True
    assert slave.read(task, 10) == b"ab"


def test_a_closed_slave_is_the_end_for_the_master_until_it_is_opened_again() -> None:
    terminal, master, slave = pair()
    slave.write(TASK, b"last\n")
    slave.release()
    assert master.poll(TASK) & POLLHUP
    assert master.read(TASK, 100) == b"last\r\n"
    with pytest.raises(SysError) as failed:
        master.read(TASK, 100)
    assert failed.value.errno == errno.EIO
    SlaveFile.open(TASK, terminal, None, os.O_RDWR | os.O_NOCTTY)
    assert not master.poll(TASK) & POLLHUP
    with pytest.raises(SysError) as failed:
        master.read(TASK, 100)
    assert failed.value.errno == errno.EAGAIN


def test_a_closed_master_hangs_up() -> None:
    terminal, master, slave = pair()
    master.write(TASK, b"unread\n")
    master.release()
    assert slave.poll(TASK) & POLLHUP
    assert slave.read(TASK, 10) == b""
    with pytest.raises(SysError) as failed:
        slave.write(TASK, b"x")
    assert failed.value.errno == errno.EIO
    with pytest.raises(SysError) as failed:
        SlaveFile.open(TASK, terminal, None, os.O_RDWR)
    assert failed.value.errno == errno.EIO


def test_a_locked_slave_cannot_be_opened() -> None:
    terminal = Terminal(0, 0)
    with pytest.raises(SysError) as failed:
        SlaveFile.open(TASK, terminal, None, os.O_RDWR)
    assert failed.value.errno == errno.EIO


def test_packet_mode_tells_of_flushes_and_flow() -> None:
    terminal, master, slave = pair()
    terminal.packet = True
    slave.write(TASK, b"data")
    assert master.read(TASK, 100) == b"\0data"
    terminal.flush_input()
    assert master.read(TASK, 100) == bytes((t.TIOCPKT_FLUSHREAD,))
    terminal.stop()
    assert master.read(TASK, 100) == bytes((t.TIOCPKT_STOP,))
    terminal.start()
    assert master.read(TASK, 100) == bytes((t.TIOCPKT_START,))
    with pytest.raises(SysError):
        master.read(TASK, 100)


def test_output_that_nobody_reads_makes_the_writer_wait() -> None:
    terminal, master, slave = pair()
    total = 0
    for _ in range(100):
        try:
            total += slave.write(TASK, b"x" * 4096)
        except SysError as error:
            assert error.errno == errno.EAGAIN
            break
    else:
        pytest.fail("it never waits")
    assert not slave.poll(TASK) & POLLOUT
    assert len(master.read(TASK, 1 << 20)) == total
    assert slave.poll(TASK) & POLLOUT


def test_input_that_nobody_reads_makes_the_master_wait() -> None:
    terminal, master, slave = pair()
    raw = terminal.settings.copy()
    raw.lflag &= ~(t.ICANON | t.ECHO)
    terminal.configure(raw)
    while True:
        try:
            master.write(TASK, b"y" * 4096)
        except SysError as error:
            assert error.errno == errno.EAGAIN
            break
    assert not master.poll(TASK) & POLLOUT
    slave.read(TASK, 4096)
    assert master.poll(TASK) & POLLOUT


def test_empty_lines_are_bounded_too() -> None:
    terminal, master, slave = pair()
    total = 0
    with pytest.raises(SysError) as failed:
        for _ in range(100):
            total += master.write(TASK, b"\x04" * 4096)
    assert failed.value.errno == errno.EAGAIN
    assert len(terminal.lines) == total
    assert slave.read(TASK, 10) == b""
    assert master.write(TASK, b"\x04" * 10) == 1
    terminal.flush_input()
    assert terminal.available == 0 and terminal.queued == 0


def test_lines_are_counted_as_they_are_read() -> None:
    terminal, master, slave = pair()
    master.write(TASK, b"one\ntwo\n")
    assert terminal.available == 8
    assert slave.read(TASK, 2) == b"on"
    assert terminal.available == 6
    assert slave.read(TASK, 100) == b"e\n"
    assert slave.read(TASK, 100) == b"two\n"
    assert terminal.available == 0 and terminal.queued == 0


def test_leaving_canonical_mode_gives_what_was_typed() -> None:
    terminal, master, slave = pair()
    master.write(TASK, b"half")
    with pytest.raises(SysError):
        slave.read(TASK, 10)
    raw = terminal.settings.copy()
    raw.lflag &= ~t.ICANON
    terminal.configure(raw)
    assert slave.read(TASK, 10) == b"half"

"""Host descriptors as files: readiness, waiting, and that the host's description keeps its flags."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from errno import EAGAIN, ENOTTY, ENXIO, ESPIPE
from types import SimpleNamespace
from typing import Any

import pytest

from casemate.sentry.errno import SysError
from casemate.sentry.vfs.file import POLLHUP, POLLIN, POLLOUT
from casemate.sentry.vfs.hostfile import HostFile
from casemate.sentry.vfs.inode import Attributes
from casemate.sentry.vfs.standard import give, standard_files
from casemate.sentry.wait import Block


class FakePlatform:
    """Notes who watches what."""

    def __init__(self) -> None:
        self.watched: dict[int, int] = {}

    def watch(self, fd: int, mask: int, watcher: Any) -> None:
        self.watched[fd] = mask


class Woken:
    """A waiter that counts."""

    def __init__(self) -> None:
        self.masks: list[int] = []

    def wake(self, mask: int) -> None:
        self.masks.append(mask)


@pytest.fixture
def kernel() -> Any:
    return SimpleNamespace(platform=FakePlatform(), subsystems={})


TASK: Any = None


def test_an_empty_pipe_blocks_and_does_not_become_nonblocking_for_others(kernel: Any) -> None:
    reader, writer = os.pipe()
    shared = os.dup(reader)
    file = HostFile(reader, os.O_RDONLY, kernel)
    with pytest.raises(Block) as waiting:
        file.read(TASK, 10)
    assert waiting.value.queues == (file.queue,)
    assert not fcntl.fcntl(shared, fcntl.F_GETFL) & os.O_NONBLOCK
    os.write(writer, b"data")
    assert file.read(TASK, 10) == b"data"
    os.close(writer)
    assert file.read(TASK, 10) == b""
    assert file.poll(TASK) & POLLHUP
    file.release()
    os.close(shared)


def test_nonblocking_is_the_applications_flag(kernel: Any) -> None:
    reader, writer = os.pipe()
    file = HostFile(reader, os.O_RDONLY | os.O_NONBLOCK, kernel)
    with pytest.raises(SysError) as failed:
        file.read(TASK, 1)
    assert failed.value.errno == EAGAIN
    file.release()
    os.close(writer)


def test_a_full_pipe_takes_what_fits_then_blocks(kernel: Any) -> None:
    reader, writer = os.pipe()
    file = HostFile(writer, os.O_WRONLY, kernel)
    fits = fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ)
    assert file.write(TASK, bytes(fits + 1000)) == fits
    assert not file.poll(TASK) & POLLOUT
    with pytest.raises(Block):
        file.write(TASK, b"x")
    os.read(reader, fits)
    assert file.poll(TASK) & POLLOUT
    file.release()
    os.close(reader)


def test_the_host_is_asked_once_for_each_event_and_only_while_somebody_waits(kernel: Any) -> None:
    reader, writer = os.pipe()
    file = HostFile(reader, os.O_RDONLY, kernel)
    watched = kernel.platform.watched
    assert not watched
    waiter = Woken()
    file.queue.add(waiter)
    assert watched[file.fd] & POLLIN
    os.write(writer, b"x")
    file.ready(POLLIN)
    assert waiter.masks[0] & POLLIN
    assert not watched[file.fd] & POLLIN  # the byte is still there: asking on would spin
    assert file.poll(TASK) & POLLIN
    assert not watched[file.fd] & POLLIN
    file.read(TASK, 1)
    assert watched[file.fd] & POLLIN  # edge-triggered waiters learn of the next byte
    file.queue.remove(waiter)
    assert watched[file.fd] == 0
    file.ready(POLLIN)  # comes too late
    assert len(waiter.masks) == 1
    file.release()
    os.close(writer)


def test_a_hang_up_ends_the_watching(kernel: Any) -> None:
    reader, writer = os.pipe()
    file = HostFile(reader, os.O_RDONLY, kernel)
    waiter = Woken()
    file.queue.add(waiter)
    os.close(writer)
    file.ready(POLLHUP)
    assert kernel.platform.watched[file.fd] == 0
    assert waiter.masks == [POLLHUP]
    file.release()


def test_a_regular_file_has_an_offset_and_can_be_mapped(kernel: Any, tmp_path: Any) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    file = HostFile(os.open(path, os.O_RDWR), os.O_RDWR, kernel)
    assert file.read(TASK, 3) == b"012"
    assert file.seek(TASK, 0, os.SEEK_CUR) == 3
    assert file.pread(TASK, 2, 8) == b"89"
    assert file.pwrite(TASK, b"x", 0) == 1
    assert file.host_fd(True, True) == file.fd
    file.truncate(TASK, 4)
    assert path.read_bytes() == b"x123"
    assert file.inode is not None and file.inode.stat().size == 4
    file.release()


def test_a_socket_is_read_without_waiting(kernel: Any) -> None:
    ours, theirs = socket.socketpair()
    file = HostFile(ours.detach(), os.O_RDWR, kernel)
    with pytest.raises(Block):
        file.read(TASK, 1)
    theirs.send(b"hello")
    assert file.read(TASK, 10) == b"hello"
    assert file.write(TASK, b"back") == 4
    assert theirs.recv(10) == b"back"
    with pytest.raises(SysError) as failed:
        file.pread(TASK, 1, 0)
    assert failed.value.errno == ESPIPE
    fd = file.fd
    file.release()
    with pytest.raises(OSError):
        os.fstat(fd)
    theirs.close()


def test_opening_it_again_shares_it(kernel: Any) -> None:
    reader, writer = os.pipe()
    file = HostFile(writer, os.O_WRONLY, kernel)
    assert file.inode is not None
    again = file.inode.open(TASK, os.O_WRONLY)
    again.write(TASK, b"x")
    file.write(TASK, b"y")
    assert os.read(reader, 10) == b"xy"
    file.release()
    again.write(TASK, b"z")
    again.release()
    assert os.read(reader, 10) == b"z"
    assert os.read(reader, 10) == b""
    os.close(reader)


def test_what_is_left_of_a_closed_one_is_not_another_file_of_that_number(kernel: Any) -> None:
    reader, writer = os.pipe()
    file = HostFile(reader, os.O_RDONLY, kernel)
    inode, number = file.inode, file.fd
    assert inode is not None
    file.release()
    secret = os.open("/dev/zero", os.O_RDONLY)
    os.dup2(secret, number)
    for attempt in (inode.stat, lambda: inode.open(TASK, os.O_RDONLY)):
        with pytest.raises(SysError) as failed:
            attempt()
        assert failed.value.errno == ENXIO
    os.close(number)
    os.close(writer)


def test_owners_and_permissions_are_the_sandboxs(kernel: Any) -> None:
    reader, writer = os.pipe()
    mine = os.fstat(reader).st_uid
    file = HostFile(reader, os.O_RDONLY, kernel)
    assert file.inode is not None
    assert file.inode.stat().uid == 0
    give(file, 1000)
    file.inode.setattr(TASK, Attributes(mode=0o640, gid=7))
    found = file.inode.stat()
    assert (found.uid, found.gid, stat.S_IMODE(found.mode)) == (1000, 7, 0o640)
    assert stat.S_ISFIFO(found.mode)
    assert os.fstat(file.fd).st_uid == mine
    assert stat.S_IMODE(os.fstat(file.fd).st_mode) == 0o600
    file.release()
    os.close(writer)


def test_no_terminal_answers_so(kernel: Any) -> None:
    reader, writer = os.pipe()
    file = HostFile(reader, os.O_RDONLY, kernel)
    with pytest.raises(SysError) as failed:
        file.ioctl(TASK, 0x5401, 0)
    assert failed.value.errno == ENOTTY
    file.release()
    os.close(writer)


def test_standard_files_are_the_three(kernel: Any) -> None:
    files = standard_files(kernel)
    try:
        assert len(files) == 3
        for number, file in enumerate(files):
            if isinstance(file, HostFile):
                assert os.fstat(file.fd).st_ino == os.fstat(number).st_ino
            else:
                assert file.describe() == b"/dev/null"
    finally:
        for file in files:
            file.release()

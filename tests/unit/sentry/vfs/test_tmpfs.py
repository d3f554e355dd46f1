"""tmpfs: what is counted, what is given back, and where data is kept."""

from __future__ import annotations

import gc
import os
from errno import ENOENT, ENOSPC

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.sentry.vfs.place import recent
from casemate.sentry.vfs.tmpfile import TmpFile
from casemate.sentry.vfs.tmpfs import SMALL, TmpFs
from tests.unit.sentry.vfs.calls import Caller


def small(size: int = 1 << 20, inodes: int = 100) -> tuple[Caller, TmpFs]:
    fs = TmpFs(os.makedev(0, 70), size=size, inodes=inodes)
    return Caller(fs=fs), fs


def inode(caller: Caller, path: bytes) -> TmpFile:
    fd = caller.open(path)
    found = caller.task.files.get(fd).inode
    caller("close", fd)
    assert isinstance(found, TmpFile)
    return found


def test_small_files_need_no_descriptor() -> None:
    caller, _ = small()
    caller.put(b"/a", b"x" * SMALL)
    assert inode(caller, b"/a").fd == -1
    caller.put(b"/b", b"x" * (SMALL + 1))
    assert inode(caller, b"/b").fd >= 0
    fd = caller.open(b"/a", os.O_RDWR)
    host = caller.task.files.get(fd).host_fd(True, True)
    assert os.pread(host, 10, 0) == b"x" * 10
    # From then on both are one.
    os.pwrite(host, b"mapped", 100)
    assert caller.data(b"/a")[98:108] == b"xxmappedxx"
    caller.write(fd, b"call")
    assert os.pread(host, 4, 0) == b"call"


def test_everything_is_given_back() -> None:
    caller, fs = small()
    before = fs.count
    for size in (10, SMALL, 100_000):
        caller.put(b"/file", b"x" * size)
        held = inode(caller, b"/file").fd
        assert fs.used >= (size + 4095) // 4096
        assert caller("unlink", b"/file") == 0
        gc.collect()
        assert (fs.used, fs.count) == (0, before)
        if held >= 0:
            with pytest.raises(OSError):
                os.fstat(held)


def test_removed_and_replaced_files_are_not_kept() -> None:
    caller, fs = small()
    caller.put(b"/old", b"x" * 100_000)
    caller.put(b"/new", b"y" * 100_000)
    assert caller("rename", b"/new", b"/old") == 0
    gc.collect()
    assert fs.used == 25
    assert caller("mkdir", b"/d", 0o755) == 0
    caller.put(b"/d/f", b"z" * 100_000)
    assert caller("unlink", b"/d/f") == caller("rmdir", b"/d") == 0
    gc.collect()
    assert (fs.used, fs.count) == (25, 2)
    assert all(not dentry.deleted for dentry in recent)


def test_an_open_file_outlives_its_name() -> None:
    caller, fs = small()
    caller.put(b"/file", b"x" * 100_000)
    fd = caller.open(b"/file")
    assert caller("unlink", b"/file") == 0
    assert caller.read(fd, 10) == b"x" * 10
    assert caller("close", fd) == 0
    gc.collect()
    assert fs.used == 0


@pytest.mark.parametrize("size", [4096, 100_000])
def test_full(size: int) -> None:
    caller, fs = small(size=256 * 4096)
    made = 0
    while True:
        fd = caller.open(b"/%d" % made, os.O_CREAT | os.O_WRONLY)
        if fd == -ENOSPC:
            break
        assert fd >= 0
        done = caller.write(fd, b"x" * size)
        caller("close", fd)
        if done == -ENOSPC:
            break
        made += 1
    assert fs.used <= fs.pages
    # What is there can be changed still, and what goes makes room.
    if made:
        fd = caller.open(b"/0", os.O_WRONLY)
        assert caller.write(fd, b"y" * 4096) == 4096
        assert caller("unlink", b"/0") == 0
        caller("close", fd)
        caller.put(b"/again", b"x" * 4096)


def test_too_many_files() -> None:
    caller, fs = small(inodes=5)
    for index in range(4):
        assert caller("mkdir", b"/%d" % index, 0o755) == 0
    assert caller("mkdir", b"/5", 0o755) == -ENOSPC
    assert caller("symlink", b"x", b"/5") == -ENOSPC
    assert caller.open(b"/5", os.O_CREAT | os.O_WRONLY) == -ENOSPC
    assert caller("rmdir", b"/0") == 0
    assert caller("mkdir", b"/5", 0o755) == 0


writes = st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 9_000), st.booleans()), max_size=12)


@settings(deadline=None)
@given(writes)
def test_data_as_a_bytearray(steps: list[tuple[int, int, bool]]) -> None:
    """Writes and truncations at any place, over the border at which data moves into a memfd."""
    fs = TmpFs(1, size=1 << 24)
    file = TmpFile(fs, 0o600, 0, 0)
    model = bytearray()
    for number, (offset, size, cut) in enumerate(steps):
        if cut:
            file.resize(offset)
            del model[offset:]
            model += bytes(offset - len(model))
        else:
            data = bytes([number + 1]) * size
            assert file.write(data, offset) == size
            if size:
                model += bytes(max(0, offset - len(model)))
                model[offset : offset + size] = data
        assert file.size == len(model)
        assert file.read(1 << 20, 0) == model
        assert file.blocks() * 512 <= len(model) + 4096 + (1 << 16)
    if file.fd >= 0:
        assert fs.used == os.fstat(file.fd).st_blocks // 8
    else:
        assert fs.used == (len(model) + 4095) // 4096


def test_a_directory_that_is_gone_takes_nothing() -> None:
    caller, _ = small()
    caller("mkdir", b"/d", 0o755)
    fd = caller.open(b"/d", os.O_RDONLY)
    assert caller("rmdir", b"/d") == 0
    assert caller.open(b"x", os.O_CREAT | os.O_WRONLY, dirfd=fd) == -ENOENT
    assert caller("mkdirat", fd, b"x", 0o755) == -ENOENT
    assert caller("fchdir", fd) == 0
    assert caller.cwd() == -ENOENT
    assert caller("rename", b"/d", b"/e") == -ENOENT

"""The file system calls against the host's own: whatever is done, both say the same and look the same afterwards."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import tempfile

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from casemate.sentry.vfs.inode import FileSystem
from tests.unit.sentry.vfs.calls import AT_FDCWD, Caller

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the sentry's caller is root, so the host's has to be")

_libc = ctypes.CDLL(None, use_errno=True)
NAMES = [b"a", b"b", b"c", b"d"]
name = st.sampled_from(NAMES)
short = st.one_of(
    st.lists(name, min_size=1, max_size=3).map(b"/".join),
    st.sampled_from([b"a/../b", b"a/.", b"b/..", b"c/", b"a/b/", b".", b"..", b"a/../..", b"d//a", b"./c", b"a/./b"]),
)
path = st.one_of(short, st.just(b"n" * 256))
"""Also one that is too long. Calls with two paths take short ones: which of two errors comes first does not matter."""
target = st.one_of(path, st.sampled_from([b"../a", b"../../b", b"a/", b"."]))
data = st.binary(max_size=64)


def host(call: str, *args: int | bytes) -> int:
    """A call of the host's: what it returns, or ``-errno``."""
    ctypes.set_errno(0)
    result = getattr(_libc, call)(*[ctypes.c_long(one) if isinstance(one, int) else one for one in args])
    return -ctypes.get_errno() if result == -1 else int(result)


class Tree(RuleBasedStateMachine):
    """The same done twice, in a directory of the host and in tmpfs."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = os.fsencode(tempfile.mkdtemp(prefix="casemate-model-"))
        self.before = os.getcwd()
        # ".." at the top must not be something else on the two sides.
        os.chmod(self.directory, 0o755)
        os.mkdir(self.directory + b"/top", 0o755)
        os.chdir(self.directory + b"/top")
        self.caller = Caller(fs=self.filesystem())
        self.caller("mkdir", b"/top", 0o755)
        self.caller("chdir", b"/top")

    def filesystem(self) -> FileSystem | None:
        """What the calls are made in; a tmpfs where it is None."""
        return None

    def teardown(self) -> None:
        os.chdir(self.before)
        shutil.rmtree(self.directory)

    def same(self, call: str, *args: int | bytes) -> int:
        here = self.caller(call, *args)
        there = host(call, *args)
        assert here == there, f"{call}{args}: {here}, and the host says {there}"
        return here

    @rule(path=path)
    def mkdir(self, path: bytes) -> None:
        self.same("mkdir", path, 0o755)

    @rule(path=path)
    def rmdir(self, path: bytes) -> None:
        self.same("rmdir", path)

    @rule(path=path)
    def unlink(self, path: bytes) -> None:
        self.same("unlink", path)

    @rule(old=short, new=short)
    def rename(self, old: bytes, new: bytes) -> None:
        self.same("rename", old, new)

    @rule(old=short, new=short)
    def exchange(self, old: bytes, new: bytes) -> None:
        self.same("renameat2", AT_FDCWD, old, AT_FDCWD, new, 2)

    @rule(old=short, new=short)
    def no_replace(self, old: bytes, new: bytes) -> None:
        self.same("renameat2", AT_FDCWD, old, AT_FDCWD, new, 1)

    @rule(old=short, new=short, follow=st.booleans())
    def link(self, old: bytes, new: bytes, follow: bool) -> None:
        self.same("linkat", AT_FDCWD, old, AT_FDCWD, new, 0x400 if follow else 0)

    @rule(text=target, path=path)
    def symlink(self, text: bytes, path: bytes) -> None:
        self.same("symlink", text, path)

    @rule(path=path, mode=st.sampled_from([0o600, 0o4755, 0o1777, 0o2750]))
    def chmod(self, path: bytes, mode: int) -> None:
        self.same("chmod", path, mode)

    @rule(path=path, size=st.integers(0, 40000))
    def truncate(self, path: bytes, size: int) -> None:
        self.same("truncate", path, size)

    @rule(path=path)
    def chdir(self, path: bytes) -> None:
        # Only where both are still below the top, whose parents differ.
        real = os.path.realpath(path)
        if (real + b"/").startswith(self.directory + b"/top/"):
            self.same("chdir", path)

    @rule(
        path=path,
        flags=st.lists(
            st.sampled_from(
                [os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_DIRECTORY, os.O_NOFOLLOW, os.O_WRONLY, os.O_RDWR]
            ),
            max_size=3,
        ),
        data=data,
        at=st.one_of(st.integers(0, 40), st.integers(16000, 40000)),
    )
    def open_write_read(self, path: bytes, flags: list[int], data: bytes, at: int) -> None:
        together = 0
        for flag in flags:
            together |= flag
        if together & os.O_ACCMODE == os.O_ACCMODE:
            together &= ~os.O_WRONLY
        if together & os.O_CREAT and together & os.O_DIRECTORY:
            return  # what kernels make of it has changed
        here = self.caller.open(path, together)
        try:
            there = os.open(path, together, 0o644)
        except OSError as error:
            there = -(error.errno or 0)
        assert min(here, 0) == min(there, 0), f"open {path!r} {together:o}: {here}, and the host says {there}"
        if there < 0:
            return
        try:
            if together & os.O_ACCMODE:
                assert self.caller("lseek", here, at, os.SEEK_SET) == os.lseek(there, at, os.SEEK_SET)
                assert self.caller.write(here, data) == os.write(there, data)
            if not together & os.O_WRONLY and stat.S_ISREG(os.fstat(there).st_mode):
                assert self.caller("lseek", here, 0, os.SEEK_SET) == os.lseek(there, 0, os.SEEK_SET)
                assert self.caller.read(here, 50000) == os.read(there, 50000)
        finally:
            os.close(there)
            assert self.caller("close", here) == 0

    @rule(path=path, follow=st.booleans())
    def look(self, path: bytes, follow: bool) -> None:
        here = self.caller.stat(path, follow)
        try:
            there = os.stat(path) if follow else os.lstat(path)
        except OSError as error:
            assert here == -(error.errno or 0)
            return
        assert isinstance(here, os.stat_result)
        assert (here.st_mode, here.st_uid, here.st_gid) == (there.st_mode, there.st_uid, there.st_gid)
        if not stat.S_ISDIR(here.st_mode):
            assert (here.st_nlink, here.st_size) == (there.st_nlink, there.st_size)

    @invariant()
    def same_tree(self) -> None:
        assert listing(self.directory + b"/top") == self.listing(b"/top")

    def listing(self, top: bytes) -> list[tuple[bytes, int, bytes | int]]:
        found: list[tuple[bytes, int, bytes | int]] = []
        for one in self.caller.names(top):
            here = top + b"/" + one
            info = self.caller.stat(here, False)
            assert isinstance(info, os.stat_result)
            if stat.S_ISDIR(info.st_mode):
                found.append((one, info.st_mode, info.st_nlink))
                found += [(one + b"/" + inner, mode, more) for inner, mode, more in self.listing(here)]
            elif stat.S_ISLNK(info.st_mode):
                found.append((one, info.st_mode, self.caller.link_text(here)))
            else:
                found.append((one, info.st_mode, self.caller.data(here)))
        return found


def listing(top: bytes) -> list[tuple[bytes, int, bytes | int]]:
    """Everything below a directory of the host: name, mode, and what is in it."""
    found: list[tuple[bytes, int, bytes | int]] = []
    for one in sorted(os.listdir(top)):
        here = top + b"/" + one
        info = os.lstat(here)
        if stat.S_ISDIR(info.st_mode):
            found.append((one, info.st_mode, info.st_nlink))
            found += [(one + b"/" + inner, mode, more) for inner, mode, more in listing(here)]
        elif stat.S_ISLNK(info.st_mode):
            found.append((one, info.st_mode, os.readlink(here)))
        else:
            with open(here, "rb") as file:
                found.append((one, info.st_mode, file.read()))
    return found


Tree.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTree = Tree.TestCase

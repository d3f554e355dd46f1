"""A gofer against a sentry that was taken over: whatever it is sent, it serves its trees and nothing else."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from casemate.gofer import frames
from casemate.gofer.client import GoferClient, GoferGone
from casemate.gofer.confine import NOT_FILES
from casemate.gofer.launch import Tree, start_gofer
from casemate.sentry.errno import SysError

NOBODY: Any = None
ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="needs root")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with one of each kind of file, and something outside of it."""
    (tmp_path / "outside").write_text("not to be seen")
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "file").write_text("text")
    (tree / "link").symlink_to("../outside")
    (tree / "up").symlink_to("..")
    (tree / "dir-link").symlink_to("sub")
    os.mkfifo(tree / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tree / "socket"))
    return tree


@pytest.fixture
def client(place: Path) -> Iterator[GoferClient]:
    """A gofer that serves it twice, to be written and to be read only."""
    started = start_gofer([Tree(str(place), read_only=False), Tree(str(place), read_only=True)], isolate=ROOT)
    yield started
    started.close()


def attach(client: GoferClient, tree: int = 0, fid: int = 1) -> tuple[int, ...]:
    return frames.parse_walk(client.call(frames.TATTACH, (tree, fid, 0)), 1)[1][0]


def walk(client: GoferClient, names: list[bytes], fid: int = 1, new: int = 100) -> tuple[int, list[int]]:
    """The errno, and the kinds of what was reached."""
    try:
        number, reached = frames.parse_walk(client.call(frames.TWALK, (fid, new, 0), tuple(names)), len(names))
    except SysError as error:
        return error.errno, []
    return number, [stat.S_IFMT(attributes[0]) for attributes in reached]


def fails(client: GoferClient, kind: int, numbers: tuple[int, ...], strings: tuple[bytes, ...] = ()) -> int:
    """The errno of a call, which must fail."""
    with pytest.raises(SysError) as caught:
        client.call(kind, numbers, strings)
    assert not isinstance(caught.value, GoferGone)
    return caught.value.errno


def test_walk_stays_in_the_tree(client: GoferClient) -> None:
    attach(client)
    for name in (b"..", b".", b"", b"/", b"sub/..", b"/etc", b"a\0b"):
        assert walk(client, [name]) == (errno.EINVAL, [])
    assert walk(client, [b"link"], new=200) == (0, [stat.S_IFLNK])
    assert walk(client, [b"up", b"outside"], new=210) == (errno.ENOTDIR, [stat.S_IFLNK])
    assert walk(client, [b"dir-link", b"x"], new=220) == (errno.ENOTDIR, [stat.S_IFLNK])
    assert walk(client, [b"sub", b"nothing"], new=230) == (errno.ENOENT, [stat.S_IFDIR])
    assert fails(client, frames.TLOPEN, (200, os.O_RDONLY)) == errno.EINVAL


@pytest.mark.parametrize("name", [b"fifo", b"socket", b"sub", b"link"])
def test_only_regular_files_are_opened(client: GoferClient, name: bytes) -> None:
    attach(client)
    assert walk(client, [name])[0] == 0
    assert fails(client, frames.TLOPEN, (100, os.O_RDWR)) in (errno.EINVAL, errno.EISDIR)


@pytest.mark.parametrize("flags", [os.O_CREAT, os.O_DIRECTORY, os.O_PATH, os.O_TMPFILE, os.O_APPEND, 1 << 31])
def test_flags_of_open_are_few(client: GoferClient, flags: int) -> None:
    attach(client)
    walk(client, [b"file"])
    assert fails(client, frames.TLOPEN, (100, flags)) == errno.EINVAL


def test_read_only_tree_refuses_every_change(client: GoferClient, place: Path) -> None:
    attach(client, 1)
    walk(client, [b"file"])
    before = sorted(os.listdir(place)), os.stat(place / "file").st_mode
    for kind, numbers, strings in (
        (frames.TLOPEN, (100, os.O_RDWR), ()),
        (frames.TLOPEN, (100, os.O_TRUNC), ()),
        (frames.TLCREATE, (1, 5, 0o644, 0, 0), (b"new",)),
        (frames.TTMPFILE, (1, 5, 0o644, 0, 0), ()),
        (frames.TMKDIR, (1, 5, 0o755, 0, 0), (b"new",)),
        (frames.TMKNOD, (1, 5, stat.S_IFIFO | 0o644, 0, 0, 0), (b"new",)),
        (frames.TSYMLINK, (1, 5, 0, 0), (b"new", b"target")),
        (frames.TLINK, (1, 100), (b"new",)),
        (frames.TRENAMEAT, (1, 1, 0), (b"file", b"new")),
        (frames.TUNLINKAT, (1, 0), (b"file",)),
        (frames.TSETATTR, (100, frames.SET_MODE, 0o777, 0, 0, 0, 0, 0), ()),
        (frames.TSETXATTR, (100, 0), (b"user.a", b"b")),
        (frames.TREMOVEXATTR, (100,), (b"user.a",)),
    ):
        assert fails(client, kind, numbers, strings) == errno.EROFS, frames.NAMES[kind]
    assert (sorted(os.listdir(place)), os.stat(place / "file").st_mode) == before


@as_root
def test_read_only_tree_is_a_read_only_mount(client: GoferClient) -> None:
    """Even who takes the gofer over cannot write there, nor can the sentry with what it was handed."""
    attach(client, 1)
    _, fds = client.call_fds(frames.TWALK, (1, 7, frames.WANT_FD), (b"file",))
    try:
        assert os.statvfs(fds[0]).f_flag & os.ST_RDONLY
        with pytest.raises(OSError) as caught:
            os.open(f"/proc/self/fd/{fds[0]}", os.O_RDWR)
        assert caught.value.errno == errno.EROFS
    finally:
        os.close(fds[0])


@as_root
@pytest.mark.parametrize("names", [[], [b"sub"]])
def test_descriptor_leads_no_higher_than_the_tree(client: GoferClient, names: list[bytes]) -> None:
    if names:
        attach(client)
        _, fds = client.call_fds(frames.TWALK, (1, 7, frames.WANT_FD), tuple(names))
    else:
        _, fds = client.call_fds(frames.TATTACH, (0, 7, frames.WANT_FD))
    try:
        above = os.open("../../../../..", os.O_PATH, dir_fd=fds[0])
        found = sorted(os.listdir(f"/proc/self/fd/{above}"))
        assert found == ["dir-link", "fifo", "file", "link", "socket", "sub", "up"]
        os.close(above)
    finally:
        os.close(fds[0])


def test_devices_are_not_made(client: GoferClient, place: Path) -> None:
    attach(client)
    for kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFREG, stat.S_IFDIR, 0):
        assert fails(client, frames.TMKNOD, (1, 5, kind | 0o666, 0, 0, os.makedev(1, 3)), (b"dev",)) == errno.EPERM
    assert not (place / "dev").exists()


def test_attributes_of_the_host_are_not_touched(client: GoferClient) -> None:
    attach(client)
    walk(client, [b"file"])
    for name in (b"trusted.overlay.opaque", b"security.selinux", b"system.other", b"user", b"", b"user.a\0b"):
        assert fails(client, frames.TSETXATTR, (100, 0), (name, b"x")) == errno.EOPNOTSUPP
        assert fails(client, frames.TGETXATTR, (100,), (name,)) == errno.EOPNOTSUPP


def test_fids_that_are_not_there_or_in_use(client: GoferClient) -> None:
    attach(client)
    assert fails(client, frames.TGETATTR, (77,)) == errno.EBADF
    assert fails(client, frames.TATTACH, (0, 1, 0)) == errno.EBADF
    assert fails(client, frames.TATTACH, (2, 9, 0)) == errno.ENOENT
    assert walk(client, [b"sub"], new=1)[0] == errno.EBADF
    client.clunk(1)
    client.clunk(500)
    client.flush()
    assert fails(client, frames.TGETATTR, (1,)) == errno.EBADF


@as_root
def test_what_it_is_shut_into(client: GoferClient) -> None:
    pid = client.pid
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert status["Seccomp"].strip() == "2" and status["NoNewPrivs"].strip() == "1"
    assert int(status["CapEff"], 16) & ~0x8000001F == 0 and status["CapBnd"] == status["CapEff"]
    for kind in ("mnt", "net", "ipc", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    assert os.listdir(f"/proc/{pid}/root") == []
    # 0 to 2, the connection, two trees.
    assert len(os.listdir(f"/proc/{pid}/fd")) == 6


@as_root
def test_the_hosts_kernel_is_hidden() -> None:
    client = start_gofer([Tree("/", read_only=True)])
    try:
        attach(client)
        for name, below in ((b"proc", b"1"), (b"sys", b"kernel")):
            number, kinds = walk(client, [name, below], new=client.new_fid(2) + 1000)
            assert (number, kinds) == (errno.ENOENT, [stat.S_IFDIR])
        assert "proc" in NOT_FILES
    finally:
        client.close()


def test_missing_tree_is_told(tmp_path: Path) -> None:
    from casemate.errors import HostError

    with pytest.raises(HostError, match="No such file"):
        start_gofer([Tree(str(tmp_path / "missing"))], isolate=ROOT)


def test_end_of_the_gofer_is_told_once_with_its_reason(client: GoferClient) -> None:
    reasons: list[str] = []
    client.on_gone = reasons.append
    attach(client)
    os.kill(client.pid, 9)
    for _ in range(2):
        with pytest.raises(GoferGone):
            client.call(frames.TGETATTR, (1,))
    assert len(reasons) == 1 and "SIGKILL" in reasons[0] and client.gone == reasons[0]


def test_nonsense_ends_it(client: GoferClient) -> None:
    reasons: list[str] = []
    client.on_gone = reasons.append
    client.sock.send(b"\xff\xff\xff")
    client.ready(1)
    assert reasons == ["the file server ended (status 2)"]


def test_clunk_of_half_a_fid_ends_it(client: GoferClient) -> None:
    client.sock.send(frames.request(frames.TCLUNK, 0, (), (b"\0\0\0",)))
    client.ready(1)
    assert client.gone == "the file server ended (status 2)"


FIDS = st.sampled_from([1, 2, 3, 4, 5, 6])
STRINGS = st.one_of(
    st.sampled_from([b"file", b"sub", b"link", b"up", b"fifo", b"new", b"..", b"../outside", b"user.x", b""]),
    st.binary(max_size=300),
)
WIDE = {"I": st.integers(0, 2**32 - 1), "Q": st.integers(0, 2**64 - 1), "q": st.integers(-(2**63), 2**63 - 1)}
KINDS = sorted(set(frames.REQUESTS) - {frames.TFSYNC})


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """Requests that make sense as frames, whatever they ask for."""
    told = []
    for _ in range(draw(st.integers(1, 25))):
        kind = draw(st.sampled_from(KINDS))
        layout, count = frames.REQUESTS[kind]
        numbers = []
        for letter in layout:
            numbers.append(draw(st.one_of(FIDS, st.integers(0, 3), st.sampled_from([0o100644, 0o10644]), WIDE[letter])))
        strings = draw(st.lists(STRINGS, min_size=max(count, 1 if count else 0), max_size=count if count >= 0 else 4))
        if kind == frames.TCLUNK:
            strings = [struct.pack("<I", draw(FIDS))]
        if kind == frames.TSETATTR and numbers[1] & frames.SET_SIZE:
            numbers[5] &= 0xFFFFF
        told.append(frames.request(kind, 7, tuple(numbers), tuple(strings)))
    return told


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[GoferClient]]]:
    top = tmp_path_factory.mktemp("fuzz")
    (top / "outside").write_text("not to be seen")
    tree = top / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "file").write_text("text")
    (tree / "link").symlink_to("../outside")
    (tree / "up").symlink_to("..")
    os.mkfifo(tree / "fifo")
    clients = [start_gofer([Tree(str(tree), read_only=False)], isolate=ROOT)]
    yield top, clients
    clients[0].close()


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(conversations())
@example([frames.request(frames.TATTACH, 7, (0, 1, 0)), frames.request(frames.TSETATTR, 7, (1, 8, 0, 0, 0, 9, 0, 0))])
def test_any_conversation_is_survived(fuzzed: tuple[Path, list[GoferClient]], told: list[bytes]) -> None:
    top, (client,) = fuzzed
    for frame in [frames.request(frames.TATTACH, 7, (0, 1, 0)), *told]:
        client.sock.send(frame)
        if frame[0] == frames.TCLUNK:
            continue
        answer, fds, _, _ = socket.recv_fds(client.sock, frames.MAX_FRAME, 40)
        assert answer, f"it died of {frames.parse_request(frame)}"
        body = frames.parse_reply(answer, frame[0], 7)
        for fd in fds:
            # Nothing but what is in the tree, and no device.
            real = os.readlink(f"/proc/self/fd/{fd}")
            assert stat.S_IFMT(os.fstat(fd).st_mode) not in (stat.S_IFCHR, stat.S_IFBLK)
            assert "outside" not in real
            os.close(fd)
        assert isinstance(body, int) or len(body) < frames.MAX_FRAME
    assert sorted(os.listdir(top)) == ["outside", "tree"] and (top / "outside").read_text() == "not to be seen"


@as_root
def test_as_a_program_it_sees_mounts_made_later(tmp_path: Path) -> None:
    from casemate.host import mounts

    (tmp_path / "share").mkdir()
    (tmp_path / "volumes").mkdir()
    (tmp_path.parent / "beside").mkdir()
    mounts.tmpfs(tmp_path / "share", size=65536, inodes=10)
    mounts.make_shared(tmp_path / "share")
    place = tmp_path / "share" / "later"
    place.mkdir()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-P", "-m", "casemate.gofer", str(theirs.fileno()), str(tmp_path)]
    process = subprocess.Popen([*command, "ro:/share", "rw:/volumes"], pass_fds=[theirs.fileno()])
    theirs.close()
    client = GoferClient(ours, [Tree("/share", True, True), Tree("/volumes", False, False)])
    try:
        assert client.filesystem(0, 5).root.readdir(NOBODY)[0][0] == b"later"
        mounts.tmpfs(place, size=65536, inodes=10)
        try:
            (place / "file").write_text("here")
            root = client.filesystem(0, 6, b"later").root
            assert [name for name, _, _ in root.readdir(NOBODY)] == [b"file"] and root.stat().dev == 6
        finally:
            mounts.umount(place)
        client.filesystem(1, 7).root.create(NOBODY, b"made", 0o600, 3, 4)
        assert (tmp_path / "volumes" / "made").stat().st_uid == 3
        client.filesystem(1, 7).root.mknod(NOBODY, b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3), 0, 0)
        assert (tmp_path / "volumes" / "null").stat().st_rdev == os.makedev(1, 3)
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "Seccomp:\t2\n" in status and "CapEff:\t000000008800001f\n" in status
        assert sorted(os.listdir(f"/proc/{process.pid}/root")) == ["share", "volumes"]
        assert len(Path(f"/proc/{process.pid}/net/dev").read_text().splitlines()) == 3  # two of headings, and "lo"
        _, fds = client.call_fds(frames.TATTACH, (1, 900_000, frames.WANT_FD))
        above = os.open("../../../../..", os.O_PATH, dir_fd=fds[0])
        assert sorted(os.listdir(f"/proc/self/fd/{above}")) == ["share", "volumes"]
        for fd in (above, *fds):
            os.close(fd)
    finally:
        mounts.umount(tmp_path / "share")
        client.close()
        assert process.wait(30) == 0


@pytest.mark.parametrize("waited", [False, True], ids=["by itself", "by somebody else"])
def test_it_is_said_how_the_process_ended_whoever_has_waited_for_it(waited: bool) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client = GoferClient(ours, [Tree("/", True, True)], process.pid)
    reasons: list[str] = []
    client.on_gone = reasons.append
    if waited:
        found = os.waitpid(process.pid, 0)
        client.ended = dict([found]).get
    theirs.close()
    client.ready(select.EPOLLIN)
    assert reasons == ["the file server ended (SIGKILL)"]
    process.returncode = -9  # it has been waited for
    client.close()

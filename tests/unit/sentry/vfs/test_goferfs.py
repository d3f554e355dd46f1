"""What the sentry keeps of the host's files, and when it asks again."""

from __future__ import annotations

import gc
import os
import resource
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from errno import EACCES, ENODATA, ENOENT, ENOTDIR, EOVERFLOW, EROFS, ESTALE
from pathlib import Path
from typing import Any

import pytest

from casemate.gofer import frames
from casemate.gofer.client import GoferClient
from casemate.gofer.launch import Tree, start_gofer
from casemate.sentry.errno import SysError
from casemate.sentry.vfs import goferfs, goferinode
from casemate.sentry.vfs.goferdir import GoferDirectory
from casemate.sentry.vfs.goferfs import GoferFs
from casemate.sentry.vfs.goferinode import GoferInode
from casemate.sentry.vfs.ids import NOBODY, IdMap
from casemate.sentry.vfs.inode import Attributes, Inode

DEVICE = os.makedev(0, 70)
TASK: Any = None
"""These file systems do not look at who asks."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("content")
    os.link(tmp_path / "a" / "b" / "file", tmp_path / "a" / "same")
    (tmp_path / "link").symlink_to("a/b/file")
    return tmp_path


@pytest.fixture
def client(place: Path) -> Iterator[GoferClient]:
    trees = [Tree(str(place), False, True), Tree(str(place), False, False), Tree(str(place), True, True)]
    started = start_gofer(trees, isolate=os.geteuid() == 0)
    yield started
    started.close()


@pytest.fixture
def mine(client: GoferClient) -> GoferFs:
    return client.filesystem(0, DEVICE)


@pytest.fixture
def shared(client: GoferClient) -> GoferFs:
    return client.filesystem(1, DEVICE)


def find(fs: GoferFs, path: str) -> GoferInode:
    inode: Inode = fs.root
    for name in path.encode().split(b"/"):
        inode = inode.lookup(TASK, name)
    assert isinstance(inode, GoferInode)
    return inode


def missing(fs: GoferFs, path: str) -> bool:
    with pytest.raises(SysError) as caught:
        find(fs, path)
    return caught.value.errno == ENOENT


def data(inode: GoferInode) -> bytes:
    file = inode.open(TASK, os.O_RDONLY)
    try:
        return file.read(TASK, 1 << 16)
    finally:
        file.decref()


def settle() -> None:
    """Until change times are old enough to be relied upon."""
    time.sleep(goferinode.YOUNG / 1e9 + 0.01)


def test_attributes_are_the_hosts(mine: GoferFs, place: Path) -> None:
    for path in ("a", "a/b/file", "link"):
        here, there = find(mine, path).stat(), os.lstat(place / path)
        assert (here.mode, here.ino, here.uid, here.gid, here.size, here.nlink, here.blocks) == (
            there.st_mode, there.st_ino, there.st_uid, there.st_gid, there.st_size, there.st_nlink, there.st_blocks,
        )  # fmt: skip
        assert (here.atime, here.mtime, here.ctime) == (there.st_atime_ns, there.st_mtime_ns, there.st_ctime_ns)
        assert here.dev == DEVICE
        assert find(mine, path).access() == (there.st_mode, there.st_uid, there.st_gid)


def test_hard_links_are_one_object(mine: GoferFs, shared: GoferFs) -> None:
    for fs in (mine, shared):
        assert find(fs, "a/same") is find(fs, "a/b/file")


def test_what_is_known_costs_no_question(client: GoferClient, mine: GoferFs) -> None:
    file = find(mine, "a/b/file")
    data(file)
    file.stat()
    find(mine, "link").readlink(TASK)
    missing(mine, "a/none")
    before = client.calls
    assert data(find(mine, "a/b/file")) == b"content"
    assert find(mine, "a/b/file").stat().size == 7
    assert find(mine, "link").readlink(TASK) == b"a/b/file"
    assert missing(mine, "a/none")
    assert client.calls == before


def test_shared_tree_is_asked_only_about_what_changed(client: GoferClient, shared: GoferFs, place: Path) -> None:
    settle()
    for _ in range(2):
        find(shared, "a/b/file").stat()
        missing(shared, "a/b/none")
    before = client.calls
    find(shared, "a/b/file").stat()
    missing(shared, "a/b/none")
    assert client.calls == before
    (place / "a" / "b" / "none").write_text("now")
    assert data(find(shared, "a/b/none")) == b"now"


@pytest.mark.parametrize("fine", [None, False])
@pytest.mark.parametrize("whole_map", [False, True])
def test_shared_tree_shows_changes_at_once(
    shared: GoferFs, place: Path, fine: bool | None, whole_map: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However fine the host's change times are, and whether we see owners as they are or the gofer has to tell."""
    monkeypatch.setattr(goferinode, "_whole_map", whole_map)
    if fine is not None:
        monkeypatch.setattr(shared, "fine", lambda device, fid: fine)
    file = place / "a" / "b" / "file"
    for round in range(30):
        name = place / "a" / f"new{round % 3}"
        assert missing(shared, f"a/{name.name}")
        name.write_bytes(b"x" * round)
        assert find(shared, f"a/{name.name}").stat().size == round
        other = place / "a" / "other"
        other.write_text(f"round {round}")
        other.rename(file)
        assert data(find(shared, "a/b/file")) == f"round {round}".encode()
        mode = 0o600 | round
        file.chmod(mode)
        assert find(shared, "a/b/file").stat().mode == stat.S_IFREG | mode
        assert find(shared, "a/b/file").access()[0] == stat.S_IFREG | mode
        if os.geteuid() == 0:
            os.chown(file, round, round + 1)
            assert find(shared, "a/b/file").access()[1:] == (round, round + 1)
        listed = {os.fsdecode(one) for one, _, _ in find(shared, "a").readdir(TASK)}
        assert listed == set(os.listdir(place / "a"))
        name.unlink()
        assert missing(shared, f"a/{name.name}")
        assert name.name.encode() not in {one for one, _, _ in find(shared, "a").readdir(TASK)}
        if round % 10 == 9:
            settle()


def test_exclusive_tree_forgets_when_told(mine: GoferFs, place: Path) -> None:
    assert missing(mine, "a/none")
    find(mine, "a/b/file").stat()
    (place / "a" / "none").write_text("x")
    (place / "a" / "b" / "file").write_text("longer content")
    assert missing(mine, "a/none") and find(mine, "a/b/file").stat().size == 7
    mine.forget()
    assert find(mine, "a/none").stat().size == 1 and find(mine, "a/b/file").stat().size == 14


def test_names_are_forgotten_in_turn_and_fids_given_back(
    client: GoferClient, mine: GoferFs, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goferfs, "MAX_NAMES", 64)
    many = place / "many"
    many.mkdir()
    for number in range(500):
        (many / str(number)).touch()
    held = find(mine, "many/3")
    held.extra["socket"] = object()
    for number in range(500):
        find(mine, f"many/{number}")
    assert len(mine.names) <= 64
    directory = find(mine, "many")
    assert isinstance(directory, GoferDirectory) and len(directory.entries) <= 64
    assert find(mine, "many/3") is held
    client.flush()
    before = len(os.listdir(f"/proc/{client.pid}/fd"))
    assert before < 90
    mine.forget()
    client.flush()
    client.call(frames.TGETATTR, (mine.root.fid,))  # the clunks before it are done
    assert len(os.listdir(f"/proc/{client.pid}/fd")) < before


def test_descriptors_that_nobody_uses_are_bounded(
    mine: GoferFs, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goferfs, "MAX_IDLE", 8)
    for number in range(40):
        (place / str(number)).write_text(str(number))
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    inodes = [find(mine, str(number)) for number in range(40)]
    assert [data(inode) for inode in inodes] == [b"%d" % number for number in range(40)]
    assert len(os.listdir("/proc/self/fd")) <= before + 8
    files = [inode.open(TASK, os.O_RDONLY) for inode in inodes]
    assert len(os.listdir("/proc/self/fd")) == before + 40
    for file in files:
        file.decref()
    assert len(os.listdir("/proc/self/fd")) <= before + 8


def test_opens_of_a_file_have_offsets_of_their_own(mine: GoferFs) -> None:
    inode = find(mine, "a/b/file")
    one, other = inode.open(TASK, os.O_RDONLY), inode.open(TASK, os.O_RDWR)
    assert (one.read(TASK, 3), other.read(TASK, 1), one.read(TASK, 100), other.read(TASK, 2)) == (
        b"con", b"c", b"tent", b"on",
    )  # fmt: skip
    assert other.write(TASK, b"!!") == 2 and one.pread(TASK, 100, 0) == b"con!!nt"
    assert one.seek(TASK, -1, os.SEEK_END) == 6 and one.read(TASK, 9) == b"t"


def test_appending_writes_go_to_the_end(mine: GoferFs, place: Path) -> None:
    file = find(mine, "a/b/file").open(TASK, os.O_WRONLY | os.O_APPEND)
    with open(place / "a" / "b" / "file", "ab") as other:
        other.write(b" more")
    assert file.write(TASK, b" end") == 4 and file.offset == 16
    assert (place / "a" / "same").read_bytes() == b"content more end"
    # pwrite(2) "BUGS": the offset does not matter.
    assert file.pwrite(TASK, b"!", 0) == 1
    assert (place / "a" / "same").read_bytes() == b"content more end!"


def test_writes_show_in_attributes(mine: GoferFs, shared: GoferFs) -> None:
    for fs, size in ((mine, 107), (shared, 207)):
        inode = find(fs, "a/b/file")
        file = inode.open(TASK, os.O_WRONLY | os.O_APPEND)
        for done in range(1, 101):
            file.write(TASK, b"x")
            assert inode.stat().size == size - 100 + done
        file.decref()
        assert inode.stat().size == size
        mine.forget()


def test_unlinked_file_lives_while_it_is_open(mine: GoferFs, place: Path) -> None:
    directory = find(mine, "a/b")
    (place / "a" / "same").unlink()
    file = directory.lookup(TASK, b"file").open(TASK, os.O_RDWR)
    directory.unlink(TASK, b"file")
    assert missing(mine, "a/b/file") and not (place / "a" / "b" / "file").exists()
    file.write(TASK, b"CON")
    assert file.pread(TASK, 7, 0) == b"CONtent"
    assert file.inode is not None and file.inode.stat().nlink == 0
    directory.create(TASK, b"file", 0o600, os.geteuid(), os.getegid())
    assert data(find(mine, "a/b/file")) == b"" and file.pread(TASK, 7, 0) == b"CONtent"


def test_nameless_file_gets_a_name(mine: GoferFs, place: Path) -> None:
    directory = find(mine, "a")
    inode = directory.tmpfile(TASK, 0o640, os.geteuid(), os.getegid())
    file = inode.open(TASK, os.O_RDWR)
    file.write(TASK, b"late")
    assert inode.stat().nlink == 0
    directory.link(TASK, b"late", inode)
    file.decref()
    assert find(mine, "a/late") is inode and (place / "a" / "late").read_bytes() == b"late"
    assert inode.stat().nlink == 1


def test_large_directory(mine: GoferFs, place: Path) -> None:
    many = place / "many"
    many.mkdir()
    names = [f"a name that is somewhat long {number}" for number in range(3000)]
    for name in names:
        (many / name).touch()
    (many / "dir").mkdir()
    entries = find(mine, "many").readdir(TASK)
    assert sorted(name.decode() for name, _, _ in entries) == sorted([*names, "dir"])
    kinds = {name: kind for name, _, kind in entries}
    assert kinds[b"dir"] == stat.S_IFDIR and kinds[names[0].encode()] == stat.S_IFREG
    assert {number for _, number, _ in entries} == {os.lstat(many / name).st_ino for name in [*names, "dir"]}


def test_directory_of_a_tree_as_root(client: GoferClient) -> None:
    fs = client.filesystem(0, DEVICE, b"a/b")
    assert [name for name, _, _ in fs.root.readdir(TASK)] == [b"file"] and fs.root.stat().dev == DEVICE
    assert data(client.filesystem(0, DEVICE, b"a/b/file").root) == b"content"
    for path, number in ((b"a/none", ENOENT), (b"link/x", ENOTDIR), (b"a/b/file/x", ENOTDIR)):
        with pytest.raises(SysError) as caught:
            client.filesystem(0, DEVICE, path)
        assert caught.value.errno == number


def test_read_only_tree(client: GoferClient) -> None:
    fs = client.filesystem(2, DEVICE)
    inode = find(fs, "a/b/file")
    assert fs.read_only and data(inode) == b"content"
    changes: list[Callable[[], object]] = [
        lambda: inode.open(TASK, os.O_RDWR),
        lambda: fs.root.mkdir(TASK, b"x", 0o755, 0, 0),
        lambda: fs.root.create(TASK, b"x", 0o644, 0, 0),
        lambda: fs.root.unlink(TASK, b"link"),
        lambda: fs.root.rename(TASK, b"link", fs.root, b"x", 0),
        lambda: inode.setattr(TASK, Attributes(mode=0o600)),
    ]
    for change in changes:
        with pytest.raises(SysError) as caught:
            change()
        assert caught.value.errno == EROFS


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_owners_and_modes_of_new_files(mine: GoferFs, place: Path) -> None:
    root = mine.root
    root.create(TASK, b"file", 0o4751, 1000, 1001)
    root.mkdir(TASK, b"dir", 0o2770, 1002, 1003)
    root.symlink(TASK, b"symlink", b"target", 1004, 1005)
    root.mknod(TASK, b"pipe", stat.S_IFIFO | 0o640, 0, 1006, 1007)
    root.mknod(TASK, b"sock", stat.S_IFSOCK | 0o755, 0, 1008, 1009)
    for name, mode, uid in (
        ("file", stat.S_IFREG | 0o4751, 1000), ("dir", stat.S_IFDIR | 0o2770, 1002),
        ("symlink", stat.S_IFLNK | 0o777, 1004), ("pipe", stat.S_IFIFO | 0o640, 1006),
        ("sock", stat.S_IFSOCK | 0o755, 1008),
    ):  # fmt: skip
        there, here = os.lstat(place / name), find(mine, name).stat()
        assert (there.st_mode, there.st_uid, there.st_gid) == (mode, uid, uid + 1)
        assert (here.mode, here.uid, here.gid) == (mode, uid, uid + 1)
    inode = find(mine, "file")
    inode.setattr(TASK, Attributes(uid=5, gid=6))
    assert inode.access() == (stat.S_IFREG | 0o751, 5, 6)
    inode.setattr(TASK, Attributes(mode=0o600, size=100, atime=10**18 + 1, mtime=10**18 + 2))
    there = os.stat(place / "file")
    assert (there.st_mode, there.st_size, there.st_atime_ns, there.st_mtime_ns) == (
        stat.S_IFREG | 0o600, 100, 10**18 + 1, 10**18 + 2,
    )  # fmt: skip
    find(mine, "symlink").setattr(TASK, Attributes(uid=9))
    assert os.lstat(place / "symlink").st_uid == 9


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_devices_of_a_tree_are_told_and_not_opened(mine: GoferFs, place: Path) -> None:
    os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    inode = find(mine, "null")
    assert inode.kind == stat.S_IFCHR and inode.stat().rdev == os.makedev(1, 3)
    with pytest.raises(SysError):
        inode.open(TASK, os.O_RDONLY)


def test_extended_attributes(client: GoferClient, mine: GoferFs, place: Path) -> None:
    inode = find(mine, "a/b/file")
    try:
        os.setxattr(place / "a" / "b" / "file", "user.one", b"1")
    except OSError:
        pytest.skip("the file system has no user attributes")
    assert inode.listxattr(TASK) == [b"user.one"] and inode.getxattr(TASK, b"user.one") == b"1"
    before = client.calls
    for name in (b"user.none", b"security.capability", b"security.selinux", b"system.posix_acl_access"):
        with pytest.raises(SysError) as caught:
            inode.getxattr(TASK, name)
        assert caught.value.errno == ENODATA
    assert client.calls == before
    inode.setxattr(TASK, b"user.two", b"2", 0)
    assert sorted(inode.listxattr(TASK)) == [b"user.one", b"user.two"]
    assert os.getxattr(place / "a" / "same", "user.two") == b"2"
    inode.removexattr(TASK, b"user.one")
    assert os.listxattr(place / "a" / "same") == ["user.two"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_file_systems_below_have_devices_of_their_own(place: Path) -> None:
    from casemate.host import mounts

    below = place / "below"
    below.mkdir()
    mounts.tmpfs(below, size=65536, inodes=16)
    try:
        (below / "file").write_text("x")
        client = start_gofer([Tree(str(place), True, True)])
        try:
            fs = client.filesystem(0, DEVICE)
            devices = {find(fs, "a").stat().dev, find(fs, "below/file").stat().dev}
            assert len(devices) == 2 and DEVICE in devices
            assert data(find(fs, "below/file")) == b"x"
        finally:
            client.close()
    finally:
        mounts.umount(below)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_the_gofer_may_not_open(mine: GoferFs, place: Path) -> None:
    (place / "a" / "b" / "file").chmod(0)
    with pytest.raises(SysError) as caught:
        find(mine, "a/b/file").open(TASK, os.O_RDONLY)
    assert caught.value.errno == EACCES


def look_with_few_files(place: str) -> None:
    """In a process that has nothing else open: look at more files than the gofer may have open."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
    client = start_gofer([Tree(place, False, True)], isolate=False)
    fs = client.filesystem(0, DEVICE)
    held = [find(fs, f"many/{number}") for number in range(50)]
    assert all(data(find(fs, f"many/{number}")) == b"%d" % number for number in range(400))
    assert find(fs, "many/7") is held[7]
    client.close()


def test_gofer_that_may_have_few_files_open_makes_room(place: Path) -> None:
    many = place / "many"
    many.mkdir()
    for number in range(400):
        (many / str(number)).write_text(str(number))
    module = "tests.unit.sentry.vfs.test_goferfs"
    script = f"import sys, {module}; {module}.look_with_few_files(sys.argv[1])"
    top = Path(__file__).parents[4]
    done = subprocess.run([sys.executable, "-c", script, place], cwd=top, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("tree", [0, 1])
def test_who_lists_a_directory_and_looks_at_entries_gets_many_at_a_time(
    client: GoferClient, place: Path, tree: int
) -> None:
    many = place / "many"
    many.mkdir()
    for number in range(300):
        (many / str(number)).write_bytes(b"x" * number)
    settle()
    fs = client.filesystem(tree, DEVICE)
    directory = find(fs, "many")
    assert isinstance(directory, GoferDirectory)
    names = sorted(name for name, _, _ in directory.readdir(TASK))
    (many / "7").unlink()
    (many / "9").unlink()
    (many / "9").write_bytes(b"another")
    if tree == 1:
        settle()
        directory.unchanged()
    before = client.calls
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    for name in names:
        if name == b"7":
            assert missing(fs, "many/7")
        else:
            size = 7 if name == b"9" else int(name)
            assert find(fs, f"many/{name.decode()}").stat().size == size
    assert client.calls - before < 20
    assert len(os.listdir("/proc/self/fd")) - descriptors == (299 if tree else 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_owners_that_are_somebody_else_on_the_host(client: GoferClient, place: Path) -> None:
    ids = IdMap([(0, 100000, 1000), (5000, 0, 1)], [(0, 200000, 1000)])
    fs = client.filesystem(0, DEVICE, ids=ids)
    fs.root.mkdir(TASK, b"dir", 0o755, 7, 8)
    fs.root.create(TASK, b"file", 0o644, 0, 999)
    fs.root.symlink(TASK, b"symlink", b"x", 5000, 1)
    for name, uid, gid in (("dir", 100007, 200008), ("file", 100000, 200999), ("symlink", 0, 200001)):
        there = os.lstat(place / name)
        assert (there.st_uid, there.st_gid) == (uid, gid)
    assert find(fs, "file").access()[1:] == (0, 999) and find(fs, "symlink").stat().uid == 5000
    assert (fs.root.stat().uid, fs.root.stat().gid) == (5000, NOBODY)
    inode = find(fs, "dir")
    inode.setattr(TASK, Attributes(gid=3))
    assert (os.stat(place / "dir").st_uid, os.stat(place / "dir").st_gid) == (100007, 200003)
    changes: list[Callable[[], object]] = [
        lambda: inode.setattr(TASK, Attributes(uid=1000)),
        lambda: fs.root.create(TASK, b"other", 0o644, 0, 1000),
    ]
    for change in changes:
        with pytest.raises(SysError) as caught:
            change()
        assert caught.value.errno == EOVERFLOW
    assert not (place / "other").exists()


def test_closed_file_system_gives_everything_back_at_once(client: GoferClient, mine: GoferFs, place: Path) -> None:
    def descriptors() -> int:
        client.call(frames.TGETATTR, (mine.root.fid,))  # what was sent before it is done
        return len(os.listdir(f"/proc/{client.pid}/fd"))

    before = descriptors()
    fs = client.filesystem(0, DEVICE, b"a")
    file = find(fs, "b/file").open(TASK, os.O_RDONLY)
    held = find(fs, "b")
    assert descriptors() == before + 4  # with the directory that "a" is in
    fs.close()
    assert file.read(TASK, 99) == b"content" and descriptors() == before + 2
    file.decref()
    del file
    assert descriptors() == before + 1
    del held
    assert descriptors() == before
    with pytest.raises(SysError) as caught:
        fs.statfs(TASK)
    assert caught.value.errno == ESTALE


def test_shared_tree_does_not_pass_for_a_local_one(mine: GoferFs, shared: GoferFs) -> None:
    assert shared.statfs(TASK).type == 0x65735546 != mine.statfs(TASK).type
    assert shared.statfs(TASK).blocks == mine.statfs(TASK).blocks > 0

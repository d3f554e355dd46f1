"""Unpacking layers: what comes out, what is refused, and that nothing ever leaves the directory."""

from __future__ import annotations

import errno
import gzip
import io
import os
import stat
import subprocess
import tarfile
import tempfile
import tracemalloc
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.errors import BadImage, CasemateError, HostError
from casemate.oci.layers import Unpacked, explain, kept, unpack
from casemate.oci.layerstream import LayerStream, sniff
from casemate.oci.limits import Limits
from casemate.oci.trees import OPAQUE, remove_tree
from tests.unit.oci.builders import directory, hardlink, member, sha256, snapshot, symlink, tar

pytestmark = pytest.mark.usefixtures("as_root")

Member = tuple[tarfile.TarInfo, bytes]


def put(root: Path, *members: Member, limits: Limits | None = None) -> Unpacked:
    return put_raw(root, tar(*members), limits)


def put_raw(root: Path, data: bytes, limits: Limits | None = None) -> Unpacked:
    limits = limits or Limits()
    root.mkdir(exist_ok=True)
    return unpack(LayerStream(io.BytesIO(data), sha256(data), limits=limits), root, limits)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "layer"


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def test_everything_a_file_has_is_kept(root: Path) -> None:
    caps = bytes.fromhex("0100000200040000000000000000000000000000")
    info = member("d/tool", b"#!", mode=0o4755, uid=100_000, gid=7, mtime=1_000_000_000)
    info[0].pax_headers = {
        "SCHILY.xattr.security.capability": caps.decode("utf-8", "surrogateescape"),
        "SCHILY.xattr.user.note": "n",
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.user.overlay.opaque": "y",
    }
    result = put(
        root,
        directory("d", mode=0o1777, uid=5, mtime=500),
        info,
        symlink("d/link", "/absolute"),
        hardlink("d/same", "d/tool"),
        member("d/null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        member("d/disk", kind=tarfile.BLKTYPE, devmajor=7, devminor=300),
        member("d/pipe", kind=tarfile.FIFOTYPE, mode=0o600),
    )
    assert result == Unpacked(2, 7, False)
    tool = (root / "d/tool").stat()
    assert (stat.S_IMODE(tool.st_mode), tool.st_uid, tool.st_gid, tool.st_mtime, tool.st_nlink) == (
        0o4755,
        100_000,
        7,
        1_000_000_000,
        2,
    )
    assert os.getxattr(root / "d/tool", "security.capability") == caps
    assert sorted(os.listxattr(root / "d/tool")) == ["security.capability", "user.note"]
    where = (root / "d").stat()
    assert (stat.S_IMODE(where.st_mode), where.st_uid, where.st_mtime) == (0o1777, 5, 500)
    assert os.readlink(root / "d/link") == "/absolute"
    assert (root / "d/null").stat().st_rdev == os.makedev(1, 3) and stat.S_IMODE(
        (root / "d/null").stat().st_mode
    ) == 0o666
    assert (root / "d/disk").stat().st_rdev == os.makedev(7, 300) and stat.S_ISFIFO((root / "d/pipe").stat().st_mode)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names(root: Path, format: int) -> None:
    name = "/".join(["n" * 200] * 5)
    put_raw(root, tar(member(name, b"x"), symlink("l", "t" * 3000), format=format))
    assert (root / name).read_bytes() == b"x" and os.readlink(root / "l") == "t" * 3000


def test_sparse_files_stay_sparse(root: Path, tmp_path: Path) -> None:
    with open(tmp_path / "s", "wb") as file:
        file.write(b"begin")
        file.seek(64 << 20)
        file.write(b"end")
    data = subprocess.run(
        ["tar", "-C", str(tmp_path), "--sparse", "-cf", "-", "s"],
        check=True,
        capture_output=True,
    ).stdout
    assert put_raw(root, data).size == (64 << 20) + 3
    assert (root / "s").read_bytes() == (tmp_path / "s").read_bytes()
    assert (root / "s").stat().st_blocks * 512 < 1 << 20


def test_a_later_entry_replaces_an_earlier_one_of_any_kind(root: Path) -> None:
    kinds = [
        member("x", b"file"),
        directory("x"),
        symlink("x", "t"),
        member("x", kind=tarfile.FIFOTYPE),
        hardlink("x", "other"),
    ]
    for first in kinds:
        for second in kinds:
            put(root, member("other", b"o"), first, second)
            mode = (root / "x").lstat().st_mode
            wanted = {tarfile.DIRTYPE: stat.S_ISDIR, tarfile.SYMTYPE: stat.S_ISLNK, tarfile.FIFOTYPE: stat.S_ISFIFO}
            assert wanted.get(second[0].type, stat.S_ISREG)(mode), (first[0].type, second[0].type)
            remove_tree(root)


def test_a_directory_twice_is_one_and_a_full_one_makes_way_for_a_file(root: Path) -> None:
    put(
        root,
        directory("d"),
        member("d/a"),
        directory("d", mode=0o700),
        directory("e/f"),
        member("e/f/g"),
        member("e", b"x"),
    )
    assert (root / "d/a").exists() and stat.S_IMODE((root / "d").stat().st_mode) == 0o700
    assert (root / "e").read_bytes() == b"x"


def test_a_hard_link_onto_the_directory_that_holds_its_target(root: Path) -> None:
    put(root, member("d/f", b"kept"), hardlink("d", "d/f"))
    assert (root / "d").read_bytes() == b"kept"
    assert os.listdir(root) == ["d"]


def test_links_on_the_way_are_followed_within_the_layer_and_replaced_at_its_end(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_text("safe")
    before = snapshot(outside)
    put(
        root,
        directory("real"),
        symlink("rel", "real"),
        symlink("abs", "/real"),
        symlink("up", "../../../../real"),
        member("rel/a", b"1"),
        member("abs/b", b"2"),
        member("up/c", b"3"),
        symlink("f", str(outside / "f")),
        member("f", b"mine"),
        symlink("dir", str(outside)),
        directory("dir"),
        member("dir/f", b"mine"),
    )
    assert sorted(os.listdir(root / "real")) == ["a", "b", "c"]
    assert (root / "f").read_bytes() == b"mine" and (root / "dir/f").read_bytes() == b"mine"
    assert snapshot(outside) == before


def test_whiteouts_and_opaque_directories_become_those_of_overlayfs(root: Path) -> None:
    result = put(
        root,
        member(".wh.gone"),
        directory("d"),
        member("d/.wh..wh..opq"),
        member("d/new"),
        member(".wh..wh.plnk/1.2"),
        member(".wh..wh.aufs"),
        member("e/.wh.x", kind=tarfile.LNKTYPE, linkname="anything"),
    )
    assert is_whiteout(root / "gone") and is_whiteout(root / "e/x") and not result.opaque
    assert os.getxattr(root / "d", OPAQUE) == b"y" and sorted(os.listdir(root)) == ["d", "e", "gone"]


def test_a_whiteout_hides_lower_layers_only_in_either_order(root: Path) -> None:
    put(
        root,
        member("a", b"1"),
        member(".wh.a"),
        member(".wh.b"),
        member("b", b"2"),
        directory("c"),
        member("c/f"),
        member(".wh.c"),
        member(".wh.d"),
        directory("d"),
        member(".wh.e"),
        member("e/f", b"3"),
    )
    assert (
        (root / "a").read_bytes() == b"1" and (root / "b").read_bytes() == b"2" and (root / "e/f").read_bytes() == b"3"
    )
    for name in "cde":  # a directory merges with the one below unless it is opaque
        assert os.getxattr(root / name, OPAQUE) == b"y"
    assert (root / "c/f").exists()


def test_a_whiteout_of_everything_is_told_to_the_store(root: Path) -> None:
    assert put(root, member(".wh..wh..opq"), member("x")).opaque
    assert os.listdir(root) == ["x"]


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ([member("../x")], r"'\.\.'"),
        ([member("a/../../x")], r"'\.\.'"),
        ([member("a/..")], r"'\.\.'"),
        ([hardlink("x", "../../../../etc/passwd")], r"'\.\.'"),
        ([hardlink("x", "/etc/passwd")], "does not hold"),
        ([symlink("s", "/etc"), hardlink("x", "s/passwd")], "does not hold"),
        ([directory("d"), hardlink("x", "d")], "no file"),
        ([hardlink("x", "/")], "root"),
        ([member("a/.wh.")], "bad whiteout"),
        ([member(".wh...")], "bad whiteout"),
        ([member(".wh..")], "bad whiteout"),
        ([member(".wh.a/b")], "whiteout for a directory"),
        ([member(".wh.a"), hardlink("b", "a")], "no file"),
        ([member("f"), member("f/x")], "no directory|cannot be unpacked"),
        ([symlink("s", "missing"), member("s/x")], "no directory"),
        ([symlink("s", "s"), member("s/x")], "symbolic links"),
        ([member("/")], "root"),
        ([member("n" * 300)], "too long"),
        ([member("/".join("a" * 300))], "deep"),
        ([member("c", kind=tarfile.CHRTYPE)], "0/0"),
        ([member("/".join(["n" * 200] * 30))], "4096"),
        ([symlink("s", "t" * 5000)], "target"),
        ([symlink("s", "")], "target"),
        ([directory("d"), member("./")], "root"),
    ],
)
def test_what_is_refused_says_why(root: Path, members: list[Member], word: str) -> None:
    with pytest.raises(BadImage, match=f"(?i){word}"):
        put(root, *members)


def test_bounds_on_entries_sizes_and_names(root: Path) -> None:
    small = Limits(entries=10, layer_bytes=200_000, names=4096)
    with pytest.raises(BadImage, match="entries"):
        put(root, *(member(f"f{i}") for i in range(11)), limits=small)
    with pytest.raises(BadImage, match="entries"):  # directories on the way count
        put(root, member("a/b/c/d/e/f/g/h/i/j/k"), limits=small)
    with pytest.raises(BadImage, match="unpacks to more"):
        put(root, member("f", bytes(200_001)), limits=small)
    with pytest.raises(BadImage, match="bytes of names"):
        put(root, *(member("n" * 250 + f"/{i}" + "m" * 250) for i in range(9)), limits=small)


def test_a_bomb_is_stopped_and_never_held(root: Path) -> None:
    big = tarfile.TarInfo("bomb")
    big.size = 1 << 34
    packer = zlib.compressobj(9, wbits=31)
    head = packer.compress(big.tobuf()) + packer.compress(bytes(64 << 20)) + packer.flush()
    limits = Limits(layer_bytes=16 << 20)
    root.mkdir()
    tracemalloc.start()
    with pytest.raises(BadImage, match="more than 16777216"):
        unpack(LayerStream(io.BytesIO(head), sha256(b""), limits=limits), root, limits)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20
    sparse = member("s")
    sparse[0].pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.size": str(1 << 60),
        "GNU.sparse.map": "",
    }
    with pytest.raises(BadImage, match="more than 16777216"):
        put(root, sparse, limits=limits)


def test_a_full_disk_is_seen_before_it_is_full(root: Path) -> None:
    with pytest.raises(HostError, match="does not fit"):
        put(root, member("f", b"x"), limits=Limits(free_bytes=1 << 62))


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, HostError),
        (errno.EDQUOT, HostError),
        (errno.EPERM, HostError),
        (errno.EIO, HostError),
        (errno.ENAMETOOLONG, BadImage),
        (errno.EMLINK, BadImage),
    ],
)
def test_errors_of_the_system_are_told_apart(number: int, kind: type[CasemateError]) -> None:
    assert type(explain(OSError(number, os.strerror(number), "f"), Path("/x/y"))) is kind


def test_which_attributes_are_kept() -> None:
    assert kept("user.x") and kept("security.capability") and kept("system.posix_acl_access")
    for name in (
        "trusted.x",
        "trusted.overlay.opaque",
        "user.overlay.redirect",
        "security.selinux",
        "security.ima",
        "x",
    ):
        assert not kept(name)


DATA = tar(member("f", os.urandom(300_000)))


@pytest.mark.parametrize(
    "raw",
    [
        DATA,
        gzip.compress(DATA),
        gzip.compress(DATA[:1000]) + gzip.compress(DATA[1000:]),
        zstandard.compress(DATA),
        zstandard.compress(DATA[:9999]) + zstandard.compress(DATA[9999:]),
        b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstandard.compress(DATA),
        b"".join(gzip.compress(DATA[at : at + 64], 1) for at in range(0, len(DATA), 64)),
    ],
    ids=lambda raw: f"{raw[:4].hex()}",
)
def test_compressions_are_known_by_their_magic(root: Path, raw: bytes) -> None:
    root.mkdir()
    unpack(LayerStream(io.BytesIO(raw), sha256(DATA), digest=sha256(raw), size=len(raw)), root)
    assert (root / "f").stat().st_size == 300_000


PACKED = gzip.compress(DATA)


@pytest.mark.parametrize(
    ("raw", "fields", "word"),
    [
        (PACKED, {"digest": sha256(b"")}, "digest"),
        (PACKED, {"diff_id": sha256(b"")}, "unpacked layer's digest"),
        (PACKED[:-9], {}, "ends too soon"),
        (PACKED + b"rubbish", {}, "damaged"),
        (PACKED[:99] + b"\0" + PACKED[100:], {}, "damaged|digest|ends|tar"),
        (PACKED, {"size": len(PACKED) - 1}, "larger"),
        (PACKED, {"size": len(PACKED) + 1}, "bytes and should"),
        (PACKED, {"media_type": "application/vnd.oci.image.layer.v1.tar+zstd"}, "says that it is zstd"),
        (PACKED, {"media_type": "text/plain"}, "media type"),
        (DATA + b"x", {}, "digest"),
        (zstandard.compress(DATA)[:-10], {}, "damaged|digest|ends"),
        (b"BZh91AY&SY", {}, "bzip2"),
        (b"\xfd7zXZ\0", {}, "xz"),
        (b"", {}, "digest"),
    ],
    ids=[
        "digest", "diff-id", "cut", "more-after", "damaged", "larger", "smaller", "zstd-type", "other-type",
        "more-inside", "zstd-cut", "bzip2", "xz", "empty",
    ],
)
def test_damaged_or_false_layers_are_refused(root: Path, raw: bytes, fields: dict[str, str], word: str) -> None:
    root.mkdir()
    options: dict[str, object] = {"diff_id": sha256(DATA), **fields}
    with pytest.raises(BadImage, match=word):
        unpack(LayerStream(io.BytesIO(raw), **options), root)  # type: ignore[arg-type]


def test_a_zstd_window_is_bounded() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(19, window_log=27)
    raw = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = raw.compress(bytes(1000)) + raw.flush()
    with pytest.raises(BadImage, match="zstd"):
        list(LayerStream(io.BytesIO(data), sha256(b""), limits=Limits(window=1 << 20)))


def test_sniffing() -> None:
    assert [sniff(start) for start in (b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x5f\x2a\x4d\x18", b"./")] == [
        "none",
        "gzip",
        "zstd",
        "zstd",
        "none",
    ]


def test_trees_of_any_depth_and_with_any_names_are_removed(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    os.mkdir("top", dir_fd=fd)
    deepest = os.open("top", os.O_RDONLY, dir_fd=fd)
    for _ in range(3000):  # deeper than any path, stack or table of descriptors
        os.mkdir(b"\xff", dir_fd=deepest)
        os.close(os.open("f", os.O_CREAT, dir_fd=deepest))
        inner = os.open(b"\xff", os.O_RDONLY, dir_fd=deepest)
        os.close(deepest)
        deepest = inner
    os.symlink("/etc", "0", dir_fd=deepest)
    os.close(deepest)
    os.close(fd)
    for name in ("0", "1", ".casemate-0"):
        (tmp_path / "top" / name / "1").mkdir(parents=True)
    remove_tree(tmp_path / "top")
    assert os.listdir(tmp_path) == []
    remove_tree(tmp_path / "top")  # again is fine


_part = st.sampled_from(["a", "b", "s", "..", ".", "", ".wh.a", ".wh..wh..opq", ".wh."])
_name = st.lists(_part, min_size=1, max_size=4).map("/".join) | st.just("@/victim") | st.just("@")
_target = _name | st.sampled_from(
    ["/", "..", "../..", "../../outside", "../outside/victim", "@", "@/victim", "a", "s", "/a"]
)
_kind = st.sampled_from(
    [
        tarfile.REGTYPE,
        tarfile.DIRTYPE,
        tarfile.SYMTYPE,
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CHRTYPE,
    ]
)


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(_kind, _name, _target, st.integers(0, 0o7777)), min_size=1, max_size=12))
def test_no_layer_writes_outside(entries: list[tuple[bytes, str, str, int]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        outside = top / "outside"
        outside.mkdir()
        (outside / "victim").write_text("untouched")
        (outside / "link").symlink_to("victim")
        before, names = snapshot(outside), sorted(os.listdir(top))
        members = []
        for kind, path, target, mode in entries:
            path, target = path.replace("@", str(outside)), target.replace("@", str(outside))
            data = b"overwritten" if kind == tarfile.REGTYPE else b""
            members.append(
                member(path, data, kind, linkname=target, mode=mode, devmajor=1, devminor=3, uid=1234, mtime=99)
            )
        # Each alone as well, so that one that is refused does not shield those after it.
        for chosen in [members, *([one] for one in members)]:
            root = top / "layer"
            try:
                put(root, *chosen)
            except BadImage as error:
                assert "\n" not in str(error)
            assert snapshot(outside) == before
            remove_tree(root)
            assert sorted(os.listdir(top)) == names

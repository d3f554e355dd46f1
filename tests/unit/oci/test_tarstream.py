"""The tar reader: the formats that exist, agreement with other tools, and damage."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.errors import BadImage
from casemate.oci.limits import Limits
from casemate.oci.tarstream import Entry, Feed, TarReader
from tests.unit.oci.builders import directory, member, symlink, tar


def read(data: bytes, limits: Limits | None = None, piece: int = 1000) -> list[tuple[Entry, bytes]]:
    """Every entry with its stored data, fed in pieces of an odd size."""
    feed = Feed(iter([data[at : at + piece] for at in range(0, len(data), piece)]))
    reader = TarReader(feed, limits or Limits())
    return [(entry, b"".join(reader.data())) for entry in reader]


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.text(alphabet="abé-", min_size=1, max_size=300), st.binary(max_size=1500)), max_size=6),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(1, 3000),
)
def test_what_python_writes_is_read(files: list[tuple[str, bytes]], format: int, piece: int) -> None:
    data = tar(*(member(name, content, mtime=7, uid=1 << 30) for name, content in files), format=format)
    with tarfile.open(fileobj=io.BytesIO(data)) as other:
        names = [info.name for info in other]
    got = read(data, piece=piece)
    assert [(os.fsdecode(entry.name).rstrip("/"), content) for entry, content in got] == [
        (name, content) for name, (_, content) in zip(names, files, strict=True)
    ]
    assert all(entry.uid == 1 << 30 and entry.mtime_ns == 7 * 10**9 for entry, _ in got)


def test_ustar_prefix_types_and_numbers() -> None:
    name = "d" * 120 + "/" + "f" * 90
    data = tar(
        member(name, b"x", uid=12, gid=34, mode=0o4755),
        directory("d/"),
        symlink("l", "../t"),
        member("c", kind=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("p", kind=tarfile.FIFOTYPE),
        format=tarfile.USTAR_FORMAT,
    )
    entries = [entry for entry, _ in read(data)]
    assert [entry.kind for entry in entries] == [b"0", b"5", b"2", b"3", b"6"]
    assert (entries[0].name.decode(), entries[0].mode, entries[0].uid, entries[0].gid) == (name, 0o4755, 12, 34)
    assert (entries[2].link, entries[3].device) == (b"../t", os.makedev(1, 3))


def test_pax_records_win_and_fractions_of_seconds_count() -> None:
    info, content = member("short", b"abc")
    info.pax_headers = {"mtime": "12.5", "SCHILY.xattr.user.k": "v", "path": "long/name"}
    entry, got = read(tar((info, content)))[0]
    assert (entry.name, entry.mtime_ns, entry.xattrs, got) == (b"long/name", 12_500_000_000, {"user.k": b"v"}, b"abc")


def test_negative_times_and_large_numbers_in_base_256() -> None:
    data = tar(member("a", mtime=-5, uid=0xFFFF_FFFE), format=tarfile.GNU_FORMAT)
    entry = read(data)[0][0]
    assert (entry.mtime_ns, entry.uid) == (-5 * 10**9, 0xFFFF_FFFE)


@pytest.mark.parametrize(
    "options",
    [
        ("--format=gnu",),
        ("--format=posix", "--sparse-version=0.0"),
        ("--format=posix", "--sparse-version=0.1"),
        ("--format=posix", "--sparse-version=1.0"),
    ],
)
def test_sparse_files_of_gnu_tar(tmp_path: Path, options: tuple[str, ...]) -> None:
    source = tmp_path / "sparse"
    with open(source, "wb") as file:
        for at in range(0, 40):  # more pieces than one header holds
            file.seek(at * 65536)
            file.write(b"%d" % at * 2048)
        file.truncate(41 * 65536)
    archive = subprocess.run(
        ["tar", "-C", str(tmp_path), "--sparse", *options, "-cf", "-", "sparse"],
        check=True,
        capture_output=True,
    ).stdout
    ((entry, stored),) = read(archive)
    assert entry.name == b"sparse" and entry.fragments and len(stored) < entry.size == 41 * 65536
    rebuilt, at = bytearray(entry.size), 0
    for offset, length in entry.fragments:
        rebuilt[offset : offset + length] = stored[at : at + length]
        at += length
    assert rebuilt == source.read_bytes()


def patched(data: bytes, at: int, new: bytes) -> bytes:
    """Change a header and mend its checksum."""
    block = bytearray(data[:512])
    block[at : at + len(new)] = new
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data[512:]


PLAIN = tar(member("name", b"data"), format=tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (PLAIN[:100], "ends"),
        (PLAIN[:514], "ends"),
        (PLAIN[:600] + b"", "ends"),
        (b"\1" + PLAIN[1:], "checksum"),
        (patched(PLAIN, 124, b"9" * 11), "size"),
        (patched(PLAIN, 124, b"\xff" * 12), "range"),
        (patched(PLAIN, 124, b"\x80" + b"\xff" * 11), "range"),
        (patched(PLAIN, 108, b"\x80\0\0\0\xff\xff\xff\xff"), "range"),
        (patched(PLAIN, 156, b"Z"), "type"),
        (patched(PLAIN, 156, b"x"), "pax"),
        (bytes(512) + PLAIN, "zeros"),
        (patched(PLAIN, 156, b"S"), "map"),
        (
            patched(
                patched(tar(member("c", kind=tarfile.CHRTYPE), format=tarfile.USTAR_FORMAT), 329, b"7777777\0"), 0, b"c"
            ),
            "device",
        ),
    ],
)
def test_damage_is_seen(data: bytes, word: str) -> None:
    with pytest.raises(BadImage, match=word):
        read(data)


def pax(*records: bytes) -> bytes:
    """A pax header of raw records, before a file."""
    body = b"".join(records)
    info = tarfile.TarInfo("pax")
    info.type, info.size = b"x", len(body)
    return info.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512) + PLAIN


@pytest.mark.parametrize(
    "record",
    [
        b"4 a=\n",
        b"8 path=x\n",
        b"99 path=xx\n",
        b"-1 path=x\n",
        b"path=x\n",
        b"10 path\0=x\n",
        b"11 path=\0\0\0\n",
        b"9999999999999999999999 a=b\n",
        b"10 size=x1\n",
        b"11 uid=-12\n",
        b"13 mtime=1.x\n",
        b"6 \xff=1\n",
        b"5 =bc\n",
        b"26 GNU.sparse.numbytes=12\n",
    ],
)
def test_damaged_pax_records_are_refused(record: bytes) -> None:
    with pytest.raises(BadImage):
        read(pax(record))


def test_extended_headers_are_bounded_before_they_are_read() -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = b"x", 1 << 40
    with pytest.raises(BadImage, match="extended"):
        read(info.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(BadImage, match="too many extended"):
        read(pax(b"6 a=b\n")[:1024] * 20_000, piece=1 << 20)
    with pytest.raises(BadImage, match="attributes"):
        read(pax(*(b"25 SCHILY.xattr.user.%02d=\n" % i for i in range(100))))


def test_an_archive_may_end_without_zeros_as_for_go() -> None:
    assert [content for _, content in read(PLAIN[:1024])] == [b"data"]


@settings(max_examples=400)
@given(st.data())
def test_random_damage_is_an_error_or_harmless(data: st.DataObject) -> None:
    whole = bytearray(
        tar(member("a" * 150, b"x" * 700, pax_headers={"comment": "c"}), directory("d"), symlink("l", "t"))
    )
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, min(len(whole), 4096) - 1))
        whole[at] = data.draw(st.integers(0, 255))
        if at % 512 not in range(148, 156):  # half of the time the checksum is made to fit, so that more is reached
            start = at - at % 512
            block = whole[start : start + 512]
            block[148:156] = b" " * 8
            whole[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    try:
        entries = read(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    except BadImage:
        return
    assert len(entries) <= 8

"""Copying: Docker's rules for where things go, and that nothing outside the destination is touched."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.cli import cp, tree
from casemate.cli.main import main
from casemate.errors import CasemateError, UsageError
from tests.unit.cli.fakes import World

OUT = tree.Options()


def copy(source: str | Path, destination: str | Path, options: tree.Options = OUT) -> None:
    """Pack in a thread, unpack here."""
    reader, writer = os.pipe()
    problems: list[Exception] = []

    def pack() -> None:
        try:
            tree.pack(str(source), writer, options)
        except Exception as error:
            problems.append(error)
        finally:
            os.close(writer)

    thread = threading.Thread(target=pack)
    thread.start()
    try:
        tree.unpack(reader, str(destination), options)
    except CasemateError as error:
        if error.message:
            raise
    finally:
        os.close(reader)
        thread.join()
    if problems:
        raise problems[0]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = tmp_path / "src"
    (made / "sub").mkdir(parents=True)
    (made / "file").write_bytes(bytes(range(256)) * 10)
    (made / "file").chmod(0o640)
    (made / "sub" / "deep").write_text("deep")
    os.link(made / "sub" / "deep", made / "twin")
    (made / "link").symlink_to("file")
    (made / "dangling").symlink_to("/nowhere/at/all")
    (made / "sub").chmod(0o555)
    os.utime(made / "file", (1_600_000_000, 1_600_000_000))
    os.mkfifo(made / "pipe")
    return made


def test_a_directory_into_one_that_exists(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    destination = tmp_path / "dst"
    destination.mkdir()
    copy(source, destination)
    made = destination / "src"
    assert (made / "file").read_bytes() == (source / "file").read_bytes()
    status = (made / "file").stat()
    assert (status.st_mode & 0o7777, status.st_mtime) == (0o640, 1_600_000_000)
    assert os.readlink(made / "link") == "file" and os.readlink(made / "dangling") == "/nowhere/at/all"
    assert (made / "twin").stat().st_ino == (made / "sub" / "deep").stat().st_ino, "hard links stay"
    assert (made / "sub").stat().st_mode & 0o777 == 0o555
    assert not (made / "pipe").exists()
    assert "src/pipe is neither file, directory nor link: left out" in capsys.readouterr().err


def test_a_directory_to_a_new_name(source: Path, tmp_path: Path) -> None:
    copy(source, tmp_path / "new")
    assert (tmp_path / "new" / "sub" / "deep").read_text() == "deep"
    assert (tmp_path / "new" / "twin").stat().st_nlink == 2
    copy(source, str(tmp_path / "slash") + "/")
    assert (tmp_path / "slash" / "file").exists()


def test_the_contents_of_a_directory(source: Path, tmp_path: Path) -> None:
    destination = tmp_path / "dst"
    destination.mkdir()
    copy(f"{source}/.", destination)
    assert (destination / "file").exists() and not (destination / "src").exists()
    copy(f"{source}/.", tmp_path / "new")
    assert (tmp_path / "new" / "sub" / "deep").exists()


def test_a_file(source: Path, tmp_path: Path) -> None:
    copy(source / "file", tmp_path / "name")
    assert (tmp_path / "name").stat().st_size == 2560
    (tmp_path / "dir").mkdir()
    copy(source / "file", tmp_path / "dir")
    assert (tmp_path / "dir" / "file").exists()
    (tmp_path / "old").write_text("old")
    copy(source / "file", tmp_path / "old")
    assert (tmp_path / "old").stat().st_size == 2560


def test_a_link_is_copied_as_one_unless_it_is_to_be_followed(source: Path, tmp_path: Path) -> None:
    copy(source / "link", tmp_path / "as-link")
    assert (tmp_path / "as-link").is_symlink()
    copy(source / "link", tmp_path / "followed", tree.Options(follow_source=True))
    assert not (tmp_path / "followed").is_symlink() and (tmp_path / "followed").stat().st_size == 2560


@pytest.mark.parametrize(
    ("what", "where", "message"),
    [
        ("src/file", "no/parent", "there is no directory"),
        ("src/file", "missing/", "there is no directory"),
        ("src", "plain", "a directory cannot replace it"),
        ("src/file", "plain/", "not a directory|Not a directory"),
        ("src/file/", "dst", "is not a directory|Not a directory"),
        ("src/file", "full", "is a directory, and a file cannot replace it"),
        ("src/file", "loose", "a link that leads nowhere"),
    ],
)
def test_what_does_not_fit(source: Path, tmp_path: Path, what: str, where: str, message: str) -> None:
    (tmp_path / "plain").write_text("x")
    (tmp_path / "full" / "file").mkdir(parents=True)
    (tmp_path / "loose").symlink_to("nowhere")
    ending = "/" if where.endswith("/") else ""
    with pytest.raises((CasemateError, OSError), match=message):
        copy(f"{tmp_path}/{what}", f"{tmp_path / where}{ending}")
    assert (tmp_path / "plain").read_text() == "x"


def test_a_source_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CasemateError, match="there is no"):
        reader, writer = os.pipe()
        try:
            tree.pack(str(tmp_path / "missing"), writer, OUT)
        finally:
            os.close(reader)
            os.close(writer)


def test_special_bits_do_not_leave_a_container(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("x")
    program.chmod(0o6755)
    copy(program, tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o7777 == 0o755
    copy(program, tmp_path / "kept", tree.Options(special_bits=True))
    assert (tmp_path / "kept").stat().st_mode & 0o7777 == 0o6755


def test_links_at_the_destination_are_not_followed(tmp_path: Path) -> None:
    """What an earlier copy out of a hostile container put there."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "passwd").write_text("precious")
    evil = tmp_path / "evil"
    (evil / "dir").mkdir(parents=True)
    (evil / "dir" / "passwd").write_text("owned")
    (evil / "passwd").write_text("owned")
    destination = tmp_path / "dst"
    destination.mkdir()
    (destination / "dir").symlink_to(outside)
    (destination / "passwd").symlink_to(outside / "passwd")
    with pytest.raises(CasemateError, match="no directory"):
        copy(f"{evil}/.", destination)
    assert (outside / "passwd").read_text() == "precious"
    (destination / "dir").unlink()
    copy(f"{evil}/.", destination)
    assert (outside / "passwd").read_text() == "precious"
    assert not (destination / "passwd").is_symlink(), "the link was replaced, not followed"


def archive(*entries: tuple[str, dict[str, Any], bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, fields, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in fields.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


def unpack(data: bytes, destination: Path, options: tree.Options = OUT, foreign: bool = True) -> None:
    path = destination.with_name("archive.tar")
    path.write_bytes(data)
    with open(path, "rb") as file:
        tree.unpack(file.fileno(), str(destination), options, foreign=foreign)


HOSTILE: list[bytes] = [
    archive(("../evil", {}, b"x")),
    archive(("a/../../evil", {}, b"x")),
    archive(("link", {"type": tarfile.SYMTYPE, "linkname": ".."}, b""), ("link/evil", {}, b"x")),
    archive(("link", {"type": tarfile.SYMTYPE, "linkname": "../outside"}, b""), ("link/evil", {}, b"x")),
    archive(("hard", {"type": tarfile.LNKTYPE, "linkname": "../outside/precious"}, b"")),
    archive(
        ("link", {"type": tarfile.SYMTYPE, "linkname": "../outside"}, b""),
        ("hard", {"type": tarfile.LNKTYPE, "linkname": "link/precious"}, b""),
    ),
    archive(("d", {"type": tarfile.DIRTYPE}, b""), ("d", {"type": tarfile.SYMTYPE, "linkname": ".."}, b"")),
    archive(("/".join(["d"] * 400), {}, b"x")),
]


@pytest.mark.parametrize("data", HOSTILE)
def test_a_hostile_archive_stays_inside(tmp_path: Path, data: bytes) -> None:
    destination = tmp_path / "dst"
    destination.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    with pytest.raises((CasemateError, OSError)):
        unpack(data, destination)
    assert not (tmp_path / "evil").exists()
    assert os.listdir(outside) == ["precious"]
    assert (outside / "precious").stat().st_nlink == 1


def test_a_link_over_a_file_and_a_file_over_that_link(tmp_path: Path) -> None:
    destination = tmp_path / "dst"
    destination.mkdir()
    (tmp_path / "precious").write_text("precious")
    unpack(
        archive(("x", {"type": tarfile.SYMTYPE, "linkname": "../precious"}, b""), ("x", {}, b"new")), destination
    )
    assert (tmp_path / "precious").read_text() == "precious"
    assert (destination / "x").read_text() == "new"


def test_absolute_names_are_taken_from_the_destination(tmp_path: Path) -> None:
    destination = tmp_path / "dst"
    destination.mkdir()
    unpack(archive(("/etc/hosts", {}, b"x"), ("./a//b", {}, b"y")), destination)
    assert (destination / "etc" / "hosts").read_text() == "x"
    assert (destination / "a" / "b").read_text() == "y"


def test_inside_a_container_links_to_directories_are_passed_through(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "usr" / "bin").mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    unpack(archive(("bin/tool", {}, b"x")), root, tree.Options(follow_links=True))
    assert (root / "usr" / "bin" / "tool").exists()


@pytest.mark.parametrize("data", [b"not a tar", b"x" * 5000, archive(("a", {}, b"x" * 2000))[:1024]])
def test_broken_archives(tmp_path: Path, data: bytes) -> None:
    destination = tmp_path / "dst"
    destination.mkdir()
    with pytest.raises(CasemateError, match="no whole tar archive"):
        unpack(data, destination)


def test_an_archive_needs_a_directory(tmp_path: Path) -> None:
    with pytest.raises(CasemateError, match="no directory"):
        unpack(archive(("a", {}, b"x")), tmp_path / "missing")


def test_names_that_are_not_utf8_and_very_long_ones(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    odd = os.fsdecode(b"\xff\xfe odd\n")
    (source / odd).write_text("odd")
    (source / ("n" * 250)).write_text("long")
    copy(source, tmp_path / "dst")
    assert sorted(os.listdir(tmp_path / "dst")) == sorted([odd, "n" * 250])


def test_packing_the_root_of_a_container(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        try:
            tree.pack("/usr/lib", writer, OUT)
        finally:
            os.close(writer)


# ---- the command


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("c:/x", ("c", "/x")), ("c:x", ("c", "x")), ("/a:b", (None, "/a:b")), ("./a:b", (None, "./a:b")),
        ("a", (None, "a")), ("-", (None, "-")), ("c:/a:b", ("c", "/a:b")), (".:x", (None, ".:x")), (":x", (None, ":x")),
    ],
)  # fmt: skip
def test_which_side_is_the_container(word: str, expected: tuple[str | None, str]) -> None:
    assert cp.split(word) == expected


def test_a_container_without_a_path() -> None:
    with pytest.raises(UsageError, match="names no path"):
        cp.split("c:")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A container whose root directory is ``inside``, entered without chroot."""
    from casemate.keeper import rootfs

    made = World(tmp_path, monkeypatch)
    made.add("c")
    root = tmp_path / "inside"
    root.mkdir()

    def run_in(container: Any, function: Callable[[], int]) -> int:
        child = os.fork()
        if child == 0:
            status = 255
            try:
                status = function()
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    monkeypatch.setattr(rootfs, "run_in", run_in)
    monkeypatch.setattr(cp, "inside", lambda path: str(root) + "/" + path.lstrip("/"))
    return made


def test_both_ways(world: World, source: Path, tmp_path: Path) -> None:
    assert main(["cp", str(source), "c:/"]) == 0
    assert (tmp_path / "inside" / "src" / "sub" / "deep").read_text() == "deep"
    assert main(["cp", "c:src/sub", str(tmp_path / "back")]) == 0
    assert (tmp_path / "back" / "deep").read_text() == "deep"
    assert main(["cp", str(source / "file"), str(source / "twin"), "c:/src/sub"]) == 0
    assert {"file", "twin"} <= set(os.listdir(tmp_path / "inside" / "src" / "sub"))


def test_a_large_tree_does_not_stall(world: World, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.mkdir()
    for number in range(20):
        (big / str(number)).write_bytes(os.urandom(1 << 19))
    assert main(["cp", str(big), "c:/"]) == 0
    assert main(["cp", "c:/big", str(tmp_path / "back")]) == 0
    assert all((tmp_path / "back" / p.name).read_bytes() == p.read_bytes() for p in big.iterdir())


def test_tar_streams(world: World, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    (tmp_path / "in.tar").write_bytes(archive(("d/f", {}, b"hello")))
    saved = os.dup(0)
    descriptor = os.open(tmp_path / "in.tar", os.O_RDONLY)
    try:
        os.dup2(descriptor, 0)
        assert main(["cp", "-", "c:/"]) == 0
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(descriptor)
    assert (tmp_path / "inside" / "d" / "f").read_text() == "hello"
    assert main(["cp", "c:/d", "-"]) == 0
    with tarfile.open(fileobj=io.BytesIO(capfdbinary.readouterr().out)) as tar:
        assert tar.getnames() == ["d", "d/f"]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["c:/missing", "{tmp}"], 1, "there is no"),
        (["{tmp}/missing", "c:/"], 1, "there is no"),
        (["{tmp}/src", "c:/no/where"], 1, "there is no directory"),
        (["c:/", "{tmp}/no/where"], 1, "there is no directory"),
        (["{tmp}/src/file", "{tmp}/src/twin", "c:/missing"], 1, "there is no directory"),
        (["a", "b"], 125, "one side of cp"),
        (["c:a", "c:b"], 125, "one side of cp"),
        (["a"], 125, "source and a destination"),
        (["-", "a", "c:/"], 125, "- stands alone"),
        (["gone:/a", "b"], 1, "no such container"),
    ],
)
def test_errors_are_told_once(
    world: World, source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], status: int,
    message: str,
) -> None:  # fmt: skip
    assert main(["cp", *(word.format(tmp=tmp_path) for word in words)]) == status
    lines = capfd.readouterr().err.splitlines()
    assert any(message in line for line in lines)
    assert all(line.startswith("casemate: ") for line in lines)


KINDS = st.sampled_from([b"0", b"1", b"2", b"5"])
ENTRY = st.tuples(st.text("ab./\0é", max_size=12), KINDS, st.text("ab./", max_size=8))


@given(st.lists(ENTRY, max_size=8))
def test_any_archive_stays_inside(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, bytes, str]]
) -> None:
    base = tmp_path_factory.mktemp("hostile")
    destination = base / "dst"
    destination.mkdir()
    data = archive(*((name, {"type": kind, "linkname": link}, b"") for name, kind, link in entries))
    with contextlib.suppress(CasemateError, OSError):
        unpack(data, destination)
    assert sorted(os.listdir(base)) == ["archive.tar", "dst"]

"""Memory of templates: copies with holes, seals, and taking it from another process."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.config import Config
from casemate.errors import TemplateError
from casemate.vm import notes
from casemate.vm.template import memory

PAGE = memory.PAGE
KEY = "ab" * 32


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return replace(Config(), root=tmp_path / "root", run=tmp_path / "run")


@pytest.fixture
def on_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "memory"
    with open(path, "wb") as file:
        file.truncate(64 * PAGE)
        file.seek(3 * PAGE)
        file.write(b"kernel" * 1000)
    yield path


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


@given(st.lists(st.sampled_from([b"\0", b"\1", b"x"]), max_size=700))
def test_a_copy_without_zeros_reads_the_same(pages: list[bytes]) -> None:
    source, target = memory.create("source", len(pages) * PAGE), memory.create("target", 0)
    try:
        for number, byte in enumerate(pages):
            os.pwrite(source, byte * PAGE, number * PAGE)
        memory.copy_without_zeros(source, target)
        assert content(target) == content(source)
        assert os.fstat(target).st_blocks * 512 <= sum(byte != b"\0" for byte in pages) * PAGE
    finally:
        os.close(source)
        os.close(target)


def test_holes_stay(on_disk: Path) -> None:
    fd = memory.read(on_disk, "test")
    assert content(fd) == on_disk.read_bytes()
    assert os.fstat(fd).st_blocks * 512 < 8 * PAGE
    os.close(fd)


def test_nobody_writes_to_it(config: Config, on_disk: Path) -> None:
    shared = memory.take(config, KEY, on_disk, 64 * PAGE, "mine")
    with pytest.raises(PermissionError):
        os.pwrite(shared.fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(shared.fd, 0)
    with pytest.raises(PermissionError):
        mmap.mmap(shared.fd, 64 * PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    private = mmap.mmap(shared.fd, 64 * PAGE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    private[:6] = b"guest!"
    assert os.pread(shared.fd, 6, 0) == bytes(6)
    private.close()
    shared.close()


_HOLDER = """
import sys
from dataclasses import replace
from pathlib import Path
from casemate.config import Config
from casemate.vm.template import memory
config = replace(Config(), run=Path(sys.argv[1]))
shared = memory.take(config, sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), "other")
print("ready", flush=True)
sys.stdin.read()
"""


def holder(config: Config, path: Path, size: int) -> subprocess.Popen[str]:
    arguments = [str(config.run), KEY, str(path), str(size)]
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_it_is_taken_from_a_process_that_has_it(config: Config, on_disk: Path) -> None:
    expected = on_disk.read_bytes()
    with holder(config, on_disk, 64 * PAGE) as process:
        on_disk.unlink()  # now only the process has it
        shared = memory.take(config, KEY, on_disk, 64 * PAGE, "mine")
        assert content(shared.fd) == expected
        process.kill()
    again = memory.take(config, KEY, on_disk, 64 * PAGE, "mine")  # from this one
    assert content(again.fd) == expected
    again.close()
    shared.close()


def test_notes_of_the_dead_are_removed(config: Config, on_disk: Path) -> None:
    with holder(config, on_disk, 64 * PAGE) as process:
        process.kill()
    notes = config.run / "templates" / KEY
    assert [path.name for path in notes.iterdir()] == ["other"]
    shared = memory.take(config, KEY, on_disk, 64 * PAGE, "mine")
    assert [path.name for path in notes.iterdir()] == ["mine"]
    shared.close()
    assert not (config.run / "templates").exists()


@pytest.mark.parametrize("sealed", [False, True])
def test_what_another_process_offers_has_to_be_sealed_and_of_that_size(
    config: Config, on_disk: Path, sealed: bool
) -> None:
    other = memory.create(f"casemate-template-{KEY[:16]}", 32 * PAGE if sealed else 64 * PAGE)
    os.pwrite(other, b"forged", 0)
    if sealed:
        memory.seal(other)
    note = config.run / "templates" / KEY / "other"
    note.parent.mkdir(parents=True)
    note.write_text(f"{os.getpid()} {other}")
    shared = memory.take(config, KEY, on_disk, 64 * PAGE, "mine")
    assert content(shared.fd) == on_disk.read_bytes()
    shared.close()
    os.close(other)


@pytest.mark.parametrize("words", ["", "x", "99999", "1 2 3", "99999999 3", "-1 -1", "0 0", "\u0661 3"])
def test_notes_that_say_nothing(config: Config, on_disk: Path, words: str) -> None:
    note = config.run / "templates" / KEY / "other"
    note.parent.mkdir(parents=True)
    note.write_text(words)
    memory.take(config, KEY, on_disk, 64 * PAGE, "mine").close()
    assert not (config.run / "templates").exists()


def test_the_note_of_a_dead_keeper_goes_with_its_sandbox(config: Config, on_disk: Path) -> None:
    with holder(config, on_disk, 64 * PAGE) as process:
        process.kill()
    shared = memory.take(config, "another", on_disk, 64 * PAGE, "mine")
    notes.forget(config.run, "other")
    assert [path.name for path in config.run.glob("templates/*/*")] == ["mine"]
    shared.close()
    assert not (config.run / "templates").exists()
    notes.forget(config.run, "other")


def test_a_file_that_was_cut_short(config: Config, on_disk: Path) -> None:
    os.truncate(on_disk, PAGE)
    with pytest.raises(TemplateError, match="cut short"):
        memory.take(config, KEY, on_disk, 64 * PAGE, "mine")
    with pytest.raises(TemplateError, match="No such file"):
        memory.take(config, KEY, on_disk.with_name("gone"), 64 * PAGE, "mine")

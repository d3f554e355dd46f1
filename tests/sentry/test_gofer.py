"""The host's own files behind the sentry, by its gofer: in shared and in exclusive trees, and over the host's root."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sentry import lab
from tests.sentry.lab import C, build, native, sentry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the sentry is started by root")

CASES = ["calls/names.c", *sorted(f"files/{path.name}" for path in (C / "files").glob("*.c"))]
FAILED = 125
"""Exit status of ``casemate do`` when it is not the program's."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that others may search."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_mode & 0o5 != 0o5:
            path.chmod(path.stat().st_mode | 0o5)
    return tmp_path


def exclusive(argv: list[str], cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a program where the sentry keeps all that it knows of the host's files."""
    program = Path(__file__).with_name("writable_do.py")
    return subprocess.run(
        [sys.executable, str(program), str(cwd), *argv], capture_output=True, timeout=lab.RUN_SECONDS
    )


@pytest.mark.parametrize("case", CASES)
def test_files_of_a_shared_tree(case: str, place: Path) -> None:
    program = str(build(C / case))
    here, there = place / "here", place / "there"
    here.mkdir()
    there.mkdir()
    assert native([program], cwd=str(there)).returncode == 0
    done = sentry([program], cwd=str(here), options=["--rw"])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES)
def test_files_of_an_exclusive_tree(case: str, place: Path) -> None:
    done = exclusive([str(build(C / case))], place)
    assert done.returncode == 0, done.stdout + done.stderr


SCRIPT = r"""
set -e
mkdir -p a/b/c; echo one > a/b/one; ln a/b/one a/two; ln -s b/one a/three; cat a/three a/two
mv a/b d; cat d/one; test ! -e a/three; mkfifo p; (echo through > p &); cat p; rm p
for i in 1 2 3 4 5 6 7 8 9; do echo $i > d/c/$i; done; cat d/c/*; rm d/c/[1-5]; ls d/c
chmod 750 d; chown 12:34 d/one; stat -c '%a %u %g %h' d; stat -c '%a %u %g %h %s' a/two
truncate -s 5000 d/one; stat -c '%s' a/two
tar cf t.tar a d; mkdir x; tar xf t.tar -C x; diff -r d x/d; cp -a x y; diff -r --no-dereference x y; rm -rf x t.tar
touch -d 2001-02-03 y; stat -c %y y; find . | sort; du --apparent-size y/d/c/* | sort
"""


@pytest.mark.parametrize("how", ["overlay", "shared", "exclusive"])
def test_shell_script_does_the_same(how: str, place: Path) -> None:
    mine, theirs = place / "mine", place / "theirs"
    mine.mkdir()
    theirs.mkdir()
    argv = ["bash", "-c", SCRIPT]
    expected = native(argv, cwd=str(theirs))
    assert expected.returncode == 0, expected.stderr
    if how == "exclusive":
        done = exclusive(argv, mine)
    else:
        done = sentry(argv, cwd=str(mine), options=["--rw"] if how == "shared" else [])
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, expected.stdout.decode(), b"")
    if how == "overlay":
        assert list(mine.iterdir()) == []
    else:
        assert subprocess.run(["diff", "-r", "--no-dereference", str(mine), str(theirs)]).returncode == 0
        assert (mine / "d" / "one").stat().st_uid == 12


def test_overlay_leaves_the_hosts_files_alone(place: Path) -> None:
    (place / "dir").mkdir()
    (place / "dir" / "file").write_text("as it was")
    (place / "gone").write_text("x")
    before = [(path.name, path.stat().st_mtime_ns, path.stat().st_mode) for path in sorted(place.rglob("*"))]
    script = "echo more >> dir/file; chmod 600 dir/file; rm gone; mv dir other; echo x > other/new; cat other/file; ls"
    done = sentry(["sh", "-c", script], cwd=str(place))
    assert (done.returncode, done.stdout) == (0, b"as it wasmore\nother\n")
    assert before == [(path.name, path.stat().st_mtime_ns, path.stat().st_mode) for path in sorted(place.rglob("*"))]
    assert (place / "dir" / "file").read_text() == "as it was"


def test_changes_of_others_are_seen_in_a_shared_tree(place: Path) -> None:
    """The program waits for a file of the host's, and the host for one of its."""
    script = "echo up; while ! test -e theirs; do sleep 0.02; done; cat theirs; >mine; while test -e mine; do :; done"
    command = [sys.executable, "-P", "-m", "casemate", "do", "--rw", f"--cwd={place}", "--", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        (place / "theirs").write_text("theirs")
        end = time.monotonic() + 60
        while not (place / "mine").exists():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.02)
        (place / "mine").unlink()
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (0, b"theirs", b"")


def test_the_hosts_kernel_is_not_among_its_files() -> None:
    """What the sandbox has of /proc is its own; below it, the gofer serves an empty directory."""
    done = sentry(["sh", "-c", "umount -l /sys; umount -l /proc && ls -A /sys /proc; ls /proc/1 2>&1 | wc -l"])
    assert done.stdout.split() == [b"/proc:", b"/sys:", b"1"], done.stdout + done.stderr


def test_end_of_the_gofer_ends_the_sandbox_and_says_so() -> None:
    command = [sys.executable, "-P", "-m", "casemate", "do", "--", "sh", "-c", "echo up; sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        gofers = [pid for pid in descendants(process.pid) if name_of(pid) == "casemate-gofer"]
        assert len(gofers) == 1
        os.kill(gofers[0], signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == FAILED
    assert b"the file server ended (SIGKILL)" in stderr
    assert all(not Path(f"/proc/{pid}").exists() for pid in gofers)


def descendants(pid: int) -> list[int]:
    """A process' children, and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()

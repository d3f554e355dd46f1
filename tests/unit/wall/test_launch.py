"""What of launching needs no root; the confinement itself is tested in tests/vm."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from casemate.errors import HostError, HypervisorError
from casemate.vm.hypervisor.qemu import last_line
from casemate.wall import launch
from casemate.wall.confinement import Confinement


def test_find_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "some-program"
    program.write_text("#!/bin/sh\n")
    with pytest.raises(HostError, match="install it: apt-get install some-package"):
        launch.find_program(str(program), "some-package")  # there, but not executable
    program.chmod(0o755)
    assert launch.find_program(str(program)) == str(program)
    monkeypatch.setenv("PATH", f"relative:{tmp_path}")
    assert launch.find_program("some-program") == str(program)
    monkeypatch.delenv("PATH")
    with pytest.raises(HostError, match="some-program is missing"):
        launch.find_program("some-program")
    assert launch.find_program("sh") in ("/bin/sh", "/usr/bin/sh")


@pytest.mark.parametrize(
    ("code", "text"), [(0, "status 0"), (3, "status 3"), (-9, "signal SIGKILL"), (-35, "signal 35"), (-99, "signal 99")]
)
def test_exit_text(code: int, text: str) -> None:
    assert launch.exit_text(code) == text


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(HypervisorError, match="below 3"):
        launch.spawn(["/bin/true"], Confinement(1, 1), pass_fds=(1,))
    with pytest.raises(HypervisorError, match="user 0 only"):
        launch.spawn(["/bin/true"], Confinement(1, 1, capabilities=frozenset((1,))))


def test_a_refused_step_is_named() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(HypervisorError, match="cannot start true: join control group: No such file"):
        launch.spawn(["/bin/true"], Confinement(1, 1, cgroup_procs=(Path("/nowhere/cgroup.procs"),)))
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("tail", "line"),
    [
        (b"", ""),
        (b"\n \n", ""),
        (b"qemu-system-x86_64: -device x: bad\n", "-device x: bad"),
        (b"/usr/bin/qemu-system-x86_64: no\n", "no"),
        (b"first\nsecond: thing\n\n", "second: thing"),
        (b"qemu: module ui-ui-gtk not found, do you want to install it?\n", ""),
        (b"\x1b[31mred\xff\n", "?[31mred\ufffd"),
        (b"x" * 1000, "x" * 300),
    ],
)
def test_last_line(tail: bytes, line: str) -> None:
    assert last_line(tail) == line


def test_a_child_that_cannot_be_watched_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[int] = []

    def refuse(pid: int) -> int:
        children.append(pid)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(HypervisorError, match="cannot start sleep: .*Too many open files"):
        launch.spawn(["/bin/sleep", "1000"], Confinement(os.getuid(), os.getgid()))
    with pytest.raises(ChildProcessError):
        os.waitpid(children[0], 0)  # reaped already
    assert set(os.listdir("/proc/self/fd")) == before


def test_holes_are_not_punched(tmp_path: Path) -> None:
    """The program is told that it has, and everything else of it works."""
    path = tmp_path / "file"
    punch = "import os, ctypes; libc = ctypes.CDLL(None, use_errno=True); fd = os.open({!r}, os.O_RDWR); {}"
    call = "libc.fallocate(fd, ctypes.c_int({}), ctypes.c_long(0), ctypes.c_long(4096))"
    for mode, kept, left in ((3, True, b"x"), (3, False, b"\0"), (16 | 1, True, b"\0")):
        path.write_bytes(b"x" * 8192)
        code = punch.format(str(path), f"raise SystemExit({call.format(mode)} & 1)")
        jail = Confinement(os.getuid(), os.getgid(), keep_files=kept)
        process = launch.spawn([sys.executable, "-c", code], jail)
        assert process.wait(30) == 0, (mode, kept)
        process.close()
        assert path.read_bytes()[:1] == left, (mode, kept)

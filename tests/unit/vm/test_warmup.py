"""The program by which machines get warm, on the host's kernel."""

from __future__ import annotations

import platform
import subprocess
import time
from pathlib import Path

import pytest

from casemate.vm import warmup

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="its code is for x86-64")


def _run(path: Path, seconds: float) -> bytes:
    path.write_bytes(warmup.build(seconds))
    path.chmod(0o755)
    return subprocess.run([path], check=True, capture_output=True, timeout=30).stdout


def test_it_says_its_word_and_ends_well(tmp_path: Path) -> None:
    assert _run(tmp_path / "warm", 0) == warmup.WORD


def test_it_lasts_as_long_as_asked(tmp_path: Path) -> None:
    begun = time.monotonic()
    assert _run(tmp_path / "warm", 0.25) == warmup.WORD
    assert time.monotonic() - begun >= 0.25


def test_what_it_asks_the_kernel_for_is_granted(tmp_path: Path) -> None:
    """A call with wrong arguments would warm nothing but the way to an error; two are to fail."""
    path = tmp_path / "warm"
    path.write_bytes(warmup.build(0))
    path.chmod(0o755)
    tracer = "import ctypes, os, sys\n" + TRACER
    said = subprocess.run(
        ["python3", "-c", tracer, str(path)], check=True, capture_output=True, text=True, timeout=30
    ).stdout.splitlines()
    failed = [line for line in said if line.startswith("failed")]
    assert failed == ["failed 0 9", "failed 257 2"]  # read: EBADF, openat: ENOENT
    assert len(said) > 30


TRACER = """
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
TRACEME, GETREGS, SYSCALL, SETOPTIONS = 0, 12, 24, 0x4200
pid = os.fork()
if not pid:
    libc.ptrace(TRACEME, 0, 0, 0)
    os.execv(sys.argv[1], sys.argv[1:])
os.waitpid(pid, 0)
libc.ptrace(SETOPTIONS, pid, 0, 1)
registers = (ctypes.c_ulonglong * 27)()
entered, signal = False, 0
while True:
    libc.ptrace(SYSCALL, pid, 0, signal)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        break
    signal = 0
    if os.WSTOPSIG(status) != 0x85:
        signal = os.WSTOPSIG(status)
        continue
    libc.ptrace(GETREGS, pid, 0, ctypes.addressof(registers))
    entered = not entered
    result = ctypes.c_longlong(registers[10]).value
    if not entered and os.WIFSTOPPED(status):
        print("failed" if -4096 < result < 0 else "done", registers[15], *([-result] if -4096 < result < 0 else []))
"""

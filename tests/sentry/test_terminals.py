"""/proc, /sys, /dev and terminals: C cases and programs, natively and behind the sentry."""

from __future__ import annotations

import os
import pty
import select
import sys
import time
from pathlib import Path

import pytest

from tests.sentry.lab import C, both, build, native, sentry

CASES = ["tty/pty", "tty/jobs", "proc/devices", "proc/process", "proc/machine"]


@pytest.mark.parametrize("case", CASES)
def test_as_linux(case: str) -> None:
    both(f"{case}.c")


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_nothing_that_is_asked_of_terminals_and_proc_is_a_defect(seed: str) -> None:
    done = sentry([str(build(C / "tty/hostile.c")), seed, "5000"], options=["--debug"], timeout=120)
    assert b"still there" in done.stdout, done
    assert b"Traceback" not in done.stderr, done.stderr


class Screen:
    """A program behind the sentry on a terminal of ours.

    Arguments:
        argv: the program.
    """

    def __init__(self, argv: list[str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(sys.executable, [sys.executable, "-P", "-m", "casemate", "do", "--cwd=/tmp", "--", *argv])
        self.text = ""

    def until(self, expected: str, seconds: float = 60) -> str:
        """Wait until this is shown; what was shown before it, and itself."""
        limit = time.monotonic() + seconds
        while expected not in self.text:
            left = limit - time.monotonic()
            assert left > 0 and select.select([self.fd], [], [], left)[0], f"{expected!r} is missing in {self.text!r}"
            try:
                self.text += os.read(self.fd, 65536).decode(errors="replace")
            except OSError:
                raise AssertionError(f"it ended without {expected!r}: {self.text!r}") from None
        at = self.text.index(expected) + len(expected)
        shown, self.text = self.text[:at], self.text[at:]
        return shown

    def type(self, text: str) -> None:
        """Type it."""
        os.write(self.fd, text.encode())

    def end(self) -> int:
        """Wait for its end; the status."""
        while True:
            try:
                if not os.read(self.fd, 65536):
                    break
            except OSError:
                break
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_shell_controls_jobs_on_a_terminal() -> None:
    screen = Screen(["env", "PS1=> ", "bash", "--norc", "--noprofile", "--noediting", "-i"])
    screen.until("> ")
    screen.type("tty\n")
    screen.until("/dev/pts/0\r\n> ")
    # It says when it runs in the foreground, and when it goes on there.
    screen.type("sh -c 'trap \"echo goes\"\" on\" CONT; echo sle\"\"eps; while :; do sleep 0.05; done'\n")
    screen.until("sleeps\r\n")
    screen.type("\x1a")
    screen.until("Stopped")
    screen.until("> ")
    screen.type("fg >/dev/null\n")
    screen.until("goes on\r\n")
    screen.type("\x03")
    screen.until("> ")
    screen.type("echo status $?\n")
    screen.until("status 130\r\n> ")
    screen.type("sleep 100 &\n")
    screen.until("> ")
    screen.type("kill -STOP %1; jobs; bg >/dev/null; jobs; kill %1\n")
    screen.until("Running")
    screen.until("> ")
    screen.type("cat\n")
    screen.type("one\x7fly\n\x04")
    screen.until("one\b \bly\r\nonly\r\n> ")
    screen.type("exit 7\n")
    assert screen.end() == 7


def test_the_size_of_the_terminal_is_known_and_changes_are_told() -> None:
    import fcntl
    import struct
    import termios

    script = "stty size; trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.1; done"
    screen = Screen(["bash", "-c", script])
    screen.until("ready\r\n")
    fcntl.ioctl(screen.fd, termios.TIOCSWINSZ, struct.pack("4H", 33, 44, 0, 0))
    screen.until("33 44\r\n")
    assert screen.end() == 0


def test_the_console_is_the_first_terminal() -> None:
    screen = Screen(["sh", "-c", "setsid sh -c 'echo from another session > /dev/console; echo $?'"])
    screen.until("from another session\r\n0\r\n")
    assert screen.end() == 0
    done = sentry(["sh", "-c", "echo nowhere > /dev/console; echo $?"])
    assert done.stdout == b"0\n"


def test_what_is_written_last_is_shown() -> None:
    screen = Screen(["sh", "-c", "seq 1 5000; exec printf last"])
    screen.until("5000\r\nlast")
    assert screen.end() == 0


def test_input_from_a_pipe_is_no_terminal() -> None:
    done = sentry(["sh", "-c", "tty; cat; test -p /dev/stdin && echo pipe"], b"text\n")
    assert done.stdout == b"not a tty\ntext\npipe\n"


def test_ps_and_top_show_processes() -> None:
    done = sentry(["sh", "-c", "sleep 5 & ps -eo pid,ppid,stat,comm; top -b -n1"])
    lines = done.stdout.decode().splitlines()
    assert any(line.split()[2:] == ["S", "sleep"] for line in lines), done
    assert any(line.startswith("%Cpu(s)") for line in lines)
    assert done.stderr == b""


def test_large_output_through_a_pipe_is_whole() -> None:
    done = sentry(["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"])
    assert done.stdout == b"x" * 3000000


def _interfaces(text: str) -> set[str]:
    """The names in /proc/net/dev."""
    return {line.split(":")[0].strip() for line in text.splitlines()[2:]}


@pytest.mark.parametrize("network", ["none", "host"])
def test_proc_net_is_about_the_network_that_there_is(network: str) -> None:
    before = _interfaces(Path("/proc/net/dev").read_text())
    shown = _interfaces(sentry(["cat", "/proc/net/dev"], options=["--network", network]).stdout.decode())
    after = _interfaces(Path("/proc/net/dev").read_text())
    if network == "none":
        assert shown == {"lo"}
    else:  # those of other tests come and go
        assert before & after <= shown <= before | after


@pytest.mark.parametrize("network", ["none", "host"])
def test_the_loopback_in_sys_is_as_the_hosts(network: str) -> None:
    script = "cd /sys/class/net/lo && cat address addr_len mtu type ifindex iflink flags operstate carrier"
    done = sentry(["sh", "-c", script], options=["--network", network])
    assert done.stdout == native(["sh", "-c", script]).stdout, done

"""Messages to originals and twins, and the filter of system calls that a twin is under."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from errno import EACCES, EINVAL, ENOSYS, EPERM
from pathlib import Path
from signal import SIGSYS

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import HypervisorError
from casemate.sentry.tasks.bpf import Program
from casemate.vm.hypervisor import twin

X86_64, X32 = 0xC000003E, 0x40000000
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
CLONE_THREAD = 0x10000

pytestmark = pytest.mark.usefixtures("nothing_leaks")


@pytest.mark.skipif(shutil.which("gcc") is None or os.uname().machine != twin.ARCHITECTURE, reason="it is optional")
def test_the_set_up_has_built_the_library() -> None:
    """Else all that is tested of twins is passed over, and nobody notices."""
    assert twin.available(), "run: scripts/native"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A library's socket, or a life line, and its other end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.settimeout(30)
        yield ours, theirs


def aside(body: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=body)
    thread.start()
    return thread


# ---- having one made


def test_a_copy_comes_with_its_life_line(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair

    def serve() -> None:
        word, fds, _, _ = socket.recv_fds(theirs, 16, 4)
        assert word == b"f" and len(fds) == 1
        pidfd = os.pidfd_open(os.getpid())
        socket.send_fds(theirs, [struct.pack("=i", os.getpid())], [pidfd])
        os.close(pidfd)
        with socket.socket(fileno=fds[0]) as life:
            life.sendall(b"alive")

    server = aside(serve)
    made = twin.fork(ours)
    server.join()
    assert made.life.recv(16) == b"alive"
    assert twin._pid_of(made.pidfd) == os.getpid()
    made.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (struct.pack("=i", -EINVAL), "Invalid argument"),
        (struct.pack("=i", 0), "cannot be copied"),
        (struct.pack("=i", 17), "cannot be copied"),  # a process without a descriptor of it
        (b"xx", "has ended"),
        (b"x" * 64, "has ended"),
        (b"", "has ended"),
    ],
)
def test_what_is_no_copy_is_an_error(
    pair: tuple[socket.socket, socket.socket], answer: bytes, message: str
) -> None:
    ours, theirs = pair
    if answer:
        theirs.sendall(answer)
    else:
        theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(HypervisorError, match=message):
        twin.fork(ours)


def test_an_original_that_says_nothing_is_given_up(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twin, "SECONDS", 0.05)
    with pytest.raises(HypervisorError, match="cannot be copied"):
        twin.fork(pair[0])


# ---- what it is to be


def unborn(life: socket.socket) -> twin.Unborn:
    return twin.Unborn(life, -1)


def test_it_is_told_all_in_one_record(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(b"u")
    with open("/dev/null") as netns, open("/dev/zero") as instead:
        twin.become(unborn(ours), 1000, 2000, netns.fileno(), [(7, instead.fileno()), (1, netns.fileno())])
        text, fds, _, _ = socket.recv_fds(theirs, 65536, 32)
        assert [os.fstat(fd).st_rdev for fd in fds] == [
            os.fstat(fd).st_rdev for fd in (netns.fileno(), instead.fileno(), netns.fileno())
        ]
        for fd in fds:
            os.close(fd)
    head = struct.unpack_from(f"=5I{twin.MAX_TARGETS}i", text)
    code = twin.filter_code()
    assert head[:7] == (0x6E697774, 1000, 2000, 2, len(code) // 8, 7, 1)
    assert text[20 + 4 * twin.MAX_TARGETS :] == code


@pytest.mark.parametrize("wrong", [(0, 1, 0), (1, 0, 0), (1, 1, twin.MAX_TARGETS + 1)])
def test_bounds_are_kept_before_anything_is_sent(
    pair: tuple[socket.socket, socket.socket], wrong: tuple[int, int, int]
) -> None:
    ours, theirs = pair
    uid, gid, targets = wrong
    with pytest.raises(HypervisorError):
        twin.become(unborn(ours), uid, gid, 0, [(n, 0) for n in range(targets)])
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)


@given(st.one_of(st.binary(max_size=100), st.binary(min_size=8, max_size=8).map(lambda rest: b"x" + rest)))
def test_any_answer_but_the_right_one_is_an_error(answer: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open("/dev/null") as null:
        if answer:
            theirs.sendall(answer)
        else:
            theirs.shutdown(socket.SHUT_WR)
        if answer == b"u":
            twin.become(unborn(ours), 1, 1, null.fileno(), ())
        else:
            with pytest.raises(HypervisorError, match="does not come up"):
                twin.become(unborn(ours), 1, 1, null.fileno(), ())


def test_where_it_failed_is_told(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(b"x" + struct.pack("=ii", EACCES, 77))
    with open("/dev/null") as null, pytest.raises(HypervisorError, match=r"Permission denied \(twin.c, line 77\)"):
        twin.become(unborn(ours), 1, 1, null.fileno(), ())


def test_one_that_has_ended_is_not_alive(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    assert unborn(ours).alive()
    theirs.shutdown(socket.SHUT_RDWR)
    assert not unborn(ours).alive()


def process_of(child: subprocess.Popen[bytes]) -> tuple[twin.TwinProcess, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return twin.TwinProcess(twin.Unborn(ours, os.pidfd_open(child.pid))), theirs


def test_its_process_is_watched_without_being_a_child() -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:
        process, theirs = process_of(child)
        assert process.pid == child.pid
        assert process.wait(0) is None
        process.kill()
        assert process.wait(30) == -9
        process.close()
        assert theirs.recv(1) == b""
        theirs.close()


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (b"s" + struct.pack("=q", 8192), 8192),
        (b"s" + struct.pack("=q", 0), 0),
        (b"s" + struct.pack("=q", -EACCES), "Permission denied"),
        (b"s", "it has ended"),
        (b"", "it has ended"),
        (b"x" + struct.pack("=q", 1), "it has ended"),
        (None, "timed out|no answer"),
    ],
)
def test_it_says_how_much_memory_it_gives_back(
    monkeypatch: pytest.MonkeyPatch, answer: bytes | None, result: int | str
) -> None:
    monkeypatch.setattr(twin, "SETTLE_SECONDS", 5 if answer is not None else 0.05)
    with subprocess.Popen(["sleep", "1000"]) as child:
        process, theirs = process_of(child)
        with theirs:
            if answer:
                theirs.sendall(answer)
            elif answer is not None:
                theirs.shutdown(socket.SHUT_WR)
            if isinstance(result, int):
                assert process.settle() == result
                assert theirs.recv(16) == b"s"
            else:
                with pytest.raises(HypervisorError, match=result):
                    process.settle()
            assert process.seconds() < 5
            process.kill()
            process.wait(30)
            process.close()


def test_a_process_that_cannot_be_seen_is_given_up() -> None:
    with subprocess.Popen(["true"]) as child:
        pidfd = os.pidfd_open(child.pid)
        child.wait()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, pytest.raises(HypervisorError, match="has ended, or lives in another pid namespace"):
            twin.TwinProcess(twin.Unborn(ours, pidfd))
        assert ours.fileno() == -1


# ---- the filter


def verdict(number: int, first: int = 0, arch: int = X86_64) -> int:
    halves = [half for word in (first, 0, 0, 0, 0, 0) for half in (word & 0xFFFFFFFF, word >> 32)]
    return Program(twin.filter_code()).run((number, arch, 0, 0, *halves))[0]


def test_every_call_has_its_verdict() -> None:
    for number in range(600):
        if number == 56:
            continue
        expected = ALLOW
        if number in twin.FORBIDDEN:
            expected = KILL
        elif number in twin.REFUSED:
            expected = ERRNO | EPERM
        elif number == 435:
            expected = ERRNO | ENOSYS
        assert verdict(number) == expected, number
        assert verdict(number, arch=0x40000003) == KILL  # i386's numbers mean other calls
        assert verdict(number | X32) == KILL
    assert verdict(0xFFFFFFFF) == KILL


@given(st.integers(0, (1 << 64) - 1))
def test_nothing_but_a_thread_can_be_made(flags: int) -> None:
    assert verdict(56, flags) == (ALLOW if flags & CLONE_THREAD else ERRNO | EPERM)


PROGRAM = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static struct sock_filter code[4096];
static struct sock_fprog program = {.filter = code};

static void enter(void)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0))
        _exit(200);
}

static void *run(void *value)
{
    *(int *)value = 1;
    return NULL;
}

int main(int argc, char **argv)
{
    int ran = 0;
    pthread_t thread;
    program.len = (unsigned short)(fread(code, 1, sizeof code, stdin) / sizeof code[0]);
    for (int i = 1; i < argc; i++) {
        int status, number = atoi(argv[i]);
        pid_t pid = fork();
        if (pid == 0) {
            enter();
            _exit(syscall(number, 0, 0, 0, 0, 0, 0) < 0 ? errno : 0);
        }
        if (pid < 0 || waitpid(pid, &status, 0) != pid)
            return 1;
        printf("%d %d %d\n", number, WIFSIGNALED(status) ? WTERMSIG(status) : 0, WEXITSTATUS(status));
    }
    fflush(stdout);
    enter();
    if (pthread_create(&thread, NULL, run, &ran) || pthread_join(thread, NULL) || !ran)
        return 2;
    if (fork() != -1 || errno != EPERM)
        return 3;
    puts("threads");
    return 0;
}
"""


def test_the_kernel_keeps_to_it(tmp_path: Path) -> None:
    """As nobody, and without arguments: what the filter should let through by mistake does nothing either."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be nobody")
    source, target = tmp_path / "filter.c", tmp_path / "filter"
    source.write_text(PROGRAM)
    subprocess.run(["gcc", "-O1", "-pthread", "-static", "-o", str(target), str(source)], check=True, timeout=60)
    numbers = [*sorted(twin.FORBIDDEN), *sorted(twin.REFUSED), 56, 435, 39]
    with open(target, "rb") as program:
        done = subprocess.run(
            [f"/proc/self/fd/{program.fileno()}", *map(str, numbers)],
            input=twin.filter_code(), capture_output=True, timeout=60, pass_fds=[program.fileno()],
            user=65534, group=65534, extra_groups=[],
        )  # fmt: skip
    lines = done.stdout.decode().splitlines()
    assert (done.returncode, lines.pop()) == (0, "threads"), done.stderr
    found = {int(number): (int(killed), int(status)) for number, killed, status in (line.split() for line in lines)}
    assert found == {
        **{number: (int(SIGSYS), 0) for number in twin.FORBIDDEN},
        **{number: (0, EPERM) for number in twin.REFUSED},
        56: (0, EPERM), 435: (0, ENOSYS), 39: (0, 0),
    }  # fmt: skip

"""The stand-in's own program: ``python -I -S main.py UID GID TERMINAL WORD...``.

:mod:`casemate.standin.child` starts it, with descriptor 3 being its socket to the keeper and 4 the container's root
directory; TERMINAL is 1 when descriptor 0 is one; the words are the command that runs in the guest. All that it does is
wait: for the keeper to say how the process in the guest ended, for signals, for the terminal's size to change. It is
what a container costs on the host for as long as it lives, so it imports nothing but modules that are part of the
interpreter.

On the socket are lines. The keeper says ``exit N``, and we end with that status. We say ``ready`` once, then
``size ROWS COLUMNS`` when the terminal has changed, and ``signal N`` for a signal that somebody sent us instead of
asking the runtime. When the keeper is gone we end with 255; when we are gone the keeper kills the process.
"""

import _signal  # type: ignore[import-not-found]  # the "signal" module brings enum along
import posix
import sys

SOCKET, ROOT = 3, 4
GONE = 255
"""Exit status when the keeper ended without saying anything."""
COMM_LENGTH = 15
FAULTS = (_signal.SIGSEGV, _signal.SIGBUS, _signal.SIGFPE, _signal.SIGILL, _signal.SIGTRAP, _signal.SIGSYS)


def main() -> None:
    uid, gid, terminal, *words = sys.argv[1:]
    name_yourself([word.encode("utf-8", "surrogateescape") for word in words])
    posix.fchdir(ROOT)
    posix.close(ROOT)
    posix.chroot(".")
    posix.chdir("/")
    # From here on every path leads into the container, whose owner we do not trust: nothing may be imported any more.
    for place in (sys.path, sys.meta_path, sys.path_hooks):
        place.clear()
    posix.setgroups([])
    posix.setresgid(int(gid), int(gid), int(gid))
    posix.setresuid(int(uid), int(uid), int(uid))
    for number in range(1, _signal.NSIG):
        if number not in (_signal.SIGKILL, _signal.SIGSTOP, *FAULTS, *range(32, _signal.SIGRTMIN)):
            _signal.signal(number, forward)
    _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)  # what hooks leave behind falls to us, and reaps itself so
    if terminal == "1":
        _signal.signal(_signal.SIGWINCH, tell_size)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
    say(b"ready\n")
    if terminal == "1":
        tell_size(0, None)  # it may have been set before we looked
    wait()


def name_yourself(words: list[bytes]) -> None:
    """Have ``ps`` and ``top`` show the container's command in place of ours."""
    if not words:
        return
    try:
        write("/proc/self/comm", words[0].rpartition(b"/")[2][:COMM_LENGTH] or b"?")
        stat = posix.open("/proc/self/stat", posix.O_RDONLY)
        fields = posix.read(stat, 4096).rpartition(b")")[2].split()
        posix.close(stat)
        start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end: fields 48 and 49 of proc(5)
        line = b"\0".join(words) + b"\0"
        if len(line) <= end - start:
            write("/proc/self/mem", line + bytes(end - start - len(line)), start)
    except OSError:
        pass  # a name is a kindness


def write(path: str, data: bytes, offset: int = 0) -> None:
    descriptor = posix.open(path, posix.O_WRONLY)
    try:
        if offset:
            posix.lseek(descriptor, offset, 0)
        posix.write(descriptor, data)
    finally:
        posix.close(descriptor)


def say(line: bytes) -> None:
    try:  # noqa: SIM105 - contextlib is not part of the interpreter
        posix.write(SOCKET, line)
    except OSError:
        pass  # the keeper is gone, which the reading end finds too


def forward(number: int, frame: object) -> None:
    say(b"signal %d\n" % number)


def tell_size(number: int, frame: object) -> None:
    try:
        columns, rows = posix.get_terminal_size(0)
    except OSError:
        return  # the other side has closed it
    if rows and columns:
        say(b"size %d %d\n" % (rows, columns))


def wait() -> None:
    heard = b""
    while True:
        try:
            data = posix.read(SOCKET, 256)
        except OSError:
            data = b""
        if not data:
            posix._exit(GONE)
        heard += data
        while b"\n" in heard:
            line, _, heard = heard.partition(b"\n")
            word, _, number = line.partition(b" ")
            if word == b"exit" and number.isdigit():
                posix._exit(int(number) & 255)
        heard = heard[-64:]


if __name__ == "__main__":
    main()

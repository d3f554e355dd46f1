"""Start a program shut into a user, control groups, namespaces and limits, tied to the life of this process.

:func:`spawn` is for the programs that a machine is made of: the VMM and the file server. It differs from
:mod:`subprocess` in what the child does before it executes the program, and in the pidfd by which it is watched.

**Tied to this process.** The child asks for SIGKILL at its parent's death (:manpage:`PR_SET_PDEATHSIG(2const)`). The
kernel means the parent *thread*: the signal comes when the thread that forked ends. Therefore all forks are made by one
thread that :func:`spawn` starts on first use and that lives as long as the process. Any thread may call
:func:`spawn` and end afterwards.

The process that calls must not wait for "any child" (``os.wait``, ``os.waitpid(-1)``): that would take away the exit
status.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import os
import queue
import resource
import select
import signal
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from casemate.config import machine
from casemate.errors import HostError, HypervisorError
from casemate.wall.confinement import Confinement

# <linux/prctl.h>, <linux/sched.h>, <linux/capability.h>
_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
_SCHED_DEADLINE = 6  # <linux/sched.h>
_CAPABILITY_VERSION_3 = 0x20080522

_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_RESET_SIGNALS = tuple(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_UNBOUNDED = tuple(
    (limit, resource.RLIM_INFINITY)
    for limit in (
        resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC,
        resource.RLIMIT_RSS,
    )
)  # fmt: skip
_LIMITS = (*_UNBOUNDED, (resource.RLIMIT_STACK, 8 << 20))
"""Soft limits for what the caller may have bounded for programs of another kind; control groups bound these."""

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_setns = _libc.setns
_setns.argtypes = (ctypes.c_int, ctypes.c_int)
# <linux/seccomp.h>, <linux/bpf_common.h>, <linux/audit.h>, <linux/falloc.h>
_SECCOMP_MODE_FILTER = 2
_SECCOMP_RET_ALLOW, _SECCOMP_RET_ERRNO = 0x7FFF0000, 0x00050000
_LD_W_ABS, _JEQ_K, _RET_K = 0x20, 0x15, 0x06
_AT_NR, _AT_ARCH, _AT_MODE = 0, 4, 24  # in struct seccomp_data; the last is the low half of the second argument
_FALLOCATE = {"x86_64": (0xC000003E, 285), "aarch64": (0xC00000B7, 47)}
"""The architecture in the kernel's word, and the number of fallocate(2)."""
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01


def _no_holes() -> bytes:
    """A filter of system calls: to punch a hole into a file succeeds and does nothing. All else is as it was.

    Raises:
        HypervisorError: the numbers of this architecture are not known.
    """
    known = _FALLOCATE.get(machine())
    if known is None:
        raise HypervisorError(f"no filter is known for the {machine()} architecture")
    steps = (
        (_LD_W_ABS, 0, 0, _AT_ARCH), (_JEQ_K, 0, 5, known[0]),
        (_LD_W_ABS, 0, 0, _AT_NR), (_JEQ_K, 0, 3, known[1]),
        (_LD_W_ABS, 0, 0, _AT_MODE), (_JEQ_K, 0, 1, _PUNCH_HOLE_KEEP_SIZE),
        (_RET_K, 0, 0, _SECCOMP_RET_ERRNO), (_RET_K, 0, 0, _SECCOMP_RET_ALLOW),
    )  # fmt: skip
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


_capset = _libc.capset
_capset.argtypes = (ctypes.c_void_p, ctypes.c_void_p)


class Process:
    """A child process, watched by its pidfd. All methods may be called from any thread.

    Arguments:
        pid: the process id.
        pidfd: its descriptor (:manpage:`pidfd_open(2)`); owned, closed by :meth:`close`. Readable when it has ended.
        name: the program, for messages.
    """

    def __init__(self, pid: int, pidfd: int, name: str) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.name = name
        self._lock = threading.Lock()
        self._returncode: int | None = None
        self._closed = False

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end and reap.

        Returns:
            The exit status, or minus the number of the signal that killed it, or None after ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        with self._lock:
            if self._returncode is not None or self._closed:
                return self._returncode
            poll.register(self.pidfd, select.POLLIN)
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = poll.poll(None if left is None else left * 1000 + 0.999)
            if ready or left == 0.0:
                break
        return self._reap() if ready else None

    def poll(self) -> int | None:
        """The result of :meth:`wait` if the process has ended, else None."""
        return self.wait(0)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; does nothing when the process has ended."""
        with self._lock:
            if self._returncode is None and not self._closed:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        """Give up the pidfd. A process that still runs is killed and reaped first."""
        self.kill()
        self.wait()
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.pidfd)

    def _reap(self) -> int | None:
        with self._lock:
            if self._returncode is None and not self._closed:
                try:
                    result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
                except ChildProcessError:
                    result = None
                    self._returncode = -signal.SIGKILL  # somebody else reaped it: the true status is lost
                if result is not None:
                    exited = result.si_code == os.CLD_EXITED
                    self._returncode = result.si_status if exited else -result.si_status
            return self._returncode


def find_program(name: str, package: str = "") -> str:
    """The path of a program.

    Arguments:
        name: a path, or a name to look for on the PATH and in the system's directories.
        package: the Debian package that holds it, for the message.

    Raises:
        HostError: it is not there.
    """
    hint = f"install it: apt-get install {package}" if package else "install it or mend the configuration"
    if "/" in name:
        candidates = [name]
    else:
        path = os.environ.get("PATH", "") + ":" + _SEARCH_PATH
        candidates = [os.path.join(place, name) for place in path.split(":") if place.startswith("/")]
    for candidate in candidates:
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
    raise HostError(f"the program {name} is missing", hint)


def spawn(
    argv: Sequence[str],
    jail: Confinement,
    *,
    pass_fds: Sequence[int] = (),
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> Process:
    """Execute a program inside a confinement.

    The child is the leader of a new session, in ``/``, with an empty environment (but ``jail.environment``), without
    capabilities (but ``jail.capabilities``), unable to gain privileges, without core dumps, with no descriptor but the
    standard three and ``pass_fds``, which keep their numbers. It is killed when this process ends, whatever the way.

    Of what a caller's callers (an engine, a service manager) have set for themselves, it takes over how nice they are,
    and nothing that would favour it over the host's programs or take away what it needs: signal dispositions, resource
    limits, real-time or favoured scheduling, and being spared when memory is short.

    Arguments:
        argv: the program's absolute path and its arguments.
        jail: what it is shut into.
        pass_fds: descriptors (3 or more) to leave open; not closed here.
        stdin, stdout, stderr: descriptors to be the standard three; None is ``/dev/null``. Not closed here.

    Raises:
        HypervisorError: a step failed, or the program cannot be executed; the message names the step.
    """
    plan = _Plan(tuple(os.fsencode(word) for word in argv), jail, tuple(sorted(set(pass_fds))), stdin, stdout, stderr)
    if any(fd < 3 for fd in plan.pass_fds):
        raise HypervisorError("a descriptor below 3 cannot be passed to a program")
    if jail.capabilities and jail.uid != 0:
        raise HypervisorError("capabilities can be kept for user 0 only")
    return _on_forker(plan)


@dataclass(slots=True)
class _Plan:
    """All that the child needs, worked out before the fork: the child shares its memory's state with dead threads."""

    argv: tuple[bytes, ...]
    jail: Confinement
    pass_fds: tuple[int, ...]
    stdin: int | None
    stdout: int | None
    stderr: int | None
    parent: int = field(default_factory=os.getpid)
    procs: tuple[bytes, ...] = ()
    environment: dict[bytes, bytes] = field(default_factory=dict)
    drop: tuple[int, ...] = ()
    files_most: int = 0
    oom_score_adj: bytes = b"0"
    cap_header: Any = None
    cap_data: Any = None
    filter: Any = None

    def __post_init__(self) -> None:
        self.procs = tuple(os.fsencode(path) for path in self.jail.cgroup_procs)
        self.oom_score_adj = b"%d" % self.jail.oom_score_adj
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        self.files_most = self.jail.max_files if most == resource.RLIM_INFINITY else most
        self.environment = {os.fsencode(key): os.fsencode(value) for key, value in self.jail.environment}
        if self.jail.keep_files:
            self.filter = _Filter(_no_holes())
        last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
        self.drop = tuple(cap for cap in range(last + 1) if cap not in self.jail.capabilities)
        mask = sum(1 << cap for cap in self.jail.capabilities)
        low, high = mask & 0xFFFFFFFF, mask >> 32
        self.cap_header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        self.cap_data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)  # effective, permitted, inheritable; twice


class _Filter:
    """``struct sock_fprog`` of a filter."""

    def __init__(self, code: bytes) -> None:
        self.code = ctypes.create_string_buffer(code, len(code))
        self.program = (ctypes.c_uint64 * 2)(len(code) // 8, ctypes.addressof(self.code))
        self.address = ctypes.addressof(self.program)


class _Forker:
    """The thread that makes all forks of one process."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.todo: queue.SimpleQueue[tuple[_Plan, list[Any], threading.Event]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="casemate-forker", daemon=True).start()

    def _serve(self) -> None:
        # No signal may run a Python handler in the child before it executes the program; the child unblocks them.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            plan, answer, done = self.todo.get()
            try:
                answer.append(_fork(plan))
            except BaseException as error:  # handed to the caller of spawn, whatever it is
                answer.append(error)
            done.set()
            del plan, answer, done


_forker: _Forker | None = None
_forker_lock = threading.Lock()


def _on_forker(plan: _Plan) -> Process:
    global _forker
    with _forker_lock:
        if _forker is None or _forker.owner != os.getpid():  # a forked copy of this process has no such thread
            _forker = _Forker()
    answer: list[Any] = []
    done = threading.Event()
    _forker.todo.put((plan, answer, done))
    done.wait()
    if isinstance(answer[0], Process):
        return answer[0]
    raise answer[0]


def _fork(plan: _Plan) -> Process:
    report_read, report_write = os.pipe2(os.O_CLOEXEC)
    try:
        if report_write < 3:  # the parent runs without its standard three: keep clear of them
            moved = fcntl.fcntl(report_write, fcntl.F_DUPFD_CLOEXEC, 3)
            os.close(report_write)
            report_write = moved
        pid = os.fork()
        if pid == 0:
            _child(plan, report_write)
        os.close(report_write)
        report_write = -1
        name = os.path.basename(os.fsdecode(plan.argv[0]))
        try:
            process = Process(pid, os.pidfd_open(pid), name)
        except OSError as error:  # out of descriptors: what cannot be watched must not run
            os.kill(pid, signal.SIGKILL)  # nobody but us reaps it: the number is still its own
            os.waitpid(pid, 0)
            raise HypervisorError(f"cannot start {name}: {error.strerror}", _advice("", error.errno or 0)) from None
        report = b""
        while chunk := os.read(report_read, 512):
            report += chunk
        if report:
            process.wait()
            process.close()
            step, _, number = report.decode().partition("\n")
            raise HypervisorError(
                f"cannot start {name}: {step}: {os.strerror(int(number))}", _advice(step, int(number))
            )
        return process
    finally:
        os.close(report_read)
        if report_write >= 0:
            os.close(report_write)


def _advice(step: str, number: int) -> str:
    if step == "execute" and number in (errno.ENOENT, errno.EACCES):
        return "install the program where every user may execute it"
    if number == errno.EPERM:
        return "run as root"
    if number in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files"
    return ""


def _child(plan: _Plan, report: int) -> NoReturn:
    """Everything between fork and exec. Imports nothing and takes no lock: other threads' locks stay locked here."""
    step = "begin"
    try:
        gc.disable()
        jail = plan.jail
        step = "new session"
        os.setsid()
        step = "join control group"
        for path in plan.procs:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            os.write(fd, b"0")  # the writer itself, in both versions of control groups
            os.close(fd)
        step = "enter network namespace"
        if jail.netns_fd is not None:
            _check(_setns(jail.netns_fd, _CLONE_NEWNET))
        step = "enter mount namespace"
        if jail.mntns_fd is not None:
            _check(_setns(jail.mntns_fd, _CLONE_NEWNS))
        step = "descriptors"
        _arrange_descriptors(plan, report)
        step = "limits"
        os.chdir("/")
        os.umask(0o077)
        _set_limits(plan)
        step = "scheduling"
        _set_scheduling()
        step = "oom_score_adj"
        fd = os.open(b"/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        with contextlib.suppress(PermissionError):  # less than what it is needs CAP_SYS_RESOURCE
            os.write(fd, plan.oom_score_adj)
        os.close(fd)
        step = "capabilities"
        for cap in plan.drop:
            _check(_prctl(_PR_CAPBSET_DROP, cap, 0, 0, 0))
        _check(_prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
        step = "change user"
        os.setgroups(jail.groups)
        os.setresgid(jail.gid, jail.gid, jail.gid)
        os.setresuid(jail.uid, jail.uid, jail.uid)
        step = "drop capabilities"
        _check(_capset(ctypes.byref(plan.cap_header), ctypes.byref(plan.cap_data)))
        _check(_prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        step = "death signal"  # after the change of user, which clears it
        _check(_prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
        if os.getppid() != plan.parent:
            os._exit(125)  # the parent ended before it could be asked for
        step = "signals"
        for number in _RESET_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if plan.filter is not None:
            step = "filter of system calls"
            _check(_prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, plan.filter.address, 0, 0))
        step = "execute"
        os.execve(plan.argv[0], plan.argv, plan.environment)
    except OSError as error:
        os.write(report, f"{step}\n{error.errno}".encode())
    except BaseException:  # nothing may unwind into the parent's code that this copy of the stack still holds
        os.write(report, f"{step}\n{errno.EINVAL}".encode())
    os._exit(125)


def _set_limits(plan: _Plan) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    wanted = plan.jail.max_files
    for files in (wanted, min(wanted, plan.files_most)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
            break
        except (ValueError, OSError):
            if files == min(wanted, plan.files_most):
                raise
    for limit, soft in _LIMITS:
        hard = resource.getrlimit(limit)[1]
        try:
            resource.setrlimit(limit, (soft, resource.RLIM_INFINITY))
        except (ValueError, OSError):  # not the host's root: as far as it may go
            if hard != resource.RLIM_INFINITY and (soft == resource.RLIM_INFINITY or soft > hard):
                soft = hard
            resource.setrlimit(limit, (soft, hard))


def _set_scheduling() -> None:
    if os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK in (os.SCHED_FIFO, os.SCHED_RR, _SCHED_DEADLINE):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    if os.getpriority(os.PRIO_PROCESS, 0) < 0:
        os.setpriority(os.PRIO_PROCESS, 0, 0)


def _arrange_descriptors(plan: _Plan, report: int) -> None:
    standard = []
    for given, flags in ((plan.stdin, os.O_RDONLY), (plan.stdout, os.O_WRONLY), (plan.stderr, os.O_WRONLY)):
        source = os.open(b"/dev/null", flags | os.O_CLOEXEC) if given is None else given
        # Above every descriptor to be kept, so that no dup2 below overwrites one that is still to be copied.
        standard.append(fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 3))
    for number, source in enumerate(standard):
        os.dup2(source, number)
    low = 3
    for keep in sorted((*plan.pass_fds, report)):
        os.closerange(low, keep)
        if keep != report:
            os.set_inheritable(keep, True)
        low = keep + 1
    os.closerange(low, 0x7FFFFFFF)  # one system call (close_range), not a loop


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, "")


def exit_text(returncode: int) -> str:
    """How a process ended, for a message: ``status 1`` or ``signal SIGSEGV``.

    Arguments:
        returncode: as from :meth:`Process.wait`.
    """
    if returncode >= 0:
        return f"status {returncode}"
    try:
        return f"signal {signal.Signals(-returncode).name}"
    except ValueError:
        return f"signal {-returncode}"


Spawner = Callable[..., Process]
"""The type of :func:`spawn`, for what takes another in tests."""

"""Python's own tests, from Debian's package of them: nothing else asks a system for so much of what it promises."""

from __future__ import annotations

import pytest

from tests.vm.support import Casemate

SECONDS = 900
"""A guard against hanging, for each module; subprocess and asyncio take some minutes on a small machine."""

MODULES = (
    # What the kernel does.
    "test_os", "test_posix", "test_posixpath", "test_signal", "test_threadsignals", "test_eintr", "test_faulthandler",
    "test_subprocess", "test_popen", "test_wait3", "test_wait4", "test_resource", "test_time", "test_threading",
    "test_mmap", "test_select", "test_selectors", "test_poll", "test_epoll", "test_pty", "test_openpty", "test_ioctl",
    "test_fcntl", "test_stat", "test_io", "test_fileio", "test_file", "test_largefile",
    "test_socket", "test_timeout", "test_socketserver", "test_pwd", "test_grp",
    # What stands on it.
    "test_asyncio", "test_concurrent_futures", "test_multiprocessing_fork", "test_multiprocessing_spawn",
    "test_multiprocessing_forkserver", "test_queue", "test_sched", "test_logging", "test_tempfile", "test_shutil",
    "test_glob", "test_pathlib", "test_tarfile", "test_zipfile", "test_gzip", "test_mailbox",
    "test_httpservers", "test_ftplib", "test_smtplib", "test_xmlrpc", "test_urllib2_localnet", "test_venv", "test_pdb",
)  # fmt: skip

_QUICK = (
    "os posix signal threadsignals wait3 wait4 resource threading subprocess mmap select poll epoll pty socket timeout "
    "queue"
)
QUICK = frozenset(f"test_{name}" for name in _QUICK.split())
"""What every run of the tests has; ``make soak`` has them all, which takes some twenty minutes."""

SKIPPED = {
    # F_NOTIFY, the forerunner of inotify: EINVAL, as of a Linux that was built without it.
    "test_fcntl": ["test_fcntl_64_bit"],
}
"""Cases that cannot pass, by module."""


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize(
    "module", [pytest.param(name, marks=() if name in QUICK else pytest.mark.soak) for name in MODULES]
)
def test_pythons_own(cm: Casemate, programs: str, module: str) -> None:
    ignored = [word for case in SKIPPED.get(module, []) for word in ("-i", case)]
    done = cm(
        "run", "--rm", "--network", "none", programs,
        "python3", "-m", "test", "-W", "--timeout", str(SECONDS - 60), *ignored, module,
        timeout=SECONDS,
    )  # fmt: skip
    told = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0 and "Tests result: SUCCESS" in told, told[-6000:]

"""Same-page merging with the host's own kernel: settings, ends, starts of real sandboxes, and pages that are merged.

The throttler is the real command. The kernel's settings are those of the whole machine, so they are put back whatever
happens, and these tests keep to one worker.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from casemate.config import Config
from casemate.ksm import settings
from casemate.ksm.kick import kick
from casemate.ksm.settings import Settings
from casemate.vm import guest
from casemate.vm.hypervisor.base import Accelerator, SerialConsole, Vm, VmSpec
from casemate.vm.hypervisor.qemu import QemuHypervisor
from casemate.wall.confinement import Confinement
from tests.vm.oci import Runtime
from tests.vm.support import CONSOLE_SCRIPT, Casemate, Environment, as_nobody, environment

pytestmark = [
    pytest.mark.xdist_group("ksm"),
    pytest.mark.skipif(not settings.DIRECTORY.is_dir(), reason="this kernel does not merge equal pages"),
]
QUICK = "ksm_aggressive_seconds = 1\nksm_standard_seconds = 0\nksm_slow_seconds = 0\n"
PAGES = 4096
MEMORY = 160
"""MiB of a guest."""
HOLDER = """
import mmap, random, sys
area = mmap.mmap(-1, {pages} * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.madvise(mmap.MADV_MERGEABLE)
area.write(random.Random(int(sys.argv[1])).randbytes({pages} * mmap.PAGESIZE))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def as_before() -> Iterator[Settings]:
    """The settings of the machine; nothing of a test stays in force."""
    before = settings.read()
    try:
        yield before
        assert settings.read() == before
    finally:
        settings.write(before)


class Throttler:
    """The command in the foreground, and its guard."""

    def __init__(self, env: Environment, *words: str) -> None:
        self.process = subprocess.Popen(
            [CONSOLE_SCRIPT, "ksm", *words], env=env.variables, stderr=subprocess.PIPE, text=True, cwd="/"
        )

    def says(self, words: str) -> str:
        """Wait for a line of its messages."""
        assert self.process.stderr is not None
        seen = ""
        for line in self.process.stderr:
            seen += line
            if words in line:
                return line
        raise AssertionError(f"it did not say {words!r} but {seen!r}")

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it and wait for its guard too, which has the same standard error."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        assert self.process.stderr is not None
        if not self.process.stderr.closed:
            self.process.stderr.read()
            self.process.stderr.close()
        return self.process.wait()


@pytest.fixture
def throttler(env: Environment) -> Iterator[Callable[..., Throttler]]:
    made: list[Throttler] = []

    def make(*words: str, of: Environment = env) -> Throttler:
        made.append(Throttler(of, *words))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture
def quick() -> Iterator[Environment]:
    """An environment whose throttler is at rest a second after each start."""
    with environment(QUICK) as made:
        yield made


# ---- the kernel's settings


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("advisor", ["none", "scan-time"])
def test_whatever_ends_it_the_settings_are_as_before(
    throttler: Callable[..., Throttler], as_before: Settings, number: int, advisor: str
) -> None:
    found = replace(as_before, pages_to_scan=321, sleep_millisecs=54)
    if as_before.advisor_mode:
        found = replace(found, advisor_mode=advisor)
    elif advisor != "none":
        pytest.skip("this kernel has no advisor")
    settings.write(found)
    try:
        # The kernel itself chooses the pages under its advisor.
        found = settings.read()
        daemon = throttler()
        daemon.says("aggressive")
        now = settings.read()
        assert (now.run, now.sleep_millisecs) == (1, 1) and now.advisor_mode in ("", "none")
        assert now.pages_to_scan != found.pages_to_scan
        assert daemon.end(number) == (-number if number == signal.SIGKILL else 0)
        assert settings.read() == found
    finally:
        settings.write(as_before)


def test_status_tells_of_the_machine(cm: Casemate, throttler: Callable[..., Throttler]) -> None:
    assert cm.json("ksm", "--status", "--json")["running"] is False
    daemon = throttler("--mode", "auto")
    daemon.says("aggressive")
    found = cm.json("ksm", "--status", "--json")
    assert (found["running"], found["pid"], found["state"]) == (True, daemon.process.pid, "aggressive")
    assert found["settings"] == settings.read().to_json()
    assert {"pages_shared", "pages_sharing", "full_scans"} <= set(found["kernel"])
    assert isinstance(found["general_profit"], int) == (settings.DIRECTORY / "general_profit").exists()
    text = cm.out("ksm", "--status")
    assert f"process {daemon.process.pid}, mode auto" in text and "MiB" in text
    assert "the throttler is in mode auto" in cm.out("check")
    nobody = as_nobody([CONSOLE_SCRIPT, "ksm", "--status", "--json"], cm.env.variables)
    assert json.loads(nobody.stdout)["pid"] == daemon.process.pid, "this needs no root"
    assert daemon.end() == 0


def test_two_at_once_are_refused_and_so_is_restoring(cm: Casemate, throttler: Callable[..., Throttler]) -> None:
    daemon = throttler("--mode", "initial")
    daemon.says("initial")
    for words in (("ksm",), ("ksm", "--restore")):
        done = cm(*words)
        assert done.returncode == 125 and done.stderr.count(b"\n") == 1
        assert f"process {daemon.process.pid}".encode() in done.stderr
    assert daemon.end() == 0


def test_restoring_after_both_were_killed(
    cm: Casemate, throttler: Callable[..., Throttler], as_before: Settings
) -> None:
    assert cm.out("ksm", "--restore") == "there is nothing to restore"
    daemon = throttler()
    daemon.says("aggressive")
    pid = daemon.process.pid
    [guard] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(guard), signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    daemon.process.wait()
    os.kill(int(guard), signal.SIGKILL)
    assert settings.read().run == 1
    assert "in force again" in cm.out("ksm", "--restore")
    assert settings.read() == as_before
    assert cm.out("ksm", "--restore") == "there is nothing to restore"


def in_namespace(env: Environment, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{script} && exec "$0" ksm "$@"', str(CONSOLE_SCRIPT), *words],
        env=env.variables, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_kernel_without_merging_is_told_in_a_line(env: Environment, tmp_path: Path) -> None:
    for words in ((), ("--status",), ("--status", "--json"), ("--mode", "initial")):
        done = in_namespace(env, f"mount --bind {tmp_path} {settings.DIRECTORY}", *words)
        assert (done.returncode, done.stdout) == (125, "")
        assert "CONFIG_KSM" in done.stderr and done.stderr.count("\n") == 1


def test_settings_that_cannot_be_written_are_told_in_a_line(env: Environment) -> None:
    read_only = "mount -o remount,bind,ro /sys"
    done = in_namespace(env, read_only)
    assert done.returncode == 125 and "cannot be written" in done.stderr and done.stderr.count("\n") == 1
    assert in_namespace(env, read_only, "--status").returncode == 0


# ---- starts


def test_a_start_of_either_kind_is_told(
    quick: Environment, throttler: Callable[..., Throttler], tmp_path: Path
) -> None:
    daemon = throttler(of=quick)
    daemon.says("restored")
    assert Casemate(quick)("run", "--rm", "busybox", "true", timeout=200).returncode == 0
    daemon.says("aggressive")
    daemon.says("restored")
    runtime = Runtime("casemate", quick, tmp_path)
    try:
        runtime.create(runtime.bundle("true"))
        daemon.says("aggressive")
    finally:
        runtime.clear()
    assert daemon.end() == 0


def test_only_root_can_tell_of_a_start(quick: Environment, throttler: Callable[..., Throttler]) -> None:
    daemon = throttler(of=quick)
    daemon.says("restored")
    script = "import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', sys.argv[1])"
    refused = as_nobody([sys.executable, "-c", script, quick.run / "ksm" / "kick"], quick.variables)
    assert refused.returncode == 1 and b"PermissionError" in refused.stderr
    kick(quick.run)
    daemon.says("aggressive")


# ---- pages


def merged(pid: int) -> int:
    """How many pages of a process the kernel has merged."""
    return int(Path(f"/proc/{pid}/ksm_merging_pages").read_text())


def until(found: Callable[[], bool], what: str, patience: float = 120) -> None:
    """There is no event for a merged page; this only looks again."""
    deadline = time.monotonic() + patience
    while not found():
        assert time.monotonic() < deadline, f"no sign of {what}"
        time.sleep(0.05)


def test_equal_private_memory_is_merged(throttler: Callable[..., Throttler]) -> None:
    if not Path("/proc/self/ksm_merging_pages").exists():
        pytest.skip("this kernel (before 5.19) does not tell what it has merged of a process")
    with contextlib.ExitStack() as stack:
        holders = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", HOLDER.format(pages=PAGES), str(seed)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                )
            )
            for seed in (1, 1, 2)
        ]  # fmt: skip
        for one in holders:
            assert one.stdout is not None and one.stdout.readline() == b"ready\n"
        assert [merged(one.pid) for one in holders] == [0, 0, 0]
        daemon = throttler()
        daemon.says("aggressive")
        until(lambda: merged(holders[1].pid) >= PAGES, "merged pages")
        assert merged(holders[0].pid) >= PAGES, "both have them"
        assert merged(holders[2].pid) < PAGES / 8, "and who has other pages does not"
        figures = settings.figures()
        assert settings.saved(figures) >= PAGES * mmap.PAGESIZE
        for one in holders:
            assert one.stdin is not None
            one.stdin.close()
        assert daemon.end() == 0


@pytest.mark.parametrize(("shared", "mergeable"), [(False, True), (True, True), (False, False)])
def test_what_the_kernel_takes_of_a_guests_memory(shared: bool, mergeable: bool) -> None:
    """Private memory that is offered, and no other; whether that is merged is up to the pages in it."""
    with machine(shared, mergeable) as vm:
        assert ("mg" in flags(vm.pid, MEMORY << 10)) is (mergeable and not shared)


def test_guests_with_private_memory_are_merged_and_others_are_not(throttler: Callable[..., Throttler]) -> None:
    if not Path("/proc/self/ksm_merging_pages").exists():
        pytest.skip("this kernel (before 5.19) does not tell what it has merged of a process")
    with machine(False, True) as one, machine(False, True) as two, machine(True, True) as shared:
        daemon = throttler()
        daemon.says("aggressive")
        # Pages of the kernel that both have; far more come as they boot on.
        until(lambda: min(merged(one.pid), merged(two.pid)) > 2000, "merged pages of guests")
        assert merged(shared.pid) < 500, "only what its VMM has beside the guest's memory"
        assert daemon.end() == 0


@contextlib.contextmanager
def machine(shared: bool, mergeable: bool) -> Iterator[Vm]:
    """A guest that boots; nobody looks at it."""
    bundle = guest.find(Config().root)
    # No end is closed or read: what the guest prints fits into the socket, and else it would only wait.
    ours, theirs = socket.socketpair()
    spec = VmSpec(
        name="casemate-test", kernel=bundle.kernel, initrd=bundle.initrd, cmdline=("quiet",), memory_mib=MEMORY,
        vcpus=1, shared_memory=shared, accelerator=Accelerator.TCG, devices=(SerialConsole(theirs.detach()),),
        mergeable=mergeable,
    )  # fmt: skip
    vm = QemuHypervisor(Config()).create(spec, Confinement(uid=65534, gid=65534))
    try:
        vm.start()
        yield vm
    finally:
        vm.kill()
        assert vm.wait(20) is not None
        ours.close()


def flags(pid: int, size: int) -> list[str]:
    """The kernel's flags of a process's mapping of so many KiB (``proc_pid_smaps(5)``)."""
    found = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Size":
            found = value.split() == [str(size), "kB"]
        elif found and name == "VmFlags":
            return value.split()
    raise AssertionError(f"no mapping of {size} KiB")

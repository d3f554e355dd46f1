"""The QEMU driver and the confined launch against the real programs.

The guest is the real bundle's kernel and modules with another ``/init``: a shell on the console, so that a test can say
what the guest does and wait for the answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import select
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from casemate import config as configuration
from casemate.config import Config
from casemate.errors import HypervisorError
from casemate.host import cgroups
from casemate.oci import busybox
from casemate.vm import guest
from casemate.vm.guest.cpio import Archive
from casemate.vm.hypervisor import probe
from casemate.vm.hypervisor.base import (
    Accelerator,
    AgentPort,
    Balloon,
    Block,
    Confinement,
    Device,
    ExitCause,
    Rng,
    SerialConsole,
    SharedFs,
    VmExit,
    VmSpec,
    VmStatus,
)
from casemate.vm.hypervisor.qemu import QemuHypervisor, QemuVm
from casemate.wall import launch
from tests.vm.host_tools import in_child

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

UID = 1_870_000_000
JAIL = Confinement(UID, UID)
BOOT = 90.0
INIT = """#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc proc /proc; $B mount -t sysfs sysfs /sys; $B mount -t devtmpfs dev /dev
for turn in 1 2 3 4 5; do for m in /mod/*.ko; do $B insmod $m 2>/dev/null && $B rm $m; done; done
$B stty -echo -icrnl -onlcr
echo "GUEST=READY"
while read -r line; do eval "$line"; echo "DONE=$?"; done
"""


@pytest.fixture(scope="module")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle's initial root with a shell for its first process: of two archives the later wins.

    A kernel that needs no modules comes without one; a shell is enough for it.
    """
    bundle = guest.find(Config().root)
    archive = Archive()
    if bundle.initrd is None:
        for directory in ("bin", "dev", "mod", "proc", "sys"):
            archive.directory(directory)
        archive.character_device("dev/console", 5, 1)
        archive.file("bin/busybox", busybox.find().read_bytes(), 0o755)
    archive.file("init", INIT.encode(), 0o755)
    path = tmp_path_factory.mktemp("initrd") / "initrd.cpio"
    path.write_bytes((bundle.initrd.read_bytes() if bundle.initrd else b"") + archive.finish())
    path.chmod(0o644)
    return path


class Machine:
    """A machine whose console is a conversation."""

    def __init__(
        self, initrd: Path, *devices: Device, jail: Confinement = JAIL, slots: int = 0, log: Path | None = None
    ):
        bundle = guest.find(Config().root)
        ours, theirs = socket.socketpair()
        self.console = ours
        self.text = ""
        self.ended = False
        self.arrived = threading.Condition()
        self.exits: list[VmExit] = []
        spec = VmSpec(
            name="casemate-test",
            kernel=bundle.kernel,
            initrd=initrd,
            cmdline=("quiet", "nokaslr", "mitigations=off"),
            memory_mib=160,
            vcpus=1,
            shared_memory=True,
            accelerator=Accelerator.TCG,
            devices=(SerialConsole(theirs.detach()), *devices),
            log=log,
            hotplug_slots=slots,
        )
        self.vm: QemuVm = QemuHypervisor(Config()).create(spec, jail)
        self.vm.on_exit(self.exits.append)
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        while True:
            with contextlib.suppress(ConnectionResetError):
                data = self.console.recv(65536)
                with self.arrived:
                    self.text += data.decode(errors="replace")
                    self.ended = not data
                    self.arrived.notify_all()
                if data:
                    continue
            return

    def up(self) -> Machine:
        self.vm.start()
        self.expect("GUEST=READY")
        return self

    def expect(self, word: str, timeout: float = BOOT) -> str:
        """Wait until the guest has said ``word``, and give what it said before."""
        with self.arrived:
            if not self.arrived.wait_for(lambda: word in self.text or self.ended, timeout) or word not in self.text:
                pytest.fail(f"the guest did not say {word!r} but {self.text[-2000:]!r}")
            before, _, self.text = self.text.partition(word)
        return before

    def tell(self, command: str) -> None:
        self.console.sendall(command.encode() + b"\n")

    def run(self, command: str) -> str:
        """Run a shell command in the guest; its output. It has to succeed."""
        self.tell(command)
        output = self.expect("DONE=")
        status = self.expect("\n").strip()
        assert status == "0", (command, output, status)
        return output.strip()

    def close(self) -> VmExit:
        self.vm.kill()
        end = self.vm.wait(20)
        assert end is not None
        self.reader.join(10)
        assert not self.reader.is_alive(), "the console's other end is still open somewhere"
        self.console.close()
        return end


@pytest.fixture(scope="module")
def machine(initrd: Path) -> Iterator[Machine]:
    """One machine for the tests that leave it as it was."""
    made = Machine(initrd, Rng(), Balloon(), slots=2)
    yield made.up()
    made.close()


@pytest.fixture
def fresh(initrd: Path) -> Iterator[Callable[..., Machine]]:
    """Machines for tests that end them. Afterwards no descriptor may be left."""
    before = set(os.listdir("/proc/self/fd"))
    made: list[Machine] = []

    def make(*devices: Device, **options: Any) -> Machine:
        made.append(Machine(initrd, *devices, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert set(os.listdir("/proc/self/fd")) == before


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


# ---- the confined launch


def output_of(script: str, jail: Confinement, pass_fds: tuple[int, ...] = ()) -> str:
    read, write = os.pipe()
    try:
        process = launch.spawn(["/bin/sh", "-c", script], jail, pass_fds=pass_fds, stdout=write, stderr=write)
    finally:
        os.close(write)
    with open(read) as file:
        text = file.read()
    assert process.wait(20) == 0, text
    process.close()
    return text


def test_a_launched_program_has_nothing() -> None:
    text = output_of(
        "cat /proc/self/status; echo LIMIT $(ulimit -c) $(ulimit -n); echo CWD $PWD;"
        "echo ENV $(tr '\\0' ' ' </proc/$$/environ); echo SESSION $(cut -d' ' -f1,6 /proc/$$/stat)",
        dataclasses.replace(JAIL, max_files=77),
    )
    values = {
        key: value.split() for key, _, value in (line.partition(":") for line in text.splitlines() if ":" in line)
    }
    assert values["Uid"] == values["Gid"] == [str(UID)] * 4
    assert values["Groups"] == []
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "SigBlk"):
        assert int(values[name][0], 16) == 0, name
    # 32 and 33 are the C library's own: whoever started the tests may have them ignored, and nobody can change that.
    assert int(values["SigIgn"][0], 16) & ~(3 << 31) == 0
    assert values["NoNewPrivs"] == ["1"]
    said = {line.split(" ")[0]: line.split()[1:] for line in text.splitlines() if ":" not in line}
    assert said["LIMIT"] == ["0", "77"]
    assert said["CWD"] == ["/"]
    assert said["ENV"] == []
    assert said["SESSION"][0] == said["SESSION"][1]


def test_what_an_engine_has_set_for_itself_is_not_the_launched_programs() -> None:
    """It would be spared when memory is short, come before the host's programs, or die of a limit."""

    def spoilt() -> None:
        for name in (signal.SIGALRM, signal.SIGTERM, signal.SIGPIPE, signal.SIGRTMIN + 3):
            signal.signal(name, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        hard = {limit: resource.getrlimit(limit)[1] for limit in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE)}
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, hard[resource.RLIMIT_AS]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard[resource.RLIMIT_FSIZE]))
        few = max(map(int, os.listdir("/proc/self/fd"))) + 16
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with contextlib.suppress(PermissionError):  # for the host's root alone; the program gets a number of its own
            Path("/proc/self/oom_score_adj").write_text("-5")
        os.setpriority(os.PRIO_PROCESS, 0, -7)
        text = output_of(
            "cat /proc/self/status /proc/self/limits; echo Score: $(cat /proc/self/oom_score_adj);"
            "echo Nice: $(cut -d' ' -f19,41 /proc/self/stat)",
            dataclasses.replace(JAIL, max_files=500, oom_score_adj=7),
        )
        status = {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
        assert int(status["SigIgn"], 16) & ~(3 << 31) == int(status["SigBlk"], 16) == 0
        assert (status["Score"], status["Nice"]) == ("7", "0 0")
        limits = {line[:25].strip(): line[25:].split()[0] for line in text.splitlines() if line[:4] == "Max "}
        for word, number in (("Max address space", resource.RLIMIT_AS), ("Max file size", resource.RLIMIT_FSIZE)):
            # A hard limit can be raised by the host's root alone, which a test need not be.
            unlimited = hard[number] == resource.RLIM_INFINITY
            assert limits[word] == ("unlimited" if unlimited else str(hard[number])), word
        assert limits["Max open files"] == "500"
        assert limits["Max stack size"] == str(8 << 20)
        # As idle as the caller was it may be, as the programs of an engine's containers are.
        os.setpriority(os.PRIO_PROCESS, 0, 3)
        launch._forker = None  # both are a thread's; that which forks has what the one that began it had
        assert output_of("cut -d' ' -f19 /proc/self/stat", JAIL).strip() == "3"
        try:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        except PermissionError:  # a control group without real-time share, which is as good
            return
        launch._forker = None
        assert output_of("cut -d' ' -f41 /proc/self/stat", JAIL).strip() == "0"

    in_child(spoilt)


def test_a_launched_program_holds_only_the_descriptors_it_is_given() -> None:
    by_accident = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(by_accident, True)
    passed = os.open("/etc/passwd", os.O_RDONLY)
    process = launch.spawn(["/usr/bin/busybox", "sleep", "600"], JAIL, pass_fds=(passed,))  # static: opens no library
    try:
        assert set(os.listdir(f"/proc/{process.pid}/fd")) == {"0", "1", "2", str(passed)}
    finally:
        process.close()
        os.close(by_accident)
        os.close(passed)


def test_root_keeps_only_the_named_capabilities() -> None:
    text = output_of("cat /proc/self/status", Confinement(0, 0, capabilities=frozenset((1, 21))))
    values = {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(values[name], 16) == 1 << 1 | 1 << 21


def test_standard_descriptors_may_be_crossed() -> None:
    read, write = os.pipe()
    first, second = os.pipe()
    script = "cat; echo out; echo err >&2"
    process = launch.spawn(["/bin/sh", "-c", script], JAIL, stdin=read, stdout=second, stderr=second)
    os.write(write, b"in\n")
    for fd in (read, write, second):
        os.close(fd)
    with open(first) as file:
        assert file.read() == "in\nout\nerr\n"
    assert process.wait(10) == 0
    process.close()


def test_namespaces_and_control_groups_are_entered() -> None:
    holder = subprocess.Popen(["unshare", "-n", "-m", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE)
    group = cgroups.Cgroup.create(f"test-{os.getpid():064x}"[-64:], memory=None, cpu_quota=None, pids=100)
    try:
        places = [path.parent.name for path in group.procs_files()]
        assert holder.stdout is not None
        holder.stdout.readline()
        net = os.open(f"/proc/{holder.pid}/ns/net", os.O_RDONLY)
        mnt = os.open(f"/proc/{holder.pid}/ns/mnt", os.O_RDONLY)
        wanted = [os.readlink(f"/proc/{holder.pid}/ns/{kind}") for kind in ("net", "mnt")]
        jail = dataclasses.replace(JAIL, netns_fd=net, mntns_fd=mnt, cgroup_procs=group.procs_files())
        text = output_of("readlink /proc/self/ns/net /proc/self/ns/mnt; cat /proc/self/cgroup", jail)
        os.close(net)
        os.close(mnt)
    finally:
        holder.kill()
        holder.wait()
        group.remove()
        if holder.stdout is not None:
            holder.stdout.close()
    assert text.splitlines()[:2] == wanted
    assert places and sum(line.rpartition("/")[2] in places for line in text.splitlines()[2:]) >= len(places)


def test_a_launched_program_ends_with_this_process_but_not_with_a_thread() -> None:
    report_read, report_write = os.pipe()
    parent = os.fork()
    if parent == 0:
        with contextlib.suppress(BaseException):
            made: list[launch.Process] = []
            thread = threading.Thread(target=lambda: made.append(launch.spawn(["/bin/sleep", "600"], JAIL)))
            thread.start()
            thread.join()
            assert made[0].wait(0.3) is None  # the thread that asked is gone, the program is not
            os.write(report_write, str(made[0].pid).encode())
            signal.pause()
        os._exit(1)
    os.close(report_write)
    pid = int(os.read(report_read, 20))
    os.close(report_read)
    watch = os.pidfd_open(pid)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    assert poll.poll(10_000), "the program outlived its parent"
    os.close(watch)


def test_waiting() -> None:
    process = launch.spawn(["/bin/sleep", "600"], JAIL)
    started = time.monotonic()
    assert process.wait(0.2) is None and 0.2 <= time.monotonic() - started < 5
    results: list[int | None] = []
    threads = [threading.Thread(target=lambda: results.append(process.wait())) for _ in range(4)]
    for thread in threads:
        thread.start()
    process.kill(signal.SIGTERM)
    for thread in threads:
        thread.join(10)
    assert results == [-signal.SIGTERM] * 4
    process.kill()
    process.close()
    process.close()
    assert process.wait() == -signal.SIGTERM


# ---- the accelerator


def test_the_probe_guest_runs_under_tcg() -> None:
    assert probe.run_probe(Config(), Accelerator.TCG) == ""


def test_a_guest_that_makes_no_progress_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = probe.firmware().replace(b"\x49\x75\xfd", b"\x90\xeb\xfd")  # again: nop; jmp again
    monkeypatch.setattr(probe, "firmware", lambda: endless)
    started = time.monotonic()
    assert probe.run_probe(Config(), Accelerator.TCG) == "a guest made no progress in 2 s"
    assert probe.WALL <= time.monotonic() - started < probe._WALL_MOST + 5


def test_a_guest_that_goes_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = probe.firmware().replace(b"\xb0\x2a\xee", b"\xb0\x01\xee")
    monkeypatch.setattr(probe, "firmware", lambda: wrong)
    assert probe.run_probe(Config(), Accelerator.TCG) == "a guest ended with status 3"


@pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="needs /dev/kvm")
def test_the_real_device_gets_a_verdict_that_is_kept(tmp_path: Path) -> None:
    config = Config(run=tmp_path / "run")
    first = probe.kvm_usable(config)
    started = time.monotonic()
    assert probe.kvm_usable(config) == first and time.monotonic() - started < 0.5
    usable, reason = first
    assert usable or "/dev/kvm" in reason


def test_capabilities() -> None:
    found = QemuHypervisor(Config()).probe()
    assert found.available and found.problem == "" and found.version[0].isdigit()
    missing = QemuHypervisor(Config(qemu="/nowhere/qemu")).probe()
    assert not missing.available and "apt-get install qemu-system-x86" in missing.problem


# ---- the life of a machine


def test_qemu_is_confined(machine: Machine) -> None:
    values = status_of(machine.vm.pid)
    assert values["Uid"].split() == values["Gid"].split() == [str(UID)] * 4
    for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(values[name], 16) == 0, name
    assert values["NoNewPrivs"] == "1" and values["Seccomp"] == "2"
    assert machine.vm.status() is VmStatus.RUNNING
    for fd in os.listdir(f"/proc/{machine.vm.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"/proc/{machine.vm.pid}/fd/{fd}")
            assert not target.startswith("/dev/") or target in ("/dev/null", "/dev/urandom"), target


def test_the_guest_runs_a_kernel_of_its_own(machine: Machine) -> None:
    assert machine.run("$B uname -r") == guest.find(Config().root).kernel_release
    assert machine.run("$B cat /sys/devices/system/clocksource/clocksource0/current_clocksource") == "tsc"


def test_pause_and_resume(machine: Machine) -> None:
    machine.vm.pause()
    assert machine.vm.status() is VmStatus.PAUSED
    machine.tell("echo AWAKE")
    with machine.arrived:
        assert not machine.arrived.wait_for(lambda: "AWAKE" in machine.text, 0.5)
    machine.vm.resume()
    machine.expect("AWAKE")
    machine.expect("DONE=0\n")
    assert machine.vm.status() is VmStatus.RUNNING


def test_a_disk_comes_and_goes(machine: Machine, tmp_path: Path) -> None:
    secret = tmp_path / "closed"
    secret.mkdir(mode=0o700)
    image = secret / "disk"
    image.write_bytes(b"written by the host\n".ljust(1 << 20, b"\0"))
    image.chmod(0o600)  # the VMM gets the descriptor and needs no permission
    there = "[ -e /sys/block/vda ]"
    wait = f"i=0; while {{}} {there} && [ $i -lt 300 ]; do $B usleep 100000; i=$((i+1)); done; {{}} {there}"
    for _ in range(3):  # more often than there are slots: each is free again
        machine.vm.add_device(Block("late", image))
        machine.run(wait.format("!", ""))
        assert machine.run("$B cat /sys/block/vda/serial") == "late"
        assert machine.run("$B head -n 1 /dev/vda") == "written by the host"
        machine.run("! $B dd if=/dev/zero of=/dev/vda bs=512 count=1 2>/dev/null")
        with pytest.raises(HypervisorError, match="already"):
            machine.vm.add_device(Block("late", image))
        machine.vm.remove_device("late", 30)
        machine.run(wait.format("", "!"))
    assert image.read_bytes().startswith(b"written by the host\n\0")


def test_what_cannot_be_plugged_in(machine: Machine, tmp_path: Path) -> None:
    for device, match in (
        (Balloon(id="another"), "cannot be plugged in later"),
        (Rng(), "already"),
        (Block("late", tmp_path / "missing"), "cannot open"),
        (Block("late", tmp_path), "not a file"),
    ):
        with pytest.raises(HypervisorError, match=match):
            machine.vm.add_device(device)
    with pytest.raises(HypervisorError, match="no device"):
        machine.vm.remove_device("rng")
    # A back end that is refused leaves nothing behind: the same id works at once.
    broken = os.open("/dev/null", os.O_RDWR)
    with pytest.raises(HypervisorError, match="QEMU refused"):
        machine.vm.add_device(SharedFs("tag", broken, id="again"))
    machine.vm.add_device(Rng("again"))
    machine.vm.remove_device("again", 30)


def test_a_guest_that_powers_off(fresh: Callable[..., Machine], tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    one = fresh(AgentPort("casemate.agent.0", theirs.detach()), log=tmp_path / "vmm.log").up()
    with pytest.raises(HypervisorError, match="started before"):
        one.vm.start()
    one.run("[ $($B cat /sys/class/virtio-ports/vport0p1/name) = casemate.agent.0 ]")
    one.tell("exec 3<>/dev/vport0p1; read -r said <&3; echo guest has $said >&3; echo OK")
    ours.sendall(b"this\n")
    with ours.makefile() as stream:
        assert stream.readline() == "guest has this\n"
        one.tell("$B poweroff -f")
        end = one.vm.wait(BOOT)
        assert stream.read() == ""
    ours.close()
    assert end == VmExit(ExitCause.GUEST_SHUTDOWN, 0, None, "the guest powered off")
    assert one.vm.status() is VmStatus.ENDED
    for call in (one.vm.pause, one.vm.resume, lambda: one.vm.add_device(Rng("x"))):
        with pytest.raises(HypervisorError, match="has ended: the guest powered off"):
            call()
    assert one.vm.stop() == end
    one.close()
    assert one.exits == [end]
    late: list[VmExit] = []
    one.vm.on_exit(late.append)
    assert late == [end]


def test_a_kernel_that_panics(fresh: Callable[..., Machine]) -> None:
    one = fresh().up()
    one.tell("echo c >/proc/sysrq-trigger")
    end = one.vm.wait(BOOT)
    assert end is not None and end.cause is ExitCause.GUEST_RESET and "panicked" in end.reason


def test_a_killed_vmm(fresh: Callable[..., Machine]) -> None:
    one = fresh()
    one.vm.start()
    os.kill(one.vm.pid, signal.SIGKILL)
    assert one.vm.wait(20) == VmExit(ExitCause.FAILED, None, signal.SIGKILL, "QEMU ended with signal SIGKILL")
    with pytest.raises(HypervisorError, match="SIGKILL"):
        one.vm.pause()


def test_stop(fresh: Callable[..., Machine]) -> None:
    one = fresh()
    one.vm.start()
    assert one.vm.stop(20) == VmExit(ExitCause.STOPPED, 0, None, "stopped")


def test_stop_of_a_vmm_that_hangs(fresh: Callable[..., Machine]) -> None:
    one = fresh()
    one.vm.start()
    os.kill(one.vm.pid, signal.SIGSTOP)
    started = time.monotonic()
    end = one.vm.stop(0.3)
    assert end.signal == signal.SIGKILL and end.cause is ExitCause.STOPPED and time.monotonic() - started < 10


def test_never_started(fresh: Callable[..., Machine]) -> None:
    one = fresh()
    one.vm.kill()
    end = one.vm.wait(1)
    assert end is not None and end.cause is ExitCause.STOPPED and one.exits == [end]
    with pytest.raises(HypervisorError, match="started before"):
        one.vm.start()


def test_a_vmm_that_refuses_says_why(fresh: Callable[..., Machine], tmp_path: Path) -> None:
    one = fresh(SharedFs("tag", os.open("/dev/null", os.O_RDWR)), log=tmp_path / "vmm.log")
    with pytest.raises(HypervisorError, match="did not start: QEMU ended with status 1: .*(socket|fd)"):
        one.vm.start()
    assert one.exits and one.exits[0].cause is ExitCause.FAILED
    assert (tmp_path / "vmm.log").read_text()


def test_what_cannot_be_created(initrd: Path, tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    closed = tmp_path / "closed"
    closed.write_bytes(b"x")
    closed.chmod(0o600)
    good = VmSpec("x", initrd, initrd, (), 64, 1, False, Accelerator.TCG)
    for change, match in (
        ({"kernel": closed}, "not readable by everyone: run: chmod a\\+r"),
        ({"initrd": tmp_path / "missing"}, "cannot open"),
        ({"devices": (Block("b", tmp_path / "missing"), AgentPort("p", os.dup(1)))}, "cannot open"),
    ):
        with pytest.raises(HypervisorError, match=match):
            QemuHypervisor(Config()).create(dataclasses.replace(good, **change), JAIL)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_shared_tree(fresh: Callable[..., Machine], tmp_path: Path) -> None:
    """virtiofsd, launched the same way, on a connected socket."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "hello").write_text("from the host\n")
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        argv = [configuration.Config().virtiofsd, f"--fd={listener.fileno()}", "-f", "--rlimit-nofile=0"]
        argv += ["-o", f"source={tree}", "-o", "cache=auto,timeout=0,xattr,log_level=err"]
        jail = Confinement(0, 0, capabilities=frozenset((0, 1, 3, 4, 6, 7, 8, 18, 21, 27, 31)))
        server = launch.spawn(argv, jail, pass_fds=(listener.fileno(),))
    one = fresh(SharedFs("tree", client.detach())).up()
    one.run("$B mkdir -p /t && $B mount -t virtiofs tree /t")
    assert one.run("$B cat /t/hello") == "from the host"
    one.run("echo from the guest >/t/answer; $B chown 7:8 /t/answer; $B mknod /t/null c 1 3")
    assert (tree / "answer").read_text() == "from the guest\n"
    made = (tree / "answer").stat()
    assert (made.st_uid, made.st_gid) == (7, 8) and stat.S_ISCHR((tree / "null").stat().st_mode)
    (tree / "hello").write_text("changed\n")
    assert one.run("$B cat /t/hello") == "changed"
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    watches = [os.pidfd_open(int(child)) for child in children]
    server.kill()
    assert server.wait(10) == -signal.SIGKILL
    server.close()
    poll = select.poll()
    for watch in watches:
        poll.register(watch, select.POLLIN)
    assert watches and poll.poll(10_000), "the file server's inner process outlived the outer one"
    for watch in watches:
        os.close(watch)

"""Machines that are copies of one that stands still: what a copy has of its own, and what becomes of it whoever dies.

The tests that need the original's end come last, in this order.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from casemate import __version__
from casemate.config import Config
from casemate.errors import HypervisorError
from casemate.host import cgroups, namespaces, network
from casemate.keeper.control import Connection
from casemate.vm import twins
from casemate.vm.hypervisor import twin
from casemate.vm.template import store
from tests.vm import oci
from tests.vm.oci import until
from tests.vm.pool_lab import SETTINGS, pool
from tests.vm.support import (
    Casemate,
    Container,
    await_twins,
    detached,
    environment,
    leaks,
    links,
    mounts,
    original_ids,
    processes,
    vmm_of,
)
from tests.vm.test_pod import keeper_of, member

pytestmark = pytest.mark.skipif(not twin.available(), reason="without native/twin.c no machine is copied")

RDRAND = r"""
#include <immintrin.h>
#include <stdio.h>
int main(void)
{
    unsigned long long value = 0;
    for (int i = 0; i < 4; i++) {
        while (!_rdrand64_step(&value))
            ;
        printf("%016llx ", value);
    }
    puts("");
    return 0;
}
"""
BROKEN = "__attribute__((constructor)) static void begin(void) { __builtin_trap(); }\n"
OTHER_LIBRARY = """\
import pathlib
from casemate.vm.hypervisor import twin
twin.LIBRARY = pathlib.Path({!r})
"""


def build(text: str, target: Path, *flags: str) -> Path:
    source = target.with_suffix(".c")
    source.write_text(text)
    subprocess.run(["gcc", "-O1", *flags, "-o", str(target), str(source)], check=True, timeout=60)
    return target


@pytest.fixture(scope="module")
def own() -> Iterator[Casemate]:
    """An environment with an original; nothing may be left of it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with environment(copies=True, own_templates=True) as env:
        own = Casemate(env)
        own.out("template", "create", timeout=200)
        with detached(own, "early") as early:
            if own.inspect("early")["Guest"]["accelerator"] != "tcg":
                pytest.skip("a machine with KVM cannot be copied")
            assert early.sh("echo on") == "on"
            assert not is_twin(own, "early"), "there is nothing to copy yet"
        await_twins(env)
        yield own
        assert leaks(env) == []


@pytest.fixture(scope="module")
def pair(own: Casemate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Container, Container]]:
    """Two copies; the first has a volume, the second more memory than the original."""
    volume = tmp_path_factory.mktemp("volume")
    program = build(RDRAND, volume / "rdrand", "-static", "-mrdrnd")
    assert program.exists()
    with (
        detached(own, "first", "-v", f"{volume}:/volume", "--hostname", "one") as first,
        detached(own, "second", "-v", f"{volume}:/volume:ro", "--hostname", "two", "--memory", "2000m") as second,
    ):
        yield first, second


def is_twin(cm: Casemate, name: str) -> bool:
    return cm.inspect(name)["Guest"].get("twin", False) is True


def vmm(container: Container) -> int:
    return vmm_of(container.cm.inspect(container.name)["Id"])


def config_of(cm: Casemate) -> Config:
    return Config(root=cm.env.root, run=cm.env.run)


def holder_of(cm: Casemate) -> twins.Holder:
    (holder,) = twins.holders(config_of(cm))
    return holder


def original(cm: Casemate) -> int:
    """The machine that others are copied from, and that stands still."""
    (identifier,) = original_ids(cm.env)
    inside = cgroups.find(identifier).processes()
    (pid,) = (pid for pid in inside if status_of(pid)["PPid"] == str(holder_of(cm).pid) and is_qemu(pid))
    return pid


def is_qemu(pid: int) -> bool:
    return os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith("qemu-system")


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def opened(pid: int) -> int:
    """A process's descriptor; its number may be somebody else's later."""
    return os.pidfd_open(pid)


def ends(pidfd: int, seconds: float = 30) -> bool:
    """Whether a process ends within that time."""
    return bool(select.select([pidfd], [], [], seconds)[0])


# ---- a container in one


def test_it_is_told(own: Casemate, pair: tuple[Container, Container]) -> None:
    (template,) = store.list_all(own.env.root)
    for name, memory in (("first", 1024), ("second", 2000)):
        guest = own.inspect(name)["Guest"]
        assert guest["twin"] is True
        assert guest["template"] == template.key[:12]
        assert guest["memory_mib"] == memory
        assert guest["agent"] == guest["agent_version"]
        assert memory - 60 < guest["mem_total"] >> 20 <= memory
    row = own.out("template", "list").splitlines()[1]
    assert row.endswith("1024 MiB")


def test_a_container_in_one_works(own: Casemate, pair: tuple[Container, Container], tmp_path: Path) -> None:
    first, second = pair
    assert first.exec("sh", "-c", "cat; exit 5", input=b"in").returncode == 5
    assert first.exec("cat", input=b"in" * 100000).stdout == b"in" * 100000
    first.sh("echo written >/volume/file; head -c 3m /dev/urandom >/volume/large")
    assert second.sh("cat /volume/file") == "written"
    assert second.exec("sh", "-c", "echo x >/volume/file").returncode != 0
    assert second.sh("sha256sum /volume/large") == first.sh("sha256sum /volume/large")
    own.out("cp", f"{first.name}:/volume/large", str(tmp_path / "large"))
    assert (tmp_path / "large").stat().st_size == 3 << 20
    own.out("cp", str(tmp_path / "large"), f"{second.name}:/large")
    assert second.sh("wc -c </large") == str(3 << 20)
    own.out("pause", first.name)
    assert own.inspect(first.name)["State"]["Paused"]
    own.out("unpause", first.name)
    assert first.sh("echo on") == "on"
    assert second.sh("nproc") == "1"
    # More than the original has, and all of it can be used.
    second.sh("dd if=/dev/zero of=/dev/shm/full bs=1M count=600 2>/dev/null; rm /dev/shm/full", timeout=120)


def guest_memory(pid: int) -> int:
    """How many KiB of the guest's memory one has for itself: what is mapped from the original's sealed file."""
    mapped = iter(Path(f"/proc/{pid}/smaps").read_text().splitlines())
    next(line for line in mapped if " rw-p " in line and "/memfd:casemate-original" in line)
    return next(int(line.split()[1]) for line in mapped if line.startswith("Private_Dirty:"))


def test_what_is_again_as_the_original_has_it_is_given_back(own: Casemate) -> None:
    """By itself, soon after its start, when it is idle; and nothing is lost by it."""
    with detached(own, "settling") as box:
        pid = vmm(box)
        assert box.sh("echo kept > /tmp/kept; md5sum /bin/busybox > /tmp/sum; sleep 0.5; echo on") == "on"
        before = guest_memory(pid)
        until(lambda: guest_memory(pid) < before - 512, "memory given back", 60)
        assert box.sh("cat /tmp/kept; md5sum -c /tmp/sum") == "kept\n/bin/busybox: OK"
        with open(f"/proc/{pid}/cgroup") as group, open(f"/proc/{pid}/status") as status:
            assert group.read() and "State:\tT" not in status.read()


def test_the_window_has_no_more_than_what_is_in_use(own: Casemate) -> None:
    """The guest has told its host of what is free there, before it was copied and after it."""
    with detached(own, "plain") as box:
        pid = vmm(box)

        def window() -> int:  # KiB, of 16 MiB
            links = {f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd")}
            return max(os.stat(link).st_blocks // 2 for link in links if "casemate-window" in os.readlink(link))

        until(lambda: window() < 7 << 10, "free memory taken out of the window", 60)


def test_they_reach_each_other(own: Casemate, pair: tuple[Container, Container]) -> None:
    address = own.inspect("second")["NetworkSettings"]["IPAddress"]
    with own.popen("exec", "second", "nc", "-l", "-p", "7000", stdin=subprocess.DEVNULL) as server:
        pair[0].sh(f"until echo over | nc -w 5 {address} 7000; do :; done")
        assert server.communicate(timeout=60)[0] == b"over\n"


def test_one_that_ends_is_told_with_its_output(own: Casemate) -> None:
    done = own("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    own.out("run", "-d", "--name", "logged", "busybox", "sh", "-c", "echo one; echo two")
    try:
        assert own.out("wait", "logged") == "0"
        assert own.out("logs", "logged") == "one\ntwo"
        assert is_twin(own, "logged")
    finally:
        own.remove("logged")


def test_less_memory_is_another_kind(own: Casemate) -> None:
    """What the original has cannot be taken away from a copy, so another one is begun; nothing waits for it."""
    with detached(own, "small", "--cpus", "0.5", "--memory", "500m") as small:
        assert not is_twin(own, "small")
        assert small.sh("nproc") == "1"

    def other() -> list[int]:
        return [holder.pid for holder in twins.holders(config_of(own)) if holder.kind.memory_mib != 1024]

    (pid,) = until(other, "who makes it")
    maker = opened(pid)
    os.kill(pid, signal.SIGTERM)
    assert ends(maker), "whatever it is at"
    os.close(maker)
    assert len(original_ids(own.env)) == 1


def test_a_pod_by_the_runtime(own: Casemate, pair: tuple[Container, Container], tmp_path: Path) -> None:
    with oci.runtime("casemate", own.env, tmp_path) as runtime:
        first = runtime.create(runtime.bundle()).start()
        second = runtime.create(member(runtime.bundle(), first)).start()
        info = keeper_of(first).info()
        assert info["twin"] is True
        boot = "cat /proc/sys/kernel/random/boot_id"
        assert first.sh(boot) == second.sh(boot)
        assert first.sh(boot) != pair[0].sh(boot)


# ---- what is its own


QUESTIONS = (
    "cat /proc/sys/kernel/random/boot_id",
    "head -c 32 /dev/urandom | sha256sum",
    "/volume/rdrand",
    "cat /proc/sys/kernel/random/uuid",
    "hostname",
    "md5sum /etc/hosts",
    "cat /sys/class/net/eth0/address",
    "ip -4 addr show eth0 | grep inet",
)


def test_they_differ(pair: tuple[Container, Container]) -> None:
    answers = [container.sh("; ".join(QUESTIONS)).splitlines() for container in pair]
    for question, first, second in zip(QUESTIONS, *answers, strict=True):
        assert first and second and first != second, question


def test_the_processor_draws_other_numbers_for_each(pair: tuple[Container, Container]) -> None:
    drawn = [set(container.sh("/volume/rdrand; /volume/rdrand").split()) for container in pair]
    assert len(drawn[0] | drawn[1]) == 16


def test_its_process_is_nobodys(own: Casemate, pair: tuple[Container, Container]) -> None:
    stands = original(own)
    users = set()
    for container in pair:
        pid, status = vmm(container), status_of(vmm(container))
        identifier = own.inspect(container.name)["Id"]
        (user,) = set(status["Uid"].split())
        assert set(status["Gid"].split()) == {user}
        assert int(user) in own.env.user_ids
        assert status["Groups"] == ""
        assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Amb")} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        for thread in os.listdir(f"/proc/{pid}/task"):
            mine = status_of(int(thread))
            assert (mine["Seccomp"], mine["NoNewPrivs"], mine["CapEff"]) == ("2", "1", "0" * 16)
            assert mine["Uid"] == status["Uid"]
            assert os.getpriority(os.PRIO_PROCESS, int(thread)) == max(0, os.getpriority(os.PRIO_PROCESS, 0))
        assert pid in cgroups.find(identifier).processes()
        assert all(identifier in line for line in groups(pid) if "casemate" in line) and groups(pid)
        users.add(user)
        for kind in ("net",):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/{stands}/ns/{kind}")
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
        assert os.getsid(pid) == pid
        assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) <= 0
    assert len(users) == 2
    assert status_of(stands)["State"][0] in "ST"


def groups(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cgroup").read_text().splitlines()


def test_it_has_no_file_in_common_by_which_one_could_speak(own: Casemate, pair: tuple[Container, Container]) -> None:
    """What a copy shares with the others is what none of them can write to."""
    held = [files(pid) for pid in (original(own), *(vmm(container) for container in pair))]
    assert not [kind for kind, _ in held[0] if kind == "tap"], "the original's interface has gone"
    for index, one in enumerate(held):
        for other in held[index + 1 :]:
            common = {key: one[key] for key in one.keys() & other.keys()}
            for kind, _ in common:
                assert kind == "file"
            for pid_and_number in common.values():
                assert harmless(*pid_and_number), common
    windows = [{key for key, at in one.items() if "casemate-window" in name_of(*at)} for one in held[1:]]
    assert len(windows[0]) == len(windows[1]) == 1 and not windows[0] & windows[1]
    for pid, window in zip((vmm(container) for container in pair), windows, strict=True):
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        ((_, inode),) = window
        shared = [line for line in maps if line.split()[1][3] == "s"]
        assert {line.split()[4] for line in shared} == {inode.split()[1]}, "nothing else is mapped in common"


def name_of(pid: int, number: str) -> str:
    return os.readlink(f"/proc/{pid}/fd/{number}")


def harmless(pid: int, number: str) -> bool:
    """Whether nothing can be told by a file that is open: it is read only, sealed, or nothing."""
    if name_of(pid, number) == "/dev/null":
        return True
    info = Path(f"/proc/{pid}/fdinfo/{number}").read_text()
    (flags,) = (int(line.split()[1], 8) for line in info.splitlines() if line.startswith("flags:"))
    if flags & os.O_ACCMODE == os.O_RDONLY:
        return True
    file = os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY)
    try:
        return "memfd:" in name_of(pid, number) and bool(fcntl.fcntl(file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE)
    finally:
        os.close(file)


def files(pid: int) -> dict[tuple[str, str], tuple[int, str]]:
    """What a process has open: kind and identity, and where."""
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        name = name_of(pid, number)
        status = os.stat(f"/proc/{pid}/fd/{number}")
        if name == "anon_inode:[eventfd]":
            info = Path(f"/proc/{pid}/fdinfo/{number}").read_text()
            (identity,) = (line.split()[1] for line in info.splitlines() if line.startswith("eventfd-id:"))
            found["eventfd", identity] = (pid, number)
        elif name == "/dev/net/tun":  # each time that it is opened it is another interface's
            found["tap", f"{pid} {number}"] = (pid, number)
        elif name != "anon_inode:[signalfd]":  # that gives the signals of whoever reads it
            kind = name.partition(":")[0] if name.startswith(("socket:", "pipe:", "anon_inode:")) else "file"
            found[kind, f"{status.st_dev} {status.st_ino}"] = (pid, number)
    return found


# ---- all of it answers, whatever it is asked


def kind_of(cm: Casemate) -> twins.Kind:
    return holder_of(cm).kind


def take(cm: Casemate) -> twins.Taken:
    taken = twins.take(config_of(cm), kind_of(cm))
    assert taken is not None
    return taken


def test_ten_at_once_are_copies_and_answer(own: Casemate) -> None:
    """Who waits for his turn does not ask for one yet, so all of them can be served in time."""
    names = [f"at-once-{number}" for number in range(10)]
    with ThreadPoolExecutor(10) as pool:
        said = list(pool.map(lambda name: own.out("run", "--name", name, "busybox", "echo", name), names))
    assert said == names
    assert [is_twin(own, name) for name in names] == [True] * 10
    own.remove(*names)


def test_each_that_is_taken_is_another_process(own: Casemate) -> None:
    taken = [take(own) for _ in range(3)]
    try:
        windows = {os.fstat(one.window).st_ino for one in taken}
        assert len(windows) == 3
        pids = [Path(f"/proc/self/fdinfo/{one.unborn.pidfd}").read_text().split("Pid:")[1].split()[0] for one in taken]
        assert len(set(pids)) == 3
        assert all(one.unborn.alive() for one in taken)
    finally:
        kept = [os.dup(one.unborn.pidfd) for one in taken]
        for one in taken:
            one.close()
        for pidfd in kept:
            assert ends(pidfd), "nobody wants it any more"
            os.close(pidfd)


HEAD = struct.Struct(f"=5I{twin.MAX_TARGETS}i")
MAGIC = 0x6E697774


def head(uid: int = 1000, gid: int = 1000, targets: int = 0, filter: int = -1, magic: int = MAGIC) -> bytes:
    size = len(twin.filter_code()) // 8 if filter < 0 else filter
    return HEAD.pack(magic, uid, gid, targets, size, *[0] * twin.MAX_TARGETS)


@pytest.mark.parametrize(
    ("message", "descriptors"),
    [
        (head(uid=0) + twin.filter_code(), 1),
        (head(gid=0) + twin.filter_code(), 1),
        (head(magic=1) + twin.filter_code(), 1),
        (head() + twin.filter_code()[:-8], 1),
        (head() + twin.filter_code() + bytes(8), 1),
        (head(filter=0), 1),
        (head(filter=1025) + bytes(1025 * 8), 1),
        (head(targets=twin.MAX_TARGETS + 1) + twin.filter_code(), twin.MAX_TARGETS + 2),
        (head(targets=twin.MAX_TARGETS + 1) + twin.filter_code(), twin.MAX_TARGETS + 1),
        (head(targets=1) + twin.filter_code(), 1),
        (head() + twin.filter_code(), 0),
        (head() + twin.filter_code(), 2),
        (head(targets=0xFFFFFFFF) + twin.filter_code(), 0),
        (b"x", 0),
        (b"x" * 60000, 17),
    ],
)
def test_a_wrong_request_ends_it(own: Casemate, message: bytes, descriptors: int) -> None:
    taken = take(own)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        life = taken.unborn.life
        life.settimeout(30)
        socket.send_fds(life, [message], [null] * descriptors)
        answer = life.recv(64)
        assert answer[:1] == b"x" and len(answer) == 9
        assert struct.unpack("=i", answer[1:5])[0] == 22  # EINVAL
        assert ends(taken.unborn.pidfd)
    finally:
        os.close(null)
        taken.close()


@pytest.mark.parametrize("wrong", ["namespace", "left over"])
def test_one_that_cannot_become_what_it_is_to_be_says_where(own: Casemate, wrong: str) -> None:
    taken = take(own)
    netns = namespaces.new_netns()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        # Without a new console, the original's would stay: that is refused.
        with pytest.raises(HypervisorError, match=r"does not come up: .* \(twin\.c, line \d+\)"):
            twin.become(taken.unborn, 1000, 1000, null if wrong == "namespace" else netns, ())
        assert ends(taken.unborn.pidfd)
    finally:
        os.close(null)
        os.close(netns)
        taken.close()


def test_nobody_gets_one_for_another_template(own: Casemate) -> None:
    wanted = kind_of(own)
    where = twins.place(config_of(own), wanted)
    right = {"version": __version__, "key": wanted.key, "memory": wanted.memory_mib}
    for wrong in ({}, {"version": "0"}, {"key": "x"}, {"memory": wanted.memory_mib + 1}, {"more": 1}):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(str(where))
            Connection(sock).send({**right, **wrong} if wrong else {})
            assert sock.recv(4096) == b""
    take(own).close()


# ---- ends


def test_it_ends_with_its_keeper(own: Casemate) -> None:
    with detached(own, "orphan") as container:
        assert is_twin(own, "orphan")
        machine = opened(vmm(container))
        os.kill(own.inspect("orphan")["State"]["Pid"], signal.SIGKILL)
        assert ends(machine), "nobody is there who could use it"
        os.close(machine)
        assert own.inspect("orphan")["State"]["Status"] == "exited"


def test_copies_go_on_when_the_original_is_killed(own: Casemate) -> None:
    """And the next start comes from the template, cleans up what the dead one left, and has another one made."""
    config = config_of(own)
    with detached(own, "survivor") as survivor:
        assert is_twin(own, "survivor")
        before = survivor.sh("cat /proc/sys/kernel/random/boot_id")
        holder, machine = holder_of(own), original(own)
        (identifier,) = original_ids(own.env)
        watched = [opened(machine), opened(holder.pid)]
        for pid in (machine, holder.pid):
            os.kill(pid, signal.SIGKILL)
        for pidfd in watched:
            assert ends(pidfd)
            os.close(pidfd)
        assert twins.holders(config) == []
        assert twins.take(config, holder.kind) is None
        assert survivor.sh("cat /proc/sys/kernel/random/boot_id") == before
        with open(own.env.config, "a") as file:
            file.write("twins_idle = 5\n")
        with detached(own, "next") as next:
            assert not is_twin(own, "next")
            assert next.sh("echo on") == "on"
        again = await_twins(own.env)
        assert again.pid != holder.pid
        assert identifier not in original_ids(own.env)
        assert not cgroups.find(identifier).directories
        assert not [line for line in links(own.env) if network.host_interface(identifier) in line]
        assert not [line for line in mounts(own.env) if identifier[:12] in line]
        with detached(own, "later"):
            assert is_twin(own, "later")
        assert survivor.sh("cat /proc/sys/kernel/random/boot_id") == before


def test_one_that_nobody_asks_for_ends(own: Casemate, monkeypatch: pytest.MonkeyPatch) -> None:
    (identifier,) = original_ids(own.env)
    watched = [opened(holder_of(own).pid), opened(original(own))]
    for pidfd in watched:
        assert ends(pidfd, 90)  # it looks at the time now and then
        os.close(pidfd)
    assert twins.holders(config_of(own)) == []
    until(lambda: not original_ids(own.env), "what it had")
    assert not cgroups.find(identifier).directories


def test_removing_the_template_ends_it(own: Casemate) -> None:
    text = own.env.config.read_text()
    own.env.config.write_text(text.replace("twins_idle = 5\n", ""))
    with detached(own, "another"):
        assert not is_twin(own, "another")
    holder = await_twins(own.env)
    watched = [opened(holder.pid), opened(original(own))]
    with detached(own, "on") as container:
        assert is_twin(own, "on")
        own.out("template", "rm", holder.kind.key)
        for pidfd in watched:
            assert ends(pidfd, 0), "the command has waited for it"
            os.close(pidfd)
        assert not original_ids(own.env)
        assert container.sh("echo on") == "on"


@pytest.mark.slow
def test_members_of_the_pool_are_copies_too() -> None:
    with environment(SETTINGS, copies=True) as env:
        with pool(env, 1) as lab:
            lab.ready(1)
            await_twins(env)
            with detached(lab.cm, "first"):
                lab.ready(1)
                with detached(lab.cm, "second") as second:
                    guest = lab.cm.inspect("second")["Guest"]
                    assert (guest["pool"], guest["twin"]) == (True, True)
                    assert second.sh("cat /proc/sys/kernel/random/boot_id") == guest["boot_id"]
        assert leaks(env) == []


def test_one_that_cannot_be_made_is_told_and_not_tried_again(tmp_path: Path) -> None:
    library = build(BROKEN, tmp_path / "broken.so", "-shared", "-fPIC")
    (tmp_path / "sitecustomize.py").write_text(OTHER_LIBRARY.format(str(library)))
    variables = {"PYTHONPATH": str(tmp_path)}
    said = subprocess.run(
        [sys.executable, "-c", "from casemate.vm.hypervisor import twin; print(twin.LIBRARY)"],
        env=os.environ | variables, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    if said != str(library):
        pytest.skip("this Python has a sitecustomize of its own")
    with environment(copies=True) as env:
        own = Casemate(env)
        done = own("run", "--rm", "busybox", "echo", "on", variables=variables, check=True)
        assert done.stdout == b"on\n"
        notes = env.run / "twins"
        until(lambda: list(notes.glob("*.failed")), "it is noted", 120)
        until(lambda: not twins.holders(config_of(own)), "the end of who has tried")
        (note,) = notes.glob("*.failed")
        when = note.stat().st_mtime_ns
        assert b"no machine to be copied: " in own("template", "list", check=True).stderr
        assert own("run", "--rm", "busybox", "echo", "on", variables=variables, check=True).stdout == b"on\n"
        assert note.stat().st_mtime_ns == when
        assert "signal" in note.read_text(), "what its machine died of"
        assert not [what for what in processes(env).values() if "casemate.twins" in what]
        assert leaks(env) == []

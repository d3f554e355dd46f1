"""A container that was made of a blank (``casemate.agent.blank``) is what the runtime, crun, makes of the same
specification: the first container of a machine from a template is one, the second in the same guest is the runtime's.
"""

from __future__ import annotations

import base64
import difflib
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from casemate.oci import imageconfig
from casemate.oci import spec as oci
from casemate.vm.template import usual
from tests.vm.agent_guest import SHARE, VOLUMES, Guest, Process
from tests.vm.support import Casemate, Environment

LOOK = r"""
part() { echo "== $1"; }
part status
grep -vE '^(Pid|Tgid|PPid|NS.*|Ngid|Vm.*|Rss.*|Huge.*|.*ctxt.*|Cpus.*|Mems.*|Name|State):' /proc/self/status
part limits; cat /proc/self/limits
part mounts; sed 's/^[0-9]* [0-9]* [0-9]*:[0-9]* //' /proc/self/mountinfo | sort
part group; cat /proc/self/cgroup; cd /sys/fs/cgroup
cat memory.max pids.max cgroup.controllers cgroup.subtree_control cpu.max cpu.weight; head -n 1 cgroup.procs
cd - >/dev/null
part files
plain() { sed 's/^\(.[rwxtsT-]*\) *[0-9]* /\1 /; s/ [0-9]* *[A-Z][a-z][a-z] [ 0-9]* [0-9:]* / /'; }
{ ls -ln / /dev /dev/shm /etc /srv /data 2>&1; ls -ldn /dev/pts /proc /sys; } | plain
part process; id; env; pwd; umask; cd /proc/self; cat oom_score_adj personality timerslack_ns loginuid; cd - >/dev/null
tr '\0' ' ' < /proc/1/cmdline; cat /proc/1/comm; awk '{ print $4, $5, $6, $7, $18, $19, $40, $41 }' /proc/1/stat
part descriptors; for fd in /proc/self/fd/*; do readlink $fd; done | sed 's/[0-9][0-9]*/N/g'
for fd in 0 1 2; do stat -L -c '%F %u %g' /proc/self/fd/$fd; done
part names; hostname; cat /proc/sys/kernel/domainname; ls /proc | grep '^[0-9]' | head -n 1
part refused
for file in kcore keys timer_list interrupts; do echo $file; head -c 1 < /proc/$file | wc -c; done 2>&1
ls /proc/acpi /sys/firmware | wc -l
for file in proc/sys/kernel/hostname proc/sysrq-trigger sys/kernel/mm/ksm/run sys/fs/cgroup/cgroup.procs new data/new
do echo x > /$file; done 2>&1
umount /proc/keys; mount -t tmpfs none /tmp; unshare -m true; unshare -U true; hostname other; chroot / true
nice -n -5 true; dmesg > /dev/null && echo dmesg; date -s 2020-01-01
part devices
for device in '1 3' '1 5' '1 9' '5 0' '5 1' '5 2' '10 200' '10 229' '1 1' '7 0' '8 0' '136 0'; do
  rm -f /tmp/node; mknod /tmp/node c $device && { echo made $device; true < /tmp/node && echo opened; }
  rm -f /tmp/node; mknod /tmp/node b $device && { echo block $device; true < /tmp/node && echo opened; }
done 2>&1
part end; trap
exit 7
"""
DAY, MEMORY_MIB = 86400, 256


def sandbox(guest: Guest) -> dict[str, Any]:
    return {
        "hostname": "guest", "interfaces": [], "time_ns": time.time_ns(), "shares": guest.machine.late,
        "entropy": base64.b64encode(os.urandom(64)).decode(),
    }  # fmt: skip


def of_blank(guest: Guest) -> int:
    """How many containers were made of a blank."""
    return [name for name, _ in guest.call("sandbox.boot", log=False)["marks"]].count("blank")


class Pair:
    """A guest in which the first container is made of a blank, and the second by the runtime."""

    def __init__(self, env: Environment) -> None:
        self.guest = Guest(env, memory_mib=MEMORY_MIB)
        self.made = 0

    def boot(self) -> None:
        """Have the guest come up."""
        (self.guest.volumes / "data").mkdir()
        (self.guest.volumes / "data/file").write_text("here")
        self.guest.boot()

    def make(self, change: Callable[[dict[str, Any]], None], words: list[str], **more: Any) -> Process:
        """Make the next one; both have one root file system's contents, but not one root file system."""
        guest, self.made = self.guest, self.made + 1
        name = f"c{self.made}"
        root = guest.root(name)
        for other in ("awk", "chroot", "date", "dmesg", "env", "grep", "head", "hostname", "id", "ls", "mknod", "mount",
                      "nice", "readlink", "rm", "sed", "stat", "tr", "umount", "unshare", "wc"):  # fmt: skip
            (root / "bin" / other).symlink_to("busybox")
        (root / "tmp").chmod(0o1777)
        made = oci.build(imageconfig.ImageConfig(), oci.Wishes(command=tuple(words), hostname="name"))
        made["root"] = {"path": f"{SHARE}/{name}"}
        made["process"]["env"] = ["PATH=/bin", "A=1", "B=", "A=2"]
        change(made)
        terminal = made["process"].get("terminal", False)
        files = [{"path": "/etc/hosts", "mode": 0o644, "content": "127.0.0.1 localhost\n"}]
        first = {"sandbox": sandbox(guest)} if self.made == 1 else {}
        return guest.create(
            name, spec=made, terminal=terminal, files=files, memory=64 << 20, **{"run": True, **first, **more}
        )


@pytest.fixture
def pair(env: Environment) -> Iterator[Pair]:
    """A guest from a template, which has to be there: else the first guests boot while it is made."""
    Casemate(env)("template", "create", "--memory", f"{MEMORY_MIB}m", check=True, timeout=300)
    made = Pair(env)
    try:
        made.boot()
        yield made
        assert "Traceback" not in made.guest.console()
    finally:
        made.guest.close()


def alike(output: str) -> list[str]:
    """What was seen, less what has to differ: names, two signals that the C library leaves ignored in what a program
    has started (those below SIGRTMIN, which are its own), and how many files could be where none can."""
    output = re.sub(r"\bc[12]\b", "cN", output)
    output = re.sub(r"^/[12]/0 /etc/hosts", "/N/0 /etc/hosts", output, flags=re.MULTILINE)
    output = re.sub(r"(tmpfs rw,size=0k),nr_inodes=\d+", r"\1", output)
    return output.replace("SigIgn:\t0000000180000000", "SigIgn:\t0000000000000000").splitlines()


def plain(spec: dict[str, Any]) -> None:
    """As it is."""


def user(spec: dict[str, Any]) -> None:
    spec["process"]["user"] = {"uid": 33, "gid": 34, "additionalGids": [5, 100], "umask": 0o27}
    spec["process"]["noNewPrivileges"] = True
    spec["process"]["cwd"] = "/tmp"
    spec["process"]["oomScoreAdj"] = 300
    sets = spec["process"]["capabilities"]
    sets["inheritable"] = ["CAP_NET_RAW", "CAP_KILL"]
    sets["ambient"] = ["CAP_NET_RAW", "CAP_KILL", "CAP_CHOWN"]  # one more than can be, as builders of images ask for
    spec["process"]["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": (1 << 64) - 1},
        {"type": "RLIMIT_NPROC", "soft": 50, "hard": 60}, {"type": "RLIMIT_AS", "soft": 1 << 25, "hard": 1 << 26},
    ]  # fmt: skip


def mounts(spec: dict[str, Any]) -> None:
    source = f"{VOLUMES}/data"
    spec["root"]["readonly"] = True
    spec["process"]["user"]["umask"] = 0
    spec["mounts"] += [
        {"destination": "/data", "type": "bind", "source": source, "options": ["rbind", "ro", "nosuid"]},
        {"destination": "/srv/deep/place", "type": "bind", "source": source, "options": ["bind", "rprivate", "noexec"]},
        {"destination": "/etc/one", "type": "bind", "source": f"{source}/file", "options": ["bind", "slave", "rw"]},
        {"destination": "/srv/a", "type": "bind", "source": source,
         "options": ["rbind", "rslave", "nodev", "noatime", "nodiratime"]},
        {"destination": "/srv/b", "type": "bind", "source": source, "options": ["bind", "strictatime", "nosuid"]},
        {"destination": "/srv/c", "type": "bind", "source": source, "options": ["bind", "relatime", "ro", "nodev"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["noexec", "size=1m", "mode=700"]},
    ]
    spec["linux"]["maskedPaths"] = ["/proc/kcore", "/sys/firmware", "/etc/group", "/not/there"]
    spec["linux"]["readonlyPaths"] = ["/proc/sys", "/dev/shm", "/nor/this"]


def unbound(spec: dict[str, Any]) -> None:
    del spec["linux"]["seccomp"]
    every = list(oci.CAPABILITIES)
    spec["process"]["capabilities"] = {kind: every for kind in ("bounding", "effective", "permitted")}
    spec["linux"]["resources"]["devices"] = [
        {"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 10, "access": "rm"},
        {"allow": True, "type": "b", "major": 7, "minor": 0, "access": "rwm"},
        {"allow": False, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
    ]  # fmt: skip
    spec["linux"]["resources"]["pids"] = {"limit": 77}
    spec["linux"].pop("maskedPaths")
    spec["linux"].pop("readonlyPaths")


def of(number: int, name: str) -> Callable[[dict[str, Any]], None]:
    """As an engine's are."""

    def change(spec: dict[str, Any]) -> None:
        spec["mounts"] = list(usual.CONTAINERS[number]["mounts"])
        spec["linux"] |= usual.CONTAINERS[number]["linux"]

    change.__name__ = name
    return change


OF_DOCKER, OF_CTR, OF_RUNC = of(0, "docker"), of(1, "ctr"), of(2, "runc")


def of_nobody(spec: dict[str, Any]) -> None:
    """Each of /proc, /dev and /sys as somebody else has it."""
    spec["mounts"] = list(usual.CONTAINERS[0]["mounts"])
    spec["linux"] |= usual.CONTAINERS[2]["linux"]
    spec["linux"]["maskedPaths"] = list(reversed(spec["linux"]["maskedPaths"]))
    spec["mounts"].append({"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]})


def terminal(spec: dict[str, Any]) -> None:
    spec["process"]["terminal"] = True
    spec["process"]["user"] = {"uid": 33, "gid": 33}


def seccomp(spec: dict[str, Any]) -> None:
    spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["sethostname", "not_there"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
            {"names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": 6, "args": [
                {"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]},
        ],
    }  # fmt: skip


@pytest.mark.parametrize("change", [plain, OF_DOCKER, OF_CTR, OF_RUNC, of_nobody], ids=lambda one: one.__name__)
def test_what_most_have_was_mounted_ahead(pair: Pair, change: Callable[[dict[str, Any]], None]) -> None:
    """Its devices are older than the day on which the guest then finds itself."""
    today = int(time.time()) + DAY
    for ahead in (True, False):
        given = {"sandbox": {**sandbox(pair.guest), "time_ns": today * 10**9}} if ahead else {}
        process = pair.make(change, ["stat", "-c", "%Y", "/dev/null", "/dev/pts", "/dev/shm", "/etc/hosts"], **given)
        *made, hosts = map(int, process.output().split())
        assert process.wait().status == 0
        assert hosts >= today and all((when < today) == ahead for when in made), (ahead, today, made, hosts)
    assert "not mounted ahead" not in pair.guest.console()


@pytest.mark.parametrize(
    "change", [plain, user, mounts, unbound, terminal, seccomp, OF_DOCKER, OF_RUNC], ids=lambda one: one.__name__
)
def test_the_runtime_makes_the_same(pair: Pair, change: Callable[[dict[str, Any]], None]) -> None:
    """All that a program can see and do is the same."""
    results = []
    for _ in range(2):
        process = pair.make(change, ["sh", "-c", LOOK], **({"size": (30, 100)} if change is terminal else {}))
        output = process.output()
        errors = "" if change is terminal else process.errors()
        end = process.wait()
        results.append((alike(output), errors.splitlines(), end.status))
        assert output.count("\n") > 80, errors
    assert of_blank(pair.guest) == 1
    for ours, theirs in zip(*(result[:2] for result in results), strict=True):
        told = "\n".join(difflib.unified_diff(theirs, ours, "crun", "blank", n=1, lineterm=""))
        assert not told, told
    assert [result[2] for result in results] == [7, 7]


@pytest.mark.parametrize("words", [["nothing"], ["/etc"], ["/etc/passwd"]], ids=lambda one: str(one[0]))
def test_what_cannot_be_executed(pair: Pair, words: list[str]) -> None:
    said = []
    for _ in range(2):
        with pytest.raises(Exception) as caught:  # noqa: PT011 -- which one it is, is compared
            pair.make(plain, words)
        said.append((caught.type, str(caught.value)))
    assert said[0] == said[1]
    # Nothing is left of either.
    pair.make(plain, ["true"]).wait()
    left = pair.make(plain, ["ls", "/sys/fs/cgroup"])
    assert left.wait().status == 0


def test_its_life(pair: Pair) -> None:
    """Creation, start, further processes, update, pause, figures, signals, the end, and its name is free again."""
    guest = pair.guest
    process = pair.make(plain, ["sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done"], run=False)
    assert of_blank(guest) == 1
    guest.start("c1")
    assert process.line() == "up"
    assert guest.sh("c1", "cat /proc/1/comm; grep Seccomp: /proc/self/status") == "sh\nSeccomp:\t2"
    guest.call("container.update", id="c1", resources={"pids": {"limit": 33}})
    assert guest.sh("c1", "cat /sys/fs/cgroup/pids.max") == "33"
    guest.call("container.pause", id="c1")
    guest.call("container.resume", id="c1")
    assert guest.call("container.stats", id="c1")["pids"]["max"] == 33
    guest.signal("c1", 15)
    assert process.wait().status == 5
    guest.delete("c1")
    assert guest.create("c1", "sh", "-c", "echo again", run=True).output() == "again\n"
    assert of_blank(guest) == 1


def test_one_that_was_created_is_killed(pair: Pair) -> None:
    guest = pair.guest
    process = pair.make(plain, ["true"], run=False)
    guest.delete("c1")
    assert process.wait().signal == 9
    other = pair.make(plain, ["sh", "-c", "exit 3"])
    assert other.wait().status == 3


def test_all_its_processes_end_with_it(pair: Pair) -> None:
    """One that was left behind holds its output open no longer, and its control group can go."""
    process = pair.make(plain, ["sh", "-c", "sleep 1000 & sleep 1000 & exit 4"])
    assert process.output() == ""
    assert process.wait().status == 4
    pair.guest.delete("c1")


def test_a_link_does_not_lead_out(pair: Pair) -> None:
    """What an image has at a mount point is looked up in the image."""
    root = pair.guest.root("c1")
    (root / "proc").rmdir()
    (root / "elsewhere").mkdir()
    (root / "proc").symlink_to("/../../elsewhere")
    process = pair.make(plain, ["ls", "/elsewhere"])
    assert "cpuinfo" in process.output()
    assert "self" in os.listdir("/proc")

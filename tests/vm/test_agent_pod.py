"""The agent in a real guest, by its protocol: what engines' containers ask of it, and that none harms another."""

from __future__ import annotations

import glob
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from casemate.errors import AgentError, CommandNotExecutable, CommandNotFound, NotRunning, UsageError
from casemate.host import namespaces
from casemate.host.tap import open_tap
from casemate.oci.spec import CAPABILITIES
from casemate.sandbox import Stream
from casemate.vm.hypervisor import base
from tests.vm.agent_guest import SHARE, VOLUMES, Guest, booted, read_all
from tests.vm.support import Environment

PRIVILEGED = {kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")}
DNS_HEAD = struct.Struct("!HBI")
FOREVER = ("sh", "-c", "echo ready; exec sleep 100000")


@pytest.fixture(scope="module")
def guest(env: Environment) -> Iterator[Guest]:
    """A guest with two processors and a container ``first`` that stays; each test takes names of its own."""
    with booted(env, memory_mib=320, vcpus=2) as made:
        yield made
        assert "Traceback" not in made.console()


def outcome(guest: Guest, name: str, spec: dict[str, Any], **more: Any) -> tuple[str, str, int]:
    """Run a container to its end: its output, its errors, its status."""
    process = guest.run(name, spec=spec, **more)
    result = process.output(), process.errors(), process.wait().status
    guest.delete(name)
    return result


def ends(guest: Guest, *names: str) -> list[tuple[str, str | None]]:
    """The processes of some containers that have ended, in the order in which that was told."""
    return [key for key, _ in guest.ends if key[0] in names]


# ---- from creation to the end


def test_from_creation_to_the_end(guest: Guest) -> None:
    process = guest.create("life", "sh", "-c", "cat; exit 9", stdin=True)
    assert process.stdin is not None
    process.stdin.send(b"said before the start")
    process.stdin.send_eof()
    assert guest.call("container.stats", id="life")["pids"]["current"] == 1
    guest.start("life")
    with pytest.raises((AgentError, NotRunning)):
        guest.start("life")
    assert process.output() == "said before the start"
    assert process.wait().status == 9
    with pytest.raises((AgentError, NotRunning)):
        guest.start("life")
    guest.delete("life")
    guest.delete("life")


def test_what_cannot_be_created(guest: Guest) -> None:
    root = guest.root("bad")
    (root / "bin/plain").write_text("#!/bin/sh\n")
    (root / "bin/text").write_text("hello")
    (root / "bin/text").chmod(0o755)
    with pytest.raises(CommandNotFound):
        guest.create("bad", "nosuch")
    for word in ("/bin/plain", "/bin/text", "/tmp"):
        with pytest.raises(CommandNotExecutable):
            guest.create("bad", word)
    spec = guest.spec("bad", "true")
    spec["linux"]["sysctl"] = {"vm.swappiness": "1"}
    with pytest.raises(AgentError, match="swappiness"):
        guest.create("bad", spec=spec)
    process = guest.run("bad", "sh", "-c", "echo well")
    assert process.output() == "well\n"
    guest.delete("bad")


def test_a_created_container_that_is_killed_paused_deleted(guest: Guest) -> None:
    guest.create("k1", "sleep", "100000")
    guest.signal("k1", 9)
    assert guest.wait("k1").signal == 9
    with pytest.raises(NotRunning):
        guest.start("k1")
    guest.create("k2", "sleep", "100000")
    guest.call("container.pause", id="k2")
    with pytest.raises(AgentError, match="paused"):
        guest.exec("k2", "e", "true")
    guest.signal("k2", 9, everyone=True)
    assert guest.wait("k2").signal == 9
    guest.create("k3", "sleep", "100000")
    guest.delete("k3")
    assert guest.wait("k3").signal == 9


def test_a_terminal(guest: Guest) -> None:
    script = "stty size; tty; read line; echo got $line; exit 3"
    process = guest.create("tty", "sh", "-c", script, terminal=True, stdin=True, size=(30, 100))
    guest.call("process.resize", id="tty", exec_id=None, rows=31, cols=99)
    guest.start("tty")
    assert process.line() == "31 99\r"
    assert process.line().startswith("/dev/pts/")
    assert process.stdin is not None
    process.stdin.send(b"word\n")
    assert "got word" in process.output()
    assert process.wait().status == 3
    guest.delete("tty")


def test_the_end_of_a_container_ends_its_other_processes_first(guest: Guest) -> None:
    guest.run("ends", *FOREVER)
    for number in range(3):
        guest.exec("ends", f"e{number}", "sh", "-c", "trap '' TERM HUP; sleep 100000")
    guest.signal("ends", 9)
    guest.wait("ends")
    assert ends(guest, "ends")[-1] == ("ends", None)
    assert sorted(ends(guest, "ends")[:-1]) == [("ends", f"e{number}") for number in range(3)]
    guest.delete("ends")


def test_changes_of_the_host_are_seen_at_once(guest: Guest) -> None:
    """Without it the guest takes names to be as they were for a second."""
    root = guest.root("seen")
    guest.run("seen", *FOREVER).line()
    for number in range(5):
        assert guest.sh("seen", f"ls /tmp; cat /tmp/{number} 2>/dev/null; true").count("\n") <= number
        (root / f"tmp/{number}").write_text(f"new {number}")
        assert guest.sh("seen", f"cat /tmp/{number}") == f"new {number}"
        (root / "bin/changing").unlink(missing_ok=True)
        (root / "bin/changing").write_text(f"#!/bin/sh\necho {number}\n")
        (root / "bin/changing").chmod(0o755)
        assert guest.sh("seen", "changing") == str(number)
    guest.delete("seen")


# ---- what a specification holds


def test_a_process_as_it_was_asked_for(guest: Guest) -> None:
    spec = guest.spec(
        "asked", "sh", "-c",
        "id; pwd; umask; echo $HOME; ulimit -c; ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; ionice -p 1;"
        "awk '{print $19, $41}' /proc/1/stat; grep NoNewPrivs /proc/1/status; grep CapAmb /proc/1/status; hostname;"
        "cat /proc/sys/kernel/domainname",
        user={"uid": 33, "gid": 33, "additionalGids": [5, 6], "umask": 0o27}, cwd="/made/for/it", oomScoreAdj=55,
        rlimits=[{"type": "RLIMIT_CORE", "soft": 512, "hard": 1024}], noNewPrivileges=True,
        scheduler={"policy": "SCHED_BATCH", "nice": 5}, ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 6},
        apparmorProfile="docker-default", selinuxLabel="system_u:system_r:container_t:s0",
        capabilities={kind: ["CAP_NET_RAW"] for kind in
                      ("bounding", "effective", "permitted", "inheritable", "ambient")},
    )  # fmt: skip
    spec["domainname"] = "example.test"
    output, errors, status = outcome(guest, "asked", spec)
    assert status == 0, errors
    assert output.splitlines() == [
        "uid=33(web) gid=33(web) groups=5,6", "/made/for/it", "0027", "/srv", "1", "1024", "524288", "55",
        "best-effort: prio 6", "5 3", "NoNewPrivs:\t1", "CapAmb:\t0000000000002000", "asked", "example.test",
    ]  # fmt: skip


def test_a_container_as_it_was_asked_for(guest: Guest) -> None:
    spec = guest.spec(
        "made", "sh", "-c",
        "touch /x; head -c 3 /proc/kcore | wc -c; echo x > /proc/sys/kernel/domainname; mkdir /data/no;"
        "grep -o 'data.*' /proc/mounts; cat /etc/sent; cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax;"
        "uname -m; mkdir /tmp/x; cat /data/hook",
    )  # fmt: skip
    spec["root"]["readonly"] = True
    spec["mounts"] += [
        {"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "mode=711", "noexec"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": []},
    ]
    spec["linux"].update(
        maskedPaths=["/proc/kcore"], readonlyPaths=["/proc/sys"], personality={"domain": "LINUX32"},
        sysctl={"net.ipv4.ip_forward": "1", "kernel.shmmax": "123456"},
        seccomp={"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                 "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]},
    )  # fmt: skip
    hook = {"path": "/bin/sh", "args": ["sh", "-c", "cat > /data/hook"]}
    spec["hooks"] = {"startContainer": [hook], "prestart": [{"path": "/bin/false"}], "poststop": [hook]}
    spec["annotations"] = {"run.oci.handler": "krun"}
    files = [{"path": "/etc/sent", "mode": 0o644, "content": "by the host\n"}]
    (guest.root("made") / "etc/sent").touch()
    output, errors, status = outcome(guest, "made", spec, files=files)
    assert status == 0, errors
    lines = output.splitlines()
    assert lines[0] == "0", "the masked file is empty"
    assert "size=1024k" in lines[1] and "mode=711" in lines[1] and "noexec" in lines[1]
    assert lines[2:6] == ["by the host", "1", "123456", "i686"]
    assert '"id":"made"' in lines[6]
    assert errors.count("Read-only file system") == 2
    assert errors.count("Function not implemented") == 2


def test_a_hook_that_fails_keeps_the_container_from_running(guest: Guest) -> None:
    spec = guest.spec("hooked", "sh", "-c", "echo must not run")
    spec["hooks"] = {"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "exit 3"]}]}
    output, errors, status = outcome(guest, "hooked", spec)
    assert (output, status != 0) == ("", True)
    assert "hook" in errors


def test_users_of_its_own(guest: Guest) -> None:
    root = guest.root("users")
    subprocess.run(["chown", "-R", "100000:100000", root], check=True)
    spec = guest.spec("users", "sh", "-c", "id -u; cat /proc/self/uid_map; echo x > /tmp/x; cat /etc/sent")
    spec["linux"]["namespaces"].append({"type": "user"})
    for key in ("uidMappings", "gidMappings"):
        spec["linux"][key] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    files = [{"path": "/etc/sent", "mode": 0o644, "content": "by the host\n"}]
    output, errors, status = outcome(guest, "users", spec, files=files)
    assert status == 0, errors
    assert output.split()[:5] == ["0", "0", "100000", "65536", "by"]
    assert os.stat(root / "tmp/x").st_uid == 100000


def test_files_of_the_host_go_by_bind_mounts(guest: Guest) -> None:
    data = guest.volumes / "bound"
    (data / "0").mkdir(parents=True)
    (data / "0/file").write_text("a directory\n")
    (data / "1").write_text("a file\n")
    spec = guest.spec("bound", "sh", "-c", "cat /data/file /file; echo back > /data/back; echo no > /file")
    spec["mounts"] += [
        {"destination": "/data", "type": "bind", "source": f"{VOLUMES}/bound/0", "options": ["rbind", "rw"]},
        {"destination": "/file", "type": "bind", "source": f"{VOLUMES}/bound/1", "options": ["rbind", "ro"]},
    ]
    output, errors, status = outcome(guest, "bound", spec)
    assert output == "a directory\na file\n"
    assert status != 0 and "Read-only" in errors
    assert (data / "0/back").read_text() == "back\n"


def test_memory_that_containers_share(guest: Guest) -> None:
    def sharing(name: str, key: str, *options: str) -> dict[str, Any]:
        spec = guest.spec(name, *FOREVER)
        spec["mounts"] = [mount for mount in spec["mounts"] if mount["destination"] != "/dev/shm"]
        spec["mounts"].append({"destination": "/dev/shm", "type": "shared-memory", "source": key, "options": options})
        return spec

    guest.run("shm1", spec=sharing("shm1", "pod", "nosuid", "noexec", "size=2m"))
    guest.run("shm2", spec=sharing("shm2", "pod", "size=999m"))
    guest.run("shm3", spec=sharing("shm3", "other"))
    guest.sh("shm1", "echo here > /dev/shm/x")
    assert guest.sh("shm2", "cat /dev/shm/x; df -k /dev/shm | tail -1").split()[:3] == ["here", "shm", "2048"]
    assert guest.sh("shm3", "ls /dev/shm") == ""
    assert "noexec" in guest.sh("shm1", "grep /dev/shm /proc/mounts")
    guest.delete("shm1")
    assert guest.sh("shm2", "cat /dev/shm/x") == "here", "it stays while somebody has it"
    guest.delete("shm2", "shm3")
    guest.run("shm4", spec=sharing("shm4", "pod"))
    assert guest.sh("shm4", "ls /dev/shm") == "", "and goes with the last one"
    guest.delete("shm4")


# ---- sharing namespaces


def member(guest: Guest, name: str, of: str, *kinds: str) -> None:
    """Run a container that has some of another one's namespaces."""
    spec = guest.spec(name, *FOREVER)
    del spec["hostname"]
    for entry in spec["linux"]["namespaces"]:
        if entry["type"] in kinds:
            entry["container"] = of
    guest.run(name, spec=spec).line()


def test_namespaces_of_another_container(guest: Guest) -> None:
    guest.run("ns", *FOREVER).line()
    member(guest, "ns1", "ns", "pid", "ipc", "uts")
    member(guest, "ns2", "ns", "uts")
    script = "for kind in pid ipc uts mnt cgroup net; do readlink /proc/self/ns/$kind; done"
    owner, both, one = (guest.sh(name, script).split() for name in ("ns", "ns1", "ns2"))
    assert both[:3] == owner[:3] and both[3] != owner[3] and both[4] != owner[4]
    assert one[2] == owner[2] and one[:2] != owner[:2]
    assert owner[5] == both[5] == one[5], "the network is the guest's, all have it"
    assert guest.sh("ns1", "hostname") == "ns"
    assert "sleep 100000" in guest.sh("ns1", "ps -o pid,args | grep '^ *1 '")
    guest.delete("ns2")
    assert guest.sh("ns1", "hostname") == "ns", "who leaves ends nobody"
    guest.exec("ns1", "e", "sleep", "100000")
    guest.signal("ns1", 9)
    guest.wait("ns1")
    assert ends(guest, "ns1")[-2:] == [("ns1", "e"), ("ns1", None)], "the kernel would not have ended it"
    assert guest.sh("ns", "ps -o args | grep -c '[s]leep'") == "1"
    guest.delete("ns", "ns1")


def test_the_end_of_the_one_whose_processes_are_shared(guest: Guest) -> None:
    guest.run("pid", *FOREVER).line()
    names = [f"pid{number}" for number in range(4)]
    for name in names:
        member(guest, name, "pid", "pid")
        guest.exec(name, "e", "sleep", "100000")
    guest.run("apart", *FOREVER).line()
    guest.signal("pid", 9)
    for name in ("pid", *names):
        assert guest.wait(name).signal == 9
    for name in names:
        assert ends(guest, name) == [(name, "e"), (name, None)]
    assert guest.sh("apart", "echo alive") == "alive"
    with pytest.raises(NotRunning):
        member(guest, "pid9", "pid", "pid")
    with pytest.raises(NotRunning):
        member(guest, "pid9", "nobody", "pid")
    with pytest.raises(UsageError):
        member(guest, "pid9", "apart", "mount")
    guest.delete("pid", "apart", *names)


# ---- bounds


def figures(guest: Guest, name: str) -> dict[str, str]:
    """The bounds that a container sees."""
    names = ("memory.max", "memory.low", "cpu.weight", "cpu.max", "cpuset.cpus.effective", "pids.max")
    lines = guest.sh(name, f"cd /sys/fs/cgroup; for f in {' '.join(names)}; do echo $f $(cat $f); done; nproc")
    table = dict(line.split(" ", 1) for line in lines.splitlines()[:-1])
    return {**table, "nproc": lines.splitlines()[-1]}


def test_bounds_within_what_the_guest_can_give(guest: Guest) -> None:
    spec = guest.spec("bounds", *FOREVER)
    spec["linux"]["resources"].update(
        memory={"limit": 64 << 20, "reservation": 32 << 20, "swap": 128 << 20, "swappiness": 10, "kernel": 1 << 20,
                "disableOOMKiller": True},
        cpu={"shares": 512, "quota": 50000, "period": 100000, "cpus": "5", "mems": "1", "realtimeRuntime": 900},
        pids={"limit": 50}, blockIO={"weight": 300, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 5}]},
        hugepageLimits=[{"pageSize": "2MB", "limit": 0}, {"pageSize": "64KB", "limit": 0}],
        network={"classID": 1}, unified={"memory.high": str(60 << 20)},
    )  # fmt: skip
    guest.run("bounds", spec=spec).line()
    assert figures(guest, "bounds") == {
        "memory.max": str(64 << 20), "memory.low": str(32 << 20), "cpu.weight": "20", "cpu.max": "50000 100000",
        "cpuset.cpus.effective": "0", "pids.max": "50", "nproc": "1",
    }  # fmt: skip
    assert guest.sh("bounds", "cat /sys/fs/cgroup/memory.high") == str(60 << 20)

    total = guest.call("sandbox.info")["mem_total"]
    update = {"memory": {"limit": 1 << 50}, "cpu": {"shares": 2, "quota": 70000, "cpus": "0-1"}, "pids": {"limit": 60}}
    guest.call("container.update", id="bounds", resources=update)
    now = figures(guest, "bounds")
    assert 64 << 20 < int(now["memory.max"]) < total
    assert now | {"memory.max": "", "memory.low": ""} == {
        "memory.max": "", "memory.low": "", "cpu.weight": "1", "cpu.max": "70000 100000",
        "cpuset.cpus.effective": "0-1", "pids.max": "60", "nproc": "2",
    }  # fmt: skip

    guest.call("container.update", id="bounds", resources={
        "memory": {"limit": 48 << 20, "swap": -1}, "cpu": {"quota": -1, "shares": 0}, "pids": {"limit": -1},
        "blockIO": {"weight": 0},
    })  # fmt: skip
    now = figures(guest, "bounds")
    assert now["memory.max"] == str(48 << 20) and now["cpu.max"] == "max 100000" and now["cpu.weight"] == "1"
    assert 60 < int(now["pids.max"]) < 1 << 22
    assert guest.sh("bounds", "echo alive") == "alive"
    guest.delete("bounds")


def test_a_bad_update_changes_nothing(guest: Guest) -> None:
    guest.run("stay", *FOREVER).line()
    before = figures(guest, "stay")
    bad: list[Any] = [3, {"memory": 3}, {"memory": {"limit": "x"}}, {"cpu": {"cpus": "x"}}, {"pids": {"limit": []}}]
    for resources in bad:
        with pytest.raises(UsageError):
            guest.call("container.update", id="stay", resources=resources)
    with pytest.raises(AgentError):
        guest.call("container.update", id="stay", resources={"unified": {"no.such.file": "1"}})
    assert figures(guest, "stay") == before
    guest.delete("stay")


def test_what_a_container_uses(guest: Guest) -> None:
    spec = guest.spec("used", "sh", "-c", "echo ready; while :; do :; done")
    spec["linux"]["resources"]["cpu"] = {"quota": 20000, "period": 100000}
    guest.run("used", spec=spec).line()
    first = guest.call("container.stats", id="used")
    assert first["memory"]["stat"].keys() == {
        "anon", "file", "kernel", "shmem", "pgfault", "pgmajfault", "inactive_file"
    }  # fmt: skip
    assert first["memory"]["stat"]["pgfault"] > 0
    assert wait_for(lambda: guest.call("container.stats", id="used")["cpu"]["throttled_us"] > 0)
    cpu = guest.call("container.stats", id="used")["cpu"]
    assert cpu["nr_periods"] >= cpu["nr_throttled"] > 0
    guest.delete("used")


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Look again until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_who_takes_all_memory_ends_alone(guest: Guest) -> None:
    """There are no bounds but the guest's; what all have together is bounded too, so the agent lives on."""
    guest.run("hungry", *FOREVER).line()
    guest.run("modest", *FOREVER).line()
    eaters = [guest.exec(name, "eater", "sh", "-c", "exec tail /dev/zero") for name in ("hungry", "modest")]
    for eater in eaters:
        died = eater.wait()
        assert (died.signal, died.oom) == (9, True)
    assert guest.sh("hungry", "echo alive") == guest.sh("modest", "echo alive") == "alive"
    assert ("first", None) not in ends(guest, "first")
    assert {"hungry", "modest"} <= set(guest.ooms)
    guest.delete("hungry", "modest")


# ---- the network


def host(command: str) -> str:
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def mac(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


def plug(guest: Guest, number: int) -> None:
    """Plug in an interface, at whose other end the guest's network namespace on the host has .1 of two networks."""

    def make() -> int:
        fd, name = open_tap("tap%d")
        host(
            f"ip link set {name} up mtu 1400; sysctl -qw net.ipv6.conf.{name}.disable_ipv6=0;"
            f"ip address add 10.{number}.0.1/24 dev {name}; ip address add fd00:{number}::1/64 dev {name} nodad"
        )
        return fd

    tap = namespaces.in_netns(guest.netns, make)
    guest.machine.vm().add_device(base.Net(f"net{number}", mac(number), tap, 1400))


def interface(number: int, name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "mac": mac(number), "mtu": 1400, "addresses": [f"10.{number}.0.5/24", f"fd00:{number}::5/64"],
        "routes": [{"destination": "0.0.0.0/0", "gateway": f"10.{number}.0.1", "metric": 0, "scope": "global"},
                   {"destination": "::/0", "gateway": f"fd00:{number}::1", "metric": 1024}],
        "neighbours": [], **more,
    }  # fmt: skip


def shown(guest: Guest) -> tuple[dict[str, set[str]], dict[str, str]]:
    """Addresses by interface, and the interface of each route, as a container sees them."""
    addresses: dict[str, set[str]] = {}
    for line in guest.sh("first", "ip -o address").splitlines():
        words = line.split()
        addresses.setdefault(words[1], set()).add(words[3])
    routes = {}
    for line in guest.sh("first", "ip route; ip -6 route").splitlines():
        words = line.split()
        routes[words[0] + (":6" if ":" in line and words[0] == "default" else "")] = words[words.index("dev") + 1]
    return addresses, routes


def test_interfaces_come_change_and_go(guest: Guest) -> None:
    """The first one comes to a guest that was started without any, so it lacks the driver too."""
    thread = threading.Timer(0.5, plug, (guest, 1))
    thread.start()
    guest.call("sandbox.network", interfaces=[interface(1, "eth0")])
    thread.join()
    addresses, routes = shown(guest)
    assert addresses["eth0"] == {"10.1.0.5/24", "fd00:1::5/64"}, "and none of the kernel's own making"
    assert routes["default"] == routes["default:6"] == "eth0"
    server = namespaces.in_netns(guest.netns, lambda: socket.create_server(("", 80)))
    six = namespaces.in_netns(guest.netns, lambda: socket.create_server(("fd00:1::1", 81), family=socket.AF_INET6))
    for listener, where in ((server, "10.1.0.1 80"), (six, "fd00:1::1 81")):
        process = guest.exec("first", f"nc{where[-1]}", "sh", "-c", f"busybox nc {where}", stdin=True)
        with listener.accept()[0] as connection:
            assert connection.getpeername()[0] in ("10.1.0.5", "fd00:1::5")
            connection.sendall(b"hello\n")
            if where.endswith("80"):
                # What changes beside a connection does not touch it.
                plug(guest, 2)
                guest.call("sandbox.network", interfaces=[interface(1, "eth0"), interface(2, "eth1", routes=[])])
                connection.sendall(b"still here\n")
                assert [process.line(), process.line()] == ["hello", "still here"]
        process.wait()
        listener.close()

    guest.call("sandbox.network", interfaces=[
        interface(1, "eth1", routes=[], addresses=["10.1.0.6/24"]), interface(2, "eth0"),
    ])  # fmt: skip
    addresses, routes = shown(guest)
    assert addresses["eth1"] == {"10.1.0.6/24"} and addresses["eth0"] == {"10.2.0.5/24", "fd00:2::5/64"}
    assert routes["default"] == routes["default:6"] == "eth0"
    assert guest.sh("first", "cat /sys/class/net/eth0/address") == mac(2)
    guest.machine.vm().remove_device("net1")
    guest.call("sandbox.network", interfaces=[interface(2, "eth0")])
    assert shown(guest)[0].keys() == {"lo", "eth0"}
    guest.call("sandbox.network", interfaces=[])
    assert shown(guest)[0].keys() == {"lo"}
    with pytest.raises(UsageError, match="hardware address"):
        guest.call("sandbox.network", interfaces=[interface(9, "eth0")])


def test_names_are_looked_up_by_the_host(guest: Guest) -> None:
    (guest.root("names") / "etc/resolv.conf").write_text("nameserver 127.0.0.11\n")
    guest.run("names", *FOREVER).line()
    streams = guest.machine.calls.open("sandbox.dns", {"addresses": ["127.0.0.11"]}, ["stdin", "stdout"])
    asked: list[tuple[str, int]] = []
    thread = threading.Thread(target=_answer, args=(streams["stdin"], streams["stdout"], asked))
    thread.start()
    try:
        assert "10.9.8.7" in guest.sh("names", "busybox nslookup db 127.0.0.11")
        assert "(10.9.8.7)" in guest.sh("names", "busybox ping -c1 -w1 db; true")
        # A container may have port 53 of every address, and who asks the relay still gets there.
        guest.exec("names", "own", "sh", "-c", "exec busybox nc -ll -p 53 -e echo the container")
        assert wait_for(lambda: "the container" in guest.sh("names", "busybox nc 127.0.0.1 53 </dev/null; true"))
        assert "10.9.8.7" in guest.sh("names", "busybox nslookup db 127.0.0.11")
        query = struct.pack("!HHHHHH", 7, 256, 1, 0, 0, 0) + b"\2db\0" + struct.pack("!HH", 1, 1)
        text = "".join(f"\\{byte:03o}" for byte in struct.pack("!H", len(query)) + query)
        script = f"(printf '{text}'; sleep 3) | busybox nc 127.0.0.11 53 | busybox hexdump -v -e '1/1 \"%02x\"'"
        assert guest.sh("names", script).endswith(socket.inet_aton("10.9.8.7").hex())
        assert ("db", 0) in asked and ("db", 1) in asked
    finally:
        streams["stdin"].close()
        streams["stdout"].close()
        thread.join(30)
    assert not thread.is_alive()
    assert wait_for(lambda: "127.0.0.11" not in guest.sh("names", "busybox netstat -lnut"))
    guest.delete("names")


def _answer(into: Stream, out: Stream, asked: list[tuple[str, int]]) -> None:
    """Be the host: the name ``db`` has an address."""
    buffer = b""
    while data := out.recv():
        buffer += data
        while len(buffer) >= DNS_HEAD.size:
            length, kind, tag = DNS_HEAD.unpack_from(buffer)
            query, rest = buffer[DNS_HEAD.size : DNS_HEAD.size + length], buffer[DNS_HEAD.size + length :]
            if len(query) < length:
                break
            buffer = rest
            end = query.index(b"\0", 12) + 5
            name = query[13 : 13 + query[12]].decode()
            asked.append((name, kind))
            found = name == "db" and query[end - 4 : end - 2] == b"\0\1"
            answer = query[:2] + struct.pack("!HHHHH", 0x8180, 1, int(found), 0, 0) + query[12:end]
            if found:
                answer += struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton("10.9.8.7")
            into.send(DNS_HEAD.pack(len(answer), kind, tag) + answer)


def test_ports_of_the_guest(guest: Guest) -> None:
    guest.run("ports", *FOREVER).line()
    guest.exec("ports", "echo", "sh", "-c", "exec busybox nc -ll -p 777 -e cat")
    assert wait_for(lambda: ":777" in guest.sh("ports", "busybox netstat -lnt"))

    def connect(port: int) -> tuple[Stream, Stream]:
        streams = guest.machine.calls.open("sandbox.connect", {"port": port}, ["stdin", "stdout"])
        return streams["stdin"], streams["stdout"]

    for _ in range(3):
        into, out = connect(777)
        sender = threading.Thread(target=lambda into=into: (into.send(b"x" * 600_000), into.send_eof()))
        sender.start()
        assert read_all(out) == "x" * 600_000
        sender.join()
        into.close()
        out.close()
    with pytest.raises(AgentError, match="refused"):
        connect(778)
    guest.delete("ports")


# ---- devices and kernel modules


def test_disks_of_the_host(guest: Guest, env: Environment) -> None:
    def disk(number: int) -> base.Block:
        path = env.base / f"disk{number}"
        with open(path, "wb") as file:
            file.truncate(8 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True)
        return base.Block(f"cm-8-{number}", os.open(path, os.O_RDWR), read_only=False)

    def spec(name: str, number: int, access: str) -> dict[str, Any]:
        script = (
            "mkdir -p /tmp/m; busybox mount -t ext4 /dev/data /tmp/m && echo kept > /tmp/m/x && cat /tmp/m/x;"
            "busybox umount /tmp/m; busybox head -c 4 /dev/data | busybox wc -c; exec sleep 100000 >/dev/null 2>&1"
        )
        made = guest.spec(name, "sh", "-c", script, capabilities=PRIVILEGED)
        numbers = {"type": "b", "major": 8, "minor": number}
        made["linux"]["devices"] = [{"path": "/dev/data", **numbers, "fileMode": 0o600}]
        made["linux"]["resources"] = {
            "devices": [{"allow": False, "access": "rwm"}, {"allow": True, **numbers, "access": access}],
            "blockIO": {"throttleWriteBpsDevice": [{"major": 8, "minor": number, "rate": 1 << 20}]},
        }
        return made

    guest.machine.vm().add_device(disk(1))
    process = guest.run("disk1", spec=spec("disk1", 1, "rwm"))
    assert process.output() == "kept\n4\n", process.errors()
    assert guest.sh("disk1", "cat /sys/fs/cgroup/io.max").endswith("wbps=1048576 riops=max wiops=max")
    (counted,) = guest.call("container.stats", id="disk1")["io"]
    assert counted["wbytes"] > 0 and counted["rios"] > 0 and counted["wios"] > 0
    thread = threading.Timer(1, lambda: guest.machine.vm().add_device(disk(2)))
    thread.start()
    process = guest.run("disk2", spec=spec("disk2", 2, "r"))
    thread.join()
    assert process.output() == "4\n", "it may only be read"
    with pytest.raises(UsageError, match="8:3"):
        guest.create("disk3", spec=spec("disk3", 3, "rwm"))
    guest.delete("disk1", "disk2")
    for number in (1, 2):
        guest.machine.vm().remove_device(f"cm-8-{number}")


def test_modules_are_there_when_they_are_needed(guest: Guest) -> None:
    root = guest.root("modules")
    _install(root, "/usr/sbin/nft")
    _install(root, "/usr/sbin/xtables-nft-multi", *glob.glob("/usr/lib/x86_64-linux-gnu/xtables/*.so"))
    _install(root, "/usr/sbin/xtables-legacy-multi")
    for kind in ("nft", "legacy"):
        for name in ("iptables", "ip6tables"):
            (root / f"bin/{name}-{kind}").symlink_to(f"/usr/sbin/xtables-{kind}-multi")
    spec = guest.spec("modules", *FOREVER, capabilities=PRIVILEGED)
    spec["linux"]["resources"] = {"devices": [{"allow": True, "access": "rwm"}]}
    spec["linux"]["devices"] = [{"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200}]
    guest.run("modules", spec=spec).line()

    def sh(script: str) -> str:
        return guest.sh("modules", script, capabilities=PRIVILEGED)

    assert sh("(exec 3<>/dev/net/tun) && echo tun") == "tun"
    assert sh("mknod /dev/fuse c 10 229; (exec 3<>/dev/fuse) && echo fuse") == "fuse"
    sh("ip link add br9 type bridge && ip link add d9 type dummy && ip link add v9 type veth && ip link delete br9")
    sh("mount -t tmpfs x /tmp; cd /tmp; mkdir a b c d; mount -t overlay x -o lowerdir=a,upperdir=b,workdir=c d")
    sh("mknod /dev/loop0 b 7 0; dd if=/dev/zero of=/tmp/image bs=1M count=1 2>/dev/null; losetup /dev/loop0 /tmp/image")
    sh("/usr/sbin/nft 'add table inet t; add chain inet t c { type filter hook input priority 0 ; };"
       "add rule inet t c tcp dport 80 ct state new counter limit rate 5/second log accept;"
       "add rule inet t c reject; add table ip n; add chain ip n p { type nat hook postrouting priority 100 ; };"
       "add rule ip n p masquerade'")  # fmt: skip
    for kind in ("nft", "legacy"):
        sh(f"t=iptables-{kind}; $t -t nat -A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE &&"
           "$t -t nat -A PREROUTING -p tcp --dport 80 -m addrtype --dst-type LOCAL -j DNAT --to 10.0.0.1:80 &&"
           "$t -t nat -A OUTPUT -p tcp -d 10.8.0.0/16 -j REDIRECT --to-ports 99 &&"
           "$t -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT &&"
           "$t -A INPUT -p tcp -m multiport --dports 1,2 -m comment --comment hi -j REJECT &&"
           "$t -A INPUT -m limit --limit 5/min -j LOG && $t -t raw -A PREROUTING -s 10.7.0.0/16 -j CT --notrack &&"
           "$t -t mangle -A OUTPUT -m owner --uid-owner 5 -j MARK --set-mark 3")  # fmt: skip
        sh(f"ip6tables-{kind} -t nat -A POSTROUTING -j MASQUERADE && ip6tables-{kind} -A INPUT -j REJECT")
    guest.delete("modules")


def _install(root: Path, *paths: str) -> None:
    """Copy programs of the host, with the libraries that they need."""
    files = set(paths)
    for path in paths:
        linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
        files.update(re.findall(r"(/\S+) \(0x", linked))
    for path in sorted(files):
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


# ---- many


def test_sixty_four_containers_and_one_that_ends(env: Environment) -> None:
    with booted(env) as guest:
        free = guest.call("container.stats", id="first")["guest"]["mem_available"]

        def begin(number: int) -> str:
            return guest.run(f"c{number}", *FOREVER).line()

        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(begin, range(1, 64))) == {"ready"}
        used = free - guest.call("container.stats", id="first")["guest"]["mem_available"]
        assert used < 63 << 20, "a container takes less than a MiB of the guest"
        with pytest.raises(AgentError, match="64 containers"):
            begin(64)
        for number in range(1, 64, 2):
            guest.signal(f"c{number}", 9)
        for number in range(1, 64, 2):
            assert guest.wait(f"c{number}").signal == 9

        def name(number: int) -> str:
            return guest.sh(f"c{number}", "hostname")

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(name, range(2, 64, 2))) == [f"c{number}" for number in range(2, 64, 2)]
        begin(64)
        assert [key for key, _ in guest.ends if key[1] is None and int(key[0][1:]) % 2 == 0] == []


def test_paths_that_no_container_may_have(guest: Guest) -> None:
    for path in ("/", "/run", f"{SHARE}/../..", "/proc/1/root"):
        spec = guest.spec("paths", "true")
        spec["root"]["path"] = path
        with pytest.raises(UsageError, match="root filesystem"):
            guest.create("paths", spec=spec)

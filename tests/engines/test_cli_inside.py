"""What a container finds inside: all that options of ``run`` set up, in two containers that have many of them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engines.engines import Client, on
from tests.engines.images import BOX
from tests.engines.terminal import eventually

pytestmark = on("docker", "podman")


@dataclass
class Shared:
    """A running container, and the directory that is bound into it."""

    cli: Client
    name: str
    directory: Path

    def sh(self, script: str, *options: str) -> str:
        return self.cli.sh(self.name, script, *options)


@pytest.fixture(scope="module")
def box(cli: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    directory = tmp_path_factory.mktemp("bound")
    directory.chmod(0o777)
    (directory / "greeting").write_text("hello from the host\n")
    (directory / "single").write_text("one file\n")
    (directory / "one.env").write_text("FILED=from a file\n")
    cli.out("volume", "create", "kept")
    cli.out(
        "run", "-d", "--name", "inside", "--init",
        "--hostname", "inside.test", "--add-host", "friend.test:192.0.2.7",
        "--dns", "192.0.2.99", "--dns-search", "a.test",
        "-e", "ONE=1", "--env-file", directory / "one.env", "-w", "/var/www",
        "--user", "1000:2000", "--group-add", "3000",
        "--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE", "--security-opt", "no-new-privileges",
        "--ulimit", "nofile=123:456", "--ulimit", "core=0", "--ulimit", "nproc=8192:8192",
        "--sysctl", "net.ipv4.ip_unprivileged_port_start=90",
        "--read-only", "--tmpfs", "/scratch:size=2m,mode=1777", "--shm-size", "10m",
        "--cpus", "0.75", "--blkio-weight", "300",
        "--cpuset-cpus", "0", "--pids-limit", "40", "--memory", "300m", "--oom-score-adj", "500",
        "-v", "kept:/kept", "-v", f"{directory}:/bound", "-v", f"{directory}/single:/single:ro",
        "--label", "colour=blue",
        BOX, "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done",
    )  # fmt: skip
    yield Shared(cli, "inside", directory)
    cli.remove("inside")
    cli.out("volume", "rm", "kept")


@pytest.mark.feature("environment, working directory, host name")
def test_environment(box: Shared) -> None:
    assert box.sh('echo "$ONE,$FILED"; pwd; hostname; cat /proc/sys/kernel/hostname').splitlines() == [
        "1,from a file", "/var/www", "inside.test", "inside.test",
    ]  # fmt: skip
    assert box.cli.inspect("inside")["Config"]["Labels"]["colour"] == "blue"


@pytest.mark.feature("environment, working directory, host name")
def test_name_files(box: Shared) -> None:
    hosts = [line.split() for line in box.sh("cat /etc/hosts").splitlines()]
    assert ["192.0.2.7", "friend.test"] in hosts
    assert any("inside.test" in line for line in hosts)
    assert box.sh("cat /etc/resolv.conf").splitlines() == ["search a.test", "nameserver 192.0.2.99"]


@pytest.mark.feature("--user, --cap-drop, no-new-privileges")
def test_identity(box: Shared) -> None:
    assert box.sh("id -u; id -g; id -G").splitlines() == ["1000", "2000", "2000 3000"]
    status = dict(line.split(":", 1) for line in box.sh("cat /proc/1/status").splitlines())
    assert int(status["CapBnd"], 16) == 1 << 10
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"
    assert box.sh("id -u; grep CapBnd /proc/self/status", "--user", "0").split()[::2] == ["0", f"{1 << 10:016x}"]


@pytest.mark.feature("--ulimit")
def test_limits(box: Shared) -> None:
    limits = box.sh("cat /proc/1/limits").splitlines()
    found = {line[:26].strip(): line[26:].split()[:2] for line in limits}
    assert (found["Max open files"], found["Max core file size"]) == (["123", "456"], ["0", "0"])


@pytest.mark.feature("--sysctl")
def test_sysctl(box: Shared) -> None:
    assert box.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start") == "90"


@pytest.mark.feature("--sysctl")
def test_settings_of_the_network(cli: Client) -> None:
    """What they do, not only what is shown; and what no network namespace has is refused."""
    port = "timeout 1 nc -l -p {0} 2>&1 | grep -q denied && echo denied || echo taken"
    settings = ("net.ipv4.ip_default_ttl=33", "net.ipv4.ip_unprivileged_port_start=90")
    options = [word for setting in settings for word in ("--sysctl", setting)]
    script = "ping -c 1 127.0.0.1; cat /proc/sys/net/ipv4/ip_default_ttl"
    # Podman's containers may not ping unless they are asked to be allowed to.
    said = cli.out("run", "--rm", *options, "--cap-add", "NET_RAW", BOX, "sh", "-c", script)
    assert "ttl=33" in said and said.endswith("\n33")
    script = f"{port.format(89)}; {port.format(90)}"
    assert cli.out("run", "--rm", *options, "--user", "1000", BOX, "sh", "-c", script).split() == ["denied", "taken"]
    groups = ["--sysctl", "net.ipv4.ping_group_range=20 30"]
    assert cli.out("run", "--rm", *groups, BOX, "cat", "/proc/sys/net/ipv4/ping_group_range").split() == ["20", "30"]
    assert "rmem" in cli.fails("run", "--rm", "--sysctl", "net.ipv4.no_rmem=1", BOX, "true")


@pytest.mark.feature("--init")
def test_init(box: Shared) -> None:
    assert box.sh("cat /proc/1/comm") in ("docker-init", "podman-init", "catatonit")
    # It reaps what nobody waits for.
    box.sh("sh -c 'sleep 0.1 & exit' >/dev/null")
    eventually(lambda: box.sh("ps -o stat,comm | grep -c '^Z' || true") == "0", "the orphan is reaped")


def test_what_the_sentry_knows(box: Shared) -> None:
    """By the beginning of the engine's id, wherever the engine keeps its containers."""
    if not box.cli.ours:
        return
    id = box.cli.inspect("inside")["Id"]
    asked = ("casemate", "sentry", "ps", "--json", id[:12])
    if box.cli.runtime != "sentry":
        assert b"not behind the sentry" in box.cli.host(*asked).stderr
        return
    rows = json.loads(box.cli.host.out(*asked))
    assert rows[0]["pid"] == 1 and {row["uid"] for row in rows} == {1000}
    assert "trap 'exit 0' TERM" in rows[-1]["command"] or "sleep 1000" in rows[-1]["command"]
    said = box.cli.host("casemate", "sentry", "ps", "--root", "/nowhere", id).stderr
    assert b"no such container" in said
    assert b"no such container" in box.cli.host("casemate", "sentry", "maps", "f" * 64).stderr


@pytest.mark.feature("--read-only, --tmpfs, --shm-size")
def test_file_systems(box: Shared) -> None:
    assert "Read-only" in box.cli.fails("exec", "--user", "0", "inside", "touch", "/new")
    box.sh("touch /scratch/new")
    script = "stat -c %a /scratch; df -k /scratch /dev/shm | tail -n 2 | awk '{ print $2 }'"
    assert box.sh(script).split() == ["1777", "2048", "10240"]
    options = box.sh("grep ' /scratch ' /proc/mounts").split()
    assert options[2] == "tmpfs" and {"rw", "nosuid", "nodev"} <= set(options[3].split(","))


@pytest.mark.feature("-v of directories, files and named volumes")
def test_bound_directory(box: Shared) -> None:
    assert box.sh("cat /bound/greeting") == "hello from the host"
    box.sh("echo hello from inside >/bound/answer; mkdir /bound/deep; echo x >/bound/deep/x")
    assert (box.directory / "answer").read_text() == "hello from inside\n"
    assert (box.directory / "answer").stat().st_uid == 1000
    (box.directory / "deep" / "x").write_text("changed outside\n")
    (box.directory / "later").write_text("new\n")
    assert box.sh("cat /bound/deep/x /bound/later") == "changed outside\nnew"


@pytest.mark.feature("-v of directories, files and named volumes")
def test_bound_file(box: Shared) -> None:
    assert box.sh("cat /single; test -f /single && echo file") == "one file\nfile"
    assert "Read-only" in box.cli.fails("exec", "--user", "0", "inside", "sh", "-c", "echo x >/single")
    with open(box.directory / "single", "a") as file:
        file.write("two\n")
    assert box.sh("cat /single") == "one file\ntwo"


@pytest.mark.feature("-v of directories, files and named volumes")
def test_named_volume(box: Shared) -> None:
    # Podman gives a new volume to the container's user, Docker to whom the image says.
    box.sh("echo kept >/kept/file", "--user", box.sh("stat -c %u /kept"))
    place = Path(box.cli.out("volume", "inspect", "--format", "{{.Mountpoint}}", "kept"))
    assert (place / "file").read_text() == "kept\n"


@pytest.mark.feature("--pids-limit")
def test_task_limit(box: Shared) -> None:
    assert "can't fork" in box.cli.fails("exec", "inside", "sh", "-c", "for i in $(seq 60); do sleep 2 & done")
    # Those that it did start end by themselves; until then there may be no room for another.
    gone = "test $(ps -o args | grep -c '^[s]leep 2$') = 0"
    eventually(lambda: box.cli("exec", "inside", "sh", "-c", gone).returncode == 0, "there is room again")


@pytest.mark.feature("--cpuset-cpus")
def test_processors(box: Shared) -> None:
    assert box.sh("grep Cpus_allowed_list /proc/self/status").split() == ["Cpus_allowed_list:", "0"]


@pytest.mark.feature("--cpus")
def test_processor_time(box: Shared) -> None:
    new, old = "cpu.max", "cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us"
    assert box.sh(f"cd /sys/fs/cgroup; cat {new} 2>/dev/null || cat {old}").split() == ["75000", "100000"]


@pytest.mark.feature("--blkio-weight")
def test_weight_of_disks(box: Shared) -> None:
    """Engines leave it out, with a warning, where version 1 of control groups has a newer scheduler's file only."""
    told = box.cli.inspect("inside")["HostConfig"]["BlkioWeight"]
    assert told in (0, 300)
    if not told:
        return
    pid = box.cli.state("inside")["Pid"]
    groups = dict(line.split(":", 2)[1:] for line in box.cli.host.out("cat", f"/proc/{pid}/cgroup").splitlines())
    top = Path("/sys/fs/cgroup/blkio") if "blkio" in groups else Path("/sys/fs/cgroup")
    group = f"{top}{groups.get('blkio', groups.get(''))}"
    shown = box.cli.host.out("sh", "-c", f"cat {group}/blkio.bfq.weight {group}/io.bfq.weight 2>/dev/null || true")
    assert shown.split()[-1:] == ["300"]


@pytest.mark.feature("--memory")
def test_memory_bound(box: Shared) -> None:
    # Version 1 of control groups on a host, always version 2 in a sandbox.
    bound = box.sh("cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes")
    assert int(bound) == 300 << 20


@pytest.mark.feature("--oom-score-adj")
def test_oom_score(box: Shared) -> None:
    assert box.sh("cat /proc/1/oom_score_adj") == "500"


@pytest.mark.feature("--device")
def test_loop_device(cli: Client, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(b"first words".ljust(1 << 20, b"\0"))
    loop = subprocess.run(
        ["losetup", "--find", "--show", image], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        script = "head -c 11 /dev/disk; printf LAST | dd of=/dev/disk bs=1 seek=1048572 conv=notrunc 2>/dev/null; sync"
        assert cli.out("run", "--rm", "--device", f"{loop}:/dev/disk", BOX, "sh", "-c", script) == "first words"
        subprocess.run(["blockdev", "--flushbufs", loop], check=True)
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)
    assert image.read_bytes()[-4:] == b"LAST"


@pytest.mark.feature("--privileged")
def test_privileged(cli: Client) -> None:
    script = "mkdir /mnt; mount -t tmpfs none /mnt && echo mounted; grep -E 'CapEff|Seccomp:' /proc/self/status"
    done = cli("run", "--rm", "--privileged", BOX, "sh", "-c", script)
    if not cli.ours and b"unable to apply caps" in done.stderr:
        # Docker asks for every capability there is, and the machine itself was given fewer.
        bounds = re.search(r"CapBnd:\s*(\w+)", Path("/proc/self/status").read_text())
        assert bounds and int(bounds[1], 16) + 1 != 1 << int(bounds[1], 16).bit_length()
        return
    assert done.returncode == 0, done.stderr
    words = done.stdout.decode().split()
    assert words[0] == "mounted" and words[4] == "0"
    assert int(words[2], 16) & (1 << 21), "no CAP_SYS_ADMIN"

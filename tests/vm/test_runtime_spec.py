"""What a specification asks for is what the process finds: the same under ours as under runc.

Most tests run one script under both and compare what it says.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm import oci
from tests.vm.oci import Bundle, Failed, Runtime
from tests.vm.support import Environment

Change = Callable[[Bundle], object]


@pytest.fixture
def pair(env: Environment, tmp_path: Path) -> Iterator[tuple[Runtime, Runtime]]:
    """Ours and runc."""
    for name in ("ours", "runc"):
        (tmp_path / name).mkdir()
    with oci.runtime("casemate", env, tmp_path / "ours") as ours, oci.runtime("runc", env, tmp_path / "runc") as runc:
        yield ours, runc


Pair = tuple[Runtime, Runtime]


def run(runtime: Runtime, script: str, change: Change = lambda bundle: None) -> str:
    """What a script says in a container made for it."""
    bundle = runtime.bundle("sh", "-c", script)
    change(bundle)
    bundle.spec["linux"].setdefault("cgroupsPath", f"/{runtime.new_id()}")
    done = runtime("run", "--bundle", bundle.write(), runtime.new_id())
    assert done.returncode == 0, done
    return done.stdout.decode()


def same(pair: Pair, script: str, change: Change = lambda bundle: None) -> str:
    """Run a script under both; what both say."""
    ours, control = (run(runtime, script, change) for runtime in pair)
    assert ours == control
    return ours


def changed(*path: str, value: Any) -> Change:
    """A change of one value of the specification."""

    def change(bundle: Bundle) -> None:
        place = bundle.spec
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = value

    return change


def all_of(*changes: Change) -> Change:
    def change(bundle: Bundle) -> None:
        for one in changes:
            one(bundle)

    return change


def test_a_plain_process(pair: Pair) -> None:
    script = (
        # A kernel without /proc/kcore has no /dev/core.
        "pwd; env | sort; id; umask; hostname; ulimit -n; echo $$; ls /;"
        " ls -l /dev | awk '$NF !~ /kcore/ {print $1, $NF}';"
        " readlink /proc/self/fd/0 | grep -c pipe; cat /proc/self/oom_score_adj; cat /proc/1/comm;"
        " grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups|SigBlk)' /proc/self/status; tty; ls /proc/self/fd | wc -l"
    )
    out = same(pair, script)
    assert "casemate" in out.splitlines()  # the host name


def test_user_groups_and_umask(pair: Pair) -> None:
    user = {"uid": 1000, "gid": 1001, "additionalGids": [5, 77], "umask": 0o27}
    script = "id -u; id -g; id -G; umask; touch /tmp/f; ls -ln /tmp/f | cut -d' ' -f1-12; env | grep HOME"
    out = same(pair, script, changed("process", "user", value=user))
    assert "-rw-r-----" in out and "1001 5 77" in out and "HOME=/tmp" in out


def test_capabilities(pair: Pair) -> None:
    capabilities = {
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"], "permitted": ["CAP_CHOWN", "CAP_NET_RAW"],
        "effective": ["CAP_CHOWN"], "inheritable": ["CAP_NET_RAW"], "ambient": ["CAP_NET_RAW"],
    }  # fmt: skip
    script = "grep Cap /proc/self/status; grep Cap /proc/1/status"
    user = changed("process", "user", value={"uid": 7, "gid": 7})
    some, none = (changed("process", "capabilities", value=value) for value in (capabilities, {}))
    for change in (some, none, all_of(user, some)):
        same(pair, script, change)


def test_no_new_privileges_and_oom_score(pair: Pair) -> None:
    change = all_of(changed("process", "noNewPrivileges", value=True), changed("process", "oomScoreAdj", value=123))
    assert "123" in same(pair, "grep NoNewPrivs /proc/self/status; cat /proc/self/oom_score_adj", change)


def test_limits(pair: Pair) -> None:
    limits = [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_STACK", "soft": 1 << 20, "hard": 1 << 22}, {"type": "RLIMIT_CPU", "soft": 1000, "hard": 2000},
        {"type": "RLIMIT_FSIZE", "soft": 4096, "hard": 8192}, {"type": "RLIMIT_NPROC", "soft": 50, "hard": 60},
    ]  # fmt: skip
    script = "grep -E 'open files|core|stack|file size|cpu time|processes' /proc/self/limits"
    assert "4096" in same(pair, script, changed("process", "rlimits", value=limits))


def test_a_working_directory_that_is_not_there_is_made(pair: Pair) -> None:
    same(pair, "pwd; ls -ld . | cut -d' ' -f1", changed("process", "cwd", value="/var/new/place"))


def test_a_read_only_root(pair: Pair) -> None:
    script = "touch /x 2>&1; touch /tmp/x 2>&1; touch /dev/shm/y && echo shm; touch /data/z && echo data"

    def change(bundle: Bundle) -> None:
        (bundle.path / "data").mkdir()
        (bundle.rootfs / "data").mkdir()
        bundle.mount("/data", bundle.path / "data", "rbind")
        bundle.spec["root"]["readonly"] = True

    assert same(pair, script, change).count("Read-only file system") == 2


def test_masked_and_read_only_paths(pair: Pair) -> None:
    script = (
        "cat /proc/kcore | wc -c; ls /sys/firmware | wc -l; cat /etc/secret | wc -c; ls /var/hidden | wc -l;"
        " echo x 2>&1 >/etc/fixed; touch /var/fixed/x 2>&1; touch /var/free/x; echo done"
    )

    def change(bundle: Bundle) -> None:
        for name in ("secret", "fixed"):
            (bundle.rootfs / "etc" / name).write_text("content\n")
        for name in ("hidden", "fixed", "free"):
            (bundle.rootfs / "var" / name).mkdir()
            (bundle.rootfs / "var" / name / "f").write_text("x")
        bundle.spec["linux"]["maskedPaths"] += ["/etc/secret", "/var/hidden", "/not/there"]
        bundle.spec["linux"]["readonlyPaths"] += ["/etc/fixed", "/var/fixed", "/not/there"]

    same(pair, script, change)


def test_file_systems_of_the_containers_own(pair: Pair) -> None:
    script = (
        # What is masked depends on what the kernel has.
        "mount | awk '{print $3, $5}' | grep -vE '^/ |^/(proc|sys)/.* (tmpfs|devtmpfs|proc|sysfs)$' | sort;"
        " ls -ld /tmp /scratch | cut -c1-10; df -k /scratch | awk 'END {print $2}'; ls /dev/mqueue /dev/pts;"
        " grep -E ' /(dev|dev/shm|proc|sys|scratch) ' /proc/mounts | cut -d' ' -f2-4 |"
        " sed 's/rw,nosuid.*mode=/mode=/; s/,inode64//; s/,nr_inodes=[0-9]*//' | cut -d, -f1-5 | sort"
    )

    def change(bundle: Bundle) -> None:
        tmpfs = {"destination": "/scratch", "type": "tmpfs", "source": "tmpfs"}
        bundle.spec["mounts"].append({**tmpfs, "options": ["nosuid", "noexec", "size=1m", "mode=0711"]})

    out = same(pair, script, change)
    assert "drwx--x--x" in out and "\n1024\n" in out


def test_bind_mounts(pair: Pair) -> None:
    script = (
        "cat /data/file /etc/single; echo new >/data/new; echo x 2>&1 >/ro/x; echo y 2>&1 >/etc/ro-single;"
        " cat /data/inner/deep; ls -l /exec/prog | cut -c1-10; /exec/prog 2>&1; grep -c noexec /proc/self/mounts >&-;"
        " cat /deep/down/there/file; ls /data"
    )

    def change(bundle: Bundle) -> None:
        data = bundle.path / "data"
        (data / "inner").mkdir(parents=True)
        (data / "file").write_text("data\n")
        (bundle.path / "one").write_text("single\n")
        other = bundle.path / "other"
        other.mkdir()
        (other / "deep").write_text("nested\n")
        (other / "prog").write_text("#!/bin/sh\necho ran\n")
        (other / "prog").chmod(0o755)
        bundle.mount("/data", data, "rbind", "rw")
        bundle.mount("/data/inner", other, "rbind", "rprivate")
        bundle.mount("/etc/single", bundle.path / "one", "bind")
        bundle.mount("/etc/ro-single", bundle.path / "one", "bind", "ro")
        bundle.mount("/ro", data, "rbind", "ro", "nosuid", "nodev")
        bundle.mount("/exec", other, "bind", "noexec")
        bundle.mount("/deep/down/there", data, "rbind")

    out = same(pair, script, change)
    assert out.count("Read-only") == 2 and "nested" in out and "ermission denied" in out


def test_relative_sources_begin_at_the_bundle(pair: Pair) -> None:
    def change(bundle: Bundle) -> None:
        (bundle.path / "near").mkdir()
        (bundle.path / "near/f").write_text("near\n")
        bundle.mount("/near", "near", "rbind")

    assert same(pair, "cat /near/f", change) == "near\n"


def test_links_in_the_root_filesystem(pair: Pair) -> None:
    """Mount points behind links stay in the root filesystem, dangling or not."""

    def change(bundle: Bundle) -> None:
        (bundle.path / "d").mkdir()
        (bundle.path / "d/f").write_text("behind\n")
        os.symlink("/var", bundle.rootfs / "link")
        os.symlink("../../../../var/out", bundle.rootfs / "etc/out")
        os.symlink("/var/dangling", bundle.rootfs / "etc/dangling")
        bundle.mount("/link/in", bundle.path / "d", "rbind")
        bundle.mount("/etc/out", bundle.path / "d", "rbind")
        bundle.mount("/etc/dangling", bundle.path / "d/f", "bind")

    script = "cat /var/in/f /link/in/f /var/out/f /var/dangling"
    assert same(pair, script, change) == "behind\n" * 4


def test_what_the_container_writes_is_in_the_bundle(pair: Pair) -> None:
    script = "echo w >/var/w; chown 7:8 /var/w; chmod 640 /var/w; ln -s /x /var/l; rm /etc/group; mkfifo -m 600 /var/p"
    for runtime in pair:
        bundle = runtime.bundle("sh", "-c", script)
        for kind in ("bounding", "effective", "permitted"):
            bundle.spec["process"]["capabilities"][kind] = ["CAP_CHOWN", "CAP_FOWNER"]
        done = runtime("run", "--bundle", bundle.write(), runtime.new_id())
        assert done.returncode == 0, done
        written = (bundle.rootfs / "var/w").lstat()
        assert (written.st_uid, written.st_gid, written.st_mode & 0o777) == (7, 8, 0o640)
        assert os.readlink(bundle.rootfs / "var/l") == "/x"
        assert stat.S_ISFIFO((bundle.rootfs / "var/p").stat().st_mode)
        assert not (bundle.rootfs / "etc/group").exists()


def test_kernel_parameters(pair: Pair) -> None:
    sysctl = {"net.ipv4.ip_forward": "1", "kernel.msgmax": "9000", "net.ipv4.ip_unprivileged_port_start": "80"}
    script = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_unprivileged_port_start"
    assert same(pair, script, changed("linux", "sysctl", value=sysctl)) == "1\n9000\n80\n"


def test_devices(pair: Pair) -> None:
    devices = [
        {"path": "/dev/mine/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 5, "gid": 6},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o644},
    ]
    rules = [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"}]
    change = all_of(
        changed("linux", "devices", value=devices), changed("linux", "resources", value={"devices": rules})
    )
    script = (
        "ls -ln /dev/mine/null /dev/pipe | awk '{print $1, $3, $4, $5, $6}' | sed 's/ [A-Z][a-z][a-z]$//';"
        " head -c 4 /dev/zero | od -c; ls /dev | grep -v core"
    )
    out = same(pair, script, change)
    assert "crw------- 5 6 1, 3" in out


def test_seccomp(pair: Pair) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
            {"names": ["sync"], "action": "SCMP_ACT_KILL"},
        ],
    }  # fmt: skip
    script = "mkdir /tmp/x 2>&1; sync; echo $?; grep Seccomp: /proc/self/status"
    out = same(pair, script, changed("linux", "seccomp", value=profile))
    assert "Permission denied" in out and "Seccomp:\t2" in out


def test_a_user_namespace(pair: Pair) -> None:
    mappings = [{"containerID": 0, "hostID": 100000, "size": 65536}]

    def change(bundle: Bundle) -> None:
        linux = bundle.spec["linux"]
        linux["namespaces"].append({"type": "user"})
        linux["uidMappings"] = linux["gidMappings"] = mappings
        for top, names, files in os.walk(bundle.rootfs):
            for name in (".", *names, *files):
                os.lchown(os.path.join(top, name), 100000, 100000)
        for directory in (bundle.path, *bundle.path.parents):
            if directory != Path("/tmp"):
                directory.chmod(directory.stat().st_mode | 0o011)

    script = "id -u; cat /proc/self/uid_map; echo x >/var/x; ls -ln /var/x | awk '{print $3}'"
    assert "100000" in same(pair, script, change)


def test_domainname(ours: Runtime) -> None:
    out = run(ours, "cat /proc/sys/kernel/domainname", changed("domainname", value="example.net"))
    assert out == "example.net\n"


def test_the_network_of_a_new_namespace_is_the_loopback(pair: Pair) -> None:
    assert "127.0.0.1/8" in same(pair, "ip -o -4 addr show | awk '{print $2, $4}'; ip route")


def test_namespaces_are_the_containers_own(pair: Pair) -> None:
    script = "cat /proc/1/comm; ls /proc | grep -c '^[0-9]'; ipcs -q | tail -n +4; tail -n 1 /proc/self/cgroup"
    assert same(pair, script).splitlines()[-1] == "0::/"


def _a_socket(bundle: Bundle) -> None:
    os.mknod(bundle.path / "s", 0o140600)
    bundle.mount("/s", bundle.path / "s", "bind")


KVM = {"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}
REFUSED = [
    ("the network of the host", lambda b: b.spec["linux"]["namespaces"].remove({"type": "network"}), "--network host"),
    ("the pids of the host", lambda b: b.spec["linux"]["namespaces"].remove({"type": "pid"}), "--pid host"),
    ("a UNIX socket", _a_socket, "UNIX socket"),
    ("a device", changed("linux", "devices", value=[KVM]), "/dev/kvm"),
    ("an AppArmor profile", changed("process", "apparmorProfile", value="strict"), "AppArmor"),
    ("a newer version", changed("ociVersion", value="2.0.0"), "ociVersion"),
    ("a missing source", lambda b: b.mount("/x", "/nope/source", "bind"), "/nope/source"),
    ("a parameter of the whole kernel", changed("linux", "sysctl", value={"kernel.panic": "1"}), "kernel.panic"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "change", "word"), REFUSED, ids=[what for what, _, _ in REFUSED])
def test_what_a_virtual_machine_cannot_give_is_refused_and_leaves_nothing(
    ours: Runtime, what: str, change: Change, word: str
) -> None:
    bundle = ours.bundle()
    change(bundle)
    id = ours.new_id()
    with pytest.raises(Failed) as caught:
        ours.create(bundle, id=id)
    assert caught.value.status == 1 and word in caught.value.log
    assert "\n" not in caught.value.log
    assert ours.fails("state", id) == "container does not exist"


def test_later_mounts_of_the_host_appear_where_asked_for(ours: Runtime) -> None:
    bundle = ours.bundle()
    for name in ("follows", "stays"):
        (bundle.path / name / "sub").mkdir(parents=True)
        bundle.mount(f"/{name}", bundle.path / name, "rbind", "rslave" if name == "follows" else "rprivate")
    mounted: list[Path] = []
    try:
        for name in ("follows", "stays"):
            subprocess.run(["mount", "--bind", bundle.path / name, bundle.path / name], check=True)
            mounted.append(bundle.path / name)
            subprocess.run(["mount", "--make-shared", bundle.path / name], check=True)
        container = ours.create(bundle).start()
        for name in ("follows", "stays"):
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", bundle.path / name / "sub"], check=True)
            mounted.append(bundle.path / name / "sub")
            (bundle.path / name / "sub/later").write_text("later")
        assert container.sh("ls /follows/sub; ls /stays/sub").split() == ["later"]
        container.remove()
    finally:
        for path in reversed(mounted):
            subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[tuple[str, int, int]]:
    """A block device of 8 MiB: its path and numbers."""
    image = tmp_path / "disk"
    image.write_bytes(b"\0" * (8 << 20))
    words = ["losetup", "--find", "--show", str(image)]
    path = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    try:
        number = os.stat(path).st_rdev
        yield path, os.major(number), os.minor(number)
    finally:
        subprocess.run(["losetup", "--detach", path], check=True)


def test_a_block_device(ours: Runtime, loop: tuple[str, int, int]) -> None:
    path, major, minor = loop
    bundle = ours.bundle()
    bundle.spec["linux"]["devices"] = [{"path": "/dev/disk", "type": "b", "major": major, "minor": minor}]
    rule = {"allow": True, "type": "b", "major": major, "minor": minor, "access": "rwm"}
    bundle.spec["linux"]["resources"]["devices"].append(rule)
    container = ours.create(bundle).start()
    container.sh("test -b /dev/disk && echo to the disk | dd of=/dev/disk bs=512 conv=sync,fsync")
    assert int(container.sh("wc -c </dev/disk")) == 8 << 20
    container.remove()
    with open(path, "rb") as device:
        assert device.read(11) == b"to the disk"


def test_a_console_of_one_container_does_not_reach_anothers_files(ours: Runtime) -> None:
    """Two sandboxes are two kernels: nothing that one mounts or writes in memory is the other's."""
    first, second = (ours.create(ours.bundle()).start() for _ in range(2))
    first.sh("echo secret >/dev/shm/x")
    assert second.sh("ls /dev/shm") == ""
    assert first.sh("cat /proc/sys/kernel/random/boot_id") != second.sh("cat /proc/sys/kernel/random/boot_id")


def test_annotations_may_be_many(ours: Runtime) -> None:
    bundle = ours.bundle()
    bundle.spec["annotations"] = {f"org.example.{number}": "v" * 100 for number in range(1000)}
    container = ours.create(bundle)
    assert container.state()["annotations"] == bundle.spec["annotations"]


def test_warnings_name_what_is_left_out(ours: Runtime) -> None:
    bundle = ours.bundle("true")
    bundle.spec["process"]["apparmorProfile"] = "docker-default"
    assert ours("run", "--bundle", bundle.write(), ours.new_id()).returncode == 0
    assert re.search(r'"level": ?"warning".*docker-default', ours.log.read_text())

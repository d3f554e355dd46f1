"""What is read of the host's files: resolv.conf, mountinfo, the routing table; and the programs that are run."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.config import Config
from casemate.errors import HostError
from casemate.host import cgroups, check, commands, dns, mounts, network


def test_resolv_conf_without_what_a_sandbox_cannot_use() -> None:
    found = dns.parse(
        "# comment\n; other\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver 2001:db8::1\n"
        "nameserver 192.0.2.1\nnameserver 198.51.100.7\nnameserver x\n"
        "domain old.example\nsearch a.example b.example\noptions edns0 trust-ad\n"
    )
    assert found == dns.Dns(("192.0.2.1", "198.51.100.7"), ("a.example", "b.example"), ("edns0",))
    assert found.resolv_conf() == (
        "nameserver 192.0.2.1\nnameserver 198.51.100.7\nsearch a.example b.example\noptions edns0\n"
    )
    assert dns.Dns().resolv_conf() == ""


@given(st.text())
def test_any_resolv_conf_gives_a_bounded_one_that_reads_the_same(text: str) -> None:
    found = dns.parse(text)
    assert len(found.nameservers) <= 3 and len(found.search) <= 32 and len(found.options) <= 16
    assert dns.parse(found.resolv_conf()) == found


def test_the_first_file_with_a_usable_server_wins(tmp_path: Path) -> None:
    (tmp_path / "stub").write_text("nameserver 127.0.0.53\nsearch stub.example\n")
    (tmp_path / "real").write_text("nameserver 192.0.2.1\nsearch real.example\n")
    files = [str(tmp_path / name) for name in ("absent", "stub", "real")]
    assert dns.host_dns(files).search == ("real.example",)
    assert dns.host_dns(files[:2]) == dns.Dns(search=("stub.example",))
    assert dns.host_dns(files[:1]) == dns.Dns()


def test_layouts_of_control_groups(tmp_path: Path) -> None:
    unified = tmp_path / "v2"
    unified.mkdir()
    (unified / "cgroup.controllers").write_text("cpu memory pids\n")
    second = f"31 23 0:28 / {unified} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
    first = (
        "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:1 - cgroup cgroup rw,cpu,cpuacct\n"
        "33 31 0:30 / /sys/fs/cgroup/my\\040memory rw - cgroup cgroup rw,memory\n"
        "34 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
        "35 31 0:32 / /sys/fs/cgroup/pids ro - cgroup cgroup rw,pids\n"
        "36 31 0:30 / /elsewhere rw - cgroup cgroup rw,memory\n"
        "37 31 0:33 / /data rw - ext4 /dev/vda rw\n"
    )
    mountinfo = tmp_path / "mountinfo"

    def read(text: str) -> list[tuple[str, set[str], bool]]:
        mountinfo.write_bytes(os.fsencode(text))
        return [(str(one.mount), set(one.controllers), one.unified) for one in cgroups.hierarchies(str(mountinfo))]

    old = [("/sys/fs/cgroup/cpu,cpuacct", {"cpu", "cpuacct"}, False), ("/sys/fs/cgroup/my memory", {"memory"}, False)]
    new = [(str(unified), {"cpu", "memory", "pids"}, True)]
    assert read(second) == new
    assert read(first) == old
    assert read(second + first) == old + new
    assert read("") == []
    # Anybody who may mount by FUSE chooses such names, which are no text, and must not stop everybody's containers.
    odd = "38 31 0:34 / /home/u/\udcff\udc80\r\\134x rw - fuse.x \udcff rw,user_id=1000\n"
    assert read(odd + first + odd + second) == old + new
    here = read("31 23 0:28 / /caf\u00e9\\040\udcff rw - cgroup cgroup rw,pids\n")
    assert here == [("/caf\u00e9 \udcff", {"pids"}, False)]


@given(st.lists(st.binary(min_size=1).filter(lambda name: b"\0" not in name)))
def test_no_mount_of_anybodys_hides_control_groups(names: list[bytes]) -> None:
    group = b"32 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    lines = [group]
    for name in names:
        escaped = b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in name)
        lines = [b"38 31 0:34 / /%s rw - fuse.x %s rw\n" % (escaped, escaped), *lines]
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(lines))
        file.flush()
        found = cgroups.hierarchies(file.name)
    assert [str(one.mount) for one in found] == ["/sys/fs/cgroup/memory"]


def test_routes_that_the_network_would_hide(tmp_path: Path) -> None:
    table = tmp_path / "route"

    def overlap(*rows: tuple[str, str, int]) -> str | None:
        def text(number: int) -> str:
            return f"{int.from_bytes(number.to_bytes(4, 'big'), sys.byteorder):08X}"

        lines = ["Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT"]
        for name, address, prefix in rows:
            number = int.from_bytes(bytes(int(part) for part in address.split(".")), "big")
            mask = (0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF
            lines.append(f"{name}\t{text(number)}\t00000000\t0001\t0\t0\t0\t{text(mask)}\t0\t0\t0")
        table.write_text("\n".join(lines) + "\n")
        return network.overlapping_route(Config(), str(table))

    assert overlap() is None
    assert overlap(("eth0", "0.0.0.0", 0), ("tun0", "10.0.0.0", 8), ("eth0", "192.168.1.0", 24)) is None
    assert overlap(("*", "10.87.0.0", 16), ("cm0123456789", "10.87.3.4", 32)) is None
    assert overlap(("eth0", "10.87.0.0", 16)) == "10.87.0.0/16 dev eth0"
    assert overlap(("eth0", "0.0.0.0", 0), ("wg0", "10.87.9.0", 24)) == "10.87.9.0/24 dev wg0"
    table.write_text("")
    assert network.overlapping_route(Config(), str(table)) is None


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name))
def test_mountinfo_names(name: bytes) -> None:
    escaped = b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in name)
    assert os.fsencode(mounts.unescape(escaped)) == name


def test_a_program_that_is_run() -> None:
    result = commands.run(["sh", "-c", "cat; echo no >&2; exit 3"], package="dash", text="in\n" * 100_000)
    assert (result.status, result.output, result.errors) == (3, "in\n" * 100_000, "no\n")
    assert commands.run(["sh", "-c", "kill -9 $$"], package="dash").status == -9
    with pytest.raises(HostError, match="apt install nothing"):
        commands.run(["no-such-program"], package="nothing")
    with pytest.raises(HostError, match="did not end within 0.05 s"):
        commands.run(["sleep", "100"], package="coreutils", timeout=0.05)


def test_the_host_is_checked_and_every_complaint_says_what_to_do() -> None:
    findings = check.check(Config())
    assert {"kernel", "root", "ip", "tc", "nft", "tun", "overlay", "cgroup memory", "name servers"} <= {
        one.name for one in findings
    }
    assert all(one.detail and (one.ok or one.fix) for one in findings)


def test_mount_points_in_a_hostile_tree(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "a").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").touch()
    (root / "abs").symlink_to(outside)
    (root / "up").symlink_to("../outside")
    (root / "in").symlink_to("/a")
    (root / "dangling").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    (root / "file").touch()

    def where(path: str, *, directory: bool = True) -> str:
        fd = mounts.mount_point(root, path, directory=directory)
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    assert where("/a/b/c") == str(root / "a/b/c")
    assert where("in/d") == str(root / "a/d")
    assert where("x/y", directory=False) == str(root / "x/y") and (root / "x/y").is_file()
    assert where("/") == str(root)
    assert where("file", directory=False) == str(root / "file")
    before = len(os.listdir("/proc/self/fd"))
    for bad in ("abs/x", "up/x", "dangling", "dangling/x", "loop", "file", "file/x", "../outside", "a\0b", "x/" * 300):
        with pytest.raises(HostError):
            where(bad)
    with pytest.raises(HostError, match="not a file"):
        where("a", directory=False)
    assert [path.name for path in outside.iterdir()] == ["secret"]
    for escape in ("abs/secret", "up/secret", "/../outside/secret"):
        with pytest.raises(FileNotFoundError):
            mounts.open_in_root(root, escape)
    with pytest.raises(OSError):
        mounts.open_in_root(Path("/proc/self"), "root/etc")  # a magic link
    assert len(os.listdir("/proc/self/fd")) == before

"""From an engine's specification to the guest's."""

from __future__ import annotations

import copy
import json
import os
import stat
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings

from casemate.errors import BadBundle, CasemateError, Unsupported
from casemate.oci import bundle
from casemate.pod import devices
from casemate.pod.mounts import memory_of
from casemate.pod.plan import DiskPlan, Plan, VolumePlan, guest_process, plan, resources
from casemate.protocol import wire
from tests.unit.oci import specs

MODES = {"/sock": stat.S_IFSOCK, "/fifo": stat.S_IFIFO, "/block": stat.S_IFBLK, "/char": stat.S_IFCHR,
         "/file": stat.S_IFREG, "/etc/hosts": stat.S_IFREG}  # fmt: skip
NAMESPACES = {"/proc/self/ns/net": 1, "/proc/self/ns/pid": 2, "/proc/self/ns/ipc": 3, "/proc/self/ns/uts": 4,
              "/run/netns/host": 1, "/proc/1/ns/pid": 2, "/run/netns/box": 10, "/proc/77/ns/ipc": 30,
              "/proc/77/ns/pid": 20, "/proc/77/ns/uts": 40, "/proc/99/ns/ipc": 31}  # fmt: skip
MEMORY = {"/run/box/shm": 65536 * 1024, "/dev/shm": 1 << 30, "/run/box/other": 4096}
PEERS = {("ipc", (0, 30)): "infra", ("pid", (0, 20)): "infra", ("uts", (0, 40)): "infra"}


def look(path: str) -> os.stat_result:
    if path.startswith("/gone"):
        raise FileNotFoundError(2, "No such file or directory", path)
    mode = MODES.get(path, stat.S_IFDIR)
    return os.stat_result((mode | 0o755, NAMESPACES.get(path, 1000), 0, 1, 0, 0, 0, 0, 0, 0))


def peers(kind: str, identity: tuple[int, int]) -> str | None:
    return PEERS.get((kind, identity))


def planned(spec: dict[str, Any], **changes: Any) -> Plan:
    """The plan of a specification, with keys of ``linux`` changed; it has to be one that is read and left alone."""
    spec = {**spec, "linux": {**spec["linux"], **changes}}
    bundle.check(spec)
    before = copy.deepcopy(spec)
    made = plan(spec, "box", peers, look, MEMORY.get)
    assert spec == before
    return made


def docker(**linux: Any) -> Plan:
    return planned(specs.docker(), **linux)


def mounts(*entries: dict[str, Any]) -> Plan:
    return planned({**specs.docker(), "mounts": list(entries)})


def namespaces(**paths: str | None) -> list[dict[str, str]]:
    """All namespaces new but for those named: a path, or None for none."""
    kinds: dict[str, str | None] = {kind: "" for kind in ("pid", "network", "ipc", "uts", "mount")}
    kinds.update(paths)
    return [{"type": kind, **({"path": path} if path else {})} for kind, path in kinds.items() if path is not None]


# ---- as a whole


def test_what_docker_writes() -> None:
    made = docker()
    guest = made.spec
    assert guest["ociVersion"] == "1.0.2"
    assert guest["root"] == {"path": "/run/casemate/share/box", "readonly": False}
    assert guest["hostname"] == made.hostname == "box"
    assert "hooks" not in guest and "annotations" not in guest
    assert (made.memory, made.cpus, made.disks) == (134217728, 1.5, ())
    assert made.volumes == (
        VolumePlan("/etc/hosts", "/etc/hosts", True, False, False),
        VolumePlan("/usr", "/data", True, True, True, follows=True),
    )
    assert guest["process"]["args"] == ["sh", "-c", "true"]
    assert "apparmorProfile" not in guest["process"]
    assert guest["linux"]["maskedPaths"] == ["/proc/kcore"]
    assert guest["linux"]["seccomp"] == specs.docker()["linux"]["seccomp"]
    assert "cgroupsPath" not in guest["linux"]


def test_the_guests_part_is_kept_within_a_message() -> None:
    spec = specs.docker()
    spec["linux"]["maskedPaths"] = ["/" + "a" * 1000] * 1000
    with pytest.raises(BadBundle, match="the container's specification is too large for the guest"):
        planned(spec)
    process = {**specs.docker()["process"], "env": ["A=" + "\x01" * 1000] * 300}  # six bytes each as JSON
    with pytest.raises(BadBundle, match="the process is too large"):
        guest_process(bundle.check_process(process))


# ---- namespaces


def test_the_guest_has_namespaces_of_its_own_and_the_sandboxs_network() -> None:
    made = docker(namespaces=namespaces(network="/run/netns/box", cgroup="/proc/1/ns/cgroup"))
    assert made.spec["linux"]["namespaces"] == [
        {"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")
    ]  # fmt: skip
    with_user = docker(
        namespaces=namespaces(user=""), uidMappings=[{"containerID": 0, "hostID": 9, "size": 5}]
    )
    assert {"type": "user"} in with_user.spec["linux"]["namespaces"]
    assert with_user.spec["linux"]["uidMappings"] == [{"containerID": 0, "hostID": 9, "size": 5}]


def test_namespaces_of_the_same_sandbox_are_shared() -> None:
    made = docker(namespaces=namespaces(ipc="/proc/77/ns/ipc", pid="/proc/77/ns/pid", uts="/proc/77/ns/uts"))
    assert made.spec["linux"]["namespaces"][:3] == [
        {"type": kind, "container": "infra"} for kind in ("pid", "ipc", "uts")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"network": None}, "--network host cannot be given"),
        ({"network": "/run/netns/host"}, "--network host cannot be given"),
        ({"pid": None}, "--pid host cannot be given"),
        ({"pid": "/proc/1/ns/pid"}, "--pid host cannot be given"),
        ({"ipc": None}, "--ipc host cannot be given"),
        ({"uts": None}, "--uts host cannot be given"),
        ({"ipc": "/proc/99/ns/ipc"}, "not that of a container in the same sandbox.*--network container:NAME --ipc"),
        ({"user": "/proc/99/ns/user"}, "the user namespace .* cannot be joined"),
        ({"mount": "/proc/99/ns/mnt"}, "the mount namespace .* cannot be joined"),
        ({"time": ""}, "a time namespace cannot be given"),
    ],
)
def test_other_namespaces_are_refused(changes: dict[str, str | None], match: str) -> None:
    with pytest.raises(Unsupported, match=match):
        docker(namespaces=namespaces(**changes))


@pytest.mark.parametrize("kind", ["network", "pid", "ipc", "uts"])
def test_a_namespace_that_is_not_there_is_told(kind: str) -> None:
    with pytest.raises(BadBundle, match=f"the {kind} namespace /gone/1 cannot be used: No such file"):
        docker(namespaces=namespaces(**{kind: "/gone/1"}))


# ---- mounts


@pytest.mark.parametrize(
    ("options", "read_only", "deep"),
    [
        (["rro"], True, True), (["ro"], True, False), (["rro", "ro"], True, False), (["rro", "rw"], False, False),
        ([], False, False),
    ],
)
def test_read_only_may_be_meant_for_all_mounts_below(options: list[str], read_only: bool, deep: bool) -> None:
    made = mounts({"destination": "/a", "type": "bind", "source": "/dir", "options": ["rbind", *options]})
    assert (made.volumes[0].read_only, made.volumes[0].deep) == (read_only, deep)


def test_bind_mounts_are_numbered_in_their_order() -> None:
    made = mounts(
        {"destination": "/t", "type": "tmpfs", "options": ["size=1m", "tmpcopyup", "mode=1777"]},
        {"destination": "/a", "type": "bind", "source": "/file", "options": ["bind", "ro", "nosuid", "Z"]},
        {"destination": "/b", "type": "none", "source": "/dir", "options": ["rbind", "ro", "rw"]},
        {"destination": "/c", "type": "bind", "source": "/dir"},
    )
    assert made.volumes == (
        VolumePlan("/file", "/a", False, True, False),
        VolumePlan("/dir", "/b", True, False, True),
        VolumePlan("/dir", "/c", True, False, True),
    )
    assert made.spec["mounts"] == [
        {"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "tmpcopyup", "mode=1777"]},
        {"destination": "/a", "type": "bind", "source": "/run/casemate/volumes/box/0",
         "options": ["rbind", "ro", "nosuid", "rprivate"]},
        {"destination": "/b", "type": "bind", "source": "/run/casemate/volumes/box/1",
         "options": ["rbind", "ro", "rw", "rprivate"]},
        {"destination": "/c", "type": "bind", "source": "/run/casemate/volumes/box/2",
         "options": ["rbind", "rprivate"]},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "given", "follows"),
    [
        ("private", "private", False), ("rprivate", "rprivate", False), ("slave", "slave", True),
        ("rslave", "rslave", True), ("shared", "slave", True), ("rshared", "rslave", True),
        ("runbindable", "runbindable", False),
    ],
)  # fmt: skip
def test_propagation_goes_one_way(asked: str, given: str, follows: bool) -> None:
    made = mounts({"destination": "/a", "type": "bind", "source": "/dir", "options": ["rbind", asked]})
    assert made.spec["mounts"][0]["options"] == ["rbind", given]
    assert made.volumes[0].follows is follows
    assert any("not shared" in line for line in made.warnings) is ("shared" in asked)


def test_propagation_of_the_root() -> None:
    assert "rootfsPropagation" not in docker().spec["linux"]
    assert docker(rootfsPropagation="rshared").spec["linux"]["rootfsPropagation"] == "rslave"
    assert docker(rootfsPropagation="private").spec["linux"]["rootfsPropagation"] == "private"


def test_kernel_file_systems_are_the_guests() -> None:
    made = docker()
    by_target = {mount["destination"]: mount for mount in made.spec["mounts"]}
    assert by_target["/proc"]["type"] == "proc"
    assert by_target["/dev/shm"]["options"] == [*specs.STRICT, "size=67108864"]
    assert by_target["/dev/mqueue"]["type"] == "mqueue"
    assert by_target["/sys/fs/cgroup"] == {
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", *specs.STRICT]
    }  # fmt: skip


def test_control_groups_of_the_host_are_the_guests() -> None:
    made = mounts(
        {"destination": "/sys/fs/cgroup", "type": "bind", "source": "/sys/fs/cgroup", "options": ["rbind", "ro"]},
        {"destination": "/sys/fs/cgroup/systemd", "type": "bind", "source": "/sys/fs/cgroup/systemd/x"},
        {"destination": "/host/cgroup", "type": "bind", "source": "/sys/fs/cgroup"},
    )
    assert made.spec["mounts"] == [
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
        {"destination": "/host/cgroup", "type": "bind", "source": "/run/casemate/volumes/box/2",
         "options": ["rbind", "rprivate"]},
    ]  # fmt: skip
    assert len(made.volumes) == 3, "one for each bind mount, whether the guest has a use for it or not"
    assert any("/sys/fs/cgroup/systemd is left out" in line for line in made.warnings)


def test_the_shared_memory_that_an_engine_has_made_is_the_guests() -> None:
    options = ["rbind", "rw", "nodev", "rshared"]
    shm = {"destination": "/dev/shm", "type": "bind", "source": "/run/box/shm", "options": options}
    made = mounts(shm)
    assert made.spec["mounts"] == [
        {"destination": "/dev/shm", "type": "shared-memory", "source": "shm-0-3e8",
         "options": ["rw", "nodev", "rslave", "size=67108864"]},
    ]  # fmt: skip
    assert len(made.volumes) == 1
    for other in ({"source": "/dev/shm"}, {"source": "/run/box/other"}, {"source": "/usr/shm"}, {"destination": "/x"}):
        assert mounts({**shm, **other}).spec["mounts"][0]["type"] == "bind", other


def test_memory_file_systems_are_told_from_others() -> None:
    assert memory_of("/") is None
    assert memory_of("/proc") is None
    assert memory_of("/no/such") is None


def test_options_that_only_the_host_has_are_left_out() -> None:
    options = ["rw", 'context="system_u:object_r:container_file_t:s0"', "noswap", "mpol=bind:0", "size=1m"]
    made = mounts({"destination": "/t", "type": "tmpfs", "source": "x", "options": options})
    assert made.spec["mounts"][0]["options"] == ["rw", "size=1m"]


@pytest.mark.parametrize(
    ("mount", "match"),
    [
        ({"type": "bind", "source": "/sock"}, "the UNIX socket /sock cannot be mounted on /x: .* another kernel"),
        ({"type": "bind", "source": "/fifo"}, "the named pipe /fifo"),
        ({"type": "bind", "source": "/block"}, "the device /block .*--device"),
        ({"type": "bind", "source": "/char"}, "the device /char"),
        ({"type": "ext4", "source": "/dev/sda1"}, "the type 'ext4' cannot be mounted on /x: mount it on the host"),
        ({"type": "nfs", "source": "a:/b"}, "'nfs'"),
        ({"type": "overlay", "source": "overlay", "options": ["lowerdir=/etc"]}, "'overlay'"),
        ({"type": "devtmpfs"}, "'devtmpfs'"),
        ({"source": "/dir"}, "'none'"),
        ({"type": "bind", "source": "/dir", "options": ["idmap=uids=0-1-10"]}, "id mappings"),
        ({"type": "bind", "source": "/dir", "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}, "id map"),
    ],
)
def test_mounts_that_cannot_be_had(mount: dict[str, Any], match: str) -> None:
    with pytest.raises(Unsupported, match=match):
        mounts({"destination": "/x", **mount})


def test_a_source_that_is_not_there_is_told() -> None:
    with pytest.raises(BadBundle, match="the source /gone/a of the mount on /x cannot be used: No such file"):
        mounts({"destination": "/x", "type": "bind", "source": "/gone/a"})


def test_there_is_an_end_to_volumes() -> None:
    entries = [{"destination": f"/v{number}", "type": "bind", "source": "/dir"} for number in range(257)]
    assert len(mounts(*entries[:256]).volumes) == 256
    with pytest.raises(Unsupported, match="more than 256 bind mounts"):
        mounts(*entries)


# ---- the process


@pytest.mark.parametrize(
    "profile",
    ["docker-default", "containers-default-0.49.1", "cri-containerd.apparmor.d", "crio-default", "crio-default-1.32.0"],
)
def test_apparmor_profiles_of_engines_are_ignored_with_a_warning(profile: str) -> None:
    spec = specs.docker()
    spec["process"]["apparmorProfile"] = profile
    made = planned(spec)
    assert "apparmorProfile" not in made.spec["process"]
    assert [line for line in made.warnings if "AppArmor" in line] == [
        f"the AppArmor profile {profile} is ignored: the container has a kernel of its own"
    ]  # fmt: skip


def test_apparmor_profiles_of_people_are_refused() -> None:
    spec = specs.docker()
    for quiet in ("", "unconfined"):
        spec["process"]["apparmorProfile"] = quiet
        assert not any("AppArmor" in line for line in planned(spec).warnings)
    for loud in ("mine", "docker-default2", "unconfined\n", "docker-default//child"):
        spec["process"]["apparmorProfile"] = loud
        with pytest.raises(Unsupported, match="the AppArmor profile .* cannot be applied"):
            planned(spec)
        with pytest.raises(Unsupported, match="AppArmor"):
            guest_process(spec["process"])


def test_selinux_labels() -> None:
    spec = specs.docker()
    spec["process"]["selinuxLabel"] = "system_u:system_r:container_t:s0:c12,c400"
    made = planned(spec, mountLabel="system_u:object_r:container_file_t:s0:c12,c400")
    assert sum("SELinux" in line for line in made.warnings) == 2
    assert "selinuxLabel" not in made.spec["process"] and "mountLabel" not in made.spec["linux"]
    with pytest.raises(Unsupported, match=r"SELinux label .*linux\.mountLabel"):
        docker(mountLabel="system_u:object_r:shadow_t:s0")
    spec["process"]["selinuxLabel"] = "system_u:system_r:my_t:s0"
    with pytest.raises(Unsupported, match=r"SELinux label .*process\.selinuxLabel"):
        planned(spec)


def test_unknown_capabilities_are_left_out_with_a_warning() -> None:
    spec = specs.docker()
    spec["process"]["capabilities"] = {"bounding": ["CAP_CHOWN", "CAP_FLY"], "ambient": []}
    made = planned(spec)
    assert made.spec["process"]["capabilities"] == {"bounding": ["CAP_CHOWN"], "ambient": []}
    assert "unknown capabilities are ignored: CAP_FLY" in made.warnings


def test_what_a_process_keeps() -> None:
    process = {
        "terminal": True, "consoleSize": {"height": 1, "width": 2}, "args": ["a"], "env": ["A=b"], "cwd": "/x",
        "user": {"uid": 1, "gid": 2, "umask": 3, "additionalGids": [4], "username": "x"}, "noNewPrivileges": True,
        "ioPriority": {"class": "IOPRIO_CLASS_IDLE"}, "scheduler": {"policy": "SCHED_BATCH"},
        "oomScoreAdj": -5, "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 1}], "vendor": 1,
    }  # fmt: skip
    made = guest_process(bundle.check_process(process))
    expected = {key: value for key, value in process.items() if key != "vendor"}
    assert made == {**expected, "user": {"uid": 1, "gid": 2, "umask": 3, "additionalGids": [4]}}
    assert guest_process({"args": ["a"], "cwd": "/"})["user"] == {"uid": 0, "gid": 0}


def test_more_open_files_than_the_guest_has_are_cut() -> None:
    spec = specs.docker()
    spec["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 1 << 30, "hard": 1 << 30}]
    made = planned(spec)
    assert made.spec["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 1 << 20, "hard": 1 << 20}]
    assert any("RLIMIT_NOFILE is 1048576" in line for line in made.warnings)


# ---- hooks, annotations, system parameters, seccomp


def test_only_start_container_hooks_go_along() -> None:
    hook = {"path": "/bin/x", "args": ["x"], "timeout": 5}
    spec = specs.docker()
    spec["hooks"] = {kind: [hook] for kind in ("prestart", "createRuntime", "createContainer", "startContainer",
                                               "poststart", "poststop")}  # fmt: skip
    spec["annotations"] = {"a": "b", "run.oci.handler": "krun"}
    made = planned(spec)
    assert made.spec["hooks"] == {"startContainer": [hook]}
    assert made.spec["annotations"] == {"a": "b"}
    spec["annotations"] = {"a": "b" * 65_536}
    made = planned(spec)
    assert made.spec["annotations"] == {}
    assert any("no annotations" in line for line in made.warnings)


def test_system_parameters_of_a_container_of_its_own() -> None:
    for name in (
        "net.ipv4.ip_forward", "net/ipv4/conf/eth0.1/forwarding", "kernel.msgmax", "fs.mqueue.msg_max", "kernel/sem",
        "kernel.shm_rmid_forced", "kernel.domainname",
    ):  # fmt: skip
        made = docker(sysctl={name: "1"})
        assert made.spec["linux"]["sysctl"] == {name: "1"}
        # With a network namespace the agent would take settings of the network for the container's own.
        assert not any(entry["type"] == "network" for entry in made.spec["linux"]["namespaces"])


@pytest.mark.parametrize("name", ["kernel.panic", "vm.swappiness", "kernel.hostname", "netx.a", "fs.file-max"])
def test_system_parameters_of_the_whole_kernel_are_refused(name: str) -> None:
    with pytest.raises(Unsupported, match="sysctl"):
        docker(sysctl={name: "1"})


@pytest.mark.parametrize("name", ["net", "net..a", "net.", ".net.a", "net.../kernel.panic", "net.a\n", "/net/a"])
def test_names_that_are_no_parameters_are_refused(name: str) -> None:
    with pytest.raises(BadBundle, match="sysctl"):
        docker(sysctl={name: "1"})


def test_system_calls_cannot_be_reported_to_the_host() -> None:
    profile = specs.docker()["linux"]["seccomp"]
    for bad in (
        {**profile, "listenerPath": "/run/x"},
        {**profile, "defaultAction": "SCMP_ACT_NOTIFY"},
        {**profile, "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}]},
    ):
        with pytest.raises(Unsupported, match="listenerPath"):
            docker(seccomp=bad)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"intelRdt": {"closID": "x"}}, "intelRdt"),
        ({"timeOffsets": {"monotonic": {"secs": 1}}}, "timeOffsets"),
        ({"personality": {"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]}}, "personality"),
        ({"resources": {"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}}, r"huge pages \(2MB\)"),
        ({"resources": {"rdma": {"mlx5_1": {"hcaHandles": 1}}}}, "rdma"),
    ],
)
def test_what_the_guest_cannot_do(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(Unsupported, match=match):
        docker(**changes)


def test_a_personality_goes_along() -> None:
    assert docker(personality={"domain": "LINUX32"}).spec["linux"]["personality"] == {"domain": "LINUX32"}


# ---- resources


def test_what_the_guests_kernel_divides() -> None:
    made = docker(
        resources={
            "memory": {"limit": 1 << 28, "reservation": 1 << 27, "swap": 1 << 29, "kernel": 5, "swappiness": 10,
                       "disableOOMKiller": True},
            "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0,2-3", "mems": "0",
                    "realtimeRuntime": 5},
            "pids": {"limit": 64}, "blockIO": {"weight": 500, "leafWeight": 5}, "network": {"classID": 5},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "unified": {"memory.high": "1000000", "memory.max": "max", "cgroup.freeze": "1"},
        }
    )  # fmt: skip
    given = made.spec["linux"]["resources"]
    assert given.pop("devices")[0] == {"allow": False, "access": "rwm"}
    assert given == {
        "memory": {"limit": 1 << 28, "reservation": 1 << 27},
        "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0,2-3"},
        "blockIO": {"weight": 500},
        "pids": {"limit": 64},
        "unified": {"memory.high": "1000000"},
    }
    assert made.cpus == 0.5
    words = ("disableOOMKiller", "realtimeRuntime", "network", "cgroup.freeze, memory.max are ignored")
    assert all(any(word in line for line in made.warnings) for word in words)


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ({}, None), ({"quota": -1}, None), ({"quota": 0, "period": 0}, None), ({"quota": 250_000}, 2.5),
        ({"quota": 5_000, "period": 10_000}, 0.5), ({"cpus": "0-3"}, 4.0), ({"cpus": " 1, 1,2 "}, 2.0),
        ({"cpus": "0-1", "quota": 400_000}, 2.0), ({"cpus": "0-1", "quota": 150_000}, 1.5), ({"cpus": ""}, None),
    ],
)  # fmt: skip
def test_processors(cpu: dict[str, Any], expected: float | None) -> None:
    assert docker(resources={"cpu": cpu}).cpus == expected


@pytest.mark.parametrize("text", ["1-", "-1", "1-2-3", "999999", "0-999999", "--"])
def test_lists_of_processors_that_are_none(text: str) -> None:
    with pytest.raises(BadBundle, match="not a list of processors"):
        docker(resources={"cpu": {"cpus": text}})


def test_no_limit_is_none_at_first_and_a_number_later() -> None:
    asked = {"memory": {"limit": -1, "swap": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1, "shares": 0}}
    made = docker(resources=asked)
    assert made.memory is None
    assert {key: value for key, value in made.spec["linux"]["resources"].items() if key != "devices"} == {
        "cpu": {"quota": -1}
    }  # fmt: skip
    assert resources(bundle.check_resources(asked)) == {
        "memory": {"limit": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1}
    }  # fmt: skip
    assert resources({}) == {}


# ---- devices


def device(kind: str, path: str, major: int, minor: int) -> dict[str, Any]:
    return {"type": kind, "path": path, "major": major, "minor": minor, "fileMode": 0o660, "uid": 0, "gid": 6}


DENY = {"allow": False, "access": "rwm"}


def rule(kind: str, major: int, minor: int, access: str = "rwm") -> dict[str, Any]:
    return {"allow": True, "type": kind, "major": major, "minor": minor, "access": access}


def test_devices_that_every_kernel_has() -> None:
    tun = device("c", "/dev/net/tun", 10, 200)
    made = docker(devices=[tun, {"type": "p", "path": "/dev/pipe"}], resources={"devices": [DENY, rule("c", 10, 200)]})
    assert made.spec["linux"]["devices"] == [tun, {"type": "p", "path": "/dev/pipe"}]
    assert made.spec["linux"]["resources"]["devices"] == [DENY, rule("c", 10, 200)]


def test_block_devices_become_disks() -> None:
    disk, other = device("b", "/dev/xvdc", 7, 0), device("b", "/dev/ro", 7, 1)
    made = docker(
        devices=[disk, other, disk],
        resources={"devices": [DENY, rule("b", 7, 0), rule("b", 7, 1, "r"), rule("b", 254, 0), rule("b", 8, -1)]},
    )
    assert made.disks == (DiskPlan("/dev/xvdc", 7, 0, False), DiskPlan("/dev/ro", 7, 1, True))
    assert made.spec["linux"]["devices"] == [disk, other, disk]
    assert made.spec["linux"]["resources"]["devices"] == [DENY, rule("b", 7, 0), rule("b", 7, 1, "r")]
    assert any("2 device rules are left out" in line for line in made.warnings)
    assert devices.serial(259, 1048575) == "cm-259-1048575"


def test_other_character_devices_are_refused() -> None:
    with pytest.raises(Unsupported, match=r"the device /dev/kvm \(character device 10:232\) cannot be given"):
        docker(devices=[device("c", "/dev/kvm", 10, 232)])


def test_a_privileged_container_gets_what_the_guest_has() -> None:
    every = {"allow": True, "access": "rwm"}
    hosts = [device("b", "/dev/vda", 254, 0), device("c", "/dev/kvm", 10, 232), device("c", "/dev/null", 1, 3)]
    made = docker(devices=hosts, resources={"devices": [every]})
    assert made.disks == ()
    assert made.spec["linux"]["devices"] == [hosts[2]]
    assert made.spec["linux"]["resources"]["devices"] == [every]
    assert any("2 devices of the host are left out" in line and "/dev/vda" in line for line in made.warnings)


def test_rules_begin_with_nothing_allowed() -> None:
    assert docker(resources={}).spec["linux"]["resources"]["devices"] == [DENY]
    assert docker(resources={"devices": [rule("c", 1, 3)]}).spec["linux"]["resources"]["devices"] == [
        DENY, rule("c", 1, 3)
    ]  # fmt: skip
    wild = {"allow": True, "type": "c", "access": "m"}
    made = docker(resources={"devices": [DENY, {**wild, "major": -1}, rule("c", 136, 5), rule("c", 245, 0)]})
    assert made.spec["linux"]["resources"]["devices"] == [DENY, wild, rule("c", 136, 5)]


def test_there_is_an_end_to_disks() -> None:
    disks = [device("b", f"/dev/d{number}", 7, number) for number in range(17)]
    assert len(docker(devices=disks[:16]).disks) == 16
    with pytest.raises(Unsupported, match="17 block devices are too many"):
        docker(devices=disks)


# ---- anything


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield key
            yield from strings(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from strings(entry)


@settings(max_examples=500)
@given(specs.spoilt())
def test_any_bundle_is_planned_or_gives_one_error(spec: dict[str, Any]) -> None:
    try:
        bundle.check(spec)
        made = plan(spec, "box", peers, look, MEMORY.get)
    except CasemateError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
        return
    guest = made.spec
    wire.pack(wire.REQUEST, guest)
    json.dumps(guest).encode()
    assert guest["root"]["path"] == "/run/casemate/share/box"
    for mount in guest["mounts"]:  # no path of the host, and nothing that reaches beyond the guest's own
        if mount["type"] == "bind":
            assert mount["source"].startswith("/run/casemate/volumes/box/")
        else:
            assert mount["type"] in ("proc", "sysfs", "devpts", "mqueue", "tmpfs", "ramfs", "cgroup", "binfmt_misc",
                                     "bpf", "debugfs", "tracefs", "securityfs")  # fmt: skip
    assert {entry["type"] for entry in guest["linux"]["namespaces"]} >= {"pid", "ipc", "uts", "mount", "cgroup"}
    assert not any("\0" in text for text in strings(guest))
    assert set(guest.get("hooks", {})) <= {"startContainer"}

"""The runtime specification made of an image's configuration and a person's wishes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import UsageError
from casemate.oci import spec
from casemate.oci.imageconfig import ImageConfig
from casemate.oci.spec import Tmpfs, Ulimit, Volume, Wishes

PLAIN = ImageConfig(cmd=("sh",))


def build(image: ImageConfig = PLAIN, **wishes: Any) -> dict[str, Any]:
    return spec.build(image, Wishes(**wishes))


def mount(built: dict[str, Any], target: str) -> dict[str, Any]:
    (found,) = [each for each in built["mounts"] if each["destination"] == target]
    return dict(found)


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "wished_entrypoint", "command", "expected"),
    [
        ((), ("sh",), None, (), ["sh"]),
        ((), ("sh",), None, ("ls", "-l"), ["ls", "-l"]),
        (("e", "1"), ("c",), None, (), ["e", "1", "c"]),
        (("e", "1"), ("c",), None, ("x",), ["e", "1", "x"]),
        (("e",), ("c",), "n", (), ["n"]),  # a named entrypoint drops the image's command
        (("e",), ("c",), "n", ("x",), ["n", "x"]),
        (("e",), ("c",), "", ("x",), ["x"]),
        (("e",), (), None, (), ["e"]),
    ],
)
def test_arguments_follow_docker(
    entrypoint: tuple[str, ...], cmd: tuple[str, ...], wished_entrypoint: str | None, command: tuple[str, ...],
    expected: list[str],
) -> None:  # fmt: skip
    image = ImageConfig(entrypoint=entrypoint, cmd=cmd)
    assert spec.arguments(image, command, wished_entrypoint) == expected


@pytest.mark.parametrize("image", [ImageConfig(), ImageConfig(entrypoint=("e",), cmd=("c",)), ImageConfig(cmd=("",))])
def test_no_command_is_told(image: ImageConfig) -> None:
    with pytest.raises(UsageError, match="no default command"):
        spec.arguments(image, (), "" if image.entrypoint else None)


def test_a_zero_byte_in_the_command_is_refused() -> None:
    with pytest.raises(UsageError, match="zero byte"):
        build(command=("a\0b",))


def test_default_capabilities_are_the_fields_fourteen() -> None:
    names = spec.capabilities((), ())
    # The mask that a default container shows in /proc/self/status everywhere: 0x00000000a80425fb.
    assert sum(1 << spec.CAPABILITIES.index(name) for name in names) == 0xA80425FB
    process = build()["process"]
    assert process["capabilities"] == {kind: names for kind in ("bounding", "effective", "permitted")}
    assert process["noNewPrivileges"] is False


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        (("ALL",), (), set(spec.CAPABILITIES)),
        ((), ("all",), set()),
        (("net_admin",), ("ALL",), {"CAP_NET_ADMIN"}),
        (("ALL",), ("CAP_MKNOD",), set(spec.CAPABILITIES) - {"CAP_MKNOD"}),
        ((), ("MKNOD", "NET_RAW"), set(spec.DEFAULT_CAPABILITIES) - {"CAP_MKNOD", "CAP_NET_RAW"}),
        (("SYS_TIME",), (), set(spec.DEFAULT_CAPABILITIES) | {"CAP_SYS_TIME"}),
    ],
)
def test_capabilities(add: tuple[str, ...], drop: tuple[str, ...], expected: set[str]) -> None:
    assert set(spec.capabilities(add, drop)) == expected


@pytest.mark.parametrize("name", ["", "CAP_", "NET_ADMINS", "CAP_ALL", "cap-net"])
def test_unknown_capabilities_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="unknown capability"):
        spec.capabilities((name,), ())
    with pytest.raises(UsageError, match="unknown capability"):
        spec.capabilities((), (name,))


def test_namespaces_leave_the_network_to_the_guest() -> None:
    kinds = {each["type"] for each in build()["linux"]["namespaces"]}
    assert kinds == {"pid", "ipc", "uts", "mount", "cgroup"}


def test_default_mounts() -> None:
    built = build()
    assert {each["destination"] for each in built["mounts"]} == {
        "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup",
    }  # fmt: skip
    assert "ro" in mount(built, "/sys")["options"]
    assert "ro" in mount(built, "/sys/fs/cgroup")["options"]
    assert "size=67108864" in mount(built, "/dev/shm")["options"]
    assert "size=1048576" in mount(build(shm_size=1 << 20), "/dev/shm")["options"]


def test_masked_and_read_only_paths_hide_what_tells_of_the_machine() -> None:
    linux = build()["linux"]
    assert {"/proc/kcore", "/proc/keys", "/sys/firmware"} <= set(linux["maskedPaths"])
    assert {"/proc/sys", "/proc/sysrq-trigger"} <= set(linux["readonlyPaths"])


def test_devices_are_denied_but_for_harmless_ones() -> None:
    rules = build()["linux"]["resources"]["devices"]
    assert rules[0] == {"allow": False, "access": "rwm"}
    opened = [rule for rule in rules[1:] if rule["access"] != "m"]
    assert all(rule["type"] == "c" for rule in opened), "no disk may be opened"
    assert {rule["major"] for rule in opened} == {1, 5, 136}
    assert (1, 1) not in {(rule["major"], rule.get("minor")) for rule in opened}, "/dev/mem"


def test_volumes_and_tmpfs_come_after_their_parents_and_replace_defaults() -> None:
    built = build(
        volumes=(
            Volume("/h/deep", "/data/a/b"), Volume("/h/data", "/data", read_only=True), Volume("/h/shm", "/dev/shm"),
        ),
        tmpfs=(Tmpfs("/data/a", ("size=1m", "exec")),),
    )  # fmt: skip
    order = [each["destination"] for each in built["mounts"]]
    assert order.index("/data") < order.index("/data/a") < order.index("/data/a/b")
    assert order.index("/dev") < order.index("/dev/shm")
    assert mount(built, "/data") == {
        "destination": "/data", "type": "bind", "source": "/h/data", "options": ["rbind", "ro", "rprivate"],
    }  # fmt: skip
    assert mount(built, "/dev/shm")["source"] == "/h/shm"
    assert mount(built, "/data/a")["options"] == ["nosuid", "nodev", "noexec", "size=1m", "exec"]


def test_two_mounts_on_one_target_are_refused() -> None:
    with pytest.raises(UsageError, match="two mounts on /x"):
        build(volumes=(Volume("/a", "/x"),), tmpfs=(Tmpfs("/x"),))


@pytest.mark.parametrize("path", ["x", "", "/", "//", "/./", "/a/../b", "/..", "/a\0"])
def test_bad_mount_targets(path: str) -> None:
    with pytest.raises(UsageError):
        spec.mount_target(path)


def test_mount_targets_are_made_clean() -> None:
    assert spec.mount_target("//a/./b/") == "/a/b"


def test_environment_has_defaults_the_image_overrides_and_the_person_wins() -> None:
    image = ImageConfig(cmd=("sh",), env=("PATH=/image", "A=1", "B=2", "C=3"))
    env = build(image, env=("B=two", "C", "D=x=y"), hostname="h")["process"]["env"]
    assert env == ["PATH=/image", "HOSTNAME=h", "A=1", "B=two", "D=x=y"]
    assert f"PATH={spec.DEFAULT_PATH}" in build()["process"]["env"]


def test_terminals_get_a_type_unless_the_image_has_one() -> None:
    assert "TERM=xterm" in build(tty=True)["process"]["env"]
    assert not any(entry.startswith("TERM=") for entry in build()["process"]["env"])
    image = ImageConfig(cmd=("sh",), env=("TERM=vt100",))
    assert [e for e in build(image, tty=True)["process"]["env"] if e.startswith("TERM=")] == ["TERM=vt100"]


@pytest.mark.parametrize(
    ("wished", "image", "expected"),
    [("", "", "/"), ("", "/srv/", "/srv"), ("/a/../b", "/srv", "/b"), ("/../..", "", "/"), ("", "rel", "/rel")],
)
def test_working_directory(wished: str, image: str, expected: str) -> None:
    assert build(ImageConfig(cmd=("sh",), working_dir=image), workdir=wished)["process"]["cwd"] == expected


def test_limits() -> None:
    built = build(cpus=1.5, pids=7, ulimits=(Ulimit("nofile", 10, spec.RLIM_INFINITY),), sysctls=(("kernel.sem", "1"),))
    resources = built["linux"]["resources"]
    assert resources["cpu"] == {"quota": 150_000, "period": 100_000}
    assert resources["pids"] == {"limit": 7}
    assert "memory" not in resources, "the guest has that much and no more"
    assert built["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": (1 << 64) - 1}]
    assert built["linux"]["sysctl"] == {"kernel.sem": "1"}
    assert set(build()["linux"]["resources"]) == {"devices"}


def test_seccomp_is_ours_theirs_or_none() -> None:
    assert build()["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    theirs = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": [], "syscalls": []}
    assert build(seccomp=theirs)["linux"]["seccomp"] == theirs
    assert "seccomp" not in build(unconfined=True)["linux"]


def test_read_only_root_and_privileges() -> None:
    built = build(read_only=True, no_new_privileges=True)
    assert built["root"]["readonly"] is True
    assert built["process"]["noNewPrivileges"] is True


def test_exec_takes_over_the_containers_limits() -> None:
    container = build(env=("A=1",), workdir="/w", cap_drop=("ALL",), ulimits=(Ulimit("core", 0, 0),))
    process = spec.exec_process(container, ["ls"], env=["B=2", "A"], workdir="", tty=True)
    assert process["args"] == ["ls"]
    assert process["cwd"] == "/w"
    assert "B=2" in process["env"] and "TERM=xterm" in process["env"] and "A=1" not in process["env"]
    assert process["capabilities"] == {"bounding": [], "effective": [], "permitted": []}
    assert process["rlimits"] == container["process"]["rlimits"]
    assert process["terminal"] is True and container["process"]["terminal"] is False
    assert spec.exec_process(container, ["ls"], env=[], workdir="/x/", tty=False)["cwd"] == "/x"


@pytest.mark.parametrize("command", [[], [""]])
def test_exec_needs_a_command(command: list[str]) -> None:
    with pytest.raises(UsageError, match="no command"):
        spec.exec_process(build(), command, env=[], workdir="", tty=False)


@given(st.text(max_size=60))
def test_a_working_directory_is_always_absolute_and_clean(path: str) -> None:
    clean = spec.working_directory(path)
    assert clean.startswith("/")
    assert not {"..", "."} & set(clean.split("/"))
    assert clean == "/" or not clean.endswith("/")


@given(st.lists(st.text(max_size=20)), st.lists(st.text(max_size=20)))
def test_an_environment_never_names_a_variable_twice(base: list[str], changes: list[str]) -> None:
    env = spec.merged_environment(base, [entry for entry in changes if not entry.startswith("=")])
    names = [entry.partition("=")[0] for entry in env]
    assert len(names) == len(set(names))
    assert all("=" in entry for entry in env)

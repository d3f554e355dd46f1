"""Bundles are judged before anything is done with them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from casemate.errors import BadBundle
from casemate.oci import bundle
from tests.unit.oci import specs


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A bundle that is as it should be."""
    (tmp_path / "rootfs").mkdir()
    write(tmp_path, {**specs.docker(), "root": {"path": "rootfs"}})
    return tmp_path


def write(home: Path, spec: Any) -> None:
    (home / "config.json").write_text(json.dumps(spec))


def refused(spec: dict[str, Any], match: str) -> None:
    with pytest.raises(BadBundle, match=match) as caught:
        bundle.check(spec)
    assert "\n" not in caught.value.message


# ---- reading


def test_a_bundle_is_read(home: Path) -> None:
    spec = bundle.load(home)
    assert spec["root"]["path"] == f"{home}/rootfs"
    assert spec["process"]["args"] == ["sh", "-c", "true"]


def test_paths_are_relative_to_the_bundle(home: Path) -> None:
    spec = specs.docker()
    spec["root"]["path"] = "./rootfs/."
    spec["mounts"] = [{"destination": "/a", "source": "data", "options": ["bind"]},
                      {"destination": "/b", "type": "tmpfs", "source": "data"}]  # fmt: skip
    write(home, spec)
    loaded = bundle.load(home)
    assert loaded["root"]["path"] == f"{home}/rootfs"
    assert [mount["source"] for mount in loaded["mounts"]] == [f"{home}/data", "data"]


def test_a_bundle_may_be_named_by_a_link(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("links") / "bundle"
    link.symlink_to(home)
    assert bundle.load(link)["root"]["path"] == f"{home}/rootfs"


def test_nulls_are_as_if_they_were_not_there(home: Path) -> None:
    write(home, {**specs.docker(), "root": {"path": "rootfs", "readonly": None}, "hooks": None})
    spec = bundle.load(home)
    assert "hooks" not in spec and spec["root"] == {"path": f"{home}/rootfs"}


def test_unknown_keys_are_left_alone(home: Path) -> None:
    write(home, {**specs.docker(), "root": {"path": "rootfs"}, "vendor": {"deep": [1]}})
    assert bundle.load(home)["vendor"] == {"deep": [1]}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "not an object"),
        (b"null", "not an object"),
        (b'{"a": NaN}', "NaN is not"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a": "\\u0000"}', "zero byte"),
        (b'{"a": "\\ud800"}', "half a character"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "deep in each other"),
        (b"[" * 200_000, "deep in each other"),
        (b'{"a":' * 200_000, "deep in each other"),
        (b'{"a": [' + b"1," * 300_000 + b"1]}", "more than 250000 values"),
        (b"{}", "ociVersion is missing"),
    ],
)
def test_what_is_no_specification_is_told(home: Path, content: bytes, match: str) -> None:
    (home / "config.json").write_bytes(content)
    with pytest.raises(BadBundle, match=match):
        bundle.load(home)


def test_the_depth_that_is_allowed(home: Path) -> None:
    deep: Any = 1
    for _ in range(bundle.MAX_DEPTH - 1):
        deep = {"a": deep}
    write(home, {**specs.docker(), "root": {"path": "rootfs"}, "x": deep})
    assert bundle.load(home)["x"] == deep
    write(home, {**specs.docker(), "root": {"path": "rootfs"}, "x": [deep]})
    with pytest.raises(BadBundle, match="deep"):
        bundle.load(home)


def test_ten_megabytes_of_annotations_are_refused_at_once(home: Path) -> None:
    spec = {**specs.docker(), "root": {"path": "rootfs"}}
    spec["annotations"] = {f"a{number}": "x" * 10_000 for number in range(1000)}
    write(home, spec)
    began = time.monotonic()
    with pytest.raises(BadBundle, match="annotations must have at most 1048576 characters"):
        bundle.load(home)
    assert time.monotonic() - began < 5


def test_a_config_beyond_its_bound_is_not_read_whole(home: Path) -> None:
    with open(home / "config.json", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadBundle, match="larger than 16 MiB"):
        bundle.load(home)


def test_a_config_that_is_no_file_does_not_make_us_wait(home: Path) -> None:
    path = home / "config.json"
    path.unlink()
    with pytest.raises(BadBundle, match="JSON specification file config.json not found"):
        bundle.load(home)
    os.mkfifo(path)
    with pytest.raises(BadBundle, match="not an ordinary file"):
        bundle.load(home)
    path.unlink()
    path.mkdir()
    with pytest.raises(BadBundle, match="cannot be read|not an ordinary file"):
        bundle.load(home)
    path.rmdir()
    path.symlink_to("config.json")
    with pytest.raises(BadBundle, match="cannot be read"):
        bundle.load(home)


def test_a_missing_bundle_is_told(tmp_path: Path) -> None:
    for place in (tmp_path / "none", "a\0b", ""):
        with pytest.raises(BadBundle):
            bundle.load(place)


# ---- the root filesystem


def test_a_root_filesystem_behind_a_link_is_refused(home: Path) -> None:
    (home / "link").symlink_to("rootfs")
    (home / "rootfs" / "inner").mkdir()
    for path in ("link", "link/inner", f"{home}/link", "./link/."):
        write(home, {**specs.docker(), "root": {"path": path}})
        with pytest.raises(BadBundle, match="symbolic link"):
            bundle.load(home)


def test_a_root_filesystem_that_links_to_the_host_is_refused(home: Path) -> None:
    (home / "rootfs").rmdir()
    (home / "rootfs").symlink_to("/")
    with pytest.raises(BadBundle, match="symbolic link"):
        bundle.load(home)


def test_a_link_in_a_circle_is_refused(home: Path) -> None:
    (home / "rootfs").rmdir()
    (home / "rootfs").symlink_to("rootfs")
    with pytest.raises(BadBundle, match="cannot be used"):
        bundle.load(home)


@pytest.mark.parametrize("path", ["none", "config.json", "/", "//", "../" * 40])
def test_a_root_filesystem_has_to_be_a_directory_of_its_own(home: Path, path: str) -> None:
    write(home, {**specs.docker(), "root": {"path": path}})
    with pytest.raises(BadBundle, match="root filesystem"):
        bundle.load(home)


# ---- rules


@pytest.mark.parametrize("version", ["1.0.0", "1.0.2-dev", "1.1.0", "1.2.0-rc.1+build.5", "1.0.0+x"])
def test_versions_that_are_taken(version: str) -> None:
    bundle.check({**specs.docker(), "ociVersion": version})


@pytest.mark.parametrize("version", ["", "1", "1.0", "0.9.9", "2.0.0", "1.0.0 ", "v1.0.0", "1.0\n", "1.00.0", "١.0.0"])
def test_other_versions_are_refused(version: str) -> None:
    refused({**specs.docker(), "ociVersion": version}, "ociVersion")


@pytest.mark.parametrize(
    "place",
    [
        ("ociVersion",), ("process",), ("process", "args"), ("process", "cwd"), ("root",), ("root", "path"), ("linux",),
        ("mounts", 0, "destination"), ("hooks", "prestart", 0, "path"), ("linux", "namespaces", 0, "type"),
        ("process", "rlimits", 0, "hard"), ("linux", "seccomp", "defaultAction"), ("linux", "devices", 0, "path"),
        ("linux", "resources", "devices", 0, "allow"), ("linux", "resources", "pids", "limit"),
    ],
    ids=lambda place: ".".join(map(str, place)),
)  # fmt: skip
def test_required_fields(place: tuple[Any, ...]) -> None:
    refused(specs.without(specs.docker(), place), f"{place[-1]} is missing")


@pytest.mark.parametrize("place", list(specs.places(specs.docker())), ids=lambda place: ".".join(map(str, place)))
def test_the_type_of_every_field_is_checked(place: tuple[Any, ...]) -> None:
    refused(specs.replaced(specs.docker(), place, 1.5), "must be|is not")


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        (("process", "args"), [], "process.args must not be empty"),
        (("process", "args"), ["a"] * 65_537, "at most 65536 entries"),
        (("process", "args"), ["a" * 131_073], r"process.args\[0\] must be at most 131072 bytes"),
        (("process", "args"), ["é" * 70_000], r"process.args\[0\] must be at most 131072 bytes"),
        (("process", "env"), ["A=" + "b" * 100_000] * 6, "arguments and environment have"),
        (("process", "cwd"), "here", "process.cwd must be an absolute path"),
        (("process", "cwd"), "", "process.cwd must not be empty"),
        (("process", "user", "uid"), -1, "process.user.uid must be from 0"),
        (("process", "user", "uid"), (1 << 32) - 1, "process.user.uid must be from 0 to 4294967294"),
        (("process", "user", "uid"), True, "process.user.uid must be a whole number"),
        (("process", "user", "umask"), 0o10000, "process.user.umask must be from"),
        (("process", "oomScoreAdj"), 1001, "process.oomScoreAdj must be from -1000 to 1000"),
        (("process", "rlimits", 0, "type"), "RLIMIT_FOO", "'RLIMIT_FOO' is not known"),
        (("process", "rlimits"), [{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2, "two entries of the type"),
        (("process", "consoleSize"), {"height": 1}, "width is missing"),
        (("mounts", 0, "destination"), "proc", "destination must be an absolute path"),
        (("mounts", 0, "destination"), "/a/../../etc", "without '..'"),
        (("mounts", 7, "source"), "", "the bind mount on /data has no source"),
        (("mounts",), [{"destination": "/a"}] * 961, "mounts must have at most 960"),
        (("hooks", "prestart", 0, "path"), "x", "hooks.prestart.* absolute path"),
        (("hooks", "prestart", 0, "timeout"), 0, "timeout must be from 1"),
        (("hostname",), "a" * 65, "hostname must be at most 64"),
        (("annotations",), {"": "x"}, "entry without a name"),
        (("annotations",), {f"a{number}": "" for number in range(4097)}, "at most 4096 entries"),
        (("linux", "namespaces", 0, "type"), "net", "'net' is not known"),
        (("linux", "namespaces", 0, "path"), "proc", "absolute path"),
        (("linux", "namespaces", 0, "type"), "ipc", "two entries of the type 'ipc'"),
        (("linux", "uidMappings"), [{"containerID": 0, "hostID": 0, "size": 1}], "no user namespace"),
        (("linux", "devices", 0, "type"), "x", "'x' is not known"),
        (("linux", "devices", 0, "path"), "/dev/../etc/passwd", "without '..'"),
        (("linux", "maskedPaths", 0), "proc", "absolute path"),
        (("linux", "rootfsPropagation"), "maybe", "'maybe' is not known"),
        (("linux", "seccomp", "defaultAction"), "SCMP_ACT_HUG", "'SCMP_ACT_HUG' is not known"),
        (("linux", "seccomp", "flags"), ["SECCOMP_FILTER_FLAG_NEW_LISTENER"], "is not known"),
        (("linux", "seccomp", "syscalls", 0, "names"), [], "names must not be empty"),
        (("linux", "resources", "devices", 0, "access"), "rx", "made of r, w and m"),
        (("linux", "resources", "memory", "limit"), 1 << 63, "memory.limit must be from"),
        (("linux", "resources", "cpu", "cpus"), "0-1; rm", "a list of processors"),
        (("linux", "resources", "unified"), {"../memory.max": "1"}, "the name of a control group's file"),
        (("linux", "resources", "unified"), {"memory.max/x": "1"}, "the name of a control group's file"),
        (("linux", "personality"), {"domain": "PLAN9"}, "'PLAN9' is not known"),
    ],
)  # fmt: skip
def test_bounds_and_forms(place: tuple[Any, ...], value: Any, match: str) -> None:
    refused(specs.replaced(specs.docker(), place, value), match)


@pytest.mark.parametrize("mapping", [(0, 0, 0), (0, 1, (1 << 32) - 1), ((1 << 32) - 1, 0, 1)])
def test_mappings_have_an_end(mapping: tuple[int, int, int]) -> None:
    spec = specs.docker()
    spec["linux"]["namespaces"].append({"type": "user"})
    ranges = [dict(zip(("containerID", "hostID", "size"), mapping, strict=True))]
    refused({**spec, "linux": {**spec["linux"], "gidMappings": ranges}}, "linux.gidMappings has a range")


def test_further_processes_are_judged_alike() -> None:
    process = specs.docker()["process"]
    assert bundle.check_process(process) == process
    spoilt: tuple[Any, ...] = (
        None, [], {}, {**process, "cwd": "x"}, {**process, "args": ["a\0"]}, {**process, "env": ["\ud800"]},
    )  # fmt: skip
    for bad in spoilt:
        with pytest.raises(BadBundle, match="^process"):
            bundle.check_process(bad)


def test_updates_are_judged_alike() -> None:
    resources = specs.docker()["linux"]["resources"]
    assert bundle.check_resources(resources) == resources
    spoilt: tuple[Any, ...] = (None, [], {"memory": 1}, {"pids": {}}, {"cpu": {"quota": "x"}})
    for bad in spoilt:
        with pytest.raises(BadBundle, match="^resources"):
            bundle.check_resources(bad)


def test_an_object_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "process.json"
    path.write_text('{"args": ["a"], "x": null}')
    assert bundle.read_json(str(path), "process") == {"args": ["a"]}
    path.write_text("[]")
    with pytest.raises(BadBundle, match="process is not an object"):
        bundle.read_json(str(path), "process")
    with pytest.raises(BadBundle, match="No such file"):
        bundle.read_json(str(tmp_path / "none"), "process")


# ---- anything


@given(st.binary(max_size=200) | specs.JSON.map(lambda value: json.dumps(value).encode()))
@example(b'{"a":"\\ud834\\udd1e"}')
def test_any_bytes_give_an_object_or_one_error(data: bytes) -> None:
    try:
        value = bundle.parse(data, "it")
    except BadBundle as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(value, dict)
        json.dumps(value).encode()


@settings(max_examples=400)
@given(specs.spoilt())
def test_any_specification_is_taken_or_gives_one_error(spec: dict[str, Any]) -> None:
    try:
        bundle.check(spec)
    except BadBundle as error:
        assert len(error.message) < 1000 and "\n" not in error.message
    else:
        assert spec["root"]["path"] and spec["process"]["args"]

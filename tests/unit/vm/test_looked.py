"""What a guest is told of a container's files, so that it need not look for itself: nothing but what it would find."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from casemate.protocol import wire
from casemate.vm import looked
from casemate.vm.machine import Machine
from casemate.vm.template import store

PATH = "/usr/local/bin:/usr/bin:/bin"
PASSWD, GROUP = "root:x:0:0::/root:/bin/sh\n", "root:x:0:\n"


def oci(*words: str, path: str = PATH, mounts: tuple[str, ...] = ("/proc", "/etc/hosts")) -> dict[str, Any]:
    return {
        "process": {"args": list(words), "env": ["A=b", f"PATH={path}"], "cwd": "/"},
        "mounts": [{"destination": place} for place in mounts],
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    own = Path(sys.executable).resolve().read_bytes()[:4096]
    program = b"\x7fELF" + own[4:16] + own[16:20] + bytes(60)  # one without an interpreter
    root = tmp_path / "root"
    for name in ("bin/true", "usr/bin/true", "usr/bin/other"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(program)
        (root / name).chmod(0o755)
    (root / "usr/bin/true").unlink()
    (root / "usr/bin/true").mkdir()  # comes first, and is none
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    return root


def test_users_and_the_command(root: Path) -> None:
    assert looked.look(root, oci("true")) == {"passwd": PASSWD, "group": GROUP, "place": "/bin/true"}
    assert looked.look(root, oci("other"))["place"] == "/usr/bin/other"


@pytest.mark.parametrize(
    "spec",
    [
        oci("none"),
        oci("/bin/true"),  # there is nothing to look for
        oci("bin/true"),
        oci("true", path="bin"),  # of a directory that is only known when it runs
        oci("true", mounts=("/usr/local",)),  # what is mounted there may have one
        oci("true", mounts=("/bin/true",)),
        oci("true", mounts=("/",)),
        oci(""),
        oci("text"),
        oci("plain"),
    ],
)
def test_a_command_that_is_not_sure(root: Path, spec: dict[str, Any]) -> None:
    (root / "bin/text").write_text("neither a program nor a script")
    (root / "bin/text").chmod(0o755)
    (root / "bin/plain").write_bytes((root / "bin/true").read_bytes())
    assert "place" not in looked.look(root, spec)


def test_files_that_are_not_there_are_empty(root: Path) -> None:
    (root / "etc/group").unlink()
    found = looked.look(root, oci("true"))
    assert found["passwd"] == PASSWD and found["group"] == ""


@pytest.mark.parametrize("what", ["long", "binary", "zero", "pipe", "directory", "loop"])
def test_files_that_the_guest_reads_itself(root: Path, what: str) -> None:
    path = root / "etc/passwd"
    if what in ("pipe", "directory", "loop"):
        path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    elif what == "loop":
        path.symlink_to("passwd")
    else:
        path.write_bytes({"long": b"a" * (looked.MAX_TEXT + 1), "binary": b"\xff\n", "zero": b"a\0b"}[what])
    assert looked.look(root, oci("true")).keys() == {"place"}


def test_no_link_leads_out(root: Path) -> None:
    secret = root.parent / "secret"
    secret.write_text("secret")
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to("../../secret")
    (root / "secret").write_text("inside")
    assert looked.look(root, oci("true"))["passwd"] == "inside"
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to("/proc/self/environ")
    assert looked.look(root, oci("true"))["passwd"] == "", "there is no /proc in it"


def test_no_root(tmp_path: Path) -> None:
    assert looked.look(tmp_path / "none", oci("true")) == {}


def test_a_specification_is_shortened_for_a_guest_that_has_the_rest() -> None:
    def told(spec: dict[str, Any], late: dict[str, Any] | None, hello: dict[str, Any]) -> dict[str, Any]:
        one = Machine.__new__(Machine)
        one.late, one.hello = late, hello
        return one.shortened(spec)

    spec = store.blank_spec()
    before = copy.deepcopy(spec)
    short = told(spec, {"tags": []}, {"prepared": True})
    assert short["linux"]["seccomp"] == wire.SAME_PROFILE
    assert {**short, "linux": {**short["linux"], "seccomp": spec["linux"]["seccomp"]}} == spec, "and nothing else"
    assert spec == before, "the whole one is left as it is"
    assert told(spec, None, {"prepared": True}) is spec, "it has booted"
    assert told(spec, {"tags": []}, {}) is spec, "an agent that does not know of it"
    other = {**spec, "linux": {**spec["linux"], "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}}
    assert told(other, {"tags": []}, {"prepared": True}) is other
    none = {**spec, "linux": {key: value for key, value in spec["linux"].items() if key != "seccomp"}}
    assert told(none, {"tags": []}, {"prepared": True}) is none

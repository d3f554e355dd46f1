"""Images from pull to a running container: what the layers say is what the container sees."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from casemate.oci import busybox
from tests.unit.oci.builders import ZSTD, Layout, directory, hardlink, member, symlink, tar
from tests.vm.support import Casemate, detached


def capability(name: str) -> tuple[tarfile.TarInfo, bytes]:
    """A file with cap_net_raw=ep (capability.h: revision 2, effective, bit 13)."""
    info = member(name, b"x", mode=0o755)
    value = bytes.fromhex("0100000200200000000000000000000000000000")
    info[0].pax_headers = {"SCHILY.xattr.security.capability": value.decode("utf-8", "surrogateescape")}
    return info


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of four layers: busybox, files, changes to them, and more changes, compressed with zstd."""
    program = busybox.find()
    made = Layout(tmp_path_factory.mktemp("images") / "layers")
    made.add(
        made.manifest(
            busybox.make_layer(program.read_bytes(), busybox.applets(program)),
            tar(
                directory("d"), member("d/low", b"low"), directory("e"), member("e/low", b"low"), member("gone", b"x"),
                member("changed", b"old"), directory("wiped"), member("wiped/low"), symlink("link", "/etc/passwd"),
                member("owned", b"x", uid=1234, gid=4321, mode=0o640), member("suid", b"x", mode=0o4755),
                member("first", b"same"), hardlink("second", "first"), member("/".join(["n" * 100] * 4), b"long"),
                member("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
                member("pipe", kind=tarfile.FIFOTYPE), capability("capable"),
            ),
            tar(
                member("d/.wh..wh..opq"), member("d/new", b"new"), member("e/new", b"new"), member(".wh.gone"),
                member("changed", b"new"), member(".wh.wiped"),
            ),
            tar(directory("wiped"), member("wiped/again", b"again")),
            media_type=ZSTD, WorkingDir="/e", Env=["PATH=/bin:/usr/bin:/sbin", "FROM=image"], User="1234:4321",
            Entrypoint=["/bin/sh", "-c"], Cmd=["echo $FROM $PWD $(id -u):$(id -g)"],
        ),
        "v1",
    )  # fmt: skip
    return made.path


@pytest.fixture(scope="module")
def image(cm: Casemate, layout: Path) -> str:
    return cm.out("pull", "-q", f"oci:{layout}:v1").splitlines()[-1]


def test_the_image_s_configuration_is_what_runs(cm: Casemate, image: str) -> None:
    assert cm.out("run", "--rm", image) == "image /e 1234:4321"


def test_the_container_sees_what_the_layers_mean_and_what_it_writes_is_its_own(cm: Casemate, image: str) -> None:
    look = """
        cd /; for d in d e wiped; do echo $d: $(ls $d); done; ls gone 2>/dev/null; cat changed; echo
        stat -c '%a %u %g %F' owned suid null pipe; stat -c %h first; cat second; echo; readlink link
        cat n*/n*/n*/n*; echo; echo x > null && echo written
    """
    wanted = [
        "d: new", "e: low new", "wiped: again", "new", "640 1234 4321 regular file", "4755 0 0 regular file",
        "666 0 0 character special file", "644 0 0 fifo", "2", "same", "/etc/passwd", "long", "written",
    ]  # fmt: skip
    with detached(cm, "images-layers", "-u", "0", image=image, command=("sleep 86400",)) as container:
        assert container.sh(look).splitlines() == wanted
        container.sh("cd /; rm changed suid; echo mine > second; chown 5 owned; rm -r wiped; mkdir d/sub")
    assert cm.out("run", "--rm", "-u", "0", image, look).splitlines() == wanted


def test_an_image_in_use_is_kept_and_then_goes(cm: Casemate, tmp_path: Path) -> None:
    program = busybox.find()
    made = Layout(tmp_path / "used")
    made.add(
        made.manifest(busybox.make_layer(program.read_bytes(), ["bin/sh", "bin/sleep", "bin/cat"]), Label="x"), "v1"
    )
    image = cm.out("pull", "-q", f"oci:{made.path}:v1").splitlines()[-1]
    with detached(cm, "uses-image", image="localhost/used:v1") as container:
        refused = cm("rmi", "localhost/used:v1")
        assert (
            refused.returncode == 1 and b"is used by container" in refused.stderr and refused.stderr.count(b"\n") == 1
        )
        assert b"Kept" in cm("rmi", "-f", "localhost/used:v1", check=True).stdout
        assert container.sh("cat /etc/group | head -n 1 2>/dev/null || cat /etc/group").startswith("root")
        assert image[:12].encode() not in cm("images", check=True).stdout
    assert cm("run", "--rm", "--pull", "never", "localhost/used:v1").returncode == 125


def test_a_hostile_image_does_not_run_and_leaves_nothing(cm: Casemate, tmp_path: Path) -> None:
    made = Layout(tmp_path / "hostile")
    made.add(made.manifest(tar(symlink("s", "/"), member("s/../../../escape", b"x"))), "v1")
    refused = cm("run", "--rm", f"oci:{made.path}:v1", "true")
    assert refused.returncode == 125 and b"'..'" in refused.stderr and refused.stderr.count(b"\n") == 1
    assert os.listdir(cm.env.root / "images/tmp") == []

"""The guest bundle itself: made twice from the same packages, and started on a bare QEMU without a keeper."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

import casemate
from casemate.protocol.link import Link
from casemate.vm import guest
from casemate.vm.guest import GuestBundle, build
from casemate.vm.guest.packages import Apt
from tests.vm.support import CACHE

QEMU = "qemu-system-x86_64"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> GuestBundle:
    """A bundle of Debian's kernel and this checkout's agent, in a root of its own."""
    return build(tmp_path_factory.mktemp("root"), CACHE, print, kernel="debian")


def start(bundle: GuestBundle, *devices: str, fds: Sequence[int] = ()) -> subprocess.Popen[str]:
    """A machine whose console is standard output."""
    command = [
        QEMU, "-machine", "q35,accel=tcg", "-cpu", "max,-erms", "-m", "256", "-bios", "qboot.rom",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
        "-kernel", str(bundle.kernel), "-initrd", str(bundle.initrd), "-append", " ".join(bundle.cmdline("tcg")),
        *devices,
    ]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, pass_fds=fds
    )


def disk(bundle: GuestBundle, serial: str) -> tuple[str, ...]:
    """The root image as a block device."""
    return (
        "-blockdev", f"driver=file,filename={bundle.root},node-name=root,read-only=on,locking=off",
        "-device", f"virtio-blk-pci,drive=root,serial={serial}",
    )


def output(machine: subprocess.Popen[str]) -> str:
    """All that a machine writes until it ends."""
    try:
        return machine.communicate(timeout=120)[0]
    except subprocess.TimeoutExpired:
        machine.kill()
        pytest.fail("the machine did not end; it wrote:\n" + machine.communicate()[0])


def test_the_agent_answers_and_powers_off_when_the_host_is_gone(bundle: GuestBundle) -> None:
    ours, theirs = socket.socketpair()
    machine = start(
        bundle,
        *disk(bundle, "casemate-root"),
        "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=agent,fd={theirs.fileno()}",
        "-device", "virtserialport,chardev=agent,name=casemate.agent.0",
        fds=(theirs.fileno(),),
    )
    theirs.close()
    try:
        descriptor = ours.detach()  # the link closes it
        link = Link(descriptor, descriptor, role="host", version=casemate.__version__)
        hello = link.start(120.0)
        assert hello["role"] == "agent"
        info = link.call("sandbox.info", {}, 60.0)
        assert info["kernel"] == bundle.kernel_release
        assert info["agent_version"] == casemate.__version__
        link.close("end of test")
        output(machine)
        assert machine.returncode == 0
    finally:
        machine.kill()
        machine.wait()


def test_no_root_image_is_one_clear_line_and_an_end(bundle: GuestBundle) -> None:
    machine = start(bundle, *disk(bundle, "another"))
    text = output(machine)
    lines = [line for line in text.splitlines() if line.strip()]
    assert lines[0] == "casemate guest: no block device has the serial number casemate-root; powering off"
    assert len(lines) == 2 and lines[1].endswith("reboot: Power down")
    assert machine.returncode == 0


def test_a_damaged_root_image_is_one_clear_line_and_an_end(bundle: GuestBundle, tmp_path: Path) -> None:
    image = tmp_path / "root"
    image.write_bytes(bytes(1 << 20))
    machine = start(
        bundle,
        "-blockdev", f"driver=file,filename={image},node-name=root,read-only=on",
        "-device", "virtio-blk-pci,drive=root,serial=casemate-root",
    )
    text = output(machine)
    assert "casemate guest: cannot mount the root image on /dev/vda; powering off" in text
    assert "panic" not in text


def test_same_packages_make_the_same_bytes(bundle: GuestBundle, tmp_path: Path) -> None:
    """From another cache, staged anew, under another umask, into another root."""
    cache = tmp_path / "cache"
    (cache / "guest" / "packages").mkdir(parents=True)
    shutil.copyfile(CACHE / "guest" / "packages.json", cache / "guest" / "packages.json")
    for package in (CACHE / "guest" / "packages").glob("*.deb"):
        shutil.copyfile(package, cache / "guest" / "packages" / package.name)
    before = os.umask(0o077)
    try:
        other = build(tmp_path / "root", cache, print, kernel="debian")
    finally:
        os.umask(before)
    assert other.digest == bundle.digest
    for name in sorted(path.name for path in bundle.path.iterdir()):
        assert (other.path / name).read_bytes() == (bundle.path / name).read_bytes(), name
        assert (other.path / name).stat().st_mode & 0o444 == 0o444, name


def test_nothing_changed_means_nothing_done_and_no_network(
    bundle: GuestBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("apt was asked")

    monkeypatch.setattr(Apt, "__init__", refuse)
    lines: list[str] = []
    again = build(bundle.path.parent.parent, CACHE, lines.append, kernel="debian")
    assert again == bundle
    assert lines == []


def test_a_truncated_package_is_fetched_again(bundle: GuestBundle, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "guest" / "packages").mkdir(parents=True)
    shutil.copyfile(CACHE / "guest" / "packages.json", cache / "guest" / "packages.json")
    for package in (CACHE / "guest" / "packages").glob("*.deb"):
        shutil.copyfile(package, cache / "guest" / "packages" / package.name)
    victim = next((cache / "guest" / "packages").glob("crun_*.deb"))
    os.truncate(victim, 1000)
    lines: list[str] = []
    other = build(tmp_path / "root", cache, lines.append, kernel="debian")
    assert any("downloading 1 Debian package" in line for line in lines)
    assert guest.find(tmp_path / "root").digest == other.digest
    assert other.manifest["files"]["initrd"] == bundle.manifest["files"]["initrd"]

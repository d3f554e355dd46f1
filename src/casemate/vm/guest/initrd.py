"""The initial root: a static busybox, the modules that are needed to reach the root image, and a script.

Under an emulating accelerator each program that is started costs ten milliseconds and more, so the script uses the
shell's own commands where it can and loads only what the machine has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from casemate.vm.guest.cpio import Archive
from casemate.vm.guest.modules import ModuleTree
from casemate.vm.guest.recipe import AGENT_HOME, BASE_MODULES, DEVICE_MODULES, ROOT_SERIAL

_COMMANDS = ("insmod", "mount", "poweroff", "switch_root")

_SCRIPT = """#!/bin/busybox sh
fail() {{ echo "casemate guest: $*; powering off" >/dev/console; exec poweroff -f; }}
load() {{ for m; do insmod /mod/$m.ko || fail "cannot load kernel module $m"; done; }}
mount -t sysfs -o nosuid,noexec,nodev sysfs /sys || fail "cannot mount /sys"
mount -t devtmpfs -o nosuid,noexec dev /dev || fail "cannot mount /dev"
load {base}
for f in /sys/bus/virtio/devices/virtio*/device; do
read -r d <$f
case $d in
{cases}esac
done
root=
for f in /sys/block/vd*/serial; do
s=
read -r s <$f
case $s in {serial}) root=${{f%/serial}} root=/dev/${{root##*/}};; esac
done
[ -n "$root" ] || fail "no block device has the serial number {serial}"
mount -t erofs -o ro,nodev $root /newroot || fail "cannot mount the root image on $root"
mount -t proc -o nosuid,noexec,nodev proc /newroot/proc || fail "cannot mount /proc"
mount --move /sys /newroot/sys || fail "cannot move /sys"
mount --move /dev /newroot/dev || fail "cannot move /dev"
[ -x /newroot/usr/bin/python3 ] || fail "the root image has no python3"
exec switch_root /newroot /usr/bin/python3 -I -S -u {home}/agent-init
fail "cannot start the agent"
"""


def load_plan(tree: ModuleTree) -> tuple[list[str], dict[int, list[str]]]:
    """What to load always, and what to load beside it for each number of a virtio device."""
    base = tree.order(BASE_MODULES)
    per_device: dict[int, list[str]] = {}
    for number, module in DEVICE_MODULES.items():
        if tree.has(module):
            per_device[number] = [name for name in tree.order((module,)) if name not in base]
    return base, per_device


def script(base: Sequence[str], per_device: Mapping[int, Sequence[str]]) -> str:
    """The text of ``/init``."""
    cases = "".join(
        f"0x{number:04x}) load {' '.join(names)};;\n" for number, names in sorted(per_device.items()) if names
    )
    return _SCRIPT.format(base=" ".join(base), cases=cases, serial=ROOT_SERIAL, home=AGENT_HOME)


def build(busybox: bytes, tree: ModuleTree) -> bytes:
    """The archive.

    Arguments:
        busybox: the static program.
        tree: the kernel's modules.
    """
    base, per_device = load_plan(tree)
    archive = Archive()
    for directory in ("bin", "dev", "mod", "newroot", "proc", "sys"):
        archive.directory(directory)
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)
    archive.file("init", script(base, per_device).encode(), 0o755)
    archive.file("bin/busybox", busybox, 0o755)
    # Debian's shell runs no command of busybox by itself: each needs its name in the PATH.
    for name in _COMMANDS:
        archive.symlink(f"bin/{name}", "busybox")
    for name in sorted({*base, *(name for names in per_device.values() for name in names)}):
        archive.file(f"mod/{name}.ko", tree.read(name))
    return archive.finish()

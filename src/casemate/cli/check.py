"""``casemate check``: whether this machine is ready, line by line, and what to do where it is not."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casemate.cli import output
from casemate.errors import CasemateError

if TYPE_CHECKING:
    from casemate.cli.parser import Parser
    from casemate.config import Config
    from casemate.host.check import Finding

USAGE = "[OPTIONS]"
ROOT = False
SPACE_NEEDED = 1 << 30
"""Bytes below which the disk is called full: a guest bundle and a middling image."""
SPACE_LEAST = 64 << 20
"""Bytes below which nothing can be made."""
PROGRAMS = (
    # program, package, required, what for
    ("skopeo", "skopeo", False, "images cannot be pulled without it"),
    ("busybox", "busybox-static", False, "the busybox image is made of it"),
    ("mkfs.erofs", "erofs-utils", False, "'casemate guest build' needs it"),
    ("apt-get", "apt", False, "'casemate guest build' fetches packages with it"),
)
MARKS = {"ok": ("ok  ", output.GREEN), "warn": ("warn", output.YELLOW), "fail": ("FAIL", output.RED)}


def declare(parser: Parser) -> None:
    """Name the options."""
    parser.flag("--json", help="as JSON: a list of name, status (ok, warn, fail), detail and fix")


def run(config: Config, args: Any) -> int:
    """Print what was found; 1 when something that is needed is missing."""
    with output.progress("looking at this machine"):
        found = findings(config)
    if args.json:
        print(json.dumps(
            [{"name": each.name, "status": status(each), "detail": each.detail, "fix": each.fix} for each in found],
            indent=4,
        ))  # fmt: skip
    else:
        width = max(len(each.name) for each in found)
        for each in found:
            mark, colour = MARKS[status(each)]
            line = f"{output.paint(mark, colour, sys.stdout)}  {each.name:<{width}}  {output.printable(each.detail)}"
            print(f"{line} -> {output.printable(each.fix)}" if each.fix else line)
        bad = [each.name for each in found if status(each) == "fail"]
        print(f"\nNot ready: {', '.join(bad)}." if bad else "\nReady: sudo casemate run -it busybox")
    return 1 if any(status(each) == "fail" for each in found) else 0


def status(finding: Finding) -> str:
    """``ok``, ``warn`` or ``fail``."""
    return "ok" if finding.ok else "fail" if finding.required else "warn"


def findings(config: Config) -> list[Finding]:
    """Everything that was looked at, the host first."""
    from casemate.host import check

    return [
        *check.check(config), *_vmm(config), *_programs(), *_guest(config), _sentry(config),
        _space("disk space", config.root), _space("run space", config.run), _containers(config),
    ]  # fmt: skip


def _sentry(config: Config) -> Finding:
    """By which platform the sentry would serve. Its system call numbers and registers are those of x86-64."""
    from casemate.config import machine

    if machine() != "x86_64":
        return _finding("sentry", False, False, f"not there for {machine()}", "use the vm wall")
    from casemate.sentry.platform import notify

    chosen = config.sentry_platform
    if chosen == "auto":
        chosen = "notify" if notify.available() else "ptrace"
    if chosen == "ptrace":
        how = ", the slower one"
    else:
        how = "" if chosen == "notify" and notify.NATIVE is not None else ", all of it in Python"
    return _finding("sentry", True, False, f"serves system calls by {chosen}{how}")


def _finding(name: str, ok: bool, required: bool, detail: str, fix: str = "") -> Finding:
    from casemate.host.check import Finding

    return Finding(name, ok, required, detail, fix)


def _of_error(name: str, error: CasemateError, required: bool = True) -> Finding:
    return _finding(name, False, required, error.message, error.hint)


def _vmm(config: Config) -> Iterator[Finding]:
    from casemate.vm.hypervisor.qemu import PACKAGE
    from casemate.wall import launch

    missing = False
    for name, program, package in (
        ("qemu", config.qemu, PACKAGE), ("virtiofsd", config.virtiofsd, "qemu-system-common"),
    ):  # fmt: skip
        try:
            yield _finding(name, True, True, launch.find_program(program, package))
        except CasemateError as error:
            missing = missing or name == "qemu"
            yield _of_error(name, error)
    if missing:
        return
    yield _kvm_device()
    if os.geteuid() != 0:
        yield _finding("accelerator", False, False, "not known without root", "sudo casemate check")
        return
    from casemate.vm.hypervisor import probe
    from casemate.vm.hypervisor.base import Accelerator

    try:
        choice = probe.choose(config)
    except CasemateError as error:
        yield _of_error("accelerator", error)
        return
    except OSError as error:
        yield _finding("accelerator", False, True, f"the probe failed: {error.strerror}", "see the lines above")
        return
    slow = choice.accelerator is Accelerator.TCG and config.accelerator != "tcg"
    fix = "guests run several times slower; use a machine with working KVM" if slow else ""
    yield _finding("accelerator", not slow, False, f"{choice.accelerator.value}: {choice.reason}", fix)
    if choice.accelerator is Accelerator.TCG:
        yield _twins(config)


def _twins(config: Config) -> Finding:
    """Whether emulated machines are copies of one that stands still."""
    from casemate.config import machine
    from casemate.vm import twins
    from casemate.vm.hypervisor import twin

    if not config.twins_wanted or machine() != twin.ARCHITECTURE:
        return _finding("twins", True, False, f"not there for {machine()}" if config.twins_wanted else "off")
    if not twin.available():
        fix = "starts take several times longer: apt install gcc libc6-dev, then scripts/native"
        return _finding("twins", False, False, "the library that QEMU is copied by is not built", fix)
    failed = twins.failures(config)
    if failed:
        return _finding("twins", False, False, failed[0], "starts take longer; it is tried again an hour later")
    ready = [f"{holder.kind.memory_mib} MiB" for holder in twins.holders(config) if holder.ready]
    return _finding("twins", True, False, f"ready: {', '.join(ready)}" if ready else "made with the next start")


def _kvm_device() -> Finding:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        fix = "turn on virtualization in the firmware, or nested virtualization, and: modprobe kvm_intel or kvm_amd"
        return _finding("/dev/kvm", False, False, "not there", fix)
    except OSError as error:
        return _finding("/dev/kvm", False, False, f"does not open: {error.strerror}", "run as root")
    return _finding("/dev/kvm", True, False, "opens")


def _programs() -> Iterator[Finding]:
    from casemate.host import commands

    for program, package, required, purpose in PROGRAMS:
        path = commands.which(program)
        fix = "" if path else f"apt install {package}: {purpose}"
        yield _finding(program, path is not None, required, path or "not found", fix)


def _guest(config: Config) -> Iterator[Finding]:
    from casemate.vm import guest

    try:
        bundle = guest.find(config.root, config.guest)
    except CasemateError as error:
        yield _of_error("guest bundle", error)
        return
    except PermissionError:
        yield _finding("guest bundle", False, False, "not known without root", "sudo casemate check")
        return
    yield _finding("guest bundle", True, True, f"{bundle.digest[:12]}, kernel {bundle.kernel_release}")
    if bundle.kernel_kind == "minimal":
        yield _finding("guest kernel", True, False, "minimal")
        return
    from casemate.cli.guest import cache
    from casemate.config import machine
    from casemate.vm.guest import kernels

    built = kernels.present(cache(), machine())
    build = "casemate guest build" if built else "casemate guest kernel build, then casemate guest build"
    detail = "Debian's" + (", although a minimal one is built" if built else "")
    yield _finding("guest kernel", False, False, detail, f"a minimal one starts sooner and takes less memory: {build}")


def _space(name: str, directory: Path) -> Finding:
    place = directory
    while not place.exists() and place != place.parent:
        place = place.parent
    figures = os.statvfs(place)
    free = figures.f_bavail * figures.f_frsize
    # What the run directory holds is small; a memory file system of a small machine must not be called full.
    needed = SPACE_NEEDED if name == "disk space" else SPACE_LEAST
    fix = "" if free >= needed else f"free some space on the file system of {place}"
    return _finding(name, free >= needed, free < SPACE_LEAST, f"{output.size(free)} free for {directory}", fix)


def _containers(config: Config) -> Finding:
    if os.geteuid() != 0:
        return _finding("containers", True, False, "not known without root")
    from casemate.keeper.store import Store

    try:
        found = Store(config).list()
        running = sum(container.stored_state().status in ("running", "paused") for container in found)
    except (CasemateError, OSError) as error:
        return _finding("containers", False, False, str(error), "see: casemate ps -a")
    return _finding("containers", True, False, f"{len(found)}, {running} of them running")

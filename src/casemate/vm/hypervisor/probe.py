"""Which accelerator to use, found by running a guest.

A /dev/kvm that opens proves nothing: where the machine is itself virtual, it may emulate privileged guest code at
microseconds an instruction, and a kernel would take minutes to start. So a guest of a few dozen bytes has to run a
counted loop in protected mode and say that it is through. The answer is kept until the next boot of the host, or
until another QEMU is installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from casemate import jsonfile
from casemate.config import Config, machine
from casemate.errors import HypervisorError, StateError
from casemate.vm.hypervisor.base import Accelerator
from casemate.vm.hypervisor.qemu import PACKAGE, kvm_group, last_line
from casemate.wall import launch
from casemate.wall.confinement import Confinement

WALL = 2.0
"""Seconds that the probe guest may take. A processor that really runs it needs milliseconds."""
_CPU = 1.0
_WALL_MOST = 15.0
"""On a busy host the guest is given up only after it has had ``_CPU`` seconds of processor time, or after this."""
LOOPS = 2_000_000
"""Rounds of the loop, two instructions each: 10 s at 2.4 µs an instruction, some 2 ms on a processor."""
_SUCCESS = 0x2A
_PROBE_UID = 65534

_CODE = 0xE000
_BASE = 0xF0000
"""The firmware image's last 64 KiB are seen at 0xF0000; the processor starts 16 bytes before their end."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The accelerator to use, and one line that says why."""

    accelerator: Accelerator
    reason: str


def firmware(loops: int = LOOPS) -> bytes:
    """The probe guest: a 64 KiB firmware image for a PC.

    Source: the x86 reset state (Intel SDM volume 3, "Processor Management and Initialization"); QEMU's
    ``isa-debug-exit`` device, which ends QEMU with status ``2 * value + 1``.

    Arguments:
        loops: rounds of the counted loop.
    """
    table = _BASE + _CODE + 0x80
    image = bytearray(b"\xf4" * 0x10000)  # hlt, wherever it goes wrong
    code16 = b"".join(
        (
            b"\xfa",  # cli
            b"\x2e\x66\x0f\x01\x16" + struct.pack("<H", _CODE + 0x70),  # lgdt cs:[gdtr]
            b"\x0f\x20\xc0",  # mov eax, cr0
            b"\x0c\x01",  # or al, 1           protection enable
            b"\x0f\x22\xc0",  # mov cr0, eax
            b"\x66\xea" + struct.pack("<IH", _BASE + _CODE + 0x20, 8),  # jmp dword 8:code32
        )
    )
    code32 = b"".join(
        (
            b"\xb9" + struct.pack("<I", loops),  # mov ecx, loops
            b"\x49",  # again: dec ecx
            b"\x75\xfd",  # jnz again
            b"\x66\xba\x01\x05",  # mov dx, 0x501      isa-debug-exit
            b"\xb0" + bytes((_SUCCESS,)),  # mov al, _SUCCESS
            b"\xee",  # out dx, al
            b"\xf4",  # halt: hlt
            b"\xeb\xfd",  # jmp halt
        )
    )
    descriptors = bytes(8) + struct.pack("<HHBBBB", 0xFFFF, 0, 0, 0x9B, 0xCF, 0)  # null; flat 4 GiB code, ring 0
    for offset, part in (
        (_CODE, code16),
        (_CODE + 0x20, code32),
        (_CODE + 0x70, struct.pack("<HI", len(descriptors) - 1, table)),
        (_CODE + 0x80, descriptors),
        (0xFFF0, b"\xea" + struct.pack("<HH", _CODE, 0xF000)),  # reset: jmp 0xf000:code16
    ):
        image[offset : offset + len(part)] = part
    return bytes(image)


def run_probe(config: Config, accelerator: Accelerator) -> str:
    """Run the probe guest.

    Returns:
        An empty string when it made progress, else one line that says what happened.

    Raises:
        HostError: QEMU is not installed.
    """
    program = launch.find_program(config.qemu, PACKAGE)
    # The guest is ours and cannot reach anything, so it may run as root where only root opens /dev/kvm: what is asked
    # here is whether the device works. Without privileges in every other respect.
    jail = Confinement(_PROBE_UID, _PROBE_UID)
    if accelerator is Accelerator.KVM:
        try:
            group = kvm_group()
            jail = jail if group is None else Confinement(_PROBE_UID, _PROBE_UID, groups=(group,))
        except HypervisorError:
            jail = Confinement(0, 0)
    rom = os.memfd_create("casemate-probe", os.MFD_CLOEXEC)
    messages, stderr = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        os.write(rom, firmware())
        argv = [program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        argv += ["-machine", "pc,usb=off", "-m", "2M", "-accel", accelerator.value]
        argv += ["-bios", f"/proc/self/fd/{rom}", "-device", "isa-debug-exit"]
        argv += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
        process = launch.spawn(argv, jail, pass_fds=(rom,), stdout=stderr, stderr=stderr)
        try:
            code = _wait(process)
        finally:
            process.close()
        if code == 2 * _SUCCESS + 1:
            return ""
        if code is None:
            return f"a guest made no progress in {WALL:g} s"
        try:
            said = last_line(os.read(messages, 8192))
        except BlockingIOError:
            said = ""
        return f"a guest ended with {launch.exit_text(code)}" + (f": {said}" if said else "")
    finally:
        for fd in (rom, messages, stderr):
            os.close(fd)


def _wait(process: launch.Process) -> int | None:
    start = time.monotonic()
    allowed = WALL
    while True:
        code = process.wait(allowed - (time.monotonic() - start))
        passed = time.monotonic() - start
        if code is not None or passed >= _WALL_MOST or _cpu_time(process.pid) >= _CPU:
            return code
        allowed = min(_WALL_MOST, passed + 0.5)


def _cpu_time(pid: int) -> float:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def kvm_usable(config: Config) -> tuple[bool, str]:
    """Whether KVM runs guests here, and one line that says why or why not.

    The result is kept in ``config.run``; the first call takes up to some seconds where KVM does not work.

    Raises:
        HostError: QEMU is not installed.
    """
    if machine() not in ("x86_64",):
        return False, f"no probe guest for the {machine()} architecture"
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return False, "there is no /dev/kvm"
    except OSError as error:
        return False, f"/dev/kvm does not open ({error.strerror})"
    config.run.mkdir(parents=True, exist_ok=True, mode=0o755)
    path = config.run / f"probe-{_key(config)}.json"
    if (known := _read(path)) is not None:
        return known
    lock = os.open(config.run / "probe.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # many machines started at once wait for one probe
        if (known := _read(path)) is not None:
            return known
        result = _probe_kvm(config)
        with contextlib.suppress(OSError):  # no room to keep it: the next one probes anew
            for old in config.run.glob("probe-*.json"):
                old.unlink(missing_ok=True)
            jsonfile.write(path, {"usable": result[0], "reason": result[1]}, durable=False)
        return result
    finally:
        os.close(lock)


def choose(config: Config) -> Choice:
    """The accelerator that the configuration and the host come to.

    Raises:
        HypervisorError: the configuration insists on KVM and it cannot be used.
        HostError: QEMU is not installed.
    """
    if config.accelerator == "tcg":
        return Choice(Accelerator.TCG, "set in the configuration")
    usable, reason = kvm_usable(config)
    if usable:
        return Choice(Accelerator.KVM, reason)
    if config.accelerator == "kvm":
        raise HypervisorError(f"KVM cannot be used: {reason}", "set accelerator to auto or tcg, or mend KVM")
    return Choice(Accelerator.TCG, f"KVM cannot be used: {reason}")


def _probe_kvm(config: Config) -> tuple[bool, str]:
    problem = run_probe(config, Accelerator.KVM)
    if problem:
        return False, f"/dev/kvm opens, but {problem}"
    try:
        kvm_group()
    except HypervisorError as error:
        return False, str(error)
    return True, "a probe guest ran"


def _key(config: Config) -> str:
    """What the result depends on: this boot of the host, and QEMU's program file."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    program = os.stat(launch.find_program(config.qemu, PACKAGE))
    return f"{boot}-{program.st_ino:x}-{program.st_size:x}-{program.st_mtime_ns:x}"


def _read(path: Path) -> tuple[bool, str] | None:
    try:
        value = jsonfile.read(path)
    except (FileNotFoundError, StateError):  # a damaged one is probed and written anew
        return None
    usable, reason = value.get("usable"), value.get("reason")
    return (usable, reason) if isinstance(usable, bool) and isinstance(reason, str) else None

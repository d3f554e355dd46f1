"""The QEMU driver: machines as unprivileged QEMU processes that hold nothing but inherited descriptors."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from casemate.config import Config, machine
from casemate.errors import HostError, HypervisorError
from casemate.vm.hypervisor import qemu_args
from casemate.vm.hypervisor.base import (
    GROW_STEP_MIB,
    Accelerator,
    AgentPort,
    Balloon,
    Block,
    Capabilities,
    Confinement,
    Device,
    ExitCause,
    Hypervisor,
    SerialConsole,
    SharedFs,
    Vm,
    VmExit,
    VmSpec,
    VmStatus,
    device_fd,
)
from casemate.vm.hypervisor.counter import Counter
from casemate.vm.hypervisor.qmp import QmpClient
from casemate.wall import launch

PACKAGE = "qemu-system-x86"
_DATA_DIRS = ("/usr/share/qemu", "/usr/local/share/qemu")
_TAIL = 8192
"""How much of QEMU's messages is kept in memory, in bytes."""
_LOG_LIMIT = 256 * 1024
"""How much of QEMU's messages goes into the log, in bytes."""
_STATE = "state"
_CAUSES = {
    "guest-shutdown": (ExitCause.GUEST_SHUTDOWN, "the guest powered off"),
    "guest-reset": (ExitCause.GUEST_RESET, "the guest restarted or its kernel panicked (its console log says which)"),
    "guest-panic": (ExitCause.GUEST_PANIC, "the guest's kernel panicked (its console log says why)"),
}


class QemuHypervisor(Hypervisor):
    """Makes machines with QEMU.

    Arguments:
        config: names the program.
    """

    name = "qemu"
    saves = True
    copies = True

    def __init__(self, config: Config) -> None:
        self._config = config
        self._counter = Counter()

    def _kind(self) -> type[QemuVm]:
        return QemuVm

    def program(self) -> str:
        """QEMU's path.

        Raises:
            HostError: it is not installed.
        """
        return launch.find_program(self._config.qemu, PACKAGE)

    def probe(self) -> Capabilities:
        problem, version = "", ""
        try:
            version = _version(self.program())
        except (HypervisorError, HostError, OSError) as error:
            problem = str(error)
        if not problem and machine() not in qemu_args.ARCHES:
            problem = f"no machine is known for the {machine()} architecture"
        return Capabilities(
            available=not problem,
            problem=problem,
            version=version,
            hotplug=not problem,
            pause=not problem,
            shared_fs=not problem,
            vsock=not problem and os.path.exists("/dev/vhost-vsock"),
            max_vcpus=255,
        )

    def create(self, spec: VmSpec, jail: Confinement) -> QemuVm:
        owned = [fd for device in spec.devices if (fd := device_fd(device)) is not None]
        owned += spec.image.descriptors() if spec.image is not None else ()
        try:
            arch = qemu_args.ARCHES.get(machine())
            if arch is None:
                raise HypervisorError(f"no machine is known for the {machine()} architecture", "use an x86_64 host")
            if spec.accelerator is Accelerator.KVM:
                jail = _with_kvm_group(jail)
            if spec.image is not None and spec.image.state_fd is not None:
                # Where a guest gives a page back, QEMU punches a hole into the file of its memory, also where it has
                # that only mapped privately, and lets the mapping's page go only when that has worked.
                jail = replace(jail, keep_files=True)
            program = self.program()
            devices: list[Device] = []
            for device in spec.devices:
                if isinstance(device, Block) and isinstance(device.source, Path):
                    fd = _open(device.source, read_only=device.read_only)
                    owned.append(fd)
                    device = replace(device, source=fd)
                devices.append(device)
            kernel, initrd = _open_public(spec.kernel), None
            owned.append(kernel)
            if spec.initrd is not None:
                initrd = _open_public(spec.initrd)
                owned.append(initrd)
            whole = replace(spec, devices=tuple(devices))
            return self._kind()(program, whole, arch, jail, kernel, initrd, owned, self._counter)
        except BaseException:
            _close_all(owned)
            raise


class QemuVm(Vm):
    """One machine. Made by :meth:`QemuHypervisor.create`."""

    def __init__(
        self,
        program: str,
        spec: VmSpec,
        arch: qemu_args.Arch,
        jail: Confinement,
        kernel_fd: int,
        initrd_fd: int | None,
        owned: list[int],
        counter: Counter,
    ) -> None:
        self._program = program
        self._spec = spec
        self._arch = arch
        self._jail = jail
        self._kernel_fd = kernel_fd
        self._initrd_fd = initrd_fd
        self._owned = owned
        self._counter = counter
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._plug_lock = threading.Lock()
        self._process: launch.Process | None = None
        self._qmp: QmpClient | None = None
        self._asked = False
        self._cause = ""
        self._paused = False
        self._exit: VmExit | None = None
        self._callbacks: list[Callable[[VmExit], None]] = []
        self._tail = b""
        self._logged = 0
        self._gone: set[str] = set()
        self._migration = ""
        self._plugged: dict[str, tuple[int, qemu_args.Parts]] = {
            device.id: (spec.slotted.index(device.id), qemu_args.parts(device, number))
            for number, device in enumerate(spec.devices, 1)
            if device.id in spec.slotted
        }
        self._sets = len(spec.devices)
        self._stands = spec.image is not None and spec.image.state_fd is not None
        """Whether the guest begins when it is told to."""

    @property
    def pid(self) -> int:
        process = self._process
        return process.pid if process else 0

    def command_line(self, qmp_fd: int, *, sandbox: bool = True) -> list[str]:
        """QEMU's command line, with ``qmp_fd`` as the control socket; see :func:`.qemu_args.command_line`."""
        return qemu_args.command_line(
            self._program,
            self._spec,
            self._arch,
            kernel_fd=self._kernel_fd,
            initrd_fd=self._initrd_fd,
            qmp_fd=qmp_fd,
            firmware=has_firmware(self._arch),
            counter_khz=self._counter.khz() if self._spec.accelerator is Accelerator.TCG else None,
            sandbox=sandbox,
        )

    def _spawn(self, qmp_fd: int, messages: int) -> launch.Process:
        """Start the process; the caller closes both descriptors."""
        argv = self.command_line(qmp_fd)
        return launch.spawn(argv, self._jail, pass_fds=[*self._owned, qmp_fd], stdout=messages, stderr=messages)

    def _greet(self, qmp: QmpClient, timeout: float) -> None:
        qmp.connect(timeout)

    def start(self, timeout: float = 30.0) -> None:
        with self._lock:
            if self._process is not None or self._exit is not None:
                raise HypervisorError("the machine was started before", "create another one")
            ours, theirs = socket.socketpair()
            messages, stderr = os.pipe2(os.O_CLOEXEC)
            image = self._spec.image
            # A copy, because those that are passed on are closed as soon as QEMU has them.
            state = os.dup(image.state_fd) if image is not None and image.state_fd is not None else None
            try:
                self._process = self._spawn(theirs.fileno(), stderr)
            except BaseException:
                os.close(messages)
                ours.close()
                self._exit = VmExit(ExitCause.FAILED, None, None, "QEMU was not started")
                if state is not None:
                    os.close(state)
                raise
            finally:
                theirs.close()
                os.close(stderr)
                self._release()
            self._qmp = QmpClient(ours.detach(), self._on_event)
        watcher = threading.Thread(target=self._watch, args=(messages,), name="casemate-vm", daemon=True)
        watcher.start()
        deadline = time.monotonic() + timeout
        try:
            self._greet(self._qmp, timeout)
            if state is not None:
                self._migrate("migrate-incoming", state, deadline)
            if self._stands:
                self._qmp.execute("cont")
        except HypervisorError as error:
            alive = self.wait(1.0) is None  # where it ended by itself, its own words say more than a closed connection
            self._kill()
            ended = self.wait()
            reason = error.message if alive or ended is None else ended.reason
            raise HypervisorError(f"the virtual machine did not start: {reason}") from None
        finally:
            if state is not None:
                os.close(state)

    def save(self, state_fd: int, timeout: float = 30.0) -> None:
        if self._spec.image is None:
            raise HypervisorError("the memory of this machine is in no file", "give it an image")
        self.pause()
        self._migrate("migrate", state_fd, time.monotonic() + timeout)

    def _migrate(self, command: str, fd: int, deadline: float) -> None:
        """Have QEMU write its state, or read it; memory that it shares with a file is left out."""
        control = self._control()
        wanted = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
        control.execute("migrate-set-capabilities", {"capabilities": wanted})
        control.execute("getfd", {"fdname": _STATE}, fds=[fd])
        control.execute(command, {"uri": f"fd:{_STATE}"})
        with self._changed:
            self._changed.wait_for(
                lambda: self._migration in ("completed", "failed") or self._exit is not None,
                max(0.0, deadline - time.monotonic()),
            )
            if self._migration != "completed":
                raise HypervisorError(f"the machine's state was not carried over: {self._migration or 'no answer'}")

    def grow(self, mib: int) -> None:
        mib = -(-mib // GROW_STEP_MIB) * GROW_STEP_MIB
        if not 0 <= mib <= self._spec.growth_mib:
            raise HypervisorError(f"the machine's memory can grow by {self._spec.growth_mib} MiB, not by {mib} MiB")
        where = f"/machine/peripheral/{qemu_args.GROWTH}"
        self._control().execute("qom-set", {"path": where, "property": "requested-size", "value": mib << 20})

    def pause(self) -> None:
        self._control().execute("stop")
        with self._lock:
            self._paused = True

    def resume(self) -> None:
        self._control().execute("cont")
        with self._lock:
            self._paused = False

    def add_device(self, device: Device) -> None:
        fd = device_fd(device)
        try:
            if isinstance(device, SerialConsole | AgentPort | Balloon):
                raise HypervisorError(f"a device of type {type(device).__name__} cannot be plugged in later")
            if isinstance(device, SharedFs) and not self._spec.shared_memory and self._spec.image is None:
                raise HypervisorError("a shared file system needs shared guest memory", "set shared_memory")
            if isinstance(device, Block) and isinstance(device.source, Path):
                fd = _open(device.source, read_only=device.read_only)
                device = replace(device, source=fd)
            with self._plug_lock:
                self._plug(device)
        finally:
            if fd is not None:
                os.close(fd)

    def remove_device(self, id: str, timeout: float = 10.0) -> None:
        control = self._control()
        with self._plug_lock:
            if id not in self._plugged:
                raise HypervisorError(f"no device {id!r} was plugged in")
            control.execute("device_del", {"id": id})
            with self._changed:
                let_go = self._changed.wait_for(lambda: id in self._gone or self._exit is not None, timeout)
                self._gone.discard(id)
            if not let_go:
                part = self._plugged[id][1]
                if part.netdev:
                    self._drop_back_end(control, part)  # a link that is down, and nothing of the host's behind it
                raise HypervisorError(f"the guest did not let device {id!r} go within {timeout:g} s")
            part = self._plugged.pop(id)[1]
            self._drop_back_end(control, part)

    def stop(self, timeout: float = 5.0) -> VmExit:
        with self._lock:
            self._asked = True
            qmp = self._qmp
        if qmp is not None and self._exit is None:
            with contextlib.suppress(HypervisorError):  # ended meanwhile, or does not answer: killed below
                qmp.execute("quit", timeout=timeout)
        ended = self.wait(timeout) if qmp is not None else None
        if ended is None:
            self._kill()
            ended = self.wait()
        assert ended is not None
        return ended

    def kill(self) -> None:
        with self._lock:
            self._asked = True
        self._kill()

    def wait(self, timeout: float | None = None) -> VmExit | None:
        with self._changed:
            self._changed.wait_for(lambda: self._exit is not None, timeout)
            return self._exit

    def on_exit(self, callback: Callable[[VmExit], None]) -> None:
        with self._lock:
            if self._exit is None:
                self._callbacks.append(callback)
                return
            ended = self._exit
        callback(ended)

    def status(self) -> VmStatus:
        with self._lock:
            if self._exit is not None:
                return VmStatus.ENDED
            if self._process is None:
                return VmStatus.CREATED
            return VmStatus.PAUSED if self._paused else VmStatus.RUNNING

    def _control(self) -> QmpClient:
        with self._lock:
            if self._exit is not None:
                raise HypervisorError(f"the virtual machine has ended: {self._exit.reason}")
            if self._qmp is None:
                raise HypervisorError("the virtual machine was not started")
            return self._qmp

    def _kill(self) -> None:
        with self._lock:
            process = self._process
            if process is None and self._exit is None:
                self._release()
                ended = VmExit(ExitCause.STOPPED, None, None, "stopped before it was started")
            else:
                ended = None
        if process is not None:
            process.kill()
        elif ended is not None:
            self._end(ended)

    def _release(self) -> None:
        _close_all(self._owned)
        self._owned = []

    def _end(self, ended: VmExit) -> None:
        with self._changed:
            self._exit = ended
            callbacks, self._callbacks = self._callbacks, []
            self._changed.notify_all()
        for callback in callbacks:
            callback(ended)

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        with self._changed:
            if name == "SHUTDOWN":
                self._cause = self._cause or str(data.get("reason", ""))
            elif name == "MIGRATION":
                self._migration = str(data.get("status", ""))
                self._changed.notify_all()
            elif name == "GUEST_PANICKED":
                self._cause = "guest-panic"
            elif name == "DEVICE_DELETED" and isinstance(data.get("device"), str) and data["device"] in self._plugged:
                self._gone.add(data["device"])
                self._changed.notify_all()

    def _watch(self, messages: int) -> None:
        """Read QEMU's messages until it ends, then tell everybody. Runs on a thread of its own."""
        process = self._process
        assert process is not None and self._qmp is not None
        os.set_blocking(messages, False)
        poll = select.poll()
        poll.register(messages, select.POLLIN)
        poll.register(process.pidfd, select.POLLIN)
        running = True
        while running:
            ready = {fd for fd, _ in poll.poll(self._look())}
            running = process.pidfd not in ready
            if messages in ready and not self._read_messages(messages):
                poll.unregister(messages)
        self._read_messages(messages)
        os.close(messages)
        code = process.wait()
        self._qmp.close("QEMU ended")  # reads what is left in the socket first: the event that says why
        process.close()
        self._end(self._verdict(0 if code is None else code))

    def _look(self) -> float | None:
        """Do what is due at times, on the thread that watches QEMU; in how many milliseconds the next is."""
        return None

    def _read_messages(self, messages: int) -> bool:
        """Take what QEMU has written; False at its end."""
        while True:
            try:
                chunk = os.read(messages, 65536)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            self._tail = (self._tail + chunk)[-_TAIL:]
            if self._spec.log is not None and self._logged < _LOG_LIMIT:
                chunk = chunk[: _LOG_LIMIT - self._logged]
                self._logged += len(chunk)
                try:
                    with open(self._spec.log, "ab") as log:
                        log.write(chunk)
                except OSError:  # a full disk must not end the machine; the tail in memory remains
                    self._logged = _LOG_LIMIT

    def _verdict(self, code: int) -> VmExit:
        status, number = (code, None) if code >= 0 else (None, -code)
        if not self._asked and self._cause in _CAUSES:
            cause, reason = _CAUSES[self._cause]
            return VmExit(cause, status, number, reason)
        if self._asked:
            return VmExit(ExitCause.STOPPED, status, number, "stopped")
        reason = f"QEMU ended with {launch.exit_text(code)}"
        if number == signal.SIGSYS:
            reason += " (its system call filter stopped it)"
        last = last_line(self._tail)
        return VmExit(ExitCause.FAILED, status, number, f"{reason}: {last}" if last else reason)

    def _plug(self, device: Device) -> None:
        control = self._control()
        used = {slot for slot, _ in self._plugged.values()}
        slot = next((slot for slot in range(self._spec.hotplug_slots) if slot not in used), None)
        if slot is None:
            raise HypervisorError("no hot-plug slot is free", "remove a device, or give the machine more slots")
        if device.id in self._plugged or any(known.id == device.id for known in self._spec.devices):
            raise HypervisorError(f"the machine has a device {device.id!r} already")
        self._sets += 1
        part = qemu_args.parts(device, self._sets, window=self._spec.image is not None)
        try:
            self._make_back_end(control, part)
            arguments = {**part.device, **qemu_args.slot_address(slot)}
            if part.fd_key and part.fd_key[0] == "device":
                arguments[part.fd_key[1]] = _fd_name(part)
            control.execute("device_add", arguments)
        except HypervisorError:
            self._drop_back_end(control, part)
            raise
        with self._lock:
            self._plugged[device.id] = (slot, part)

    @staticmethod
    def _make_back_end(control: QmpClient, part: qemu_args.Parts) -> None:
        if part.fdset:
            control.execute("add-fd", {"fdset-id": part.fdset[0]}, fds=[part.fdset[1]])
        if part.chardev:
            id, fd = part.chardev
            control.execute("getfd", {"fdname": id}, fds=[fd])
            address = {"type": "fd", "data": {"str": id}}
            backend = {"type": "socket", "data": {"addr": address, "server": False}}
            control.execute("chardev-add", {"id": id, "backend": backend})
        if part.fd_key:
            control.execute("getfd", {"fdname": _fd_name(part)}, fds=[part.fd])
        if part.blockdev:
            control.execute("blockdev-add", part.blockdev)
        if part.netdev:
            control.execute("netdev_add", {**part.netdev, "fd": _fd_name(part)})
        if part.object:
            control.execute("object-add", part.object)

    @staticmethod
    def _drop_back_end(control: QmpClient, part: qemu_args.Parts) -> None:
        steps: list[tuple[str, dict[str, Any]]] = []
        if part.object:
            steps.append(("object-del", {"id": part.object["id"]}))
        if part.netdev:
            steps.append(("netdev_del", {"id": part.netdev["id"]}))
        if part.blockdev:
            steps.append(("blockdev-del", {"node-name": part.blockdev["node-name"]}))
        if part.chardev:
            steps += [("chardev-remove", {"id": part.chardev[0]}), ("closefd", {"fdname": part.chardev[0]})]
        if part.fd_key:
            steps.append(("closefd", {"fdname": _fd_name(part)}))
        if part.fdset:
            steps.append(("remove-fd", {"fdset-id": part.fdset[0]}))
        for command, arguments in steps:
            try:
                control.execute(command, arguments)
            except HypervisorError:  # never made, or already gone with its device
                continue


def has_firmware(arch: qemu_args.Arch) -> bool:
    """Whether QEMU's data directory has the fast firmware of an architecture."""
    return any(os.path.exists(f"{place}/{arch.firmware}") for place in _DATA_DIRS)


def last_line(tail: bytes) -> str:
    """The last line of QEMU's messages that says something, without the program's name."""
    for raw in reversed(tail.splitlines()):
        line = "".join(char if char.isprintable() else "?" for char in raw.decode("utf-8", "replace")).strip()
        if line and "module ui-" not in line:
            head, colon, rest = line.partition(": ")
            return (rest if colon and head.rpartition("/")[2].startswith("qemu-system-") else line)[:300]
    return ""


def _fd_name(part: qemu_args.Parts) -> str:
    return f"{part.device['id']}.fd"


def _open(path: Path, *, read_only: bool) -> int:
    try:
        fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    except OSError as error:
        raise HypervisorError(f"cannot open {path}: {error.strerror}") from None
    if not (stat.S_ISREG(os.fstat(fd).st_mode) or stat.S_ISBLK(os.fstat(fd).st_mode)):
        os.close(fd)
        raise HypervisorError(f"{path} is not a file or block device")
    return fd


def _open_public(path: Path) -> int:
    fd = _open(path, read_only=True)
    if not os.fstat(fd).st_mode & stat.S_IROTH:
        os.close(fd)
        raise HypervisorError(f"{path} is not readable by everyone", f"run: chmod a+r {path}")
    return fd


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        try:
            os.close(fd)
        except OSError:  # given twice by the caller
            continue


def kvm_group() -> int | None:
    """The group whose members may open /dev/kvm; None where everybody may.

    Raises:
        HypervisorError: there is no /dev/kvm, or only root may open it.
    """
    try:
        node = os.stat("/dev/kvm")
    except OSError:
        raise HypervisorError("there is no /dev/kvm", "set accelerator to auto or tcg") from None
    if node.st_mode & 0o006 == 0o006:
        return None
    if node.st_mode & 0o060 == 0o060 and node.st_gid != 0:
        return node.st_gid
    raise HypervisorError(
        "only root may open /dev/kvm", "run: groupadd -rf kvm; chgrp kvm /dev/kvm; chmod 660 /dev/kvm"
    )


def _with_kvm_group(jail: Confinement) -> Confinement:
    if jail.uid == 0:
        return jail
    group = kvm_group()
    return jail if group is None else replace(jail, groups=(*jail.groups, group))


def _version(program: str) -> str:
    import subprocess  # not needed to run a machine

    result = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=False)
    words = result.stdout.split()
    if result.returncode != 0 or "version" not in words[:-1]:
        raise HypervisorError(f"{program} does not tell its version", "reinstall it")
    return words[words.index("version") + 1]

"""A sandbox for several containers of an engine behind the vm wall: one virtual machine, two file servers.

The containers' trees come as detached mounts and are shown to the guest while it runs, see :mod:`casemate.wall.trees`.
Network interfaces and disks are plugged in and out. The host's side of the network, the control groups and the
containers' stand-ins are the keeper's affair.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from casemate.config import Config
from casemate.errors import CasemateError, HypervisorError, UsageError
from casemate.host import uids
from casemate.host.cgroups import Cgroup
from casemate.sandbox import Disk, Interface, Nic, ProcessExit, ProcessStreams
from casemate.vm import files, looked
from casemate.vm.devices import close_devices
from casemate.vm.hypervisor import base
from casemate.vm.machine import Machine
from casemate.wall import share, trees
from casemate.wall.asking import POD_ERRORS, AskingPod

SLOTS = base.MAX_SLOTS
"""How many interfaces and disks there can be at a time; an empty slot costs nothing."""
_FILES_OF = {
    "memory": "memory.usage_in_bytes", "cpuacct": "cpuacct.usage", "cpu": "cpu.shares", "pids": "pids.max",
}  # fmt: skip
"""By which file a directory of version 1 is known for a controller's."""


class VmPod(AskingPod):
    """Several containers in one virtual machine.

    Arguments:
        config: the configuration in force.
        pod_dir: where logs are kept.
        run_path: the run directory, of at most as many characters as :data:`casemate.config.RUN_LENGTH` allows.
        pod_id: see :mod:`casemate.ids`.
        memory_mib: the guest's memory.
        cpus: processors, such as 1.5; None for the configured number.
        cgroup_procs: the ``cgroup.procs`` files that the VMM and the file servers join.
        progress: told what is being done.
        hypervisor: the driver to use; the configured one when None.
        oom_score_adj: of the VMM, see ``proc_pid_oom_score_adj(5)``.

    The process must be in a mount namespace of its own (:func:`casemate.host.namespaces.unshare_mounts`).
    """

    def __init__(
        self,
        config: Config,
        pod_dir: Path,
        run_path: Path,
        pod_id: str,
        memory_mib: int,
        cpus: float | None,
        cgroup_procs: tuple[Path, ...],
        progress: Callable[[str], None] = lambda what: None,
        hypervisor: base.Hypervisor | None = None,
        oom_score_adj: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.on_exit: Callable[[str, str | None, ProcessExit], None] = lambda id, exec_id, end: None
        self._id = pod_id
        self._run_path = run_path
        self._machine = Machine(
            config,
            pod_id,
            pod_dir,
            run_path,
            memory_mib=memory_mib,
            cpus=cpus,
            on_exit=lambda id, exec_id, end: self.on_exit(id, exec_id, end),
            on_oom=self._out_of_memory,
            on_end=lambda end: self.on_end(end),
            progress=progress,
            hypervisor=hypervisor,
            errors=POD_ERRORS,
            oom_score_adj=oom_score_adj,
        )
        self._machine.procs = cgroup_procs
        self._machine.cgroup = _group(cgroup_procs)
        self._calls = self._machine.calls
        self._plugging = threading.Lock()
        self._setting_up = threading.Lock()
        self._set_up = False
        self._hostname = ""
        self._nics: dict[str, tuple[str, Interface]] = {}
        """Hardware address to the device's id and what the guest is to make of it."""
        self._disks: dict[str, bool] = {}
        """Serial number to whether it is read-only."""
        self._plugged = 0

    # ---- birth

    def boot(self, netns: int, nics: Sequence[Nic], disks: Sequence[Disk], hostname: str) -> None:
        """Start the machine and wait for its agent. See :class:`casemate.sandbox.PodSandbox`.

        Raises:
            CasemateError: what stood in the way; :meth:`close` then gives back what was already there.
        """
        machine = self._machine
        self._hostname = hostname
        late: list[base.Device] = []
        try:
            late = self._devices(nics, disks)
            machine.prepare()
            machine.step("files")
            trees.make(self._run_path)
            coming = machine.serve_later(
                [
                    (files.TAG, self._run_path / share.SHARE, files.ROOT_KEEP),
                    (files.VOLUMES_TAG, self._run_path / share.VOLUMES, 0),
                ]
            )
            machine.step("turn")
            machine.take_turn()
            machine.step("machine")
        except BaseException:
            close_devices(late)
            raise
        machine.boot(netns, (), slots=SLOTS, slotted=late, coming=coming)

    def _devices(self, nics: Sequence[Nic], disks: Sequence[Disk]) -> list[base.Device]:
        """The devices that are there from the start; on failure all of their descriptors are closed."""
        left = [*(nic.tap_fd for nic in nics), *(disk.fd for disk in disks)]
        made: list[base.Device] = []
        try:
            for nic in nics:
                made.append(self._net(nic))
                left.remove(nic.tap_fd)
                self._nics[nic.interface.mac] = (made[-1].id, nic.interface)
            for disk in disks:
                left.remove(disk.fd)
                made.append(_block(disk))
                self._disks[disk.serial] = disk.read_only
        except BaseException:
            close_devices(made)
            for fd in left:
                os.close(fd)
            raise
        return made

    def _net(self, nic: Nic) -> base.Net:
        with self._lock:
            number = self._plugged
            self._plugged += 1
        return base.Net(f"net{number}", nic.interface.mac, nic.tap_fd, nic.interface.mtu)

    # ---- containers

    def create(
        self, id: str, spec: dict[str, Any], files: list[dict[str, Any]], stdin: bool, size: tuple[int, int] | None,
        kept: Sequence[str] = (),
    ) -> ProcessStreams:
        """Make a container. See :class:`casemate.sandbox.PodSandbox`."""
        request: dict[str, Any] = {
            "id": id, "spec": self._machine.shortened(spec), "user": "", "looked": self._look(id, spec), "files": files,
            "memory": None, "sandbox": None,
        }  # fmt: skip
        with self._setting_up:  # those that come together with the first must not be made in a guest without a name
            first = not self._set_up
            if first:
                request["sandbox"] = self._setup()
                request["info"] = not self._machine.known
                streams = self._take(id, request, stdin, size, kept)
                self._set_up = True
        if not first:
            return self._take(id, request, stdin, size, kept)
        return streams

    def _look(self, id: str, spec: dict[str, Any]) -> dict[str, str]:
        """What the guest need not look up itself, nothing where there is no command."""
        if not (spec.get("process") or {}).get("args"):
            return {}
        return looked.look(self._run_path / share.SHARE / id, spec)

    def _take(
        self, id: str, request: dict[str, Any], stdin: bool, size: tuple[int, int] | None, kept: Sequence[str]
    ) -> ProcessStreams:
        told: dict[str, Any] = {}
        try:
            streams = self._create(id, request, stdin, size, kept, told)
        finally:
            self._machine.end_turn()
        self._machine.believe(told.get("guest"))
        return streams

    def _setup(self) -> dict[str, Any]:
        """What makes the guest this sandbox's; it comes with the first container, because each request costs time."""
        return {
            "hostname": self._hostname,
            "interfaces": self._interfaces(),
            "time_ns": time.time_ns(),
            "entropy": base64.b64encode(os.urandom(64)).decode(),
            "shares": self._machine.late,
        }

    def stats(self, id: str) -> dict[str, Any]:
        """The guest's figures, ``limit`` of the guest in bytes, and ``host`` with the control group's.

        See :class:`casemate.sandbox.PodSandbox`.
        """
        result = self._calls.call("container.stats", {"id": id})
        return {**result, "limit": self._machine.memory_mib << 20, "host": self._machine.usage()}

    # ---- devices

    def grow(self, memory_mib: int, *, partly: bool) -> int:
        """Give the guest more memory. See :class:`casemate.sandbox.PodSandbox`."""
        return self._machine.grow(memory_mib, partly=partly)

    def plug(self, nic: Nic) -> None:
        """Add a network interface. See :class:`casemate.sandbox.PodSandbox`."""
        mac = nic.interface.mac
        with self._plugging:
            try:
                if mac in self._nics:
                    raise UsageError(f"the sandbox has an interface {mac} already")
                device = self._net(nic)
                vm = self._machine.vm()
            except BaseException:
                os.close(nic.tap_fd)
                raise
            vm.add_device(device)
            self._nics[mac] = (device.id, nic.interface)
            try:
                self._send_interfaces()
            except CasemateError:
                with contextlib.suppress(CasemateError):
                    self._unplug(mac)
                raise

    def unplug(self, mac: str) -> None:
        """Take an interface away. See :class:`casemate.sandbox.PodSandbox`."""
        with self._plugging:
            if mac in self._nics:
                self._unplug(mac)

    def _unplug(self, mac: str) -> None:
        self._machine.vm().remove_device(self._nics.pop(mac)[0])

    def configure(self, interfaces: Sequence[Interface]) -> None:
        """Bring all interfaces up to date; those that the machine does not have are left out.

        See :class:`casemate.sandbox.PodSandbox`.
        """
        with self._plugging:
            for interface in interfaces:
                if interface.mac in self._nics:
                    self._nics[interface.mac] = (self._nics[interface.mac][0], interface)
            self._send_interfaces()

    def _interfaces(self) -> list[dict[str, Any]]:
        return [asdict(interface) for _, interface in self._nics.values()]

    def _send_interfaces(self) -> None:
        self._calls.call("sandbox.network", {"interfaces": self._interfaces()})

    def plug_disk(self, disk: Disk) -> None:
        """Add a block device; one that is there already serves several containers.

        See :class:`casemate.sandbox.PodSandbox`.
        """
        device = _block(disk)
        with self._plugging:
            known = self._disks.get(disk.serial)
            try:
                if known is None:
                    vm = self._machine.vm()
                elif known and not disk.read_only:
                    raise UsageError(f"the sandbox has the disk {disk.serial} already, to be read only")
            except CasemateError:
                close_devices([device])
                raise
            if known is not None:
                close_devices([device])
                return
            vm.add_device(device)
            self._disks[disk.serial] = disk.read_only

    # ---- streams

    def connect(self, port: int) -> ProcessStreams:
        """Connect to a port of the guest's loopback. See :class:`casemate.sandbox.PodSandbox`.

        Raises:
            NetworkError: nobody listens there.
        """
        streams = self._calls.open("sandbox.connect", {"port": port}, ("stdin", "stdout"))
        return ProcessStreams(streams["stdin"], streams["stdout"], None)

    def serve_dns(self, addresses: Sequence[str]) -> ProcessStreams:
        """Have the guest take name queries. See :class:`casemate.sandbox.PodSandbox`."""
        streams = self._calls.open("sandbox.dns", {"addresses": list(addresses)}, ("stdin", "stdout"))
        return ProcessStreams(streams["stdin"], streams["stdout"], None)

    # ---- the whole

    def info(self) -> dict[str, Any]:
        """What was learnt when the guest came up. See :class:`casemate.sandbox.PodSandbox`."""
        return self._machine.info()

    def flush(self) -> None:
        """Have the guest write everything back. See :class:`casemate.sandbox.PodSandbox`."""
        self._machine.flush()

    def close(self) -> None:
        """End the machine and give everything back. See :class:`casemate.sandbox.PodSandbox`.

        One who boots meanwhile finds it closed at its next step, and has to close again what it made since.
        """
        over = self._machine.close()
        trees.remove(self._run_path)
        if over:
            uids.release(self._id, self.config)


def _block(disk: Disk) -> base.Block:
    """A device for a disk, on a descriptor that is open in the way that the device will be; the disk's is closed."""
    mode = os.O_RDONLY if disk.read_only else os.O_RDWR
    fd = -1
    try:
        is_device = stat.S_ISBLK(os.fstat(disk.fd).st_mode)
        if fcntl.fcntl(disk.fd, fcntl.F_GETFL) & os.O_ACCMODE == mode:
            fd = os.dup(disk.fd)
        else:
            fd = os.open(f"/proc/self/fd/{disk.fd}", mode | os.O_CLOEXEC)
        return base.Block(disk.serial, fd, disk.read_only, is_device)
    except BaseException as error:
        if fd >= 0:
            os.close(fd)
        if isinstance(error, OSError):
            raise HypervisorError(f"the disk {disk.serial} cannot be opened: {error.strerror}") from None
        raise
    finally:
        os.close(disk.fd)


def _group(procs: Iterable[Path]) -> Cgroup:
    """The control group of ``cgroup.procs`` files, for its figures."""
    directories: dict[str, Path] = {}
    for directory in (path.parent for path in procs):
        with contextlib.suppress(OSError):
            controllers = (directory / "cgroup.controllers").read_text().split()
            directories["unified"] = directory
            directories.update(dict.fromkeys(controllers, directory))
            continue
        for controller, name in _FILES_OF.items():
            if (directory / name).exists():
                directories[controller] = directory
    return Cgroup("sandbox", directories)

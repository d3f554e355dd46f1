"""Boot a machine, run ``true`` in a container in it, and write down when what happened, by the host's clock."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from casemate import ids
from casemate.config import Config
from casemate.errors import AgentError, ContainerError
from casemate.host import network, uids
from casemate.oci import busybox, spec
from casemate.oci.imageconfig import ImageConfig
from casemate.sandbox import ProcessExit
from casemate.vm import files
from casemate.vm.hypervisor import base, drivers
from casemate.vm.machine import Machine
from casemate.wall import share

SYNCS = 8
"""How often the guest is asked for its time: the fastest answer tells it best."""
PATIENCE = 60.0
"""Seconds that the container may take."""


@dataclass(slots=True)
class Seen:
    """What was seen.

    ``host`` has moments by ``time.monotonic``, in seconds: ``created`` (the VMM's program is about to be started),
    ``answered`` (it obeys), ``hello`` (the agent has greeted), ``exited`` (the container's end was heard of),
    ``closed`` (no process of the machine is left). ``marks`` has the agent's, in nanoseconds of its clock, ``guest``
    is that clock's zero by the host's. ``cpu`` is what the VMM had computed when the agent greeted, in milliseconds,
    which a busy host falsifies less than the time. ``log`` is the kernel's, ``facts`` what is known of the machine.
    """

    host: dict[str, float] = field(default_factory=dict)
    marks: list[tuple[str, int]] = field(default_factory=list)
    guest: float = 0.0
    cpu: float = 0.0
    log: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class _Watched(base.Hypervisor):
    """A hypervisor's driver whose machines get more kernel arguments, and whose start is seen."""

    def __init__(self, driver: base.Hypervisor, append: tuple[str, ...], seen: Seen) -> None:
        self.name = driver.name
        self._driver = driver
        self._append = append
        self._seen = seen

    def probe(self) -> base.Capabilities:
        return self._driver.probe()

    def create(self, spec: base.VmSpec, jail: base.Confinement) -> base.Vm:
        made = self._driver.create(replace(spec, cmdline=(*spec.cmdline, *self._append)), jail)
        self._seen.host["created"] = time.monotonic()
        return made


def measure(config: Config, *, memory_mib: int, append: Sequence[str] = ()) -> Seen:
    """Boot a machine as for a container without a network, and run one.

    Arguments:
        config: the configuration; its guest bundle is used.
        memory_mib: the guest's memory.
        append: more arguments for the kernel.

    Raises:
        CasemateError: it did not come up, or what was run in it failed.
    """
    seen = Seen()
    identifier = ids.new_id()
    run_path = config.run / ids.short(identifier)
    ended = threading.Event()
    ends: list[ProcessExit] = []

    def exited(_id: str, _exec_id: str | None, end: ProcessExit) -> None:
        seen.host["exited"] = time.monotonic()
        ends.append(end)
        ended.set()

    def progress(what: str) -> None:
        if what == "guest":
            seen.host["answered"] = time.monotonic()

    machine = Machine(
        config, identifier, run_path, run_path, memory_mib=memory_mib, cpus=None, on_exit=exited,
        on_oom=lambda _: None, progress=progress, hypervisor=_Watched(drivers.driver(config), tuple(append), seen),
    )  # fmt: skip
    try:
        machine.prepare()
        _root(run_path / share.SHARE / share.ROOT_NAME)
        netns = network.isolated()
        try:
            devices = [machine.serve_files(files.TAG, run_path / share.SHARE, files.ROOT_KEEP)]
            machine.take_turn()
            machine.boot(netns, devices)
        finally:
            os.close(netns)
        seen.host["hello"] = time.monotonic()
        seen.cpu = _computed(machine.vm().pid)
        streams = machine.calls.begin(
            (identifier, None), "container.run", _request(identifier), terminal=False, stdin=False, size=None
        )
        if not ended.wait(PATIENCE):
            raise ContainerError(f"the container did not end within {PATIENCE:g} s")
        for stream in (streams.stdout, streams.stderr):
            if stream is not None:
                stream.close()
        if ends[0].status != 0:
            raise ContainerError(f"the container failed: {ends[0].error or f'exit status {ends[0].status}'}")
        _synchronise(machine, seen)
        answer = machine.calls.call("sandbox.boot", {"log": True})
        seen.marks, seen.log = _marks(answer), str(answer.get("log", ""))
        machine.learn()
        seen.facts = {**machine.info(), **{key: answer.get(key) for key in ("mem_total", "mem_available")}}
        asked = time.monotonic()
    finally:
        machine.close()
        shutil.rmtree(run_path, ignore_errors=True)
        uids.release(identifier, config)
    seen.host["closed"] = seen.host["exited"] + time.monotonic() - asked
    return seen


def _computed(pid: int) -> float:
    """Milliseconds that all threads of a process have computed. Source: ``proc_pid_schedstat`` of the kernel."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e6


def _root(root: Path) -> None:
    """A root filesystem with a shell's commands, and nothing else."""
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox.find(), root / "bin" / "busybox")
    (root / "bin" / "true").symlink_to("busybox")


def _request(identifier: str) -> dict[str, Any]:
    oci = spec.build(ImageConfig(), spec.Wishes(command=("/bin/true",), hostname="boot-chart"))
    oci["root"] = {**oci.get("root", {}), "path": f"{share.GUEST_PATH}/{share.SHARE}/{share.ROOT_NAME}"}
    return {
        "id": identifier, "spec": oci, "user": "", "files": [], "memory": None,
        "sandbox": {"hostname": "boot-chart", "interfaces": [], "time_ns": time.time_ns()},
    }  # fmt: skip


def _synchronise(machine: Machine, seen: Seen) -> None:
    best = float("inf")
    for _ in range(SYNCS):
        sent = time.monotonic()
        now = machine.calls.call("sandbox.boot", {"log": False}).get("now")
        heard = time.monotonic()
        if type(now) is not int or not 0 <= now < 1 << 63:
            raise AgentError("the guest does not know the time", "its agent is of another version")
        if heard - sent < best:
            best, seen.guest = heard - sent, (sent + heard) / 2 - now / 1e9


def _marks(answer: dict[str, Any]) -> list[tuple[str, int]]:
    """The agent's marks, as far as they are any."""
    found = []
    listed = answer.get("marks")
    for entry in listed[:64] if isinstance(listed, list) else ():
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and type(entry[1]) is int:
            found.append((entry[0], entry[1]))
    return found

"""A machine that waits for its sandbox: restored, with file servers and network, and *warm*.

Under emulation every piece of code is translated when it is executed for the first time, and a machine that was just
made has nothing translated. So a machine that is made ahead of its need is taken through a start before: a container
with a program of a few instructions is made in it, by the same requests as any other, and removed again. It has no
secrets and no name, and leaves nothing but what its guest's kernel and agent have learnt.

Nothing of it serves two sandboxes. The guest's random numbers are seeded anew twice, before the warm-up and with the
container that comes, so what it draws is no other machine's. The identifier that the machine is born with is that of
the container that it will get: addresses, user id, control group and directories are named after it from the start.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from casemate.config import Config
from casemate.config import machine as architecture
from casemate.errors import CasemateError, HypervisorError, TemplateError
from casemate.host import cgroups, network, syscalls
from casemate.oci import spec
from casemate.oci.imageconfig import ImageConfig
from casemate.sandbox import ProcessExit
from casemate.vm import files, warmup
from casemate.vm.hypervisor import base
from casemate.vm.machine import MAX_TASKS, Machine
from casemate.vm.sandbox import interface
from casemate.vm.template import store
from casemate.wall import share, trees

WARM = "warm-up"
"""The throw-away container's name in the guest."""
ROUNDS = 2
"""How often the guest is taken through a start: what the first round leaves for later, the second finds."""
WARM_SECONDS = 3600
"""How long each step until it waits may take: it gets what processor time others leave, and the pool sees to it that
something goes on (:mod:`casemate.pool.daemon`)."""
NET = "net0"
OOM_SCORE = 500
"""While it waits: where the host is out of memory, this is the first to go (proc(5), ``oom_score_adj``)."""
FIRST_MIB = 256
"""Most memory of a machine that waits; one that is asked for more gets it when it is handed over, which takes no
time that could be measured."""
_SEE = "see: casemate template list"


class Waiting:
    """A machine without a container.

    Arguments:
        config: the configuration in force.
        identifier: of the container that it will get.
        directory: where its logs are kept.
        memory_mib: how much memory it has to begin with.
        ended: called once when the machine ends while it waits.
        hypervisor: the driver to use; the configured one when None.
        vcpus: how many processors it has; as configured when None.
    """

    def __init__(
        self,
        config: Config,
        identifier: str,
        directory: Path,
        run_path: Path,
        memory_mib: int,
        ended: Callable[[str], None],
        hypervisor: base.Hypervisor | None = None,
        vcpus: int | None = None,
    ) -> None:
        self.config = config
        self.identifier = identifier
        self.run_path = run_path
        self.net: network.SandboxNet | None = None
        self.on_exit: Callable[[str, str | None, ProcessExit], None] = self._exited
        self.on_oom: Callable[[str], None] = lambda id: None
        self.progress: Callable[[str], None] = lambda what: None
        self._directory = directory
        self._ended = ended
        self._warmed = threading.Event()
        self._end: ProcessExit | None = None
        self._heir = False
        self.machine = Machine(
            replace(config, boot_timeout=WARM_SECONDS), identifier, directory, run_path,
            memory_mib=memory_mib, cpus=vcpus,
            on_exit=lambda id, exec_id, end: self.on_exit(id, exec_id, end),
            on_oom=lambda id: self.on_oom(id),
            on_end=self._gone,
            progress=lambda what: self.progress(what),
            hypervisor=hypervisor,
            hint="end it with 'casemate rm -f'",
            oom_score_adj=OOM_SCORE,
        )  # fmt: skip
        self.machine.calls.timeout = WARM_SECONDS

    # ---- birth

    def come_up(self) -> None:
        """Make the machine and what it needs on the host.

        Raises:
            CasemateError: what stood in the way; :meth:`close` then gives back what was already there.
        """
        config, machine = self.config, self.machine
        machine.cgroup = cgroups.Cgroup.create(
            self.identifier, memory=(machine.memory_mib + config.overhead) << 20, pids=MAX_TASKS
        )
        machine.cgroup.weigh(idle=True)
        machine.procs = machine.cgroup.procs_files()
        machine.cgroup.add(os.getpid())
        machine.prepare()
        machine.choose()
        if not machine.restores:
            raise TemplateError(f"there is no template for it: {machine.info().get('template')}", _SEE)
        self.net = network.setup(self.identifier, config)
        trees.make(self.run_path)
        devices: list[base.Device] = [
            machine.serve_files(files.TAG, self.run_path / share.SHARE, files.ROOT_KEEP),
            machine.serve_files(files.VOLUMES_TAG, self.run_path / share.VOLUMES, 0),
        ]
        machine.boot(self.net.netns_fd, devices)
        if machine.late is None:
            reason = machine.info().get("template")
            raise TemplateError(f"the machine had to boot, and only one from a template can wait: {reason}", _SEE)
        machine.end_turn()  # others need not get warm where there is one to copy

    # ---- warm-up

    def warm(self, *, learn: bool = True, linger: float = 0.0, rounds: int = ROUNDS) -> None:
        """Take the guest through a start.

        Arguments:
            learn: ask it what it is when that is done.
            linger: seconds that the last container goes on: the guest then comes to what it does late, too.
            rounds: how often.

        Raises:
            CasemateError: it does not come through it.
        """
        net = self.net
        assert net is not None  # it has come up
        root = self._directory / WARM
        for seconds in (*(0.0,) * (rounds - 1), linger):
            try:
                _make_root(root, seconds)  # its files are others each time: the guest is to read them
                self.machine.vm().add_device(base.Net(NET, net.mac, os.dup(net.tap_fd), net.mtu))
                self._round(root, net)
                self.machine.vm().remove_device(NET)
            finally:
                shutil.rmtree(root, ignore_errors=True)
        if learn:
            self.machine.learn()

    def _round(self, root: Path, net: network.SandboxNet) -> None:
        calls = self.machine.calls
        self._warmed.clear()
        tree = syscalls.open_tree(syscalls.AT_FDCWD, str(root), syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC)
        trees.attach(self.run_path, WARM, tree, None)
        oci = spec.build(ImageConfig(), spec.Wishes(command=("/bin/true",), hostname=WARM), architecture())
        oci["root"] = {**oci.get("root", {}), "path": f"{share.GUEST_PATH}/{share.SHARE}/{WARM}"}
        request = {
            "id": WARM,
            "spec": oci,
            "user": "0:0",
            "files": [
                {"path": path, "mode": 0o644, "content": "127.0.0.1\tlocalhost\n"}
                for path in ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
            ],
            "memory": None,
            "sandbox": {
                "hostname": WARM,
                "interfaces": [interface(net)],
                "time_ns": time.time_ns(),
                "entropy": base64.b64encode(os.urandom(64)).decode(),
                "shares": self.machine.late,
            },
        }
        try:
            streams = calls.begin((WARM, None), "container.run", request, terminal=False, stdin=True, size=None)
            for stream in (streams.stdin, streams.stdout, streams.stderr):
                assert stream is not None
                if stream is not streams.stdin:
                    while stream.recv():
                        pass
                stream.close()
            if not self._warmed.wait(WARM_SECONDS) or self._end is None or self._end.status != 0:
                raise HypervisorError(f"a machine did not get warm: {self._end or 'no answer'}")
            calls.call("container.delete", {"id": WARM})
            calls.call("sandbox.blank", store.prepared())  # this round's container had the one there was
        finally:
            trees.detach(self.run_path, WARM)
        calls.call("sandbox.refresh", {})

    def _exited(self, id: str, exec_id: str | None, end: ProcessExit) -> None:
        self._end = end
        self._warmed.set()

    # ---- the sandbox comes

    def hand_over(
        self,
        on_exit: Callable[[str, str | None, ProcessExit], None],
        on_oom: Callable[[str], None],
        progress: Callable[[str], None],
    ) -> Machine:
        """Give the machine to a sandbox, which owns it from here on, and its processes their share of the processors.

        Arguments:
            on_exit, on_oom, progress: see :class:`casemate.vm.machine.Machine`.
        """
        self._heir = True
        self.on_exit, self.on_oom, self.progress = on_exit, on_oom, progress
        group = self.machine.cgroup
        assert group is not None  # it has come up
        group.weigh(idle=False)
        self.machine.calls.timeout = self.config.call_timeout
        for pid in group.processes():
            favour(pid)
            with contextlib.suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "r+") as file:
                if int(file.read()) == OOM_SCORE:
                    file.seek(0)
                    file.write("0")
        return self.machine

    def drop_network(self) -> None:
        """Give back what leads to the host's network, for a sandbox without one.

        Raises:
            CasemateError: something would not go; what is left goes with the sandbox.
        """
        if self.net is not None:
            os.close(self.net.tap_fd)
            self.net = replace(self.net, tap_fd=-1)
        network.teardown(self.identifier, self.config)

    # ---- ends

    def _gone(self, end: ProcessExit) -> None:
        if not self._heir:
            self._ended(end.error)

    def close(self) -> None:
        """End the machine and take down what it was shown."""
        self.machine.close()
        if self.net is not None:
            for fd in (self.net.tap_fd, self.net.netns_fd):
                if fd >= 0:
                    os.close(fd)
            self.net = None
        with contextlib.suppress(CasemateError):
            trees.remove(self.run_path)


def first_mib(config: Config) -> int:
    """How much memory a machine has while it waits."""
    return min(config.memory, FIRST_MIB)


def favour(pid: int) -> None:
    """Take back that a process and its threads are to be nice (``setpriority(2)``: of one thread each)."""
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, int(name), 0)


def _make_root(root: Path, seconds: float) -> None:
    """A root filesystem for the program by which a machine gets warm (:func:`casemate.vm.warmup.build`)."""
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "run"):
        (root / name).mkdir(parents=True)
    program = root / "bin" / "true"
    program.write_bytes(warmup.build(seconds))
    program.chmod(0o755)

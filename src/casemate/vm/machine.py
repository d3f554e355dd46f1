"""One virtual machine with all that belongs to it: console, file servers, user id, turn at booting, link to its agent.

:class:`casemate.vm.sandbox.VmSandbox` puts one container into it, :class:`casemate.vm.pod.VmPod` many.

Its life::

    prepare()                  what there is to run, and as whom
    serve_files(...)           a device for each tree
    take_turn()
    boot(netns, devices)       the agent has said hello
    calls.begin(...) ...       requests; on_exit, on_oom
    on_end                     it ended by itself, after the last on_exit
    flush(), close()

Whoever holds it may close it at any time: one who boots meanwhile finds that at his next step, and has to close again
what he made since.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casemate import ids
from casemate.config import TEMPLATE_MIB, Config
from casemate.errors import CasemateError, HypervisorError, TemplateError
from casemate.host import namespaces, uids
from casemate.host.cgroups import Cgroup
from casemate.ksm.kick import kick
from casemate.protocol.link import CLOSED
from casemate.protocol.wire import SAME_PROFILE, LinkError
from casemate.sandbox import ProcessExit
from casemate.vm import boots, files, guest, template, transport, twins, window
from casemate.vm.devices import Coming, close_devices
from casemate.vm.hypervisor import base, drivers, probe
from casemate.wall import facts
from casemate.wall.calls import ERRORS, Calls, line
from casemate.wall.console import Console
from casemate.wall.launch import Process, exit_text

if TYPE_CHECKING:
    from casemate.vm.template.use import Ready

MAX_TASKS = 4096
"""Processes and threads of a sandbox on the host: far more than the keeper's clients and the VMM's devices need, and
what somebody who has broken out of the machine can make at most."""
FLUSH_SECONDS = 10.0
END_SECONDS = 10.0
"""How long a killed process may take to end before the machine is given up without it."""
LAST_WORDS_SECONDS = 2.0
"""How long what a machine said before its end may take to be heard."""
NO_TEMPLATE = "none for this memory and these processors"
_FACTS: Mapping[str, type] = {
    "kernel": str, "uptime_ms": int, "mem_total": int, "boot_id": str, "agent_version": str, "python": str,
}  # fmt: skip
"""What is believed of a guest's word on itself, and of what type."""


class Machine:
    """A virtual machine and its helpers. Methods may be called from any thread once :meth:`boot` has returned.

    Arguments:
        config: the configuration in force.
        identifier: the sandbox's id.
        directory: where its logs are kept.
        run_path: its run directory, made where it is missing.
        memory_mib, cpus: the guest's memory, and processors such as 1.5 (the configured number when None).
        on_exit: called once for every process that was started: its container, its exec id, and how it ended.
        on_oom: called when something in a container was killed for want of memory.
        on_end: called once when a machine that has booted ended by itself, after all calls of ``on_exit``.
        progress: told what is being done.
        hypervisor: the driver to use; the configured one when None.
        errors, hint: see :class:`casemate.wall.calls.Calls`.
        oom_score_adj: of the VMM.
    """

    def __init__(
        self,
        config: Config,
        identifier: str,
        directory: Path,
        run_path: Path,
        *,
        memory_mib: int,
        cpus: float | None,
        on_exit: Callable[[str, str | None, ProcessExit], None],
        on_oom: Callable[[str], None],
        on_end: Callable[[ProcessExit], None] = lambda end: None,
        progress: Callable[[str], None] = lambda what: None,
        hypervisor: base.Hypervisor | None = None,
        errors: Mapping[str, type[CasemateError]] = ERRORS,
        hint: str = "",
        oom_score_adj: int = 0,
    ) -> None:
        self.config = config
        self.identifier = identifier
        self.directory = directory
        self.run_path = run_path
        self.memory_mib = memory_mib
        self.vcpus = max(1, -int(-cpus // 1)) if cpus else config.vcpus
        self.calls = Calls(config.call_timeout, on_exit, on_oom, self.why, errors, hint)
        self.cgroup: Cgroup | None = None
        """The control group whose figures are the machine's."""
        self.procs: tuple[Path, ...] = ()
        """The ``cgroup.procs`` files that its processes join; to be set before there are any, like the group."""
        self.closed = False
        self._on_end = on_end
        self._oom_score_adj = oom_score_adj
        self._progress = progress
        self._hypervisor = hypervisor or drivers.driver(config)
        self._lock = threading.Lock()
        self._closing = threading.Lock()
        self._gone = threading.Event()
        self._heard = threading.Event()
        self._booted = False
        self._over = False
        self._flushed = False
        self._turn: boots.Turn | None = None
        self._files: list[Process] = []
        self._console: Console | None = None
        self._vm: base.Vm | None = None
        self._uid = -1
        self._bundle: guest.GuestBundle | None = None
        self._accelerator = base.Accelerator.TCG
        self._reason = ""
        self._kills = 0
        self._facts: dict[str, Any] = {}
        self._coming: Coming | None = None
        self._template: Ready | None = None
        self._awaited: template.Class | None = None
        """What a template is being made for."""
        self._twin: twins.Taken | None = None
        self._class: template.Class | None = None
        """Of what class of templates it can be made."""
        self._wanted: twins.Kind | None = None
        """Of what kind of machine it can be a copy."""
        self._lacks: twins.Kind | None = None
        """The same, where there is none to be copied."""
        self._put_off = False
        """It is chosen later what it is made of."""
        self._parted = False
        """Its file servers are being taken away, so that their end is none of the machine's."""
        self.hello: dict[str, Any] = {}
        """What the agent has said of itself."""
        self.known = False
        """Whether its guest need not be asked what it is."""
        self._maker = -1
        """Whoever makes a template in the background begins when this is closed."""
        self._growth_mib = 0
        """How much memory the guest can have beside a template's."""
        self._growing = threading.Lock()
        self.late: dict[str, Any] | None = None
        """What the agent is to be told of what was plugged in, with the first container; None after a boot."""

    # ---- birth

    def prepare(self) -> None:
        """Find out what is to be run, and lease a user id for it.

        Raises:
            CasemateError: there is no guest, or no way to run it.
        """
        self._bundle = guest.find(self.config.root, self.config.guest)
        choice = probe.choose(self.config)
        self._accelerator = choice.accelerator
        self._facts = {
            "accelerator": choice.accelerator.value,
            "accelerator_reason": choice.reason,
            "bundle": self._bundle.digest,
        }
        self.run_path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._uid = uids.lease(self.identifier, self.config)
        if not self._hypervisor.saves or not self.config.templates:
            return
        self._class = template.class_of(self._accelerator, self.memory_mib, self.vcpus)
        if self._class is None:
            self._facts["template"] = NO_TEMPLATE
            return
        self._wanted = self._twin_kind(self._bundle, self._class)
        self._put_off = self._wanted is not None and twins.offered(self.config, self._wanted)
        if not self._put_off:
            self._lacks = self._wanted
            self._template = self._open_template(self._class)

    def choose(self) -> None:
        """Get what the machine is to be made of, where that was put off until it can be made: of those that wait for
        their turn nobody is to ask for a copy, or there would be as many at once as wait. :meth:`take_turn` does it."""
        put_off, self._put_off = self._put_off, False
        if put_off and self._class is not None and self._wanted is not None:
            self._twin = twins.take(self.config, self._wanted)
            if self._twin is not None:
                self._facts.update(template=ids.short(self._wanted.key), twin=True)
            else:
                self._lacks = self._wanted
                self._template = self._open_template(self._class)

    @property
    def restores(self) -> bool:
        """Whether there is a machine or a template that it is to be made of; known once that is chosen."""
        return self._twin is not None or self._template is not None

    def step(self, what: str) -> None:
        """Tell what comes next.

        Raises:
            HypervisorError: somebody has closed the machine meanwhile.
        """
        if self.closed:
            raise HypervisorError("the sandbox was closed while it came up")
        self._progress(what)

    def serve_files(self, tag: str, tree: Path, keep: int) -> base.SharedFs:
        """Start a file server, and watch over it; the device that shows its files to the guest.

        Arguments:
            tag: what the guest mounts.
            tree: a directory in this process's mount namespace.
            keep: see :func:`casemate.vm.files.start`.

        Raises:
            CasemateError: it does not start.
        """
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            messages = Console(reader, self.directory / f"{tag}.log")  # bounded: the guest can make it complain
            server, fd = files.start(self.config, tree, keep, self.run_path, writer, self.procs)
        finally:
            os.close(writer)
        self._files.append(server)
        threading.Thread(target=self._watch_files, args=(server, messages), name="files", daemon=True).start()
        return base.SharedFs(tag, fd, id=tag)

    def _serve(self, trees: Sequence[tuple[str, Path, int]]) -> list[base.Device]:
        made: list[base.Device] = []
        try:
            for tree in trees:
                made.append(self.serve_files(*tree))
        except BaseException:
            close_devices(made)
            raise
        return made

    def serve_later(self, trees: Sequence[tuple[str, Path, int]]) -> Coming:
        """As :meth:`serve_files` for each, while the caller goes on; what it gives is for :meth:`boot`."""
        self._coming = Coming(lambda: self._serve(trees))
        return self._coming

    def take_turn(self) -> None:
        """Wait until few enough machines boot at the same time. :meth:`end_turn` and :meth:`close` give it back."""
        self._turn = boots.take(
            self.config, self.identifier, lambda: self._progress("waiting for a turn"), self._gone
        )
        self.choose()
        if self._awaited is not None and self._template is None:
            self._look_again(self._awaited)

    def _look_again(self, kind: template.Class) -> None:
        """Take the template that was still being made when this machine began to wait for its turn."""
        bundle = self._bundle
        assert bundle is not None  # prepare() has found it
        from casemate.vm.template import use

        try:
            self._template = use.look(self.config, bundle, kind, self.identifier)
        except TemplateError as error:
            self._boot_after_all(error)
        if self._template is not None:
            self._facts["template"] = ids.short(self._template.key)

    def end_turn(self) -> None:
        """Let the next one boot, and who is to make a template or an original begin; nothing when that was done."""
        if self._turn is not None:
            self._turn.end()
        with self._lock:
            maker, self._maker = self._maker, -1
            lacks, self._lacks = self._lacks, None
        if maker >= 0:
            os.close(maker)
        if lacks is not None and self._facts.get("template") == ids.short(lacks.key):
            twins.begin(self.config, lacks)  # from the template, which is there

    def boot(
        self, netns: int, devices: Sequence[base.Device], *, slots: int = 0, slotted: Sequence[base.Device] = (),
        coming: Coming | None = None,
    ) -> None:  # fmt: skip
        """Start the machine and wait for its agent.

        Arguments:
            netns: the network namespace for the VMM; not closed.
            devices: shared file systems, disks and interfaces; their descriptors belong to the machine, whatever
                happens.
            slots: how many devices can be plugged in later; with those that can be plugged out.
            slotted: devices that can be plugged out; theirs, too.
            coming: more devices, for which a machine that comes from another one need not wait to begin.

        Raises:
            CasemateError: what stood in the way; :meth:`close` then gives back what was already there.
        """
        owned: list[base.Device] = [*devices, *slotted]
        jail = base.Confinement(
            uid=self._uid,
            gid=self._uid,
            cgroup_procs=self.procs,
            netns_fd=netns,
            oom_score_adj=self._oom_score_adj,
        )
        try:
            restored = self._restore(jail)
        except BaseException:
            close_devices(owned)
            raise
        if coming is not None:
            try:
                more = coming.get()
            except BaseException:
                close_devices(owned)
                raise
            devices = [*devices, *more]
            owned += more
        if restored:
            self._plug(owned)
        else:
            self._boot(jail, devices, slots, slotted)
        if self.config.ksm != "off":
            kick(self.config.run)
        with self._lock:
            self._booted = not self._over
        if not self._booted:
            raise HypervisorError(f"the guest did not come up: {self.why('it is gone')}")

    def _boot(
        self, jail: base.Confinement, devices: Sequence[base.Device], slots: int, slotted: Sequence[base.Device]
    ) -> None:
        """Start a guest from its kernel, and greet its agent; owns the devices' descriptors."""
        bundle = self._bundle
        assert bundle is not None  # prepare() has returned
        owned: list[base.Device] = [*devices, *slotted]
        try:
            console = self._new_console()
            owned.append(console)
            way = transport.choose(self.config)
            owned.append(way.device)
            spec = base.VmSpec(
                name=f"casemate-{ids.short(self.identifier)}",
                kernel=bundle.kernel,
                initrd=bundle.initrd,
                cmdline=(*bundle.cmdline(self._accelerator.value), *way.cmdline),
                memory_mib=self.memory_mib,
                vcpus=self.vcpus,
                shared_memory=True,
                accelerator=self._accelerator,
                devices=(
                    base.Block("casemate-root", bundle.root),
                    console,
                    way.device,
                    *devices,
                    base.Rng(),
                    base.Balloon(),
                    *slotted,
                ),
                log=self.directory / "vmm.log",
                hotplug_slots=slots,
                slotted=tuple(device.id for device in slotted),
                mergeable=self.config.ksm != "off",
            )
        except BaseException:
            close_devices(owned)
            raise
        self._kills = self._oom_kills()
        self._vm = self._hypervisor.create(spec, jail)
        self._vm.on_exit(self._ended)
        try:
            self._vm.start()
        except HypervisorError as error:
            raise HypervisorError(self._reason or error.message, error.hint) from None
        try:
            link_fd = way.connect(self.config.boot_timeout, self._gone)
        except HypervisorError as error:
            raise HypervisorError(self.why(error.message)) from None
        self.step("guest")
        try:
            hello = self.calls.connect(link_fd, self.config.boot_timeout, self._link_closed)
        except LinkError as error:
            raise HypervisorError(f"the guest did not come up: {self.why(str(error))}") from None
        self._facts["agent"] = line(str(hello.get("version")), 64)

    def _new_console(self) -> base.SerialConsole:
        ours, theirs = socket.socketpair()
        self._console = Console(ours.detach(), self.directory / "console.log")
        return base.SerialConsole(theirs.detach())

    def _twin_kind(self, bundle: guest.GuestBundle, kind: template.Class) -> twins.Kind | None:
        if not self._hypervisor.copies or not twins.possible(self.config, self._accelerator):
            return None
        from casemate.vm.template import store

        key = store.key(self.config, bundle, kind)
        return twins.kind(self.config, key, self.memory_mib, self.vcpus)

    def _open_template(self, kind: template.Class) -> Ready | None:
        """What the machine can be made of, or None, and why is among the facts."""
        bundle = self._bundle
        assert bundle is not None  # prepare() has found it
        from casemate.vm.template import background, use

        netns = namespaces.new_netns()
        try:
            # Where there is none yet, a guest boots to be saved: nobody's, so in nobody's control group.
            jail = base.Confinement(uid=self._uid, gid=self._uid, netns_fd=netns, oom_score_adj=self._oom_score_adj)
            ready = use.get(self.config, bundle, kind, jail, self._hypervisor, self.identifier, self._progress)
        except TemplateError as error:
            self._boot_after_all(error)
            return None
        finally:
            os.close(netns)
        if isinstance(ready, background.Pending):
            self._facts["template"] = f"{NO_TEMPLATE}: {line(ready.state, 200)}"
            self._maker = ready.start
            self._awaited = kind
            return None
        self._facts["template"] = ids.short(ready.key)
        return ready

    def _grown_mib(self) -> int:
        step = base.GROW_STEP_MIB
        return -(-(self.memory_mib - TEMPLATE_MIB) // step) * step

    def _boot_after_all(self, error: Exception) -> None:
        self._facts["template"] = f"not used: {line(str(error), 200)}"
        self._progress(f"booting, because the template cannot be used: {error}")

    def _restore(self, jail: base.Confinement) -> bool:
        """Make the guest from another one: a twin, or from its template; False where it has to boot."""
        if self._twin is not None:
            try:
                return self._copy(jail, self._twin)
            except (HypervisorError, LinkError) as error:
                self._facts.pop("twin")
                self._progress(f"making the machine from its template, because it cannot be a copy: {error}")
            assert self._class is not None  # or there were no twin
            self._template = self._open_template(self._class)
        if self._template is None:
            return False
        try:
            return self._remake(jail, self._template)
        except (HypervisorError, LinkError) as error:
            # Without a template a machine only comes up later.
            self._boot_after_all(error)
            self.step("machine")
            return False

    def _copy(self, jail: base.Confinement, taken: twins.Taken) -> bool:
        from casemate.vm.hypervisor.qemu_twins import Twin

        image = base.Image(None, taken.window, template.WINDOW_MIB)
        way = transport.Serial()
        spec = self._remade_spec(image, way)
        self._kills = self._oom_kills()
        taken.given = True
        vm = Twin(taken.unborn, taken.numbers, spec, jail)
        self._begin(vm, way, taken.hello, taken.channels, taken.memory_mib)
        if taken.memory_mib == self.memory_mib:
            self.believe(taken.facts)
            self.known = True
        return True

    def _remake(self, jail: base.Confinement, ready: Ready) -> bool:
        way = transport.Serial()
        spec = self._remade_spec(ready.image, way)
        self._kills = self._oom_kills()
        ready.given = True
        self._begin(self._hypervisor.create(spec, jail), way, ready.hello, 0, TEMPLATE_MIB)
        return True

    def _remade_spec(self, image: base.Image, way: transport.Serial) -> base.VmSpec:
        from casemate.vm.template import making

        bundle, kind = self._bundle, self._class
        assert bundle is not None and kind is not None  # or there were nothing to make it from
        return making.machine_spec(
            bundle, kind, image, way.device, self._new_console(), f"casemate-{ids.short(self.identifier)}",
            self.directory / "vmm.log", mergeable=self.config.ksm != "off",
        )  # fmt: skip

    def _begin(
        self, vm: base.Vm, way: transport.Serial, hello: dict[str, Any], channels: int, has_mib: int
    ) -> None:
        """Start a machine that comes from another one, and go on with its agent.

        Arguments:
            hello, channels: of the agent's link to another host, see :meth:`casemate.wall.calls.Calls.resume`.
            has_mib: how much memory it has.
        """
        assert self._class is not None  # see above
        try:
            vm.start()
            if self.memory_mib > has_mib:
                vm.grow(self._grown_mib())
            link = way.connect(self.config.boot_timeout, self._gone)
            self.calls.resume(link, hello, self._link_closed, channels)
        except BaseException:
            vm.kill()
            vm.wait(END_SECONDS)
            raise
        self._vm = vm
        self._growth_mib = self._class.growth_mib
        vm.on_exit(self._ended)
        self.hello = hello
        self._facts["agent"] = line(str(hello.get("version")), 64)

    def _plug(self, devices: Sequence[base.Device]) -> None:
        """Give a machine that came from a template what belongs to its sandbox; owns the devices' descriptors."""
        left = list(devices)
        try:
            size = template.WINDOW_MIB << 20
            start = (TEMPLATE_MIB << 20) - size
            tags = []
            while left:
                device = left.pop(0)
                if isinstance(device, base.SharedFs):
                    tags.append(device.tag)
                    device = replace(device, fd=window.guard(device.fd, start, size, self._broken_off))
                self.vm().add_device(device)
            self.late = template.shares(tags, self._grown_mib())
        except BaseException:
            close_devices(left)
            raise

    def shortened(self, oci: dict[str, Any]) -> dict[str, Any]:
        """A specification as this machine's guest need be told it: what it was prepared with, it has already."""
        linux = oci.get("linux", {})
        if self.late is None or self.hello.get("prepared") is not True or not linux.get("seccomp"):
            return oci
        from casemate.vm.template import store

        if linux["seccomp"] != store.blank_spec()["linux"]["seccomp"]:  # which the template's key depends on
            return oci
        return {**oci, "linux": {**linux, "seccomp": SAME_PROFILE}}

    def _broken_off(self, reason: str) -> None:
        """A file server's connection ended: the guest waits for its files for ever."""
        if self.closed or self._parted:
            return
        with self._lock:
            self._reason = self._reason or reason
        if self._vm is not None:
            self._vm.kill()

    def drop_files(self) -> None:
        """Take the shared file systems away, which the guest has unmounted, and end their servers.

        Raises:
            HypervisorError: the guest does not let one go.
        """
        self._parted = True
        assert self.late is not None  # only a machine that comes from another one has them plugged in
        for tag in self.late["tags"]:
            self.vm().remove_device(tag)
        servers, self._files = self._files, []
        for server in servers:
            server.kill()
            server.wait(END_SECONDS)
            server.close()

    def why(self, said: str) -> str:
        """The best reason known for a guest's silence.

        Arguments:
            said: what the link says of it.
        """
        if self._vm is not None and (end := self._vm.wait(1.0)) is not None:
            last = self._last_line()
            reason = self._told(end)
            return f"{reason}; its console says: {last}" if last else reason
        return said

    def _told(self, end: base.VmExit) -> str:
        """Why the machine ended: what made this side kill it, if it was killed."""
        return self._reason if self._reason and end.cause is base.ExitCause.STOPPED else end.reason

    def _last_line(self) -> str:
        if self._console is None:
            return ""
        self._console.join(1.0)
        return self._console.last_line()

    # ---- life

    def vm(self) -> base.Vm:
        """The VMM.

        Raises:
            HypervisorError: there is none yet.
        """
        if self._vm is None:
            raise HypervisorError("the sandbox has not been booted")
        return self._vm

    def grow(self, memory_mib: int, *, partly: bool) -> int:
        """Give the guest more memory, where the machine has room for it; one that has booted has none.

        Arguments:
            memory_mib: how much in all.
            partly: give it what there is room for, where that is less; else none.

        Returns:
            how much it has then.

        Raises:
            CasemateError: the guest does not take it. The machine may use it all the same.
        """
        with self._growing:
            wanted = min(memory_mib, TEMPLATE_MIB + self._growth_mib)
            if wanted > self.memory_mib and (partly or wanted == memory_mib):
                self.memory_mib = wanted
                self.vm().grow(self._grown_mib())
                self.calls.call("sandbox.grow", {"grown": self._grown_mib()})
            return self.memory_mib

    def grow_late(self, memory_mib: int) -> None:
        """As :meth:`grow`, for a machine that has no container yet: the guest waits for it with the first one.

        Raises:
            HypervisorError: there is no room for so much.
        """
        self.memory_mib = memory_mib
        self.vm().grow(self._grown_mib())
        if self.late is not None:
            self.late["grown"] = self._grown_mib()

    def learn(self) -> None:
        """Ask the guest what it is, for :meth:`info`; what it does not tell stays out."""
        with contextlib.suppress(CasemateError):
            self.believe(self.calls.call("sandbox.info", {}))

    def believe(self, said: object) -> None:
        """As :meth:`learn`, of what the guest has said with something else."""
        if isinstance(said, dict):
            self._facts.update(facts.believed(said, _FACTS))

    def info(self) -> dict[str, Any]:
        """What was learnt of the guest, and the ids of the machine's processes."""
        processes = {"keeper": os.getpid()}
        if self._vm is not None:
            processes["vmm"] = self._vm.pid
        for name, server in zip(("files", "volumes"), self._files, strict=False):
            processes[name] = server.pid
        return {**self._facts, "memory_mib": self.memory_mib, "processes": processes}

    def usage(self) -> dict[str, Any]:
        """What the host gives for the machine; nothing where it does not count."""
        return facts.usage(self.cgroup)

    # ---- ends

    def _oom_kills(self) -> int:
        return self.cgroup.oom_kills() if self.cgroup is not None else 0

    def _link_closed(self, reason: str) -> None:
        """The link ended: the guest broke the protocol, or is gone. Either way the machine ends now."""
        self._heard.set()
        with self._lock:
            self._reason = self._reason or reason
        if self._vm is not None and not self.closed:
            # It says better why, if it is at its end by itself. A link that the VMM has closed says that it is, and to
            # give all memory back takes a busy host its time.
            self._vm.wait(END_SECONDS if reason == CLOSED else 0.5)
            self._vm.kill()

    def _ended(self, end: base.VmExit) -> None:
        """Whatever still ran in the guest has ended with it."""
        self._gone.set()
        with self._lock:
            self._over = True
        if self._booted:  # ends that it told of before its own are as it told them
            self._heard.wait(LAST_WORDS_SECONDS)
        self.calls.close(end.reason)
        oom = self._oom_kills() > self._kills
        last = self._last_line()
        if "Out of memory" in last or "deadlocked on memory" in last:
            oom = True
        number = signal.SIGKILL if oom else end.signal
        reason = f"the virtual machine ended: {self._told(end)}"
        if last and not oom and not end.signal:
            reason += f" (console: {last})"
        if oom:
            reason = "out of memory: the sandbox reached its limit"
        final = ProcessExit(128 + number if number else 255, oom=oom, error=reason, signal=number)
        self.calls.end_all(final, LAST_WORDS_SECONDS)
        if self._booted and not self._flushed and not self.closed:
            self._on_end(final)

    def _watch_files(self, server: Process, messages: Console) -> None:
        """A guest without its files is of no use, and would wait for them for ever."""
        code = server.wait()
        if not self.closed and not self._parted:
            how = "" if code is None else f" with {exit_text(code)}"
            messages.join(1.0)
            said = messages.last_line()
            with self._lock:
                self._reason = self._reason or f"the file server died{how}" + (f": {said}" if said else "")
            if self._vm is not None:
                self._vm.kill()

    def flush(self) -> None:
        """Have the guest write everything back; what is mapped and dirty would be lost with the machine."""
        if self.calls.synced:
            self._flushed = True
        elif self.calls.connected:
            self._flushed = True
            with contextlib.suppress(CasemateError):
                self.calls.call("sandbox.shutdown", {}, FLUSH_SECONDS)
            if self.vm().wait(0) is not None:  # it was quicker than its answer: what it said before that counts
                self._heard.wait(LAST_WORDS_SECONDS)

    def close(self) -> bool:
        """End the machine, in whatever state it is; may be called more than once.

        Returns:
            whether all of its processes have ended, so that nobody runs as its user id.
        """
        self.closed = True
        self._gone.set()
        with self._closing:
            over = True
            if self._coming is not None:
                self._coming.drop()
            if self._vm is not None:
                self._vm.kill()
            for server in self._files:
                server.kill()
            if self._vm is not None:  # all of them end at the same time
                over = self._vm.wait(END_SECONDS) is not None
            self.calls.close("the sandbox is closed")
            for server in self._files:
                if server.wait(END_SECONDS) is not None:
                    server.close()
                else:
                    over = False
            if self._template is not None:
                self._template.close()
            if self._twin is not None:
                self._twin.close()
            self._lacks = None  # nothing is begun at the end
            self.end_turn()
        return over

"""A sandbox behind the vm wall: one virtual machine, its file server, its network and the link to the agent in it."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from casemate import __version__, ids
from casemate.config import Config
from casemate.errors import (
    AgentError,
    CasemateError,
    CommandNotExecutable,
    CommandNotFound,
    HypervisorError,
    NotRunning,
    UsageError,
)
from casemate.host import cgroups, dns, network, uids
from casemate.host.ports import PortProxy
from casemate.keeper.store import Container
from casemate.protocol.link import Link
from casemate.protocol.wire import LinkClosed, LinkError, LinkTimeout, RequestFailed
from casemate.sandbox import ProcessExit, ProcessStreams, Sandbox, Stream
from casemate.vm import boots, files, guest, share, transport
from casemate.vm.console import Console
from casemate.vm.hypervisor import base, drivers, probe
from casemate.vm.hypervisor.launch import Process, exit_text

MAX_TASKS = 4096
"""Processes and threads of a sandbox on the host: far more than the keeper's clients and the VMM's devices need, and
what somebody who has broken out of the machine can make at most."""
FLUSH_SECONDS = 10.0
END_SECONDS = 10.0
"""How long a killed process may take to end before the sandbox is given up without it."""
_FACTS: dict[str, type] = {
    "kernel": str, "uptime_ms": int, "mem_total": int, "boot_id": str, "agent_version": str, "python": str,
}  # fmt: skip
"""What is believed of a guest's word on itself, and of what type."""
_AGENT_ERRORS: dict[str, type[CasemateError]] = {
    "not-found": CommandNotFound,
    "not-executable": CommandNotExecutable,
    "bad-user": UsageError,
    "bad-spec": UsageError,
    "no-such-container": NotRunning,
}


class VmSandbox(Sandbox):
    """One container in one virtual machine.

    Arguments:
        config: the configuration in force.
        container: the container; its lock is held by this process.
        on_exit: called once for every started process that ended, see :class:`casemate.sandbox.Sandbox`.
        progress: told what is being done.
        hypervisor: the driver to use; the configured one when None.
    """

    def __init__(
        self,
        config: Config,
        container: Container,
        on_exit: Callable[[str | None, ProcessExit], None],
        progress: Callable[[str], None],
        hypervisor: base.Hypervisor | None = None,
    ) -> None:
        self.config = config
        self.container = container
        self.spec = container.spec
        self.on_exit = on_exit
        self._progress = progress
        self._hypervisor = hypervisor or drivers.driver(config)
        self.memory_mib = self.spec.memory_mib or config.memory
        self._lock = threading.Lock()
        self._closed = False
        self._closing = threading.Lock()
        self._gone = threading.Event()
        self._turn: boots.Turn | None = None
        self._cgroup: cgroups.Cgroup | None = None
        self._files: list[Process] = []
        self._net: network.SandboxNet | None = None
        self._proxy: PortProxy | None = None
        self._console: Console | None = None
        self._vm: base.Vm | None = None
        self._link: Link | None = None
        self._channel = 0
        self._processes: set[str | None] = set()
        self._ended: set[str | None] = set()
        self._reason = ""
        self._guest: dict[str, Any] = {}

    # ---- birth

    def boot(self) -> None:
        """Start the machine and wait for its agent. See :class:`casemate.sandbox.Sandbox`.

        Raises:
            CasemateError: what stood in the way; :meth:`close` then gives back what was already there.
        """
        config, identifier = self.config, self.container.id
        bundle = guest.find(config.root, config.guest)
        choice = probe.choose(config)
        accelerator = choice.accelerator
        self._guest = {
            "accelerator": accelerator.value,
            "accelerator_reason": choice.reason,
            "bundle": bundle.digest,
        }
        run_path = self.container.run_path
        run_path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._cgroup = cgroups.Cgroup.create(
            identifier,
            memory=(self.memory_mib + config.vmm_overhead) << 20,
            cpu_quota=self.spec.cpus,
            pids=MAX_TASKS,
        )
        self._cgroup.add(os.getpid())
        uid = uids.lease(identifier, config)
        self._step("network")
        netns = self._make_network()
        self._step("files")
        share.build(self.container)
        shares = [self._serve_files(files.TAG, run_path / share.SHARE, files.ROOT_KEEP)]
        if share.volumes(self.spec.oci):
            shares.append(self._serve_files(files.VOLUMES_TAG, run_path / share.VOLUMES, 0))
        self._step("turn")
        self._turn = boots.take(config, identifier, lambda: self._progress("waiting for a turn"), self._gone)
        self._step("machine")
        console_ours, console_theirs = socket.socketpair()
        way = transport.choose(config)
        self._console = Console(console_ours.detach(), self.container.path / "console.log")
        devices: list[base.Device] = [
            base.Block("casemate-root", bundle.root),
            base.SerialConsole(console_theirs.detach()),
            way.device,
            *shares,
            base.Rng(),
            base.Balloon(),
        ]
        if self._net is not None:
            devices.append(base.Net("net0", self._net.mac, self._net.tap_fd, self._net.mtu))
        spec = base.VmSpec(
            name=f"casemate-{ids.short(identifier)}",
            kernel=bundle.kernel,
            initrd=bundle.initrd,
            cmdline=(*bundle.cmdline(accelerator.value), *way.cmdline),
            memory_mib=self.memory_mib,
            vcpus=max(1, -int(-self.spec.cpus // 1)) if self.spec.cpus else config.vcpus,
            shared_memory=True,
            accelerator=accelerator,
            devices=tuple(devices),
            log=self.container.path / "vmm.log",
        )
        jail = base.Confinement(uid=uid, gid=uid, cgroup_procs=self._cgroup.procs_files(), netns_fd=netns)
        self._vm = self._hypervisor.create(spec, jail)
        self._vm.on_exit(self._machine_ended)
        try:
            self._vm.start()
        except HypervisorError as error:
            raise HypervisorError(self._reason or error.message, error.hint) from None
        try:
            link_fd = way.connect(config.boot_timeout, self._gone)
        except HypervisorError as error:
            raise HypervisorError(self._why(error.message)) from None
        self._link = Link(
            link_fd, link_fd, role="host", version=__version__, on_event=self._event, on_closed=self._link_closed
        )
        self._step("guest")
        try:
            hello = self._link.start(config.boot_timeout)
        except LinkError as error:
            raise HypervisorError(f"the guest did not come up: {self._why(str(error))}") from None
        self._guest["agent"] = _line(str(hello.get("version")), 64)
        os.close(netns)  # the VMM holds it now
        if self._proxy is not None and self.address:
            self._proxy.start(self.address)

    def _step(self, what: str) -> None:
        """Tell what comes next, unless somebody has closed the sandbox meanwhile."""
        if self._closed:
            raise HypervisorError("the sandbox was closed while it came up")
        self._progress(what)

    def _serve_files(self, tag: str, tree: Path, keep: int) -> base.SharedFs:
        """Start a file server, and watch over it; the device that shows its files to the guest."""
        procs = self._cgroup.procs_files() if self._cgroup is not None else ()
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            messages = Console(reader, self.container.path / f"{tag}.log")  # bounded: the guest can make it complain
            server, fd = files.start(self.config, tree, keep, self.container.run_path, writer, procs)
        finally:
            os.close(writer)
        self._files.append(server)
        threading.Thread(target=self._watch_files, args=(server, messages), name="files", daemon=True).start()
        return base.SharedFs(tag, fd, id=tag)

    def _make_network(self) -> int:
        """Make the sandbox's network namespace and what belongs to it; the namespace's descriptor."""
        if self.spec.network == "none":
            return network.isolated()
        if self.spec.ports:
            self._proxy = PortProxy(self.spec.ports)
            self.ports = self._proxy.ports
        self._net = network.setup(self.container.id, self.config, self.ports)
        self.address = self._net.address
        return self._net.netns_fd

    def _why(self, said: str) -> str:
        """The best reason known for a guest's silence."""
        if self._vm is not None and (end := self._vm.wait(1.0)) is not None:
            if self._console is not None:
                self._console.join(1.0)
            line = self._console.last_line() if self._console is not None else ""
            return f"{end.reason}; its console says: {line}" if line else end.reason
        return said

    def start(self, stdin: bool, size: tuple[int, int] | None) -> ProcessStreams:
        """Make the container and start its first process, in one request. See :class:`casemate.sandbox.Sandbox`."""
        spec = self.spec
        net = self._net
        interfaces = []
        if net is not None:
            interfaces.append(
                {"mac": net.mac, "addresses": [f"{net.address}/32"], "gateway": net.gateway, "mtu": net.mtu}
            )
        request = {
            "id": spec.id,
            "spec": share.guest_spec(self.container),
            "user": spec.user,
            "files": self._etc_files(),
            "memory": None,
            "sandbox": {
                "hostname": spec.hostname,
                "interfaces": interfaces,
                "time_ns": time.time_ns(),
                "entropy": base64.b64encode(os.urandom(64)).decode(),
            },
        }
        streams = self._begin(None, "container.start", request, bool(spec.tty), stdin, size)
        if self._turn is not None:
            self._turn.end()
        with contextlib.suppress(CasemateError):
            self._guest.update(_facts(self._call("sandbox.info", {})))
        return streams

    def _etc_files(self) -> list[dict[str, Any]]:
        spec = self.spec
        hosts = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
        if self.address:
            hosts.append(f"{self.address}\t{spec.hostname}")
        else:
            hosts.append(f"127.0.1.1\t{spec.hostname}")
        content = {"/etc/hosts": "\n".join(hosts) + "\n", "/etc/hostname": spec.hostname + "\n"}
        content["/etc/resolv.conf"] = self._resolver().resolv_conf() if self.address else ""
        return [{"path": path, "mode": 0o644, "content": text} for path, text in content.items()]

    def _resolver(self) -> dns.Dns:
        settings = dns.host_dns()
        return replace(settings, nameservers=self.spec.dns) if self.spec.dns else settings

    # ---- processes

    def exec(
        self, exec_id: str, process: dict[str, Any], user: str, stdin: bool, size: tuple[int, int] | None
    ) -> ProcessStreams:
        """Start another process in the container. See :class:`casemate.sandbox.Sandbox`."""
        request = {"id": self.spec.id, "exec_id": exec_id, "process": process, "user": user}
        return self._begin(exec_id, "container.exec", request, bool(process.get("terminal")), stdin, size)

    def _begin(
        self,
        key: str | None,
        method: str,
        request: dict[str, Any],
        terminal: bool,
        stdin: bool,
        size: tuple[int, int] | None,
    ) -> ProcessStreams:
        streams: dict[str, Stream] = {}
        wanted = ["stdout"] if terminal else ["stdout", "stderr"]
        if stdin:
            wanted.append("stdin")
        link = self._link
        if link is None:
            raise HypervisorError("the sandbox has not been booted")
        try:
            for name in wanted:
                with self._lock:
                    self._channel += 1
                    channel = self._channel
                streams[name] = link.stream(channel)
                request[name] = channel
            request.setdefault("stdin", None)
            request.setdefault("stderr", None)
            request["size"] = list(size) if size and terminal else None
            with self._lock:
                self._processes.add(key)
            self._call(method, request)
        except BaseException as error:
            with self._lock:
                self._processes.discard(key)
            for stream in streams.values():
                stream.close()
            if isinstance(error, LinkError):
                raise NotRunning(f"the sandbox has ended: {error}") from None
            raise
        return ProcessStreams(streams.get("stdin"), streams.get("stdout"), streams.get("stderr"))

    def _call(self, method: str, params: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """One request to the agent, its failures as errors of ours."""
        link = self._link
        if link is None:
            raise HypervisorError("the sandbox has not been booted")
        try:
            return link.call(method, params, timeout or self.config.call_timeout)
        except RequestFailed as error:
            raise _AGENT_ERRORS.get(error.code, AgentError)(_line(error.message, 1000)) from None
        except LinkTimeout as error:
            raise AgentError(f"the guest does not answer ({error})", "end it with 'casemate rm -f'") from None
        except LinkClosed as error:
            raise NotRunning(f"the sandbox has ended: {self._why(str(error))}") from None
        except LinkError as error:
            raise AgentError(f"the agent broke the protocol: {error}") from None

    def signal(self, exec_id: str | None, signum: int) -> None:
        """Send a signal. See :class:`casemate.sandbox.Sandbox`."""
        self._call("process.signal", {"id": self.spec.id, "exec_id": exec_id, "signal": signum, "all": False})

    def resize(self, exec_id: str | None, rows: int, columns: int) -> None:
        """Tell a terminal its size. See :class:`casemate.sandbox.Sandbox`."""
        self._call("process.resize", {"id": self.spec.id, "exec_id": exec_id, "rows": rows, "cols": columns})

    def pause(self) -> None:
        """Stop the machine's processors. See :class:`casemate.sandbox.Sandbox`."""
        self._machine().pause()

    def resume(self) -> None:
        """Let the machine go on. See :class:`casemate.sandbox.Sandbox`."""
        self._machine().resume()

    def _machine(self) -> base.Vm:
        if self._vm is None:
            raise HypervisorError("the sandbox has not been booted")
        return self._vm

    def stats(self) -> dict[str, Any]:
        """The guest's figures, and ``host`` with the control group's. See :class:`casemate.sandbox.Sandbox`."""
        result = self._call("container.stats", {"id": self.spec.id})
        result["limit"] = self.memory_mib << 20
        if self._cgroup is not None:
            usage = self._cgroup.usage()
            result["host"] = {"memory": usage.memory, "memory_peak": usage.memory_peak, "cpu_us": usage.cpu_us}
        return result

    def info(self) -> dict[str, Any]:
        """What was learnt when the guest came up. See :class:`casemate.sandbox.Sandbox`."""
        processes = {"keeper": os.getpid()}
        if self._vm is not None:
            processes["vmm"] = self._vm.pid
        for name, server in zip(("files", "volumes"), self._files, strict=False):
            processes[name] = server.pid
        return {**self._guest, "address": self.address, "memory_mib": self.memory_mib, "processes": processes}

    # ---- ends

    def _event(self, name: str, params: dict[str, Any]) -> None:
        """What the agent tells by itself; it is not to be trusted."""
        if name == "container.oom":
            self.on_oom()
        if name == "process.exited":
            key = params.get("exec_id")
            if key is not None and not isinstance(key, str):
                return
            status, number = params.get("status"), params.get("signal")
            if isinstance(number, int) and 0 < number < 128:
                status = 128 + number
            elif not isinstance(status, int) or not 0 <= status <= 255:
                status = 255
            oom = params.get("oom") is True
            killed = oom and status == 128 + signal.SIGKILL
            error = f"out of memory: the limit is {self.memory_mib} MiB for the whole guest" if killed else ""
            self._process_ended(key, ProcessExit(status, oom=oom, error=error))

    def _process_ended(self, key: str | None, end: ProcessExit) -> None:
        with self._lock:
            if key not in self._processes or key in self._ended:
                return
            self._ended.add(key)
        self.on_exit(key, end)

    def _link_closed(self, reason: str) -> None:
        """The link ended: the guest broke the protocol, or is gone. Either way the machine ends now."""
        with self._lock:
            self._reason = self._reason or reason
        if self._vm is not None and not self._closed:
            self._vm.wait(0.5)  # it says better why, if it is at its end by itself
            self._vm.kill()

    def _machine_ended(self, end: base.VmExit) -> None:
        """Whatever still ran in the guest has ended with it."""
        self._gone.set()
        if self._link is not None:
            self._link.close(end.reason)
        oom = self._cgroup is not None and self._cgroup.oom_kills() > 0
        if self._console is not None:
            self._console.join(1.0)
        line = self._console.last_line() if self._console is not None else ""
        if "Out of memory" in line or "deadlocked on memory" in line:
            oom = True
        status = 137 if oom else 128 + end.signal if end.signal else 255
        killed = end.cause is base.ExitCause.STOPPED
        reason = f"the virtual machine ended: {self._reason if killed and self._reason else end.reason}"
        if line and not oom and not end.signal:
            reason += f" (console: {line})"
        if oom:
            reason = "out of memory: the sandbox reached its limit"
        with self._lock:
            left = self._processes - self._ended
        for key in sorted(left, key=lambda item: item is None):  # the container's own end comes last
            self._process_ended(key, ProcessExit(status, oom=oom, error=reason))

    def _watch_files(self, server: Process, messages: Console) -> None:
        """A guest without its files is of no use, and would wait for them for ever."""
        code = server.wait()
        if not self._closed:
            how = "" if code is None else f" with {exit_text(code)}"
            messages.join(1.0)
            said = messages.last_line()
            with self._lock:
                self._reason = self._reason or f"the file server died{how}" + (f": {said}" if said else "")
            if self._vm is not None:
                self._vm.kill()

    def refresh(self) -> None:
        """Have the guest look at its files again. See :class:`casemate.sandbox.Sandbox`."""
        self._call("sandbox.refresh", {})

    def flush(self) -> None:
        """Have the guest write everything back; what is mapped and dirty would be lost with the machine."""
        link = self._link
        if link is not None and not link.closed:
            with contextlib.suppress(LinkError):
                link.call("sandbox.shutdown", {}, FLUSH_SECONDS)

    def close(self) -> None:
        """End the machine and give everything back. See :class:`casemate.sandbox.Sandbox`.

        One who boots meanwhile finds it closed at its next step, and has to close again what it made since.
        """
        self._closed = True
        self._gone.set()
        with self._closing:
            if self._proxy is not None:
                self._proxy.close()
            if self._vm is not None:
                self._vm.kill()
                self._vm.wait(END_SECONDS)
            if self._link is not None:
                self._link.close("the sandbox is closed")
            for server in self._files:
                server.kill()
                if server.wait(END_SECONDS) is not None:
                    server.close()
            share.unmount(self.container.run_path)


def _line(text: str, limit: int) -> str:
    """A guest's text as at most ``limit`` printable characters of one line."""
    return "".join(character if character.isprintable() else " " for character in text[:limit])


def _facts(said: dict[str, Any]) -> dict[str, Any]:
    """Of what the agent says of its guest, what has the right type and size: it goes into the state on disk."""
    facts: dict[str, Any] = {}
    for key, kind in _FACTS.items():
        value = said.get(key)
        if kind is str and isinstance(value, str):
            facts[key] = _line(value, 128)
        elif kind is int and type(value) is int and 0 <= value < 1 << 63:
            facts[key] = value
    return facts

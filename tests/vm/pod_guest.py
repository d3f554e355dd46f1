"""A sandbox for several containers without a virtual machine: a network namespace plays the guest.

Behind each interface's tap a thread carries frames, with their virtio-net headers, to a tap in that namespace, as a VMM
does; what the agent does with interfaces and name queries is done here with plain tools.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from casemate.errors import CasemateError, HypervisorError
from casemate.host import namespaces, syscalls
from casemate.host.tap import open_tap
from casemate.protocol.wire import StreamClosed
from casemate.sandbox import Disk, Interface, Nic, PodSandbox, ProcessStreams

TUNSETOFFLOAD, CSUM_TSO = 0x400454D0, 0x01 | 0x02 | 0x04
HOST4, HOST6 = "172.30.0.1", "fd00:30::1"
T = TypeVar("T")


def sh(command: str) -> str:
    """Run a command; what it wrote. It must succeed."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def new_netns() -> int:
    """A network namespace as engines make it: IPv6 on, the loopback up."""
    box: list[int] = []

    def make() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        sh("ip link set lo up")
        box.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return box[0]


def new_host() -> None:
    """Make the process's network namespace that of a "host" with a bridge, as Docker makes one."""
    syscalls.unshare(syscalls.CLONE_NEWNET)
    sh("ip link set lo up")
    bridge("br0", 30)


def bridge(name: str, net: int) -> None:
    """Another bridge of the host."""
    sh(
        f"ip link add {name} type bridge; ip addr add 172.{net}.0.1/24 dev {name};"
        f"ip addr add fd00:{net}::1/64 dev {name} nodad; ip link set {name} up"
    )


class EngineNamespace:
    """The namespace of one container, with what an engine puts there, on the host that :func:`new_host` made."""

    def __init__(self, number: int, *, mtu: int = 1500) -> None:
        self.number = number
        self.netns = new_netns()
        self.v4, self.v6 = f"172.30.0.{number}", f"fd00:30::{number}"
        self.link("eth0", mtu=mtu)
        self.inside(lambda: sh(f"ip route add default via {HOST4}; ip -6 route add default via {HOST6}"))

    def link(self, name: str, *, mtu: int = 1500, net: int = 30, bridge: str = "br0") -> None:
        """Add an interface the way engines do: made outside, moved in, named, given its addresses, then brought up."""
        outer, number = f"v{self.number}{name}", self.number
        sh(
            f"ip link add {outer} mtu {mtu} type veth peer name tmp{number} mtu {mtu} netns /proc/{os.getpid()}/fd/"
            f"{self.netns}; ip link set {outer} master {bridge} up"
        )
        self.inside(lambda: sh(
            f"ip link set tmp{number} name {name}; ip addr add 172.{net}.0.{number}/24 dev {name};"
            f"ip addr add fd00:{net}::{number}/64 dev {name} nodad; ip link set {name} up"
        ))

    def inside(self, function: Callable[[], T]) -> T:
        """Call ``function`` in the namespace."""
        return namespaces.in_netns(self.netns, function)

    def close(self) -> None:
        os.close(self.netns)


class SocketStream:
    """One direction over a socket, as :class:`casemate.sandbox.Stream`."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, data: bytes, /) -> None:
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise StreamClosed(str(error)) from None

    def send_eof(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def recv(self, limit: int = 65536, /) -> bytes:
        try:
            return self.sock.recv(limit)
        except OSError:
            return b""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


class Cable:
    """Carries frames between the tap of an interface and the guest's."""

    def __init__(self, outer: int, inner: int) -> None:
        self.ends = (outer, inner)
        self.largest = 0
        for fd in self.ends:
            fcntl.ioctl(fd, TUNSETOFFLOAD, CSUM_TSO)
        self.stop = os.pipe()
        self.thread = threading.Thread(target=self.carry)
        self.thread.start()

    def carry(self) -> None:
        waiting = select.poll()
        for fd in (*self.ends, self.stop[0]):
            waiting.register(fd, select.POLLIN)
        while True:
            for fd, _ in waiting.poll():
                if fd == self.stop[0]:
                    return
                frame = os.read(fd, 70_000)
                self.largest = max(self.largest, len(frame))
                try:
                    os.write(self.ends[1 - self.ends.index(fd)], frame)
                except OSError:
                    continue  # the other end is down, as when it is being set up

    def close(self) -> None:
        os.write(self.stop[1], b".")
        self.thread.join()
        for fd in (*self.ends, *self.stop):
            os.close(fd)


class FakePod(PodSandbox):
    """See the module's description. ``slots``: how many interfaces may be plugged in later."""

    def __init__(self, slots: int = 4) -> None:
        self.netns = new_netns()
        self.slots = slots
        self.cables: dict[str, Cable] = {}
        self.names: dict[str, str] = {}
        self.plugged: set[str] = set()
        self.applied: dict[str, tuple[str, ...]] = {}
        self.calls: list[tuple[str, object]] = []
        self.changed = threading.Condition()
        self.sockets: list[socket.socket] = []
        self.queries: list[bytes] = []
        self.refuse_configure = ""

    def inside(self, function: Callable[[], T]) -> T:
        return namespaces.in_netns(self.netns, function)

    def told(self, call: str, argument: object) -> None:
        with self.changed:
            self.calls.append((call, argument))
            self.changed.notify_all()

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until ``condition`` holds; it is looked at after each call that the sandbox gets."""
        with self.changed:
            assert self.changed.wait_for(condition, seconds), self.calls

    def grow(self, memory_mib: int, *, partly: bool) -> int:
        self.told("grow", memory_mib)
        return 0

    # ---- interfaces

    def boot(self, netns: int, nics: Sequence[Nic], disks: Sequence[Disk], hostname: str) -> None:
        for nic in nics:
            self._cable(nic)
        self._apply([nic.interface for nic in nics])

    def _cable(self, nic: Nic) -> None:
        mac = nic.interface.mac
        name = f"g{len(self.names)}"
        tap, _ = self.inside(lambda: open_tap(name))
        self.inside(lambda: sh(f"ip link set {name} address {mac} addrgenmode none"))
        self.names[mac] = name
        self.cables[mac] = Cable(nic.tap_fd, tap)

    def plug(self, nic: Nic) -> None:
        if len(self.plugged) >= self.slots:
            os.close(nic.tap_fd)
            self.told("refused", nic.interface)
            raise HypervisorError("no slot is left")
        self.plugged.add(nic.interface.mac)
        self._cable(nic)
        self._apply([nic.interface])
        self.told("plug", nic.interface)

    def unplug(self, mac: str) -> None:
        self.plugged.discard(mac)
        self.cables.pop(mac).close()
        del self.names[mac], self.applied[mac]
        self.told("unplug", mac)

    def configure(self, interfaces: Sequence[Interface]) -> None:
        if self.refuse_configure:
            self.told("refused", tuple(interfaces))
            raise CasemateError(self.refuse_configure)
        self._apply(interfaces)
        self.told("configure", tuple(interfaces))

    def _apply(self, interfaces: Sequence[Interface]) -> None:
        lines = []
        for interface in interfaces:
            name = self.names[interface.mac]
            if name != interface.name:
                lines += [f"link set {name} down", f"link set {name} name {interface.name}"]
                self.names[interface.mac] = name = interface.name
            lines += [f"link set {name} mtu {interface.mtu}", f"link set {name} up"]
            before = self.applied.get(interface.mac, ())
            lines += [f"addr del {address} dev {name}" for address in before if address not in interface.addresses]
            for address in interface.addresses:
                lines.append(f"addr replace {address} dev {name}" + (" nodad" if ":" in address else ""))
            self.applied[interface.mac] = interface.addresses
            for route in interface.routes:
                line = f"route replace {route.destination} dev {name} metric {route.metric}"
                line += f" via {route.gateway}" if route.gateway else ""
                line += f" scope {route.scope}" if ":" not in route.destination else ""
                line += f" src {route.source}" if route.source else ""
                lines.append(line + (" onlink" if route.onlink else ""))
            for neighbour in interface.neighbours:
                lines.append(f"neigh replace {neighbour.address} lladdr {neighbour.mac} dev {name} nud permanent")
        text = "\n".join(lines)
        self.inside(lambda: sh(f"ip -batch - <<'END'\n{text}\nEND"))

    # ---- connections and names

    def connect(self, port: int) -> ProcessStreams:
        try:
            sock = self.inside(lambda: socket.create_connection(("127.0.0.1", port), timeout=60))
        except OSError as error:
            raise CasemateError(f"port {port}: {error.strerror}") from None
        sock.settimeout(None)
        return ProcessStreams(SocketStream(sock), SocketStream(sock.dup()), None)

    def serve_dns(self, addresses: Sequence[str]) -> ProcessStreams:
        """The test plays the agent, at :attr:`dns`."""
        self.dns, there = socket.socketpair()
        self.dns.settimeout(60)
        self.sockets.append(self.dns)
        self.told("serve_dns", tuple(addresses))
        return ProcessStreams(SocketStream(there), SocketStream(there.dup()), None)

    def close(self) -> None:
        for cable in self.cables.values():
            cable.close()
        self.cables.clear()
        for sock in self.sockets:
            sock.close()
        if self.netns >= 0:
            os.close(self.netns)
            self.netns = -1

    # ---- what networks do not need

    def attach(self, id: str, root_fd: int, volumes_fd: int | None) -> None:
        raise NotImplementedError

    def detach(self, id: str) -> None:
        raise NotImplementedError

    def create(
        self, id: str, spec: dict[str, Any], files: list[dict[str, Any]], stdin: bool, size: tuple[int, int] | None,
        kept: Sequence[str] = (),
    ) -> ProcessStreams:
        raise NotImplementedError

    def start(self, id: str) -> None:
        raise NotImplementedError

    def exec(
        self, id: str, exec_id: str, process: dict[str, Any], stdin: bool, size: tuple[int, int] | None,
        kept: Sequence[str] = (),
    ) -> ProcessStreams:
        raise NotImplementedError

    def signal(self, id: str, exec_id: str | None, signum: int, everyone: bool = False) -> None:
        raise NotImplementedError

    def resize(self, id: str, exec_id: str | None, rows: int, columns: int) -> None:
        raise NotImplementedError

    def pause(self, id: str) -> None:
        raise NotImplementedError

    def resume(self, id: str) -> None:
        raise NotImplementedError

    def stats(self, id: str) -> dict[str, Any]:
        raise NotImplementedError

    def update(self, id: str, resources: dict[str, Any]) -> None:
        raise NotImplementedError

    def delete(self, id: str) -> None:
        raise NotImplementedError

    def plug_disk(self, disk: Disk) -> None:
        raise NotImplementedError

    def info(self) -> dict[str, Any]:
        raise NotImplementedError

    def flush(self) -> None:
        raise NotImplementedError

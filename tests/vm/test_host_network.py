"""Networks of sandboxes against the real kernel, each test in namespaces of its own.

A "host" namespace has an uplink to a "world" namespace. The guest is a namespace too: its interface is a tap, and a
thread carries frames, with their virtio-net headers, between it and the sandbox's tap, as a VMM does.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from casemate.config import Config
from casemate.errors import CasemateError, NetworkError
from casemate.host import check, firewall, ipam, mounts, namespaces, network, syscalls
from casemate.host.network import SandboxNet
from casemate.host.ports import PortMap, PortProxy
from casemate.ids import new_id
from tests.vm.host_tools import in_child, needs_root

pytestmark = needs_root

HOST, WORLD = "203.0.113.2", "203.0.113.1"
TUNSETOFFLOAD, CSUM_TSO = 0x400454D0, 0x01 | 0x02 | 0x04
T = TypeVar("T")


def sh(command: str) -> str:
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


class Guest:
    """A namespace in the guest's place, behind the sandbox's tap."""

    def __init__(self, net: SandboxNet, *, offload: bool = True) -> None:
        self.net = net
        self.netns = namespaces.new_netns()
        self.tap = namespaces.in_netns(self.netns, network._open_tap)
        for fd in (net.tap_fd, self.tap):
            fcntl.ioctl(fd, TUNSETOFFLOAD, CSUM_TSO if offload else 0)
        self.inside(lambda: sh(
            f"ip link set lo up; ip link set tap0 name eth0 address {net.mac} mtu {net.mtu} up;"
            f"ip addr add {net.address}/32 dev eth0; ip route add default via {net.gateway} dev eth0 onlink"
        ))
        self.largest = 0
        self.stop = os.pipe()
        self.thread = threading.Thread(target=self.carry)
        self.thread.start()

    def inside(self, function: Callable[[], T]) -> T:
        return namespaces.in_netns(self.netns, function)

    def carry(self) -> None:
        waiting = select.poll()
        for fd in (self.net.tap_fd, self.tap, self.stop[0]):
            waiting.register(fd, select.POLLIN)
        while True:
            for fd, _ in waiting.poll():
                if fd == self.stop[0]:
                    return
                frame = os.read(fd, 70_000)
                self.largest = max(self.largest, len(frame))
                os.write(self.tap if fd == self.net.tap_fd else self.net.tap_fd, frame)

    def close(self) -> None:
        os.write(self.stop[1], b".")
        self.thread.join()
        for fd in (*self.stop, self.tap, self.netns, self.net.tap_fd, self.net.netns_fd):
            os.close(fd)


class Lab:
    """The host and the world around one test. Made in a forked child, whose namespace becomes the host's."""

    def __init__(self, run: Path, **settings: object) -> None:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        self.config = Config(run=run, **settings)  # type: ignore[arg-type]
        self.world = namespaces.new_netns()
        sh(
            f"ip link set lo up; ip link add up0 type veth peer name w0 netns /proc/{os.getpid()}/fd/{self.world};"
            f"ip addr add {HOST}/24 dev up0; ip link set up0 up; ip route add default via {WORLD}"
        )
        self.outside(lambda: sh(f"ip link set lo up; ip addr add {WORLD}/24 dev w0; ip link set w0 up"))
        self.guests: list[Guest] = []
        self.proxies: list[PortProxy] = []
        self.ids: list[str] = []

    def outside(self, function: Callable[[], T]) -> T:
        return namespaces.in_netns(self.world, function)

    def guest(self, *ports: PortMap, offload: bool = True) -> Guest:
        proxy = PortProxy(ports)
        self.ids.append(new_id())
        net = network.setup(self.ids[-1], self.config, proxy.ports)
        proxy.start(net.address)
        self.proxies.append(proxy)
        self.guests.append(Guest(net, offload=offload))
        return self.guests[-1]

    def close(self) -> None:
        for proxy in self.proxies:
            proxy.close()
        for guest in self.guests:
            guest.close()
        for one in self.ids:
            network.teardown(one, self.config)
            network.teardown(one, self.config)
        assert_nothing_left(self.config)


def assert_nothing_left(config: Config) -> None:
    assert [name for _, name in socket.if_nameindex() if name.startswith("cm")] == []
    assert firewall._published() == []
    left = [path for path in config.run.rglob("*") if path.is_symlink() or path.is_file()]
    assert left == []
    assert sh("ip route show table main").count(" dev cm") == 0


def in_lab(tmp_path: Path, test: Callable[[Lab], None], **settings: object) -> None:
    def body() -> None:
        lab = Lab(tmp_path, **settings)
        try:
            test(lab)
        finally:
            lab.close()

    in_child(body)


def listen(address: str, port: int = 0, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.settimeout(10)
    sock.bind((address, port))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


def connect(address: str, port: int) -> socket.socket:
    return socket.create_connection((address, port), timeout=5)


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def exchange(server: socket.socket, client: Callable[[], socket.socket], size: int = 0) -> str:
    """Send ``size`` random bytes each way between a listening socket and a new client; return the client's address."""
    up, down = os.urandom(size) + b"up", os.urandom(size) + b"down"
    seen: list[object] = []

    def serve() -> None:
        peer, who = server.accept()
        with peer:
            peer.settimeout(20)
            seen.extend([who[0], hashlib.sha256(read_all(peer)).digest()])
            peer.sendall(down)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client() as sock:
            sock.settimeout(20)
            sock.sendall(up)
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == down
    finally:
        thread.join(20)
    assert seen[1] == hashlib.sha256(up).digest()
    return str(seen[0])


@pytest.mark.parametrize("offload", [True, False])
def test_the_guest_reaches_the_world_by_the_hosts_address(tmp_path: Path, offload: bool) -> None:
    def test(lab: Lab) -> None:
        guest = lab.guest(offload=offload)
        with lab.outside(lambda: listen(WORLD)) as server:
            port = server.getsockname()[1]
            assert exchange(server, lambda: guest.inside(lambda: connect(WORLD, port)), 6_000_000) == HOST
        # With offloads, segments far beyond the MTU pass whole; without, the kernel cuts and sums them.
        assert (guest.largest > 10_000) == offload

    in_lab(tmp_path, test)


def test_the_mtu_of_the_configuration_holds(tmp_path: Path) -> None:
    def test(lab: Lab) -> None:
        sh("ip link set up0 mtu 9000")
        lab.outside(lambda: sh("ip link set w0 mtu 9000"))
        guest = lab.guest(offload=False)
        with lab.outside(lambda: listen(WORLD)) as server:
            port = server.getsockname()[1]
            exchange(server, lambda: guest.inside(lambda: connect(WORLD, port)), 1_000_000)
        assert 4000 - 20 < guest.largest <= 4000 + 14 + 10  # a frame's header and the virtio-net header

    in_lab(tmp_path, test, mtu=4000)


def test_the_gateway_answers_pings(tmp_path: Path) -> None:
    def test(lab: Lab) -> None:
        guest = lab.guest()
        with guest.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)) as sock:
            sock.settimeout(5)
            request = struct.pack("!BBHHH", 8, 0, 0xFFFF - 0x0800 - 7 - 1, 7, 1)
            sock.sendto(request, (guest.net.gateway, 0))
            reply, who = sock.recvfrom(1000)
        assert who[0] == guest.net.gateway and reply[20] == 0

    in_lab(tmp_path, test)


def test_two_sandboxes_reach_each_other_and_nobody_sees_others_frames(tmp_path: Path) -> None:
    def test(lab: Lab) -> None:
        one, two = lab.guest(), lab.guest()
        with two.inside(lambda: listen(two.net.address)) as server:
            port = server.getsockname()[1]
            who = exchange(server, lambda: one.inside(lambda: connect(two.net.address, port)), 100_000)
        assert who == one.net.address

    in_lab(tmp_path, test)


def test_a_forged_source_address_goes_nowhere(tmp_path: Path) -> None:
    def test(lab: Lab) -> None:
        # Many distributions set the loose reverse path filter, which alone would let some of these through.
        firewall.set_sysctl("net/ipv4/conf/all/rp_filter", "2")
        guest, other = lab.guest(), lab.guest()
        forged = [other.net.address, guest.net.gateway, HOST, WORLD, "198.51.100.1", "10.87.255.254", "127.0.0.1"]
        with (
            lab.outside(lambda: listen(WORLD, kind=socket.SOCK_DGRAM)) as far,
            listen(HOST, kind=socket.SOCK_DGRAM) as near,
        ):
            for target in (far, near):
                for source in [*forged, guest.net.address]:
                    frame = udp_frame(guest, source, target.getsockname(), source.encode())
                    os.write(guest.net.tap_fd, frame)
                data, _ = target.recvfrom(100)  # the true one was sent last: nothing before it came through
                assert data == guest.net.address.encode()

    in_lab(tmp_path, test)


def test_the_hosts_loopback_is_out_of_reach(tmp_path: Path) -> None:
    def test(lab: Lab) -> None:
        guest = lab.guest()
        with (
            listen("127.0.0.1", kind=socket.SOCK_DGRAM) as loopback,
            listen("0.0.0.0", kind=socket.SOCK_DGRAM) as anywhere,
        ):
            for target in (loopback, anywhere):
                port = target.getsockname()[1]
                os.write(guest.net.tap_fd, udp_frame(guest, guest.net.address, ("127.0.0.1", port), b"bad"))
            port = anywhere.getsockname()[1]
            os.write(guest.net.tap_fd, udp_frame(guest, guest.net.address, (HOST, port), b"good"))
            assert anywhere.recv(100) == b"good"
            loopback.setblocking(False)
            with pytest.raises(BlockingIOError):
                loopback.recv(100)

    in_lab(tmp_path, test)


def udp_frame(guest: Guest, source: str, target: tuple[str, int], data: bytes) -> bytes:
    """A frame of the guest's: a virtio-net header, Ethernet, IPv4 and UDP (without checksum)."""
    udp = struct.pack("!HHHH", 1234, target[1], 8 + len(data), 0) + data
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(target[0])
    )
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
    link = sh(f"ip route show {guest.net.address}").split(" dev ")[1].split()[0]
    macs = sh(f"ip -o link show {link}").split("link/ether ")[1][:17] + guest.net.mac
    return bytes(10) + bytes.fromhex(macs.replace(":", "")) + b"\x08\x00" + head + udp


def test_published_tcp_port_from_everywhere(tmp_path: Path) -> None:
    def test(lab: Lab) -> None:
        guest = lab.guest(PortMap("0.0.0.0", 8080, 80), PortMap(HOST, 8081, 80), PortMap("127.0.0.1", 8082, 80))
        other = lab.guest()
        gateway = guest.net.gateway

        def here(call: Callable[[], socket.socket]) -> socket.socket:
            return call()

        with guest.inside(lambda: listen("0.0.0.0", 80)) as server:

            def seen(where: Callable[[Callable[[], socket.socket]], socket.socket], address: str, port: int) -> str:
                return exchange(server, lambda: where(lambda: connect(address, port)), 500_000)

            for port in (8080, 8081):
                assert seen(lab.outside, HOST, port) == WORLD
                assert seen(here, HOST, port) == gateway
                # Between sandboxes the gateway's address stands in, so that a sandbox reaches itself as well.
                assert seen(other.inside, HOST, port) == gateway
                assert seen(guest.inside, HOST, port) == gateway
            for port in (8080, 8082):
                assert seen(here, "127.0.0.1", port) == gateway
            with pytest.raises(ConnectionRefusedError):
                lab.outside(lambda: connect(HOST, 8082))

    in_lab(tmp_path, test)


def test_published_udp_port(tmp_path: Path) -> None:
    def test(lab: Lab) -> None:
        guest = lab.guest(PortMap("0.0.0.0", 5353, 53, "udp"))
        with guest.inside(lambda: listen("0.0.0.0", 53, socket.SOCK_DGRAM)) as server:
            outer = lab.outside(lambda: listen(WORLD, kind=socket.SOCK_DGRAM))
            inner = listen("127.0.0.1", kind=socket.SOCK_DGRAM)
            for client, address, seen in ((outer, HOST, WORLD), (inner, "127.0.0.1", guest.net.gateway)):
                with client:
                    client.sendto(b"question", (address, 5353))
                    data, who = server.recvfrom(100)
                    assert (data, who[0]) == (b"question", seen)
                    server.sendto(b"answer", who)
                    assert client.recvfrom(100) == (b"answer", (address, 5353))

    in_lab(tmp_path, test)


def test_what_is_not_published_cannot_be_reached_from_outside(tmp_path: Path) -> None:
    def test(lab: Lab) -> None:
        guest = lab.guest(PortMap("0.0.0.0", 8080, 80))
        lab.outside(lambda: sh(f"ip route add {lab.config.network} via {HOST}"))
        with guest.inside(lambda: listen("0.0.0.0", 80)) as server:
            assert exchange(server, lambda: lab.outside(lambda: connect(HOST, 8080))) == WORLD
            with pytest.raises(TimeoutError):
                lab.outside(lambda: socket.create_connection((guest.net.address, 80), timeout=0.3))

    in_lab(tmp_path, test)


def test_an_address_that_nobody_has_does_not_leave_by_the_uplink(tmp_path: Path) -> None:
    def test(lab: Lab) -> None:
        guest = lab.guest()
        lab.outside(lambda: sh("ip addr add 10.87.77.77/32 dev lo"))
        with lab.outside(lambda: listen("10.87.77.77", 80)):
            with pytest.raises(OSError, match="No route to host|unreachable"):
                guest.inside(lambda: connect("10.87.77.77", 80))
            with pytest.raises(OSError, match="No route to host|unreachable"):
                connect("10.87.77.77", 80)

    in_lab(tmp_path, test)


def test_twenty_at_once(tmp_path: Path) -> None:
    def body() -> None:
        lab = Lab(tmp_path)
        ids = [new_id() for _ in range(20)]
        children = []
        for number, one in enumerate(ids):
            done, hold = os.pipe(), os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(hold[1])
                try:
                    net = network.setup(one, lab.config, [PortMap("0.0.0.0", 9000 + number, 80)])
                    os.write(done[1], net.address.encode())
                except CasemateError as error:
                    os.write(done[1], f"failed: {error}".encode())
                os.close(done[1])
                os.read(hold[0], 1)
                os._exit(0)
            os.close(done[1])
            children.append((pid, done[0], hold[1]))
        addresses = [os.read(read, 1000).decode() for _, read, _ in children]
        assert not [text for text in addresses if text.startswith("failed")]
        assert len(set(addresses)) == 20
        assert len([name for _, name in socket.if_nameindex() if name.startswith("cm")]) == 20
        assert len(firewall._published()) == 20
        for pid, _, _ in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        threads = [threading.Thread(target=network.teardown, args=(one, lab.config)) for one in ids]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert_nothing_left(lab.config)

    in_child(body)


def test_the_ports_of_a_dead_sandbox_go_to_the_next(tmp_path: Path) -> None:
    def test(lab: Lab) -> None:
        dead = new_id()
        port = PortMap("0.0.0.0", 8080, 80)
        pid = os.fork()
        if pid == 0:
            network.setup(dead, lab.config, PortProxy([port]).ports)
            os.kill(os.getpid(), signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        assert len(firewall._published()) == 1
        guest = lab.guest(port)  # with the dead one's lease and map entry still there
        network.teardown(dead, lab.config)
        assert firewall._published() == [("ports", "tcp . 8080", f"{guest.net.address} . 80")]
        with guest.inside(lambda: listen("0.0.0.0", 80)) as server:
            assert exchange(server, lambda: lab.outside(lambda: connect(HOST, 8080))) == WORLD

    in_lab(tmp_path, test)


def test_a_failure_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def test(lab: Lab) -> None:
        before = sorted(os.listdir("/proc/self/fd"))
        for step in ("_open_tap", "_make_link", "_join"):
            def fail(*_: object) -> None:
                raise NetworkError("made to fail")

            with monkeypatch.context() as patch, pytest.raises(NetworkError, match="made to fail"):
                patch.setattr(network, step, fail)
                network.setup(new_id(), lab.config, [PortMap("0.0.0.0", 8080, 80)])
            assert_nothing_left(lab.config)
        assert sorted(os.listdir("/proc/self/fd")) == before

    in_lab(tmp_path, test)


def test_rules_that_somebody_flushed_come_back(tmp_path: Path) -> None:
    def test(lab: Lab) -> None:
        lab.guest()
        sh("nft flush ruleset")
        guest = lab.guest()
        with lab.outside(lambda: listen(WORLD)) as server:
            port = server.getsockname()[1]
            assert exchange(server, lambda: guest.inside(lambda: connect(WORLD, port))) == HOST
        before = sh("nft -a list table inet casemate")
        lab.guest()
        assert sh("nft -a list table inet casemate") == before  # rules that are there are not touched

    in_lab(tmp_path, test)


@pytest.mark.parametrize("docker", [False, True])
def test_a_forward_chain_that_drops_is_opened_once(tmp_path: Path, docker: bool) -> None:
    def test(lab: Lab) -> None:
        sh("iptables -P FORWARD DROP")
        if not firewall.forward_is_dropped():
            pytest.skip("iptables is the legacy one here")
        if docker:
            sh("iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER")
        for _ in range(2):
            guest = lab.guest(PortMap("0.0.0.0", 0, 80))
        with lab.outside(lambda: listen(WORLD)) as server:
            port = server.getsockname()[1]
            assert exchange(server, lambda: guest.inside(lambda: connect(WORLD, port))) == HOST
        rules = sh(f"iptables -S {'DOCKER-USER' if docker else 'FORWARD'}")
        assert rules.count("--comment casemate") == 2
        assert {one.name: one.ok for one in check.check(lab.config)}["iptables FORWARD"]

    in_lab(tmp_path, test)


def test_a_network_that_the_host_uses_is_refused(tmp_path: Path) -> None:
    def test(lab: Lab) -> None:
        with pytest.raises(NetworkError, match=r"203\.0\.113\.0/24 overlaps .* dev up0.*set network"):
            network.setup(new_id(), lab.config)

    in_lab(tmp_path, test, network="203.0.113.0/24")


def test_a_full_network_is_refused_and_nothing_left(tmp_path: Path) -> None:
    def test(lab: Lab) -> None:
        others = [new_id() for _ in range(5)]
        for one in others:
            ipam.lease(one, lab.config)
        with pytest.raises(NetworkError, match="no address is left"):
            network.setup(new_id(), lab.config)
        for one in others:
            ipam.release(one, lab.config)

    in_lab(tmp_path, test, network="10.9.9.0/29")


def test_no_network_is_a_loopback_alone() -> None:
    before = os.readlink("/proc/thread-self/ns/net")
    netns = network.isolated()
    links = namespaces.in_netns(netns, lambda: sh("ip -o link"))
    assert links.count("\n") == 1 and "UP" in links and ": lo:" in links
    with namespaces.in_netns(netns, lambda: listen("127.0.0.1")) as server:
        port = server.getsockname()[1]
        exchange(server, lambda: namespaces.in_netns(netns, lambda: connect("127.0.0.1", port)))
    with pytest.raises(OSError, match="unreachable"):
        namespaces.in_netns(netns, lambda: connect("192.0.2.1", 80))
    os.close(netns)
    assert os.readlink("/proc/thread-self/ns/net") == before


def test_errors_cross_from_a_namespace() -> None:
    netns = namespaces.new_netns()
    with pytest.raises(ZeroDivisionError):
        namespaces.in_netns(netns, lambda: 1 / 0)
    os.close(netns)


def test_without_tun_it_says_so(tmp_path: Path) -> None:
    def test(lab: Lab) -> None:
        namespaces.unshare_mounts()
        mounts.tmpfs("/dev/net", size=1 << 20)
        with pytest.raises(NetworkError, match="/dev/net/tun.*modprobe tun"):
            network.setup(new_id(), lab.config)
        assert not {one.name: one.ok for one in check.check(lab.config)}["tun"]

    in_lab(tmp_path, test)

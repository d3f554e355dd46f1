"""The proxy of published ports, with a server on the loopback in the container's place."""

from __future__ import annotations

import errno
import hashlib
import os
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from casemate.errors import NetworkError, UsageError
from casemate.host import ports
from casemate.host.ports import PortMap, PortProxy

LOOPBACK = "127.0.0.1"


@pytest.fixture
def proxied() -> Iterator[Callable[..., tuple[str, int]]]:
    proxies: list[PortProxy] = []

    def make(port: int, protocol: str = "tcp", host_ip: str = LOOPBACK) -> tuple[str, int]:
        proxy = PortProxy([PortMap(host_ip, 0, port, protocol)])
        proxies.append(proxy)
        proxy.start(LOOPBACK)
        return host_ip, proxy.ports[0].host_port

    yield make
    for proxy in proxies:
        proxy.close()
        proxy.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "ports"]


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server((LOOPBACK, 0)) as sock:
        sock.settimeout(10)
        yield sock


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("host_ip", [LOOPBACK, "::1"])
def test_both_directions_at_once_and_each_end_by_itself(
    server: socket.socket, proxied: Callable[..., tuple[str, int]], host_ip: str
) -> None:
    up, down = b"u" * 5_000_000 + b"!", b"d" * 7_000_000 + b"?"
    seen: list[bytes] = []

    def serve() -> None:
        peer, _ = server.accept()
        with peer:
            seen.append(read_all(peer))  # to the client's end; only then does the answer begin
            peer.sendall(down)

    thread = threading.Thread(target=serve)
    thread.start()
    with socket.create_connection(proxied(port_of(server), host_ip=host_ip), timeout=10) as client:
        client.sendall(up)
        client.shutdown(socket.SHUT_WR)
        got = read_all(client)
    thread.join()
    assert hashlib.sha256(seen[0]).digest() == hashlib.sha256(up).digest()
    assert hashlib.sha256(got).digest() == hashlib.sha256(down).digest()


def test_a_side_that_does_not_read_makes_the_other_wait(
    server: socket.socket, proxied: Callable[..., tuple[str, int]]
) -> None:
    address = proxied(port_of(server))
    with socket.create_connection(address, timeout=10) as client:
        peer, _ = server.accept()
        client.settimeout(0.3)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 200_000_000:
                sent += client.send(b"x" * 65536)
        with socket.create_connection(address, timeout=10) as other:  # nobody else waits
            second, _ = server.accept()
            other.sendall(b"hello")
            assert second.recv(10) == b"hello"
            second.close()
        client.shutdown(socket.SHUT_WR)
        with peer:
            peer.settimeout(10)
            assert len(read_all(peer)) == sent


def test_a_refused_connection_and_an_abort_are_passed_on(proxied: Callable[..., tuple[str, int]]) -> None:
    with closing(socket.socket()) as sock:
        sock.bind((LOOPBACK, 0))  # and not listening: connections are refused
        with (
            pytest.raises(ConnectionResetError),  # in connect() already, or after it
            socket.create_connection(proxied(port_of(sock)), timeout=10) as client,
        ):
            client.recv(1)
    with (
        socket.create_server((LOOPBACK, 0)) as sock,
        socket.create_connection(proxied(port_of(sock)), timeout=10) as client,
    ):
        peer, _ = sock.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_ends_that_abort_at_the_same_time_end_their_connection_and_no_other(server: socket.socket) -> None:
    """Both are ready in one round, and the second has been closed with the first when its turn comes."""
    wake_read, wake_write = os.pipe()
    loop = ports._Loop(wake_read)
    with socket.create_server((LOOPBACK, 0)) as front:
        clients = [socket.create_connection(front.getsockname()) for _ in range(2)]
        connections = [ports._Connection(loop, front.accept()[0], server.getsockname()[:2]) for _ in clients]
        peers = [server.accept()[0] for _ in clients]
    for connection in connections:
        connection._ready(1, selectors.EVENT_WRITE)  # the container has answered
    clients[1].sendall(b"hello")
    for end in (clients[0], peers[0]):
        ports._reset(end)
    os.write(wake_write, b".")  # one round, and then the end
    loop.run()
    assert loop.connections == 0
    assert peers[1].recv(10) == b"hello"
    for sock in (clients[1], peers[1]):
        sock.close()
    for fd in (wake_read, wake_write):
        os.close(fd)


def test_a_connection_that_cannot_be_watched_leaves_nothing(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    wake = os.eventfd(0)
    loop = ports._Loop(wake)
    with socket.create_server((LOOPBACK, 0)) as front:
        listener = ports._Listener(loop, front, server.getsockname()[:2])

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "no more may be watched")

        with socket.create_connection(front.getsockname(), timeout=10) as client:
            with monkeypatch.context() as patch:
                patch.setattr(loop.selector, "register", full)
                listener.sock.setblocking(False)
                listener._accept(selectors.EVENT_READ)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
    assert (loop.connections, loop.closing, loop.timers) == (0, [], [listener._tick])
    loop.selector.close()
    os.close(wake)


def test_connections_are_bounded_and_the_next_waits_its_turn(
    server: socket.socket, proxied: Callable[..., tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "MAX_CONNECTIONS", 5)
    address = proxied(port_of(server))
    clients = [socket.create_connection(address, timeout=10) for _ in range(8)]
    peers = [server.accept()[0] for _ in range(5)]
    server.settimeout(0.2)
    with pytest.raises(TimeoutError):
        server.accept()
    server.settimeout(10)
    for sock in (clients[0], peers[0]):
        sock.close()
    peers += [server.accept()[0]]
    for sock in clients + peers:
        sock.close()


def test_datagrams_find_their_way_back(proxied: Callable[..., tuple[str, int]]) -> None:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as service:
        service.bind((LOOPBACK, 0))
        service.settimeout(10)
        address = proxied(port_of(service), "udp")
        clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(5)]
        for number, client in enumerate(clients):
            client.settimeout(10)
            client.sendto(b"%d" % number, address)
        for _ in clients:
            data, who = service.recvfrom(100)
            service.sendto(b"re " + data, who)
        for number, client in enumerate(clients):
            assert client.recvfrom(100) == (b"re %d" % number, address)
        big = bytes(60_000)
        clients[0].sendto(big, address)
        assert service.recvfrom(70_000)[0] == big
        for client in clients:
            client.close()


def test_flows_are_bounded_and_silent_ones_expire(
    proxied: Callable[..., tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "MAX_FLOWS", 2)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as service:
        service.bind((LOOPBACK, 0))
        service.settimeout(10)
        address = proxied(port_of(service), "udp")
        clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
        sources = []
        for client in clients:
            client.settimeout(0.2)
            client.sendto(b"x", address)
            sources.append(service.recvfrom(10)[1])
        for source in sources:
            service.sendto(b"answer", source)
        for client in clients[1:]:
            assert client.recv(10) == b"answer"
        with pytest.raises(TimeoutError):
            clients[0].recv(10)  # the longest silent made room for the third
        for client in clients:
            client.close()


def test_silent_flows_expire() -> None:
    loop = ports._Loop(socket.socketpair()[0].detach())
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.setblocking(False)
        flows = ports._Datagrams(loop, sock, (LOOPBACK, 9))
        assert flows._flow("a") is not None and flows._flow("b") is not None
        seen = flows.flows["a"][1][0]
        flows._tick(seen + ports.FLOW_SECONDS - 1)
        assert len(flows.flows) == 2
        flows.flows["b"][1][0] += 5
        flows._tick(seen + ports.FLOW_SECONDS + 1)
        assert list(flows.flows) == ["b"]
        flows._close()
    loop.selector.close()


def test_ports_are_reserved_and_given_back() -> None:
    proxy = PortProxy([PortMap(LOOPBACK, 0, 80), PortMap(LOOPBACK, 0, 53, "udp")])
    assert all(port.host_port > 0 for port in proxy.ports)
    for port in proxy.ports:
        free = PortMap(LOOPBACK, 0, 1)
        with pytest.raises(NetworkError, match=f"port {port.host_port}/{port.protocol} of 127.0.0.1 is already in use"):
            PortProxy([free, port])
    proxy.close()
    again = PortProxy(proxy.ports)
    assert again.ports == proxy.ports
    again.close()
    with pytest.raises(NetworkError, match="not an address of this host"):
        PortProxy([PortMap("192.0.2.1", 0, 80)])


@pytest.mark.parametrize(
    "bad", [("x", 1, 1, "tcp"), (LOOPBACK, 65536, 1, "tcp"), (LOOPBACK, 1, 0, "tcp"), (LOOPBACK, 1, 1, "sctp")]
)
def test_bad_port_maps(bad: tuple[str, int, int, str]) -> None:
    with pytest.raises(UsageError):
        PortMap(*bad)
    assert str(PortMap("::1", 8080, 80)) == "[::1]:8080->80/tcp"


def test_closing_ends_connections(server: socket.socket) -> None:
    proxy = PortProxy([PortMap(LOOPBACK, 0, port_of(server))])
    proxy.start(LOOPBACK)
    with socket.create_connection((LOOPBACK, proxy.ports[0].host_port), timeout=10) as client:
        peer, _ = server.accept()
        proxy.close()
        assert client.recv(1) == b"" and peer.recv(1) == b""
        peer.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOOPBACK, proxy.ports[0].host_port), timeout=10)

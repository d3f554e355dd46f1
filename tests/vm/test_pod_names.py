"""Names from an engine's resolver, and connections to a namespace's loopback, against the real kernel."""

from __future__ import annotations

import socket
import struct

import pytest

from casemate.pod import resolver
from casemate.pod.forward import Forward
from casemate.pod.resolver import Resolver
from tests.vm.host_tools import needs_root
from tests.vm.pod_guest import HOST4, HOST6
from tests.vm.pod_lab import Lab, in_lab
from tests.vm.pod_peers import SERVER, NameServer, answer_to, connect, connected, exchange, listen, read_all

pytestmark = needs_root


# ---- names


def query_of(name: bytes, number: int = 7) -> bytes:
    return struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + name


def frame(kind: int, tag: int, message: bytes) -> bytes:
    return resolver.HEAD.pack(len(message), kind, tag) + message


def read_frame(sock: socket.socket) -> tuple[int, int, bytes]:
    length, kind, tag = resolver.HEAD.unpack(sock.recv(resolver.HEAD.size, socket.MSG_WAITALL))
    return kind, tag, sock.recv(length, socket.MSG_WAITALL) if length else b""


@pytest.mark.parametrize("outer", [HOST4, HOST6])
def test_names_are_asked_in_the_namespace_and_outside_names_come_back(outer: str) -> None:
    def test(lab: Lab) -> None:
        one = lab.container()
        NameServer(one, outer, answer_to)
        service = Resolver(one.pod, one.netns, (SERVER,))
        service.start()
        assert one.pod.calls == [("serve_dns", (SERVER,))]
        own = one.v4 if outer == HOST4 else one.v6
        for kind in (resolver.UDP, resolver.TCP):
            one.pod.dns.sendall(frame(kind, 11, query_of(b"db")) + frame(kind, 12, query_of(b"www.outside")))
            got = {read_frame(one.pod.dns) for _ in range(2)}
            assert got == {
                (kind, 11, answer_to(query_of(b"db"), b"inner")),
                (kind, 12, answer_to(query_of(b"www.outside"), b"outer from " + own.encode())),
            }
        service.close()
        service.close()
        assert one.pod.dns.recv(1) == b""

    in_lab(test)


def test_queries_that_are_none_are_dropped_and_refused_ones_get_no_answer() -> None:
    def test(lab: Lab) -> None:
        one = lab.container()
        service = Resolver(one.pod, one.netns, ("127.0.0.12", SERVER))
        service.start()
        one.pod.dns.sendall(frame(resolver.UDP, 1, query_of(b"nobody listens")))
        assert read_frame(one.pod.dns) == (resolver.UDP, 1, b"")
        one.pod.dns.sendall(frame(resolver.TCP, 2, query_of(b"nobody listens")))
        assert read_frame(one.pod.dns) == (resolver.TCP, 2, b"")
        NameServer(one, HOST4, answer_to)  # the second address from now on
        bad = frame(0, 3, b"") + frame(0, 4, b"x" * 11) + frame(9, 5, query_of(b"x"))
        bad += frame(0, 6, bytes(2) + b"\x80" + bytes(9))  # an answer
        data = bad + frame(resolver.UDP, 7, query_of(b"db"))
        for at in range(0, len(data), 5):  # in pieces
            one.pod.dns.sendall(data[at : at + 5])
        assert read_frame(one.pod.dns) == (resolver.UDP, 7, answer_to(query_of(b"db"), b"inner"))
        big = query_of(b"b" * 40_000)
        one.pod.dns.sendall(frame(resolver.TCP, 8, big))
        assert read_frame(one.pod.dns)[2][:2] == big[:2]
        service.close()

    in_lab(test)


def test_silent_name_servers_hold_neither_sockets_nor_others_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def test(lab: Lab) -> None:
        monkeypatch.setattr(resolver, "QUERY_SECONDS", 1.0)
        one = lab.container()
        with one.inside(lambda: listen(SERVER, 53, socket.SOCK_DGRAM)) as silent:
            service = Resolver(one.pod, one.netns, (SERVER,))
            service.start()
            for tag in range(resolver.MAX_QUERIES):
                one.pod.dns.sendall(frame(0, tag, query_of(b"slow", tag)))
            queries = [silent.recvfrom(1000) for _ in range(resolver.MAX_QUERIES)]
            one.pod.dns.sendall(frame(0, 9999, query_of(b"one too many")))
            assert read_frame(one.pod.dns) == (0, 9999, b"")
            query, who = queries[5]
            forged = answer_to(b"\xff\xff" + query[2:], b"forged")
            silent.sendto(forged, who)
            silent.sendto(query, who)
            silent.sendto(answer_to(query, b"late"), who)
            kind, tag, message = read_frame(one.pod.dns)
            assert (tag, message) == (5, answer_to(query, b"late"))
            left = {read_frame(one.pod.dns) for _ in range(resolver.MAX_QUERIES - 1)}
            assert left == {(0, tag, b"") for tag in range(resolver.MAX_QUERIES) if tag != 5}
            service.close()

    in_lab(test)


def test_a_guest_that_reads_no_answers_does_not_keep_the_resolver_from_closing() -> None:
    def test(lab: Lab) -> None:
        one = lab.container()
        NameServer(one, HOST4, answer_to)
        service = Resolver(one.pod, one.netns, (SERVER,))
        service.start()
        big = query_of(b"b" * 30_000)
        for tag in range(4 * resolver.MAX_QUERIES):
            one.pod.dns.sendall(frame(resolver.TCP, tag, big))
        assert len(service._waiting) <= resolver.MAX_QUERIES
        service.close()

    in_lab(test)


# ---- port-forward


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_connection_to_any_loopback_port_of_the_namespace_reaches_the_guest(address: str) -> None:
    def test(lab: Lab) -> None:
        one = lab.container()
        forward = Forward(one.pod, one.netns, one.logged)
        forward.start()
        for port in (80, 8080, 65535):
            with one.pod.inside(lambda p=port: listen("127.0.0.1", p)) as server:  # type: ignore[misc]
                exchange(server, lambda p=port: one.inside(lambda: connect(address, p)), 2_000_000)  # type: ignore[misc]
        # Docker's name server, and whatever listens elsewhere in the namespace, is left alone; so is the host.
        with one.inside(lambda: listen(SERVER, 5300)) as server:
            exchange(server, lambda: one.inside(lambda: connect(SERVER, 5300)))
        with (
            one.inside(lambda: listen("127.0.0.1", 53, socket.SOCK_DGRAM)) as server,
            one.inside(lambda: connected(("127.0.0.1", 53), socket.SOCK_DGRAM)) as client,
        ):
            client.send(b"question")
            assert server.recv(100) == b"question"
        with pytest.raises(ConnectionRefusedError):
            connect(address, 80)
        forward.close()
        forward.close()
        with pytest.raises(ConnectionRefusedError):
            one.inside(lambda: connect(address, 80))

    in_lab(test)


def test_a_port_where_nobody_listens_is_reset() -> None:
    def test(lab: Lab) -> None:
        one = lab.container()
        forward = Forward(one.pod, one.netns, one.logged)
        forward.start()
        with one.inside(lambda: connect("127.0.0.1", 81)) as client, pytest.raises(ConnectionResetError):
            client.recv(1)
        one.pod.until(lambda: bool(one.log))
        assert one.log == ["port-forward: port 81: Connection refused"]
        forward.close()

    in_lab(test)


def test_each_direction_of_a_forwarded_connection_ends_by_itself() -> None:
    def test(lab: Lab) -> None:
        one = lab.container()
        forward = Forward(one.pod, one.netns, one.logged)
        forward.start()
        with one.pod.inside(lambda: listen("127.0.0.1", 80)) as server:
            with one.inside(lambda: connect("127.0.0.1", 80)) as client, server.accept()[0] as peer:
                client.shutdown(socket.SHUT_WR)
                assert peer.recv(1) == b""
                peer.sendall(b"after the end")
                peer.shutdown(socket.SHUT_WR)
                assert read_all(client) == b"after the end"
            with one.inside(lambda: connect("127.0.0.1", 80)) as client, server.accept()[0] as peer:
                peer.sendall(b"first")
                peer.shutdown(socket.SHUT_WR)
                assert read_all(client) == b"first"
                client.sendall(b"then")
                client.shutdown(socket.SHUT_WR)
                assert read_all(peer) == b"then"
            # One that is under way does not keep it from closing.
            with one.inside(lambda: connect("127.0.0.1", 80)) as client, server.accept()[0]:
                forward.close()
                assert client.recv(1) == b""

    in_lab(test)


def test_two_sandboxes_in_a_row_in_one_namespace_can_forward() -> None:
    def test(lab: Lab) -> None:
        one = lab.container()
        for _ in range(2):
            forward = Forward(one.pod, one.netns, one.logged)
            forward.start()
            with one.pod.inside(lambda: listen("127.0.0.1", 80)) as server:
                exchange(server, lambda: one.inside(lambda: connect("127.0.0.1", 80)))
            forward.close()

    in_lab(test)

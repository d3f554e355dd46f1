"""The program that tells what arrives for a guest, frame by frame, run by the kernel (BPF_PROG_TEST_RUN).

``test_pod_network.py`` has it at work between real stacks.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket
import struct
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casemate.host import bpf, namespaces, steer, syscalls
from tests.vm.host_tools import needs_root
from tests.vm.pod_guest import new_netns, sh

pytestmark = needs_root

OK, REDIRECT = 0, 7  # TC_ACT_*
PROG_TEST_RUN = 10
ETHER = bytes.fromhex("020000000001020000000002")
T = TypeVar("T")

# In these tests the "guest" is an interface that does not exist: what goes to both is seen as OK, as that is what the
# namespace's stack gets; that the guest has it as well is for the tests with real stacks.


class Namespace:
    """A namespace with connected sockets, and the program in it."""

    def __init__(self) -> None:
        self.netns = new_netns()
        self.program = bpf.program(bpf.SCHED_CLS, steer.to_guest(4000), "casemate_test")
        self.sockets: list[socket.socket] = []

    def inside(self, function: Callable[[], T]) -> T:
        return namespaces.in_netns(self.netns, function)

    def run(self, frame: bytes) -> int:
        """What the program says of a frame."""
        data = ctypes.create_string_buffer(frame, len(frame))
        # union bpf_attr, test: prog_fd, retval, data_size_in, data_size_out, data_in, data_out, repeat, …
        attributes = ctypes.create_string_buffer(
            struct.pack("=IIIIQQII40x", self.program, 0, len(frame), 0, ctypes.addressof(data), 0, 1, 0), 80
        )
        number = syscalls._BPF[os.uname().machine]
        self.inside(
            lambda: syscalls._syscall(number, "run", PROG_TEST_RUN, ctypes.byref(attributes), len(attributes.raw))
        )
        return int(struct.unpack_from("=I", attributes.raw, 4)[0])

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        os.close(self.program)
        os.close(self.netns)


@pytest.fixture(scope="module")
def namespace() -> Namespace:
    return Namespace()


def arp(operation: int) -> bytes:
    return ETHER + struct.pack("!HHHBBH20x", 0x0806, 1, 0x0800, 6, 4, operation)


def ip4(
    protocol: int,
    rest: bytes,
    *,
    fragment: int = 0,
    options: bytes = b"",
    ends: tuple[str, str] = ("192.0.2.9", "192.0.2.1"),
) -> bytes:
    source, target = ends
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45 + len(options) // 4, 0, 20 + len(options) + len(rest), 1, fragment, 64, protocol, 0,
        socket.inet_aton(source), socket.inet_aton(target),
    )  # fmt: skip
    return ETHER + b"\x08\x00" + head + options + rest


def ip6(protocol: int, rest: bytes, ends: tuple[str, str] = ("2001:db8::9", "2001:db8::1")) -> bytes:
    source, target = (ipaddress.ip_address(one).packed for one in ends)
    return ETHER + b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, len(rest), protocol, 64) + source + target + rest


def ports(source: int, target: int) -> bytes:
    return struct.pack("!HH", source, target) + bytes(20)


@pytest.mark.parametrize(
    ("frame", "verdict"),
    [
        (arp(1), REDIRECT), (arp(2), OK), (arp(2)[:20], REDIRECT),
        (ip4(1, bytes([0, 0]) + bytes(6)), REDIRECT), (ip4(1, bytes([8, 0]) + bytes(6)), REDIRECT),
        (ip4(1, bytes([3, 4]) + bytes(6)), OK), (ip4(1, bytes([5, 0]) + bytes(6)), REDIRECT),
        (ip4(1, bytes([11, 0]) + bytes(6)), OK), (ip4(1, bytes([12, 0]) + bytes(6)), OK),
        (ip4(1, bytes([3, 4]) + bytes(6), options=bytes(8)), OK), (ip4(1, b""), REDIRECT),
        (ip6(58, bytes([128, 0]) + bytes(6)), REDIRECT), (ip6(58, bytes([135, 0]) + bytes(22)), REDIRECT),
        (ip6(58, bytes([136, 0]) + bytes(22)), OK), (ip6(58, bytes([134, 0]) + bytes(22)), OK),
        (ip6(58, bytes([137, 0]) + bytes(22)), REDIRECT),
        *((ip6(58, bytes([kind, 0]) + bytes(6)), OK) for kind in (1, 2, 3, 4)),
        (ip6(58, bytes([130, 0]) + bytes(22)), REDIRECT), (ip6(58, b""), REDIRECT),
        (ip4(6, ports(80, 80)), REDIRECT), (ip6(6, ports(80, 80)), REDIRECT),
        (ip4(17, ports(80, 80)), REDIRECT), (ip6(17, ports(80, 80)), REDIRECT),
        (ip4(132, ports(80, 80)), REDIRECT), (ip6(132, ports(80, 80)), REDIRECT),
        (ETHER + b"\x88\xcc" + bytes(50), REDIRECT), (ETHER + b"\x00\x10" + bytes(50), REDIRECT),
    ],
)  # fmt: skip
def test_what_no_socket_has_to_do_with(namespace: Namespace, frame: bytes, verdict: int) -> None:
    assert namespace.run(frame) == verdict


@pytest.mark.parametrize("family", [4, 6])
def test_only_what_belongs_to_a_connected_socket_is_the_namespaces(family: int) -> None:
    here, there = ("192.0.2.1", "192.0.2.9") if family == 4 else ("2001:db8::1", "2001:db8::9")
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    ip = ip4 if family == 4 else ip6
    space = Namespace()
    nodad = " nodad" if family == 6 else ""
    space.inside(lambda: sh(
        f"ip addr add {here} dev lo{nodad}; ip addr add {there} dev lo{nodad}; ip addr add {here[:-1]}2 dev lo{nodad}"
    ))

    def udp() -> socket.socket:
        sock = socket.socket(kind, socket.SOCK_DGRAM)
        sock.bind((here, 5000))
        sock.connect((there, 53))
        return sock

    def wildcard() -> socket.socket:
        sock = socket.socket(kind, socket.SOCK_DGRAM)
        sock.bind(("0.0.0.0" if family == 4 else "::", 5001))
        return sock

    def tcp() -> list[socket.socket]:
        listener = socket.create_server((there, 53), family=kind)
        client = socket.create_connection((there, 53), source_address=(here, 5000), timeout=5)
        return [listener, client, listener.accept()[0]]

    space.sockets += [space.inside(udp), space.inside(wildcard), *space.inside(tcp)]
    for protocol in (6, 17):
        assert space.run(ip(protocol, ports(53, 5000), ends=(there, here))) == OK
        for frame in (
            ip(protocol, ports(53, 5002), ends=(there, here)),
            ip(protocol, ports(54, 5000), ends=(there, here)),
            ip(protocol, ports(53, 5000), ends=(there, here[:-1] + "2")),
            ip(protocol, ports(53, 5000), ends=(there[:-1] + "8", here)),
            ip(protocol, ports(53, 5001), ends=(there, here)),  # only bound, or nobody's
            ip(protocol, ports(5009, 53), ends=(here, there)),  # a new connection to one that listens
            ip(protocol, ports(53, 5000), ends=(there, here))[:-22],  # cut off in the ports
        ):
            assert space.run(frame) == REDIRECT
        if family == 4:
            assert space.run(ip4(protocol, ports(53, 5000), ends=(there, here), options=bytes(12))) == OK
            for fragment in (0x2000, 0x0001, 0x2010):
                assert space.run(ip4(protocol, ports(53, 5000), ends=(there, here), fragment=fragment)) == REDIRECT
    space.close()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=54, max_size=120), st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x81\x00"]))
def test_every_frame_goes_somewhere(namespace: Namespace, frame: bytes, kind: bytes) -> None:
    assert namespace.run(ETHER + kind + frame[14:]) in (OK, REDIRECT)

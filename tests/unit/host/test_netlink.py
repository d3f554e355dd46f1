"""Reading rtnetlink messages: what the kernel says, what it may refuse, and nonsense of every kind."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import NetworkError
from casemate.host import netlink
from casemate.host.netlink import Message, Netlink, attribute, number, text

PARSERS: list[Callable[[bytes], object]] = [
    netlink.parse_link, netlink.parse_address, netlink.parse_route, netlink.parse_neighbour
]  # fmt: skip
IP4 = socket.inet_aton("192.0.2.1")
IP6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1")


def message(kind: int, body: bytes, *, flags: int = 0, sequence: int = 1) -> bytes:
    data = struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body
    return data + bytes(-len(data) % 4)


def link(*parts: bytes, index: int = 3, flags: int = netlink.IFF_UP, hardware: int = 1) -> bytes:
    return struct.pack("=BxHiII", 0, hardware, index, flags, 0) + b"".join(parts)


def address(family: int, prefix: int, *parts: bytes, flags: int = 0x80) -> bytes:
    return struct.pack("=BBBBI", family, prefix, flags, 0, 3) + b"".join(parts)


def route(family: int, prefix: int, *parts: bytes, kind: int = 1, table: int = 254, flags: int = 0) -> bytes:
    return struct.pack("=BBBBBBBBI", family, prefix, 0, 0, table, 3, 0, kind, flags) + b"".join(parts)


# ---- form


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=8, unique_by=lambda pair: pair[0]))
def test_attributes_are_read_as_written(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(attribute(kind, value) for kind, value in pairs)
    assert netlink.attributes(data) == dict(pairs)
    assert netlink.attributes(b"12345678" + data, 8) == dict(pairs)


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=40), st.integers(0, 9)), max_size=6))
def test_messages_are_read_as_written(parts: list[tuple[int, bytes, int]]) -> None:
    data = b"".join(message(kind, body, sequence=sequence) for kind, body, sequence in parts)
    assert list(netlink.messages(data)) == [Message(kind, 0, sequence, body) for kind, body, sequence in parts]


@given(st.binary(max_size=300))
def test_nonsense_is_refused_or_read_and_nothing_else(data: bytes) -> None:
    for parse in (*PARSERS, netlink.attributes):
        with contextlib.suppress(NetworkError):
            parse(data)
    with contextlib.suppress(NetworkError):
        assert sum(16 + len(one.body) for one in netlink.messages(data)) <= len(data)


@given(st.data())
def test_damaged_entries_are_refused_or_read_and_nothing_else(data: st.DataObject) -> None:
    """Close to what is right, which random bytes never are."""
    entries = [
        link(text(3, "eth0"), attribute(1, bytes(6)), number(4, 1500), attribute(18, text(1, "veth"))),
        address(2, 24, attribute(1, IP4), attribute(2, IP4), number(8, 0x80)),
        address(10, 64, attribute(1, IP6)),
        route(2, 24, attribute(1, IP4), number(4, 3), attribute(9, struct.pack("=HBBi", 8, 0, 0, 3))),
        route(10, 0, number(4, 3), attribute(5, IP6), number(15, 254)),
        struct.pack("=BxxxiHBB", 2, 3, 0x80, 0, 1) + attribute(1, IP4) + attribute(2, bytes(6)),
    ]
    entry = bytearray(data.draw(st.sampled_from(entries)))
    for _ in range(data.draw(st.integers(1, 4))):
        entry[data.draw(st.integers(0, len(entry) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(entry[: data.draw(st.integers(0, len(entry)))])
    for body in (bytes(entry), cut):
        for parse in PARSERS:
            with contextlib.suppress(NetworkError):
                parse(body)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("=IHHII", 15, 16, 0, 1, 0),  # shorter than its head
        struct.pack("=IHHII", 17, 16, 0, 1, 0),  # longer than the datagram
        struct.pack("=IHHII", 0xFFFFFFFF, 16, 0, 1, 0) + bytes(100),
        message(16, b"") + bytes(3),
    ],
)
def test_a_message_that_does_not_fit_is_refused(data: bytes) -> None:
    with pytest.raises(NetworkError, match="a netlink message is damaged"):
        list(netlink.messages(data))


def test_too_many_attributes_are_refused() -> None:
    assert len(netlink.attributes(attribute(1, b"") * netlink.MAX_ATTRIBUTES)) == 1
    with pytest.raises(NetworkError, match="damaged"):
        netlink.attributes(attribute(1, b"") * (netlink.MAX_ATTRIBUTES + 1))


# ---- entries


def test_a_link() -> None:
    body = link(
        text(3, "eth0"), attribute(1, bytes.fromhex("021122334455")), number(4, 1400), number(10, 7),
        attribute(18 | 0x8000, text(1, "veth") + attribute(2, b"x")),
    )  # fmt: skip
    assert netlink.parse_link(body) == netlink.Link(3, "eth0", 1, 1, "02:11:22:33:44:55", 1400, 7, "veth")
    assert netlink.parse_link(link(text(3, "ib0"), attribute(1, bytes(20)))).mac == ""


def test_addresses() -> None:
    plain = netlink.parse_address(address(2, 24, attribute(1, IP4), attribute(2, IP4), number(8, 0x280)))
    assert plain == netlink.Address(3, 2, "192.0.2.1", 24, None, 0x280)
    peer = netlink.parse_address(address(2, 32, attribute(1, socket.inet_aton("192.0.2.2")), attribute(2, IP4)))
    assert peer == netlink.Address(3, 2, "192.0.2.1", 32, "192.0.2.2", 0x80)
    six = netlink.parse_address(address(10, 64, attribute(1, IP6)))
    assert six == netlink.Address(3, 10, "2001:db8::1", 64, None, 0x80)
    assert netlink.parse_address(address(28, 0)) is None
    for bad in (address(2, 24), address(2, 33, attribute(1, IP4)), address(2, 24, attribute(1, IP6)), b"\x02"):
        with pytest.raises(NetworkError, match="damaged"):
            netlink.parse_address(bad)


def test_routes() -> None:
    default = netlink.parse_route(route(2, 0, number(4, 3), attribute(5, IP4), number(6, 100), flags=4))
    assert default == netlink.RouteEntry(3, 2, "0.0.0.0/0", "192.0.2.1", 100, 0, 3, None, True)
    direct = netlink.parse_route(
        route(10, 64, attribute(1, IP6), number(4, 3), attribute(7, IP6), number(15, 254), table=0)
    )
    assert direct == netlink.RouteEntry(3, 10, "2001:db8::1/64", None, 0, 0, 3, "2001:db8::1", False)
    hops = b"".join(struct.pack("=HBBi", 16, flags, 0, index) + attribute(5, IP4) for flags, index in ((4, 5), (0, 6)))
    many = netlink.parse_route(route(2, 24, attribute(1, IP4), attribute(9, hops)))
    assert many == netlink.RouteEntry(5, 2, "192.0.2.1/24", "192.0.2.1", 0, 0, 3, None, True)


@pytest.mark.parametrize(
    "body",
    [
        route(2, 8, number(4, 3), kind=6),  # blackhole
        route(2, 8, number(4, 3), table=255),
        route(2, 8, number(4, 3), number(15, 1000), table=252),
        route(2, 8, number(4, 3), flags=0x200),  # cloned
        route(2, 8),  # through no interface
        route(28, 8, number(4, 3)),
        route(2, 8, number(4, 3), attribute(18, b"\x0a\0" + IP6)),  # via inet6
        route(2, 8, number(4, 3), attribute(22 | 0x8000, b"")),  # encapsulated
        struct.pack("=BBBBBBBBI", 2, 8, 8, 0, 254, 3, 0, 1, 0) + number(4, 3),  # by source
        struct.pack("=BBBBBBBBI", 2, 8, 0, 4, 254, 3, 0, 1, 0) + number(4, 3),  # by type of service
    ],
)
def test_routes_that_are_not_for_a_guest(body: bytes) -> None:
    assert netlink.parse_route(body) is None


def test_neighbours() -> None:
    def entry(state: int = 0x80, flags: int = 0, mac: bytes = bytes(6), family: int = 2) -> bytes:
        return struct.pack("=BxxxiHBB", family, 3, state, flags, 1) + attribute(1, IP4) + attribute(2, mac)

    assert netlink.parse_neighbour(entry()) == netlink.NeighbourEntry(3, "192.0.2.1", "00:00:00:00:00:00")
    for other in (entry(state=2), entry(flags=8), entry(mac=b"12345"), entry(family=7)):
        assert netlink.parse_neighbour(other) is None


# ---- asking


class Kernel:
    """A socket whose answers are written down."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.asked: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.asked.append(data)

    def recv(self, size: int) -> bytes:
        if not self.answers:
            raise TimeoutError
        return self.answers.pop(0)


def asking(*answers: bytes) -> tuple[Netlink, Kernel]:
    kernel = Kernel(*answers)
    ask = Netlink.__new__(Netlink)
    ask.socket = kernel  # type: ignore[assignment]
    ask._sequence = 0
    return ask, kernel


def refusal(code: int, said: str = "") -> bytes:
    body = struct.pack("=i", -code) + bytes(16) + (text(1, said) if said else b"")
    return message(netlink.NLMSG_ERROR, body, flags=netlink.NLM_F_ACK_TLVS if said else 0)


def test_a_request_that_is_granted() -> None:
    ask, kernel = asking(message(netlink.NLMSG_ERROR, struct.pack("=i", 1), sequence=77), refusal(0))
    ask.request(16, 0x400, b"body")
    assert kernel.asked == [struct.pack("=IHHII", 20, 16, 0x405, 1, 0) + b"body"] and kernel.answers == []


@pytest.mark.parametrize(("said", "shown"), [("", "Operation not permitted"), ("the kernel's own words", "own words")])
def test_a_request_that_is_refused(said: str, shown: str) -> None:
    ask, _ = asking(refusal(errno.EPERM, said))
    with pytest.raises(PermissionError, match=shown):
        ask.request(16, 0, b"")


def test_a_dump_over_several_datagrams() -> None:
    ask, _ = asking(
        message(16, b"one!") + message(16, b"two!"), message(netlink.NLMSG_NOOP, b""),
        message(16, b"old!", sequence=99) + message(16, b"more"), message(netlink.NLMSG_DONE, bytes(4)),
    )  # fmt: skip
    assert ask.dump(18, b"") == [b"one!", b"two!", b"more"]


def test_a_dump_of_a_table_that_changed_is_asked_for_anew() -> None:
    ask, kernel = asking(
        message(16, b"torn", flags=netlink.NLM_F_DUMP_INTR) + message(netlink.NLMSG_DONE, bytes(4)),
        message(16, b"good", sequence=2) + message(netlink.NLMSG_DONE, bytes(4), sequence=2),
    )
    assert ask.dump(18, b"") == [b"good"] and len(kernel.asked) == 2


def test_a_table_that_never_stands_still_is_given_as_it_was() -> None:
    torn = [
        message(16, b"torn", flags=netlink.NLM_F_DUMP_INTR, sequence=n) + message(netlink.NLMSG_DONE, b"", sequence=n)
        for n in range(1, netlink.TRIES + 1)
    ]
    ask, kernel = asking(*torn)
    assert ask.dump(18, b"") == [b"torn"] and kernel.answers == []


def test_a_dump_that_fails() -> None:
    for answer in (refusal(errno.EOPNOTSUPP), message(netlink.NLMSG_DONE, struct.pack("=i", -errno.EOPNOTSUPP))):
        ask, _ = asking(answer)
        with pytest.raises(OSError, match="not supported"):
            ask.dump(18, b"")


def test_answers_that_make_no_sense_or_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in (message(netlink.NLMSG_ERROR, b""), message(netlink.NLMSG_OVERRUN, b"")):
        ask, _ = asking(answer)
        with pytest.raises(NetworkError, match="damaged"):
            ask.request(16, 0, b"")
    ask, _ = asking()
    with pytest.raises(NetworkError, match="does not answer on netlink within 5 s"):
        ask.request(16, 0, b"")
    monkeypatch.setattr(netlink, "MAX_DUMP", 1000)
    ask, _ = asking(*[message(16, bytes(400))] * 3)
    with pytest.raises(NetworkError, match="more than"):
        ask.dump(18, b"")


def test_the_kernel_answers_here_too() -> None:
    """Reading needs no privileges."""
    with Netlink() as ask:
        links = ask.links()
        assert [one.index for one in links] == sorted(one.index for one in links)
        lo = ask.link("lo")
        assert lo.index == 1 and lo.flags & netlink.IFF_LOOPBACK
        indexes = [one.index for one in ask.addresses()] + [one.index for one in ask.routes()]
        assert all(index > 0 for index in indexes + [one.index for one in ask.neighbours()])
        with pytest.raises(OSError, match="there is no interface nowhere0"):
            ask.link("nowhere0")

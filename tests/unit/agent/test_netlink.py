"""Netlink messages byte by byte."""

from __future__ import annotations

import socket
import sys

import pytest

from casemate.agent import netlink
from casemate.protocol.wire import RequestFailed

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the expected bytes are little-endian")


def test_attribute_is_padded() -> None:
    assert netlink.attribute(4, b"abcd") == b"\x08\0\x04\0abcd"
    assert netlink.attribute(1, b"abc") == b"\x07\0\x01\0abc\0"


def test_link_message() -> None:
    packed = netlink.message(netlink.RTM_NEWLINK, 0, 7, netlink.link_body(3, True, 1400))
    assert packed == bytes.fromhex(
        "28000000" "1000" "0500" "07000000" "00000000"  # 40 bytes, RTM_NEWLINK, REQUEST|ACK, sequence 7
        "00" "00" "0000" "03000000" "01000000" "01000000"  # interface 3, IFF_UP
        "0800" "0400" "78050000"  # IFLA_MTU 1400
    )  # fmt: skip


def test_address_message() -> None:
    body = netlink.address_body(3, socket.AF_INET, bytes([10, 87, 0, 5]), 32)
    assert body == bytes.fromhex("0220000003000000080002000a570005080001000a570005")


def test_address_with_a_broadcast_address_and_an_ipv6_one() -> None:
    body = netlink.address_body(3, socket.AF_INET, bytes([10, 87, 0, 5]), 22)
    assert body.endswith(bytes.fromhex("08000400" "0a5703ff"))
    body = netlink.address_body(3, socket.AF_INET6, bytes(15) + b"\1", 64)
    assert body[:8] == bytes.fromhex("0a400200" "03000000")  # IFA_F_NODAD


def test_route_message() -> None:
    body = netlink.route_body(3, socket.AF_INET, bytes(4), 0, bytes([10, 87, 0, 1]), onlink=True)
    assert body == bytes.fromhex(
        "02" "00" "00" "00" "fe" "04" "00" "01" "04000000"  # main table, static, universe, unicast, onlink
        "08000500" "0a570001" "08000400" "03000000"
    )  # fmt: skip
    body = netlink.route_body(3, socket.AF_INET, bytes([10, 2, 0, 0]), 16, None, 100, 253, bytes([10, 1, 0, 9]))
    assert body == bytes.fromhex(
        "02" "10" "00" "00" "fe" "04" "fd" "01" "00000000"
        "08000100" "0a020000" "08000600" "64000000" "08000700" "0a010009" "08000400" "03000000"
    )  # fmt: skip


def test_neighbour_message() -> None:
    body = netlink.neighbour_body(3, socket.AF_INET, bytes([10, 1, 0, 9]), bytes.fromhex("020000000007"))
    assert body == bytes.fromhex(
        "02" "000000" "03000000" "8000" "00" "00" "08000100" "0a010009" "0a000200" "020000000007" "0000"
    )  # fmt: skip


def test_addresses() -> None:
    assert netlink.parse_address("10.0.0.1/24") == (socket.AF_INET, b"\x0a\0\0\x01", 24)
    assert netlink.parse_address("10.0.0.1") == (socket.AF_INET, b"\x0a\0\0\x01", 32)
    assert netlink.parse_address("fd00::1/64") == (socket.AF_INET6, b"\xfd" + bytes(14) + b"\x01", 64)
    for bad in ("", "10.0.0", "10.0.0.1/33", "10.0.0.1/", "10.0.0.1/-1", "x", "::1/129", "10.0.0.1/٣", "1.2.3.4/0000"):
        with pytest.raises(RequestFailed):
            netlink.parse_address(bad)

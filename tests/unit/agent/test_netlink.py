"""Netlink messages byte by byte, and a real network namespace."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from casemate.agent import netlink
from casemate.protocol.wire import RequestFailed

SOURCE = Path(__file__).parents[3] / "src"

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the expected bytes are little-endian")


def test_attribute_is_padded() -> None:
    assert netlink.attribute(4, b"abcd") == b"\x08\0\x04\0abcd"
    assert netlink.attribute(1, b"abc") == b"\x07\0\x01\0abc\0"


def test_link_message() -> None:
    packed = netlink.message(netlink.RTM_NEWLINK, 0, 7, netlink.link_body(3, 1400))
    assert packed == bytes.fromhex(
        "28000000" "1000" "0500" "07000000" "00000000"  # 40 bytes, RTM_NEWLINK, REQUEST|ACK, sequence 7
        "00" "00" "0000" "03000000" "01000000" "01000000"  # interface 3, IFF_UP
        "0800" "0400" "78050000"  # IFLA_MTU 1400
    )  # fmt: skip


def test_address_message() -> None:
    body = netlink.address_body(3, socket.AF_INET, bytes([10, 87, 0, 5]), 32)
    assert body == bytes.fromhex("0220000003000000080002000a570005080001000a570005")


def test_route_message() -> None:
    body = netlink.default_route_body(3, socket.AF_INET, bytes([10, 87, 0, 1]))
    assert body == bytes.fromhex(
        "02" "00" "00" "00" "fe" "04" "00" "01" "04000000"  # main table, static, universe, unicast, onlink
        "08000500" "0a570001" "08000400" "03000000"
    )  # fmt: skip


def test_addresses() -> None:
    assert netlink.parse_address("10.0.0.1/24") == (socket.AF_INET, b"\x0a\0\0\x01", 24)
    assert netlink.parse_address("10.0.0.1") == (socket.AF_INET, b"\x0a\0\0\x01", 32)
    assert netlink.parse_address("fd00::1/64") == (socket.AF_INET6, b"\xfd" + bytes(14) + b"\x01", 64)
    for bad in ("", "10.0.0", "10.0.0.1/33", "10.0.0.1/", "10.0.0.1/-1", "x", "::1/129", "10.0.0.1/٣", "1.2.3.4/0000"):
        with pytest.raises(RequestFailed):
            netlink.parse_address(bad)


IN_NAMESPACE = """
import json, os, subprocess, sys
sys.path.insert(0, sys.argv[1])
subprocess.run('''set -e; mount -t sysfs none /sys; ip link set lo down
    ip link add test0 address 02:00:00:00:00:07 type veth peer name other
    ip link set other up''', shell=True, check=True)
from casemate.agent import netlink
from casemate.protocol.wire import RequestFailed
one = {"mac": "02:00:00:00:00:07", "addresses": ["10.87.0.5/32", "fd00::5/128"], "gateway": "10.87.0.1", "mtu": 1400}
netlink.setup([one])
netlink.setup([one])  # once more is no error
try:
    netlink.setup([{**one, "mac": "02:00:00:00:00:08"}])
    sys.exit("an unknown address was taken")
except RequestFailed as error:
    assert error.code == "bad-spec"
try:
    netlink.setup([{**one, "mtu": None, "addresses": ["0.0.0.0/0"], "gateway": "127.0.0.1"}])
    sys.exit("nonsense was taken")
except OSError as error:
    assert "test0" in str(error)
for command in (["addr"], ["route"]):
    print(subprocess.run(["ip", "-json", *command], capture_output=True, text=True, check=True).stdout.strip())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a network namespace")
def test_a_real_interface() -> None:
    done = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, "-c", IN_NAMESPACE, str(SOURCE)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    addresses, routes = (json.loads(line) for line in done.stdout.splitlines())
    links = {link["ifname"]: link for link in addresses}
    assert "UP" in links["lo"]["flags"]
    assert "UP" in links["test0"]["flags"]
    assert links["test0"]["mtu"] == 1400
    found = {(info["local"], info["prefixlen"]) for info in links["test0"]["addr_info"]}
    assert {("10.87.0.5", 32), ("fd00::5", 128)} <= found
    assert routes == [
        {"dst": "default", "gateway": "10.87.0.1", "dev": "test0", "protocol": "static", "flags": ["onlink"]}
    ]

"""What a description of the network becomes, and real interfaces in a network namespace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from casemate.agent.network import Interface
from casemate.protocol.wire import RequestFailed

SOURCE = Path(__file__).parents[3] / "src"
MAC = "02:00:00:00:00:07"


@pytest.mark.parametrize(
    "change",
    [
        {"mac": None},
        {"mac": 1},
        {"name": "a/b"},
        {"name": ""},
        {"name": "lo"},
        {"name": "x" * 16},
        {"name": "a b"},
        {"name": ".."},
        {"name": "ä"},
        {"mtu": 1},
        {"addresses": ["x"]},
        {"addresses": "10.0.0.1"},
        {"addresses": ["10.0.0.1/24"] * 65},
        {"gateway": "fd00::1/129"},
        {"routes": [1]},
        {"routes": [{}]},
        {"routes": [{"destination": "10.0.0.0/8", "gateway": "fd00::1"}]},
        {"routes": [{"destination": "10.0.0.0/8", "scope": "far"}]},
        {"routes": [{"destination": "10.0.0.0/8", "metric": -1}]},
        {"routes": [{"destination": "10.0.0.0/8", "source": 3}]},
        {"neighbours": [1]},
        {"neighbours": [{"address": "10.0.0.1", "mac": "02:00"}]},
        {"neighbours": [{"address": "10.0.0.1", "mac": "zz:00:00:00:00:01"}]},
    ],
)
def test_what_is_no_interface(change: dict[str, Any]) -> None:
    with pytest.raises(RequestFailed) as caught:
        Interface({"mac": MAC, **change})
    assert caught.value.code == "bad-spec"


def test_routes_through_a_gateway_come_last() -> None:
    routes = [{"destination": "0.0.0.0/0", "gateway": "10.1.0.1"}, {"destination": "10.1.0.1/32", "scope": "link"}]
    assert [route[2] for route in Interface({"mac": MAC, "routes": routes}).routes] == [32, 0]


IN_NAMESPACE = """
import json, os, subprocess, sys, threading, time
sys.path.insert(0, sys.argv[1])
def sh(text):
    done = subprocess.run(text, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
def show():
    print(json.dumps({what: json.loads(sh(f"ip -json {what}") or "[]") for what in
                      ("addr", "route", "-6 route", "neigh show nud permanent")}))
sh("mount -t sysfs none /sys; ip link set lo down")
for number in (7, 8):
    sh(f"ip link add test{number} address 02:00:00:00:00:0{number} type veth peer name other{number}")
    sh(f"ip link set other{number} up")
from casemate.agent import devices, network
from casemate.protocol.wire import RequestFailed
"""


def inside(script: str) -> list[Any]:
    """Run a script in a network namespace with two links; what it prints, a JSON value in each line."""
    command = ["unshare", "--net", "--mount", sys.executable, "-c", IN_NAMESPACE + script, str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def links(shown: dict[str, Any]) -> dict[str, Any]:
    return {link["ifname"]: link for link in shown["addr"]}


def addresses(shown: dict[str, Any], name: str) -> set[str]:
    return {f"{a['local']}/{a['prefixlen']}" for a in links(shown)[name]["addr_info"]}


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a network namespace")


@needs_root
def test_an_interface_of_a_sandbox_of_one_container() -> None:
    (shown,) = inside("""
one = {"mac": "02:00:00:00:00:07", "addresses": ["10.87.0.5/32", "fd00::5/128"], "gateway": "10.87.0.1", "mtu": 1400}
network.apply([one])
network.apply([one])  # once more is no error
devices.PATIENCE = network.PATIENCE = 0.2
try:
    network.apply([{**one, "mac": "02:00:00:00:00:09"}])
    sys.exit("an unknown address was taken")
except RequestFailed as error:
    assert error.code == "bad-spec"
network.apply([one])
try:
    network.apply([{**one, "mtu": None, "addresses": ["0.0.0.0/0"], "gateway": "127.0.0.1"}])
    sys.exit("nonsense was taken")
except OSError as error:
    assert "test7" in str(error)
network.apply([one])
show()
""")
    assert "UP" in links(shown)["lo"]["flags"]
    assert "UP" in links(shown)["test7"]["flags"]
    assert links(shown)["test7"]["mtu"] == 1400
    assert {"10.87.0.5/32", "fd00::5/128"} <= addresses(shown, "test7")
    assert shown["route"] == [
        {"dst": "default", "gateway": "10.87.0.1", "dev": "test7", "protocol": "static", "flags": ["onlink"]}
    ]


@needs_root
def test_interfaces_as_an_engine_has_them_and_their_changes() -> None:
    first, same, second, third = inside("""
one = {
    "mac": "02:00:00:00:00:07", "name": "test8", "mtu": 1400,
    "addresses": ["10.1.0.5/24", "fd00:1::5/64", "fe80::7/64"],
    "routes": [
        {"destination": "0.0.0.0/0", "gateway": "10.1.0.1", "metric": 0, "scope": "global", "source": None},
        {"destination": "10.9.0.0/16", "gateway": "10.1.0.2", "metric": 7},
        {"destination": "10.8.0.1/32", "gateway": None, "scope": "link", "source": "10.1.0.5"},
        {"destination": "::/0", "gateway": "fd00:1::1", "metric": 1024},
    ],
    "neighbours": [{"address": "10.1.0.1", "mac": "02:00:00:00:01:01"}],
}
two = {"mac": "02:00:00:00:00:08", "name": "test7", "mtu": 1500, "addresses": ["10.2.0.5/24"], "routes": []}
network.apply([one, two])
show()
sh("ip addr add 10.77.0.1/24 dev test8")  # a container's own doing
before = sh("ip -json addr")
network.apply([one, two])
assert sh("ip -json addr") == before, "nothing is taken away for a moment"
show()
two["addresses"], two["name"] = ["10.2.0.6/24", "fd00:2::6/64"], "eth1"
two["routes"] = [{"destination": "0.0.0.0/0", "gateway": "10.2.0.1"}]
one["routes"], one["neighbours"] = one["routes"][1:2], []
network.apply([one, two])
show()
network.apply([one])
show()
""")
    assert links(first)["test8"]["address"] == MAC, "they have swapped names"
    assert links(first)["test8"]["mtu"] == 1400
    assert addresses(first, "test8") == {"10.1.0.5/24", "fd00:1::5/64", "fe80::7/64"}
    assert not any("tentative" in a for a in links(first)["test8"]["addr_info"])
    assert addresses(first, "test7") == {"10.2.0.5/24"}, "no IPv6 at all where the host has none"
    routes = {route["dst"]: route for route in first["route"] if route["protocol"] == "static"}
    assert routes.keys() == {"default", "10.9.0.0/16", "10.8.0.1"}
    assert routes["10.9.0.0/16"]["metric"] == 7
    assert routes["10.8.0.1"]["prefsrc"] == "10.1.0.5"
    assert [r["gateway"] for r in first["-6 route"] if r["dst"] == "default"] == ["fd00:1::1"]
    assert [n["dst"] for n in first["neigh show nud permanent"]] == ["10.1.0.1"]
    assert addresses(same, "test8") == {"10.1.0.5/24", "fd00:1::5/64", "fe80::7/64", "10.77.0.1/24"}
    assert same["route"][:1] == first["route"][:1]
    assert addresses(second, "eth1") == {"10.2.0.6/24", "fd00:2::6/64"}
    routes = {route["dst"]: route for route in second["route"] if route["protocol"] == "static"}
    assert routes.keys() == {"default", "10.9.0.0/16"}
    assert routes["default"]["dev"] == "eth1"
    assert second["neigh show nud permanent"] == []
    assert [r for r in second["-6 route"] if r["dst"] == "default"] == []
    assert "10.77.0.1/24" in addresses(second, "test8")
    assert addresses(third, "eth1") == set() and "UP" not in links(third)["eth1"]["flags"]
    assert [route["dst"] for route in third["route"] if route["protocol"] == "static"] == ["10.9.0.0/16"]


@needs_root
def test_an_interface_that_comes_late_is_waited_for() -> None:
    (shown,) = inside("""
def come():
    time.sleep(0.3)
    sh("ip link add late address 02:00:00:00:00:09 type veth peer name other9")
thread = threading.Thread(target=come)
thread.start()
network.apply([{"mac": "02:00:00:00:00:09", "name": "eth0", "mtu": 1500, "addresses": ["10.3.0.5/24"]}])
thread.join()
show()
""")
    assert addresses(shown, "eth0") == {"10.3.0.5/24"}


@needs_root
def test_a_bad_request_changes_nothing_and_a_taken_name_gives_way() -> None:
    before, after = inside("""
one = {"mac": "02:00:00:00:00:07", "name": "eth0", "mtu": 1500, "addresses": ["10.3.0.5/24"]}
network.apply([one])
show()
for bad in (
    [{**one, "mac": "02:00:00:00:00:08", "addresses": ["x"]}], [one, one], [one, {**one, "mac": "02:00:00:00:00:08"}],
):
    try:
        network.apply(bad)
        sys.exit(f"taken: {bad}")
    except RequestFailed as error:
        assert error.code == "bad-spec"
network.apply([one, {"mac": "02:00:00:00:00:08", "name": "other7", "mtu": 1500}])
show()
""")
    assert addresses(before, "eth0") == {"10.3.0.5/24"}
    assert addresses(after, "eth0") == {"10.3.0.5/24"}
    assert links(after)["other7"]["address"] == "02:00:00:00:00:08"

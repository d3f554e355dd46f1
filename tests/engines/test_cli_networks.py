"""Networks: names, published ports, IPv6, the way out, connecting while a container runs, none, another's."""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Iterator

import pytest

from tests.engines.engines import Client, on
from tests.engines.images import BOX, PYTHON, PYTHON_VOLUME
from tests.engines.terminal import eventually
from tests.vm.world import NAME, World

pytestmark = on("docker", "podman")

WEB = "mkdir -p /srv; hostname >/srv/index.html; exec httpd -f -p 80 -h /srv"
ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 5353))
while True:
    data, peer = s.recvfrom(65535)
    s.sendto(b"got " + data, peer)
"""
GET = "timeout 20 wget -q -O - http://{}/"


@pytest.fixture(scope="module")
def outside(cli: Client) -> Iterator[World]:
    """A world beyond the engines' host, with its name server."""
    with cli.host.world() as made, made.names():
        yield made


@pytest.fixture(scope="module")
def network(cli: Client, outside: World) -> Iterator[str]:
    """A network of a name's, with IPv6."""
    subnets = ("--subnet", "10.70.1.0/24", "--ipv6", "--subnet", "fd00:70:1::/64")
    cli.out("network", "create", *subnets, "front")
    yield "front"
    cli.out("network", "rm", "front")


@pytest.fixture(scope="module")
def server(cli: Client, network: str) -> Iterator[str]:
    """A web server in it, whose page is its host name; TCP and UDP ports of it are published."""
    options = ("--name", "server", "--hostname", "web.test", "--network", network, "--network-alias", "alias")
    ports = ("-p", "127.0.0.1:8080:80", "-p", "8081:80", "-p", "5353:5353/udp")
    script = f"{PYTHON} -c '{ECHO}' & {WEB}"
    with cli.container(*options, *ports, "-v", PYTHON_VOLUME, BOX, "sh", "-c", script) as id:
        eventually(lambda: cli.sh(id, "netstat -ln | grep -cE ':(80|5353) ' || true") == "2", "it serves")
        yield id


@pytest.fixture(scope="module")
def client(cli: Client, network: str) -> Iterator[str]:
    """Another container in it."""
    with cli.container("--name", "client", "--network", network, "--cap-add", "NET_RAW", BOX, "sleep", "86400") as id:
        yield id


@pytest.mark.feature("containers by name on a user-defined network")
def test_pair_by_name(cli: Client, server: str, client: str) -> None:
    for name in ("server", "alias"):
        assert cli.sh(client, GET.format(name)) == "web.test"
    assert "bad address" in cli.fails("exec", client, "sh", "-c", GET.format("no-such-name"))


@pytest.mark.feature("containers by name on a user-defined network")
def test_addresses_are_the_engines(cli: Client, server: str, client: str) -> None:
    known = cli.inspect(server)["NetworkSettings"]["Networks"]["front"]
    link = cli.sh(server, "cat /sys/class/net/eth0/address; ip -o address show dev eth0")
    assert known["MacAddress"] in link
    assert f"{known['IPAddress']}/24" in link
    assert f"{known['GlobalIPv6Address']}/64" in link
    assert f"default via {known['Gateway']} dev eth0" in cli.sh(server, "ip route")
    assert cli.sh(client, f"ping -c 1 -W 20 {known['IPAddress']} | grep -c ' 0% packet loss'") == "1"


@pytest.mark.feature("IPv6 networks")
def test_six(cli: Client, server: str, client: str) -> None:
    known = cli.inspect(server)["NetworkSettings"]["Networks"]["front"]
    address = known["GlobalIPv6Address"]
    assert ipaddress.ip_address(address) in ipaddress.ip_network("fd00:70:1::/64")
    assert cli.sh(client, f"ping6 -c 1 -W 20 {address} | grep -c ' 0% packet loss'") == "1"
    assert cli.sh(client, GET.format(f"[{address}]")) == "web.test"
    assert known["IPv6Gateway"] in cli.sh(server, "ip -6 route show default")


@pytest.mark.feature("published ports")
def test_published_ports(cli: Client, server: str) -> None:
    address = json.loads(cli.host.out("ip", "-j", "route", "get", "10.70.1.77"))[0]["prefsrc"]
    for place in ("127.0.0.1:8080", f"{address}:8081", "127.0.0.1:8081"):
        assert cli.host.out("sh", "-c", "busybox " + GET.format(place).replace("wget", "busybox wget")) == "web.test"
    with cli.host.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(20)
        sock.sendto(b"datagram", (address, 5353))
        assert sock.recv(100) == b"got datagram"


@pytest.mark.feature("the way out of a network")
def test_way_out(cli: Client, client: str, outside: World) -> None:
    with outside.web({"/": b"from the world"}) as clients:
        assert cli.sh(client, GET.format(outside.address)) == "from the world"
    assert clients == [outside.host]  # it comes from the host's address


@pytest.mark.feature("the way out of a network")
def test_names_outside(cli: Client, client: str, outside: World) -> None:
    with outside.web({"/": b"by its name"}):
        assert cli.sh(client, GET.format(NAME)) == "by its name"
    assert NAME in outside.questions


@pytest.mark.feature("network connect and disconnect while it runs")
def test_connect_and_disconnect(cli: Client, client: str) -> None:
    cli.out("network", "create", "--subnet", "10.70.2.0/24", "back")
    try:
        with cli.container("--name", "behind", "--network", "back", BOX, "sh", "-c", WEB) as behind:
            address = cli.inspect(behind)["NetworkSettings"]["Networks"]["back"]["IPAddress"]
            cli.out("network", "connect", "back", client)
            own = cli.inspect(client)["NetworkSettings"]["Networks"]["back"]["IPAddress"]
            eventually(lambda: own in cli.sh(client, "ip -o -4 address show dev eth1 || true"), "the address is there")
            eventually(lambda: cli("exec", client, "sh", "-c", GET.format(address)).returncode == 0, "it answers")
            assert cli.sh(client, GET.format("behind")) == behind[:12]
            cli.out("network", "disconnect", "back", client)
            eventually(lambda: "eth1" not in cli.sh(client, "ip link"), "the link is gone")
            cli.fails("exec", client, "sh", "-c", GET.format("behind"))
            assert "eth0" in cli.sh(client, "ip link")
    finally:
        cli.out("network", "rm", "back")


@pytest.mark.feature("--network none")
def test_none(cli: Client) -> None:
    assert cli.out("run", "--rm", "--network", "none", BOX, "ls", "/sys/class/net") == "lo"


@pytest.mark.feature("--network container:NAME")
def test_of_another(cli: Client, server: str) -> None:
    script = f"{GET.format('127.0.0.1')}; cat /sys/class/net/eth0/address"
    said = cli.out("run", "--rm", "--network", f"container:{server}", BOX, "sh", "-c", script)
    mac = cli.inspect(server)["NetworkSettings"]["Networks"]["front"]["MacAddress"]
    assert said.split() == ["web.test", mac]
    # The other one is as it was.
    assert cli.sh(server, GET.format("127.0.0.1")) == "web.test"


@pytest.mark.feature("--network host")
def test_of_host(cli: Client) -> None:
    words = ("run", "--rm", "--network", "host", BOX, "ls", "/sys/class/net")
    if cli.ours:
        assert "host" in cli.fails(*words) and "network" in cli.fails(*words)
    else:
        assert set(cli.host.out("ls", "/sys/class/net").split()) <= set(cli.out(*words).split())


@pytest.mark.feature("--ip, --mac-address, MTU")
def test_fixed_addresses(cli: Client, network: str) -> None:
    option = "com.docker.network.driver.mtu" if cli.engine == "docker" else "mtu"
    cli.out("network", "create", "--subnet", "10.70.3.0/24", "--opt", f"{option}=1400", "small")
    try:
        words = ("run", "--rm", "--network", "small", "--ip", "10.70.3.33", "--mac-address", "02:00:00:00:33:33", BOX)
        script = "cd /sys/class/net/eth0; cat address mtu; ip -o -4 address show dev eth0"
        said = cli.out(*words, "sh", "-c", script).split()
        assert said[:2] == ["02:00:00:00:33:33", "1400"] and "10.70.3.33/24" in said
    finally:
        cli.out("network", "rm", "small")

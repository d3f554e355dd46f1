"""What a container reaches and who reaches it, through the guest's own network stack and the host's NAT."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.support import Casemate, Container, Environment, detached, tables
from tests.vm.world import NAME, PATIENCE, World, get, world

BIG = 6 << 20
MTU = 1500
SERVE = """
import hashlib, http.server, os, socket, threading

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        size = int(self.path[1:])
        self.answer(os.urandom(size) if size else self.client_address[0].encode())
    def do_POST(self):
        self.answer(hashlib.sha256(self.rfile.read(int(self.headers["Content-Length"]))).hexdigest().encode())
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Digest", hashlib.sha256(body).hexdigest())
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass

udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("", 5300))
def echo():
    while True:
        data, client = udp.recvfrom(9000)
        udp.sendto(client[0].encode() + b" " + data, client)
threading.Thread(target=echo, daemon=True).start()
unpublished = socket.create_server(("", 8001))
server = http.server.ThreadingHTTPServer(("", 8000), Handler)
print("ready", flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def outside(env: Environment) -> Iterator[World]:
    with world(env.network_number) as made, made.names():
        yield made


@pytest.fixture(scope="module")
def server(cm: Casemate, debian_image: str, outside: World) -> Iterator[Container]:
    """A Debian container that serves HTTP on 8000/tcp, echoes on 5300/udp, and listens on 8001/tcp, not published."""
    options = ("-p", "8000", "-p", "5300/udp", "--dns", outside.address, "--hostname", "server")
    command = ("python3", "-c", SERVE)
    with detached(cm, "net-server", *options, image=debian_image, command=command) as made:
        with cm.popen("logs", "-f", "net-server") as logs:
            assert logs.stdout is not None and logs.stdout.readline() == b"ready\n"
            logs.kill()
        yield made


@pytest.fixture(scope="module")
def peer(cm: Casemate, outside: World) -> Iterator[Container]:
    """A busybox container beside it."""
    with detached(cm, "net-peer", "--dns", outside.address) as made:
        yield made


def published(container: Container, port: str) -> int:
    return int(container.cm.inspect(container.name)["NetworkSettings"]["Ports"][port][0]["HostPort"])


def address(container: Container) -> str:
    return str(container.cm.inspect(container.name)["NetworkSettings"]["IPAddress"])


def python(container: Container, script: str, *arguments: str, timeout: float = 60) -> str:
    done = container.exec("python3", "-c", script, *arguments, timeout=timeout, check=True)
    return done.stdout.decode().rstrip("\n")


def test_busybox_resolves_and_fetches_from_the_world(peer: Container, outside: World) -> None:
    with outside.web({"/page": b"from the world"}) as clients:
        assert peer.sh(f"wget -q -O - http://{NAME}/page") == "from the world"
    assert clients == [outside.host], "the world sees the host's address"
    assert outside.address in peer.sh(f"nslookup {NAME}")
    missing = peer.exec("nslookup", "missing.world.test")
    assert missing.returncode != 0 and "missing.world.test" in outside.questions
    assert f"nameserver {outside.address}" in peer.sh("cat /etc/resolv.conf")


def test_python_resolves(server: Container, outside: World) -> None:
    script = "import socket; print(socket.getaddrinfo('%s', 80, type=socket.SOCK_STREAM))"
    assert f"'{outside.address}', 80" in python(server, script % NAME)
    script = """
import socket
try: print(socket.getaddrinfo("missing.world.test", 80))
except socket.gaierror as error: print(error.errno == socket.EAI_NONAME)
print(socket.gethostbyname(socket.gethostname()), socket.gethostbyname("localhost"))
"""
    assert python(server, script).split() == ["True", address(server), "127.0.0.1"]


def test_large_transfers_to_and_from_the_world(server: Container, outside: World) -> None:
    body = os.urandom(BIG)
    with outside.web({"/big": body}):
        script = """
import hashlib, os, sys, urllib.request
url = "http://" + sys.argv[1]
print(hashlib.sha256(urllib.request.urlopen(url + "/big").read()).hexdigest())
data = os.urandom(int(sys.argv[2]))
print(urllib.request.urlopen(url + "/", data).read().decode() == hashlib.sha256(data).hexdigest())
"""
        out = python(server, script, outside.address, str(BIG), timeout=120)
    assert out.split() == [hashlib.sha256(body).hexdigest(), "True"]


def test_published_tcp_port(server: Container, outside: World) -> None:
    port = published(server, "8000/tcp")
    # The host's own connections come through its proxy; the world's come as they are.
    gateway = get(f"http://127.0.0.1:{port}/0").decode()
    assert gateway.endswith(".0.1")
    assert get(f"http://{outside.host}:{port}/0").decode() == gateway
    assert outside.get(f"http://{outside.host}:{port}/0").decode() == outside.address


def test_large_transfers_through_a_published_port(server: Container, outside: World) -> None:
    import urllib.request

    port = published(server, "8000/tcp")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    body = os.urandom(BIG)

    def both(host: str) -> None:
        with opener.open(f"http://{host}:{port}/{BIG}", timeout=120) as answer:
            assert hashlib.sha256(answer.read()).hexdigest() == answer.headers["Digest"]
        with opener.open(f"http://{host}:{port}/", body, timeout=120) as answer:
            assert answer.read().decode() == hashlib.sha256(body).hexdigest()

    both("127.0.0.1")
    outside.inside(lambda: both(outside.host))


def test_published_udp_port(server: Container, outside: World) -> None:
    port = published(server, "5300/udp")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, outside.socket(socket.SOCK_DGRAM) as far:
        sock.settimeout(PATIENCE)
        # Longer than the MTU as well: fragments are put together on both ways.
        for size in (5, 4000):
            question = os.urandom(size)
            sock.sendto(question, ("127.0.0.1", port))
            assert sock.recvfrom(9000)[0].partition(b" ")[2] == question
            far.sendto(question, (outside.host, port))
            assert far.recvfrom(9000) == (outside.address.encode() + b" " + question, (outside.host, port))


def test_what_is_not_published_stays_closed(server: Container, outside: World) -> None:
    """A neighbour in the world that sets a route gets nowhere; the same connection from the host does."""
    target = address(server)
    socket.create_connection((target, 8001), PATIENCE).close()
    outside.inside(lambda: subprocess.run(["ip", "route", "add", target, "via", outside.host], check=True))
    try:
        with pytest.raises(OSError):
            outside.inside(lambda: socket.create_connection((target, 8001), 2))
        with pytest.raises(OSError):
            outside.inside(lambda: socket.create_connection((outside.host, 8001), 2))
    finally:
        outside.inside(lambda: subprocess.run(["ip", "route", "del", target], check=True))


def test_containers_reach_each_other(server: Container, peer: Container, outside: World) -> None:
    assert peer.sh(f"wget -q -O - http://{address(server)}:8000/0") == address(peer)
    assert peer.sh(f"ping -c 1 -W 10 {address(server)} > /dev/null && echo answers") == "answers"
    # By a published port too, where the gateway stands in for the container.
    port = published(server, "8000/tcp")
    assert peer.sh(f"wget -q -O - http://{outside.host}:{port}/0").endswith(".0.1")


def test_the_hosts_loopback_and_addresses_nobody_has_are_out_of_reach(peer: Container, env: Environment) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        gateway = peer.sh("ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'")
        assert gateway == f"10.{env.network_number}.0.1"
        refused = peer.exec("nc", "-w", "5", gateway, str(sock.getsockname()[1]))
        assert refused.returncode != 0
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.accept()
    nobody = peer.exec("ping", "-c", "1", "-W", "2", f"10.{env.network_number}.255.250")
    assert nobody.returncode != 0


def test_forged_source_addresses_are_dropped(server: Container, peer: Container, outside: World) -> None:
    script = """
import socket, struct, sys
def packet(source, target, port, data):
    udp = struct.pack("!HHHH", 4000, port, 8 + len(data), 0) + data
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, 17, 0,
                       socket.inet_aton(source), socket.inet_aton(target)) + udp
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
target, port, *sources = sys.argv[1:]
for source in sources:
    raw.sendto(packet(source, target, int(port), source.encode()), (target, 0))
"""
    own = address(server)
    forged = [address(peer), own.rpartition(".")[0] + ".254", outside.host, outside.address, "192.0.2.7", "127.0.0.1"]
    with outside.socket(socket.SOCK_DGRAM) as far:
        python(server, script, outside.address, str(far.getsockname()[1]), *forged, own)
        # The true one was sent last: nothing before it came through.
        assert far.recvfrom(100)[0].decode() == own


def test_the_mtu(server: Container, outside: World) -> None:
    script = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO: never cut
mtu = int(sys.argv[3])
try: sock.sendto(bytes(mtu - 27), (sys.argv[1], int(sys.argv[2])))
except OSError as error: print(error.strerror)
sock.sendto(bytes(mtu - 28), (sys.argv[1], int(sys.argv[2])))
print(open("/sys/class/net/eth0/mtu").read())
"""
    with outside.socket(socket.SOCK_DGRAM) as far:
        out = python(server, script, outside.address, str(far.getsockname()[1]), str(MTU))
        assert len(far.recv(9000)) == MTU - 28
    assert out.splitlines() == ["Message too long", str(MTU)]


def test_without_network_there_is_the_loopback_only(cm: Casemate, outside: World) -> None:
    script = f"""
        ls /sys/class/net; cat /proc/net/route | tail -n +2; ping -c 1 127.0.0.1 > /dev/null && echo loopback
        ping -c 1 -W 1 {outside.address} 2>&1 | tail -n 1; cat /etc/resolv.conf
        ip addr add 10.1.1.1/24 dev lo 2>&1; true
    """
    out = cm.out("run", "--rm", "--network", "none", "busybox", "sh", "-c", script)
    lines = out.splitlines()
    assert lines[:2] == ["lo", "loopback"] and "unreachable" in lines[2], out
    assert len(lines) == 4 and "not permitted" in lines[3], out


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_port_in_use_is_told_in_a_line_and_leaves_nothing(cm: Casemate, env: Environment, kind: str) -> None:
    before = sorted(os.listdir(env.root / "containers")), tables(env)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 0))
        if kind == "tcp":
            sock.listen()
        port = sock.getsockname()[1]
        done = cm("run", "-d", "--name", "no-port", "-p", f"{port}:80/{kind}", "busybox", "sleep", "100")
    assert done.returncode == 125
    assert done.stderr.count(b"\n") == 1 and f"{port}".encode() in done.stderr and b"in use" in done.stderr
    assert (sorted(os.listdir(env.root / "containers")), tables(env)) == before
    assert cm("inspect", "no-port").returncode == 1


def test_a_port_of_another_container_is_in_use_and_rm_frees_it(cm: Casemate, env: Environment, tmp_path: Path) -> None:
    with detached(cm, "net-first", "-p", "80") as first:
        port = published(first, "80/tcp")
        link = f"cm{cm.inspect('net-first')['Id'][:10]}"
        assert (Path("/sys/class/net") / link).exists()
        own = address(first)
        assert any(own in rule for rule in tables(env))
        taken = cm("run", "--rm", "-p", f"{port}:80", "busybox", "true")
        assert taken.returncode == 125 and str(port).encode() in taken.stderr
        # A client's connection that is open when the container goes does not keep the port.
        threading.Thread(target=first.exec, args=("nc", "-l", "-p", "80")).start()
        first.sh("until netstat -ltn | grep -q ':80 '; do usleep 50000; done")
        client = socket.create_connection(("127.0.0.1", port), PATIENCE)
        cm("rm", "-f", "net-first", check=True)
    assert not (Path("/sys/class/net") / link).exists()
    assert not any(own in rule for rule in tables(env))
    with client, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", port))
        sock.listen()

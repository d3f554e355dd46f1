"""Sockets behind the sentry do as Linux's do."""

from __future__ import annotations

import shutil
import sys

import pytest

from tests.sentry import lab

HTTP = """
import http.server, threading, urllib.request, hashlib, os, socket
body = os.urandom(3_000_000)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        data = self.rfile.read(int(self.headers["content-length"]))
        answer = hashlib.sha256(data).hexdigest().encode() + body
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
if os.fork() == 0:
    for size in (0, 1, 70_000, 2_000_000):
        data = os.urandom(size)
        answer = urllib.request.urlopen(f"http://localhost:{server.server_port}/", data).read()
        assert answer[:64].decode() == hashlib.sha256(data).hexdigest() and answer[64:] == body
    os._exit(0)
threading.Thread(target=server.serve_forever, daemon=True).start()
status = os.wait()[1]
assert status == 0, status
print(sorted({entry[4][0] for entry in socket.getaddrinfo("localhost", 80)}), socket.if_nameindex()[0])
"""

NODE = """
const http = require('http'), net = require('net'), dgram = require('dgram');
const server = http.createServer((ask, answer) => {
  let size = 0; ask.on('data', part => size += part.length); ask.on('end', () => answer.end(`${ask.url} ${size}`));
});
server.listen(0, '127.0.0.1', async () => {
  const at = `http://127.0.0.1:${server.address().port}`;
  const answers = await Promise.all([...Array(50).keys()].map(async number =>
    (await fetch(`${at}/${number}`, {method: 'POST', body: 'x'.repeat(1000 * number)})).text()));
  console.log(answers.every((text, number) => text === `/${number} ${1000 * number}`));
  server.close(); server.closeAllConnections();
  const echo = net.createServer(one => one.pipe(one)).listen('/tmp/node-case', () => {
    const client = net.connect('/tmp/node-case');
    client.end('ping'); client.on('data', data => console.log(`${data}`)); client.on('close', () => echo.close(udp));
  });
});
function udp() {
  const one = dgram.createSocket('udp4'), other = dgram.createSocket('udp4');
  other.on('message', data => { console.log(`${data}`); one.close(); other.close(); });
  other.bind(0, '127.0.0.1', () => one.send('datagram', other.address().port, '127.0.0.1'));
}
"""


@pytest.mark.parametrize("case", sorted(path.stem for path in (lab.C / "net").glob("*.c")))
def test_case(case: str) -> None:
    """Each C case."""
    lab.both(f"net/{case}.c")


@pytest.mark.parametrize("case", ["netlink", "tcp", "udp", "threads"])
def test_case_on_the_host_network(case: str) -> None:
    """What sockets of the host's do is what Linux does, through the sentry as well."""
    done = lab.sentry([str(lab.build(lab.C / f"net/{case}.c"))], options=["--network", "host"])
    assert done.returncode == 0, done.stderr.decode()


RAW = """
import socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
    def ask(number, size):
        body = bytes(range(256)) * (size // 256)
        head = struct.pack(">BBHHH", 8, 0, 0, 0x4321, number)
        words = struct.unpack(f">{len(head + body) // 2}H", head + body)
        total = sum(words)
        while total >> 16:
            total = (total & 0xffff) + (total >> 16)
        raw.sendto(head[:2] + (~total & 0xffff).to_bytes(2, "big") + head[4:] + body, ("127.0.0.1", 0))
        while True:
            data, (address, port) = raw.recvfrom(65536)
            assert data[0] == 0x45 and data[9] == 1 and address == "127.0.0.1" and port == 0
            assert struct.unpack(">H", data[2:4])[0] == len(data) and data[8] == 64
            kind, code, _, identifier, found = struct.unpack(">BBHHH", data[20:28])
            if kind == 0 and identifier == 0x4321:  # the host's tells of the request as well
                assert found == number and data[28:] == body
                return
    for number, size in enumerate((0, 256, 1024, 16384)):
        ask(number, size)
    assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_RAW
    assert raw.getsockname()[1] in (0, 1)  # Linux tells the protocol
"""


@pytest.mark.parametrize("network", ["none", "host"])
def test_ping_by_raw_sockets(network: str) -> None:
    """As programs of old do it, with what the host says to it, where it lets all groups ask; and busybox's."""
    python = shutil.which("python3", path="/usr/bin") or sys.executable
    assert lab.native([python, "-c", RAW]).returncode == 0
    host = 'ip link set lo up; echo "0 2147483647" >/proc/sys/net/ipv4/ping_group_range; exec "$@"'
    within = ["unshare", "--net", "sh", "-ec", host, "sh"] if network == "host" else []
    done = lab.sentry([python, "-c", RAW], options=["--network", network], within=within)
    assert done.returncode == 0, done.stderr.decode()
    for program, address in (("ping", "127.0.0.1"), ("ping6", "::1")):
        words = ["busybox", program, "-c", "2", "-i", "0.1", "-W", "10", address]
        done = lab.sentry(words, options=["--network", network], within=within)
        assert done.returncode == 0 and b"seq=1 ttl=64" in done.stdout, (done.stdout, done.stderr)


@pytest.mark.parametrize("network", ["none", "host"])
def test_python_speaks_http(network: str) -> None:
    """Server and client in two processes, with bodies that fill all buffers."""
    python = shutil.which("python3", path="/usr/bin") or sys.executable
    done = lab.sentry([python, "-c", HTTP], options=["--network", network])
    assert done.returncode == 0, done.stderr.decode()
    assert b"127.0.0.1" in done.stdout and b"(1, 'lo')" in done.stdout


def test_node_serves_and_asks() -> None:
    """HTTP with many connections at once, UNIX sockets, datagrams."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here")
    done = lab.sentry([node, "-e", NODE])
    assert (done.returncode, done.stdout.split()) == (0, [b"true", b"ping", b"datagram"]), done.stderr.decode()

"""An engine's network behind a real virtual machine: what a program in the guest sees of it, and what sees it."""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from casemate.pod.forward import Forward
from casemate.pod.network import PodNetwork
from casemate.pod.resolver import Resolver
from tests.vm.host_tools import in_child, needs_root
from tests.vm.pod_guest import HOST4, HOST6, EngineNamespace, bridge, new_host, sh
from tests.vm.pod_peers import SERVER, NameServer, connect, exchange, listen, read_all
from tests.vm.pod_stage import Stage
from tests.vm.support import Environment

pytestmark = needs_root


class Scene:
    """A host with a bridge, a container's namespace on it, and a machine that stands in for it."""

    def __init__(self, stage: Stage, *, mtu: int = 1500) -> None:
        new_host()
        self.stage = stage
        self.engine = EngineNamespace(10, mtu=mtu)
        self.log: list[str] = []
        os.close(stage.netns)
        stage.netns = os.dup(self.engine.netns)  # the machine closes its own
        self.network = PodNetwork(stage.pod, self.engine.netns, self.log.append)

    def boot(self, *words: str) -> None:
        self.stage.boot(self.network.nics())
        self.stage.pod.attach("one", self.stage.tree(self.stage.root("first")), None)
        self.streams = self.stage.start("one", *words)
        self.network.follow()

    def ask(self, script: str) -> str:
        return self.stage.ask("one", script)

    def until(self, script: str, *, has: str = "", lacks: str = "\0") -> None:
        """Ask again until the answer fits: the guest is told of changes by and by."""
        for _ in range(100):
            answer = self.ask(script)
            if has in answer and lacks not in answer:
                return
        raise AssertionError(f"{script}: {answer!r} lacks {has!r} or has {lacks!r}; {self.log}")

    def close(self) -> None:
        self.network.close()
        self.engine.close()


@pytest.fixture
def play(env: Environment, tmp_path: Path) -> Callable[..., None]:
    """Plays a scene in a process of its own."""

    def run(scene: Callable[[Scene], None], **changes: Any) -> None:
        def body() -> None:
            with Stage(env, tmp_path) as stage:
                made = Scene(stage, **changes)
                try:
                    scene(made)
                finally:
                    made.close()

        in_child(body)

    return run


def test_traffic_and_changes(play: Callable[..., None]) -> None:
    play(_traffic, mtu=1400)


def _traffic(scene: Scene) -> None:
    engine = scene.engine
    scene.boot("busybox", "nc", "-ll", "-p", "80", "-e", "cat")
    # The guest's interface is the engine's.
    (found,) = scene.network.interfaces
    said = scene.ask("busybox ip addr show eth0")
    assert found.mac in said and "mtu 1400" in said
    assert sorted(re.findall(r"inet6? (\S+)", said)) == sorted(found.addresses)
    assert "tentative" not in said
    assert f"default via {HOST4} dev eth0" in scene.ask("busybox ip route")
    assert f"default via {HOST6} dev eth0" in scene.ask("busybox ip -6 route")

    # Both ways, by both families.
    for address in (engine.v4, engine.v6):
        with connect(address, 80) as client:
            data = os.urandom(300_000)
            sender = threading.Thread(target=client.sendall, args=(data,))
            sender.start()
            got = b""
            while len(got) < len(data):
                got += client.recv(1 << 16)
            sender.join()
            assert got == data
    for address in (HOST4, HOST6):
        with listen(address) as server:
            port = server.getsockname()[1]
            taken: list[bytes] = []
            thread = threading.Thread(target=lambda: taken.append(read_all(server.accept()[0])))  # noqa: B023
            thread.start()
            scene.ask(f"busybox dd if=/dev/zero bs=1000 count=300 2>/dev/null | busybox nc {address} {port}")
            thread.join()
            assert len(taken[0]) == 300_000
        # A program in the engine's namespace talks past the guest.
        with listen(address) as server:
            port = server.getsockname()[1]
            exchange(server, lambda: engine.inside(lambda: connect(address, port)))  # noqa: B023
    scene.ask(f"ping -c 1 -W 60 {HOST4} && busybox ping6 -c 1 -W 60 {HOST6}")

    # What the engine changes arrives, and connections stay.
    with connect(engine.v4, 80) as client:
        engine.inside(lambda: sh("ip addr add 172.30.0.77/24 dev eth0; ip route add 10.5.0.0/16 via 172.30.0.2"))
        scene.until("busybox ip route", has="10.5.0.0/16 via 172.30.0.2")
        assert "172.30.0.77/24" in scene.ask("busybox ip addr show eth0")
        engine.inside(lambda: sh("ip link set eth0 mtu 1300; ip route del 10.5.0.0/16"))
        scene.until("busybox ip route", lacks="10.5.0.0")
        scene.until("busybox ip addr show eth0", has="mtu 1300")
        engine.inside(lambda: sh("ip addr del 172.30.0.77/24 dev eth0"))
        scene.until("busybox ip addr show eth0", lacks="172.30.0.77")
        client.sendall(b"still there")
        assert client.recv(100) == b"still there"
        # An interface that comes late, and goes again.
        bridge("br1", 31)
        engine.link("eth1", net=31, bridge="br1")
        scene.until("busybox ip addr", has="172.31.0.10/24")
        scene.ask("ping -c 1 -W 60 172.31.0.1 && busybox ping6 -c 1 -W 60 fd00:31::1")
        sh("ip link delete v10eth1")
        scene.until("busybox ip addr", lacks="eth1")
        scene.ask(f"ping -c 1 -W 60 {HOST4}")
        client.sendall(b"and now")
        assert client.recv(100) == b"and now"
    assert scene.log == []


def test_names_and_port_forward(play: Callable[..., None]) -> None:
    play(_names)


def _names(scene: Scene) -> None:
    engine = scene.engine
    NameServer(engine, HOST4, address_of)
    scene.boot("busybox", "nc", "-ll", "-p", "80", "-e", "cat")
    service = Resolver(scene.stage.pod, engine.netns, (SERVER,))
    service.start()
    for name, address in (("web", "192.0.2.1"), ("www.outside", "192.0.2.2"), ("big.outside", "192.0.2.2")):
        said = scene.ask(f"busybox nslookup -type=a {name} {SERVER}")
        assert f"Address: {address}" in said
    service.close()

    forward = Forward(scene.stage.pod, engine.netns, scene.log.append)
    forward.start()
    for address in ("127.0.0.1", "::1"):
        with engine.inside(lambda: connect(address, 80)) as client:  # noqa: B023
            client.sendall(b"x" * 100_000)
            got = b""
            while len(got) < 100_000:
                got += client.recv(1 << 16)
            assert got == b"x" * 100_000
    with engine.inside(lambda: connect("127.0.0.1", 81)) as client, pytest.raises(ConnectionResetError):
        client.recv(1)
    forward.close()
    assert [line for line in scene.log if "81" not in line and "refused" not in line] == []


def address_of(query: bytes, text: bytes) -> bytes:
    """An answer with an address: 192.0.2.1 from the inner name server, 192.0.2.2 from the outer one."""
    at = 12
    while query[at]:
        at += 1 + query[at]
    question = query[12 : at + 5]
    kind = struct.unpack_from("!H", query, at + 1)[0]
    head = query[:2] + struct.pack("!HHHHH", 0x8180, 1, int(kind == 1), 0, 0)
    address = socket.inet_aton("192.0.2.1" if text == b"inner" else "192.0.2.2")
    record = struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + address if kind == 1 else b""
    return head + question + record

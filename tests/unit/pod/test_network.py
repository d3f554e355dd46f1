"""Which calls a sandbox gets when its engine's interfaces change; the kernel is made up here.

``tests/vm/test_pod_network.py`` has the real one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from casemate.errors import CasemateError, NetworkError
from casemate.host import mirror
from casemate.host.mirror import Found
from casemate.pod import forward, network, resolver
from casemate.pod.network import PodNetwork
from casemate.sandbox import Interface, Nic


class World:
    """The host's side: what is in the namespace, and what has been asked of it."""

    def __init__(self) -> None:
        self.now: list[Found] = []
        self.calls: list[tuple[str, int]] = []
        self.fail: dict[int, str] = {}
        self.watch: Watch | None = None

    def mirror(self, netns: int, index: int) -> tuple[int, int]:
        if index in self.fail:
            raise NetworkError(self.fail[index])
        self.calls.append(("mirror", index))
        return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), 100 + index

    def restore(self, netns: int, index: int, tap: int) -> None:
        assert tap == 100 + index
        self.calls.append(("restore", index))

    def take(self) -> list[tuple[str, int]]:
        calls, self.calls = self.calls, []
        return calls


class Watch:
    """In the place of the real one; the test tells of changes."""

    def __init__(self, netns: int, changed: Any, failed: Any) -> None:
        self.changed, self.failed = changed, failed
        self.known: Sequence[Found] = ()
        self.closed = 0
        self.asked: list[float] = []

    def caught_up(self, seconds: float) -> bool:
        self.asked.append(seconds)
        return len(self.asked) < 2

    def start(self, known: Sequence[Found]) -> None:
        self.known = known

    def close(self) -> None:
        self.closed += 1


class Sandbox:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.fail: set[str] = set()

    def _told(self, what: str, argument: Any) -> None:
        if what in self.fail:
            raise CasemateError(f"{what} does not work")
        self.calls.append((what, argument))

    def plug(self, nic: Nic) -> None:
        os.close(nic.tap_fd)
        self._told("plug", nic.interface.name)

    def unplug(self, mac: str) -> None:
        self._told("unplug", mac)

    def configure(self, interfaces: Sequence[Interface]) -> None:
        self._told("configure", [interface.name for interface in interfaces])

    def take(self) -> list[Any]:
        calls, self.calls = self.calls, []
        return calls


def interface(number: int, *, mac: int | None = None, up: bool = True, mtu: int = 1500) -> Found:
    address = f"02:00:00:00:00:{number if mac is None else mac:02x}"
    return Found(number, up, Interface(f"eth{number}", address, mtu))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()

    def watch(netns: int, changed: Any, failed: Any) -> Watch:
        world.watch = Watch(netns, changed, failed)
        return world.watch

    monkeypatch.setattr(mirror, "prepare", lambda netns: "1 2")
    monkeypatch.setattr(mirror, "undo", lambda netns, ports: world.calls.append(("undo", int(ports[0]))))
    monkeypatch.setattr(mirror, "discover", lambda netns: world.now)
    monkeypatch.setattr(mirror, "mirror", world.mirror)
    monkeypatch.setattr(mirror, "restore", world.restore)
    monkeypatch.setattr(network, "Watch", watch)
    return world


class Net:
    """A network that follows, and all around it."""

    def __init__(self, world: World, *found: Found) -> None:
        world.now = list(found)
        self.world, self.sandbox, self.log = world, Sandbox(), list[str]()
        self.null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self.network = PodNetwork(self.sandbox, self.null, self.log.append)  # type: ignore[arg-type]
        for nic in self.network.nics():
            os.close(nic.tap_fd)
        self.network.follow()
        self.mirrored = world.take()

    def change(self, *found: Found) -> list[Any]:
        assert self.world.watch is not None
        self.world.watch.changed(list(found))
        return self.sandbox.take()


@pytest.fixture
def descriptors() -> Iterator[None]:
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_at_the_start_what_is_up_is_mirrored(world: World) -> None:
    net = Net(world, interface(1), interface(2, up=False), interface(3))
    assert net.mirrored == [("mirror", 1), ("mirror", 3)]
    assert [one.name for one in net.network.interfaces] == ["eth1", "eth3"]
    assert world.watch is not None and list(world.watch.known) == world.now


def test_a_failure_at_the_start_leaves_nothing(world: World, descriptors: None) -> None:
    world.now, world.fail = [interface(1), interface(2)], {2: "no tap"}
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    net = PodNetwork(Sandbox(), null)  # type: ignore[arg-type]
    os.close(null)
    with pytest.raises(NetworkError, match="no tap"):
        net.nics()
    assert world.take() == [("mirror", 1), ("restore", 1), ("undo", 1)]
    net.close()
    with pytest.raises(NetworkError, match="closed"):
        net.nics()
    assert world.take() == []


def test_what_comes_is_plugged_when_it_is_up_and_what_goes_is_unplugged(world: World) -> None:
    net = Net(world, interface(1))
    assert net.change(interface(1), interface(2, up=False)) == []
    assert net.change(interface(1), interface(2)) == [("plug", "eth2"), ("configure", ["eth1", "eth2"])]
    assert net.change(interface(2)) == [("unplug", "02:00:00:00:00:01")]
    assert net.change(interface(2, up=False)) == []
    assert net.change() == [("unplug", "02:00:00:00:00:02")]
    assert world.take() == [("mirror", 2), ("restore", 1), ("restore", 2)]
    assert net.log == []


def test_a_change_of_what_is_there_is_told_with_everything(world: World) -> None:
    net = Net(world, interface(1), interface(2))
    assert net.change(interface(1), interface(2, mtu=1400)) == [("configure", ["eth1", "eth2"])]
    assert net.change(interface(1), interface(2, mtu=1400)) == []


def test_another_hardware_address_is_another_interface(world: World) -> None:
    net = Net(world, interface(1))
    assert net.change(interface(1, mac=9)) == [
        ("unplug", "02:00:00:00:00:01"), ("plug", "eth1"), ("configure", ["eth1"])
    ]  # fmt: skip
    assert world.take() == [("restore", 1), ("mirror", 1)]


@pytest.mark.parametrize("where", ["mirror", "plug"])
def test_what_fails_stays_outside_until_there_is_room(world: World, where: str) -> None:
    net = Net(world, interface(1), interface(2))
    if where == "mirror":
        world.fail[3] = "mirror does not work"
    else:
        net.sandbox.fail.add("plug")
    now = [interface(1), interface(2), interface(3)]
    assert net.change(*now) == []
    assert net.log == [f"network: eth3 stays outside: {where} does not work"]
    world.fail.clear()
    net.sandbox.fail.clear()
    assert net.change(*now[:2], interface(3, mtu=1400)) == []  # not at every change
    assert net.change(interface(2), interface(3)) == [
        ("unplug", "02:00:00:00:00:01"), ("plug", "eth3"), ("configure", ["eth2", "eth3"])
    ]  # fmt: skip
    assert world.take()[-1] == ("mirror", 3)


def test_an_interface_that_failed_and_came_again_is_tried(world: World) -> None:
    net = Net(world)
    world.fail[1] = "no tap"
    assert net.change(interface(1)) == [] and net.change() == []
    world.fail.clear()
    assert net.change(interface(1)) == [("plug", "eth1"), ("configure", ["eth1"])]


def test_what_the_guest_was_not_told_is_told_with_the_next_change(world: World) -> None:
    net = Net(world, interface(1))
    net.sandbox.fail.add("configure")
    assert net.change(interface(1, mtu=1400)) == []
    assert net.log == ["network: the guest's interfaces are not up to date: configure does not work"]
    net.sandbox.fail.clear()
    assert net.change(interface(1, mtu=1400)) == [("configure", ["eth1"])]


def test_a_guest_that_does_not_let_go_is_no_obstacle(world: World) -> None:
    net = Net(world, interface(1))
    net.sandbox.fail.add("unplug")
    assert net.change() == []
    assert net.log == ["network: eth1 cannot be taken away: unplug does not work"]
    assert world.take() == [("restore", 1)] and net.network.interfaces == ()


def test_closing_gives_everything_back_once(world: World, descriptors: None) -> None:
    net = Net(world, interface(1), interface(2))
    net.network.close()
    net.network.close()
    assert world.take() == [("restore", 1), ("restore", 2), ("undo", 1)]
    assert world.watch is not None and world.watch.closed
    assert net.change(interface(1), interface(3)) == [] and world.take() == []
    net.network.follow()
    os.close(net.null)


def test_a_namespace_that_cannot_be_read_is_logged(world: World) -> None:
    net = Net(world, interface(1))
    assert world.watch is not None
    world.watch.failed(NetworkError("too much of it"))
    assert net.log == ["network: too much of it"]


# ---- names and port-forward: what needs no kernel


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nameserver 127.0.0.11\noptions ndots:0\n", ("127.0.0.11",)),
        ("search a\nnameserver 8.8.8.8\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 127.0.0.53", ("127.0.0.53",)),
        ("nameserver\nnameserver 127.0.0\nnameserver 127.0.0.1x\n#nameserver 127.0.0.1\nxnameserver 127.0.0.1", ()),
        ("\n".join(f"nameserver 127.0.0.{n}" for n in range(9)), ("127.0.0.0", "127.0.0.1", "127.0.0.2")),
        ("nameserver 127.0.0.1\0", ()),
        ("", ()),
    ],
)
def test_name_servers_on_the_loopback(text: str, servers: tuple[str, ...]) -> None:
    assert resolver.loopback_servers(text) == servers


QUERY = bytes.fromhex("abcd01000001000000000000") + b"name"


def test_what_is_a_query_and_what_answers_it() -> None:
    assert resolver.is_query(resolver.UDP, QUERY) and resolver.is_query(resolver.TCP, QUERY)
    assert not resolver.is_query(2, QUERY) and not resolver.is_query(resolver.UDP, QUERY[:11])
    assert not resolver.is_query(resolver.UDP, QUERY[:2] + b"\x81" + QUERY[3:])
    assert resolver.is_query(resolver.TCP, QUERY.ljust(65535))
    assert not resolver.is_query(resolver.UDP, QUERY.ljust(65535))
    answer = QUERY[:2] + b"\x81\x80" + QUERY[4:]
    assert resolver.is_answer(QUERY, answer)
    assert not resolver.is_answer(QUERY, QUERY) and not resolver.is_answer(QUERY, answer[:11])
    assert not resolver.is_answer(QUERY, b"\0" + answer[1:])


@pytest.mark.parametrize(
    ("annotations", "path", "wanted"),
    [
        ({"io.kubernetes.cri.container-type": "sandbox"}, "/run/netns/x", True),
        ({"io.kubernetes.cri-o.ContainerType": "sandbox"}, "/run/netns/x", True),
        ({"io.kubernetes.cri.container-type": "sandbox"}, "", False),
        ({"other": "x"}, "/run/netns/x", False),
        (None, "/run/netns/x", False),
    ],
)
def test_who_may_come_for_the_loopback(annotations: dict[str, str] | None, path: str, wanted: bool) -> None:
    spaces = [{"type": "pid"}, {"type": "network", **({"path": path} if path else {})}]
    assert forward.wanted({"annotations": annotations, "linux": {"namespaces": spaces}}) is wanted
    assert not forward.wanted({})


def test_who_starts_something_waits_for_what_has_changed(world: World) -> None:
    net = Net(world)
    assert world.watch is not None
    net.network.catch_up(3.0)
    assert (world.watch.asked, net.log) == ([3.0], [])
    net.network.catch_up(2.5)
    assert net.log == ["network: the guest does not have all of it after 2.5 s"]
    net.network.close()

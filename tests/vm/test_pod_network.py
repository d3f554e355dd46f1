"""Networks of engines' containers against the real kernel, each test in namespaces of its own.

A "host" namespace has a bridge, as Docker makes one. A container has a namespace with a link to it, and behind its
interfaces a guest, which is a namespace as well (:mod:`tests.vm.pod_guest`).
"""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from casemate.errors import HostError, NetworkError
from casemate.host import bpf, mirror, namespaces
from casemate.host.mirror import Found
from casemate.host.watch import Watch
from casemate.pod.network import PodNetwork
from casemate.sandbox import Interface, Neighbour, Route
from tests.vm.host_tools import needs_root
from tests.vm.pod_guest import HOST4, HOST6, FakePod, bridge, new_netns, sh
from tests.vm.pod_lab import Engine, Lab, in_lab
from tests.vm.pod_peers import WAIT, connect, exchange, listen

pytestmark = needs_root

PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


# ---- traffic


@pytest.mark.parametrize("family", [4, 6])
def test_a_container_and_the_host_reach_each_other(family: int) -> None:
    def test(lab: Lab) -> None:
        one = lab.container()
        host, own = (HOST4, one.v4) if family == 4 else (HOST6, one.v6)
        with listen(host) as server:
            port = server.getsockname()[1]
            assert exchange(server, lambda: one.pod.inside(lambda: connect(host, port)), 3_000_000) == own
        with one.pod.inside(lambda: listen(own)) as server:
            port = server.getsockname()[1]
            assert exchange(server, lambda: connect(own, port), 3_000_000) == host
        assert max(cable.largest for cable in one.pod.cables.values()) > 10_000  # segments pass as they are

    in_lab(test)


@pytest.mark.parametrize("family", [4, 6])
def test_container_to_container(family: int) -> None:
    def test(lab: Lab) -> None:
        one, two = lab.container(), lab.container()
        address, client = (two.v4, one.v4) if family == 4 else (two.v6, one.v6)
        with two.pod.inside(lambda: listen(address)) as server:
            port = server.getsockname()[1]
            assert exchange(server, lambda: one.pod.inside(lambda: connect(address, port)), 3_000_000) == client

    in_lab(test)


def test_link_local_addresses_are_the_same_in_the_guest_and_work() -> None:
    def test(lab: Lab) -> None:
        one, two = lab.container(), lab.container()
        (local,) = [a for a in one.network.interfaces[0].addresses if a.startswith("fe80:")]
        address = local.partition("/")[0]
        scope = two.pod.inside(lambda: socket.if_nametoindex("eth0"))

        def server_at() -> socket.socket:
            sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            sock.settimeout(WAIT)
            sock.bind((address, 0, 0, socket.if_nametoindex("eth0")))
            sock.listen()
            return sock

        def dial() -> socket.socket:
            sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            sock.settimeout(WAIT)
            sock.connect((address, port, 0, scope))
            return sock

        with one.pod.inside(server_at) as server:
            port = server.getsockname()[1]
            assert exchange(server, lambda: two.pod.inside(dial)).startswith("fe80:")

    in_lab(test)


def test_an_mtu_below_the_usual_is_the_guests_too() -> None:
    def test(lab: Lab) -> None:
        one = lab.container(mtu=1400)
        assert [interface.mtu for interface in one.network.interfaces] == [1400]
        with listen(HOST4) as server:
            port = server.getsockname()[1]

            def dial() -> socket.socket:
                client = connect(HOST4, port)
                assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1360
                return client

            exchange(server, lambda: one.pod.inside(dial), 1_000_000)
        with listen(HOST4, kind=socket.SOCK_DGRAM) as server, one.pod.inside(
            lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ) as client:
            client.sendto(bytes(1372), server.getsockname())
            assert len(server.recv(2000)) == 1372
            client.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO: no fragments
            with pytest.raises(OSError, match="Message too long"):
                client.sendto(bytes(1373), server.getsockname())

    in_lab(test)


def test_two_interfaces() -> None:
    def test(lab: Lab) -> None:
        bridge("br1", 31)
        one = lab.container(boot=False)
        one.link("eth1", net=31, bridge="br1")
        one.boot()
        assert [interface.name for interface in one.network.interfaces] == ["eth0", "eth1"]
        for address, source in ((HOST4, "172.30.0.10"), ("172.31.0.1", "172.31.0.10"), ("fd00:31::1", "fd00:31::10")):
            with listen(address) as server:
                port = server.getsockname()[1]
                dial = lambda: one.pod.inside(lambda: connect(address, port))  # noqa: E731, B023
                assert exchange(server, dial, 100_000) == source

    in_lab(test)


def test_a_macvlan_interface() -> None:
    def test(lab: Lab) -> None:
        one = lab.container(boot=False)
        inside = f"/proc/{os.getpid()}/fd/{one.netns}"
        sh(
            "ip link add up0 type veth peer name world0; ip link set up0 up; ip link set world0 up;"
            "ip addr add 172.33.0.1/24 dev world0; ip addr add fd00:33::1/64 dev world0 nodad;"
            f"ip link add link up0 name mac0 netns {inside} type macvlan mode bridge"
        )
        one.inside(lambda: sh(
            "ip addr add 172.33.0.10/24 dev mac0; ip addr add fd00:33::10/64 dev mac0 nodad; ip link set mac0 up"
        ))
        one.boot()
        for address in ("172.33.0.1", "fd00:33::1"):
            with listen(address) as server:
                port = server.getsockname()[1]
                dial = lambda: one.pod.inside(lambda: connect(address, port))  # noqa: E731, B023
                exchange(server, dial, 1_000_000)
                exchange(server, lambda: one.inside(lambda: connect(address, port)))  # noqa: B023

    in_lab(test)


def test_a_namespace_with_nothing_but_its_loopback() -> None:
    def test(lab: Lab) -> None:
        netns = new_netns()
        network = PodNetwork(FakePod(), netns)
        assert network.nics() == []
        network.follow()
        network.close()

    in_lab(test)


def test_without_bpf_the_guest_has_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise HostError("the kernel does not take a BPF program")

    def test(lab: Lab) -> None:
        monkeypatch.setattr(bpf, "program", refuse)
        one, two = lab.container(), lab.container()
        for address in (two.v4, two.v6):
            with two.pod.inside(lambda a=address: listen(a)) as server:  # type: ignore[misc]
                port = server.getsockname()[1]
                dial = lambda: one.pod.inside(lambda: connect(address, port))  # noqa: E731, B023
                exchange(server, dial, 1_000_000)

    in_lab(test)


# ---- the namespace's own programs


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_programs_in_the_namespace_still_hear_answers(family: int, kind: socket.SocketKind) -> None:
    """Docker's name server asks outer ones from there."""
    def test(lab: Lab) -> None:
        one = lab.container()
        host = HOST4 if family == 4 else HOST6
        # Nothing may be known from before: an answer to the namespace's ARP or solicitation has to come through too.
        one.inside(lambda: sh("ip neigh flush dev eth0"))
        with listen(host, kind=kind) as server:
            address = server.getsockname()[:2]
            for where in (one.inside, one.pod.inside):  # and the guest's own to the same server as well
                if kind == socket.SOCK_STREAM:
                    exchange(server, lambda: where(lambda: connect(*address)), 200_000)  # noqa: B023
                    continue
                with where(lambda: socket.socket(server.family, kind)) as client:
                    client.settimeout(WAIT)
                    client.connect(address)
                    for size in (10, 1400):
                        client.send(bytes(size))
                        data, who = server.recvfrom(2000)
                        server.sendto(data, who)
                        assert len(client.recv(2000)) == size

    in_lab(test)


def test_what_the_namespace_only_listens_for_goes_to_the_guest() -> None:
    def test(lab: Lab) -> None:
        one = lab.container()
        with one.inside(lambda: listen("0.0.0.0", 8080)), one.pod.inside(lambda: listen(one.v4, 8080)) as guest:
            exchange(guest, lambda: connect(one.v4, 8080))
        with (
            one.inside(lambda: listen("0.0.0.0", 5353, socket.SOCK_DGRAM)) as namespaces_own,
            one.pod.inside(lambda: listen(one.v4, 5353, socket.SOCK_DGRAM)) as guest,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        ):
            client.sendto(b"question", (one.v4, 5353))
            assert guest.recv(100) == b"question"
            namespaces_own.setblocking(False)
            with pytest.raises(BlockingIOError):
                namespaces_own.recv(100)

    in_lab(test)


def test_a_refused_connection_is_refused_once_and_by_the_guest() -> None:
    def test(lab: Lab) -> None:
        one = lab.container()
        with pytest.raises(ConnectionRefusedError):
            connect(one.v4, 81)
        with pytest.raises(ConnectionRefusedError):
            connect(one.v6, 81)
        with pytest.raises(ConnectionRefusedError):
            one.inside(lambda: connect(HOST4, 81))  # the reset is an answer too
        with one.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client:
            client.settimeout(WAIT)
            client.connect((HOST4, 81))
            client.send(b"question")
            with pytest.raises(ConnectionRefusedError):  # and so is an ICMP error
                client.recv(100)

    in_lab(test)


def test_the_namespaces_programs_do_not_choose_a_guests_ports() -> None:
    def test(lab: Lab) -> None:
        one = lab.container(boot=False)
        before, outside = one.inside(PORT_RANGE.read_text), PORT_RANGE.read_text()
        one.boot()
        with one.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client:
            client.connect((HOST4, 53))
            assert 61000 <= client.getsockname()[1] <= 64999
        assert PORT_RANGE.read_text() == outside
        one.network.close()
        assert one.inside(PORT_RANGE.read_text) == before

    in_lab(test)


def test_closing_gives_the_interface_back() -> None:
    def test(lab: Lab) -> None:
        one = lab.container()
        one.network.close()
        one.pod.close()
        assert "ingress" not in one.inside(lambda: sh("tc qdisc show"))
        assert mirror.TAPS not in one.inside(lambda: sh("ip link"))
        with one.inside(lambda: listen(one.v4)) as server:
            port = server.getsockname()[1]
            exchange(server, lambda: connect(one.v4, port))

    in_lab(test)


def test_what_a_killed_keeper_left_is_replaced() -> None:
    def test(lab: Lab) -> None:
        one = lab.container(boot=False)
        (found,) = mirror.discover(one.netns)
        os.close(mirror.mirror(one.netns, found.index)[0])  # the tap goes, the filters stay
        assert "ingress" in one.inside(lambda: sh("tc qdisc show"))
        one.boot()
        with listen(HOST4) as server:
            port = server.getsockname()[1]
            exchange(server, lambda: one.pod.inside(lambda: connect(HOST4, port)))

    in_lab(test)


def test_an_interface_of_a_living_sandbox_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def test(lab: Lab) -> None:
        monkeypatch.setattr(mirror, "TAKE_OVER_SECONDS", 0.3)
        one = lab.container()
        two = PodNetwork(FakePod(), one.netns)
        with pytest.raises(NetworkError, match="eth0 is in use by another sandbox: end that one first"):
            two.nics()
        two.close()
        with listen(HOST4) as server:
            port = server.getsockname()[1]
            exchange(server, lambda: one.pod.inside(lambda: connect(HOST4, port)))

    in_lab(test)


def test_a_sandbox_that_is_ending_is_waited_for_and_takes_nothing_from_the_next() -> None:
    def test(lab: Lab) -> None:
        one = lab.container()
        pod = FakePod()
        network = PodNetwork(pod, one.netns)
        nics = []
        thread = threading.Thread(target=lambda: nics.extend(network.nics()))
        thread.start()
        one.pod.close()
        thread.join()
        pod.boot(one.netns, nics, [], "guest")
        one.network.close()  # later than the next one's start
        with listen(HOST4) as server:
            port = server.getsockname()[1]
            exchange(server, lambda: pod.inside(lambda: connect(HOST4, port)))
        network.close()
        pod.close()

    in_lab(test)


def test_somebody_elses_filter_stays() -> None:
    def test(lab: Lab) -> None:
        one = lab.container(boot=False)
        one.inside(lambda: sh(
            "tc qdisc add dev eth0 clsact; tc filter add dev eth0 egress prio 7 u32 match u32 0 0 flowid 1:1"
        ))
        one.boot()
        with listen(HOST4) as server:
            port = server.getsockname()[1]
            exchange(server, lambda: one.pod.inside(lambda: connect(HOST4, port)))
        one.network.close()
        assert "clsact" in one.inside(lambda: sh("tc qdisc show dev eth0"))
        assert "pref 7" in one.inside(lambda: sh("tc filter show dev eth0 egress"))
        assert one.inside(lambda: sh("tc filter show dev eth0 ingress")) == ""

    in_lab(test)


# ---- what is there


def test_everything_about_an_interface_is_found() -> None:
    def test(lab: Lab) -> None:
        one = lab.container(boot=False)
        one.inside(lambda: sh(
            "ip link set eth0 address 02:11:22:33:44:55;"
            "ip addr add 10.9.9.1 peer 10.9.9.2/32 dev eth0; ip addr add 172.30.0.99/24 dev eth0;"
            "ip route add 10.1.0.0/16 via 172.30.0.7 metric 50; ip route add 169.254.1.1 dev eth0 scope link;"
            "ip route add 10.2.0.0/16 via 203.0.113.1 dev eth0 onlink src 172.30.0.99;"
            "ip route add 10.3.0.0/16 dev eth0 table 77; ip route add blackhole 10.4.0.0/16;"
            "ip -6 route add fd00:99::/64 via fd00:30::7 metric 77;"
            "ip neigh add 172.30.0.50 lladdr 02:00:00:00:00:50 dev eth0 nud permanent;"
            "ip neigh add 172.30.0.51 lladdr 02:00:00:00:00:51 dev eth0 nud reachable;"
            "ip -6 neigh add fd00:30::50 lladdr 02:00:00:00:00:50 dev eth0 nud permanent;"
            "ip link add down0 type veth peer name down1; ip link add br7 type bridge; ip link set down1 master br7 up"
        ))
        (found,) = [one for one in mirror.discover(one.netns) if one.up]
        interface = found.interface
        assert (interface.name, interface.mac, interface.mtu) == ("eth0", "02:11:22:33:44:55", 1500)
        assert set(interface.addresses) == {
            "172.30.0.10/24", "10.9.9.1/32", "172.30.0.99/24", "fd00:30::10/64",
            *(a for a in interface.addresses if a.startswith("fe80:")),
        }  # fmt: skip
        assert interface.addresses.index("172.30.0.10/24") < interface.addresses.index("172.30.0.99/24")
        assert set(interface.routes) == {
            Route("10.9.9.2/32", None, 0, "link", "10.9.9.1"),
            Route("169.254.1.1/32", None, 0, "link"),
            Route("10.1.0.0/16", "172.30.0.7", 50),
            Route("10.2.0.0/16", "203.0.113.1", 0, "global", "172.30.0.99", onlink=True),
            Route("0.0.0.0/0", HOST4),
            Route("::/0", HOST6, 1024),
            Route("fd00:99::/64", "fd00:30::7", 77),
        }
        gateways = [route.gateway for route in interface.routes]
        assert gateways.index(None) == 0 and None not in gateways[gateways.count(None) :]
        assert interface.neighbours == (
            Neighbour("172.30.0.50", "02:00:00:00:00:50"), Neighbour("fd00:30::50", "02:00:00:00:00:50")
        )  # fmt: skip
        assert {one.interface.name for one in mirror.discover(one.netns)} == {"eth0", "down0", "br7"}

    in_lab(test)


def test_an_interface_without_ipv6_has_no_ipv6_address() -> None:
    def test(lab: Lab) -> None:
        one = lab.container(boot=False)
        one.inside(lambda: sh("echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6"))
        (found,) = mirror.discover(one.netns)
        assert not [text for text in (*found.interface.addresses, *found.interface.routes) if ":" in str(text)]

    in_lab(test)


def test_too_much_is_refused() -> None:
    def test(lab: Lab) -> None:
        one = lab.container(boot=False)
        one.inside(lambda: sh("for n in $(seq 2 66); do ip addr add 10.0.$n.1/24 dev eth0; done"))
        with pytest.raises(NetworkError, match="eth0 has .* addresses, at most 64"):
            one.network.nics()
        assert one.network.interfaces == ()
        one.inside(lambda: sh(
            "ip addr flush dev eth0; for n in $(seq 9); do ip link add d$n type veth peer name e$n; done"
        ))
        with pytest.raises(NetworkError, match="19 interfaces, at most 16"):
            one.network.nics()

    in_lab(test)


# ---- changes while it runs


def names(engine: Engine) -> list[str]:
    return [interface.name for interface in engine.network.interfaces]


def told(engine: Engine) -> tuple[Interface, ...]:
    """What the guest was told last; one interface with nothing when that has not happened yet."""
    found = [what for call, what in engine.pod.calls if call == "configure"]
    return found[-1] if found else (Interface("", "", 0),)  # type: ignore[return-value]


def test_an_interface_that_comes_late_and_goes() -> None:
    def test(lab: Lab) -> None:
        bridge("br1", 31)
        one = lab.container()
        one.link("eth1", net=31, bridge="br1")
        one.pod.until(lambda: any("172.31.0.10/24" in a.addresses for a in told(one)))
        for address in ("172.31.0.1", "fd00:31::1", HOST4):
            with listen(address) as server:
                port = server.getsockname()[1]
                dial = lambda: one.pod.inside(lambda: connect(address, port))  # noqa: E731, B023
                exchange(server, dial, 100_000)
        mac = told(one)[1].mac
        sh("ip link delete v10eth1")
        one.pod.until(lambda: ("unplug", mac) in one.pod.calls)
        assert names(one) == ["eth0"]
        assert one.log == []

    in_lab(test)


def test_addresses_routes_names_and_mtu_follow_without_breaking_connections() -> None:
    def test(lab: Lab) -> None:
        one = lab.container()
        with (
            listen(HOST4) as server,
            one.pod.inside(lambda: connect(HOST4, server.getsockname()[1])) as client,
            server.accept()[0] as peer,
        ):
            one.inside(lambda: sh("ip addr add 172.30.0.77/24 dev eth0; ip route add 10.5.0.0/16 via 172.30.0.2"))
            one.pod.until(lambda: Route("10.5.0.0/16", "172.30.0.2") in told(one)[0].routes)
            assert "172.30.0.77/24" in told(one)[0].addresses
            one.inside(lambda: sh("ip link set eth0 mtu 1300"))
            one.pod.until(lambda: told(one)[0].mtu == 1300)
            one.inside(lambda: sh("ip route del 10.5.0.0/16; ip addr del 172.30.0.77/24 dev eth0"))
            one.pod.until(lambda: "172.30.0.77/24" not in told(one)[0].addresses)
            client.sendall(b"still there")
            assert peer.recv(100) == b"still there"
        assert one.log == [] and [call for call, _ in one.pod.calls if call != "configure"] == []

    in_lab(test)


def test_a_change_between_boot_and_following_is_not_missed() -> None:
    def test(lab: Lab) -> None:
        one = lab.container(boot=False)
        one.pod.boot(one.netns, one.network.nics(), [], "guest")
        one.inside(lambda: sh("ip addr add 172.30.0.77/24 dev eth0"))
        one.network.follow()
        one.pod.until(lambda: "172.30.0.77/24" in told(one)[0].addresses)

    in_lab(test)


def test_an_interface_that_is_down_for_a_moment_stays_in_the_guest() -> None:
    def test(lab: Lab) -> None:
        one = lab.container()
        one.inside(lambda: sh("ip link set eth0 down"))
        one.pod.until(lambda: told(one)[0].mtu > 0 and not told(one)[0].routes)
        one.inside(lambda: sh(f"ip link set eth0 up; ip route add default via {HOST4}"))
        one.pod.until(lambda: bool(told(one)[0].routes))
        assert "unplug" not in [call for call, _ in one.pod.calls]
        with listen(HOST4) as server:
            port = server.getsockname()[1]
            exchange(server, lambda: one.pod.inside(lambda: connect(HOST4, port)))

    in_lab(test)


def test_one_with_another_hardware_address_is_another_one() -> None:
    def test(lab: Lab) -> None:
        one = lab.container()
        before = one.network.interfaces[0].mac
        one.inside(lambda: sh("ip link set eth0 down; ip link set eth0 address 02:00:00:00:77:77 up"))
        one.pod.until(lambda: any(a.mac == "02:00:00:00:77:77" for a in told(one)))
        calls = [call for call, _ in one.pod.calls]
        assert ("unplug", before) in one.pod.calls and calls.index("unplug") < calls.index("plug")

    in_lab(test)


def test_a_plug_that_fails_leaves_the_rest_and_is_tried_again_when_there_is_room() -> None:
    def test(lab: Lab) -> None:
        one = lab.container(slots=1)
        for number in (1, 2):
            bridge(f"br{number}", 30 + number)
            one.link(f"eth{number}", net=30 + number, bridge=f"br{number}")
            one.pod.until(lambda: len([1 for call, _ in one.pod.calls if call in ("plug", "refused")]) == number)  # noqa: B023
        one.pod.until(lambda: bool(one.log))
        assert one.log == ["network: eth2 stays outside: no slot is left"]
        assert names(one) == ["eth0", "eth1"]
        assert "ingress" not in one.inside(lambda: sh("tc qdisc show dev eth2"))
        sh("ip link delete v10eth1")
        one.pod.until(lambda: [a.name for a in told(one)] == ["eth0", "eth2"])
        with listen("172.32.0.1") as server:
            port = server.getsockname()[1]
            exchange(server, lambda: one.pod.inside(lambda: connect("172.32.0.1", port)))

    in_lab(test)


def test_a_guest_that_could_not_be_told_is_told_with_the_next_change() -> None:
    def test(lab: Lab) -> None:
        one = lab.container()
        one.pod.refuse_configure = "the guest does not answer"
        one.inside(lambda: sh("ip addr add 172.30.0.77/24 dev eth0"))
        one.pod.until(lambda: bool(one.log))
        assert one.log[0] == "network: the guest's interfaces are not up to date: the guest does not answer"
        one.pod.refuse_configure = ""
        one.inside(lambda: sh("ip addr del 172.30.0.77/24 dev eth0"))  # back to what the guest has: told all the same
        one.pod.until(lambda: told(one)[0].mtu > 0)

    in_lab(test)


def test_many_changes_are_few_calls_and_the_last_one_is_right() -> None:
    def test(lab: Lab) -> None:
        netns = new_netns()
        calls: list[list[Found]] = []
        news = threading.Condition()

        def changed(found: list[Found]) -> None:
            with news:
                calls.append(found)
                news.notify_all()

        watch = Watch(netns, changed, lambda error: calls.append([]))
        namespaces.in_netns(netns, lambda: sh("ip link add a0 type veth peer name b0; ip link set a0 up"))
        batch = "\n".join(f"addr add 10.1.0.{n}/32 dev a0" for n in range(1, 61))
        namespaces.in_netns(netns, lambda: sh(f"ip -batch - <<'END'\n{batch}\nEND"))
        watch.start([])

        def addresses() -> int:
            return len([a for one in calls[-1] for a in one.interface.addresses if "." in a]) if calls else 0

        with news:
            assert news.wait_for(lambda: addresses() == 60, WAIT)
            assert len(calls) <= 3  # the link-local addresses may come later
        namespaces.in_netns(netns, lambda: sh("ip addr flush dev a0"))
        with news:
            assert news.wait_for(lambda: addresses() == 0, WAIT)
        watch.close()
        watch.close()
        before = len(calls)
        namespaces.in_netns(netns, lambda: sh("ip addr add 10.1.0.1/32 dev a0"))
        assert len(calls) == before
        os.close(netns)

    in_lab(test)


def test_who_asks_waits_until_all_of_before_is_told() -> None:
    def test(lab: Lab) -> None:
        netns = new_netns()
        calls: list[list[Found]] = []
        watch = Watch(netns, calls.append, lambda error: calls.append([]))
        assert not watch.caught_up(0), "it has not begun"
        watch.start([])
        for number in range(6):
            namespaces.in_netns(netns, lambda: sh(f"ip link add a{number} type veth peer name b{number}"))  # noqa: B023
            assert watch.caught_up(WAIT)
            assert f"a{number}" in [one.interface.name for one in calls[-1]]
        watch.close()
        assert not watch.caught_up(WAIT), "it has ended"
        os.close(netns)

    in_lab(test)


def test_a_watch_that_was_overrun_reads_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def test(lab: Lab) -> None:
        netns = new_netns()
        calls: list[list[Found]] = []
        news, go = threading.Condition(), threading.Event()

        def changed(found: list[Found]) -> None:
            go.wait(WAIT)
            with news:
                calls.append(found)
                news.notify_all()

        watch = Watch(netns, changed, lambda error: calls.append([]))
        watch._news.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        namespaces.in_netns(netns, lambda: sh("ip link add a0 type veth peer name b0; ip link set a0 up"))
        watch.start([])  # and it is held in the first call while the rest happens
        batch = "\n".join(f"addr add 10.1.0.{n}/32 dev a0" for n in range(1, 61))
        namespaces.in_netns(netns, lambda: sh(f"ip -batch - <<'END'\n{batch}\nEND"))
        go.set()
        with news:
            assert news.wait_for(lambda: any(len(one.interface.addresses) >= 60 for one in (calls or [[]])[-1]), WAIT)
        watch.close()
        os.close(netns)

    in_lab(test)

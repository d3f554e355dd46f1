"""The vm wall's sandbox for several containers with a real machine, a real agent and real file servers."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from casemate.errors import AgentError, CommandNotFound, HypervisorError, NetworkError, NotRunning
from casemate.host import namespaces
from casemate.host.tap import open_tap
from casemate.sandbox import Disk, Interface, Nic, ProcessExit, Route
from tests.vm.host_tools import in_child, needs_root
from tests.vm.pod_stage import WAIT, Stage, read_all, read_until
from tests.vm.support import Environment

pytestmark = needs_root

Play = Callable[..., None]


@pytest.fixture
def play(env: Environment, tmp_path: Path) -> Play:
    """Plays a scene: a function that gets a :class:`Stage`, in a process of its own."""

    def run(scene: Callable[[Stage], None], **changes: Any) -> None:
        def body() -> None:
            with Stage(env, tmp_path, **changes) as stage:
                scene(stage)

        in_child(body)

    return run


# ---- containers and their files


def test_two_containers_one_after_another(play: Play) -> None:
    play(_two_containers)


def _two_containers(stage: Stage) -> None:
    stage.boot()
    first = stage.root("first")
    data, file = stage.place / "data", stage.place / "file"
    data.mkdir()
    (data / "a").write_text("from the host")
    file.write_text("a file")
    stage.sh(f"mkdir {data}/below; mount -t tmpfs below {data}/below; echo deep > {data}/below/x")
    stage.pod.attach("one", stage.tree(first), stage.volumes(data, file))

    # Nothing runs before it is told to.
    streams = stage.pod.create("one", stage.spec("one", ["sh", "-c", "cat /who; read x; exit $x"], 2), [], True, None)
    assert stage.told.empty()
    stage.pod.start("one")
    assert read_until(streams, "first") == "first"
    assert stage.ask("one", "cat /inner/file /v0/a /v0/below/x /v1") == "inner first\nfrom the hostdeep\na file"

    # Both sides see at once what the other does to a volume.
    for number in range(5):
        (data / "a").write_text(f"host {number}")
        (data / f"new-{number}").touch()
        assert stage.ask("one", f"cat /v0/a; ls /v0/new-{number}; echo guest {number} > /v0/g") == (
            f"host {number}/v0/new-{number}"
        )
        assert (data / "g").read_text() == f"guest {number}\n"
        (data / f"new-{number}").unlink()
        assert stage.ask("one", f"ls /v0/new-{number} 2>/dev/null || echo gone") == "gone"
    # A file that the container has never looked at is there when somebody executes something.
    (first / "late").write_text("copied in")
    assert stage.ask("one", "cat /late; echo out > /made") == "copied in"
    assert (first / "made").read_text() == "out\n"

    # What the host mounts below a volume later appears, and goes again; lazily, for the guest remembers it.
    stage.sh(f"mkdir {data}/later; mount -t tmpfs later {data}/later; echo mounted > {data}/later/y")
    assert stage.ask("one", "cat /v0/later/y") == "mounted"
    stage.sh(f"umount -l {data}/later")
    assert stage.ask("one", "ls /v0/later") == ""

    # A second one meanwhile, with files of its own.
    stage.pod.attach("two", stage.tree(stage.root("second")), None)
    other = stage.start("two", "sh", "-c", "cat /who /inner/file; ls /v0 2>&1")
    assert read_all(other)[0].startswith("secondinner second\nls: /v0")
    assert stage.end_of("two", None).status == 1
    stage.pod.delete("two")
    stage.pod.detach("two")

    assert streams.stdin is not None
    streams.stdin.send(b"7\n")
    assert stage.end_of("one", None) == ProcessExit(7)
    with pytest.raises(NotRunning):
        stage.pod.signal("one", None, 15)
    stage.pod.delete("one")
    stage.pod.detach("one")

    # The same name again, with other files.
    stage.pod.attach("one", stage.tree(stage.root("third")), stage.volumes(file))
    again = stage.start("one", "sh", "-c", "cat /who /v0", volumes=1)
    assert read_all(again) == ("thirda file", "")
    assert stage.end_of("one", None) == ProcessExit(0)
    stage.pod.delete("one")
    stage.pod.detach("one")

    # The host's mounts are as they were: nothing of what was done in the keeper's namespace reached them.
    assert (data / "below/x").read_text() == "deep\n"
    assert stage.sh(f"cat {first}/inner/file {data}/below/x") == "inner first\ndeep\n"


def test_files_that_are_open_can_be_taken_away(play: Play) -> None:
    play(_open_files)


def _open_files(stage: Stage) -> None:
    stage.boot()
    data = stage.place / "data"
    data.mkdir()
    with loop_device(stage, size=8 << 20) as loop:
        stage.sh(f"mkfs.ext4 -q {loop}; mount {loop} {data}; echo kept > {data}/file")
        assert os.path.exists(f"/proc/fs/ext4/{os.path.basename(loop)}")
        stage.pod.attach("one", stage.tree(stage.root("first")), stage.volumes(data))
        script = "exec 3</v0/file; cat >/dev/null; cat <&3; cat /v0/file; cat /who"
        streams = stage.start("one", "sh", "-c", script, volumes=1)
        assert stage.ask("one", "cat /v0/file") == "kept"
        began = time.monotonic()
        stage.pod.detach("one")
        assert time.monotonic() - began < 10
        assert os.listdir(stage.run_path / "share") == os.listdir(stage.run_path / "volumes") == []
        # The container keeps what it has.
        assert streams.stdin is not None
        streams.stdin.send_eof()
        assert read_all(streams) == ("kept\nkept\nfirst", "")
        assert stage.end_of("one", None) == ProcessExit(0)
        stage.pod.delete("one")
        stage.pod.detach("one")
        # Nobody holds the file system any more: when the host unmounts it, it is free.
        stage.sh(f"umount {data}")
        assert wait_for(lambda: not os.path.exists(f"/proc/fs/ext4/{os.path.basename(loop)}"))


# ---- processes


def test_processes_signals_and_pauses(play: Play) -> None:
    play(_processes)


def _processes(stage: Stage) -> None:
    stage.boot()
    stage.pod.attach("one", stage.tree(stage.root("first")), None)
    with pytest.raises(CommandNotFound):
        stage.start("one", "no-such-command")
    assert stage.told.empty()
    streams = stage.start("one", "sh", "-c", "trap 'echo caught' USR1; echo up; while :; do sleep 0.1; done")
    read_until(streams, "up")
    stage.pod.signal("one", None, signal.SIGUSR1)
    read_until(streams, "caught")

    # A process with input, and how it ends: by itself, and by a signal.
    process = stage.process(["sh", "-c", "cat; echo bad >&2; exit 9"])
    cat = stage.pod.exec("one", "cat", process, True, None)
    assert cat.stdin is not None
    cat.stdin.send(b"there and back")
    cat.stdin.send_eof()
    assert read_all(cat) == ("there and back", "bad\n")
    assert stage.end_of("one", "cat") == ProcessExit(9)
    stage.pod.exec("one", "sleep", stage.process(["sleep", "1000"]), False, None)
    stage.pod.signal("one", "sleep", signal.SIGTERM)
    assert stage.end_of("one", "sleep") == ProcessExit(128 + 15, signal=15)
    with pytest.raises(NotRunning):
        stage.pod.signal("one", "sleep", signal.SIGTERM)
    with pytest.raises(CommandNotFound):
        stage.pod.exec("one", "none", stage.process(["no-such-command"]), False, None)

    # A terminal, and its size.
    terminal = stage.process(["sh", "-c", "stty size; read x; stty size"], terminal=True)
    tty = stage.pod.exec("one", "tty", terminal, True, (31, 71))
    read_until(tty, "31 71")
    stage.pod.resize("one", "tty", 40, 90)
    assert tty.stdin is not None
    tty.stdin.send(b"\n")
    read_until(tty, "40 90")
    assert stage.end_of("one", "tty") == ProcessExit(0)

    # A pause is the container's alone.
    stage.pod.attach("two", stage.tree(stage.root("second")), None)
    second = stage.start("two", "sh", "-c", "while read x; do echo got $x; done; exit 4")
    process = stage.process(["sh", "-c", "while :; do echo t; sleep 0.05; done"])
    ticker = stage.pod.exec("one", "ticker", process, False, None)
    read_until(ticker, "t")
    stage.pod.pause("one")
    stage.pod.pause("one")  # is no error
    assert second.stdin is not None
    second.stdin.send(b"word\n")
    read_until(second, "got word")
    heard = threading.Event()

    def tell() -> None:
        while ticker.stdout is not None and ticker.stdout.recv():
            heard.set()

    threading.Thread(target=tell, daemon=True).start()
    heard.wait(1)  # what was on its way
    heard.clear()
    assert not heard.wait(1), "a paused container does nothing"
    assert stage.pod.stats("one")["processes"]
    stage.pod.resume("one")
    assert heard.wait(WAIT)

    stage.pod.update("one", {"pids": {"limit": 77}})
    stats = stage.pod.stats("one")
    assert stats["pids"]["max"] == 77 and stats["limit"] == 320 << 20
    info = stage.pod.info()
    assert info["kernel"] and set(info["processes"]) == {"keeper", "vmm", "files", "volumes"}
    inside = stage.group.processes()
    assert {info["processes"][name] for name in ("vmm", "files", "volumes")} <= inside
    assert len(inside) == 5 and os.getpid() not in inside, "each file server is two processes; the keeper stays outside"
    assert stats["host"]["memory"] > 32 << 20 and stats["host"]["cpu_us"] > 100_000

    # The end of all at once; that of a container's first process comes last.
    stage.pod.signal("one", None, signal.SIGKILL, everyone=True)
    assert stage.end_of("one", "ticker") == ProcessExit(137, signal=9)
    assert stage.end_of("one", None) == ProcessExit(137, signal=9)
    second.stdin.send_eof()
    assert stage.end_of("two", None) == ProcessExit(4)

    # One that was never started can be deleted.
    stage.pod.attach("three", stage.tree(stage.root("fourth")), None)
    stage.pod.create("three", stage.spec("three", ["true"]), [], False, None)
    for id in ("one", "two", "three"):
        stage.pod.delete(id)
        stage.pod.detach(id)
    assert stage.end_of("three", None).signal == 9
    stage.pod.flush()
    stage.pod.close()
    assert stage.told.empty(), "that a machine ended which was closed is no news"


# ---- devices


def test_interfaces_and_disks_come_and_go(play: Play) -> None:
    play(_devices)


def _devices(stage: Stage) -> None:
    taps = [tap(stage, number) for number in range(3)]
    image = stage.place / "image"
    image.write_bytes(b"the first disk".ljust(1 << 20, b"\0"))
    first = Disk("cm-7-100", os.open(image, os.O_RDWR), read_only=True)
    stage.boot([taps[0]], [first])
    stage.pod.attach("one", stage.tree(stage.root("first")), None)
    devices = [
        {"type": "b", "path": f"/dev/disk{number}", "major": 7, "minor": number, "fileMode": 0o600, "uid": 0, "gid": 0}
        for number in (100, 101)
    ]
    rules = [{"allow": False, "access": "rwm"}] + [
        {"allow": True, "type": "b", "major": 7, "minor": number, "access": "rwm"} for number in (100, 101)
    ]
    streams = stage.start(
        "one", "sh", "-c", "echo up; cat", devices=devices[:1], resources={"devices": rules[:2]}
    )  # fmt: skip
    read_until(streams, "up")
    assert stage.ask("one", "head -c 14 /dev/disk100") == "the first disk"
    assert stage.ask("one", "echo x > /dev/disk100 2>/dev/null || echo refused") == "refused"
    assert names(stage, "one") == ["eth0"]
    assert pings(stage, "one", 0)

    # Later ones. The interface of the start can go as well.
    stage.pod.plug(taps[1])
    assert names(stage, "one") == ["eth0", "eth1"]
    assert pings(stage, "one", 1) and pings(stage, "one", 0)
    stage.pod.unplug(taps[0].interface.mac)
    assert names(stage, "one") == ["eth1"]
    assert not pings(stage, "one", 0) and pings(stage, "one", 1)
    stage.pod.plug(taps[2])
    renamed = Interface("net9", taps[1].interface.mac, 1400, taps[1].interface.addresses)
    stage.pod.configure([renamed, taps[2].interface])
    assert names(stage, "one") == ["eth2", "net9"]
    assert stage.ask("one", "cat /sys/class/net/net9/mtu") == "1400"
    assert pings(stage, "one", 1) and pings(stage, "one", 2)
    for made in taps[1:]:
        stage.pod.unplug(made.interface.mac)
    assert names(stage, "one") == []
    assert stage.sh_in_netns("ls /sys/class/net").split() == ["lo"], "the taps have gone with their interfaces"

    # A disk of the host's for the second container.
    with loop_device(stage, size=1 << 20) as loop:
        stage.pod.plug_disk(Disk("cm-7-101", os.open(loop, os.O_RDWR)))
        stage.pod.attach("two", stage.tree(stage.root("second")), None)
        script = "echo 'written by the guest' | dd of=/dev/disk101 conv=fsync 2>/dev/null; head -c 14 /dev/disk100"
        second = stage.start("two", "sh", "-c", script, devices=devices, resources={"devices": rules})
        assert read_all(second) == ("the first disk", "")
        assert stage.end_of("two", None) == ProcessExit(0)
        assert Path(loop).read_bytes().startswith(b"written by the guest\n")
        stage.pod.close()


def test_a_guest_without_an_interface_gets_one_later(play: Play) -> None:
    def scene(stage: Stage) -> None:
        stage.boot()
        stage.pod.attach("one", stage.tree(stage.root("first")), None)
        read_until(stage.start("one", "sh", "-c", "echo up; cat"), "up")
        late = tap(stage, 0)
        stage.pod.plug(late)
        assert names(stage, "one") == ["eth0"] and pings(stage, "one", 0)

    play(scene)


def test_ports_of_the_guest(play: Play) -> None:
    def scene(stage: Stage) -> None:
        stage.boot()
        root = stage.root("first")
        stage.pod.attach("one", stage.tree(root), None)
        streams = stage.start("one", "sh", "-c", "echo up; nc -l -p 80 -e cat; exit 3")
        read_until(streams, "up")

        def connected() -> bool:
            try:
                there.append(stage.pod.connect(80))
            except NetworkError:
                return False
            return True

        there: list[Any] = []
        assert wait_for(connected)
        with pytest.raises(NetworkError):
            stage.pod.connect(81)
        data = os.urandom(300_000)
        threading.Thread(target=lambda: (there[0].stdin.send(data), there[0].stdin.send_eof()), daemon=True).start()
        got = b""
        while chunk := there[0].stdout.recv():
            got += chunk
        assert got == data
        assert stage.end_of("one", None) == ProcessExit(3)

    play(scene)


# ---- trouble


def test_a_dead_machine_ends_its_containers(play: Play) -> None:
    def scene(stage: Stage) -> None:
        stage.boot()
        for id in ("one", "two"):
            stage.pod.attach(id, stage.tree(stage.root(id)), None)
            stage.start(id, "sleep", "1000")
        stage.pod.exec("two", "e", stage.process(["sleep", "1000"]), False, None)
        os.kill(stage.pod.info()["processes"]["vmm"], signal.SIGKILL)
        told = [stage.told.get(timeout=WAIT) for _ in range(4)]
        assert told[0][:2] == ("two", "e")
        assert {told[1][:2], told[2][:2]} == {("one", None), ("two", None)}
        assert isinstance(told[3], ProcessExit)
        assert {end.status for end in (*(one[2] for one in told[:3]), told[3])} == {137}
        with pytest.raises(NotRunning):
            stage.pod.exec("one", "f", stage.process(["true"]), False, None)
        stage.pod.delete("one")
        stage.pod.detach("one")

    play(scene)


def test_a_dead_file_server_ends_the_machine(play: Play) -> None:
    def scene(stage: Stage) -> None:
        stage.boot()
        stage.pod.attach("one", stage.tree(stage.root("one")), None)
        stage.start("one", "sleep", "1000")
        os.kill(stage.pod.info()["processes"]["volumes"], signal.SIGKILL)
        assert "file server" in stage.end_of("one", None).error
        end = stage.told.get(timeout=WAIT)
        assert isinstance(end, ProcessExit) and "file server" in end.error

    play(scene)


def test_a_machine_that_stands_still_holds_nobody_up(play: Play) -> None:
    def scene(stage: Stage) -> None:
        stage.boot()
        stage.pod.attach("one", stage.tree(stage.root("one")), None)
        stage.start("one", "sleep", "1000")
        stage.pod._calls.timeout = 2.0  # only now: a busy host takes its time for what comes before
        os.kill(stage.pod.info()["processes"]["vmm"], signal.SIGSTOP)
        stage.pod.attach("two", stage.tree(stage.root("two")), None)
        for call in (
            lambda: stage.pod.create("two", stage.spec("two", ["true"]), [], True, None),
            lambda: stage.pod.signal("one", None, 9), lambda: stage.pod.stats("one"), lambda: stage.pod.delete("one"),
            lambda: stage.pod.exec("one", "e", stage.process(["true"]), True, None), lambda: stage.pod.connect(80),
        ):  # fmt: skip
            with pytest.raises(AgentError, match="does not answer"):
                call()
        spare = tap(stage, 0)
        with pytest.raises((HypervisorError, AgentError)):
            stage.pod.plug(spare)
        for id in ("one", "two"):
            stage.pod.detach(id)
        # More than anybody takes in: a frame of which a part was written can only be the last one.
        files = [{"path": "/etc/big", "mode": 0o644, "content": "x" * 600_000}]
        with pytest.raises(AgentError, match="does not answer"):
            stage.pod.create("three", stage.spec("three", ["true"]), files, True, None)
        with pytest.raises(NotRunning, match="stopped reading"):
            stage.pod.stats("one")
        began = time.monotonic()
        stage.pod.close()
        assert time.monotonic() - began < 15
        assert stage.end_of("one", None).status == 137

    play(scene)


# ---- tools


class loop_device:
    """A loop device on a file of the stage's; the test is for hosts that have such."""

    def __init__(self, stage: Stage, size: int) -> None:
        self.stage = stage
        self.file = stage.place / "loop-file"
        self.file.write_bytes(b"\0" * size)
        self.path = ""

    def __enter__(self) -> str:
        self.path = self.stage.sh(f"losetup -f --show {self.file}").strip()
        return self.path

    def __exit__(self, *_: object) -> None:
        subprocess.run(["losetup", "-d", self.path], capture_output=True, check=False)


def wait_for(true: Callable[[], bool]) -> bool:
    """Ask until it is so; for what nobody tells."""
    deadline = time.monotonic() + WAIT
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def tap(stage: Stage, number: int) -> Nic:
    """An interface whose tap is in the stage's network namespace, which has the address 10.9.N.1."""

    def make() -> int:
        fd, name = open_tap(f"cmtap{number}")
        for command in (f"ip link set {name} up", f"ip addr add 10.9.{number}.1/24 dev {name}"):
            subprocess.run(command.split(), check=True)
        return fd

    fd = namespaces.in_netns(stage.netns, make)
    mac = f"02:00:00:00:09:{number:02x}"
    address = f"10.9.{number}.2/24"
    routes = (Route("0.0.0.0/0", f"10.9.{number}.1"),) if number == 0 else ()
    return Nic(Interface(f"eth{number}", mac, 1500, (address,), routes), fd)


def names(stage: Stage, id: str) -> list[str]:
    """The interfaces of the guest but the loopback."""
    return sorted(set(stage.ask(id, "ls /sys/class/net").split()) - {"lo", "sit0", "tunl0", "dummy0", "ip6tnl0"})


def pings(stage: Stage, id: str, number: int) -> bool:
    return stage.ask(id, f"ping -c 1 -W 2 10.9.{number}.1 >/dev/null && echo yes || echo no") == "yes"

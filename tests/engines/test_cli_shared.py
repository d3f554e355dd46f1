"""What containers share: other containers' namespaces, the host's, sockets, devices, and each other's volumes."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.engines import Client, on
from tests.engines.images import BOX, PYTHON, PYTHON_VOLUME
from tests.engines.terminal import eventually

pytestmark = on("docker", "podman")


@pytest.fixture(scope="module")
def first(cli: Client) -> Iterator[str]:
    """A container whose namespaces and volumes others join, with devices and a tree of the host's."""
    options = ("--ipc", "shareable", "-v", "/data", "-v", PYTHON_VOLUME)
    devices = ("--device", "/dev/net/tun", "--device", "/dev/fuse")
    with cli.container("--name", "first", *options, *devices, BOX, "sleep", "86400") as id:
        yield id
    # The volume without a name has gone with it.


@pytest.mark.feature("--pid container:NAME, --ipc container:NAME")
def test_joined_namespaces(cli: Client, first: str) -> None:
    cli.sh(first, "echo shared >/dev/shm/word")
    joined = ("--network", f"container:{first}", "--pid", f"container:{first}", "--ipc", f"container:{first}")
    with cli.container(*joined, BOX, "sh", "-c", "exec sleep 76543") as id:
        eventually(lambda: "sleep 76543" in cli.sh(id, "ps"), "its program has begun")
        assert "sleep 86400" in cli.sh(id, "ps"), "the first one's processes"
        assert cli.sh(id, "cat /dev/shm/word") == "shared"
        assert "sleep 76543" in cli.sh(first, "ps")
        assert cli.sh(id, "ps -o pid,args | grep '[s]leep 86400'").split()[0] == "1"
    eventually(lambda: "sleep 76543" not in cli.sh(first, "ps"), "it has ended")
    assert cli.sh(first, "cat /dev/shm/word") == "shared"


@pytest.mark.feature("--pid container:NAME, --ipc container:NAME")
def test_what_is_not_joined_is_its_own(cli: Client, first: str) -> None:
    """System V memory, process numbers and the host name of containers that share a network."""
    get = f"{PYTHON} -c 'import ctypes; print(ctypes.CDLL(None).shmget(0x12345, {{}}))'"
    made = cli.sh(first, get.format("4096, 0o1600"))
    assert int(made) >= 0
    words = ("run", "--rm", "-v", PYTHON_VOLUME, "--network", f"container:{first}")
    assert cli.out(*words, "--ipc", f"container:{first}", BOX, "sh", "-c", get.format("0, 0")) == made
    script = f"hostname changed; hostname; echo $$; ps -o args; {get.format('0, 0')}"
    own = cli.out(*words, "--cap-add", "SYS_ADMIN", BOX, "sh", "-c", script).splitlines()
    assert own[:2] == ["changed", "1"] and own[-1] == "-1"
    assert "sleep 86400" not in own
    assert cli.sh(first, "hostname") != "changed"


@pytest.mark.feature("--pid container:NAME, --ipc container:NAME")
def test_joining_processes_alone(cli: Client, first: str) -> None:
    """A process namespace without the network's: another machine cannot have it."""
    words = ("run", "--rm", "--pid", f"container:{first}", BOX, "ps")
    if cli.ours:
        assert "network" in cli.fails(*words)
    else:
        assert "sleep 86400" in cli.out(*words)


@pytest.mark.feature("--pid host, --ipc host, --uts host")
@pytest.mark.parametrize("kind", ["pid", "ipc", "uts"])
def test_of_the_host(cli: Client, kind: str) -> None:
    words = ("run", "--rm", f"--{kind}", "host", BOX, "true")
    if cli.ours:
        said = cli.fails(*words)
        assert kind in said and "host" in said
    else:
        cli.out(*words)


@pytest.mark.feature("-v of a UNIX socket")
def test_socket(cli: Client) -> None:
    path = cli.host.base / "listener"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        words = ("run", "--rm", "-v", f"{path}:/listener", BOX, "test", "-S", "/listener")
        try:
            if cli.ours:
                assert "socket" in cli.fails(*words)
            else:
                cli.out(*words)
        finally:
            path.unlink()


@pytest.mark.feature("-v and mount propagation")
def test_propagation(cli: Client, tmp_path: Path) -> None:
    """What the host has mounted below a bound directory comes along; what it mounts later is seen with rslave only."""
    (tmp_path / "before").mkdir()
    (tmp_path / "below").mkdir()
    mount = "mount -t tmpfs tmpfs {0}; echo there >{0}/file"
    options = ("-v", f"{tmp_path}:/private", "-v", f"{tmp_path}:/slave:rslave")
    cli.host.out("sh", "-ec", mount.format(tmp_path / "before"))
    try:
        with cli.container(*options, BOX, "sleep", "86400") as id:
            assert cli.sh(id, "cat /private/before/file /slave/before/file") == "there\nthere"
            cli.host.out("sh", "-ec", mount.format(tmp_path / "below"))
            try:
                assert cli.sh(id, "cat /slave/below/file") == "there"
                cli.fails("exec", id, "cat", "/private/below/file")
            finally:
                # The file server of a sandbox holds what the sandbox knows.
                cli.host.out("umount", *(["--lazy"] if cli.ours else []), tmp_path / "below")
    finally:
        cli.host.out("umount", tmp_path / "before")


@pytest.mark.feature("--volumes-from, images' files in new volumes")
def test_volumes_of_another(cli: Client, first: str) -> None:
    cli.sh(first, "echo data >/data/file")
    options = ("--volumes-from", first, "-v", "copied:/etc")
    script = "cat /data/file; test -e /etc/os-release && echo copied; echo more >>/data/file"
    try:
        assert cli.out("run", "--rm", *options, BOX, "sh", "-c", script).split() == ["data", "copied"]
        assert cli.sh(first, "cat /data/file").split() == ["data", "more"]
    finally:
        cli.out("volume", "rm", "copied")


@pytest.mark.feature("--device")
def test_character_devices(cli: Client, first: str) -> None:
    cli.sh(first, "test -c /dev/net/tun && test -c /dev/fuse")
    words = ("run", "--rm", "--device", "/dev/kmsg", BOX, "test", "-c", "/dev/kmsg")
    if cli.ours:
        assert "/dev/kmsg" in cli.fails(*words)
    else:
        cli.out(*words)


@pytest.mark.feature("-v of directories, files and named volumes")
def test_programs_from_the_host(cli: Client, first: str) -> None:
    """A bound tree with links and libraries: the host's own Python runs from it."""
    said = cli.sh(first, f"{PYTHON} -c 'import json, ssl, sys; print(json.dumps(sys.version_info[:2]))'")
    wanted = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print(list(sys.version_info[:2]))"], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert said == wanted.stdout.strip()

"""Podman's pods, and what it makes of Kubernetes' files."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.engines import Client, on
from tests.engines.images import BOX
from tests.engines.terminal import eventually

pytestmark = on("podman")

WEB = "mkdir -p /srv; hostname >/srv/index.html; exec httpd -f -p 80 -h /srv"
GET = "timeout 20 wget -q -O - http://{}/"


@pytest.fixture(scope="module")
def pod(cli: Client) -> Iterator[str]:
    """A pod of a web server and a client, with a published port."""
    cli.out("pod", "create", "--name", "pair", "--hostname", "pair.test", "-p", "8091:80")
    try:
        cli.out("run", "-d", "--pod", "pair", "--name", "server", BOX, "sh", "-c", WEB)
        cli.out("run", "-d", "--pod", "pair", "--name", "client", BOX, "sleep", "86400")
        yield "pair"
    finally:
        cli("pod", "rm", "-f", "-t", "0", "pair")


@pytest.mark.feature("podman pods")
def test_shared_network(cli: Client, pod: str) -> None:
    eventually(lambda: cli("exec", "client", "sh", "-c", GET.format("127.0.0.1")).stdout == b"pair.test\n", "it serves")
    assert cli.sh("client", "hostname") == cli.sh("server", "hostname") == "pair.test"
    assert "httpd" not in cli.sh("client", "ps")
    four = cli.sh("client", "ip -o -4 address show dev eth0")
    assert four == cli.sh("server", "ip -o -4 address show dev eth0")
    assert cli.host.out("sh", "-c", "busybox wget -q -O - http://127.0.0.1:8091/") == "pair.test"
    cli.sh("server", "echo shared >/dev/shm/word")
    assert cli.sh("client", "cat /dev/shm/word") == "shared"


@pytest.mark.feature("podman pods")
def test_shared_name(cli: Client, pod: str) -> None:
    """A name that one of them sets is that of all."""
    rename = ("run", "--rm", "--pod", pod, "--cap-add", "SYS_ADMIN", BOX, "sh", "-c")
    assert cli.out(*rename, "hostname other; hostname") == "other"
    assert cli.sh("client", "hostname; cat /proc/sys/kernel/hostname").split() == ["other", "other"]
    cli.out(*rename, "hostname pair.test")
    assert cli.sh("server", "hostname") == "pair.test"


@pytest.mark.feature("podman pods")
def test_one_ends_and_starts(cli: Client, pod: str) -> None:
    cli.out("stop", "-t", "0", "server")
    assert cli.state("client")["Running"] and not cli.state("server")["Running"]
    cli.fails("exec", "client", "sh", "-c", GET.format("127.0.0.1"))
    cli.out("start", "server")
    eventually(lambda: cli("exec", "client", "sh", "-c", GET.format("127.0.0.1")).returncode == 0, "it serves again")


@pytest.mark.feature("podman pods")
def test_stop_and_start(cli: Client, pod: str) -> None:
    cli.out("pod", "stop", "-t", "0", pod)
    assert {cli.state(name)["Status"] for name in ("server", "client")} == {"exited"}
    cli.out("pod", "start", pod)
    eventually(lambda: cli("exec", "client", "sh", "-c", GET.format("127.0.0.1")).returncode == 0, "it serves again")
    cli.out("pod", "pause", pod)
    assert cli.state("client")["Status"] == "paused"
    cli.out("pod", "unpause", pod)
    assert cli.sh("client", "hostname") == "pair.test"


@pytest.mark.feature("podman play kube, generate")
def test_kubernetes_file(cli: Client, pod: str, tmp_path: Path) -> None:
    made = cli.out("generate", "kube", pod)
    assert "kind: Pod" in made and BOX in made
    file = tmp_path / "pod.json"
    container = {"image": BOX, "imagePullPolicy": "Never"}
    volume = {"name": "data", "hostPath": {"path": str(tmp_path / "data"), "type": "DirectoryOrCreate"}}
    mounts = [{"name": "data", "mountPath": "/srv"}]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "index.html").write_text("from a volume\n")
    server = {"name": "web", "args": ["httpd", "-f", "-p", "80", "-h", "/srv"], "volumeMounts": mounts}
    client = {"name": "user", "args": ["sleep", "86400"], "env": [{"name": "ONE", "value": "1"}]}
    spec = {"containers": [container | server, container | client], "volumes": [volume], "hostname": "played"}
    document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "played"}, "spec": spec}
    file.write_text(json.dumps(document))
    try:
        cli.out("play", "kube", file)
        name = "played-user"
        eventually(
            lambda: cli("exec", name, "sh", "-c", GET.format("127.0.0.1")).stdout == b"from a volume\n", "it serves"
        )
        assert cli.sh(name, 'echo "$ONE"') == "1"
    finally:
        cli("play", "kube", "--down", file)
        cli("pod", "rm", "-f", "-t", "0", "played")
    assert "played" not in cli.out("pod", "ps")


@pytest.mark.feature("podman play kube, generate")
def test_unit_file(cli: Client, pod: str) -> None:
    units = cli.out("generate", "systemd", "--name", "server")
    assert "ExecStart=" in units and "start server" in units


@pytest.mark.feature("--preserve-fds")
@pytest.mark.parametrize("command", ["run", "exec"])
def test_preserved_descriptors(cli: Client, command: str) -> None:
    """The shell gives the engine a pipe as descriptor 3."""
    with cli.container(BOX, "sleep", "1000") as id:
        where = [id] if command == "exec" else ["--rm", BOX]
        shell = ["bash", "-c", 'exec "$0" "$@" 3<&0 0</dev/null']
        words = [*shell, *cli.command(command, "--preserve-fds=1", *where, "sh", "-c", "cat <&3")]
        done = subprocess.run(words, input=b"by descriptor 3\n", capture_output=True, env=cli.variables, timeout=100)
        assert done.stdout == b"by descriptor 3\n", done.stderr

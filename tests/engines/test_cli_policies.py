"""What an engine does by itself: restarts, health checks, events, and going on after its daemon was restarted."""

from __future__ import annotations

import contextlib
import json
import signal
import time

import pytest

from tests.engines import engines
from tests.engines.engines import Client, on
from tests.engines.host import Service
from tests.engines.images import BOX
from tests.engines.terminal import eventually

both = on("docker", "podman")
docker = on("docker")

WAIT = "trap 'exit 0' TERM; echo ready; while :; do sleep 1000 & wait $!; done"


@both
@pytest.mark.feature("--restart")
def test_restart_on_failure(cli: Client) -> None:
    with cli.container("--restart", "on-failure:2", BOX, "sh", "-c", "echo once; exit 3") as id:
        eventually(lambda: cli.out("logs", id).split() == ["once"] * 3, "it has run three times")
        eventually(lambda: cli.state(id)["Status"] == "exited", "it is given up")
        assert (cli.state(id)["ExitCode"], cli.inspect(id)["RestartCount"]) == (3, 2)


@both
@pytest.mark.feature("--restart")
def test_restart_always(cli: Client) -> None:
    with cli.container("--restart", "always", BOX, "sh", "-c", WAIT) as id:
        eventually(lambda: cli.out("logs", id).count("ready") == 1, "it runs")
        cli("exec", id, "kill", "-TERM", "1")  # an end that nobody has asked for
        eventually(lambda: cli.out("logs", id).count("ready") == 2, "it runs again")
        cli.out("stop", id)  # one that was asked for
        assert cli.state(id)["Status"] == "exited" and cli.state(id)["ExitCode"] == 0


@both
@pytest.mark.feature("--health-cmd")
def test_health(cli: Client) -> None:
    options = ("--health-cmd", "test -e /ok", "--health-interval", "1s", "--health-retries", "2")
    if cli.engine == "podman":  # it has systemd look at intervals, where there is one
        options = ("--health-cmd", "test -e /ok", "--health-interval", "disable", "--health-retries", "2")
    with cli.container(*options, BOX, "sh", "-c", WAIT) as id:

        def status() -> str:
            if cli.engine == "podman":
                cli("healthcheck", "run", id)
            return str(cli.state(id)["Health"]["Status"])

        eventually(lambda: status() == "unhealthy", "it is unhealthy")
        cli.sh(id, "touch /ok")
        eventually(lambda: status() == "healthy", "it is healthy")


@both
@pytest.mark.feature("--memory, when there is not enough")
def test_out_of_memory(cli: Client) -> None:
    with cli.container("--memory", "48m", "--memory-swap", "48m", BOX, "tail", "/dev/zero") as id:
        assert cli.out("wait", id) == "137"
        if cli.engine == "docker":  # Podman does not always notice, with runc either
            assert cli.state(id)["OOMKilled"]


@docker
@pytest.mark.feature("events")
def test_events(cli: Client) -> None:
    begun = time.time()
    id = cli.out("create", BOX, "sh", "-c", WAIT)
    cli.out("start", id)
    cli.out("pause", id)
    cli.out("unpause", id)
    cli.out("exec", id, "true")
    cli.out("kill", "--signal", "TERM", id)
    cli.out("wait", id)
    cli.out("rm", id)
    words = ("events", "--since", f"{begun:.3f}", "--filter", f"container={id}", "--format", "{{json .}}")

    def seen() -> list[str]:
        """Those of them that are about what was done here; how a network was joined is among the rest."""
        lines = cli.out(*words, "--until", f"{time.time():.6f}").splitlines()
        return [name for line in lines if (name := json.loads(line)["status"].partition(":")[0]) in order]

    order = ["create", "start", "pause", "unpause", "exec_create", "exec_start", "exec_die", "kill", "die", "destroy"]
    eventually(lambda: len(seen()) >= len(order), "the last of them is told")
    assert seen() == order


@docker
@pytest.mark.feature("restart of the daemon")
def test_live_restore(cli: Client, dockerd: Service, containerd: Service) -> None:
    """Containers live on while dockerd, and containerd too, are away, whichever way they ended."""
    engines.settings(cli.host, live_restore=True)
    dockerd.send(signal.SIGHUP)
    eventually(lambda: cli.out("info", "--format", "{{.LiveRestoreEnabled}}") == "true", "the setting is read")
    with contextlib.ExitStack() as stack:
        stack.callback(engines.settings, cli.host)
        script = "echo ready; (while sleep 0.2; do echo tick; done) & exec httpd -f -p 80 -h /etc"
        id = stack.enter_context(cli.container("--name", "alive", BOX, "sh", "-c", script))
        stack.callback(dockerd.revive)
        # Not by a published port: what serves those on the loopback is a child of dockerd's.
        address = cli.inspect(id)["NetworkSettings"]["IPAddress"]
        get = ("busybox", "wget", "-q", "-O", "-", f"http://{address}/hostname")
        eventually(lambda: cli.host(*get).stdout.decode().strip() == id[:12], "it serves")
        begun = cli.state(id)
        dockerd.end(signal.SIGTERM)
        assert cli.host.out(*get) == id[:12]
        containerd.restart(signal.SIGKILL)
        dockerd.start()
        state = cli.state(id)
        assert (state["Running"], state["Pid"], state["StartedAt"]) == (True, begun["Pid"], begun["StartedAt"])
        assert cli.sh(id, "cat /etc/hostname") == id[:12]
        assert cli.host.out(*get) == id[:12]
        ticks = cli.out("logs", id).count("tick")
        eventually(lambda: cli.out("logs", id).count("tick") > ticks, "its output is kept again")
        # One that ends while its daemon is away is known to have ended when that is back.
        dockerd.end(signal.SIGKILL)
        cli.host.out("kill", "-9", str(begun["Pid"]))
        dockerd.start()
        eventually(lambda: cli.state(id)["Status"] == "exited", "its end is known")
        assert cli.state(id)["ExitCode"] == 137
        cli.out("start", id)
        assert cli.sh(id, "cat /etc/hostname") == id[:12]


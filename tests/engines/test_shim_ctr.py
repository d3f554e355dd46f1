"""containerd and ctr with our shim, before runc and before casemate; containerd's own shim is the control."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from casemate.shim.start import socket_path
from tests.engines import engines
from tests.engines.engines import RUNC
from tests.engines.host import TOOLS, Host, Service, _children, run, stop
from tests.engines.images import BOX
from tests.engines.signals import TELLING, WORDS
from tests.engines.terminal import eventually, terminal

NAMESPACE = "shims"
KINDS = ("control", "shim", "casemate", "sentry")
"""containerd's shim and runc; our shim and runc; our shim and casemate behind either wall."""
SHIM = "containerd-shim-casemate-v2"


class Ctr:
    """``ctr``, for one kind of shim and runtime."""

    def __init__(self, host: Host, kind: str) -> None:
        self.host = host
        self.kind = kind
        self.options = ["--runtime", "io.containerd.casemate.v2"]
        if kind == "control":
            self.options = ["--runtime", "io.containerd.runc.v2", "--runc-binary", str(RUNC)]
        elif kind == "shim":
            config = host.base / "shim-runc.toml"
            config.write_text(f'BinaryName = "{RUNC}"\n')
            self.options += ["--runtime-config-path", str(config)]
        elif kind == "sentry":
            self.options += ["--runtime-config-path", str(engines.sentry_options(host))]

    def __repr__(self) -> str:
        return self.kind

    def command(self, *words: str) -> list[str]:
        """The whole command line; after ``run`` comes the runtime."""
        given = list(words)
        if given[0] == "run":
            given[1:1] = self.options
        base = [str(TOOLS / "bin" / "ctr"), "-a", str(self.host.base / "c.sock"), "-n", NAMESPACE]
        return self.host.command(*base, *given)

    def __call__(
        self, *words: str, input: bytes | None = None, timeout: float = 120, check: bool = False
    ) -> subprocess.CompletedProcess[bytes]:
        return run(self.command(*words), input, timeout, check, self.host.variables)

    def out(self, *words: str, input: bytes | None = None, timeout: float = 120) -> str:
        """Run a command that must succeed; its standard output."""
        return self(*words, input=input, timeout=timeout, check=True).stdout.decode().rstrip("\n")

    def fails(self, *words: str) -> str:
        """Run a command that must fail; what it says on standard error."""
        done = self(*words)
        assert done.returncode != 0, done.stdout
        return done.stderr.decode()

    def tasks(self) -> dict[str, tuple[int, str]]:
        """Process id and status of every task."""
        lines = [line.split() for line in self.out("task", "ls").splitlines()[1:]]
        return {name: (int(pid), status) for name, pid, status in lines}

    def status(self, name: str) -> str:
        """What a task does; empty when it is not there."""
        return self.tasks().get(name, (0, ""))[1]

    def exec(self, name: str, *words: str, input: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run a command in a container."""
        return self("task", "exec", "--exec-id", f"x{os.urandom(4).hex()}", name, *words, input=input)

    def remove(self, name: str) -> None:
        """End a container and remove it."""
        self("task", "kill", "-s", "SIGKILL", name)
        eventually(lambda: self.status(name) in ("STOPPED", ""), f"{name} ends")
        self("task", "rm", "-f", name)
        self("container", "rm", name)

    @contextlib.contextmanager
    def container(self, name: str, *words: str, options: tuple[str, ...] = ()) -> Iterator[str]:
        """A detached container for a while."""
        self.out("run", "-d", *options, BOX, name, *words)
        try:
            yield name
        finally:
            self.remove(name)

    @contextlib.contextmanager
    def events(self) -> Iterator[list[tuple[str, dict[str, Any]]]]:
        """Topics and contents of what is told of tasks in the meantime."""
        told: list[tuple[str, dict[str, Any]]] = []
        process = subprocess.Popen(
            self.command("events"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=self.host.variables,
            start_new_session=True,
        )
        assert process.stdout is not None

        def read(stream: Any) -> None:
            for line in stream:
                words = line.decode().split(" ", 6)
                if len(words) > 5 and words[5].startswith("/tasks/"):
                    told.append((words[5].removeprefix("/tasks/"), json.loads(words[6])))

        thread = threading.Thread(target=read, args=(process.stdout,), daemon=True)
        thread.start()
        try:
            # It says nothing when it has begun to listen: make something happen until it is heard.
            eventually(lambda: self._heard(told), "ctr events listens")
            told.clear()
            yield told
        finally:
            stop(process)
            thread.join(10)

    def _heard(self, told: list[Any]) -> bool:
        name = f"marker{time.monotonic_ns()}"
        self.out("container", "create", BOX, name)
        self.out("task", "start", "-d", name)
        self.remove(name)
        return bool(told)


@pytest.fixture(scope="module", params=KINDS)
def ctr(request: pytest.FixtureRequest, engine_host: Host, containerd: Service) -> Iterator[Ctr]:
    """All of them, one after the other. None may leave a container, a mount or a socket."""
    made = Ctr(engine_host, request.param)
    if not made.out("images", "ls", "-q"):
        made.out("images", "import", str(engines.images(engine_host)))
    yield made
    assert made.out("container", "ls", "-q") == ""
    if made.kind != "control":
        eventually(lambda: not [one for one in engine_host.processes().values() if SHIM in one], "shims have ended")
    state = f"{engine_host.base}/c/io.containerd.runtime.v2.task/{NAMESPACE}"
    assert engine_host("ls", state).stdout == b""
    assert [line for line in engine_host.out("cat", "/proc/self/mountinfo").splitlines() if state in line] == []


@pytest.fixture(autouse=True)
def _own_containers(ctr: Ctr, containerd: Service) -> Iterator[None]:
    """What a test has not removed is its fault alone: the next one finds nothing."""
    yield
    containerd.revive()
    left = ctr.out("container", "ls", "-q").split()
    for name in left:
        ctr.remove(name)
    assert left == []


def _topics(told: list[tuple[str, dict[str, Any]]], name: str) -> list[str]:
    return [topic for topic, event in told if event["container_id"] == name]


@pytest.mark.feature("ctr run")
def test_streams_and_exit_status(ctr: Ctr) -> None:
    done = ctr("run", "--rm", BOX, "a", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


@pytest.mark.feature("ctr run")
def test_much_in_and_out(ctr: Ctr) -> None:
    data = random.Random(1).randbytes(8 << 20)
    done = ctr("run", "--rm", BOX, "a", "sh", "-c", "tee /dev/stderr", input=data, check=True)
    digest = hashlib.sha256(data).hexdigest()
    assert hashlib.sha256(done.stdout).hexdigest() == digest
    assert hashlib.sha256(done.stderr).hexdigest() == digest


@pytest.mark.feature("ctr run")
def test_a_terminal(ctr: Ctr) -> None:
    with terminal(ctr.command("run", "--rm", "-t", BOX, "a", "sh"), ctr.host.variables) as typed:
        # ctr tells the size when the process runs already.
        typed.type("echo begun-$((40 + 2)); until stty size 2>/dev/null | grep '24 80'; do sleep 0.1; done\r")
        typed.until("begun-42")
        typed.until("24 80")
        typed.type("exit 9\r")
        assert typed.process.wait(60) == 9


@pytest.mark.feature("ctr run")
def test_what_cannot_be_started(ctr: Ctr) -> None:
    said = ctr.fails("run", "--rm", BOX, "a", "no-such-program")
    assert 'exec: "no-such-program": executable file not found in $PATH' in said
    assert ctr.tasks() == {}


@pytest.mark.feature("ctr run")
def test_a_log_file(ctr: Ctr) -> None:
    log = ctr.host.base / f"log-{ctr.kind}"
    with ctr.container("a", "sh", "-c", "echo logged; sleep 600", options=("--log-uri", f"file://{log}")):
        eventually(lambda: log.read_text() == "logged\n", "the log has it")


@pytest.mark.feature("ctr exec")
def test_added_processes(ctr: Ctr) -> None:
    with ctr.container("a", "sleep", "600"):
        done = ctr.exec("a", "sh", "-c", "cat; echo err >&2; exit 4", input=b"given")
        assert (done.returncode, done.stdout, done.stderr) == (4, b"given", b"err\n")
        missing = ctr.exec("a", "no-such-program")
        assert b"executable file not found in $PATH" in missing.stderr
        with terminal(ctr.command("task", "exec", "-t", "--exec-id", "t", "a", "sh"), ctr.host.variables) as typed:
            typed.type("tty; exit 5\r")
            typed.until("/dev/pts/")
            assert typed.process.wait(60) == 5


@pytest.mark.feature("ctr exec")
def test_an_added_process_is_killed(ctr: Ctr) -> None:
    with ctr.container("a", "sleep", "600"):
        for name, status in (("KILL", 137), ("TERM", 143), ("USR1", 138)):
            process = subprocess.Popen(
                ctr.command("task", "exec", "--exec-id", name, "a", "sleep", "600"), env=ctr.host.variables,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            eventually(lambda name=name: name in ctr.out("task", "ps", "a"), "it runs")  # type: ignore[misc]
            ctr.out("task", "kill", "-s", f"SIG{name}", "--exec-id", name, "a")
            assert process.wait(60) == status
        assert ctr.status("a") == "RUNNING"


@pytest.mark.feature("ctr task")
def test_signals_and_states(ctr: Ctr) -> None:
    ctr.out("run", "-d", BOX, "a", "sh", "-c", 'trap "exit 5" TERM; trap : USR1; while :; do sleep 0.1; done')
    ctr.out("task", "kill", "-s", "SIGUSR1", "a")
    assert "must be stopped" in ctr.fails("task", "rm", "a")
    ctr.out("task", "pause", "a")
    assert ctr.status("a") == "PAUSED"
    assert "cannot exec in a paused state" in ctr.exec("a", "true").stderr.decode()
    ctr.out("task", "resume", "a")
    assert ctr.status("a") == "RUNNING"
    eventually(lambda: ctr("task", "kill", "-s", "SIGTERM", "a") and ctr.status("a") == "STOPPED", "it ends")
    assert "process already finished" in ctr.fails("task", "kill", "a")
    assert b"exit code 5" in ctr("task", "rm", "a").stderr
    ctr.out("container", "rm", "a")


@pytest.mark.feature("ctr task")
def test_every_signal_and_attach(ctr: Ctr) -> None:
    with ctr.container("a", "sh", "-c", TELLING.replace("echo ready", ": >/ready")):
        # Not by a word: the client that has started it may be there still, and read that.
        eventually(lambda: ctr.exec("a", "test", "-e", "/ready").returncode == 0, "it has begun")
        process = subprocess.Popen(
            ctr.command("task", "attach", "a"), env=ctr.host.variables, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            for name in WORDS:
                ctr.out("task", "kill", "-s", name if name.isdigit() else f"SIG{name}", "a")
            said = Counter(process.stdout.readline().decode().rstrip("\n") for _ in WORDS)
            assert said == Counter(WORDS.values())
            # What the client gets it hands on, and it ends as the container does.
            os.kill(_children(process.pid)[0], signal.SIGHUP)
            assert process.stdout.readline() == b"got HUP\n"
            ctr.out("task", "kill", "-s", "SIGPWR", "a")
            assert process.wait(60) == 5
        finally:
            stop(process)


@pytest.mark.feature("ctr task")
def test_removed_and_started_again(ctr: Ctr) -> None:
    ctr.out("run", "-d", BOX, "a", "sh", "-c", "echo once >>/times; exec sleep 600")
    eventually(lambda: ctr.exec("a", "cat", "/times").stdout == b"once\n", "it has begun")
    ctr("task", "rm", "-f", "a")
    assert ctr.tasks() == {}
    ctr.out("task", "start", "-d", "a")
    eventually(lambda: ctr.exec("a", "cat", "/times").stdout == b"once\n" * 2, "it has begun again")
    ctr.remove("a")


@pytest.mark.feature("ctr run --cni")
def test_a_pair_by_name(ctr: Ctr, tmp_path: Path) -> None:
    """A web server and its client. ``ctr`` gives a container its network when that is made and before it starts."""
    places = f"cp {engines.CNI_PLUGINS}/* /opt/cni/bin; cp {ctr.host.base}/cni/* /etc/cni/net.d"
    ctr.host.out("sh", "-ec", f"mkdir -p /opt/cni/bin /etc/cni/net.d; {places}")
    web = "mkdir -p /srv; echo served >/srv/index.html; exec httpd -f -p 80 -h /srv"
    name = f"server-{ctr.kind}"  # nobody gives back the address of a detached one
    with ctr.container(name, "sh", "-c", web, options=("--cni",)):
        eventually(lambda: b"httpd" in ctr.exec(name, "ps").stdout, "it serves")
        shown = ctr.exec(name, "ip", "-o", "-4", "address", "show", "dev", "eth0").stdout.decode()
        (tmp_path / "hosts").write_text(f"{shown.split()[3].partition('/')[0]} server.test\n")
        mount = f"type=bind,src={tmp_path}/hosts,dst=/etc/hosts,options=rbind:ro"
        words = ("run", "--rm", "--cni", "--mount", mount, BOX, "client", "wget", "-q", "-O", "-", "http://server.test/")
        assert ctr.out(*words) == "served"


@pytest.mark.feature("restarts by labels")
def test_restarted_by_containerd(ctr: Ctr) -> None:
    """containerd looks after containers with a label, and starts those that do not run. It does so with one that is
    being made, too, and ends it: so it gets its label when it runs."""
    log = ctr.host.base / f"restarted-{ctr.kind}"
    labels = ("containerd.io/restart.status=running", f"containerd.io/restart.loguri=file://{log}")
    ctr.out("run", "-d", BOX, "a", "sh", "-c", 'trap "exit 5" TERM; echo up; while :; do sleep 0.1; done')
    try:
        ctr.out("container", "label", "a", *labels)
        first, _ = ctr.tasks()["a"]
        ctr.out("task", "kill", "-s", "SIGKILL", "a")
        eventually(lambda: ctr.tasks().get("a", (first, ""))[0] != first and ctr.status("a") == "RUNNING", "it is back")
        eventually(lambda: log.exists() and log.read_text() == "up\n", "it says so")
    finally:
        ctr.out("container", "label", "a", "containerd.io/restart.status=")
        ctr.remove("a")


@pytest.mark.feature("ctr task")
def test_processes_and_figures(ctr: Ctr) -> None:
    with ctr.container("a", "sleep", "600"):
        pid, _ = ctr.tasks()["a"]
        listed = ctr.out("task", "ps", "a").splitlines()[1:]
        assert [int(line.split()[0]) for line in listed] == [pid]
        metrics = json.loads(ctr.out("task", "metrics", "--format", "json", "a"))
        memory = metrics["memory"]
        assert 0 < memory["usage"]["usage"] < 1 << 30
        assert metrics["pids"]["current"] == 1
        assert metrics["cpu"]["usage"]["total"] > 0
        if ctr.kind == "sentry":
            root = f"/run/containerd/casemate/{NAMESPACE}"
            for more in ((), ("--root", root)):
                rows = json.loads(ctr.host.out("casemate", "sentry", "ps", "--json", *more, "a"))
                assert [(row["pid"], row["command"]) for row in rows] == [(1, "sleep 600")]


@pytest.mark.feature("ctr task")
def test_the_order_of_events(ctr: Ctr) -> None:
    with ctr.events() as told:
        with ctr.container("a", "sleep", "600"):
            assert ctr.exec("a", "sh", "-c", "exit 3").returncode == 3
            ctr.out("task", "pause", "a")
            ctr.out("task", "resume", "a")
        for number in range(5):
            ctr.out("run", "--rm", BOX, f"b{number}", "true")
        eventually(lambda: "delete" in _topics(told, "b4"), "all is told")
    steps = ["create", "start", "exec-added", "exec-started", "exit", "paused", "resumed", "exit", "delete"]
    assert _topics(told, "a") == steps
    for number in range(5):
        assert _topics(told, f"b{number}") == ["create", "start", "exit", "delete"]
    ends = [event for topic, event in told if topic == "exit" and event["container_id"] == "a"]
    assert [event["exit_status"] for event in ends] == [3, 137]
    assert ends[1]["id"] == "a"


@pytest.mark.feature("ctr run")
def test_many_at_once(ctr: Ctr) -> None:
    count = 10
    commands = [ctr.command("run", "--rm", BOX, f"m{number}", "sh", "-c", f"echo {number}") for number in range(count)]
    processes = [subprocess.Popen(one, env=ctr.host.variables, stdout=subprocess.PIPE) for one in commands]
    said = [process.communicate(timeout=280)[0] for process in processes]
    assert said == [b"%d\n" % number for number in range(count)]


@pytest.mark.feature("restart of containerd")
def test_containers_outlive_containerd(ctr: Ctr, containerd: Service) -> None:
    script = 'trap "exit 6" TERM; echo up; while :; do sleep 0.1; done'
    log = ctr.host.base / f"restart-{ctr.kind}"
    with ctr.container("a", "sleep", "600"):
        ctr.out("run", "-d", "--log-uri", f"file://{log}", BOX, "b", "sh", "-c", script)
        eventually(lambda: log.read_text() == "up\n", "it has begun")
        before = ctr.tasks()
        containerd.end(signal.SIGKILL)
        pid, _ = before["b"]
        ctr.host("kill", "-TERM", str(pid), check=True)
        eventually(lambda: ctr.host("test", "-d", f"/proc/{pid}").returncode != 0, "it ends meanwhile")
        containerd.start()
        assert ctr.tasks() == {"a": before["a"], "b": (pid, "STOPPED")}
        assert ctr.exec("a", "echo", "still here").stdout == b"still here\n"
        assert b"exit code 6" in ctr("task", "rm", "b").stderr
        ctr.out("container", "rm", "b")


@pytest.mark.feature("pods")
def test_a_pod_has_one_shim(ctr: Ctr) -> None:
    def options(kind: str) -> tuple[str, ...]:
        annotations = {"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": "pod"}
        return tuple(word for pair in annotations.items() for word in ("--annotation", "=".join(pair)))

    with (
        ctr.container("pod", "sleep", "600", options=options("sandbox")),
        ctr.container("one", "sleep", "600", options=options("container")),
        ctr.container("two", "sleep", "600", options=options("container")),
    ):
        bundles = Path(f"{ctr.host.base}/c/io.containerd.runtime.v2.task/{NAMESPACE}")
        addresses = {ctr.host.out("cat", str(bundles / name / "address")) for name in ("pod", "one", "two")}
        assert addresses == {f"unix://{socket_path(str(ctr.host.base / 'c.sock'), NAMESPACE, 'pod')}"}
        kernels = {ctr.exec(name, "cat", "/proc/sys/kernel/random/boot_id").stdout for name in ("pod", "one", "two")}
        assert len(kernels) == 1
        ours = ctr.host.out("cat", "/proc/sys/kernel/random/boot_id").encode() + b"\n"
        assert (kernels == {ours}) == (ctr.kind in ("control", "shim"))


@pytest.mark.feature("faults")
def test_a_shim_that_is_killed(ctr: Ctr) -> None:
    ctr.out("run", "-d", BOX, "a", "sleep", "600")
    pid, _ = ctr.tasks()["a"]
    with ctr.events() as told:
        found = ctr.host.processes().items()
        shims = [number for number, words in found if "containerd-shim" in words and " -id a " in words]
        assert len(shims) == 1
        ctr.host("kill", "-KILL", str(shims[0]), check=True)
        eventually(lambda: _topics(told, "a") == ["exit", "delete"], "containerd clears up")
    assert ctr.tasks() == {}
    assert ctr.host("test", "-d", f"/proc/{pid}").returncode != 0
    ctr.out("container", "rm", "a")


@pytest.mark.feature("faults")
def test_a_client_that_is_killed(ctr: Ctr) -> None:
    script = "echo first; while :; do dd if=/dev/zero bs=64k count=20 2>/dev/null; echo $((n = n + 1)) > /rounds; done"
    process = subprocess.Popen(
        ctr.command("run", BOX, "a", "sh", "-c", script), env=ctr.host.variables, stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"first\n"
    stop(process)
    process.stdout.close()

    def rounds() -> int:
        return int(ctr.exec("a", "cat", "/rounds").stdout or b"0")

    if ctr.kind == "control":  # its containers wait for a reader
        ctr.remove("a")
        return
    before = rounds()
    eventually(lambda: rounds() > before + 2, "it goes on without a reader")
    ctr.remove("a")

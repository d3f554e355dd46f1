"""The command line that containerd uses: ``start``, ``delete``, ``-info``, ``-v``."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from casemate import __version__
from casemate.shim import main, messages, options, start, ttrpc, wire
from casemate.shim.loop import Loop
from casemate.shim.runtime import Runtime
from casemate.shim.status import StatusError
from casemate.shim.task import NAMES
from tests.unit.shim.world import FAKE


class Shims:
    """Runs the shim's program in a bundle, with sockets in a directory of the test's."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.pids: set[int] = set()
        self.loop = Loop()
        self.sockets = Path(tempfile.mkdtemp(prefix="cm"))  # short, for its sockets' names

    def bundle(self, name: str, **annotations: str) -> Path:
        path = self.tmp / "ns" / name
        path.mkdir(parents=True)
        spec = {"process": {"args": ["sleep", "60"]}, "annotations": annotations, "linux": {"namespaces": []}}
        (path / "config.json").write_text(json.dumps(spec))
        return path

    def run(
        self, bundle: Path, *words: str, stdin: bytes = b"", environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        fixed = {start.SOCKETS_VARIABLE: str(self.sockets), "TTRPC_ADDRESS": ""}
        env = {**os.environ, **fixed, **(environment or {})}
        command = [sys.executable, "-m", "casemate.shim.main", *words]
        return subprocess.run(command, cwd=bundle, env=env, input=stdin, capture_output=True, timeout=60)

    def start(self, bundle: Path, **environment: str) -> str:
        """Start a shim; its answer."""
        flags = ("-namespace", "tests", "-address", "/run/c.sock", "-id", bundle.name, "-publish-binary", "true")
        done = self.run(bundle, *flags, "start", environment=environment)
        assert (done.returncode, done.stderr) == (0, b"")
        address = (bundle / "address").read_text()
        self.pids.add(self.ask(address, "Connect", id=bundle.name)["shim_pid"])
        return done.stdout.decode()

    def ask(self, address: str, method: str, **fields: Any) -> dict[str, Any]:
        client = ttrpc.Client(self.loop, address.removeprefix("unix://"))
        tables = {
            "Connect": (messages.CONNECT_REQUEST, messages.CONNECT_RESPONSE),
            "Shutdown": (messages.SHUTDOWN_REQUEST, messages.EMPTY),
            "Create": (messages.CREATE_REQUEST, messages.CREATE_RESPONSE),
        }
        future = client.call(NAMES[0], method, tables[method][0], fields, tables[method][1], 20)
        answer: dict[str, Any] = self.loop.run_until(future, 20)
        client.close()
        return answer

    def close(self) -> None:
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for file in self.tmp.glob("*/*/init.pid"):
            try:
                os.kill(int(file.read_text()), signal.SIGKILL)
            except (ProcessLookupError, ValueError):
                continue
        self.loop.close()
        shutil.rmtree(self.sockets)


@pytest.fixture
def shims(tmp_path: Path) -> Iterator[Shims]:
    made = Shims(tmp_path)
    try:
        yield made
    finally:
        made.close()


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1].startswith("Z")
    except FileNotFoundError:
        return True


def _until(what: Any) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_start_prints_an_address_and_leaves_a_shim(shims: Shims) -> None:
    bundle = shims.bundle("box")
    address = shims.start(bundle)
    assert address == (bundle / "address").read_text()
    assert address == f"unix://{start.socket_path('/run/c.sock', 'tests', 'box', str(shims.sockets))}"
    (pid,) = shims.pids
    assert os.getsid(pid) == pid
    words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    assert words == [main.NAME.encode(), b"-namespace", b"tests", b"-id", b"box", b"-address", b"/run/c.sock"]
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1)} == {"/dev/null"}
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == min(1000, own + 1)
    shims.ask(address, "Shutdown", id="box")
    _until(lambda: _gone(pid))
    assert [path.name for path in shims.sockets.iterdir()] == [start.LOCK]


@pytest.mark.parametrize(("newest", "version"), [("2", 2), ("3", 3), ("9", 3), ("1", 2)])
def test_a_newer_containerd_is_told_in_json(shims: Shims, newest: str, version: int) -> None:
    bundle = shims.bundle("box")
    answer = json.loads(shims.start(bundle, MAX_SHIM_VERSION=newest))
    assert answer == {"version": version, "address": (bundle / "address").read_text(), "protocol": "ttrpc"}


@pytest.mark.parametrize("annotation", start.GROUPS)
def test_containers_of_a_pod_share_a_shim(shims: Shims, annotation: str) -> None:
    first, second = shims.bundle("pod", **{annotation: "pod"}), shims.bundle("box", **{annotation: "pod"})
    other = shims.bundle("other", **{annotation: "another"})
    assert shims.start(first) == shims.start(second)
    assert len(shims.pids) == 1
    assert shims.start(other) != (first / "address").read_text()
    assert len(shims.pids) == 2


def test_the_socket_of_a_dead_shim_is_taken_over(shims: Shims) -> None:
    bundle = shims.bundle("box")
    address = shims.start(bundle)
    (pid,) = shims.pids
    os.kill(pid, signal.SIGKILL)
    _until(lambda: not ttrpc.answers(address.removeprefix("unix://")))
    assert shims.start(bundle) == address
    assert len(shims.pids) == 2


def test_of_many_starts_at_once_one_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that has its name and does not listen yet is not taken for a dead shim's."""
    sockets = Path(tempfile.mkdtemp(prefix="cm"))
    path = str(sockets / "s")
    ttrpc.listen(path).close()  # a dead shim's
    listen = socket.socket.listen

    def slow(sock: socket.socket, backlog: int) -> None:
        time.sleep(0.05)
        listen(sock, backlog)

    monkeypatch.setattr(socket.socket, "listen", slow)
    try:
        with ThreadPoolExecutor(8) as many:
            made = [one for one in many.map(lambda _: start.bind(path), range(8)) if one is not None]
        assert len(made) == 1
        assert ttrpc.answers(path)
        made[0].close()
    finally:
        shutil.rmtree(sockets)


def test_descriptors_of_whoever_started_containerd_are_not_kept(shims: Shims) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    bundle = shims.bundle("box")
    flags = ["-namespace", "tests", "-id", "box", "start"]
    env = {**os.environ, start.SOCKETS_VARIABLE: str(shims.sockets)}
    command = [sys.executable, "-m", "casemate.shim.main", *flags]
    subprocess.run(command, cwd=bundle, env=env, pass_fds=(writer,), stdin=subprocess.DEVNULL, check=True, timeout=60)
    os.close(writer)
    shims.pids.add(shims.ask((bundle / "address").read_text(), "Connect", id="box")["shim_pid"])
    assert os.read(reader, 1) == b""  # nobody holds the other end
    os.close(reader)


def test_delete_removes_what_a_dead_shim_left(shims: Shims) -> None:
    bundle = shims.bundle("box")
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDONLY | os.O_NONBLOCK)
    address = shims.start(bundle, TTRPC_ADDRESS="/no/such/socket")
    config = shims.tmp / "options.toml"
    config.write_text(f'BinaryName = "{FAKE}"\nRoot = "{shims.tmp}/runtime"\n')
    value = wire.encode(messages.RUNTIME_OPTIONS, {"config_path": str(config)})
    any_options = {"type_url": messages.RUNTIME_OPTIONS.name, "value": value}
    pid = shims.ask(address, "Create", id="box", bundle=str(bundle), options=any_options)["pid"]
    os.set_blocking(log, True)
    assert b'level=warning msg="event /tasks/create waits: ' in os.read(log, 4096)
    os.close(log)
    (shim,) = shims.pids
    os.kill(shim, signal.SIGKILL)
    _until(lambda: not ttrpc.answers(address.removeprefix("unix://")))
    done = shims.run(bundle, "-namespace", "tests", "-id", "box", "-bundle", str(bundle), "delete")
    assert (done.returncode, done.stderr) == (0, b"")
    answer = wire.decode(messages.DELETE_RESPONSE, done.stdout)
    assert (answer["pid"], answer["exit_status"]) == (pid, 137)
    assert abs(answer["exited_at"]["seconds"] - time.time()) < 60
    assert not (shims.tmp / "runtime" / "tests" / "box").exists()
    _until(lambda: _gone(pid))
    assert not os.path.exists(address.removeprefix("unix://"))
    calls = (shims.tmp / "runtime" / "tests" / "calls").read_text()
    again = shims.run(bundle, "-namespace", "tests", "-id", "box", "delete")
    assert (again.returncode, again.stderr) == (0, b"")
    assert (shims.tmp / "runtime" / "tests" / "calls").read_text() == calls  # nothing was left to be asked for


@pytest.mark.parametrize("left", [".new-1-1-0badcafe", "f" * 64])
def test_delete_has_taken_away_what_is_left_of_a_create_without_a_record(shims: Shims, left: str) -> None:
    """The runtime was killed when it had a sandbox and no container yet. A sandbox that lives is no such thing."""
    bundle = shims.bundle("box")
    value = {"binary_name": str(FAKE), "root": str(shims.tmp / "runtime")}
    (bundle / options.FILE).write_text(json.dumps(value))
    pods = shims.tmp / "runtime" / "tests" / ".pods"
    words = ("-namespace", "tests", "-id", "box", "-bundle", str(bundle), "delete")
    calls = shims.tmp / "runtime" / "tests" / "calls"
    (pods / ("a" * 64)).mkdir(parents=True)
    with open(pods / ("a" * 64) / "lock", "w") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        assert shims.run(bundle, *words).returncode == 0
        assert not calls.exists()
        (pods / left).mkdir()
        (pods / left / "lock").touch()
        assert shims.run(bundle, *words).returncode == 0
        assert json.loads(calls.read_text().splitlines()[0])[:3] == ["delete", "--force", "box"]


def test_delete_does_not_depend_on_a_bundle(shims: Shims) -> None:
    (shims.tmp / "ns").mkdir()
    done = shims.run(shims.tmp / "ns", "-namespace", "tests", "-id", "gone", "delete")
    assert done.returncode == 0
    assert wire.decode(messages.DELETE_RESPONSE, done.stdout)["exit_status"] == 137


def test_what_cannot_be_started(shims: Shims) -> None:
    (shims.tmp / "empty").mkdir()
    (shims.tmp / "empty" / "config.json").write_text("{")
    for words, code, text in (
        (("-id", "x", "start"), 1, "namespace cannot be empty"),
        (("-namespace", "n", "-id", "x", "start"), 1, "Expecting property name"),
        (("-namespace", "n", "-id", "../x", "delete"), 1, "container id"),
        (("-namespace", "n", "fly"), 1, "unknown action"),
        (("-nothing",), 2, "flag provided but not defined"),
        (("-id",), 2, "flag needs an argument"),
    ):
        done = shims.run(shims.tmp / "empty", *words)
        assert done.returncode == code
        assert text in done.stderr.decode()
    assert not list(shims.sockets.iterdir())


def test_version_help_and_info(shims: Shims) -> None:
    done = shims.run(shims.tmp, "-v")
    assert done.returncode == 0
    assert f"Version:  {__version__}" in done.stdout.decode()
    assert "-publish-binary" in shims.run(shims.tmp, "-h").stderr.decode()
    value = wire.encode(messages.RUNC_OPTIONS, {"binary_name": str(FAKE)})
    stdin = wire.encode(messages.ANY, {"type_url": messages.RUNC_OPTIONS.name, "value": value})
    info = wire.decode(messages.RUNTIME_INFO, shims.run(shims.tmp, "-info", stdin=stdin).stdout)
    assert info["name"] == "io.containerd.casemate.v2"
    assert info["version"]["version"] == __version__
    assert info["options"]["value"] == value


@pytest.mark.parametrize(("words", "flags", "action"), [
    (["-id", "x", "start"], {"id": "x"}, "start"),
    (["--id=x", "-debug", "delete"], {"id": "x", "debug": True}, "delete"),
    (["-debug=false", "-namespace", "-id"], {"debug": False, "namespace": "-id"}, ""), ([], {}, ""),
    (["-id", "x", "--", "start"], {"id": "x"}, "start"),
])
def test_flags(words: list[str], flags: dict[str, Any], action: str) -> None:
    parsed, found = main.parse(words)
    assert found == action
    assert {key: parsed[key] for key in flags} == flags


def test_the_sockets_name_is_containerds() -> None:
    # containerd's pkg/shim/util_unix.go: the hash of address, namespace and id, joined and cleaned as a path
    expected = hashlib.sha256(b"/run/containerd/containerd.sock/default/p1").hexdigest()
    for address in ("/run/containerd/containerd.sock", "/run//containerd/./containerd.sock"):
        assert start.socket_path(address, "default", "p1") == f"/run/containerd/s/{expected}"
    assert start.socket_path("", "default", "p1").endswith(hashlib.sha256(b"default/p1").hexdigest())


# --- options ---


def _toml(tmp_path: Path, text: str) -> dict[str, Any]:
    path = tmp_path / "o.toml"
    path.write_text(text)
    value = wire.encode(messages.RUNTIME_OPTIONS, {"config_path": str(path)})
    return options.read({"type_url": "types/" + messages.RUNTIME_OPTIONS.name, "value": value})


def test_options_of_both_kinds(tmp_path: Path) -> None:
    assert options.read(None) == options.read({"type_url": "", "value": b"x"}) == options.defaults()
    value = wire.encode(messages.RUNC_OPTIONS, {"root": "/r", "io_uid": 5, "systemd_cgroup": True})
    found = options.read({"type_url": messages.RUNC_OPTIONS.name, "value": value})
    assert (found["root"], found["io_uid"], found["systemd_cgroup"]) == ("/r", 5, True)
    found = _toml(tmp_path, 'BinaryName = "x"\nIoGid = 7\n')
    assert (found["binary_name"], found["io_gid"]) == ("x", 7)
    body = wire.encode(messages.RUNTIME_OPTIONS, {"config_body": b'Root = "/r"'})
    assert options.read({"type_url": messages.RUNTIME_OPTIONS.name, "value": body})["root"] == "/r"
    assert _toml(tmp_path, 'Wall = "sentry"')["wall"] == "sentry"
    empty = {"type_url": messages.RUNTIME_OPTIONS.name, "value": b""}
    assert options.read(empty) == options.defaults()


def test_the_wall_is_told_to_the_runtime(tmp_path: Path) -> None:
    nothing: Any = None
    for wall, words in (("", []), ("sentry", ["--wall", "sentry"])):
        chosen = {**options.defaults(), "wall": wall}
        command = Runtime(nothing, nothing, chosen, "ns", str(tmp_path)).command(["state", "c"])
        assert command[-len(words) - 2 :] == [*words, "state", "c"]
        assert ("--wall" in command) == bool(wall)


@pytest.mark.parametrize(
    "text", ["Unknown = 1", 'IoGid = "7"', "SystemdCgroup = 1", "= bad", "Root = 'x", 'Wall = "sand"']
)
def test_options_that_are_wrong(tmp_path: Path, text: str) -> None:
    with pytest.raises(StatusError):
        _toml(tmp_path, text)


def test_options_are_kept_beside_the_bundle(tmp_path: Path) -> None:
    chosen = {**options.defaults(), "root": "/r", "systemd_cgroup": True}
    options.save(str(tmp_path), chosen)
    assert options.load(str(tmp_path)) == chosen
    (tmp_path / options.FILE).write_text('{"root": 5, "io_uid": 3}')
    assert options.load(str(tmp_path)) == {**options.defaults(), "io_uid": 3}
    (tmp_path / options.FILE).write_text("broken")
    assert options.load(str(tmp_path)) == options.defaults()

"""The commands, with a store and a keeper made up for the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from casemate.errors import AgentError, CasemateError, NoSuchContainer, NotRunning
from casemate.pod import client as client_module
from casemate.pod.model import Record
from casemate.runtime_cli import main as program
from casemate.runtime_cli import making
from casemate.runtime_cli.main import COMMANDS, main

SPEC: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {
        "args": ["sleep"], "cwd": "/", "env": ["A=1"], "user": {"uid": 3, "gid": 4, "additionalGids": [5]},
        "capabilities": {"bounding": ["CAP_KILL"]}, "terminal": True, "consoleSize": {"height": 1, "width": 2},
    },
    "root": {"path": "/r"},
    "linux": {},
}  # fmt: skip


class Store:
    """Records by id."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.specs: dict[str, dict[str, Any]] = {}
        self.removed: list[tuple[str, bool]] = []
        self.first = True

    def add(self, id: str, status: str, **rest: Any) -> Record:
        record = Record(
            id=id, pod="p", bundle="/b", status=status, pid=4242, pid_start=1, created=1700000000.25, rootfs="/b/r",
            **rest,
        )  # fmt: skip
        self.records[id] = record
        self.specs[id] = SPEC
        return record

    def get(self, id: str) -> Record:
        if id not in self.records:
            raise NoSuchContainer(f"no {id}")
        return self.records[id]

    stored = get

    def spec(self, id: str) -> dict[str, Any]:
        self.get(id)
        return self.specs[id]

    def list(self) -> list[Record]:
        return list(self.records.values())

    def remove(self, id: str, *, force: bool = False) -> bool:
        self.get(id)
        self.removed.append((id, force))
        del self.records[id]
        return self.first


class Client:
    """Notes what it is asked for; ``trouble`` is raised by the next request."""

    calls: list[tuple[Any, ...]] = []
    trouble: CasemateError | None = None
    answers: dict[str, Any] = {}

    def __init__(self, store: Store, pod: str) -> None:
        self.pod = pod

    def __getattr__(self, op: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            Client.calls.append((op, *arguments, *named.items()))
            if Client.trouble is not None:
                raise Client.trouble
            return Client.answers.get(op)

        return call


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    made = Store()
    monkeypatch.setattr(program.Context, "store", made)
    monkeypatch.setattr(client_module, "PodClient", Client)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("CASEMATE_DEBUG", raising=False)
    Client.calls, Client.trouble, Client.answers = [], None, {}
    return made


class Result:
    """Status, output, and the log's messages by level."""

    def __init__(self, status: int, out: str, err: str, log: list[dict[str, str]]) -> None:
        self.status, self.out, self.err = status, out, err
        self.errors = [entry["msg"] for entry in log if entry["level"] == "error"]
        self.warnings = [entry["msg"] for entry in log if entry["level"] == "warning"]


@pytest.fixture
def run(store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def call(*words: str) -> Result:
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        status = main(["--log", str(log), "--log-format", "json", *words])
        said = capfd.readouterr()
        return Result(status, said.out, said.err, [json.loads(line) for line in log.read_text().splitlines()])

    return call


Run = Callable[..., Result]


def test_every_command_has_what_the_program_needs_of_it() -> None:
    import importlib

    for name, (module, about) in COMMANDS.items():
        command = importlib.import_module(f"casemate.runtime_cli.{module}")
        assert (command.__doc__ or "").startswith(f"``{name}``"), name
        assert isinstance(command.USAGE, str) and len(command.ARGUMENTS) == 2 and callable(command.run) and about


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    first = capsys.readouterr().out
    assert main(["help", name]) == 0
    assert first == capsys.readouterr().out
    assert first.startswith(f"casemate-runtime {name} - ")


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == main(["help"]) == 0
    assert capsys.readouterr().out.count("Commands:") == 3
    assert main(["--version"]) == main(["-v"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == lines[3:] and len(lines) == 6 and lines[2] == "spec: 1.0.2"


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["bogus"], 3, "No help topic for 'bogus'"),
        (["--bogus"], 1, "flag provided but not defined: -bogus"),
        (["--log-format", "xml", "list"], 1, "invalid log-format: xml"),
        (["--log", "/nope/x", "list"], 1, "open /nope/x: no such file or directory"),
        (["--rootless", "true", "list"], 1, "--rootless true is not supported"),
        (["--rootless", "maybe", "list"], 1, "invalid boolean value in rootless option"),
        (["state"], 1, 'casemate-runtime: "state" requires exactly 1 argument(s)'),
        (["kill", "a", "b", "c"], 1, 'casemate-runtime: "kill" requires a maximum of 2 argument(s)'),
        (["ps"], 1, 'casemate-runtime: "ps" requires a minimum of 1 argument(s)'),
        (["state", ""], 1, "container id cannot be empty"),
    ],
)
def test_what_is_asked_for_amiss(
    store: Store, words: list[str], status: int, complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == status
    err = capfd.readouterr().err
    assert "level=error" in err and json.dumps(complaint)[1:-1] in err


@pytest.mark.parametrize("rootless", ["auto", "false", "0"])
def test_the_globals_that_mean_nothing_here_are_taken(run: Run, rootless: str) -> None:
    words = ["--rootless", rootless, "--criu", "/x", "--systemd-cgroup", "--debug", "--root=/x", "list", "-q"]
    assert run(*words).status == 0


def test_without_root_it_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run("list").errors == ["casemate-runtime list needs root: containers without root are not supported"]


def test_nothing_of_ours_becomes_a_standard_stream(tmp_path: Path) -> None:
    script = """
import os, sys
for number in range(3):
    os.close(number)
from casemate.runtime_cli.main import main
status = main(["--log", sys.argv[1], "--rootless", "maybe", "list"])
with open(sys.argv[2], "w") as file:
    print(status, *(os.readlink(f"/proc/self/fd/{number}") for number in range(3)), file=file)
"""
    subprocess.run([sys.executable, "-c", script, tmp_path / "log", tmp_path / "out"], check=True)
    assert (tmp_path / "out").read_text() == "1 /dev/null /dev/null /dev/null\n"
    assert "rootless" in (tmp_path / "log").read_text()


def test_signals_that_a_caller_has_blocked_or_ignored_are_heard() -> None:
    script = """
import os, signal, sys
os._exit = lambda status: None  # it ends at once
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
sys.argv = ["casemate-runtime", "--version"]
from casemate.runtime_cli.main import main
main()
print(signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL, signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "True set()"


def test_something_unexpected_is_one_line(run: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(id: str) -> Record:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(store, "get", broken)
    result = run("state", "a")
    assert (result.status, result.errors) == (1, ["unexpected: ZeroDivisionError: oh"])
    assert result.err == "unexpected: ZeroDivisionError: oh\n"


# ---- state, list


def test_state(run: Run, store: Store) -> None:
    store.add("a", "running", annotations={"k": "v"}, oci_version="1.0.1")
    assert json.loads(run("state", "a").out) == {
        "ociVersion": "1.0.1", "id": "a", "pid": 4242, "status": "running", "bundle": "/b", "rootfs": "/b/r",
        "created": "2023-11-14T22:13:20.25Z", "annotations": {"k": "v"}, "owner": "",
    }  # fmt: skip


@pytest.mark.parametrize(("status", "pid"), [("created", 4242), ("paused", 4242), ("stopped", 0)])
def test_the_pid_is_told_as_long_as_there_is_one(run: Run, store: Store, status: str, pid: int) -> None:
    store.add("a", status)
    state = json.loads(run("state", "a").out)
    assert (state["status"], state["pid"], "annotations" in state) == (status, pid, False)


# ---- start


def test_start(run: Run, store: Store) -> None:
    store.add("a", "created")
    assert run("start", "a").status == 0
    assert Client.calls == [("start", "a")]


@pytest.mark.parametrize(
    ("status", "complaint"),
    [
        ("running", "cannot start an already running container"),
        ("stopped", "cannot start a container that has stopped"),
        ("paused", "cannot start a container in the paused state"),
        ("creating", "cannot start a container in the creating state"),
    ],
)
def test_only_what_is_created_can_be_started(run: Run, store: Store, status: str, complaint: str) -> None:
    store.add("a", status)
    assert run("start", "a").errors == [complaint]
    assert Client.calls == []


def test_poststart_hooks_run_after_the_start_and_may_fail(run: Run, store: Store, tmp_path: Path) -> None:
    store.add("a", "created")
    script = f"cat >{tmp_path}/state; exit 1"
    store.specs["a"] = {**SPEC, "hooks": {"poststart": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}}
    result = run("start", "a")
    assert (result.status, result.errors, len(result.warnings)) == (0, [], 1)
    assert json.loads((tmp_path / "state").read_text())["status"] == "running"


# ---- kill


@pytest.mark.parametrize("words", [["kill", "a", "9"], ["kill", "a", "KILL"], ["kill", "a", "SIGKILL"]])
def test_kill(run: Run, store: Store, words: list[str]) -> None:
    store.add("a", "paused")
    assert run(*words).status == 0
    assert Client.calls == [("kill", "a", 9, ("everyone", False))]


@pytest.mark.parametrize("words", [["kill", "--all", "a"], ["kill", "-a", "a", "TERM"], ["kill", "a", "15", "--all"]])
def test_kill_all(run: Run, store: Store, words: list[str]) -> None:
    store.add("a", "running")
    assert run(*words).status == 0
    assert Client.calls == [("kill", "a", 15, ("everyone", True))]


def test_killing_what_has_stopped(run: Run, store: Store) -> None:
    store.add("a", "stopped")
    assert run("kill", "a", "9").errors == ["container not running"]
    assert run("kill", "--all", "a", "9").status == 0
    assert Client.calls == []


def test_one_that_stops_just_then(run: Run, store: Store) -> None:
    store.add("a", "running")
    Client.trouble = NotRunning("the sandbox has ended")
    assert run("kill", "a", "9").errors == ["container not running"]
    assert run("kill", "--all", "a", "9").status == 0


# ---- delete


def test_delete(run: Run, store: Store, tmp_path: Path) -> None:
    store.add("a", "stopped")
    script = f"cat >{tmp_path}/state; exit 1"
    store.specs["a"] = {**SPEC, "hooks": {"poststop": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}}
    result = run("delete", "a")
    assert (result.status, store.removed, len(result.warnings)) == (0, [("a", False)], 1)
    state = json.loads((tmp_path / "state").read_text())
    assert (state["status"], state["bundle"], "pid" in state) == ("stopped", "/b", False)


def test_of_two_that_delete_at_once_one_runs_the_hooks(run: Run, store: Store, tmp_path: Path) -> None:
    store.add("a", "stopped")
    store.specs["a"] = {**SPEC, "hooks": {"poststop": [{"path": "/bin/touch", "args": ["touch", f"{tmp_path}/ran"]}]}}
    store.first = False
    assert run("delete", "--force", "a").status == 0
    assert not (tmp_path / "ran").exists()


def test_a_run_that_does_not_start_is_deleted_with_its_hooks(
    run: Run, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add("a", "created")
    hook = {"path": "/bin/touch", "args": ["touch", f"{tmp_path}/ran"]}
    spec = store.specs["a"] = {**SPEC, "hooks": {"poststop": [hook]}}
    client: Any = Client(store, "p")
    monkeypatch.setattr(making, "make", lambda *_, **__: making.Made("a", 1, client, spec, None))
    Client.trouble = AgentError("not today")
    assert run("run", "--detach", "a").errors == ["casemate-runtime run failed: not today"]
    assert store.removed == [("a", True)] and (tmp_path / "ran").exists()


def test_deleting_what_is_not_there(run: Run) -> None:
    assert run("delete", "a").errors == ["container does not exist"]
    assert run("delete", "--force", "a").status == 0


# ---- pause, resume, ps


@pytest.mark.parametrize(
    ("command", "status", "complaint"),
    [
        ("pause", "running", None), ("pause", "created", None), ("pause", "paused", "container not running"),
        ("pause", "stopped", "container not running"), ("resume", "paused", None),
        ("resume", "running", "container not paused"), ("resume", "stopped", "container not paused"),
    ],
)  # fmt: skip
def test_pause_and_resume(run: Run, store: Store, command: str, status: str, complaint: str | None) -> None:
    store.add("a", status)
    result = run(command, "a")
    assert result.errors == ([] if complaint is None else [complaint])
    assert Client.calls == ([] if complaint else [(command, "a")])


def test_ps(run: Run, store: Store) -> None:
    store.add("a", "running")
    Client.answers = {"pids": {"pid": os.getpid(), "execs": {"x": os.getppid()}}}
    assert json.loads(run("ps", "--format", "json", "a").out) == [os.getpid(), os.getppid()]
    table = run("ps", "a", "-eo", "comm,pid").out.splitlines()
    assert [line.split()[-1] for line in table] in (
        ["PID", str(os.getppid()), str(os.getpid())], ["PID", str(os.getpid()), str(os.getppid())],
    )  # fmt: skip
    assert run("ps", "a", "-eo", "comm").errors == ["couldn't find PID field in ps output"]
    assert run("ps", "--format", "xml", "a").errors == ["invalid format option"]


def test_ps_of_what_has_stopped(run: Run, store: Store) -> None:
    store.add("a", "stopped")
    assert run("ps", "-f", "json", "a").out == "null\n"
    assert len(run("ps", "a").out.splitlines()) == 1


# ---- update, events


def test_update_by_options(run: Run, store: Store) -> None:
    store.add("a", "running")
    assert run("update", "--memory", "64m", "a", "--pids-limit", "7").status == 0
    assert Client.calls == [("update", "a", {"memory": {"limit": 64 << 20}, "pids": {"limit": 7}})]


def test_update_by_file_and_standard_input(
    run: Run, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add("a", "running")
    resources = {"cpu": {"quota": 50000, "period": 100000}}
    (tmp_path / "r.json").write_text(json.dumps({**resources, "memory": None}))
    assert run("update", "--resources", str(tmp_path / "r.json"), "a").status == 0
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(json.dumps(resources).encode())))
    assert run("update", "-r", "-", "a").status == 0
    assert Client.calls == [("update", "a", resources)] * 2


def test_bad_updates(run: Run, store: Store, tmp_path: Path) -> None:
    store.add("a", "running")
    (tmp_path / "r.json").write_text('{"cpu": {"quota": "much"}}')
    assert len(run("update", "-r", str(tmp_path / "r.json"), "a").errors) == 1
    assert len(run("update", "--cpu-rt-runtime", "1", "a").errors) == 1
    store.add("b", "stopped")
    assert run("update", "--memory", "1g", "b").errors == ["container not running"]
    assert Client.calls == []


def test_events(run: Run, store: Store) -> None:
    store.add("a", "running")
    Client.answers = {"stats": {"pids": {"current": 3}}}
    event = json.loads(run("events", "--stats", "a").out)
    assert (event["type"], event["id"], event["data"]["pids"]) == ("stats", "a", {"current": 3})
    assert run("events", "--interval", "0", "a").errors == ["duration interval must be greater than 0"]
    store.add("b", "stopped")
    assert run("events", "b").errors == ["container with id b is not running"]


def test_events_until_the_containers_end(run: Run, store: Store) -> None:
    store.add("a", "running")
    Client.answers = {
        "events": [
            {"event": "ready"}, {"event": "oom", "id": "b"}, {"event": "oom", "id": "a"},
            {"event": "exit", "id": "a", "exec": "x"}, {"event": "oom", "id": "a"}, {"event": "exit", "id": "b"},
            {"event": "exit", "id": "a", "exec": None}, {"event": "oom", "id": "a"},
        ]
    }  # fmt: skip
    out = run("events", "--interval=1h", "a").out
    assert out == '{"type":"oom","id":"a"}\n' * 2


def test_events_of_one_that_ends_before_they_are_told(run: Run, store: Store) -> None:
    record = store.add("a", "running")

    def events() -> Iterator[dict[str, Any]]:
        store.records["a"] = replace(record, status="stopped")
        yield {"event": "ready"}
        pytest.fail("nobody tells its end any more")

    Client.answers = {"events": events()}
    assert run("events", "--interval=1h", "a").status == 0


# ---- exec


@pytest.fixture
def execs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Process objects that exec would start; none is started."""
    from casemate.runtime_cli import exec as command

    found: list[dict[str, Any]] = []

    def begin(client: Any, record: Any, spec: Any, process: dict[str, Any], *rest: Any) -> int:
        found.append(process)
        return 1

    monkeypatch.setattr(command, "_begin", begin)
    return found


def test_exec_takes_the_containers_process_and_changes_it(
    run: Run, store: Store, execs: list[dict[str, Any]]
) -> None:
    store.add("a", "running")
    words = "-d -e B=2 --env C=3 --cwd /tmp -u 33:44 -g 55 -g=66 -c CAP_CHOWN --no-new-privs a ls -l --tty"
    assert run("exec", *words.split()).status == 0
    assert execs == [
        {
            "args": ["ls", "-l", "--tty"], "cwd": "/tmp", "env": ["A=1", "B=2", "C=3"], "terminal": False,
            "user": {"uid": 33, "gid": 44, "additionalGids": [5, 55, 66]}, "noNewPrivileges": True,
            "capabilities": {
                "bounding": ["CAP_KILL", "CAP_CHOWN"], "inheritable": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"],
                "permitted": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN"],
            },
        }
    ]  # fmt: skip


def test_exec_by_a_file(run: Run, store: Store, execs: list[dict[str, Any]], tmp_path: Path) -> None:
    store.add("a", "running")
    process = {"args": ["x"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "terminal": False}
    (tmp_path / "p.json").write_text(json.dumps(process))
    words = ("--detach", "--process", str(tmp_path / "p.json"), "--pid-file", str(tmp_path / "pid"), "a")
    assert run("exec", *words).status == 0
    assert execs == [process]
    assert (tmp_path / "pid").read_text() == "1"


@pytest.mark.parametrize(
    ("status", "words", "complaint"),
    [
        ("running", ["a"], "process args cannot be empty"),
        ("running", ["-u", "root", "a", "ls"], "parsing root as int for UID failed"),
        ("running", ["-g", "-1", "a", "ls"], "parsing -1 as int for additional gid failed"),
        ("running", ["-d", "-t", "a", "ls"], "cannot allocate tty if runc will detach without setting console socket"),
        ("running", ["--cgroup", "x", "a", "ls"], "--cgroup cannot be given"),
        ("running", ["--preserve-fds", "17", "a", "ls"], "17 descriptors are to be preserved"),
        ("running", ["--apparmor", "strict", "a", "ls"], "AppArmor profile 'strict' cannot be applied"),
        ("running", ["-p", "/nope", "a"], "No such file or directory"),
        ("stopped", ["a", "ls"], "cannot exec in a stopped container"),
        ("paused", ["a", "ls"], "cannot exec in a paused container (use --ignore-paused to override)"),
    ],
)
def test_exec_refuses(
    run: Run, store: Store, execs: list[dict[str, Any]], status: str, words: list[str], complaint: str
) -> None:
    store.add("a", status)
    result = run("exec", *words)
    assert (result.status, len(result.errors), execs) == (255, 1, [])
    assert result.errors[0].startswith("exec failed: ") and complaint in result.errors[0]


def test_exec_in_a_paused_one_when_told_to(run: Run, store: Store, execs: list[dict[str, Any]]) -> None:
    store.add("a", "paused")
    assert run("exec", "--ignore-paused", "-d", "a", "ls").status == 0
    assert len(execs) == 1


# ---- spec, features, checkpoint, restore


def test_spec_writes_a_bundle_that_is_accepted(run: Run, tmp_path: Path) -> None:
    from casemate.oci import bundle

    (tmp_path / "rootfs").mkdir()
    assert run("spec", "--bundle", str(tmp_path)).status == 0
    loaded = bundle.load(os.path.realpath(tmp_path))
    assert (loaded["process"]["args"], loaded["process"]["terminal"]) == (["sh"], True)
    assert run("spec", "-b", str(tmp_path)).errors == ["File config.json exists. Remove it first"]
    assert len(run("spec", "--rootless", "-b", str(tmp_path)).errors) == 1


def test_features(run: Run) -> None:
    features = json.loads(run("features").out)
    assert "createRuntime" in features["hooks"] and features["linux"]["namespaces"]


def test_checkpoint_and_restore(run: Run, store: Store) -> None:
    store.add("a", "running")
    assert "not supported" in run("checkpoint", "--image-path", "/x", "--leave-running", "a").errors[0]
    assert "not supported" in run("restore", "--image-path", "/x", "-d", "--bundle", "/b", "b").errors[0]


def test_an_error_of_the_keepers_is_told_with_its_hint(run: Run, store: Store) -> None:
    store.add("a", "running")
    Client.trouble = AgentError("it is so", "do this")
    assert run("pause", "a").errors == ["it is so: do this"]


def test_list_widths(run: Run, store: Store) -> None:
    store.add("a" * 30, "running")
    store.records["b"] = replace(store.add("b", "stopped"), owner=4_000_000_000)
    header, first, second = run("list").out.splitlines()
    assert header.index("PID") == 33 and first.index("4242") == 33
    assert second.split()[-1] == "#4000000000"

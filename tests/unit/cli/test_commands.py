"""The commands against fakes: what they ask of the keeper, what they print, and how they end."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from casemate.cli import logs as logs_command
from casemate.cli import stats as stats_command
from casemate.cli.attach import Interrupted
from casemate.cli.main import main
from casemate.config import Config
from casemate.errors import CommandNotExecutable, CommandNotFound, HypervisorError, NotRunning
from casemate.keeper import store
from casemate.keeper.store import Container, ContainerSpec, ContainerState, Store
from casemate.oci.imageconfig import ImageConfig
from tests.unit.cli.fakes import IMAGE_ID, FakeClient, FakeSession, World

EXITED = ContainerState(status="exited", exit_code=3, started=1_700_000_000.0, finished=1_700_000_001.0)
KILLED = ContainerState(status="exited", exit_code=137, oom_killed=True, finished=1_700_000_001.0)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


Capture = pytest.CaptureFixture[str]


# ---- run


def test_run_gives_the_exit_status_and_what_was_asked(world: World, tmp_path: Path) -> None:
    world.keeper.session = FakeSession(42)
    source = tmp_path / "new" / "dir"
    status = main([
        "run", "--name", "n", "-e", "A=1", "-v", f"{source}:/data:ro", "--memory", "256m", "--cpus", "0.5", "-p", "1:2",
        "--dns", "192.0.2.1", "-l", "x=y", "-u", "1:2", "--stop-signal", "INT", "--rm", "busybox", "echo", "-n", "hi",
    ])  # fmt: skip
    assert status == 42
    ((container, stdio, size),) = world.keeper.launched
    spec = container.spec
    assert (stdio, size) == ((None, 1, 2), None)
    assert source.is_dir(), "a source that is missing becomes a directory"
    assert (spec.name, spec.image, spec.image_id, spec.layers) == ("n", "busybox", IMAGE_ID, ("/layer",))
    assert (spec.memory_mib, spec.cpus, spec.dns, spec.labels) == (256, 0.5, ("192.0.2.1",), {"x": "y"})
    assert (spec.user, spec.stop_signal, spec.remove, spec.detach, spec.tty) == ("1:2", 2, True, False, False)
    assert spec.command == ("echo", "-n", "hi") == tuple(spec.oci["process"]["args"])
    assert spec.hostname == spec.id[:12] == spec.oci["hostname"]
    assert "A=1" in spec.oci["process"]["env"]
    assert [(p.host_port, p.container_port) for p in spec.ports] == [(1, 2)]


def test_run_takes_the_images_defaults(world: World) -> None:
    world.images.image.config = ImageConfig(
        entrypoint=("/e",), cmd=("c",), user="app", stop_signal="SIGQUIT", labels={"a": "1", "b": "2"}, working_dir="/w"
    )
    assert main(["run", "-i", "-l", "b=3", "busybox"]) == 0
    ((container, stdio, _),) = world.keeper.launched
    spec = container.spec
    assert stdio == (0, 1, 2)
    assert (spec.user, spec.stop_signal, spec.labels) == ("app", 3, {"a": "1", "b": "3"})
    assert spec.command == ("/e", "c") and spec.oci["process"]["cwd"] == "/w"
    assert "-" in spec.name, "a name is made up"


def test_detached_run_prints_the_id_and_leaves_the_streams(world: World, capsys: Capture) -> None:
    assert main(["run", "-d", "busybox"]) == 0
    ((container, stdio, _),) = world.keeper.launched
    assert capsys.readouterr().out == container.id + "\n"
    assert stdio == (None, None, None)
    assert world.keeper.session.closed


def test_what_ended_the_sandbox_is_told(world: World, capsys: Capture) -> None:
    world.keeper.session = FakeSession(137, "the machine was killed")
    assert main(["run", "busybox"]) == 137
    assert capsys.readouterr().err == "casemate: the machine was killed\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CommandNotFound("nope: not found in the container"), 127),
        (CommandNotExecutable("/etc: cannot be executed"), 126),
        (HypervisorError("the machine did not start", "see the log"), 125),
        (Interrupted(15), 143),
        (Interrupted(2), 130),
    ],
)
def test_a_container_that_does_not_start_leaves_nothing(world: World, error: BaseException, status: int) -> None:
    world.keeper.launch_error = error
    assert main(["run", "--name", "n", "busybox", "nope"]) == status
    assert world.store.list() == []
    world.keeper.launch_error = None
    assert main(["run", "--name", "n", "busybox"]) == 0, "the name is free again"


def test_a_signal_in_the_middle_of_making_a_container_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Store.create

    def interrupted(store: Store, spec: ContainerSpec, prepared: Path | None) -> Container:
        os.kill(os.getpid(), signal.SIGTERM)
        return create(store, spec, prepared)

    monkeypatch.setattr(Store, "create", interrupted)
    assert main(["run", "busybox"]) == 143
    assert world.store.list() == [] and not world.keeper.launched
    monkeypatch.undo()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGTERM, signal.SIGINT} == set()


def test_a_used_name_is_refused(world: World, capsys: Capture) -> None:
    world.add("n")
    assert main(["run", "--name", "n", "busybox"]) == 125
    assert "used by container" in capsys.readouterr().err
    assert not world.keeper.launched


@pytest.mark.parametrize(
    ("options", "pulls", "status"),
    [
        (["busybox"], [], 0),
        (["remote"], ["remote"], 0),
        (["--pull", "always", "busybox"], ["busybox"], 0),
        (["--pull", "never", "remote"], [], 125),
        (["nowhere"], ["nowhere"], 125),
        (["--pull", "sometimes", "busybox"], [], 125),
    ],
)
def test_images_are_fetched_when_asked(
    world: World, capsys: Capture, options: list[str], pulls: list[str], status: int
) -> None:
    assert main(["run", *options]) == status
    assert world.images.pulled == pulls
    assert "fetching" not in capsys.readouterr().err, "progress is for terminals, and for 'pull'"


@pytest.mark.parametrize(
    "options",
    [
        ["--memory", "64m"], ["--memory", "lots"], ["--cpus", "0"], ["-v", "name:/x"], ["-p", "x"],
        ["--network", "host"], ["--network", "none", "-p", "80:80"], ["--cap-add", "NOPE"], ["--name", "-x"],
        ["-w", "rel"], ["--privileged"],
        ["--security-opt", "apparmor=x"], ["--security-opt", "seccomp=/nowhere"], ["--ulimit", "x"], ["--dns", "x"],
        ["--env-file", "/nowhere"], ["-e", "=x"], ["--hostname", "-"], ["--stop-signal", "NOPE"], ["--nope"],
        ["--pids-limit", "x"], ["--tmpfs", "x"], ["--tmpfs", "/a", "-v", "/tmp:/a"], ["-u", ":"], ["--shm-size", "x"],
        ["--sysctl", "kernel.panic=1"],
    ],
)  # fmt: skip
def test_a_bad_option_is_one_line_and_leaves_nothing(world: World, options: list[str], capsys: Capture) -> None:
    assert main(["run", *options, "busybox"]) == 125
    error = capsys.readouterr().err
    assert error.startswith("casemate: ") and error.count("\n") == 1
    assert not world.keeper.launched and world.store.list() == []


def test_an_image_without_a_command(world: World, capsys: Capture) -> None:
    world.images.image.config = ImageConfig()
    assert main(["run", "busybox"]) == 125
    assert "no default command" in capsys.readouterr().err
    assert world.store.list() == []


def test_a_terminal_is_needed_for_it(world: World, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda descriptor: False)
    assert main(["run", "-it", "busybox"]) == 125
    assert "-t needs a terminal" in capsys.readouterr().err


def test_security_options(world: World, tmp_path: Path) -> None:
    profile = tmp_path / "p.json"
    profile.write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    for options, seccomp, quiet in (
        (["seccomp=unconfined", "no-new-privileges"], None, True),
        ([f"seccomp={profile}"], {"defaultAction": "SCMP_ACT_ALLOW", "architectures": [], "syscalls": []}, False),
        (["no-new-privileges=false", f"seccomp:{profile}"], ..., False),
    ):
        words = [word for option in options for word in ("--security-opt", option)]
        assert main(["run", *words, "busybox"]) == 0
        oci = world.keeper.launched[-1][0].spec.oci
        assert oci["process"]["noNewPrivileges"] is quiet
        assert seccomp is ... or oci["linux"].get("seccomp") == seccomp


def test_made_up_names_avoid_those_in_use(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from casemate.cli import names

    monkeypatch.setattr(names, "make_up", lambda identifier, attempt: f"name-{attempt}")
    world.add("name-0")
    assert main(["run", "busybox"]) == 0
    assert world.keeper.launched[0][0].spec.name == "name-1"


# ---- exec


def test_exec(world: World) -> None:
    world.add("c")
    world.keeper.session = FakeSession(5)
    assert main(["exec", "-i", "-e", "X=1", "-w", "/tmp", "-u", "me", "c", "ls", "-l"]) == 5
    ((name, op, process, user, stdio, tty, size),) = world.keeper.calls
    assert (name, op, user, stdio, tty, size) == ("c", "exec", "me", (0, 1, 2), False, None)
    assert process["args"] == ["ls", "-l"] and process["cwd"] == "/tmp" and "X=1" in process["env"]


def test_detached_exec(world: World) -> None:
    world.add("c")
    assert main(["exec", "-d", "c", "sleep", "1"]) == 0
    assert world.keeper.calls[0][4] == (None, None, None)
    assert world.keeper.session.closed


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["c"], 125, "no command"),
        (["gone", "ls"], 1, "no such container"),
        (["dead", "ls"], 1, "not running"),
        (["-w", "x", "c", "ls"], 125, "relative"),
    ],
)
def test_exec_errors(world: World, capsys: Capture, words: list[str], status: int, message: str) -> None:
    world.add("c")
    world.add("dead", state=EXITED)
    assert main(["exec", *words]) == status
    assert message in capsys.readouterr().err.lower()


# ---- several containers at once


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["kill"], ("signal", 9)), (["kill", "-s", "HUP"], ("signal", 1)), (["pause"], ("pause",)),
        (["unpause"], ("resume",)), (["stop"], ("stop", 10.0, 15)), (["stop", "-t", "3"], ("stop", 3.0, 15)),
        (["stop", "-s", "INT"], ("stop", 10.0, 2)),
    ],
)  # fmt: skip
def test_each_is_served_and_each_error_told(
    world: World, capsys: Capture, words: list[str], call: tuple[Any, ...]
) -> None:
    for name in ("a", "b", "c"):
        world.add(name)
    world.keeper.errors["b"] = HypervisorError("b is stuck")
    assert main([*words, "a", "nope", "b", "c"]) == 1
    assert world.keeper.calls == [(name, *call) for name in ("a", "b", "c")]
    captured = capsys.readouterr()
    assert captured.out == "a\nc\n"
    assert captured.err.splitlines()[0].startswith("casemate: no such container: nope")
    assert captured.err.splitlines()[1] == "casemate: b is stuck"


def test_stopping_what_has_ended_is_fine(world: World, capsys: Capture) -> None:
    world.add("a", state=EXITED)
    assert main(["stop", "a"]) == 0
    assert capsys.readouterr().out == "a\n"
    assert world.keeper.calls == []


def test_killing_what_has_ended_is_an_error(world: World) -> None:
    world.add("a", state=EXITED)
    assert main(["kill", "a"]) == 1


def test_wait_prints_statuses(world: World, capsys: Capture) -> None:
    world.add("a")
    world.add("b", state=EXITED)
    assert main(["wait", "a", "b"]) == 0
    assert capsys.readouterr().out == "7\n3\n"


def test_wait_for_one_that_ends_just_now(world: World, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    container = world.add("a")

    def wait(client: FakeClient) -> int:
        container.write_state(EXITED)
        raise NotRunning("it has ended")

    monkeypatch.setattr(FakeClient, "wait", wait)
    assert main(["wait", "a"]) == 0
    assert capsys.readouterr().out == "3\n"


def test_rm(world: World, capsys: Capture) -> None:
    world.add("a", state=EXITED)
    world.add("b", state=EXITED)
    world.add("up")
    assert main(["rm", "a", "nope", "up"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "a\n"
    assert "no such container: nope" in captured.err and "up is running" in captured.err
    assert main(["rm", "-f", "nope"]) == 0, "gone is gone"
    assert main(["rm", "--all"]) == 0
    assert [container.name for container in world.store.list()] == ["up"]
    assert main(["rm"]) == 125


def test_a_keeper_that_is_about_to_end_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    container = world.add("a", state=EXITED)
    holder = os.open(container.path / "lock", os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    monkeypatch.setattr(store, "END_SECONDS", 0.1)
    monkeypatch.setattr(store, "REMOVE_SECONDS", 0.1)
    assert main(["rm", "a"]) == 1, "it holds on"
    monkeypatch.setattr(store, "END_SECONDS", 30)
    timer = threading.Timer(0.2, os.close, (holder,))
    timer.start()
    assert main(["rm", "a"]) == 0
    timer.join()
    assert world.store.list() == []


# ---- looking


def test_ps(world: World, capsys: Capture) -> None:
    world.add("old", state=KILLED, created=1.0)
    up = world.add("up", command=("sh", "-c", "echo a long command that is cut"), labels={"a": "1"})
    world.add("held", state=ContainerState(status="paused", started=1.0))
    assert main(["ps"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["CONTAINER", "ID"]
    assert len(lines) == 3 and "(Paused)" in "".join(lines)
    (line,) = [line for line in lines if line.endswith("up")]
    assert up.id[:12] in line and "…" in line
    assert main(["ps", "-a"]) == 0
    text = capsys.readouterr().out
    assert "Exited (137)" in text and "out of memory" in text
    assert text.splitlines()[-1].endswith("old"), "the oldest comes last"
    assert main(["ps", "-q", "--no-trunc", "--filter", "name=up"]) == 0
    assert capsys.readouterr().out == up.id + "\n"
    assert main(["ps", "--format", "json", "-f", "label=a=1"]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (row["Names"], row["State"], row["Labels"]) == ("up", "running", "a=1")
    assert main(["ps", "-a", "--format", "{{.Names}}:{{.State}}"]) == 0
    assert set(capsys.readouterr().out.split()) == {"old:exited", "up:running", "held:paused"}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["status=exited"], {"dead", "oom"}), (["exited=137"], {"oom"}), (["status=running", "status=paused"], {"up"}),
        (["name=o", "status=exited"], {"oom"}), (["label=a"], {"up"}), (["label=a", "label=b"], set()),
        (["label=a=2"], set()), (["ancestor=busybox"], {"up"}), (["ancestor=other"], set()), (["id=zz"], set()),
    ],
)  # fmt: skip
def test_ps_filters(world: World, capsys: Capture, filters: list[str], expected: set[str]) -> None:
    world.add("dead", state=EXITED)
    world.add("oom", state=KILLED)
    world.add("up", labels={"a": "1"})
    words = [word for each in filters for word in ("--filter", each)]
    assert main(["ps", *words, "--format", "{{.Names}}"]) == 0
    assert set(capsys.readouterr().out.split()) == expected


@pytest.mark.parametrize("bad", ["name", "size=1", "status=up", "exited=x"])
def test_bad_ps_filters(world: World, bad: str) -> None:
    assert main(["ps", "--filter", bad]) == 125


def test_ps_tells_of_a_damaged_container_and_goes_on(world: World, capsys: Capture) -> None:
    world.add("good")
    bad = world.add("bad")
    (bad.path / "config.json").write_text("{")
    assert main(["ps", "-a"]) == 0
    captured = capsys.readouterr()
    assert "good" in captured.out
    assert captured.err.startswith(f"casemate: container {bad.id[:12]}: ")


def test_terminal_codes_in_names_of_images_do_not_reach_the_terminal(world: World, capsys: Capture) -> None:
    world.add("evil", command=("\x1b]0;owned\x07", "a\nb"))
    assert main(["ps", "--no-trunc"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out
    assert len(out.splitlines()) == 2


def test_inspect(world: World, capsys: Capture) -> None:
    container = world.add("c", state=KILLED, labels={"k": "v"}, memory_mib=256)
    assert main(["inspect", "c"]) == 0
    (value,) = json.loads(capsys.readouterr().out)
    assert value["Id"] == container.id and value["Name"] == "c"
    assert value["State"]["OOMKilled"] is True and value["State"]["ExitCode"] == 137
    assert value["State"]["StartedAt"] == "0001-01-01T00:00:00Z"
    assert value["State"]["FinishedAt"] == "2023-11-14T22:13:21.000000000Z"
    assert value["HostConfig"]["Memory"] == 256 << 20
    assert value["Config"]["StopSignal"] == "SIGTERM"
    assert main(["inspect", "-f", "{{.State.OOMKilled}} {{.Config.Labels.k}}", "c"]) == 0
    assert capsys.readouterr().out == "true v\n"
    assert main(["inspect", "-f", "{{.State.Nope}}", "c"]) == 125


def test_inspect_of_images_and_of_nothing(world: World, capsys: Capture) -> None:
    world.add("c")
    assert main(["inspect", "busybox", "nope", "c"]) == 1
    captured = capsys.readouterr()
    assert [value["Id"] == IMAGE_ID for value in json.loads(captured.out)] == [True, False]
    assert "no container or image nope" in captured.err
    assert main(["inspect", "--type", "image", "c"]) == 1
    assert main(["inspect", "--type", "container", "busybox"]) == 1
    assert main(["inspect", "--type", "pod", "c"]) == 125


FIGURES: dict[str, Any] = {
    "memory": {"current": 32 << 20}, "limit": 256 << 20, "cpu": {"usage_us": 1_500_000}, "pids": {"current": 3},
    "net": [{"name": "lo", "rx_bytes": 9, "tx_bytes": 9}, {"name": "eth0", "rx_bytes": 2048, "tx_bytes": 1024}],
    "host": {"memory": 100 << 20},
}  # fmt: skip


def test_stats(world: World, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats_command, "_rest", lambda seconds: None)
    world.keeper.stats = FIGURES
    world.add("c")
    world.add("dead", state=EXITED)
    assert main(["stats", "--no-stream"]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert "HOST MEM" in head
    assert "32.0MiB / 256MiB" in line and "12.50%" in line and "2.0KiB / 1.0KiB" in line
    assert main(["stats", "--no-stream", "dead"]) == 1


def test_processor_time_is_a_share_of_the_time_between() -> None:
    before = {"i" * 64: (10.0, 1_000_000)}
    row = stats_command.row("i" * 64, "n", FIGURES, 11.0, before)
    assert row["CPUPerc"] == "50.00%"
    assert before["i" * 64] == (11.0, 1_500_000)


@pytest.mark.parametrize(
    "figures",
    [
        {},
        {"memory": 1, "net": {}, "cpu": None},
        {"memory": {"current": "x"}, "net": [1]},
        {"memory": {"current": -5}, "pids": {"current": 1e300}},
    ],
)
def test_a_guest_that_lies_breaks_nothing(figures: dict[str, Any]) -> None:
    row = stats_command.row("i", "n", figures, 1.0, {})
    assert row["MemUsage"] == "0B / 0B"


# ---- logs


def test_logs(world: World, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    from casemate.keeper import logs

    asked: list[dict[str, Any]] = []

    def read(container: Any, **options: Any) -> Any:
        asked.append(options)
        yield 1_700_000_000.0, "stdout", b"one\xff\n"
        yield 1_700_000_001.0, "stderr", b"two"

    monkeypatch.setattr(logs, "read", read)
    world.add("c")
    assert main(["logs", "c"]) == 0
    captured = capfdbinary.readouterr()
    assert (captured.out, captured.err) == (b"one\xff\n", b"two")
    assert main(["logs", "-f", "--tail", "5", "--since", "1700000000", "-t", "c"]) == 0
    assert capfdbinary.readouterr().out == b"2023-11-14T22:13:20.000000000Z one\xff\n"
    assert main(["logs", "--tail=-1", "c"]) == 0
    assert [each["tail"] for each in asked] == [None, 5, None]
    assert asked[1] == {"follow": True, "since": 1_700_000_000.0, "tail": 5}
    assert main(["logs", "--tail", "x", "c"]) == 125
    assert main(["logs", "nope"]) == 1


def test_times_stand_before_lines_and_not_inside_them() -> None:
    assert logs_command.stamped(b"a\r\nb", 0.0, True).count(b"1970") == 2
    assert logs_command.stamped(b"rest\nnew\n", 0.0, False).startswith(b"rest\n1970")
    assert logs_command.stamped(b"a\rb\x0bc\x85d", 0.0, True).count(b"1970") == 1


# ---- the rest


def test_pull_and_images(world: World, capsys: Capture) -> None:
    assert main(["pull", "busybox", "nowhere"]) == 1
    captured = capsys.readouterr()
    assert captured.out == IMAGE_ID + "\n"
    assert captured.err.splitlines() == ["fetching busybox", "casemate: the registry has no nowhere"]
    assert main(["pull", "-q", "remote"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["images"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["busybox", "a" * 12]
    assert main(["images", "-q", "--no-trunc"]) == 0
    assert capsys.readouterr().out == IMAGE_ID + "\n"
    assert main(["images", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["Repository"] == "busybox"


def test_env_tells_where_values_come_from(
    world: World, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "etc" / "config.toml"
    (file.parent / "config.d").mkdir(parents=True)
    file.write_text('memory = 512\naccelerator = "tcg"\n')
    drop_in = file.parent / "config.d" / "10.toml"
    drop_in.write_text("memory = 256\n")
    monkeypatch.setenv("CASEMATE_CONFIG", str(file))
    assert main(["env", "--format", "json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["memory"] == {"value": 256, "source": str(drop_in)}
    assert values["accelerator"] == {"value": "tcg", "source": str(file)}
    assert values["root"]["source"] == "CASEMATE_ROOT"
    assert values["vcpus"]["source"] == "default"
    assert main(["env"]) == 0
    import tomllib

    text = capsys.readouterr().out
    assert tomllib.loads(text)["memory"] == 256, "fit to be a configuration file"
    file.write_text("nope = 1")
    assert main(["env"]) == 125


def test_version(world: World, capsys: Capture) -> None:
    assert main(["version", "--format", "json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert set(value) == {"casemate", "python", "qemu", "host kernel", "guest kernel"}
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"casemate {value['casemate']}\n"


@pytest.mark.parametrize("command", ["run", "ps", "rm", "guest"])
def test_without_root_is_one_line(
    world: World, capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    words = {"run": ["busybox"], "rm": ["x"], "guest": ["list"]}
    assert main([command, *words.get(command, [])]) == 125
    assert capsys.readouterr().err == f"casemate: casemate {command} needs root (try: sudo casemate {command} ...)\n"


def test_guest(world: World, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from casemate.vm import guest

    built: list[Any] = []

    def build(root: Path, cache: Path, progress: Callable[[str], None], *, update: bool, kernel: str) -> Any:
        built.append((root, cache, update, kernel))
        progress("unpacking")
        return type("Bundle", (), {"digest": "d" * 64})

    monkeypatch.setattr(guest, "build", build)
    monkeypatch.setenv("CASEMATE_CACHE", "/somewhere")
    assert main(["guest", "build", "--update"]) == 0
    assert built == [(world.config.root, Path("/somewhere"), True, "auto")]
    captured = capsys.readouterr()
    assert captured.out == "d" * 64 + "\n" and captured.err == "unpacking\n"
    assert main(["guest", "list"]) == 0
    assert capsys.readouterr().out.split() == ["DIGEST", "VERSION", "KERNEL", "SIZE", "IN", "USE"]
    assert main(["guest", "inspect"]) == 125
    assert main(["guest", "inspect", "abc"]) == 125
    assert main(["guest", "destroy"]) == 125
    assert main(["guest", "list", "x"]) == 125


def test_guest_kernel(world: World, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from casemate.vm.guest import kernel_build, kernels

    asked: list[Any] = []

    def build(cache: Path, progress: Callable[[str], None], **rest: Any) -> Any:
        asked.append((cache, rest))
        return type("Kernel", (), {"key": "k" * 32})

    monkeypatch.setattr(kernel_build, "build", build)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # none of this needs root
    monkeypatch.setenv("CASEMATE_CACHE", str(tmp_path))
    assert main(["guest", "kernel", "build", "--options", "more.config", "--keep", "--jobs", "3"]) == 0
    wanted = {"update": False, "more": [Path("more.config")], "keep": True, "jobs": 3}
    assert asked == [(tmp_path, wanted)] and capsys.readouterr().out == "k" * 32 + "\n"

    made = kernels.home(tmp_path) / ("a" * 32)
    (made / "modules" / "6.1.0-x").mkdir(parents=True)
    (made / "vmlinux").write_bytes(b"ELF")
    (made / "config").write_text("CONFIG_A=y\n")
    facts = {"format": kernels.FORMAT, "key": made.name, "release": "6.1.0-x", "version": "6.1.9", "seconds": 600}
    (made / kernels.FILE).write_text(json.dumps(facts))
    assert main(["guest", "kernel", "list"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["KEY", "RELEASE"] and row.split()[:4] == [made.name, "6.1.0-x", "6.1.9", "3B"]
    assert main(["guest", "kernel", "config"]) == 0
    assert capsys.readouterr().out == "CONFIG_A=y\n"
    assert main(["guest", "kernel", "rm", "b"]) == 125 and made.exists()
    assert main(["guest", "kernel", "rm", "aaa"]) == 0 and not made.exists()
    for words in ([], ["mend"], ["list", "x"], ["rm"], ["config", "a", "b"], ["config"]):
        assert main(["guest", "kernel", *words]) == 125


def test_check_names_what_is_missing(world: World, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from casemate.cli import check
    from casemate.host.check import Finding

    found = [Finding("kernel", True, True, "Linux 6"), Finding("ksm", False, False, "off", "turn it on")]
    monkeypatch.setattr(check, "findings", lambda config: found)
    assert main(["check"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["ok", "kernel", "Linux", "6"]
    assert out[1].startswith("warn  ksm") and out[1].endswith("-> turn it on")
    assert out[-1].startswith("Ready")
    found.append(Finding("qemu", False, True, "not found", "apt install qemu-system-x86"))
    assert main(["check"]) == 1
    assert "Not ready: qemu." in capsys.readouterr().out
    assert main(["check", "--json"]) == 1
    assert [each["status"] for each in json.loads(capsys.readouterr().out)] == ["ok", "warn", "fail"]


def test_check_of_this_machine_ends_in_findings(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from casemate.cli import check
    from casemate.host import check as host

    monkeypatch.setattr(host, "check", lambda config: [])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    names = [finding.name for finding in check.findings(world.config)]
    assert {"qemu", "virtiofsd", "skopeo", "guest bundle", "disk space", "containers"} <= set(names)
    bundle = next(each for each in check.findings(world.config) if each.name == "guest bundle")
    assert not bundle.ok and "casemate guest build" in bundle.fix


def test_check_tells_of_machines_to_copy(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from casemate.cli import check
    from casemate.vm import twins
    from casemate.vm.hypervisor import twin

    def told(config: Config) -> tuple[bool, str]:
        found = check._twins(config)
        assert found.name == "twins" and found.ok == (not found.fix)
        return found.ok, found.detail

    monkeypatch.setattr("casemate.config.machine", lambda: "x86_64")
    monkeypatch.setattr(twin, "machine", lambda: "x86_64")
    library = tmp_path / "library"
    monkeypatch.setattr(twin, "LIBRARY", library)
    config = replace(world.config, run=tmp_path)
    assert told(replace(config, twins="off")) == (True, "off")
    assert told(replace(config, template="off")) == (True, "off")
    assert told(config) == (False, "the library that QEMU is copied by is not built")
    library.write_bytes(b"")
    assert told(config) == (True, "made with the next start")
    kind = twins.Kind("ab" * 32, 1024, 1)
    descriptor = twins.hold(config, kind)
    assert descriptor is not None
    try:
        assert told(config) == (True, "made with the next start")
        monkeypatch.setattr(Path, "is_socket", lambda path: True)
        assert told(config) == (True, "ready: 1024 MiB")
        twins.note(twins.place(config, kind), "no memory")
        assert told(config) == (False, "no memory")
    finally:
        os.close(descriptor)
    monkeypatch.setattr("casemate.config.machine", lambda: "aarch64")
    assert told(config) == (True, "not there for aarch64")


@pytest.mark.parametrize(
    ("servers", "options", "told"),
    [
        ((), (), True),
        ((), ("--dns", "10.0.0.1"), False),
        ((), ("--network", "none"), False),
        (("10.0.0.1",), (), False),
    ],
)
def test_missing_name_servers_are_told(
    world: World, capsys: Capture, monkeypatch: pytest.MonkeyPatch, servers: Any, options: Any, told: bool
) -> None:
    from casemate.host import dns

    monkeypatch.setattr(dns, "host_dns", lambda: dns.Dns(nameservers=servers))
    main(["run", "-d", *options, "busybox", "true"])
    assert ("--dns" in capsys.readouterr().err) == told

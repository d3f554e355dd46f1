"""The life of a container by the OCI command line, with runc as the control."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from casemate.host import processes
from tests.vm.oci import Failed, Runtime, until


def test_from_create_to_delete(either: Runtime) -> None:
    bundle = either.bundle("sh", "-c", "echo out; echo err >&2; cat; exit 7")
    bundle.spec["annotations"] = {"org.example.key": "value"}
    (either.directory / "in").write_text("from standard input\n")
    with open(either.directory / "in", "rb") as stdin:
        container = either.create(bundle, stdin=stdin)
    state = container.state()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", state.pop("created"))
    assert state.pop("ociVersion").startswith("1.0.2")
    assert state == {
        "id": container.id, "pid": container.pid, "status": "created", "bundle": str(bundle.path),
        "rootfs": str(bundle.rootfs), "annotations": {"org.example.key": "value"}, "owner": "",
    }  # fmt: skip
    assert processes.alive(container.pid, processes.start_time(container.pid) or 0)
    assert container.output() == ""  # not before it was started
    container.start()
    assert container.wait() == 7
    assert sorted(container.output().splitlines()) == ["err", "from standard input", "out"]
    state = until(lambda: container.state()["status"] == "stopped" and container.state(), "stopped")
    assert state["pid"] == 0
    container("delete")
    assert either.fails("state", container.id) == "container does not exist"


def test_what_each_state_allows(either: Runtime) -> None:
    container = either.create(either.bundle())
    id, name = container.id, either.name
    assert "already" in either.fails("create", "--bundle", either.bundle().write(), id)
    assert either.last_error() == f"{name} create failed: container with given ID already exists"
    assert either.fails("resume", id) == "container not paused"
    container.start()
    assert container.state()["status"] == "running"
    assert either.fails("start", id) == "cannot start an already running container"
    assert f"cannot delete container {id} that is not stopped: running" in either.fails("delete", id)
    container("pause")
    assert container.state()["status"] == "paused"
    assert either.fails("start", id) == "cannot start a container in the paused state"
    assert either.fails("pause", id) == "container not running"
    message = "exec failed: cannot exec in a paused container (use --ignore-paused to override)"
    assert either.fails("exec", id, "true", status=255) == message
    container("resume")
    assert container.sh("echo back") == "back"
    container("kill", "KILL")
    assert container.wait() == 137
    until(lambda: container.state()["status"] == "stopped", "stopped")
    assert either.fails("start", id) == "cannot start a container that has stopped"
    assert either.fails("kill", id, "TERM") == "container not running"
    container("kill", "--all", "TERM")
    assert either.fails("exec", id, "true", status=255) == "exec failed: cannot exec in a stopped container"
    assert either.fails("pause", id) == "container not running"
    assert either.fails("events", "--stats", id) == f"container with id {id} is not running"
    assert json.loads(container("ps", check=True) and either("ps", "--format", "json", id).stdout or "null") is None
    container("delete")


@pytest.mark.parametrize(
    "words",
    [
        ("state",), ("start",), ("kill", "TERM"), ("delete",), ("pause",), ("resume",), ("ps",), ("events", "--stats"),
        ("update", "--memory", "100m"), ("exec", "true"), ("checkpoint",),
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_one_that_is_not_there_is_told_alike_by_every_command(either: Runtime, words: tuple[str, ...]) -> None:
    command, *rest = words
    arguments = (command, *rest, "nobody") if command in ("update", "events") else (command, "nobody", *rest)
    message = either.fails(*arguments, status=255 if command == "exec" else 1)
    assert message.removeprefix("exec failed: ") == "container does not exist"


def test_deleting_by_force_is_idempotent(either: Runtime) -> None:
    container = either.create(either.bundle()).start()
    for _ in range(2):
        assert either("delete", "--force", container.id).returncode == 0
    assert container.wait() == 137
    assert either("delete", "-f", "never-there").returncode == 0
    assert either.fails("delete", container.id) == "container does not exist"


def test_a_created_one_may_be_deleted_at_once(either: Runtime) -> None:
    container = either.create(either.bundle())
    container("delete")
    assert container.wait() == 137
    assert either.fails("state", container.id) == "container does not exist"


@pytest.mark.parametrize(
    ("text", "status"), [("TERM", 3), ("15", 3), ("SIGUSR1", 4), ("usr1", 4), ("KILL", 137), ("9", 137)]
)
def test_signals_by_name_and_number(either: Runtime, text: str, status: int) -> None:
    script = "trap 'exit 3' TERM; trap 'exit 4' USR1; echo ready; while :; do sleep 0.1; done"
    container = either.create(either.bundle("sh", "-c", script)).start()
    container.wait_for("ready")
    container("kill", text)
    assert container.wait() == status


def test_the_first_process_ignores_what_it_does_not_handle(either: Runtime) -> None:
    script = "trap 'echo told' USR1; echo ready; while :; do sleep 0.1; done"
    container = either.create(either.bundle("sh", "-c", script)).start()
    container.wait_for("ready")
    container("kill")  # SIGTERM, which a namespace's first process only takes when it asks for it
    container("kill", "USR1")
    container.wait_for("told")
    assert container.state()["status"] == "running"
    container("kill", "0")
    assert "invalid argument" in either.fails("kill", container.id, "99")
    assert either.fails("kill", container.id, "FOO") == 'unknown signal "FOO"'


def test_all_processes_can_be_signalled(either: Runtime) -> None:
    script = "trap '' TERM; (trap 'echo child; exit' TERM; echo ready; while :; do sleep 0.1; done) & wait; sleep 99"
    container = either.create(either.bundle("sh", "-c", script)).start()
    container.wait_for("ready")
    container("kill", "--all", "TERM")
    container.wait_for("child")


def test_killing_a_paused_one_ends_it(either: Runtime) -> None:
    container = either.create(either.bundle()).start()
    container("pause")
    container("kill", "KILL")
    assert container.wait() == 137


def test_run_waits_and_removes(either: Runtime) -> None:
    bundle = either.bundle("sh", "-c", "read line; echo got $line; echo oops >&2; exit 5")
    id = either.new_id()
    pid_file = either.directory / "pid"
    done = either("run", "-b", bundle.write(), "--pid-file", pid_file, id, input=b"something\n")
    assert (done.returncode, done.stdout, done.stderr) == (5, b"got something\n", b"oops\n")
    assert pid_file.read_text().isdigit()
    assert either.fails("state", id) == "container does not exist"


def test_run_keeps_it_when_asked_to(either: Runtime) -> None:
    id = either.new_id()
    assert either("run", "--keep", "--bundle", either.bundle("true").write(), id).returncode == 0
    assert json.loads(either("state", id, check=True).stdout)["status"] == "stopped"
    either("delete", id, check=True)


def test_run_detached_leaves_it_running(either: Runtime) -> None:
    container = either.create(either.bundle("sh", "-c", "echo up; sleep 86400"), "--detach", command="run")
    container.wait_for("up")
    assert container.state()["status"] == "running"


def test_the_bundle_is_the_working_directory_when_not_named(either: Runtime) -> None:
    done = either("run", either.new_id(), cwd=either.bundle("echo", "here").write())
    assert (done.returncode, done.stdout) == (0, b"here\n")


def test_signals_to_run_are_the_containers(either: Runtime) -> None:
    script = "trap 'echo term; exit 9' TERM; trap 'echo hup' HUP; echo ready; while :; do sleep 0.1; done"
    words = either.words("run", "--bundle", either.bundle("sh", "-c", script).write(), either.new_id())
    with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=either.env.variables) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == b"hup\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"term\n"
        assert process.wait(60) == 9


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("nope", 'exec: "nope": executable file not found in $PATH'),
        ("/nope", 'exec: "/nope": stat /nope: no such file or directory'),
        ("/etc/passwd", 'exec: "/etc/passwd": permission denied'),
    ],
)
def test_a_command_that_cannot_run_is_told_as_engines_expect(either: Runtime, command: str, complaint: str) -> None:
    with pytest.raises(Failed) as caught:
        either.create(either.bundle(command))
    assert caught.value.status == 1
    assert caught.value.log == f"{either.name} create failed: unable to start container process: {complaint}"
    done = either("run", "--bundle", either.bundle(command).write(), either.new_id())
    assert done.returncode == 1 and complaint in done.stderr.decode()
    assert either("list", "-q").stdout == b""


def test_lists(either: Runtime) -> None:
    assert either("list", "--format", "json").stdout == b"null\n"
    first = either.create(either.bundle())
    second = either.create(either.bundle()).start()
    found = {entry["id"]: entry for entry in json.loads(either("list", "--format=json").stdout)}
    assert {id: entry["status"] for id, entry in found.items()} == {first.id: "created", second.id: "running"}
    assert found[first.id]["owner"] == "root" and found[first.id]["pid"] == first.pid
    assert either("list", "-q").stdout.decode().split() == sorted([first.id, second.id])
    header, *rows = either("list").stdout.decode().splitlines()
    assert header.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert [row.split()[:4] for row in rows] == [
        [one.id, str(one.pid), status, str(found[one.id]["bundle"])]
        for one, status in ((first, "created"), (second, "running"))
    ]
    assert {row.index(found[row.split()[0]]["status"]) for row in rows} == {header.index("STATUS")}
    assert either.fails("list", "--format", "xml") == "invalid format option"


@pytest.mark.parametrize("id", ["../x", "a b", "a/b", ".", "..", "ä"])
def test_bad_ids_are_refused(either: Runtime, id: str) -> None:
    message = either.fails("create", "--bundle", either.bundle().write(), id)
    assert message.startswith(f"{either.name} create failed: invalid container")


def test_odd_ids_work(either: Runtime) -> None:
    container = either.create(either.bundle("sh", "-c", "echo up; sleep 99"), id=f"_+.{either.new_id()}-{'x' * 100}")
    container.start().wait_for("up")
    assert container.sh("echo in") == "in"


def test_a_pid_file_that_cannot_be_written_is_an_error_and_leaves_nothing(either: Runtime) -> None:
    id = either.new_id()
    words = ("run", "-d", "--pid-file", "/nope/pid", "--bundle", either.bundle().write(), id)
    assert re.search(r"open /nope/\.?pid: no such file or directory$", either.fails(*words))
    assert either.fails("state", id) == "container does not exist"


def test_what_is_asked_for_amiss(either: Runtime) -> None:
    done = either("state")
    assert done.returncode == 1 and b'"state" requires exactly 1 argument(s)' in done.stderr
    assert either("bogus").returncode == 3
    done = either("state", "--bogus", "x")
    assert done.returncode == 1 and b"flag provided but not defined: -bogus" in done.stdout + done.stderr
    empty = either.directory / "empty"
    empty.mkdir()
    assert "config.json" in either.fails("create", "--bundle", empty, "x")
    assert either.fails("create", "--bundle", "/nope", "x").endswith("no such file or directory")


def test_the_version_is_three_lines(ours: Runtime) -> None:
    lines = ours("--version").stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == ["casemate-runtime", "commit:", "spec:"]
    assert ours("-v").stdout.decode().splitlines() == lines


def test_options_without_effect(ours: Runtime) -> None:
    ours.create(ours.bundle(), "--preserve-fds", "0", "--no-pivot", "--no-new-keyring")


def test_checkpoint_and_restore_say_that_they_are_not_supported(ours: Runtime) -> None:
    container = ours.create(ours.bundle())
    assert "checkpoint is not supported" in ours.fails("checkpoint", "--image-path", "/x", container.id)
    assert "restore is not supported" in ours.fails("restore", "--image-path", "/x", "--bundle", "/y", "z")


def test_debugging_tells_the_steps(ours: Runtime) -> None:
    ours.create(ours.bundle(), globals=("--debug",))
    levels = [json.loads(line)["level"] for line in ours.log.read_text().splitlines()]
    assert levels.count("debug") >= 3


def test_the_container_is_named_on_the_host(ours: Runtime) -> None:
    container = ours.create(ours.bundle("sleep", "4242"))
    assert Path(f"/proc/{container.pid}/cmdline").read_bytes().split(b"\0")[:2] == [b"sleep", b"4242"]
    assert ours("ps", "--format", "json", container.id).stdout == b"[%d]\n" % container.pid
    header, row = ours("ps", container.id, "aux").stdout.decode().splitlines()
    assert row.split()[header.split().index("PID")] == str(container.pid)
    assert "sleep 4242" in row


def test_the_bundle_may_go_once_the_container_is_there(ours: Runtime) -> None:
    bundle = ours.bundle("sh", "-c", "sleep 99")
    container = ours.create(bundle)
    os.unlink(bundle.path / "config.json")
    container.start()
    assert container.sh("echo still") == "still"


def test_a_signal_to_the_host_process_reaches_the_container(ours: Runtime) -> None:
    script = "trap 'echo term' TERM; trap 'exit 6' USR2; echo ready; while :; do sleep 0.1; done"
    container = ours.create(ours.bundle("sh", "-c", script)).start()
    container.wait_for("ready")
    os.kill(container.pid, signal.SIGTERM)
    container.wait_for("term")
    os.kill(container.pid, signal.SIGUSR2)
    assert container.wait() == 6


def test_killing_the_host_process_ends_the_container(ours: Runtime) -> None:
    container = ours.create(ours.bundle()).start()
    os.kill(container.pid, signal.SIGKILL)
    assert container.wait() == 137
    until(lambda: container.state()["status"] == "stopped", "stopped")
    container("delete")


def test_it_runs_in_a_kernel_of_its_own(ours: Runtime) -> None:
    done = ours("run", "--bundle", ours.bundle("uname", "-r").write(), ours.new_id())
    assert done.returncode == 0 and done.stdout.decode().strip() != os.uname().release

"""Further processes in a container by the OCI command line, with runc as the control."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm import oci
from tests.vm.oci import Container, Failed, Runtime, until
from tests.vm.support import Environment


@pytest.fixture(scope="module", params=["casemate", "runc"])
def box(
    request: pytest.FixtureRequest, env: Environment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    """A running container for all of these tests, of each runtime in turn."""
    with oci.runtime(request.param, env, tmp_path_factory.mktemp("exec")) as runtime:
        bundle = runtime.bundle()
        bundle.spec["process"]["env"].append("FROM=container")
        bundle.spec["process"]["cwd"] = "/var"
        yield runtime.create(bundle).start()


def process(*words: str, **rest: Any) -> dict[str, Any]:
    """A process object as engines write it."""
    made = {
        "args": list(words), "cwd": "/", "env": ["PATH=/bin", "HOME=/root"], "terminal": False,
        "user": {"uid": 0, "gid": 0}, "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"],
        "permitted": ["CAP_KILL"]}, "noNewPrivileges": True,
    }  # fmt: skip
    return {**made, **rest}


def by_file(box: Container, made: dict[str, Any], *options: str, **rest: Any) -> subprocess.CompletedProcess[bytes]:
    path = box.runtime.directory / "process.json"
    path.write_text(json.dumps(made))
    return box.runtime("exec", *options, "--process", path, box.id, **rest)


def test_output_input_and_status(box: Container) -> None:
    script = "cat; echo err >&2; exit 3"
    done = box.runtime("exec", box.id, "sh", "-c", script, input=b"in\n")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"in\n", b"err\n")


def test_a_great_deal_of_output_and_input_is_whole(box: Container) -> None:
    data = os.urandom(1 << 20) * 3
    done = box.runtime("exec", box.id, "cat", input=data)
    assert (done.returncode, done.stdout == data) == (0, True)


@pytest.mark.parametrize(("script", "status"), [("kill -9 $$", 137), ("kill -TERM $$", 143), ("exit 255", 255)])
def test_the_status_tells_of_signals(box: Container, script: str, status: int) -> None:
    assert box.runtime("exec", box.id, "sh", "-c", script).returncode == status


def test_it_has_what_the_container_has(box: Container) -> None:
    assert box.sh("pwd; echo $FROM; id -u; grep CapEff /proc/self/status").split() == [
        "/var", "container", "0", "CapEff:", "0000000020000420",
    ]  # fmt: skip


def test_options_change_it(box: Container) -> None:
    script = "id -u; id -g; id -G; pwd; echo $MORE $FROM; grep -E '^(CapBnd|NoNewPrivs)' /proc/self/status"
    options = ("--user=1000:1001", "-g=77", "-g=78", "--cwd=/tmp", "-e=MORE=1", "-e=FROM=x")
    out = box("exec", *options, "--cap=CAP_CHOWN", "--no-new-privs", "sh", "-c", script)
    assert out.split() == [
        "1000", "1001", "1001", "77", "78", "/tmp", "1", "x", "CapBnd:", "0000000020000421", "NoNewPrivs:", "1",
    ]  # fmt: skip


def test_options_after_the_command_are_its_own(box: Container) -> None:
    assert box("exec", "echo", "-d", "--user", "x") == "-d --user x\n"


def test_a_process_object(box: Container) -> None:
    script = "id -u; id -G; pwd; echo $ONLY $FROM;"
    script += " grep -E '^(CapBnd|CapEff|NoNewPrivs)' /proc/self/status; ulimit -n"
    made = process(
        "sh", "-c", script, cwd="/tmp", env=["PATH=/bin", "ONLY=this"],
        user={"uid": 0, "gid": 7, "additionalGids": [8, 9]},
        # The same twice: a Go program, which runc is, raises the one to the other, and may not put it back in time.
        rlimits=[{"type": "RLIMIT_NOFILE", "soft": 222, "hard": 222}],
    )  # fmt: skip
    done = by_file(box, made)
    assert done.stdout.split() == [
        b"0", b"7", b"8", b"9", b"/tmp", b"this", b"CapEff:", b"0000000000000020", b"CapBnd:", b"0000000000000020",
        b"NoNewPrivs:", b"1", b"222",
    ], done  # fmt: skip


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("nope", 'exec: "nope": executable file not found in $PATH'),
        ("/nope", 'exec: "/nope": stat /nope: no such file or directory'),
        ("/etc/passwd", 'exec: "/etc/passwd": permission denied'),
    ],
)
def test_a_command_that_cannot_run(box: Container, command: str, complaint: str) -> None:
    message = box.runtime.fails("exec", box.id, command, status=255)
    assert message == f"exec failed: unable to start container process: {complaint}"


def test_a_directory_that_is_not_there(box: Container) -> None:
    message = box.runtime.fails("exec", "--cwd", "/nope", box.id, "true", status=255)
    assert message.startswith("exec failed: ") and "/nope" in message


def test_detached_it_leaves_a_process_for_the_engine(box: Container) -> None:
    made = process("sh", "-c", "echo out; echo err >&2; read line; exit 6")
    path = box.runtime.directory / "detached.json"
    path.write_text(json.dumps(made))
    reader, writer = os.pipe()
    words = ["exec", "--detach", "--process", str(path)]
    started = box.runtime.monitored(box.id, words, [box.id], stdin=reader)
    os.close(reader)
    started.wait_for("err")
    assert started.wait_for("out") and not started.ended
    assert started.pid in json.loads(box.runtime("ps", "--format", "json", box.id).stdout)
    os.write(writer, b"go\n")
    os.close(writer)
    assert started.wait() == 6
    until(lambda: json.loads(box.runtime("ps", "--format", "json", box.id).stdout) == [box.pid], "gone from ps")


def test_killing_the_host_process_kills_it(box: Container) -> None:
    words = ["exec", "--detach"]
    started = box.runtime.monitored(box.id, words, [box.id, "sh", "-c", "echo $$ >/tmp/victim; exec sleep 7777"])
    until(lambda: "sleep" in box.sh("cat /proc/$(cat /tmp/victim)/comm 2>/dev/null || true"), "it runs")
    os.kill(started.pid, signal.SIGKILL)
    assert started.wait() == 137
    until(lambda: "no" in box.sh("test -e /proc/$(cat /tmp/victim) || echo no"), "it is gone")


def test_signals_to_exec_are_the_processs(box: Container) -> None:
    script = "trap 'echo usr1' USR1; trap 'echo int; exit 8' INT; echo ready; while :; do sleep 0.1; done"
    words = box.runtime.words("exec", box.id, "sh", "-c", script)
    variables = box.runtime.env.variables
    with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=variables) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        running.send_signal(signal.SIGUSR1)
        assert running.stdout.readline() == b"usr1\n"
        running.send_signal(signal.SIGINT)
        assert running.stdout.read() == b"int\n"
        assert running.wait(60) == 8


def test_many_at_once(box: Container) -> None:
    running = [
        subprocess.Popen(
            box.runtime.words("exec", box.id, "sh", "-c", f"echo {number}; exit {number}"), stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL, env=box.runtime.env.variables,
        )
        for number in range(8)
    ]  # fmt: skip
    for number, one in enumerate(running):
        out, _ = one.communicate(timeout=100)
        assert (out, one.returncode) == (b"%d\n" % number, number)


def test_it_sees_the_containers_processes(box: Container) -> None:
    assert "sleep" in box.sh("ps -o pid,comm | awk '$1 == 1 {print $2}'")


def test_an_engine_reads_why_from_the_log(box: Container) -> None:
    with pytest.raises(Failed) as caught:
        box.runtime.monitored(box.id, ["exec", "--detach"], [box.id, "/nope"])
    assert caught.value.status == 255
    assert caught.value.log.endswith("no such file or directory")


def test_files_written_by_the_host_are_seen_by_the_next_one(box: Container) -> None:
    bundle = Path(box.state()["rootfs"])
    for number in range(3):
        (bundle / "tmp/news").write_text(f"news {number}\n")
        (bundle / f"tmp/new{number}").write_text("x")
        assert box.sh(f"cat /tmp/news /tmp/new{number}") == f"news {number}\nx"


def test_one_that_is_paused_takes_none_unless_told_to(box: Container) -> None:
    box("pause")
    try:
        message = box.runtime.fails("exec", box.id, "true", status=255)
        assert message.endswith("cannot exec in a paused container (use --ignore-paused to override)")
    finally:
        box("resume")
    assert box.sh("echo on") == "on"


def test_in_one_that_is_created(either: Runtime) -> None:
    """Engines prepare a container so before it starts."""
    container = either.create(either.bundle("sh", "-c", "cat /tmp/made; sleep 99"))
    container.sh("echo prepared >/tmp/made")
    container.start().wait_for("prepared")


def test_an_exec_ends_before_its_container(either: Runtime) -> None:
    """The engine hears of the exec's end first, also when the container takes it along."""
    container = either.create(either.bundle()).start()
    started = either.monitored(container.id, ["exec", "--detach"], [container.id, "sleep", "5555"])
    container("kill", "KILL")
    assert container.wait() == 137
    assert started.wait() == 137

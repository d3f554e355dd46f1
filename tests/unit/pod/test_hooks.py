"""Hooks run as the runtime specification and runc have them."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from casemate.pod import hooks

STATE = {"ociVersion": "1.0.2", "id": "c", "status": "creating", "pid": 7, "bundle": "/b"}


def shell(script: str, **rest: Any) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script], **rest}


def spec(*scripts: dict[str, Any], point: str = "prestart") -> dict[str, Any]:
    return {"hooks": {point: list(scripts)}}


def test_a_hook_reads_the_state_and_runs_in_order(tmp_path: Path) -> None:
    out = tmp_path / "out"
    hooks.run(spec(shell(f"cat >{out}"), shell(f"echo >>{out}; echo second >>{out}")), "prestart", STATE)
    first, second = out.read_text().splitlines()
    assert (json.loads(first), second) == (STATE, "second")


def test_a_large_state_arrives_whole_at_a_hook_that_does_not_read_it_and_at_one_that_does(tmp_path: Path) -> None:
    state = {**STATE, "annotations": {str(number): "x" * 1000 for number in range(1000)}}
    hooks.run(spec(shell("true"), shell(f"cat >{tmp_path}/out")), "prestart", state)
    assert json.loads((tmp_path / "out").read_text()) == state


def test_only_the_hooks_of_the_point_run(tmp_path: Path) -> None:
    value = {"hooks": {"prestart": [shell(f"touch {tmp_path}/a")], "poststop": [shell(f"touch {tmp_path}/b")]}}
    hooks.run(value, "poststop", STATE)
    assert os.listdir(tmp_path) == ["b"]
    hooks.run({}, "prestart", STATE)
    assert hooks.wanted(value, "createRuntime", "poststop") and not hooks.wanted(value, "createRuntime")
    assert not hooks.wanted({}, "prestart")


@pytest.mark.parametrize(
    ("hook", "complaint"),
    [
        (
            shell("echo out; echo err >&2; exit 3"),
            "error running prestart hook #0: error running hook: exit status 3, stdout: out\n, stderr: err\n",
        ),
        (shell("kill -9 $$"), "error running prestart hook #0: error running hook: signal: killed, stdout: , stderr: "),
        ({"path": "/nope"}, "error running prestart hook #0: fork/exec /nope: no such file or directory"),
        ({"path": "/etc"}, "error running prestart hook #0: fork/exec /etc: permission denied"),
        (shell("sleep 60", timeout=1), "error running prestart hook #0: hook ran past specified timeout of 1.0s"),
    ],
)
def test_a_failure_is_told_in_runcs_words_and_stops_the_others(
    tmp_path: Path, hook: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(hooks.HookFailed) as caught:
        hooks.run(spec(hook, shell(f"touch {tmp_path}/more")), "prestart", STATE)
    assert str(caught.value) == complaint
    assert os.listdir(tmp_path) == []


def test_a_hook_that_took_too_long_is_killed(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(hooks.HookFailed):
        hooks.run(spec(shell(f"echo $$ >{tmp_path}/pid; exec sleep 60", timeout=1)), "prestart", STATE)
    assert time.monotonic() - began < 30
    assert not os.path.exists(f"/proc/{(tmp_path / 'pid').read_text().strip()}")


def test_what_a_hook_leaves_running_holds_nobody_up() -> None:
    began = time.monotonic()
    hooks.run(spec(shell("sleep 30 & ")), "prestart", STATE)
    assert time.monotonic() - began < 20


def test_all_of_them_run_where_failing_is_allowed(tmp_path: Path) -> None:
    value = spec(shell("exit 1"), shell(f"touch {tmp_path}/ran"), {"path": "/nope"}, point="poststop")
    problems = hooks.run_all(value, "poststop", STATE)
    assert [problem.split(":")[0] for problem in problems] == [
        "error running poststop hook #0", "error running poststop hook #2",
    ]  # fmt: skip
    assert os.listdir(tmp_path) == ["ran"]


def test_the_environment_is_the_hooks_or_without_one_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THE_RUNTIME", "1")
    script = f"env >{tmp_path}/$NAME"
    hooks.run(spec(shell(script, env=["NAME=own", "A=b=c"]), shell(f"env >{tmp_path}/ours")), "prestart", STATE)
    own = (tmp_path / "own").read_text()
    assert "A=b=c" in own and "OF_THE_RUNTIME" not in own
    assert "OF_THE_RUNTIME=1" in (tmp_path / "ours").read_text()


def test_the_first_argument_is_the_programs_name() -> None:
    hook = {"path": "/bin/sh", "args": ["some-name", "-c", 'test "$0" = some-name']}
    hooks.run(spec(hook), "prestart", STATE)


def test_a_hook_has_the_usual_signals_and_no_descriptors_of_ours() -> None:
    reader, writer = os.pipe()
    os.set_inheritable(reader, False)
    try:
        script = f"test ! -e /proc/$$/fd/{reader} && grep -q '^SigBlk:.0*$' /proc/self/status"
        hooks.run(spec(shell(script)), "prestart", STATE)
    finally:
        os.close(reader)
        os.close(writer)


def test_hooks_may_run_beside_other_threads() -> None:
    problems: list[BaseException] = []

    def many() -> None:
        try:
            for _ in range(5):
                hooks.run(spec(shell("exit 0")), "prestart", STATE)
        except BaseException as error:  # noqa: BLE001 - carried to the test
            problems.append(error)

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_the_state_object_has_what_the_specification_wants() -> None:
    value = {"ociVersion": "1.0.1", "annotations": {"a": "b"}}
    assert hooks.state(value, "c", "stopped", 0, "/b") == {
        "ociVersion": "1.0.1", "id": "c", "status": "stopped", "bundle": "/b", "annotations": {"a": "b"},
    }  # fmt: skip
    assert hooks.state({"ociVersion": "1.0.2"}, "c", "running", 7, "/b")["pid"] == 7


@pytest.mark.parametrize("at_once", [False, True])
def test_a_hook_ends_with_whoever_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
    """As a signal does to the command that makes a container."""
    runs = tmp_path / "runs"
    os.mkfifo(runs)
    found: list[int] = []
    spawn = os.posix_spawn

    class Interrupted(KeyboardInterrupt):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    def watched(*arguments: Any, **named: Any) -> int:
        found.append(spawn(*arguments, **named))
        if at_once:
            signal.raise_signal(signal.SIGTERM)
        return found[0]

    def told() -> None:
        runs.read_text()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    monkeypatch.setattr(os, "posix_spawn", watched)
    thread = threading.Thread(target=told)
    before = signal.signal(signal.SIGTERM, interrupt)
    script = "exec sleep 1000" if at_once else f"echo >{runs}; exec sleep 1000"
    try:
        if not at_once:
            thread.start()
        with pytest.raises(Interrupted):
            hooks.run(spec(shell(script)), "prestart", STATE)
    finally:
        if not at_once:
            thread.join()
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(ProcessLookupError):
        os.kill(found[0], 0)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {*hooks.ENDING}


def test_a_variable_without_a_name_fails_its_hook_and_no_other(tmp_path: Path) -> None:
    value = spec(shell("true", env=["=x"]), shell(f"touch {tmp_path}/ran"), point="poststop")
    assert len(hooks.run_all(value, "poststop", STATE)) == 1
    assert os.listdir(tmp_path) == ["ran"]

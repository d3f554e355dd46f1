"""kill -9 of anybody at any moment: the engine can remove the container, and nothing is left on the host."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.vm.oci import Runtime, left, until

VICTIMS = ("command", "stand-in", "keeper", "machine", "file server")
MOMENTS = ("create", "start", "exec", "kill", "delete", "rest")
SLOWEST = 6.0
"""Seconds after which a command on an idle host is over, mostly."""


def _record(runtime: Runtime, id: str) -> dict[str, object]:
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, object] = json.loads((runtime.root / id / "record.json").read_text())
        return found
    return {}


def _children(parent: int, name: str) -> list[int]:
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):
                comm, _, rest = (directory / "stat").read_text().partition("(")[2].rpartition(")")
                if comm.startswith(name) and rest.split()[1] == str(parent):
                    found.append(int(directory.name))
    return found


def _victim(runtime: Runtime, id: str, which: str, command: subprocess.Popen[bytes] | None) -> list[int]:
    """The processes that a victim's name stands for at this moment, if there are any."""
    if which == "command":
        return [command.pid] if command is not None and command.poll() is None else []
    record = _record(runtime, id)
    if which == "stand-in":
        pid = record.get("pid")
        return [pid] if isinstance(pid, int) and pid else []
    with contextlib.suppress(OSError, ValueError):
        pod = json.loads((runtime.root / ".pods" / str(record.get("pod")) / "pod.json").read_text())
        keeper = int(pod["keeper"])
        names = {"machine": "qemu", "file server": "virtiofsd"}
        return [keeper] if which == "keeper" else _children(keeper, names[which])
    return []


def _one(runtime: Runtime, rng: random.Random) -> str:
    """Bring a container to some moment of its life, kill somebody, and remove it; what was done."""
    which, moment = rng.choice(VICTIMS), rng.choice(MOMENTS)
    delay = rng.random() ** 2 * SLOWEST
    id = runtime.new_id()
    bundle = runtime.bundle("sh", "-c", "trap 'exit 1' TERM; while :; do sleep 0.1; done")
    bundle.spec["linux"]["cgroupsPath"] = f"/{id}"
    steps = {
        "create": ["create", "--bundle", str(bundle.write()), id], "start": ["start", id],
        "exec": ["exec", id, "sh", "-c", "sleep 0.3"], "kill": ["kill", id, "TERM"], "delete": ["delete", "-f", id],
    }  # fmt: skip
    done = f"{which} {delay:.2f} s after {moment}"
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for step in ("create", "start", "exec", "kill", "delete"):
        if step == moment:
            break
        if moment == "rest" and step == "kill":
            break
        subprocess.run(runtime.words(*steps[step]), env=runtime.env.variables, timeout=200, check=False, **quiet)  # type: ignore[call-overload]
    command = None
    if moment in steps:
        command = subprocess.Popen(runtime.words(*steps[moment]), env=runtime.env.variables, **quiet)  # type: ignore[call-overload]
    time.sleep(delay)
    victims = _victim(runtime, id, which, command)
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if not victims:
        done += " (was not there)"
    # An engine waits for the command that it has started, and then removes what there may be.
    if command is not None:
        command.wait(200)
    removed = runtime("delete", "--force", id, timeout=200)
    assert removed.returncode == 0, (done, removed.stderr)
    assert runtime("state", id).returncode == 1, done
    until(lambda: not left(runtime), f"{done}: left {left(runtime)}", 30)
    return done


def _many(runtime: Runtime, count: int) -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    history: list[str] = []
    for number in range(count):
        try:
            history.append(_one(runtime, rng))
        except BaseException as error:
            raise AssertionError(f"seed {seed}, kill {number}, after {history[-3:]}: {error}") from error
    print("\n".join(history))


def test_anybody_at_any_moment(ours: Runtime) -> None:
    _many(ours, 8)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_anybody_at_200_moments(ours: Runtime) -> None:
    _many(ours, 200)

"""Whoever dies: the engine hears of it, can remove the container, and nothing stays on the host."""

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

from tests.kills import control_groups, processes
from tests.vm.oci import Container, Runtime, until

SEED = random.randrange(1 << 32)


def pod(container: Container) -> Path:
    record = json.loads((container.runtime.root / container.id / "record.json").read_text())
    return container.runtime.root / ".pods" / str(record["pod"])


def keeper(container: Container) -> int:
    return int(json.loads((pod(container) / "pod.json").read_text())["keeper"])


def helpers(container: Container) -> dict[str, list[int]]:
    """The keeper's children by name."""
    found: dict[str, list[int]] = {}
    parent = keeper(container)
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                fields = (directory / "stat").read_text()
            except OSError:
                continue
            name, _, rest = fields.partition("(")[2].rpartition(")")
            if rest.split()[1] == str(parent):
                found.setdefault(name, []).append(int(directory.name))
    return found


def machine(container: Container) -> int:
    """Its QEMU: a child of the keeper's, or a twin, which is none; it is where the file servers are."""
    server = next(pid for name, pids in helpers(container).items() if name.startswith("virtiofsd") for pid in pids)
    groups = control_groups(server)
    everybody = [(one.pid, one.words) for one in processes()]
    [found] = [pid for pid, words in everybody if "qemu-system" in words and control_groups(pid) == groups]
    return found


def gone(container: Container) -> None:
    """The engine finds it stopped, and removes it."""
    until(lambda: container.state()["status"] == "stopped", "stopped")
    container("delete")


def test_the_keeper(ours: Runtime) -> None:
    container = ours.create(ours.bundle()).start()
    os.kill(keeper(container), signal.SIGKILL)
    assert container.wait() == 255
    assert container.state()["status"] == "stopped"
    assert ours.fails("kill", container.id, "KILL") == "container not running"
    gone(container)


def test_the_machine(ours: Runtime) -> None:
    container = ours.create(ours.bundle()).start()
    os.kill(machine(container), signal.SIGKILL)
    assert container.wait() != 0
    gone(container)


def test_the_file_server(ours: Runtime) -> None:
    container = ours.create(ours.bundle()).start()
    servers = [pid for name, pids in helpers(container).items() if name.startswith("virtiofsd") for pid in pids]
    for pid in servers:
        with contextlib.suppress(ProcessLookupError):  # the inner process of one ends with the outer one
            os.kill(pid, signal.SIGKILL)
    assert container.wait() != 0
    gone(container)


def test_the_stand_in_of_a_created_one(ours: Runtime) -> None:
    container = ours.create(ours.bundle())
    os.kill(container.pid, signal.SIGKILL)
    assert container.wait() == 137
    gone(container)


def test_the_command_that_makes_it(ours: Runtime) -> None:
    """At moments all over its course. Whatever there is then, removing by force leaves nothing."""
    rng = random.Random(SEED)
    for _ in range(6):
        id = ours.new_id()
        bundle = ours.bundle()
        bundle.spec["linux"]["cgroupsPath"] = f"/{id}"
        words = ours.words("create", "--bundle", bundle.write(), id)
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(words, env=ours.env.variables, **streams) as maker:  # type: ignore[call-overload]
            time.sleep(rng.choice([0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 4.0]) * (1 + rng.random()))
            maker.kill()
            maker.wait()
        assert ours("delete", "--force", id).returncode == 0, SEED
        assert ours.fails("state", id) == "container does not exist"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_create_that_is_told_to_stop_undoes_itself(ours: Runtime, number: int) -> None:
    id = ours.new_id()
    bundle = ours.bundle()
    bundle.spec["hooks"] = {"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", "touch ready; exec sleep 60"]}]}
    with subprocess.Popen(ours.words("create", "--bundle", bundle.write(), id), env=ours.env.variables) as maker:
        until((bundle.path / "ready").exists, "the hook runs")
        maker.send_signal(number)
        assert maker.wait(60) == 128 + number
    assert ours.fails("state", id) == "container does not exist"


def test_a_machine_that_hangs(ours: Runtime) -> None:
    """It is ended by force, and nobody else is held up."""
    bundle = ours.bundle()
    first = ours.create(bundle).start()
    second = ours.create(ours.bundle()).start()
    os.kill(machine(first), signal.SIGSTOP)  # it does not answer any more
    assert ours("delete", "--force", first.id, timeout=110).returncode == 0
    assert first.wait() == 137
    assert second.sh("echo on") == "on"


def test_a_record_that_is_damaged_can_be_deleted_by_force(ours: Runtime) -> None:
    container = ours.create(ours.bundle()).start()
    (ours.root / container.id / "record.json").write_text("{")
    assert ours("state", container.id).returncode == 1
    assert ours("list").returncode == 0
    assert ours("delete", "--force", container.id).returncode == 0
    container.wait()


def test_the_bundles_directory_has_gone(ours: Runtime) -> None:
    bundle = ours.bundle()
    container = ours.create(bundle).start()
    subprocess.run(["rm", "-rf", str(bundle.path)], check=True)
    container("kill", "KILL")
    container.wait()
    gone(container)


def test_two_who_delete_at_once(ours: Runtime) -> None:
    container = ours.create(ours.bundle()).start()
    words = ours.words("delete", "--force", container.id)
    both = [subprocess.Popen(words, env=ours.env.variables, stderr=subprocess.PIPE) for _ in range(2)]
    for one in both:
        _, said = one.communicate(timeout=110)
        assert one.returncode == 0 or b"does not exist" in said
    assert ours.fails("state", container.id) == "container does not exist"


def test_many_at_once(ours: Runtime) -> None:
    bundles = [ours.bundle("sh", "-c", f"exit {number}") for number in range(5)]
    for bundle in bundles:
        bundle.spec["linux"]["cgroupsPath"] = f"/{ours.new_id()}"
    running = [
        subprocess.Popen(
            ours.words("run", "--bundle", bundle.write(), ours.new_id()), env=ours.env.variables,
            stdin=subprocess.DEVNULL,
        )
        for bundle in bundles
    ]  # fmt: skip
    assert [process.wait(280) for process in running] == [0, 1, 2, 3, 4]

"""Ending keepers and cleaning up after them: the right process, all steps, the truth on a full disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.errors import HostError, NetworkError
from casemate.host import cgroups, network, uids
from casemate.keeper import reap
from casemate.keeper.model import ContainerState
from casemate.keeper.store import Container, Store
from tests.unit.keeper.helpers import make_config, make_spec
from tests.unit.keeper.test_store import release


@pytest.fixture
def made(tmp_path: Path) -> Container:
    return Store(make_config(tmp_path)).create(make_spec("one"))


@pytest.fixture
def impostor(made: Container) -> Iterator[subprocess.Popen[bytes]]:
    """Some other program that was given the container's directory as an argument."""
    process = subprocess.Popen(["tail", "-f", "/dev/null", str(made.path)], stderr=subprocess.DEVNULL)
    yield process
    process.kill()
    process.wait()


def keeper_process(container: Container) -> subprocess.Popen[bytes]:
    """A process that looks like the container's keeper."""
    script = "import sys; print('up', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        ["python3", "-m", "casemate.keeper", str(container.path), "3", "4"],
        executable=sys.executable,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": _package(container.path.parent.parent, script)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


def _package(directory: Path, script: str) -> str:
    package = directory / "fake" / "casemate" / "keeper"
    package.mkdir(parents=True, exist_ok=True)
    for path in (package, package.parent):
        (path / "__init__.py").touch()
    (package / "__main__.py").write_text(script)
    return str(directory / "fake")


def test_only_a_keeper_is_taken_for_the_keeper(made: Container, impostor: subprocess.Popen[bytes]) -> None:
    made.write_state(ContainerState(status="running", pid=impostor.pid))
    assert reap.keeper_pidfd(made) is None
    reap.end_keeper(made)
    assert impostor.poll() is None
    release(made)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a program as another user")
def test_another_users_process_is_not_taken_for_the_keeper(made: Container, tmp_path: Path) -> None:
    """Everybody sees a keeper's command line, and can start a program with the same."""
    place = tmp_path / "of-another"
    place.mkdir(mode=0o755)
    (place / "casemate.keeper").write_text("echo up; read word\n")
    (place / "casemate.keeper").chmod(0o644)
    process = subprocess.Popen(
        ["python3", "-m", "casemate.keeper", str(made.path)], executable="/bin/sh", cwd=place, user=65534, group=65534,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        assert reap.keeper_pidfd(made) is None
        made.write_state(ContainerState(status="running", pid=process.pid))
        assert reap.keeper_pidfd(made) is None
    finally:
        process.kill()
        process.communicate()
    release(made)


@pytest.mark.parametrize("state", ["without a pid", "damaged"])
def test_a_keeper_is_found_without_the_state(made: Container, state: str) -> None:
    if state == "damaged":
        (made.path / "state.json").write_text("[")
    keeper = keeper_process(made)
    try:
        reap.end_keeper(made)
        assert keeper.wait(10) == -9
    finally:
        keeper.kill()
        keeper.communicate()
    release(made)


def test_full_disk_does_not_hide_a_death(made: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reap, "clean_host", lambda container: None)
    made.write_state(ContainerState(status="running", pid=1, started=5.0))
    release(made)

    def full(self: Container, state: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Container, "write_state", full)
    state = Container(made.config, made.path).state()
    assert (state.status, state.exit_code) == ("exited", reap.DIED_STATUS)


@pytest.mark.parametrize("remove", [False, True])
def test_a_host_that_is_not_cleaned_does_not_hide_a_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remove: bool
) -> None:
    def refuse(container: object) -> None:
        raise HostError("the packet filter refused")

    monkeypatch.setattr(reap, "clean_host", refuse)
    store = Store(make_config(tmp_path))
    made = store.create(make_spec("one", remove=remove))
    release(made)
    assert [container.id for container in store.list()] == [made.id]
    state = store.get("one").state()
    assert state.status == "exited"
    assert "packet filter" in state.error


def test_a_damaged_specification_does_not_hide_a_death(made: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reap, "clean_host", lambda container: None)
    made.write_state(ContainerState(status="running", pid=1))
    (made.path / "config.json").write_text("{")
    release(made)
    assert Container(made.config, made.path).state().status == "exited"


def test_every_step_of_cleaning_is_tried(made: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def refuse(*arguments: object) -> None:
        raise NetworkError("the packet filter refused")

    monkeypatch.setattr(cgroups, "find", lambda name: cgroups.Cgroup(name))
    monkeypatch.setattr(network, "teardown", refuse)
    monkeypatch.setattr(uids, "release", lambda identifier, config: done.append("uid"))
    (made.run_path / "share" / "rootfs").mkdir(parents=True)
    (made.run_path / "control.sock").touch()
    with pytest.raises(HostError, match="packet filter"):
        reap.clean_host(made)
    assert done == ["uid"]
    assert not made.run_path.exists()
    release(made)


def test_a_user_id_stays_taken_while_its_processes_live(made: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Stuck(cgroups.Cgroup):
        def kill(self, timeout: float = 0) -> None:
            raise HostError("process 5 does not die")

    monkeypatch.setattr(cgroups, "find", lambda name: Stuck(name))
    monkeypatch.setattr(network, "teardown", lambda *arguments: None)
    monkeypatch.setattr(uids, "release", lambda identifier, config: done.append("uid"))
    with pytest.raises(HostError, match="does not die"):
        reap.clean_host(made)
    assert done == []
    release(made)


def test_leaving_a_group_whose_root_takes_no_processes(tmp_path: Path) -> None:
    """Version 2 in a container: its root has groups below it, so it may not hold processes itself."""
    group = tmp_path / "casemate" / ("a" * 64)
    group.mkdir(parents=True)
    (tmp_path / "cgroup.procs").mkdir()  # refuses to be written to
    procs = group / "cgroup.procs"
    procs.write_text(f"{os.getpid()}\n")
    reap.leave((procs,))
    assert (tmp_path / "casemate" / "ending" / "cgroup.procs").read_text() == str(os.getpid())

"""Containers on disk: names, locks, truth."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from casemate import jsonfile
from casemate.errors import HostError, NameInUse, NoSuchContainer, StateError, StillRunning
from casemate.keeper import reap
from casemate.keeper.model import ContainerSpec, ContainerState
from casemate.keeper.store import Container, Store
from tests.unit.keeper.helpers import make_config, make_spec


@pytest.fixture(autouse=True)
def no_host(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    cleaned: list[str] = []
    monkeypatch.setattr(reap, "clean_host", lambda container: cleaned.append(container.id))
    return cleaned


def release(container: Container) -> None:
    """End the keeper that a test pretends to be."""
    assert container.lock_fd is not None
    os.close(container.lock_fd)
    container.lock_fd = None


def test_spec_survives_json(tmp_path: Path) -> None:
    from casemate.host.ports import PortMap

    spec = make_spec(ports=(PortMap("0.0.0.0", 80, 8080, "tcp"),), command=("sh", "-c", "x"), dns=("10.0.0.1",))
    path = tmp_path / "spec.json"
    jsonfile.write(path, spec.to_json())
    assert ContainerSpec.from_json(jsonfile.read(path)) == spec


@pytest.mark.parametrize("damage", [{"extra": 1}, {"id": "short"}, {"ports": [1]}, {"id": 5}])
def test_damaged_spec_is_told(damage: dict[str, object]) -> None:
    with pytest.raises(StateError):
        ContainerSpec.from_json({**make_spec().to_json(), **damage})


def test_state_of_a_newer_version_is_read() -> None:
    state = ContainerState.from_json({"status": "exited", "exit_code": 3, "invented_later": True})
    assert state.exit_code == 3
    with pytest.raises(StateError):
        ContainerState.from_json({"status": "confused"})


def test_get_by_name_id_and_prefix(tmp_path: Path) -> None:
    store = Store(make_config(tmp_path))
    one, two = store.create(make_spec("one")), store.create(make_spec("two"))
    assert store.get("one").id == one.id
    assert store.get(two.id).id == two.id
    assert store.get(two.id[:10]).id == two.id
    for bad in ("", "three", "..", "a/b", "../names/one", ".lock"):
        with pytest.raises(NoSuchContainer):
            store.get(bad)


def test_ambiguous_prefix_is_refused(tmp_path: Path) -> None:
    store = Store(make_config(tmp_path))
    for last in "ab":
        store.create(make_spec(last, id="c" * 63 + last))
    with pytest.raises(NoSuchContainer, match="2 containers"):
        store.get("ccc")


def test_used_name_is_refused_and_free_again(tmp_path: Path) -> None:
    store = Store(make_config(tmp_path))
    first = store.create(make_spec("one"))
    with pytest.raises(NameInUse, match="used by container"):
        store.create(make_spec("one"))
    assert len(list((tmp_path / "root/containers").glob("[0-9a-f]*"))) == 1
    release(first)
    store.get("one").remove()
    release(store.create(make_spec("one")))


def test_name_of_a_lost_container_is_free(tmp_path: Path) -> None:
    store = Store(make_config(tmp_path))
    with store.locked():
        os.symlink("d" * 64, store.names / "ghost")
    assert store.create(make_spec("ghost")).name == "ghost"


def test_dead_keeper_is_found(tmp_path: Path, no_host: list[str]) -> None:
    store = Store(make_config(tmp_path))
    made = store.create(make_spec("one"))
    made.write_state(ContainerState(status="running", pid=1, started=5.0))
    seen = store.get("one")
    assert seen.state().status == "running"  # the lock is held
    release(made)
    state = seen.state()
    assert (state.status, state.exit_code, state.pid) == ("exited", reap.DIED_STATUS, None)
    assert "died while" in state.error
    assert no_host == [made.id]
    assert seen.state() == state
    assert no_host == [made.id]


def test_dead_keeper_with_rm_takes_the_container(tmp_path: Path) -> None:
    store = Store(make_config(tmp_path))
    made = store.create(make_spec("one", remove=True))
    release(made)
    assert store.list() == []
    assert not made.path.exists()
    assert os.listdir(store.names) == []


def test_remove_refuses_what_runs(tmp_path: Path) -> None:
    store = Store(make_config(tmp_path))
    made = store.create(make_spec("one"))
    made.write_state(ContainerState(status="running"))
    with pytest.raises(StillRunning, match="stop it first"):
        store.get("one").remove()
    release(made)


def test_remove_takes_what_is_deeper_than_python_recurses(tmp_path: Path) -> None:
    store = Store(make_config(tmp_path))
    made = store.create(make_spec("one"))
    directory = os.open(made.path / "upper", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=directory)
        deeper = os.open("d", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = deeper
    os.close(directory)
    release(made)
    store.get("one").remove()
    assert not made.path.exists()
    assert [name for name in os.listdir(store.path) if name != ".lock"] == []


def test_damaged_container_is_listed_and_removed(tmp_path: Path) -> None:
    store = Store(make_config(tmp_path))
    made = store.create(make_spec("one"))
    release(made)
    (made.path / "config.json").write_text("{")
    (made.path / "state.json").write_text("[]")
    assert [container.id for container in store.list()] == [made.id]
    store.get(made.id).remove(force=True)
    assert store.list() == []


def test_removal_cut_short_is_swept(tmp_path: Path) -> None:
    store = Store(make_config(tmp_path))
    release(store.create(make_spec("one")))
    doomed = store.path / f".{'e' * 64}.removed"
    (doomed / "upper").mkdir(parents=True)
    assert len(store.list()) == 1
    store.sweep()
    assert not doomed.exists()


def test_in_use(tmp_path: Path) -> None:
    store = Store(make_config(tmp_path))
    store.create(make_spec("one", image_id="f" * 64))
    assert store.in_use("f" * 64) == ["one"]
    assert store.in_use("a" * 64) == []


def test_creation_cut_short_is_swept(tmp_path: Path) -> None:
    store = Store(make_config(tmp_path))
    release(store.create(make_spec("one")))
    bare, half = store.path / ("a" * 64), store.path / ("b" * 64)
    bare.mkdir()
    for name in ("upper", "work"):
        (half / name).mkdir(parents=True)
    (half / "lock").touch()
    jsonfile.write(half / "config.json", make_spec("half", id="b" * 64).to_json())
    written = store.path / ("c" * 64)
    (written / "upper" / "etc").mkdir(parents=True)  # its state was lost some other way: nobody's to throw away
    assert [container.name for container in store.list()] == ["one"]
    assert not bare.exists() and not half.exists()
    assert (written / "upper" / "etc").exists()
    assert [name for name in os.listdir(store.path) if name.endswith(".removed")] == []


def test_listing_sweeps_but_not_what_another_is_removing(tmp_path: Path) -> None:
    store = Store(make_config(tmp_path))
    doomed = store.path / f".{'e' * 64}.removed"
    (doomed / "upper").mkdir(parents=True)
    remover = os.open(doomed, os.O_RDONLY)
    fcntl.flock(remover, fcntl.LOCK_EX)
    store.list()
    assert doomed.exists()
    os.close(remover)
    store.list()
    assert not doomed.exists()


def test_a_used_id_does_not_cost_its_owner(tmp_path: Path) -> None:
    store = Store(make_config(tmp_path))
    made = store.create(make_spec("one"))
    (made.path / "upper" / "mine").touch()
    with pytest.raises(HostError):
        store.create(make_spec("two", id=made.id))
    assert (made.path / "upper" / "mine").exists()
    release(made)


@pytest.mark.parametrize(
    ("remove", "kind", "keeps"),
    [(True, "tmpfs", False), (True, "bind", True), (False, "tmpfs", True)],
)
def test_what_outlives_a_container(remove: bool, kind: str, keeps: bool) -> None:
    mounts = [{"destination": "/proc", "type": "proc"}, {"destination": "/data", "type": kind}]
    assert make_spec(remove=remove, oci={"mounts": mounts}).keeps_files() is keeps

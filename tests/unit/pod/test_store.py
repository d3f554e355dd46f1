"""Records of engines' containers: who may write them, what is true of them, and their removal at every point."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.config import Config
from casemate.errors import HostError, NameInUse, NoSuchContainer, StateError, StillRunning, UsageError
from casemate.host import processes, uids
from casemate.pod import reap
from casemate.pod.model import Record, check_id, guest_name
from casemate.pod.store import MAX_ANNOTATIONS, Pod, PodStore
from casemate.runtime_cli.state import state
from tests.unit.pod.keepers import SPEC, Peer


@pytest.fixture
def store(tmp_path: Path) -> PodStore:
    return PodStore(Config(root=tmp_path / "root", run=tmp_path / "run", stop_timeout=1), tmp_path / "rt")


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


@pytest.fixture
def gone() -> tuple[int, int]:
    """A process that is no more: number and start time."""
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
    start = processes.start_time(child.pid)
    assert start is not None and processes.alive(child.pid, start)
    child.communicate()
    return child.pid, start


def put(store: PodStore, id: str, pod: str = "", **changes: Any) -> Record:
    """A container on record; ``changes`` are written without being checked, as whoever died had written them."""
    record = replace(store.create_record(Record(id, pod, "/bundle"), SPEC), **changes)
    store.write(record)
    return record


def made(store: PodStore, status: str, peer: Peer | None = None) -> tuple[Pod, Record]:
    """A sandbox with a keeper (its lock is held here) and a container in it."""
    pod = store.create_pod()
    pod.run_path.mkdir(parents=True)
    who = {"pid": peer.pid, "pid_start": peer.start} if peer is not None else {}
    return pod, put(store, "one", pod.id, status=status, **who)


def end(pod: Pod) -> None:
    """The keeper dies."""
    assert pod.lock_fd is not None
    os.close(pod.lock_fd)
    pod.lock_fd = None


@pytest.mark.parametrize("id", ["a", "A1_+.-", ".hidden", "x" * 200, "-x", "..."])
def test_ids_are_what_runc_allows(id: str) -> None:
    assert check_id(id) == id


@pytest.mark.parametrize("id", ["", ".", "..", ".pods", "a/b", "a b", "ä", "x" * 201, "a\n", "a\0", "../x", "/x"])
def test_other_ids_are_refused(store: PodStore, id: str) -> None:
    with pytest.raises(UsageError, match="invalid container id"):
        check_id(id)
    with pytest.raises(UsageError):
        store.get(id)
    with pytest.raises(UsageError):
        store.remove(id, force=True)


def test_the_guest_gets_names_that_it_takes() -> None:
    assert guest_name("web-1") == "web-1" and guest_name("0" * 64) == "0" * 64
    names = {guest_name(id) for id in ("a+b", ".a", "-a", "_a", "x" * 65)}
    assert len(names) == 5 and all(len(name) == 64 and name.isalnum() for name in names)


def test_a_container_is_found_as_it_was_put_down(store: PodStore) -> None:
    record = store.create_record(Record("one", "", "/b", annotations={"a": "b"}, netns=(1, 2), cgroups=("/x",)), SPEC)
    assert store.get("one") == record
    assert (record.creator, record.status) == (os.getpid(), "creating")
    assert record.creator_start == processes.start_time(os.getpid())
    assert store.spec("one") == SPEC
    assert [found.id for found in store.list()] == ["one"]
    assert (store.root / "one").stat().st_mode & 0o777 == 0o700
    with pytest.raises(NoSuchContainer, match='container "two" does not exist'):
        store.get("two")
    with pytest.raises(NoSuchContainer):
        store.spec("two")


def test_nobody_else_may_write_where_records_are(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = PodStore(Config(root=tmp_path / "root", run=tmp_path / "run"), tmp_path / "a" / "b")
        pod = store.create_pod()
        store.create_record(Record("one", pod.id, "/bundle"), {})
    finally:
        os.umask(before)
    for place in (tmp_path / "a", store.root, store.pods_path, pod.path, store.path("one")):
        assert not place.stat().st_mode & 0o022, place
    for file in (*store.path("one").iterdir(), *pod.path.iterdir()):
        assert not file.stat().st_mode & 0o077, file


def test_an_id_is_given_once_even_when_two_ask_at_once(store: PodStore) -> None:
    won: list[int] = []
    barrier = threading.Barrier(8)

    def ask(number: int) -> None:
        barrier.wait()
        try:
            store.create_record(Record("one", "", f"/{number}"), SPEC)
            won.append(number)
        except NameInUse:
            pass

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and store.get("one").bundle == f"/{won[0]}"
    assert os.listdir(store.pods_path) == []


def test_annotations_are_bounded(store: PodStore) -> None:
    with pytest.raises(UsageError, match="annotations"):
        store.create_record(Record("one", "", "/b", annotations={"a": "x" * MAX_ANNOTATIONS}), SPEC)
    assert store.ids() == []
    store.create_record(Record("one", "", "/b", annotations={"a": "x" * (MAX_ANNOTATIONS - 20)}), SPEC)
    assert len(store.get("one").annotations["a"]) == MAX_ANNOTATIONS - 20


def test_a_full_disk_leaves_no_half_container(store: PodStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("casemate.jsonfile.write", full)
    with pytest.raises(HostError, match="No space left"):
        store.create_record(Record("one", "", "/b"), SPEC)
    assert os.listdir(store.root) == [".pods"] and os.listdir(store.pods_path) == []
    monkeypatch.setattr("fcntl.flock", full)
    with pytest.raises(HostError, match="No space left"):
        store.create_pod()
    assert os.listdir(store.pods_path) == []


@pytest.mark.parametrize("status", ["created", "running", "paused"])
def test_a_container_without_its_keeper_has_stopped(store: PodStore, peer: Peer, status: str) -> None:
    pod, record = made(store, status, peer)
    (pod.run_path / "control.sock").touch()
    (pod.run_path / "share" / "one").mkdir(parents=True)
    (pod.run_path / "volumes").mkdir()
    uids.lease(pod.id, store.config)
    assert store.get("one") == record
    end(pod)
    found = store.get("one")
    assert (found.status, found.exit_code) == ("stopped", 137)
    assert "the keeper died" in found.error and found.finished is not None
    assert peer.wait() == -9
    assert not pod.run_path.exists()
    assert os.listdir(store.config.run / "uids") == ["owners"] and os.listdir(store.config.run / "uids/owners") == []
    assert store.get("one") == found


def test_all_containers_of_a_dead_keeper_have_stopped(store: PodStore) -> None:
    pod, _ = made(store, "running")
    put(store, "two", pod.id, status="created")
    put(store, "done", pod.id, status="stopped", exit_code=3)
    end(pod)
    assert store.get("two").status == "stopped"
    assert {record.id: (record.status, record.exit_code) for record in store.list()} == {
        "one": ("stopped", 137), "two": ("stopped", 137), "done": ("stopped", 3),
    }  # fmt: skip


def test_a_process_that_got_the_number_of_a_stand_in_is_left_alone(store: PodStore, peer: Peer) -> None:
    pod, record = made(store, "running", peer)
    store.write(replace(record, pid_start=peer.start - 1))
    end(pod)
    assert store.get("one").status == "stopped"
    assert peer.process.poll() is None


def test_what_nobody_makes_any_more_has_stopped(store: PodStore, gone: tuple[int, int], peer: Peer) -> None:
    put(store, "one", creator=gone[0], creator_start=gone[1], pid=peer.pid, pid_start=peer.start)
    assert store.get("one").status == "stopped"
    assert peer.wait() == -9
    # Its maker died before the keeper of others had heard of it.
    pod = store.create_pod()
    put(store, "two", pod.id, creator=gone[0], creator_start=gone[1])
    assert store.get("two").status == "stopped" and store.get("two").error == "whoever made it died"
    end(pod)


def test_a_record_that_cannot_be_written_is_true_the_next_time(
    store: PodStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod, _ = made(store, "running")
    end(pod)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("casemate.jsonfile.write", full)
    assert store.get("one").status == "stopped"
    assert store.stored("one").status == "running"
    monkeypatch.undo()
    assert store.get("one").status == store.stored("one").status == "stopped"


def test_damaged_records_are_told_and_removed_by_force(store: PodStore) -> None:
    damaged = {
        "one": "{", "two": '{"status": "odd"}', "three": '{"id": "else", "pod": "", "bundle": ""}',
        "five": '{"id": "five", "pod": "", "bundle": "", "created": "today"}', "six": "[" * 100_000,
    }  # fmt: skip
    for id, text in damaged.items():
        put(store, id)
        (store.root / id / "record.json").write_text(text)
    put(store, "four")
    (store.root / "four" / "record.json").unlink()
    ids = [*damaged, "four"]
    for id in ids:
        with pytest.raises(StateError):
            store.get(id)
        with pytest.raises(StateError):
            store.remove(id)
    assert [(record.id, record.status) for record in store.list()] == [
        (id, "stopped") for id in sorted(ids)
    ]
    for id in ids:
        store.remove(id, force=True)
    assert store.ids() == []


_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([item.name for item in fields(Record)]), _anything))
def test_whatever_is_in_a_record_it_can_be_told_or_is_damaged(changes: dict[str, Any]) -> None:
    whole = Record("one", "p", "/bundle", created=1.5, annotations={"a": "b"}, netns=(4, 5), cgroups=("/x",)).to_json()
    value = json.loads(json.dumps({**whole, **changes}))
    try:
        record = Record.from_json(value)
    except StateError:
        assert changes
        return
    assert json.loads(json.dumps(record.to_json())) == value
    json.dumps(state(record), allow_nan=False)
    assert sorted([record, replace(record, created=0.0)], key=lambda one: (one.created, one.id))


def test_a_record_is_read_as_it_was_written() -> None:
    record = Record("one", "p", "/bundle", pid=7, started=2.0, netns=(4, 5), cgroups=("/x", "/y"), execs={"e": 8})
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert Record.from_json({**record.to_json(), "newer": [1]}) == record


def test_removal_follows_runc(store: PodStore) -> None:
    with pytest.raises(NoSuchContainer):
        store.remove("one")
    store.remove("one", force=True)
    pod, record = made(store, "running")
    with pytest.raises(StillRunning, match="cannot delete container one that is not stopped: running"):
        store.remove("one")
    store.write(replace(record, status="stopped"))
    end(pod)
    (pod.path / "keeper.log").write_text("x")
    store.remove("one")
    assert store.ids() == [] and os.listdir(store.pods_path) == []
    with pytest.raises(NoSuchContainer):
        store.remove("one")


def test_removal_waits_for_a_keeper_that_ends(store: PodStore) -> None:
    pod, _ = made(store, "stopped")
    thread = threading.Thread(target=store.remove, args=("one",))
    thread.start()
    assert (store.root / "one").exists()
    end(pod)
    thread.join(10)
    assert not thread.is_alive() and store.ids() == []


def test_removal_gives_up_in_the_end(store: PodStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casemate.pod.removal.REMOVE_SECONDS", 0.5)
    pod, _ = made(store, "stopped")
    with pytest.raises(HostError, match="does not let it go"):
        store.remove("one")
    assert store.ids() == ["one"]
    end(pod)


def test_removal_by_force_ends_a_keeper_that_hangs(store: PodStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casemate.pod.removal.FORCE_SECONDS", 0.1)
    pod, _ = made(store, "running")
    assert pod.lock_fd is not None
    # It looks like one, holds the lock, and does nothing.
    script = pod.path.parent.parent.parent / "lib" / "casemate" / "pod"
    script.mkdir(parents=True)
    (script.parent / "__init__.py").touch()
    (script / "__init__.py").touch()
    (script / "__main__.py").write_text("print('up', flush=True)\ninput()\n")
    keeper = subprocess.Popen(
        [sys.executable, "-P", "-m", "casemate.pod", str(pod.path), "3", "4"], pass_fds=(pod.lock_fd,), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/",
        env={"PYTHONPATH": str(script.parent.parent)},
    )  # fmt: skip
    assert keeper.stdout is not None and keeper.stdin is not None
    assert keeper.stdout.readline() == "up\n"
    end(pod)
    assert pod.alive()
    store.remove("one", force=True)
    assert keeper.wait(10) == -9
    assert store.ids() == [] and os.listdir(store.pods_path) == []
    keeper.stdin.close()
    keeper.stdout.close()


def test_removal_by_force_ends_who_makes_it(store: PodStore) -> None:
    maker = subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
    start = processes.start_time(maker.pid) or 0
    put(store, "one", creator=maker.pid, creator_start=start)
    with pytest.raises(StillRunning, match="creating"):
        store.remove("one")
    store.remove("one", force=True)
    assert maker.wait(10) == -9 and store.ids() == []
    assert maker.stdin is not None
    maker.stdin.close()


def test_two_may_remove_at_once(store: PodStore) -> None:
    pod, _ = made(store, "stopped")
    end(pod)
    errors: list[Exception] = []
    removed: list[bool] = []

    def remove() -> None:
        try:
            removed.append(store.remove("one", force=True))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=remove) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(removed) == [False] * 5 + [True]
    assert errors == [] and store.ids() == [] and os.listdir(store.pods_path) == []


def test_a_sandbox_stays_for_its_other_containers(store: PodStore) -> None:
    pod, _ = made(store, "stopped")
    put(store, "two", pod.id, status="stopped")
    end(pod)
    store.remove("one")
    assert pod.path.exists()
    store.remove("two")
    assert not pod.path.exists()


def test_what_was_cut_short_is_swept(store: PodStore, gone: tuple[int, int]) -> None:
    store.pods_path.mkdir(parents=True)
    me = f"{os.getpid()}-{processes.start_time(os.getpid())}"
    for name in (f".new-{gone[0]}-{gone[1]}-00", f".gone-{gone[0]}-{gone[1]}-01", ".new-x", f".new-{me}-02"):
        (store.pods_path / name).mkdir()
        (store.pods_path / name / "file").touch()
    empty, used, held = store.create_pod(), store.create_pod(), store.create_pod()
    for pod in (empty, used):
        end(pod)
    put(store, "one", used.id, status="stopped")
    store.list()
    assert set(os.listdir(store.pods_path)) == {f".new-{me}-02", used.id, held.id}
    end(held)


def test_a_removal_sweeps_too(store: PodStore) -> None:
    orphan, taken_back = store.create_pod(), store.create_pod()
    end(orphan)
    taken_back.discard()
    assert os.listdir(store.pods_path) == [orphan.id]
    store.remove("nobody", force=True)
    assert os.listdir(store.pods_path) == []


def test_trees_are_never_walked_into(store: PodStore) -> None:
    """A volume that is still mounted, against all expectation, keeps what it holds."""
    pod, _ = made(store, "running")
    kept = pod.run_path / "volumes" / "one" / "0" / "precious"
    kept.mkdir(parents=True)
    end(pod)
    store.get("one")
    assert kept.exists()
    os.removedirs(kept)
    store.remove("one")
    assert not pod.run_path.exists() or os.listdir(pod.run_path) == []


def test_a_keeper_is_known_by_what_it_serves(store: PodStore) -> None:
    pod = store.create_pod()
    assert reap.keeper_pidfd(pod) is None
    reap.end_keeper(pod)
    assert pod.alive()
    end(pod)
    assert not pod.alive()

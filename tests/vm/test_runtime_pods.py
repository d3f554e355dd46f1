"""Several containers in one sandbox by the OCI command line, joined by annotations or by namespaces."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.vm.oci import Bundle, Container, Failed, Runtime, until

CRI = ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id")
CRIO = ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID")


def sandbox(runtime: Runtime, *words: str) -> Container:
    return runtime.create(runtime.bundle(*words)).start()


def namespaces(bundle: Bundle, **paths: str) -> None:
    """Have a bundle join namespaces, by the types of the specification."""
    for entry in bundle.spec["linux"]["namespaces"]:
        if entry["type"] in paths:
            entry["path"] = paths[entry["type"]]


def member(first: Container, bundle: Bundle, *kinds: str) -> Bundle:
    """Have a bundle join a container's network, and other namespaces of it."""
    files = {"network": "net", "pid": "pid", "ipc": "ipc", "uts": "uts"}
    namespaces(bundle, **{kind: f"/proc/{first.pid}/ns/{files[kind]}" for kind in ("network", *kinds)})
    return bundle


def keepers(runtime: Runtime) -> int:
    """How many sandboxes there are."""
    return len([name for name in os.listdir(runtime.root / ".pods") if len(name) == 64])


def states(runtime: Runtime) -> dict[str, str]:
    return {one["id"]: one["status"] for one in json.loads(runtime("list", "-f", "json").stdout)}


def boot_id(container: Container) -> str:
    return container.sh("cat /proc/sys/kernel/random/boot_id")


@pytest.mark.parametrize("keys", [CRI, CRIO], ids=["cri", "cri-o"])
def test_the_annotations_of_kubernetes_make_a_pod(ours: Runtime, keys: tuple[str, str]) -> None:
    kind, id = keys
    bundle = ours.bundle()
    pause = ours.new_id()
    bundle.spec["annotations"] = {kind: "sandbox", id: pause}
    first = ours.create(bundle, id=pause).start()
    others = []
    for _ in range(2):
        bundle = ours.bundle()
        bundle.spec["annotations"] = {kind: "container", id: pause}
        namespaces(bundle, network=f"/proc/{first.pid}/ns/net", ipc=f"/proc/{first.pid}/ns/ipc")
        others.append(ours.create(bundle).start())
    assert len({boot_id(container) for container in (first, *others)}) == 1
    assert keepers(ours) == 1
    others[0]("kill", "KILL")
    assert others[0].wait() == 137
    others[0]("delete")
    assert others[1].sh("echo on") == "on"  # the others live on
    again = ours.bundle()  # and it is made anew, as after a crash
    again.spec["annotations"] = {kind: "container", id: pause}
    namespaces(again, network=f"/proc/{first.pid}/ns/net")
    assert boot_id(ours.create(again).start()) == boot_id(first)


def test_a_pod_that_is_not_there_is_an_error(ours: Runtime) -> None:
    bundle = ours.bundle()
    bundle.spec["annotations"] = {CRI[0]: "container", CRI[1]: "nobody"}
    with pytest.raises(Failed, match="sandbox nobody does not exist"):
        ours.create(bundle)


def test_the_network_of_another_container_means_its_sandbox(ours: Runtime) -> None:
    first = sandbox(ours)
    second = ours.create(member(first, ours.bundle())).start()
    assert boot_id(first) == boot_id(second) and keepers(ours) == 1
    first.sh("(echo hello | nc -l -p 4321 >/dev/null) &", timeout=60)
    until(lambda: second.sh("nc -w 1 127.0.0.1 4321 </dev/null || true") == "hello", "one reaches the other")
    # What was not joined is each one's own.
    for kind in ("pid", "ipc", "uts", "mnt"):
        assert second.sh(f"readlink /proc/self/ns/{kind}") != first.sh(f"readlink /proc/self/ns/{kind}")
    assert second.sh("readlink /proc/self/ns/net") == first.sh("readlink /proc/self/ns/net")


def test_processes_and_ipc_and_host_name_are_shared_where_asked_for(ours: Runtime) -> None:
    first = sandbox(ours)
    second = ours.create(member(first, ours.bundle("sleep", "7777"), "pid", "ipc", "uts")).start()
    assert "sleep 7777" in first.sh("ps -o args")
    for kind in ("net", "ipc", "pid", "uts"):
        assert second.sh(f"readlink /proc/self/ns/{kind}") == first.sh(f"readlink /proc/self/ns/{kind}")
    assert second.sh("readlink /proc/self/ns/mnt") != first.sh("readlink /proc/self/ns/mnt")
    second("kill", "KILL")
    assert second.wait() == 137
    assert first.sh("echo on") == "on"


def test_a_namespace_of_somebody_else_is_refused(ours: Runtime) -> None:
    first, other = sandbox(ours), sandbox(ours)
    bundle = member(first, ours.bundle())
    namespaces(bundle, pid=f"/proc/{other.pid}/ns/pid")
    with pytest.raises(Failed, match="not that of a container in the same sandbox"):
        ours.create(bundle)


def test_the_sandbox_lives_as_long_as_any_container_in_it(ours: Runtime) -> None:
    first = sandbox(ours, "sleep", "86400")
    second = ours.create(member(first, ours.bundle())).start()
    where = boot_id(first)
    first("kill", "KILL")
    assert first.wait() == 137
    first("delete")
    assert boot_id(second) == where
    second("kill", "KILL")
    assert second.wait() == 137
    second("delete")
    until(lambda: not os.listdir(ours.root / ".pods"), "the sandbox is gone")


def test_members_are_on_record_each_with_its_own_end(ours: Runtime) -> None:
    first = sandbox(ours)
    ends = [ours.create(member(first, ours.bundle("sh", "-c", f"exit {status}"))) for status in (3, 4)]
    for container in ends:
        container.start()
    assert [container.wait() for container in ends] == [3, 4]
    expected = {first.id: "running", ends[0].id: "stopped", ends[1].id: "stopped"}
    until(lambda: states(ours) == expected, f"{states(ours)} is {expected}")
    assert first.sh("echo on") == "on"


def test_volumes_of_members_are_their_own(ours: Runtime) -> None:
    first = sandbox(ours)
    made: list[Container] = []
    for number in range(3):
        bundle = member(first, ours.bundle())
        (bundle.path / "d").mkdir()
        (bundle.path / "d/f").write_text(f"{number}")
        bundle.mount("/d", bundle.path / "d", "rbind")
        made.append(ours.create(bundle).start())
    assert [container.sh("cat /d/f") for container in made] == ["0", "1", "2"]
    shared = Path(made[0].state()["bundle"]) / "d"
    made[0].sh("echo w >/d/w")
    assert (shared / "w").read_text() == "w\n"


def test_one_at_a_time_pauses(ours: Runtime) -> None:
    first = sandbox(ours)
    second = ours.create(member(first, ours.bundle())).start()
    first("pause")
    assert states(ours) == {first.id: "paused", second.id: "running"}
    assert second.sh("echo on") == "on"
    first("resume")


def test_killing_the_keeper_ends_all_and_all_can_be_deleted(ours: Runtime) -> None:
    first = sandbox(ours)
    second = ours.create(member(first, ours.bundle())).start()
    (pod,) = [name for name in os.listdir(ours.root / ".pods") if len(name) == 64]
    os.kill(json.loads((ours.root / ".pods" / pod / "pod.json").read_text())["keeper"], 9)
    assert first.wait() != 0 and second.wait() != 0
    for container in (first, second):
        assert container.state()["status"] == "stopped"
        container("delete")

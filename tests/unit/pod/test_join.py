"""Which sandbox a container joins."""

from __future__ import annotations

import os
from typing import Any

import pytest

from casemate.errors import BadBundle, ContainerError, NoSuchContainer, Unsupported
from casemate.pod import join
from casemate.pod.model import Record


class Records:
    """Containers on record."""

    def __init__(self, *records: Record) -> None:
        self.records = records

    def get(self, id: str) -> Record:
        for record in self.records:
            if record.id == id:
                return record
        raise NoSuchContainer("container does not exist")

    def list(self) -> list[Record]:
        return list(self.records)


def record(id: str, pod: str, **more: Any) -> Record:
    return Record(id=id, pod=pod, bundle="/b", **{"status": "running", "pid": 100, **more})


def spec(network: str | None = "") -> dict[str, Any]:
    kinds = [] if network is None else [{"type": "network", **({"path": network} if network else {})}]
    return {"linux": {"namespaces": kinds}, "annotations": {}}


def look(path: str) -> os.stat_result:
    known = {
        "/ns/a": 1, "/ns/b": 2, "/proc/100/ns/ipc": 30, "/proc/101/ns/ipc": 30, "/proc/100/ns/pid": 20,
        "/proc/100/ns/net": 1, "/proc/200/ns/net": 3, "/proc/200/ns/pid": 40, "/proc/self/ns/pid": 50,
        "/proc/300/ns/net": 3, "/proc/300/ns/pid": 50, "/proc/400/ns/net": 3,
    }  # fmt: skip
    if path not in known:
        raise FileNotFoundError(2, "No such file or directory", path)
    return os.stat_result((0, known[path], 4, 1, 0, 0, 0, 0, 0, 0))


CRI = {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pause"}
CRIO = {"io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.cri-o.SandboxID": "pause"}


def test_a_container_by_itself_has_a_sandbox_of_its_own() -> None:
    store = Records(record("a", "pod", netns=(4, 1)))
    assert join.choose(spec(), store, look) is None
    assert join.choose(spec(None), store, look) is None
    assert join.choose(spec("/ns/b"), store, look) is None


@pytest.mark.parametrize("annotations", [CRI, CRIO])
def test_a_container_of_a_pod_joins_its_sandbox(annotations: dict[str, str]) -> None:
    wanted = {**spec("/ns/b"), "annotations": annotations}
    assert join.choose(wanted, Records(record("pause", "pod")), look) == "pod"
    with pytest.raises(ContainerError, match="the pod's sandbox pause does not exist"):
        join.choose(wanted, Records(record("a", "pod", netns=(4, 2))), look)
    with pytest.raises(ContainerError, match="the pod's sandbox pause has ended"):
        join.choose(wanted, Records(record("pause", "pod", status="stopped")), look)


def test_the_sandboxs_own_container_makes_it() -> None:
    own = {"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "pause"}
    assert join.choose({**spec(), "annotations": own}, Records(), look) is None


def test_who_shares_a_network_shares_the_sandbox() -> None:
    store = Records(
        record("old", "gone", netns=(4, 1), status="stopped"), record("a", "pod", netns=(4, 1)),
        record("b", "other", netns=(4, 2), created=1.0),
    )  # fmt: skip
    assert join.choose(spec("/ns/a"), store, look) == "pod"
    assert join.choose(spec("/ns/b"), store, look) == "other"
    with pytest.raises(BadBundle, match="the network namespace /ns/gone cannot be used"):
        join.choose(spec("/ns/gone"), store, look)


def test_a_network_of_another_runtimes_container_is_refused() -> None:
    store = Records(record("a", "pod", netns=(4, 1)))
    assert join.choose(spec("/proc/100/ns/net"), store, look) == "pod"
    with pytest.raises(Unsupported, match="/proc/200/ns/net is that of a container of another runtime"):
        join.choose(spec("/proc/200/ns/net"), store, look)
    # A process that only holds the namespace, or has just ended, is none.
    assert join.choose(spec("/proc/300/ns/net"), store, look) is None
    assert join.choose(spec("/proc/400/ns/net"), store, look) is None


def test_peers_are_found_by_their_namespaces() -> None:
    store = Records(
        record("late", "pod", pid=101, created=2.0), record("first", "pod", created=1.0),
        record("making", "pod", pid=0, status="creating"), record("x", "other", pid=102),
    )  # fmt: skip
    find = join.peers(store, "pod", look)
    assert find("ipc", (4, 30)) == "first"
    assert find("pid", (4, 20)) == "first"
    assert find("ipc", (4, 31)) is None
    assert find("uts", (4, 30)) is None
    assert join.peers(store, "other", look)("ipc", (4, 30)) is None
    assert join.peers(store, None, look)("ipc", (4, 30)) is None

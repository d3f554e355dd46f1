"""Which sandbox a new container joins, and which namespaces of its containers can be shared.

Engines name a pod's sandbox by annotations (CRI, CRI-O), or give a container the network namespace of another one
(Docker's ``--network container:``, Podman's pods). Either way there is one machine for all of them.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from casemate.errors import BadBundle, ContainerError, NoSuchContainer, Unsupported
from casemate.pod.model import LIVE, Record
from casemate.pod.plan import NAMESPACE_FILES, Look, Peers

if TYPE_CHECKING:
    from typing import Protocol

    class Records(Protocol):
        """What is needed of :class:`casemate.pod.store.PodStore`."""

        def get(self, id: str) -> Record:
            """The truth about a container. Raises NoSuchContainer."""

        def list(self) -> list[Record]:
            """The truth about all of them."""


_OF_PROCESS = re.compile(r"/proc/([0-9]{1,10})/ns/net")
ANNOTATIONS = (
    # (container type, its value for a member, sandbox id)
    ("io.kubernetes.cri.container-type", "container", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "container", "io.kubernetes.cri-o.SandboxID"),
)


def choose(spec: dict[str, Any], store: Records, look: Look = os.stat) -> str | None:
    """The sandbox that a container belongs to.

    Arguments:
        spec: of :func:`casemate.oci.bundle.load`.
        store: the containers under the same root.
        look: stat(2), following links.

    Returns:
        the sandbox's id; None where the container gets one of its own.

    Raises:
        ContainerError: its annotations name a sandbox that is not there or does not live.
        BadBundle: its network namespace cannot be looked at.
        Unsupported: it is that of a container of another runtime.
    """
    named = sandbox_named(spec.get("annotations", {}))
    if named:
        try:
            record = store.get(named)
        except NoSuchContainer:
            raise ContainerError(f"the pod's sandbox {named[:80]} does not exist", "make the pod anew") from None
        if record.status not in LIVE:
            raise ContainerError(f"the pod's sandbox {named[:80]} has ended", "make the pod anew")
        return record.pod
    paths = {entry["type"]: entry.get("path", "") for entry in spec["linux"].get("namespaces", ())}
    path = paths.get("network")
    if not path:
        return None
    try:
        found = look(path)
    except OSError as error:
        raise BadBundle(f"the network namespace {path} cannot be used: {error.strerror}") from None
    identity = (found.st_dev, found.st_ino)
    for record in sorted(store.list(), key=lambda record: record.created):
        if record.status in LIVE and record.netns == identity:
            return record.pod
    if _is_foreign(path, look):
        raise Unsupported(
            f"the network of {path[:80]} is that of a container of another runtime, which would lose it",
            "run both with casemate",
        )
    return None


def _is_foreign(path: str, look: Look) -> bool:
    """Whether a network namespace is named by a process that is a container's, as ``--network container:`` does."""
    match = _OF_PROCESS.fullmatch(path)
    if match is None:
        return False
    try:
        its, ours = look(f"/proc/{match[1]}/ns/pid"), look("/proc/self/ns/pid")
    except OSError:
        return False
    return (its.st_dev, its.st_ino) != (ours.st_dev, ours.st_ino)


def sandbox_named(annotations: dict[str, str]) -> str | None:
    """The container that annotations name as the pod's sandbox, if this is another container of the pod."""
    for kind, member, sandbox in ANNOTATIONS:
        if annotations.get(kind) == member and annotations.get(sandbox):
            return annotations[sandbox]
    return None


def peers(store: Records, pod: str | None, look: Look = os.stat) -> Peers:
    """Tells which container of a sandbox stands in a namespace, for :func:`casemate.pod.plan.plan`.

    Arguments:
        store: as for :func:`choose`.
        pod: the sandbox; None for a new one, in which nothing can be shared.
        look: stat(2), following links.
    """

    def find(kind: str, identity: tuple[int, int]) -> str | None:
        if pod is None:
            return None
        for record in sorted(store.list(), key=lambda record: record.created):
            if record.pod != pod or record.status not in LIVE or not record.pid:
                continue
            try:
                found = look(f"/proc/{record.pid}/ns/{NAMESPACE_FILES[kind]}")
            except OSError:
                continue  # it has just ended
            if (found.st_dev, found.st_ino) == identity:
                return record.id
        return None

    return find

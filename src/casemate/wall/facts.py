"""What is known of a sandbox as a whole, behind either wall: what its agent says of itself, what the host counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from casemate.host.cgroups import Cgroup
from casemate.wall.calls import line

MAX_TEXT = 128
"""Characters of a text that are believed."""


def believed(said: Mapping[str, Any], kinds: Mapping[str, type]) -> dict[str, Any]:
    """Of what an agent says, what has the right type and size: it goes into the state on disk.

    Arguments:
        kinds: what there may be, each a text or a number.
    """
    facts: dict[str, Any] = {}
    for key, kind in kinds.items():
        value = said.get(key)
        if kind is str and isinstance(value, str):
            facts[key] = line(value, MAX_TEXT)
        elif kind is int and type(value) is int and 0 <= value < 1 << 63:
            facts[key] = value
    return facts


def usage(group: Cgroup | None) -> dict[str, Any]:
    """What the host gives for a sandbox, bytes and microseconds; nothing where it does not count."""
    if group is None:
        return {}
    found = group.usage()
    return {"memory": found.memory, "memory_peak": found.memory_peak, "cpu_us": found.cpu_us}

"""User ids of sandboxes: each sandbox's VMM runs as a user of its own, so that no two can touch each other."""

from __future__ import annotations

from casemate.config import Config
from casemate.errors import HostError
from casemate.host.leases import Leases

COUNT = 65536


def lease(id: str, config: Config) -> int:
    """A user id that no other sandbox has; the same one again for the same sandbox.

    Raises:
        HostError: all are taken.
    """
    uid = Leases(config.run / "uids").acquire(id, config.uid_base, COUNT)
    if uid is None:
        raise HostError(f"all {COUNT} user ids for sandboxes are taken", "remove sandboxes: casemate ps --all")
    return int(uid)


def release(id: str, config: Config) -> None:
    """Give the sandbox's user id back, when none of its processes runs any more. Nothing when it has none."""
    Leases(config.run / "uids").release(id)

"""Owners of files that are somebody else on the host, user_namespaces(7)."""

from __future__ import annotations

from collections.abc import Sequence
from errno import EOVERFLOW

from casemate.sentry.errno import SysError

NOBODY = 65534
"""Whom the sandbox sees as the owner of what belongs to nobody in it."""
Ranges = Sequence[tuple[int, int, int]]
"""The first number inside, the first on the host, and how many."""


class IdMap:
    """Numbers of users and groups, inside and on the host.

    Arguments:
        uids, gids: which are mapped to which.
    """

    def __init__(self, uids: Ranges, gids: Ranges) -> None:
        self._uids = tuple(uids)
        self._gids = tuple(gids)

    def inside(self, uid: int, gid: int) -> tuple[int, int]:
        """Who the host's owner is in the sandbox."""
        return _inside(self._uids, uid), _inside(self._gids, gid)

    def outside(self, uid: int, gid: int) -> tuple[int, int]:
        """Who the sandbox's owner is on the host. Raises SysError(EOVERFLOW) where that is nobody."""
        return self.user(uid), self.group(gid)

    def user(self, uid: int) -> int:
        """The same for a user alone."""
        return _outside(self._uids, uid)

    def group(self, gid: int) -> int:
        """The same for a group alone."""
        return _outside(self._gids, gid)


def _inside(ranges: Ranges, number: int) -> int:
    for inside, outside, count in ranges:
        if outside <= number < outside + count:
            return number - outside + inside
    return NOBODY


def _outside(ranges: Ranges, number: int) -> int:
    for inside, outside, count in ranges:
        if inside <= number < inside + count:
            return number - inside + outside
    raise SysError(EOVERFLOW)

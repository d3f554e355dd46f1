"""Leases on names: who holds which address or user id, as links in a directory and nothing else.

A lease is a symbolic link called by what is leased and pointing at its holder: making one is atomic and fails when it
is there, so no lock is needed and no half-written file can be seen. A second link, in ``owners/``, leads from holder to
lease, so releasing needs no search. It is made first: a crash in between leaves at most a link that says too much,
which release() checks.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from casemate.ids import is_id

TRIES = 8  # at random places before the directory is read for what is free


class Leases:
    """The leases of one directory.

    Arguments:
        directory: made when the first lease is.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._owners = directory / "owners"

    def acquire(self, owner: str, first: int, count: int, name: Callable[[int], str] = str) -> str | None:
        """Lease one of the ``count`` numbers from ``first`` on, or tell what ``owner`` holds already.

        Which one depends on the owner's id, so a number is not given out again soon after its release: late packets
        and files of a dead sandbox do not meet a new one.

        Arguments:
            owner: a sandbox's id.
            name: how a number is written as a file name.

        Returns:
            the leased number's name; None when all are taken.
        """
        if not is_id(owner):
            raise ValueError(f"not an id: {owner!r}")
        held = self.held(owner)
        if held is not None:
            return held
        self._owners.mkdir(mode=0o711, parents=True, exist_ok=True)
        start = int(owner[:16], 16)
        step = int(owner[16:32], 16) | 1
        for attempt in range(min(TRIES, count)):
            number = first + (start + attempt * step) % count
            if self._take(owner, name(number)):
                return name(number)
        taken = set(os.listdir(self.directory))
        for offset in range(count):
            number = first + (start + offset) % count
            if name(number) not in taken and self._take(owner, name(number)):
                return name(number)
        self.release(owner)
        return None

    def held(self, owner: str) -> str | None:
        """The name that ``owner`` holds, or None."""
        try:
            name = os.readlink(self._owners / owner)
            return name if os.readlink(self.directory / name) == owner else None
        except OSError:
            return None

    def holder(self, name: str) -> str | None:
        """Who holds ``name``, or None."""
        try:
            return os.readlink(self.directory / name)
        except OSError:
            return None

    def release(self, owner: str) -> None:
        """Give back what ``owner`` holds; nothing when it holds nothing."""
        held = self.held(owner)
        if held is not None:
            (self.directory / held).unlink(missing_ok=True)
        (self._owners / owner).unlink(missing_ok=True)

    def _take(self, owner: str, name: str) -> bool:
        mine = self._owners / owner
        mine.unlink(missing_ok=True)
        mine.symlink_to(name)
        try:
            (self.directory / name).symlink_to(owner)
        except FileExistsError:
            return False
        return True

"""What the throttler keeps below the run directory: its locks, the settings it found, and what it does now.

::

    ksm/lock        held by the throttler for its life (fcntl(2)); tells everyone its process id
    ksm/turn        held by whoever changes settings (flock(2)): the throttler and its guard share it
    ksm/found.json  the settings to go back to; there only while others are in force
    ksm/state.json  what the throttler does, for ``casemate ksm --status``
    ksm/kick        the socket
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate import jsonfile
from casemate.errors import HostError, StateError
from casemate.ksm import settings
from casemate.ksm.kick import DIRECTORY, SOCKET

_FLOCK = "@hhqqi4x"
"""``struct flock`` of fcntl(2), as it is on every 64-bit architecture of Linux."""


@dataclass(frozen=True, slots=True)
class Home:
    """The throttler's directory.

    Arguments:
        run: the run directory (``config.run``).
        kernel: the directory with the kernel's files.
    """

    run: Path
    kernel: Path = settings.DIRECTORY

    @property
    def directory(self) -> Path:
        """Where everything is."""
        return self.run / DIRECTORY

    @property
    def socket(self) -> Path:
        """What starts are told to."""
        return self.directory / SOCKET

    def make(self) -> None:
        """Make the directory.

        Raises:
            HostError: it cannot be made.
        """
        try:
            self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise HostError(f"{self.directory} cannot be made: {error.strerror}") from None

    # ---- locks

    def holder(self) -> int:
        """The process id of the throttler that runs, 0 when none does. Disturbs nobody."""
        try:
            descriptor = os.open(self.directory / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return 0
        try:
            question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
        finally:
            os.close(descriptor)
        return 0 if kind == fcntl.F_UNLCK else pid or -1  # 0: of a process that this namespace does not show

    def lock(self) -> int:
        """Become the only throttler, as long as the descriptor is open and this process lives.

        A lock of fcntl(2), which a child does not have: it ends with the throttler, whatever else goes on. It also ends
        when its process closes any descriptor of the file, so who has it must not ask for the :meth:`holder`.

        Raises:
            HostError: there is one already.
        """
        descriptor = self._open("lock")
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise HostError(f"the throttler runs already, as process {self.holder()}", "stop it first") from None
        return descriptor

    def turn(self) -> int:
        """Wait until nobody else changes settings. A lock of flock(2), which a child shares.

        Raises:
            HostError: it cannot be had.
        """
        descriptor = self._open("turn")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _open(self, name: str) -> int:
        path = self.directory / name
        try:
            # Everyone may read, to see whether it is held. Only a writer can hold it.
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise HostError(f"{path} cannot be opened: {error.strerror}") from None

    # ---- the settings that were found

    def keep(self, found: settings.Settings) -> None:
        """Write down what to go back to, before anything else is put into force.

        Raises:
            HostError: there is no space.
        """
        self._write("found.json", {**found.to_json(), "boot": _boot()}, 0o600)

    def found(self) -> settings.Settings | None:
        """What to go back to; None when the settings are those that were found, or those of a new boot.

        Raises:
            StateError: the file is damaged.
        """
        path = self.directory / "found.json"
        try:
            value = jsonfile.read(path)
            if value.get("boot") != _boot():
                return None
            return settings.Settings.from_json(value)
        except FileNotFoundError:
            return None
        except StateError as error:
            raise StateError(f"{path} is damaged: {error.message}", "remove it; the settings stay as is") from None

    def restore(self) -> settings.Settings | None:
        """Put the settings that were found back into force, and forget them; whoever calls this has the turn.

        Returns:
            them, or None when there was nothing to go back to.

        Raises:
            HostError: not all of them could be written; they are kept.
            StateError: what was kept is damaged.
        """
        found = self.found()
        if found is not None:
            settings.write(found, self.kernel)
        (self.directory / "found.json").unlink(missing_ok=True)
        return found

    # ---- what it does now

    def tell(self, state: dict[str, Any]) -> None:
        """Tell everyone what the throttler does.

        Raises:
            HostError: there is no space.
        """
        self._write("state.json", state, 0o644)

    def state(self) -> dict[str, Any]:
        """What the throttler does; nothing when none runs."""
        try:
            return jsonfile.read(self.directory / "state.json") if self.holder() else {}
        except (OSError, StateError):
            return {}

    def clear(self) -> None:
        """Remove what belongs to a throttler that has ended. The locks' files stay."""
        # The last are files that a killed one was about to put in place.
        for path in (self.socket, self.directory / "state.json", *self.directory.glob(".*.json.*")):
            path.unlink(missing_ok=True)

    def _write(self, name: str, value: dict[str, Any], mode: int) -> None:
        path = self.directory / name
        try:
            # Not synced: a crash of the whole machine takes the kernel's settings along.
            jsonfile.write(path, value, durable=False, mode=mode)
        except OSError as error:
            raise HostError(f"{path} cannot be written: {error.strerror}", "free some space") from None


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

"""What members are made of, by name: a member that was made of something else is not handed out any more."""

from __future__ import annotations

import os

from casemate.config import Config
from casemate.errors import HostError
from casemate.vm import guest
from casemate.wall import launch


class Supply:
    """The guest and the VMM that machines of a configuration are made of now.

    Arguments:
        config: the configuration in force.
    """

    patience = 5.0
    """Seconds after which it is worth looking whether that has changed."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def key(self) -> str:
        """Its name.

        Raises:
            CasemateError: there is no guest, or no VMM.
        """
        config = self._config
        bundle = config.guest or guest.current(config.root) or guest.find(config.root).digest
        program = launch.find_program(config.qemu)
        try:
            found = os.stat(program)
        except OSError as error:
            raise HostError(f"{program}: {error.strerror}", "install it again") from None
        return f"{bundle} {found.st_size} {found.st_mtime_ns}"

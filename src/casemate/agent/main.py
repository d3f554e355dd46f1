"""Process 1 of the guest."""

from __future__ import annotations

import os
import sys
from _signal import signal  # type: ignore[import-not-found]  # the public module imports enum

from casemate import __version__
from casemate.agent.container import Places
from casemate.agent.marks import mark
from casemate.agent.processes import Reaper
from casemate.agent.service import Service
from casemate.agent.system import SIG_IGN, SIGINT, log
from casemate.protocol.link import Link
from casemate.protocol.wire import LinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

HELLO = 60.0


def serve(fd: int, places: Places, setup: Callable[[], None], power_off: Callable[[str], None]) -> None:
    """Be the agent on one connection, for ever.

    Arguments:
        fd: the connection.
        places: see :class:`Places`.
        setup: prepares the guest once the host has been greeted; its failure is told to whoever asks for a container.
        power_off: called with the reason when the connection ends, for then nobody rules the guest any more.

    Raises:
        LinkError: the host did not speak.
    """
    reaper = Reaper()
    service = Service(places, reaper, power_off)
    link = Link(
        fd,
        fd,
        role="agent",
        version=__version__,
        on_request=service.request,
        on_closed=lambda reason: power_off(reason),
    )
    service.link = link
    mark("connected")
    link.start(HELLO)
    mark("greeted")
    try:
        setup()
    except OSError as error:
        service.trouble = str(error)
        log(f"the guest cannot be set up: {error}")
    mark("ready")
    service.ready.set()
    reaper.run()


def main(began: int) -> int:
    """Run as process 1; returns only where the machine refuses to power off.

    Arguments:
        began: when the program began, in nanoseconds of CLOCK_BOOTTIME.
    """
    from casemate.agent import guest, system  # here, because tests serve without a guest

    mark("python", began)
    mark("imported")

    def power_off(reason: str) -> None:
        log(f"power off: {reason}")
        system.power_off()

    try:
        signal(SIGINT, SIG_IGN)
        os.chdir("/")
        os.umask(0o022)
        sys.unraisablehook = lambda trouble: log(f"a thread has ended: {trouble.exc_value!r}")
        guest.begin()
        serve(guest.connect(), Places(), guest.setup, power_off)
    except (OSError, LinkError) as error:
        power_off(str(error))
    except BaseException as error:  # whatever happens: no guest without an agent
        power_off(f"{type(error).__name__}: {error}")
    return 1

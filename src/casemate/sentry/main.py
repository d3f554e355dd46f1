"""The sentry's program: ``python -P -m casemate.sentry LINK GOFER UID NETWORK PLATFORM``.

The keeper starts it: LINK and GOFER are descriptors of the connections to the keeper and to the gofer, UID is whom it
becomes, NETWORK is ``none`` or ``host``, PLATFORM a platform's name or ``auto``. It ends with either connection.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casemate.protocol.link import Link
    from casemate.sentry.mailbox import Mailbox

HELLO = 60.0


def main() -> int:
    """Serve one sandbox; the exit status is 0 unless something was wrong with the sentry itself."""
    link_fd, gofer_fd, uid = (int(word) for word in sys.argv[1:4])
    network, platform = sys.argv[4:6]
    for fd in (link_fd, gofer_fd):
        os.set_inheritable(fd, False)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(message)s")
    threading.stack_size(512 << 10)

    from casemate import __version__
    from casemate.gofer.client import GoferClient
    from casemate.gofer.launch import Tree
    from casemate.protocol.link import Link
    from casemate.sentry import isolation, world
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.mailbox import Mailbox
    from casemate.sentry.platform import choose
    from casemate.sentry.service import TREES, Service

    isolation.load_all()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    proc = isolation.enter(uid, uid, host_network=network == "host")
    kernel = Kernel(choose(proc, "" if platform == "auto" else platform))
    kernel.subsystems["network"] = network
    kernel.subsystems["null"] = null
    world.prepare(kernel)
    trees = [Tree(name, read_only=False, exclusive=name == "share") for name in TREES]
    gofer = GoferClient(socket.socket(fileno=gofer_fd), trees)

    def gone(reason: str) -> None:
        logging.getLogger("casemate.sentry").error("%s: the sandbox ends", reason)
        kernel.running = False

    gofer.on_gone = gone
    kernel.platform.watch(gofer.fileno(), 1, gofer)
    mailbox = Mailbox(kernel)
    service = Service(kernel, gofer, mailbox)

    def stop() -> None:
        kernel.running = False

    service.link = Link(
        link_fd, link_fd, role="agent", version=__version__, on_request=service.request,
        on_closed=lambda reason: mailbox.post(stop),
    )  # fmt: skip
    isolation.confine(network == "host")
    # The greeting waits for the host; the kernel's loop has to run meanwhile, for requests come right after it.
    threading.Thread(target=_greet, args=(service.link, mailbox, stop), name="hello", daemon=True).start()
    try:
        kernel.run()
    finally:
        kernel.platform.close()
    sys.stderr.flush()
    os._exit(0)  # threads of the link wait for what never comes


def _greet(link: Link, mailbox: Mailbox, stop: Callable[[], None]) -> None:
    from casemate.protocol.wire import LinkError

    try:
        link.start(HELLO)
    except LinkError as error:
        logging.getLogger("casemate.sentry").error("the host does not speak: %s", error)
        mailbox.post(stop)


if __name__ == "__main__":
    sys.exit(main())

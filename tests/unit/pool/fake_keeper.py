"""A keeper's program that has no machine: it does what the first line of a file beside the pool's directories says.

``ready``: waits to be handed out, and answers its door as a keeper does. ``fail``: says why it cannot. ``die``: ends at
once. ``hang``: says nothing.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
from pathlib import Path

from casemate.keeper.control import Connection, ControlClosed, close_all


def main() -> int:
    """Be one."""
    container, fd, _, directory = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    connection = Connection(socket.socket(fileno=fd))
    mood = (directory.parents[2] / "mood").read_text().split()[0]
    if mood == "die":
        print("out of luck", file=sys.stderr)
        return 1
    if mood == "fail":
        connection.send({"error": "no machine today"})
    elif mood == "hang":
        threading.Event().wait()
    else:
        connection.send({"ready": True, "seconds": 0.5})
    try:
        request, fds = connection.receive()
    except ControlClosed:
        shutil.rmtree(directory, ignore_errors=True)
        return 0
    close_all(fds)
    assert request["op"] == "run" and (container / "state.json").exists()
    connection.send({"started": os.getpid()})
    connection.send({"exited": 7, "reason": ""})
    return 0


if __name__ == "__main__":
    sys.exit(main())

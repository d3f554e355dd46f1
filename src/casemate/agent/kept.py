"""Descriptors beside the standard three that a process gets: their bytes travel on streams to and from the host's.

What the host's descriptor is, is not known here: a pipe of the guest's own stands for a pipe, a pair of sockets for a
connection, ``/dev/null`` for what leads nowhere.
"""

from __future__ import annotations

import fcntl
import os
from _socket import SHUT_WR, socket, socketpair

from casemate.agent.pumps import Input, Output
from casemate.agent.system import bad, get_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from casemate.protocol.link import Link
    from casemate.protocol.stream import Stream

MAX_KEPT = 16
_AF_UNIX, _SOCK_STREAM = 1, 1
_HIGH = 100
"""Above all numbers that the process gets, so that none is overwritten before it has been copied."""


def open_streams(link: Link, params: dict[str, Any], pairs: list[list[Stream | None]]) -> None:
    """Open the streams that ``kept`` names: for each descriptor what leads into the container, and what leads out.

    Arguments:
        pairs: gets them as they are opened.

    Raises:
        RequestFailed: ``bad-spec``. LinkError: there can be no more streams.
    """
    if params.get("kept") is None:
        return
    for entry in get_list(params, "kept", MAX_KEPT):
        pair: list[Stream | None] = [None, None]
        pairs.append(pair)
        for place, key in enumerate(("in", "out")):
            number = entry.get(key) if isinstance(entry, dict) else False
            if number is None:
                continue
            if type(number) is not int:
                raise bad("kept must hold objects with channel numbers or null")
            pair[place] = link.stream(number)


def attach(pairs: list[list[Stream | None]], theirs: list[int], inputs: list[Input], outputs: list[Output]) -> None:
    """Make the process's ends, and what carries their bytes.

    Arguments:
        pairs: of :func:`open_streams`; those that somebody has are replaced by None.
        theirs: gets the process's descriptors, in order; the caller closes them.
        inputs, outputs: get what carries the bytes, to be started when the process runs.

    Raises:
        OSError: there are no descriptors left.
    """
    for pair in pairs:
        into, out = pair
        if into is not None and out is not None:
            one, other = socketpair(_AF_UNIX, _SOCK_STREAM)
            theirs.append(_high(other.detach()))
            ours = one.detach()
            outputs.append(Output(ours, out, drop=False))
            pair[1] = None
            inputs.append(_SocketInput(os.dup(ours), into))
        elif into is not None:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            theirs.append(_high(reader))
            inputs.append(Input(writer, into))
        elif out is not None:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            theirs.append(_high(writer))
            outputs.append(Output(reader, out, drop=False))
        else:
            theirs.append(_high(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)))
        pair[:] = [None, None]


def _high(fd: int) -> int:
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    finally:
        os.close(fd)


class _SocketInput(Input):
    """The end of its stream is the end of one direction; the other goes on, through a descriptor of its own."""

    def _end(self) -> None:
        if not self._over:
            try:
                sock = socket(fileno=os.dup(self._fd))
                sock.shutdown(SHUT_WR)
                sock.close()
            except OSError:
                pass  # the process has closed its end
        super()._end()

"""Errors as containerd understands them: a gRPC code and a text.

containerd, dockerd and the CRI plugin look at the code first (``errdefs.FromGRPC``) and some of them at the words too:
"not found", "already exists", "process already finished". So the words are those of containerd's own shim.
"""

from __future__ import annotations

OK, CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, ALREADY_EXISTS = range(7)
RESOURCE_EXHAUSTED, FAILED_PRECONDITION, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 8, 9, 12, 13, 14

_WORDS = {
    INVALID_ARGUMENT: "invalid argument",
    NOT_FOUND: "not found",
    ALREADY_EXISTS: "already exists",
    FAILED_PRECONDITION: "failed precondition",
    UNAVAILABLE: "unavailable",
    UNIMPLEMENTED: "not implemented",
}
"""The text of containerd's error of each class, which its own messages end with."""


class StatusError(Exception):
    """A request that failed.

    Arguments:
        code: one of the codes above.
        message: what is wrong, one line.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def failure(code: int, message: str) -> StatusError:
    """An error whose text ends as containerd's do: ``process does not exist x: not found``."""
    words = _WORDS.get(code, "")
    return StatusError(code, f"{message}: {words}" if words else message)


def kill_error(message: str) -> StatusError:
    """What a runtime said when a signal could not be sent, as containerd's shim tells it on.

    Everybody who kills takes "process already finished" with NOT_FOUND for success.
    """
    lower = message.lower()
    if "process already finished" in lower or "container not running" in lower or "no such process" in lower:
        return failure(NOT_FOUND, "process already finished")
    if "does not exist" in lower:
        return failure(NOT_FOUND, "no such container")
    return StatusError(UNKNOWN, f"unknown error after kill: {message}")

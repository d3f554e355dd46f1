"""The one exception by which a system call fails."""

from __future__ import annotations

import errno


class SysError(Exception):
    """A system call's failure, ``errno(3)``.

    Arguments:
        number: the error, e.g. ``errno.EINVAL``; the application sees it as ``-number``.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.errno = number

    def __str__(self) -> str:
        return errno.errorcode.get(self.errno, str(self.errno))


def from_os(error: OSError) -> SysError:
    """The application's view of a failed call to the host."""
    return SysError(error.errno or errno.EIO)

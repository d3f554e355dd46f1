"""How other threads have the kernel's thread do something: the doors' requests come on threads of their own."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from casemate.sentry.platform.base import Watcher

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel

T = TypeVar("T")


class _Letter:
    """One thing to be done, and what came of it."""

    __slots__ = ("done", "error", "function", "result")

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.done = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None


class Mailbox(Watcher):
    """Letters to the kernel's thread.

    Arguments:
        kernel: whose loop reads them.
    """

    vital = True

    def __init__(self, kernel: Kernel) -> None:
        self._letters: deque[_Letter] = deque()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        kernel.platform.watch(self._bell, 1, self)

    def call(self, function: Callable[[], T]) -> T:
        """Have the kernel's thread call ``function``; gives what it gives, raises what it raises."""
        letter = _Letter(function)
        self._letters.append(letter)
        os.eventfd_write(self._bell, 1)
        letter.done.wait()
        if letter.error is not None:
            raise letter.error
        result: T = letter.result
        return result

    def post(self, function: Callable[[], None]) -> None:
        """The same without waiting; what it raises is lost."""
        self._letters.append(_Letter(function))
        os.eventfd_write(self._bell, 1)

    def ready(self, mask: int) -> None:
        """Letters have come."""
        os.eventfd_read(self._bell)
        while self._letters:
            letter = self._letters.popleft()
            try:
                letter.result = letter.function()
            except BaseException as error:
                letter.error = error
            letter.done.set()

"""Counters that can be waited for, eventfd(2)."""

from __future__ import annotations

import os
from errno import EINVAL
from typing import TYPE_CHECKING

from casemate.sentry.errno import SysError
from casemate.sentry.ipc.anon import AnonFile
from casemate.sentry.vfs.file import POLLERR, POLLIN, POLLOUT

if TYPE_CHECKING:
    from casemate.sentry.kernel import Kernel
    from casemate.sentry.tasks.task import Task

LARGEST = 0xFFFF_FFFF_FFFF_FFFE
"""The counter's largest value."""


class EventFd(AnonFile):
    """One counter.

    Arguments:
        initial: its value.
        semaphore: reads take one at a time, ``EFD_SEMAPHORE``.
    """

    anonymous = "anon_inode:[eventfd]"

    def __init__(self, kernel: Kernel, flags: int, initial: int, semaphore: bool) -> None:
        super().__init__(kernel, os.O_RDWR | flags)
        self.count = initial
        self.semaphore = semaphore

    def read(self, task: Task, size: int) -> bytes:
        if size < 8:
            raise SysError(EINVAL)
        count = self.count
        if not count:
            self.keep(task)
            raise self.wait()
        if self.semaphore:
            self.count = count - 1
            count = 1
        else:
            self.count = 0
        self.queue.notify(POLLOUT)
        return count.to_bytes(8, "little")

    def write(self, task: Task, data: bytes) -> int:
        if len(data) < 8:
            raise SysError(EINVAL)
        value = int.from_bytes(data[:8], "little")
        if value > LARGEST:
            raise SysError(EINVAL)
        if self.count + value > LARGEST:
            self.keep(task)
            raise self.wait()
        self.count += value
        self.queue.notify(POLLIN)
        return 8

    def poll(self, task: Task) -> int:
        mask = POLLIN if self.count else 0
        if self.count < LARGEST:
            mask |= POLLOUT
        if self.count > LARGEST:
            mask |= POLLERR
        return mask

    def fdinfo(self) -> bytes:
        return b"eventfd-count: %16x\neventfd-semaphore: %d\n" % (self.count, self.semaphore)

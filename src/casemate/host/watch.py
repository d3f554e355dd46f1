"""Telling of changes to the interfaces of a network namespace, as they happen."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
from collections.abc import Callable, Sequence

from casemate.errors import CasemateError, NetworkError
from casemate.host import mirror, netlink
from casemate.host.mirror import Found

GROUPS = (
    netlink.RTMGRP_LINK
    | netlink.RTMGRP_IPV4_IFADDR
    | netlink.RTMGRP_IPV6_IFADDR
    | netlink.RTMGRP_IPV4_ROUTE
    | netlink.RTMGRP_IPV6_ROUTE
)
END_SECONDS = 15.0


class Watch:
    """Watches one namespace on a thread of its own, from :meth:`start` to :meth:`close`.

    However many changes there were meanwhile, they are one call, with all that there is afterwards. A change between
    making this and starting it is told of too.

    Arguments:
        netns: descriptor of the namespace; needed only for this call.
        changed: takes what :func:`casemate.host.mirror.discover` gives. One call at a time, on the watch's thread.
        failed: takes why the namespace could not be read; the watch goes on at the next change.

    Raises:
        NetworkError: the kernel does not tell of changes.
    """

    def __init__(
        self, netns: int, changed: Callable[[list[Found]], None], failed: Callable[[CasemateError], None]
    ) -> None:
        self._changed, self._failed = changed, failed
        try:
            self._news = netlink.open_in(netns, GROUPS)
            try:
                self._question = netlink.open_in(netns)
            except BaseException:
                self._news.close()
                raise
        except OSError as error:
            raise NetworkError(f"cannot watch the network namespace: {error.strerror}") from None
        self._news.socket.setblocking(False)
        self._end = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ask = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._asking: list[threading.Event] = []
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self, known: Sequence[Found]) -> None:
        """Begin to watch. ``known`` is what the caller has seen; where there is something else it is told at once."""
        with self._lock:
            if self._closed or self._thread is not None:
                return
            self._thread = threading.Thread(target=self._run, args=(list(known),), name="netns watch", daemon=True)
            self._thread.start()

    def caught_up(self, seconds: float) -> bool:
        """Have it look at once; whether all that was so when this was called has been told within that time."""
        told = threading.Event()
        with self._lock:
            if self._closed or self._thread is None:
                return False
            self._asking.append(told)
            os.eventfd_write(self._ask, 1)
        return told.wait(seconds)

    def close(self) -> None:
        """Stop; waits for a call under way to end, but not for ever. May be called twice, and by the call itself."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.eventfd_write(self._end, 1)
                if self._thread is None:
                    self._free()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(END_SECONDS)

    def _free(self) -> None:
        self._news.close()
        self._question.close()
        os.close(self._end)
        os.close(self._ask)

    def _run(self, known: list[Found]) -> None:
        waiting = select.poll()
        waiting.register(self._news.socket, select.POLLIN)
        waiting.register(self._end, select.POLLIN)
        waiting.register(self._ask, select.POLLIN)
        try:
            while not self._closed:
                with self._lock:
                    asking, self._asking = self._asking, []
                known = self._look(known)
                for told in asking:
                    told.set()
                if any(fd == self._end for fd, _ in waiting.poll()):
                    return
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._ask)
                self._drain()
        finally:
            with self._lock:
                self._closed = True
                self._free()
                for told in self._asking:
                    told.set()

    def _look(self, known: list[Found]) -> list[Found]:
        try:
            found = mirror.read(self._question)
        except CasemateError as error:
            self._failed(error)
            return known
        except OSError as error:
            self._failed(NetworkError(f"cannot read the network namespace: {error.strerror}"))
            return known
        if found != known:
            self._changed(found)
        return found

    def _drain(self) -> None:
        """Take what news there are: what they say is read anew anyway."""
        while True:
            try:
                self._news.socket.recv(netlink.RECEIVE)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # too many of them: the rest was dropped, which is as good
                    self._failed(NetworkError(f"cannot watch the network namespace: {error.strerror}"))
                    return

"""Devices on their way into a machine: each holds descriptors, which somebody has to close when they do not arrive."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence

from casemate.vm.hypervisor import base


def close_devices(devices: Sequence[base.Device]) -> None:
    """Close the descriptors that devices hold."""
    for device in devices:
        fd = base.device_fd(device)
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)


class Coming:
    """Shared file systems whose servers are being started, on a thread.

    Arguments:
        make: starts them; the devices.
    """

    def __init__(self, make: Callable[[], list[base.Device]]) -> None:
        self._made: list[base.Device] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(make,), name="coming", daemon=True)
        self._thread.start()

    def _run(self, make: Callable[[], list[base.Device]]) -> None:
        try:
            self._made = make()
        except BaseException as error:  # told to who waits for them
            self._error = error

    def get(self) -> list[base.Device]:
        """Wait for them; their descriptors are the caller's then. Raises what stood in the way."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        made, self._made = self._made, []
        return made

    def drop(self) -> None:
        """Wait until nothing more is started; who has not got them will not."""
        self._thread.join()
        made, self._made = self._made, []
        close_devices(made)

"""Making an original: a machine from its template that has been taken through starts, and is as before the first one.

It is a machine that waits (:class:`casemate.vm.waiting.Waiting`), warmed like those of the pool; then everything that
belongs to a sandbox is taken away from it again: the file servers, the network, the user id. It keeps what it has
learnt.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate.config import TEMPLATE_MIB, Config
from casemate.errors import CasemateError, HypervisorError
from casemate.vm.hypervisor import twin
from casemate.vm.hypervisor.qemu_twins import Original, Originals
from casemate.vm.template import WINDOW_MIB, memory
from casemate.vm.waiting import Waiting

_BOUNCE = re.compile(r"software IO TLB: mapped \[mem 0x([0-9a-f]{1,16})-0x([0-9a-f]{1,16})\]")
_PAGE = 4096
ROUNDS = 4
"""How often it is taken through a start. Each round finds less to do: what a twin translates, and the jumps that are
changed to lead there, it has for itself."""
LINGER = 2.5
"""Seconds of its last warm-up: longer than what the guest leaves for later takes to begin (:data:`late.QUIET` and
:data:`oom.FIRST` of the agent)."""


@dataclass(slots=True)
class Window:
    """The window as it is when the machine stands still, of which each twin gets a copy.

    Arguments:
        fd: the file.
        skip: begin and end of what need not be copied: the bounce buffers, of which none is in use.
    """

    fd: int
    skip: tuple[int, int]

    def copy(self) -> int:
        """A new file. Raises OSError: there is no memory, or no descriptor."""
        target = memory.create("casemate-window", WINDOW_MIB << 20)
        try:
            memory.copy_between(self.fd, target, 0, self.skip[0])
            memory.copy_between(self.fd, target, self.skip[1], WINDOW_MIB << 20)
        except BaseException:
            os.close(target)
            raise
        return target


class Stock:
    """The original and what it is copied from. One thread at a time.

    Arguments:
        config: the configuration in force.
        identifier, directory, run_path: see :class:`casemate.vm.waiting.Waiting`.
        memory_mib, vcpus: of the guest.
        ended: called when the original ends by itself before it was copied.
    """

    def __init__(
        self, config: Config, identifier: str, directory: Path, run_path: Path, memory_mib: int, vcpus: int,
        ended: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._waiting = Waiting(
            config, identifier, directory, run_path, memory_mib, ended, Originals(config), vcpus=vcpus
        )
        self._window: Window | None = None
        self.hello: dict[str, Any] = {}
        self.facts: dict[str, Any] = {}
        self.channels = 0

    def make(self) -> None:
        """Make the original.

        Raises:
            CasemateError: what stood in the way; :meth:`close` then gives back what was already there.
        """
        waiting, machine = self._waiting, self._waiting.machine
        try:
            waiting.come_up()
        except HypervisorError as error:
            raise HypervisorError(f"{error.message} (its template: {machine.info().get('template')})") from None
        # It learns nothing: the guest's kernel makes its boot id when somebody asks for it, and each twin has its own.
        waiting.warm(learn=False, linger=LINGER, rounds=ROUNDS)
        said = machine.calls.call("sandbox.boot", {"log": True})
        self.facts = machine.calls.call("sandbox.info", {"identity": False})
        try:
            machine.calls.call("sandbox.detach", {})
        except CasemateError as error:
            raise HypervisorError(error.message, "if the guest is older than this: casemate guest build") from None
        machine.drop_files()
        machine.calls.call("sandbox.rest", {})
        waiting.drop_network()
        vm = self._vm()
        vm.pause()
        assert vm.numbers is not None  # it was started
        window = os.open(f"/proc/{vm.pid}/fd/{vm.numbers.window}", os.O_RDWR | os.O_CLOEXEC)
        self._window = Window(window, _bounce_buffers(str(said.get("log", ""))))
        self.hello = machine.hello
        self.channels = machine.calls.channels

    def _vm(self) -> Original:
        vm = self._waiting.machine.vm()
        if not isinstance(vm, Original):
            raise HypervisorError("the machine is none that can be copied")
        return vm

    def numbers(self) -> twin.Numbers:
        """The original's descriptors."""
        numbers = self._vm().numbers
        assert numbers is not None  # it was started
        return numbers

    def copy(self) -> tuple[twin.Unborn, int]:
        """A twin, and the window that it is to have.

        Raises:
            HypervisorError: QEMU cannot be copied. OSError: there is no memory, or no descriptor.
        """
        assert self._window is not None  # it has been made
        window = self._window.copy()
        try:
            return self._vm().fork(), window
        except BaseException:
            os.close(window)
            raise

    def close(self) -> None:
        """End the original; its twins go on."""
        if self._window is not None:
            os.close(self._window.fd)
            self._window = None
        self._waiting.close()


def _bounce_buffers(log: str) -> tuple[int, int]:
    """Where in the window the guest's bounce buffers are, by its kernel's own word; nowhere where it does not say."""
    base, size = (TEMPLATE_MIB - WINDOW_MIB) << 20, WINDOW_MIB << 20
    found = _BOUNCE.search(log)
    if found is not None:
        begin, end = (int(word, 16) - base for word in found.groups())
        if 0 <= begin <= end <= size and not begin % _PAGE and not end % _PAGE:
            return begin, end
    return 0, 0

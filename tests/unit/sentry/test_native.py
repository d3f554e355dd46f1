"""The native part of the sentry's loop, beside the same in Python: neither knows anything of notifications here."""

from __future__ import annotations

import importlib.util
import os
import select
import shutil
import signal
import subprocess
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from casemate.sentry.platform.notify import NotifyPlatform
from casemate.sentry.platform.permits import Permits
from tests.vm.support import CHECKOUT

Step = Callable[..., Any]


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Step:
    """``step`` of a module that was built now."""
    target = tmp_path_factory.mktemp("native") / "_notify.abi3.so"
    done = subprocess.run([CHECKOUT / "scripts" / "native", target], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and target.exists(), (done.stdout, done.stderr)
    spec = importlib.util.spec_from_file_location("_notify", target)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    step: Step = module.step
    return step


class Python:
    """What :meth:`NotifyPlatform._step` needs of a platform."""

    def __init__(self, epoll: select.epoll, listener: int) -> None:
        self._epoll, self.listener = epoll, listener


@pytest.fixture(params=["native", "python"])
def step(request: pytest.FixtureRequest, native: Step) -> Iterator[Callable[[int, int, int, int], Any]]:
    """One of both, with a listener that is no such thing; arguments: what to watch, timeout, notice, value."""
    with select.epoll() as epoll:
        listener = os.eventfd(1, os.EFD_NONBLOCK)

        def turn(fd: int, timeout: int, notice: int = 0, value: int = 0) -> Any:
            epoll.register(fd if fd >= 0 else listener, select.EPOLLIN)
            try:
                if request.param == "native":
                    return native(epoll.fileno(), listener, timeout, notice, value, Permits().table)
                platform: Any = Python(epoll, listener)
                return NotifyPlatform._step(platform, timeout, notice, value)
            finally:
                epoll.unregister(fd if fd >= 0 else listener)

        yield turn
        os.close(listener)


def test_it_tells_what_is_ready(step: Step) -> None:
    read, write = os.pipe()
    try:
        assert step(read, 0) == []
        os.write(write, b"x")
        assert step(read, -1) == [(read, select.EPOLLIN)]
        os.close(write)
        write = -1
        assert step(read, 60_000) == [(read, select.EPOLLIN | select.EPOLLHUP)]
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)


def test_answering_what_is_no_listener_is_an_error(step: Step) -> None:
    read, write = os.pipe()
    for value in (0, -1, 1 << 63, (1 << 64) - 1, -(1 << 63)):
        with pytest.raises(OSError):
            step(read, 0, 1, value)
    os.close(read)
    os.close(write)


def test_receiving_from_what_is_no_listener_is_an_error(native: Step) -> None:
    listener = os.eventfd(1)
    with select.epoll() as epoll:
        epoll.register(listener, select.EPOLLIN)
        with pytest.raises(OSError):
            native(epoll.fileno(), listener, -1, 0, 0, Permits().table)
    os.close(listener)


def test_wrong_arguments_are_errors(native: Step) -> None:
    with pytest.raises(TypeError):
        native(1, 2, 3)
    with pytest.raises(TypeError):
        native(1, 2, 3, None, 5, Permits().table)
    with pytest.raises(OverflowError):
        native(1, 2, 3, 1 << 64, 5, Permits().table)
    with pytest.raises(OSError):
        native(-1, 2, 0, 0, 0, Permits().table)
    for table in (None, b"read only"):
        with pytest.raises((TypeError, BufferError)):
            native(-1, 2, 0, 0, 0, table)


def test_a_signal_of_ours_runs_its_handler(native: Step) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        with select.epoll() as epoll:
            end = threading.Event()

            def storm() -> None:  # until it is seen: the first may come before the wait has begun
                while not seen and not end.wait(0.01):
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

            thread = threading.Thread(target=storm)
            thread.start()
            try:
                assert native(epoll.fileno(), -1, 30_000, 0, 0, Permits().table) == []
            finally:
                end.set()
                thread.join()
        assert seen
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_checkout_has_it_built_where_it_can_be() -> None:
    from casemate.sentry.platform import notify

    built = Path(notify.__file__).with_name("_notify.abi3.so")
    assert (notify.NATIVE is not None) == built.exists()
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    assert built.exists() or shutil.which("gcc") is None or not header.exists(), "run: scripts/native"

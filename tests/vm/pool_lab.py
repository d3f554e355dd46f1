"""A pool for tests, in an environment of its own."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.vm.support import Casemate, Environment, environment

READY_SECONDS = 180.0
SETTINGS = "pool_interval = 0\npool_spare = 0\nmemory = 256\n"


@dataclass
class Lab:
    """A running ``casemate pool`` and the casemate that it serves."""

    cm: Casemate
    daemon: subprocess.Popen[bytes]

    @property
    def env(self) -> Environment:
        return self.cm.env

    def status(self) -> dict[str, Any]:
        return dict(self.cm.json("pool", "--status", "--json"))

    def until(self, good: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until the status is as wanted; there is no event for that."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            found = self.status()
            if good(found):
                return found
            assert time.monotonic() < deadline, json.dumps(found)
            time.sleep(0.1)

    def ready(self, count: int) -> list[str]:
        """Wait until so many members are ready; their ids."""
        found = self.until(lambda status: len(_ready(status)) >= count)
        return _ready(found)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send the daemon a signal and wait for its end."""
        self.daemon.send_signal(number)
        return self.daemon.wait(60)


def _ready(status: dict[str, Any]) -> list[str]:
    return [one["id"] for one in status["members"] if one["state"] == "ready"]


@contextlib.contextmanager
def pool(env: Environment, size: int) -> Iterator[Lab]:
    """A pool of an environment; its end is a drain, unless the test has ended it."""
    cm = Casemate(env)
    with cm.popen("pool", "--size", str(size), stdout=subprocess.DEVNULL) as daemon:
        lab = Lab(cm, daemon)
        try:
            assert daemon.stderr is not None
            assert b"ready" in daemon.stderr.readline()
            yield lab
        finally:
            if daemon.poll() is None:
                lab.end()


@contextlib.contextmanager
def lab(size: int, settings: str = SETTINGS) -> Iterator[Lab]:
    """A pool in an environment of its own."""
    with environment(settings) as env, pool(env, size) as made:
        yield made

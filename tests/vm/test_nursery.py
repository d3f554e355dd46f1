"""Keepers of containers that run at the same time are forked from one, see :mod:`casemate.keeper.nursery`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.oci import runtime
from tests.vm.support import Casemate, Environment, detached, environment, leaks, processes


@pytest.fixture
def own() -> Iterator[Environment]:
    """An environment in which nothing else runs."""
    with environment() as env:
        yield env
        assert leaks(env) == []


def keeper(cm: Casemate, name: str) -> int:
    return int(cm.inspect(name)["State"]["Pid"])


def heap(pid: int) -> str:
    """Where a process's heap is: the kernel chooses a place at random for each program that is executed."""
    return next(line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "[heap]" in line).split("-")[0]


def test_further_ones_are_forked(own: Environment) -> None:
    cm = Casemate(own)
    with detached(cm, "first"), detached(cm, "second"), detached(cm, "third"):
        for name in ("second", "third"):
            pid = keeper(cm, name)
            directory = str(own.root / "containers" / cm.inspect(name)["Id"])
            assert directory in Path(f"/proc/{pid}/cmdline").read_text().split("\0"), "ps shows whose keeper it is"
            assert heap(pid) == heap(keeper(cm, "first"))
        # The first one's end is not the others', nor that of what they came from.
        cm.remove("first")
        assert cm.out("exec", "second", "echo", "there") == "there"
        with detached(cm, "fourth"):
            assert heap(keeper(cm, "fourth")) == heap(keeper(cm, "third"))
    assert leaks(own) == [], "it ends with the last"


def test_nobody_needs_it(own: Environment) -> None:
    cm = Casemate(own)
    with detached(cm, "first"):
        known = {keeper(cm, "first")}
        mothers = [pid for pid, what in processes(own).items() if "casemate.keeper" in what and pid not in known]
        assert len(mothers) == 1
        os.kill(mothers[0], signal.SIGKILL)
        with detached(cm, "second"):
            assert cm.out("exec", "second", "echo", "there") == "there"
            assert heap(keeper(cm, "second")) != heap(keeper(cm, "first"))
        assert cm.out("exec", "first", "echo", "there") == "there"


def test_those_of_pods_too(own: Environment, tmp_path: Path) -> None:
    """Each sandbox of an engine has a keeper of the other program."""
    with runtime("casemate", own, tmp_path) as ours:
        first = ours.create(ours.bundle()).start()
        second = ours.create(ours.bundle()).start()
        found = {pid: what for pid, what in processes(own).items() if " casemate.pod " in what}
        assert len(found) == 3 and sum(" nursery " in what for what in found.values()) == 1
        assert len({heap(pid) for pid in found}) == 1
        assert second.sh("echo there") == "there" == first.sh("echo there")
        first.remove()
        assert ours.create(ours.bundle()).start().sh("echo there") == "there"

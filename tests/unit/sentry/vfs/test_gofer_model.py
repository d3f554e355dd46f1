"""The model of :mod:`tests.unit.sentry.vfs.test_model` on the host's files by a gofer, and on an overlay."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest
from hypothesis import HealthCheck, settings

from casemate.gofer.launch import Tree as Served
from casemate.gofer.launch import start_gofer
from casemate.sentry.vfs.inode import FileSystem
from casemate.sentry.vfs.overlay import OverlayFs
from casemate.sentry.vfs.tmpfs import TmpFs
from tests.unit.sentry.vfs.calls import Caller
from tests.unit.sentry.vfs.test_model import Tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the sentry's caller is root, so the host's has to be")

DEVICE = os.makedev(0, 65)
PATIENT = settings(max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))


class GoferTree(Tree):
    """On a directory of the host that nobody else changes."""

    exclusive = True

    def filesystem(self) -> FileSystem | None:
        self.served = tempfile.mkdtemp(prefix="casemate-served-")
        os.chmod(self.served, 0o755)
        self.client = start_gofer([Served(self.served, read_only=False, exclusive=self.exclusive)], isolate=False)
        return self.client.filesystem(0, DEVICE)

    def teardown(self) -> None:
        self.client.close()
        shutil.rmtree(self.served)
        super().teardown()


class SharedTree(GoferTree):
    """On one that others might change."""

    exclusive = False


class OverlayTree(Tree):
    """On an overlay over what is there already, which must stay as it is."""

    def __init__(self) -> None:
        super().__init__()
        for path in (b"a", b"a/b", b"c"):
            os.mkdir(path, 0o755)
        for path, text in ((b"b", b"of b" * 9000), (b"a/a", b"of a/a"), (b"c/d", b"")):
            with open(path, "wb") as file:
                file.write(text)
            os.chmod(path, 0o644)
        os.link(b"a/a", b"a/c")
        os.symlink(b"../b", b"a/d")

    def filesystem(self) -> FileSystem | None:
        lower = TmpFs(os.makedev(0, 66), size=1 << 30, mode=0o755)
        self.fill(lower)
        return OverlayFs(DEVICE, lower, settled=self.settled)

    def fill(self, lower: FileSystem) -> None:
        """Put the same into it as the host has."""
        below = Caller(fs=lower)
        for path in (b"/top", b"/top/a", b"/top/a/b", b"/top/c"):
            below("mkdir", path, 0o755)
        for path, text in ((b"/top/b", b"of b" * 9000), (b"/top/a/a", b"of a/a"), (b"/top/c/d", b"")):
            below.put(path, text)
        below("link", b"/top/a/a", b"/top/a/c")
        below("symlink", b"../b", b"/top/a/d")
        self.below = below
        self.before_all = self.everything()

    settled = False

    def everything(self) -> list[tuple[bytes, int, bytes | int]]:
        """What the lower file system holds."""
        caller, self.caller = getattr(self, "caller", None), self.below
        found = self.listing(b"/top")
        if caller is not None:
            self.caller = caller
        return found

    def teardown(self) -> None:
        assert self.everything() == self.before_all
        super().teardown()


class SettledOverlayTree(OverlayTree):
    """The same where the lower file system is known not to change."""

    settled = True


class HostOverlayTree(OverlayTree):
    """The same over the host's own files, as ``casemate do`` has it."""

    def filesystem(self) -> FileSystem | None:
        self.served = tempfile.mkdtemp(prefix="casemate-served-")
        os.chmod(self.served, 0o755)
        self.clients = [start_gofer([Served(self.served, False, True)], isolate=False) for _ in range(2)]
        self.fill(self.clients[0].filesystem(0, os.makedev(0, 66)))
        return OverlayFs(DEVICE, self.clients[1].filesystem(0, os.makedev(0, 67)), settled=True)

    def teardown(self) -> None:
        super().teardown()
        for client in self.clients:
            client.close()
        shutil.rmtree(self.served)


for machine in (GoferTree, SharedTree, OverlayTree, SettledOverlayTree, HostOverlayTree):
    machine.TestCase.settings = PATIENT
TestGoferTree = GoferTree.TestCase
TestSharedTree = SharedTree.TestCase
TestOverlayTree = OverlayTree.TestCase
TestSettledOverlayTree = SettledOverlayTree.TestCase
TestHostOverlayTree = HostOverlayTree.TestCase

"""Stand-ins for the keeper's client and the image store, so that commands run without root and without machines."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from casemate import ids
from casemate.config import Config
from casemate.errors import CasemateError, ImageNotFound, NotRunning
from casemate.keeper.store import Container, ContainerSpec, ContainerState, Store
from casemate.oci import spec
from casemate.oci.imageconfig import ImageConfig

IMAGE_ID = "sha256:" + "a" * 64


class FakeSession:
    """A process that ends when the test says so; the descriptor is readable from then on."""

    def __init__(self, status: int | None = 0, error: str = "") -> None:
        self.reader, self.writer = os.pipe()
        self.status = 0 if status is None else status
        self.error = error
        self.signals: list[int] = []
        self.sizes: list[tuple[int, int]] = []
        self.closed = False
        if status is not None:
            self.end(status)

    def end(self, status: int) -> None:
        self.status = status
        os.write(self.writer, b"x")

    def fileno(self) -> int:
        return self.reader

    def signal(self, signum: int) -> None:
        self.signals.append(signum)

    def resize(self, rows: int, columns: int) -> None:
        self.sizes.append((rows, columns))

    def wait(self) -> int:
        return self.status

    def close(self) -> None:
        self.closed = True


class Keeper:
    """What :mod:`casemate.keeper.client` does, on record."""

    def __init__(self) -> None:
        self.launched: list[tuple[Container, Any, Any]] = []
        self.calls: list[tuple[Any, ...]] = []
        self.session = FakeSession()
        self.launch_error: BaseException | None = None
        self.errors: dict[str, CasemateError] = {}
        self.stats: dict[str, Any] = {}

    def launch(self, config: Config, container: Container, stdio: Any, *, size: Any) -> FakeSession:
        if self.launch_error is not None:
            raise self.launch_error
        assert container.lock_fd is not None
        os.close(container.lock_fd)
        container.lock_fd = None
        self.launched.append((container, stdio, size))
        return self.session

    def client(self, container: Container) -> FakeClient:
        return FakeClient(self, container)


class FakeClient:
    """A client of :class:`Keeper`; refuses where an error is set for the container's name."""

    def __init__(self, keeper: Keeper, container: Container) -> None:
        self.keeper = keeper
        self.container = container
        if container.stored_state().status == "exited":
            raise NotRunning(f"container {container.name} is not running")

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def _record(self, *call: Any) -> None:
        self.keeper.calls.append((self.container.name, *call))
        if self.container.name in self.keeper.errors:
            raise self.keeper.errors[self.container.name]

    def signal(self, signum: int) -> None:
        self._record("signal", signum)

    def pause(self) -> None:
        self._record("pause")

    def resume(self) -> None:
        self._record("resume")

    def stop(self, timeout: float, signum: int) -> int:
        self._record("stop", timeout, signum)
        return 0

    def wait(self) -> int:
        self._record("wait")
        return 7

    def stats(self) -> dict[str, Any]:
        self._record("stats")
        return self.keeper.stats

    def exec(self, process: dict[str, Any], user: str, stdio: Any, *, tty: bool, size: Any) -> FakeSession:
        self._record("exec", process, user, stdio, tty, size)
        return self.keeper.session


class Images:
    """An image store with one image."""

    def __init__(self, config: ImageConfig | None = None) -> None:
        self.pulled: list[str] = []
        self.image = SimpleNamespace(
            id=IMAGE_ID, names=("busybox",), display_names=("busybox",), digests=(), layers=(Path("/layer"),),
            size=2048, created="2024-01-01T00:00:00Z", pulled=0, config=config or ImageConfig(cmd=("sh",)),
        )  # fmt: skip
        self.present = {"busybox", IMAGE_ID}
        self.source = {"busybox", "remote"}

    def hold(self) -> Any:
        import contextlib

        return contextlib.nullcontext()

    def resolve(self, reference: str) -> Any:
        if reference not in self.present:
            raise ImageNotFound(f"no image {reference}", "pull it")
        return self.image

    def pull(self, reference: str, progress: Any) -> Any:
        self.pulled.append(reference)
        if reference not in self.source:
            raise ImageNotFound(f"the registry has no {reference}")
        progress(f"fetching {reference}")
        self.present.add(reference)
        return self.image

    def list(self) -> list[Any]:
        return [self.image]


class World:
    """A root directory of its own with fakes around it."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from casemate.cli import common
        from casemate.keeper import client, reap

        self.config = Config(root=path / "root", run=path / "run")
        self.keeper = Keeper()
        self.images = Images()
        self.store = Store(self.config)
        monkeypatch.setenv("CASEMATE_ROOT", str(self.config.root))
        monkeypatch.setenv("CASEMATE_RUN", str(self.config.run))
        monkeypatch.delenv("CASEMATE_CONFIG", raising=False)
        monkeypatch.delenv("CASEMATE_DEBUG", raising=False)
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(client, "launch", self.keeper.launch)
        monkeypatch.setattr(client, "Client", self.keeper.client)
        monkeypatch.setattr(common, "images", lambda config: self.images)
        # What a sandbox has on the host only root may remove; here there is none of it.
        monkeypatch.setattr(reap, "clean_host", lambda container: None)
        # No keeper holds the lock here, which makes a container that runs look dead.
        true_state = Container.state

        def state(container: Container) -> ContainerState:
            stored = container.stored_state()
            return true_state(container) if stored.status == "creating" else stored

        monkeypatch.setattr(Container, "state", state)

    def add(
        self, name: str, *, command: tuple[str, ...] = ("sh",), state: ContainerState | None = None, **more: Any
    ) -> Container:
        """A container on record."""
        oci = spec.build(ImageConfig(), spec.Wishes(command=command, hostname="h"))
        made = self.store.create(ContainerSpec(
            id=ids.new_id(), name=name, image="busybox", image_id=IMAGE_ID, layers=("/layer",), oci=oci,
            command=command, created=more.pop("created", 1_700_000_000.0), **more,
        ))  # fmt: skip
        made.write_state(state or ContainerState(status="running", pid=1, started=1_700_000_000.0))
        assert made.lock_fd is not None
        os.close(made.lock_fd)
        made.lock_fd = None
        return made
